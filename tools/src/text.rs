//! Figures, times and names for people.

use bytesize::ByteSize;
use comfy_table::{CellAlignment, Table, presets};
use jiff::{Timestamp, tz::TimeZone};
use std::time::Duration;
use tidegate_agent::clock;

/// A size, in binary units.
pub(crate) fn size(bytes: u64) -> String {
    ByteSize(bytes).display().iec().to_string()
}

/// A size a second.
pub(crate) fn rate(bytes: u64, seconds: f64) -> String {
    if seconds <= 0.0 {
        return "–".to_owned();
    }
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "for a person to read"
    )]
    let bytes_per_second = (bytes as f64 / seconds) as u64;
    format!("{}/s", size(bytes_per_second))
}

/// `part` of `whole`, in per cent.
pub(crate) fn share(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "–".to_owned();
    }
    #[expect(clippy::cast_precision_loss, reason = "for a person to read")]
    let share = part as f64 / whole as f64 * 100.0;
    format!("{share:.0} %")
}

/// How long something takes or took: its two largest units.
pub(crate) fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    if days > 0 {
        format!("{days} d {} h", hours % 24)
    } else if hours > 0 {
        format!("{hours} h {} min", minutes % 60)
    } else if minutes > 0 {
        format!("{minutes} min {} s", seconds % 60)
    } else {
        format!("{seconds} s")
    }
}

/// How long a job took, where fractions of a second matter.
pub(crate) fn seconds(seconds: f64) -> String {
    if seconds < 60.0 {
        return format!("{seconds:.1} s");
    }
    Duration::try_from_secs_f64(seconds).map_or_else(|_| "–".to_owned(), duration)
}

/// A moment, in local time.
pub(crate) fn local_time(unix_ns: u64) -> String {
    match Timestamp::from_nanosecond(unix_ns.into()) {
        Ok(moment) => moment
            .to_zoned(TimeZone::system())
            .strftime("%Y-%m-%d %H:%M:%S")
            .to_string(),
        Err(_) => format!("{unix_ns} ns"),
    }
}

/// Until when a point is kept, in local time.
pub(crate) fn keep_until(unix_ns: u64) -> String {
    match unix_ns {
        0 => "–".to_owned(),
        until => local_time(until),
    }
}

/// A moment by RFC 3339, in UTC.
pub(crate) fn utc_time(unix_ns: u64) -> Option<String> {
    Timestamp::from_nanosecond(unix_ns.into())
        .ok()
        .map(|moment| moment.to_string())
}

/// How long ago a moment was.
pub(crate) fn age(unix_ns: u64) -> String {
    let now = clock::now_unix_ns();
    if unix_ns > now {
        return "in the future".to_owned();
    }
    duration(Duration::from_nanos(now - unix_ns))
}

/// `1 disk`, `2 disks`.
pub(crate) fn count(number: u64, noun: &str) -> String {
    if number == 1 {
        format!("1 {noun}")
    } else {
        format!("{number} {noun}s")
    }
}

/// A table without lines; the columns whose names start with `>` are figures, aligned to the right.
pub(crate) fn table<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.map(|name| name.trim_start_matches('>')));
    for row in rows {
        table.add_row(row);
    }
    for (index, name) in header.iter().enumerate() {
        if let Some(column) = table.column_mut(index) {
            column.set_padding((0, 2));
            if name.starts_with('>') {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Names and values, one a line.
pub(crate) fn list<'a>(entries: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let entries: Vec<_> = entries.into_iter().collect();
    let width = entries
        .iter()
        .map(|(name, _)| name.len())
        .max()
        .unwrap_or(0);
    entries
        .iter()
        .map(|(name, value)| format!("{name:width$}  {value}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_show_two_units() {
        for (seconds, text) in [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min 0 s"),
            (3_599, "59 min 59 s"),
            (3_600, "1 h 0 min"),
            (90_000, "1 d 1 h"),
        ] {
            assert_eq!(duration(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn shares_of_nothing_are_no_number() {
        assert_eq!(share(0, 0), "–");
        assert_eq!(share(1, 4), "25 %");
    }

    #[test]
    fn figures_stand_on_the_right() {
        let text = table(
            ["name", ">size"],
            [
                ["a".to_owned(), "5 B".to_owned()],
                ["longer".to_owned(), "12.0 KiB".to_owned()],
            ],
        );
        assert_eq!(
            text,
            "name        size\na            5 B\nlonger  12.0 KiB\n"
        );
    }
}
