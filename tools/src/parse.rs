//! What is written inside an option: points, sizes, samples, chunkers, recipients, names.
//!
//! Text in, values out; no I/O. Each error says what was expected, for clap to show.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, Zoned};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;
use tidegate_agent::repository::Selector;
use tidegate_protocol::FormatError;
use tidegate_protocol::descriptor::ChunkerParams;
use tidegate_protocol::enrolment::check_gateway;
use tidegate_protocol::keys::SealPublicKey;
use tidegate_protocol::rights::Rights;

/// A point as the operator writes it: `machine@selector`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Spec {
    pub(crate) machine: String,
    pub(crate) selector: Selector,
    text: String,
}

impl FromStr for Spec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((machine, point)) = text.split_once('@') else {
            return Err(format!(
                "expected MACHINE@POINT, such as {text}@latest, {text}@1a2b3c4d or {text}@2026-11-20"
            ));
        };
        Ok(Self {
            machine: name(machine)?,
            selector: selector(point, &TimeZone::system())?,
            text: text.to_owned(),
        })
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What to verify: one point, or all points of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum VerifyWhat {
    Point(Spec),
    Machine(String),
}

impl FromStr for VerifyWhat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains('@') {
            text.parse().map(Self::Point)
        } else {
            name(text).map(Self::Machine)
        }
    }
}

/// The name of a machine or a disk.
pub(crate) fn name(text: &str) -> Result<String, String> {
    tidegate_agent::name::check(text).map(|()| text.to_owned())
}

/// `latest`, digits of a point's id, or a moment.
///
/// A moment stands for the end of the unit it is written in, so that `@14:05` finds the point that
/// was taken at 14:05:30, and `@2026-11-20` the last one of that day.
fn selector(text: &str, zone: &TimeZone) -> Result<Selector, String> {
    if text == "latest" {
        return Ok(Selector::Latest);
    }
    if (4..=32).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(Selector::Id(text.to_ascii_lowercase()));
    }
    let wrong = || {
        format!(
            "{text:?} names no point: expected latest, at least four digits of its id, or a time: \
             YYYY-MM-DD, YYYY-MM-DDTHH:MM[:SS] (local), or RFC 3339 with an offset"
        )
    };
    let moment = if let Ok(moment) = text.parse::<Timestamp>() {
        moment
    } else {
        local_end(text, zone).ok_or_else(wrong)?
    };
    u64::try_from(moment.as_nanosecond())
        .map(Selector::At)
        .map_err(|_| wrong())
}

/// The last nanosecond of the day, minute or second that `text` writes.
fn local_end(text: &str, zone: &TimeZone) -> Option<Timestamp> {
    let (begin, unit): (DateTime, Span) = if let Some((_, time)) = text.split_once(['T', 't', ' '])
    {
        let unit = match time.matches(':').count() {
            1 => Span::new().minutes(1),
            2 if !time.contains('.') => Span::new().seconds(1),
            2 => Span::new().nanoseconds(1),
            _ => return None,
        };
        (text.parse().ok()?, unit)
    } else {
        let date: Date = text.parse().ok()?;
        (
            date.to_datetime(jiff::civil::Time::midnight()),
            Span::new().days(1),
        )
    };
    let begin: Zoned = begin.to_zoned(zone.clone()).ok()?;
    let end = begin.checked_add(unit).ok()?;
    end.timestamp().checked_sub(Span::new().nanoseconds(1)).ok()
}

/// A share: `5%` or `0.05`; above 0, at most everything.
pub(crate) fn sample(text: &str) -> Result<f64, String> {
    let parsed = match text.strip_suffix('%') {
        Some(percent) => percent.trim().parse::<f64>().map(|percent| percent / 100.0),
        None => text.parse::<f64>(),
    };
    match parsed {
        Ok(share) if share > 0.0 && share <= 1.0 => Ok(share),
        _ => Err(format!(
            "{text:?} is no share: expected more than 0% and at most 100%, such as 5%"
        )),
    }
}

/// How a new repository cuts disks into chunks: `fixed:64KiB`, or
/// `block-aligned:MIN/AVG/MAX[/EOF]`.
pub(crate) fn chunker(text: &str) -> Result<ChunkerParams, String> {
    let (kind, sizes) = match text.split_once(':') {
        Some((kind, sizes)) => (kind, sizes.split('/').collect::<Vec<_>>()),
        None => (text, Vec::new()),
    };
    let sizes = sizes
        .into_iter()
        .map(size_u32)
        .collect::<Result<Vec<_>, _>>()?;
    let params = match (kind, sizes.as_slice()) {
        ("block-aligned", []) => CHUNKER_DEFAULT,
        ("block-aligned", &[min, avg, max]) => block_aligned(min, avg, max, min),
        ("block-aligned", &[min, avg, max, eof]) => block_aligned(min, avg, max, eof),
        ("fixed", &[bytes]) => ChunkerParams::Fixed { chunk_bytes: bytes },
        _ => {
            return Err(format!(
                "{text:?} is no chunker: expected block-aligned, block-aligned:MIN/AVG/MAX[/EOF] \
                 or fixed:SIZE"
            ));
        }
    };
    params.validate().map_err(|error| error.to_string())?;
    Ok(params)
}

/// The chunker of a repository whose operator named none.
pub(crate) const CHUNKER_DEFAULT: ChunkerParams =
    block_aligned(16 << 10, 32 << 10, 64 << 10, 8 << 10);

const fn block_aligned(min: u32, avg: u32, max: u32, eof: u32) -> ChunkerParams {
    ChunkerParams::BlockAligned {
        chunk_bytes_min: min,
        chunk_bytes_avg: avg,
        chunk_bytes_max: max,
        eof_cut_bytes_min: eof,
    }
}

fn size_u32(text: &str) -> Result<u32, String> {
    u32::try_from(size(text)?).map_err(|_| format!("{text} is too large for a chunk"))
}

/// A size in bytes.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let size: bytesize::ByteSize = text
        .parse()
        .map_err(|_| format!("{text:?} is no size: expected bytes or a unit, such as 64KiB"))?;
    Ok(size.as_u64())
}

/// `OLD=NEW`.
pub(crate) fn renamed(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((old, new)) if !old.is_empty() && !new.is_empty() => {
            Ok((old.to_owned(), new.to_owned()))
        }
        _ => Err("expected OLD=NEW".to_owned()),
    }
}

/// `DISK=PATH`.
pub(crate) fn placed(text: &str) -> Result<(String, PathBuf), String> {
    let (disk, path) = renamed(text).map_err(|_| "expected DISK=PATH".to_owned())?;
    Ok((disk, path.into()))
}

/// A length of time: `90s`, `30m` or `2h`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let seconds_each = match text.chars().next_back() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3600,
        _ => 0,
    };
    text.get(..text.len().saturating_sub(1))
        .and_then(|number| number.parse::<u64>().ok())
        .and_then(|number| number.checked_mul(seconds_each))
        .filter(|seconds| *seconds > 0)
        .map(Duration::from_secs)
        .ok_or_else(|| format!("{text:?} is no length of time: write 90s, 30m or 2h"))
}

/// How long a point is kept: as in a policy, but not longer than 100 years.
pub(crate) fn keep(text: &str) -> Result<Duration, String> {
    tidegate_agent::host::config::keep_length(text)
}

/// Rights with commas between them.
pub(crate) fn rights(text: &str) -> Result<Rights, String> {
    text.parse().map_err(|error: FormatError| error.to_string())
}

/// A repository that a host is granted rights in: its name, and its rights where they are written
/// with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WrittenGrant {
    pub(crate) repository: String,
    pub(crate) rights: Option<Rights>,
}

/// `main` or `main:backup,restore`. Whether the name can be one, the fleet says.
pub(crate) fn grant(text: &str) -> Result<WrittenGrant, String> {
    let (repository, written) = match text.split_once(':') {
        Some((repository, written)) => (repository, Some(rights(written)?)),
        None => (text, None),
    };
    Ok(WrittenGrant {
        repository: repository.to_owned(),
        rights: written,
    })
}

/// Where a gateway is: `host:port`.
pub(crate) fn gateway(text: &str) -> Result<String, String> {
    check_gateway(text)
        .map(|()| text.to_owned())
        .map_err(|error| error.to_string())
}

/// The public half of an escrow key, hexadecimal or base64.
pub(crate) fn recipient(text: &str) -> Result<SealPublicKey, String> {
    let mut bytes = [0; 32];
    let decoded = if text.len() == 64 {
        hex::decode_to_slice(text, &mut bytes).is_ok()
    } else {
        STANDARD
            .decode_slice(text, &mut bytes)
            .is_ok_and(|length| length == 32)
    };
    if decoded {
        Ok(SealPublicKey(bytes))
    } else {
        Err("expected a public key of 32 bytes, as `tidegate key recipient` prints it".to_owned())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn at(text: &str) -> String {
        // Berlin: an hour ahead of UTC in winter, and with days of 23 and 25 hours.
        let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        match selector(text, &zone).unwrap() {
            Selector::At(ns) => Timestamp::from_nanosecond(ns.into()).unwrap().to_string(),
            other => panic!("{text} became {other:?}"),
        }
    }

    #[test]
    fn a_moment_ends_the_unit_it_is_written_in() {
        assert_eq!(at("2026-11-20"), "2026-11-20T22:59:59.999999999Z");
        assert_eq!(at("2026-11-20T14:05"), "2026-11-20T13:05:59.999999999Z");
        assert_eq!(at("2026-11-20 14:05"), "2026-11-20T13:05:59.999999999Z");
        assert_eq!(at("2026-11-20T14:05:30"), "2026-11-20T13:05:30.999999999Z");
        assert_eq!(at("2026-11-20T14:05:30.25"), "2026-11-20T13:05:30.25Z");
        assert_eq!(at("2026-11-20T14:05:30Z"), "2026-11-20T14:05:30Z");
        assert_eq!(at("2026-11-20T14:05:30-05:00"), "2026-11-20T19:05:30Z");
        // The day on which clocks go back has 25 hours.
        assert_eq!(at("2026-10-25"), "2026-10-25T22:59:59.999999999Z");
    }

    #[test]
    fn lengths_of_time() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("30m"), Ok(Duration::from_secs(1800)));
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7200)));
        for wrong in [
            "",
            "s",
            "0s",
            "-1s",
            "1",
            "1d",
            "1.5h",
            "99999999999999999999s",
            "9ä",
        ] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn ids_and_latest_are_told_from_times() {
        let spec: Spec = "web01@latest".parse().unwrap();
        assert_eq!(
            (spec.machine.as_str(), spec.selector),
            ("web01", Selector::Latest)
        );
        let spec: Spec = "web01@1A2b".parse().unwrap();
        assert_eq!(spec.selector, Selector::Id("1a2b".to_owned()));
        let spec: Spec = "web01@2026".parse().unwrap();
        assert_eq!(spec.selector, Selector::Id("2026".to_owned()));
        for wrong in [
            "web01",
            "@latest",
            "web01@",
            "web01@1a2",
            "web01@yesterday",
            "web01@1960-01-01",
            "a b@latest",
            "../x@latest",
        ] {
            assert!(wrong.parse::<Spec>().is_err(), "{wrong} was accepted");
        }
    }

    #[test]
    fn samples_are_shares() {
        assert_eq!(sample("5%"), Ok(0.05));
        assert_eq!(sample("0.25"), Ok(0.25));
        assert_eq!(sample("100%"), Ok(1.0));
        for wrong in ["0", "0%", "101%", "-5%", "NaN", "inf", "", "%"] {
            assert!(sample(wrong).is_err(), "{wrong} was accepted");
        }
    }

    #[test]
    fn chunkers_are_checked() {
        assert_eq!(chunker("block-aligned"), Ok(CHUNKER_DEFAULT));
        assert_eq!(
            chunker("fixed:64KiB"),
            Ok(ChunkerParams::Fixed { chunk_bytes: 65536 })
        );
        assert_eq!(
            chunker("block-aligned:8KiB/64KiB/256KiB"),
            Ok(block_aligned(8192, 65536, 262_144, 8192))
        );
        for wrong in [
            "",
            "fixed",
            "fixed:1000",
            "fixed:8GiB",
            "block-aligned:64KiB/32KiB/16KiB",
            "rabin",
        ] {
            assert!(chunker(wrong).is_err(), "{wrong} was accepted");
        }
    }

    #[test]
    fn recipients_are_hexadecimal_or_base64() {
        let key = SealPublicKey([7; 32]);
        assert_eq!(recipient(&hex::encode(key.0)), Ok(key));
        assert_eq!(recipient(&STANDARD.encode(key.0)), Ok(key));
        assert!(recipient("abcd").is_err());
        assert!(recipient(&"zz".repeat(32)).is_err());
    }
}
