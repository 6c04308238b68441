//! `[policy.NAME.keep]`: how long a policy's points are kept.
//!
//! Invariant: every key that is there has an effect. A period's first point is the first of all shorter
//! periods in it as well, so a longer period that is kept for less would say nothing.

use super::units::{duration, duration_text};
use super::validate::at;
use super::written;
use crate::error::Result;
use crate::retention::{ByPeriod, Keep, Period};
use jiff::tz::TimeZone;
use std::ops::RangeInclusive;
use std::time::Duration;

/// From what tests need to what can still be meant: 100 years.
const KEEP: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(100 * 366 * 86_400);

/// How long a point is kept, as people write it: `12h`, `30d`, `8w`, `1y` (366 days).
///
/// # Errors
/// What was expected and what was found.
pub fn keep_length(text: &str) -> std::result::Result<Duration, String> {
    let length = duration(text)?;
    if !KEEP.contains(&length) {
        let (least, most) = (duration_text(*KEEP.start()), duration_text(*KEEP.end()));
        return Err(format!("expected {least} to {most}, found {text}"));
    }
    Ok(length)
}

/// As written → as valid.
pub(super) fn valid(key: &str, written: Option<&written::Keep>, zone: &TimeZone) -> Result<Keep> {
    let Some(written) = written else {
        return Ok(Keep::WithoutEnd);
    };
    let length = |name: &str, text: Option<&String>| {
        let length = text.map(|text| keep_length(text)).transpose();
        length.map_err(|fault| at(&format!("{key}.{name}"), fault))
    };
    let Some(all) = length("all", written.all.as_ref())? else {
        return Err(at(
            &format!("{key}.all"),
            "expected how long every point is kept, such as \"2d\", found nothing",
        ));
    };
    let mut firsts: Vec<(Period, Duration)> = Vec::new();
    let mut before = ("all", all);
    for period in Period::ALL {
        let name = period.key();
        let text = of(written, period);
        let Some(length) = length(name, text)? else {
            continue;
        };
        if length <= before.1 {
            let (shorter, least) = (before.0, duration_text(before.1));
            let found = duration_text(length);
            return Err(at(
                &format!("{key}.{name}"),
                format!(
                    "expected more than {shorter} = {least}, found {found}: it would change nothing"
                ),
            ));
        }
        before = (name, length);
        firsts.push((period, length));
    }
    Ok(match firsts.is_empty() {
        true => Keep::For(all),
        false => Keep::ByPeriod(Box::new(ByPeriod {
            all,
            firsts,
            zone: zone.clone(),
        })),
    })
}

/// As valid → as written.
pub(super) fn written(keep: &Keep) -> Option<written::Keep> {
    let (all, firsts) = match keep {
        Keep::WithoutEnd => return None,
        Keep::For(all) => (all, [].as_slice()),
        Keep::ByPeriod(rule) => (&rule.all, rule.firsts.as_slice()),
    };
    let of = |period: Period| {
        let first = firsts.iter().find(|(of, _)| *of == period);
        first.map(|(_, length)| duration_text(*length))
    };
    Some(written::Keep {
        all: Some(duration_text(*all)),
        hourly: of(Period::Hour),
        daily: of(Period::Day),
        weekly: of(Period::Week),
        monthly: of(Period::Month),
        yearly: of(Period::Year),
    })
}

fn of(written: &written::Keep, period: Period) -> Option<&String> {
    match period {
        Period::Hour => written.hourly.as_ref(),
        Period::Day => written.daily.as_ref(),
        Period::Week => written.weekly.as_ref(),
        Period::Month => written.monthly.as_ref(),
        Period::Year => written.yearly.as_ref(),
    }
}
