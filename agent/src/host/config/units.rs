//! Lengths of time, rates, times of day and days of the week, as people write them and back.
//!
//! Each parser's error says what was expected; who calls it knows the key. Invariant: what is
//! printed parses to the same value.

use jiff::civil::{Time, Weekday};
use std::fmt::Write;
use std::time::Duration;

const TIME_UNITS: [(&str, u64); 7] = [
    // A leap year: nothing is kept for less than what was written.
    ("y", 366 * 86_400_000),
    ("w", 7 * 86_400_000),
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1000),
    ("ms", 1),
];

/// Bytes a second of one of each; the first of those that fit is printed.
const RATE_UNITS: [(&str, u64); 9] = [
    ("Gbit/s", 125_000_000),
    ("Mbit/s", 125_000),
    ("kbit/s", 125),
    ("GiB/s", 1 << 30),
    ("MiB/s", 1 << 20),
    ("KiB/s", 1 << 10),
    ("GB/s", 1_000_000_000),
    ("MB/s", 1_000_000),
    ("kB/s", 1000),
];

const WEEKDAYS: [(&str, Weekday); 7] = [
    ("mon", Weekday::Monday),
    ("tue", Weekday::Tuesday),
    ("wed", Weekday::Wednesday),
    ("thu", Weekday::Thursday),
    ("fri", Weekday::Friday),
    ("sat", Weekday::Saturday),
    ("sun", Weekday::Sunday),
];

/// `90s`, `15m`, `1h30m`, `7d`, `1y` (366 days); not zero.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let wrong =
        || format!("expected a length of time such as 90s, 15m, 1h30m or 7d, found {text:?}");
    let mut rest = text.trim();
    let mut millis = 0_u64;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, behind) = rest.split_at(digits);
        let letters = behind.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, behind) = behind.split_at(letters);
        let each = TIME_UNITS.iter().find(|(name, _)| *name == unit);
        let part = number
            .parse::<u64>()
            .ok()
            .zip(each)
            .and_then(|(number, (_, each))| number.checked_mul(*each));
        millis = part
            .and_then(|part| millis.checked_add(part))
            .ok_or_else(wrong)?;
        rest = behind.trim_start();
    }
    match millis {
        0 => Err(wrong()),
        _ => Ok(Duration::from_millis(millis)),
    }
}

/// The shortest text that [`duration`] reads as `time`, to the millisecond.
pub(super) fn duration_text(time: Duration) -> String {
    let mut millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let mut text = String::new();
    for (unit, each) in TIME_UNITS {
        if millis >= each {
            // Writing to a string does not fail.
            let _ = write!(text, "{}{unit}", millis / each);
            millis %= each;
        }
    }
    text
}

/// `50 Mbit/s`, `6MB/s`, `512 KiB/s` → bytes a second.
pub(super) fn rate(text: &str) -> Result<u64, String> {
    let wrong = || format!("expected a rate such as \"50 Mbit/s\" or \"6 MB/s\", found {text:?}");
    let text_trimmed = text.trim();
    let digits = text_trimmed.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text_trimmed.split_at(digits);
    let each = RATE_UNITS
        .iter()
        .find(|(name, _)| *name == unit.trim())
        .ok_or_else(wrong)?
        .1;
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(each))
        .ok_or_else(wrong)
}

/// A text that [`rate`] reads as `bytes_per_second`, where it came from there.
pub(super) fn rate_text(bytes_per_second: u64) -> String {
    let (unit, each) = RATE_UNITS
        .into_iter()
        .find(|(_, each)| bytes_per_second.is_multiple_of(*each))
        .unwrap_or(("kB/s", 1000));
    format!("{} {unit}", bytes_per_second / each)
}

/// `08:00`; `24:00` is midnight, as the end of a day.
pub(super) fn time_of_day(text: &str) -> Result<Time, String> {
    let wrong = || format!("expected a time of day such as 08:00, found {text:?}");
    let (hours, minutes) = text.split_once(':').ok_or_else(wrong)?;
    let number = |digits: &str| match digits.len() {
        2 => digits.parse::<i8>().ok(),
        _ => None,
    };
    match (number(hours), number(minutes)) {
        (Some(24), Some(0)) => Ok(Time::midnight()),
        (Some(hours), Some(minutes)) => Time::new(hours, minutes, 0, 0).map_err(|_| wrong()),
        _ => Err(wrong()),
    }
}

pub(super) fn time_of_day_text(time: Time) -> String {
    format!("{:02}:{:02}", time.hour(), time.minute())
}

/// `mon-fri`, `sat,sun`, `fri-mon`; in the order of the week, each once.
pub(super) fn days(text: &str) -> Result<Vec<Weekday>, String> {
    let wrong = || format!("expected days such as \"mon-fri\" or \"sat,sun\", found {text:?}");
    let index = |name: &str| {
        WEEKDAYS
            .iter()
            .position(|(known, _)| *known == name.trim())
            .ok_or_else(wrong)
    };
    let mut chosen = [false; 7];
    for part in text.split(',') {
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (index(first)?, index(last)?),
            None => (index(part)?, index(part)?),
        };
        let mut day = first;
        loop {
            chosen[day] = true;
            if day == last {
                break;
            }
            day = (day + 1) % 7;
        }
    }
    Ok(WEEKDAYS
        .iter()
        .zip(chosen)
        .filter(|(_, chosen)| *chosen)
        .map(|((_, day), _)| *day)
        .collect())
}

pub(super) fn days_text(days: &[Weekday]) -> String {
    let names: Vec<&str> = WEEKDAYS
        .iter()
        .filter(|(_, day)| days.contains(day))
        .map(|(name, _)| *name)
        .collect();
    names.join(",")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn lengths_of_time() {
        for (text, seconds) in [
            ("90s", 90),
            ("15m", 900),
            ("1h30m", 5400),
            ("7d", 604_800),
            ("1y", 31_622_400),
        ] {
            let time = duration(text).unwrap();
            assert_eq!(time, Duration::from_secs(seconds), "{text}");
            assert_eq!(duration(&duration_text(time)), Ok(time), "{text}");
        }
        assert_eq!(duration_text(Duration::from_secs(5400)), "1h30m");
        assert_eq!(duration("1500ms"), Ok(Duration::from_millis(1500)));
        for wrong in [
            "",
            "0s",
            "s",
            "1",
            "1a",
            "-1s",
            "1.5h",
            "99999999999w",
            "9ä",
            "1h h",
        ] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn rates() {
        for (text, bytes) in [
            ("50 Mbit/s", 6_250_000),
            ("6MB/s", 6_000_000),
            ("512 KiB/s", 524_288),
            ("1 Gbit/s", 125_000_000),
        ] {
            assert_eq!(rate(text), Ok(bytes), "{text}");
            assert_eq!(rate(&rate_text(bytes)), Ok(bytes), "{text}");
        }
        for wrong in [
            "",
            "50",
            "50 Mbps",
            "Mbit/s",
            "-1 MB/s",
            "999999999999999 Gbit/s",
        ] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_of_day() {
        assert_eq!(time_of_day("08:05"), Ok(Time::constant(8, 5, 0, 0)));
        assert_eq!(time_of_day("24:00"), Ok(Time::midnight()));
        for wrong in [
            "", "8:00", "08", "08:60", "24:01", "25:00", "-1:00", "08:00:00",
        ] {
            assert!(time_of_day(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn days_of_the_week() {
        let text = |text| days(text).map(|days| days_text(&days));
        assert_eq!(text("mon-fri").unwrap(), "mon,tue,wed,thu,fri");
        assert_eq!(text("sat-mon").unwrap(), "mon,sat,sun");
        assert_eq!(text("sun, wed").unwrap(), "wed,sun");
        for wrong in ["", "monday", "mon-", "mon fri"] {
            assert!(days(wrong).is_err(), "{wrong}");
        }
    }
}
