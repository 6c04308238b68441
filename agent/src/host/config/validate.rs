//! Settings as written → as valid.

mod machines;

use super::keep;
use super::units::{days, duration, duration_text, rate, rate_text, time_of_day};
use super::written::{self, Written};
use super::{
    DEFAULT_SOCKET, Group, Hook, KeyPlace, Policy, RateWindow, RepositorySettings, Rhythm, Service,
    Settings,
};
use crate::config::{
    COMPRESSION_LEVELS, CONNECTIONS, IN_FLIGHT, PACK_MIB, WORKERS, from_folder, place_from_folder,
    within,
};
use crate::error::{Error, Kind, Result};
use crate::host::glob;
use crate::link::DEFAULT_IDENTITY;
use crate::live::ScratchSettings;
use crate::name;
use crate::replicate::BackupSettings;
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use machines::{machine, machines_are_one_each, pattern};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const STATE_DIR: &str = "/var/lib/tidegate";
const CACHE_DIR: &str = "/var/cache/tidegate";
const SOCKET_GROUP: &str = "tidegate";
/// The package makes it: not below `/var/tmp`, where a confined service sees its own and QEMU another.
const SCRATCH_DIR: &str = "/var/lib/tidegate-scratch";
const SCRATCH_MIB: RangeInclusive<u64> = 16..=1 << 30;
const SCRATCH_MIB_DEFAULT: u64 = 10 << 10;
const SCRATCH_RESERVE_MIB: RangeInclusive<u64> = 1..=1 << 30;
const SCRATCH_RESERVE_MIB_DEFAULT: u64 = 1 << 10;

/// Memory is the bound: each run holds several packs.
const CONCURRENCY: RangeInclusive<usize> = 1..=64;
/// From what tests need to what can still be meant.
const PERIOD: RangeInclusive<Duration> = Duration::from_secs(1)..=DAYS_366;
const GRACE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);
const HOOK_TIMEOUT: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(86_400);
const AUDIT_PPM: RangeInclusive<u32> = 0..=1_000_000;
const TOGETHER_WITHIN: RangeInclusive<Duration> =
    Duration::from_millis(1)..=Duration::from_secs(60);
const RETRY_AFTER: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);
const DAYS_366: Duration = Duration::from_secs(366 * 86_400);
/// Below it a pack of 32 MiB takes more than an hour.
const RATE_MIN: u64 = 8000;
const HOOK_TIMEOUT_DEFAULT: Duration = Duration::from_secs(300);
const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(60);
const STOP_GRACE_DEFAULT: Duration = Duration::from_secs(30);

pub(super) fn settings(written: &Written, folder: &Path) -> Result<Settings> {
    let service = service(&written.service, folder)?;
    let settings = Settings {
        service: service.clone(),
        repositories: each(&written.repository, "repository", |key, name, written| {
            repository(key, name, written, folder).map(Arc::new)
        })?,
        policies: each(&written.policy, "policy", |key, name, written| {
            policy(key, name, written, &service.time_zone).map(Arc::new)
        })?,
        groups: each(&written.group, "group", |key, name, written| {
            Ok(Arc::new(Group {
                name: name.to_owned(),
                machines: written.machines.clone(),
                policy: written.policy.clone(),
                repository: written.repository.clone(),
                together_within: time(
                    format!("{key}.together_within"),
                    written.together_within.as_ref(),
                    TOGETHER_WITHIN,
                )?,
            }))
        })?,
        machines: each(&written.machine, "machine", |key, _, written| {
            machine(key, written, folder)
        })?,
        patterns: written
            .machines
            .iter()
            .enumerate()
            .map(|(index, written)| pattern(&format!("machines[{index}]"), written, folder))
            .collect::<Result<_>>()?,
    };
    groups_refer(&settings)?;
    machines_are_one_each(&settings)?;
    Ok(settings)
}

/// An error about a key; `fault` says what was expected and what was found.
pub(super) fn at(key: &str, fault: impl AsRef<str>) -> Error {
    Error::new(Kind::Config, format!("{key}: {}", fault.as_ref()))
}

fn each<W, V>(
    written: &BTreeMap<String, W>,
    table: &str,
    valid: impl Fn(&str, &str, &W) -> Result<V>,
) -> Result<BTreeMap<String, V>> {
    let mut all = BTreeMap::new();
    for (name, value) in written {
        let key = format!("{table}.{name}");
        name::check(name).map_err(|fault| at(&key, fault))?;
        all.insert(name.clone(), valid(&key, name, value)?);
    }
    Ok(all)
}

fn time(
    key: String,
    written: Option<&String>,
    range: RangeInclusive<Duration>,
) -> Result<Option<Duration>> {
    let Some(text) = written else {
        return Ok(None);
    };
    let time = duration(text).map_err(|fault| at(&key, fault))?;
    if !range.contains(&time) {
        let (least, most) = (duration_text(*range.start()), duration_text(*range.end()));
        return Err(at(
            &key,
            format!("expected {least} to {most}, found {text}"),
        ));
    }
    Ok(Some(time))
}

fn limit(key: &str, text: &str) -> Result<u64> {
    let rate = rate(text).map_err(|fault| at(key, fault))?;
    if rate < RATE_MIN {
        return Err(at(
            key,
            format!("expected at least {}, found {text}", rate_text(RATE_MIN)),
        ));
    }
    Ok(rate)
}

fn service(written: &written::Service, folder: &Path) -> Result<Service> {
    let path = |path: &Option<PathBuf>, default: &str| match path {
        Some(path) => from_folder(folder, path),
        None => default.into(),
    };
    let time_zone = match &written.time_zone {
        None => TimeZone::system(),
        Some(name) => TimeZone::get(name).map_err(|error| {
            at(
                "service.time_zone",
                format!("expected a name such as Europe/Berlin, found {name:?}: {error}"),
            )
        })?,
    };
    let listen = match &written.listen {
        None => None,
        Some(text) => Some(text.parse().map_err(|_| {
            at(
                "service.listen",
                format!("expected an address and a port such as 127.0.0.1:9464, found {text:?}"),
            )
        })?),
    };
    let grace = time(
        "service.stop_grace".into(),
        written.stop_grace.as_ref(),
        GRACE,
    )?;
    Ok(Service {
        concurrency: within("service.concurrency", written.concurrency, CONCURRENCY)?.unwrap_or(2),
        state_dir: path(&written.state_dir, STATE_DIR),
        socket: path(&written.socket, DEFAULT_SOCKET),
        socket_group: written
            .socket_group
            .clone()
            .unwrap_or(SOCKET_GROUP.to_owned()),
        listen,
        stop_grace: grace.unwrap_or(STOP_GRACE_DEFAULT),
        time_zone,
        time_zone_name: written.time_zone.clone(),
        scratch: ScratchSettings {
            folder: path(&written.scratch_dir, SCRATCH_DIR),
            bytes_max: within(
                "service.scratch_max_mib",
                written.scratch_max_mib,
                SCRATCH_MIB,
            )?
            .unwrap_or(SCRATCH_MIB_DEFAULT)
                << 20,
            reserve_bytes: within(
                "service.scratch_reserve_mib",
                written.scratch_reserve_mib,
                SCRATCH_RESERVE_MIB,
            )?
            .unwrap_or(SCRATCH_RESERVE_MIB_DEFAULT)
                << 20,
        },
    })
}

fn repository(
    key: &str,
    name: &str,
    written: &written::Repository,
    folder: &Path,
) -> Result<RepositorySettings> {
    let of = |field: &str| format!("{key}.{field}");
    if written.location.trim().is_empty() {
        return Err(at(
            &of("location"),
            "expected a folder or a URL, found nothing",
        ));
    }
    let identity = written.identity.as_deref().map_or_else(
        || PathBuf::from(DEFAULT_IDENTITY),
        |path| from_folder(folder, path),
    );
    let mut store = written.store.validate(&of("store"))?;
    store.link.identity.clone_from(&identity);
    let connections = within(&of("connections"), written.connections, CONNECTIONS)?;
    if let Some(connections) = connections {
        store.link.connections = connections;
    }
    Ok(RepositorySettings {
        name: name.to_owned(),
        location: place_from_folder(folder, &written.location),
        key: KeyPlace::parse(&of("key"), &written.key, folder)?,
        cache_dir: match &written.cache_dir {
            Some(path) => from_folder(folder, path),
            None => CACHE_DIR.into(),
        },
        identity,
        workers: within(&of("workers"), written.workers, WORKERS)?,
        compression_level: within(
            &of("compression_level"),
            written.compression_level,
            COMPRESSION_LEVELS,
        )?,
        pack_mib: within(&of("pack_mib"), written.pack_mib, PACK_MIB)?,
        uploads_in_flight: within(
            &of("uploads_in_flight"),
            written.uploads_in_flight,
            IN_FLIGHT,
        )?,
        store,
    })
}

fn policy(key: &str, name: &str, written: &written::Policy, zone: &TimeZone) -> Result<Policy> {
    let of = |field: &str| format!("{key}.{field}");
    let rpo = time(of("rpo"), written.rpo.as_ref(), PERIOD)?;
    let every = time(of("every"), written.every.as_ref(), PERIOD)?;
    let rhythm = match (every, &written.schedule, rpo) {
        (Some(every), None, _) => Rhythm::Every(every),
        (None, Some(text), _) => {
            let cron = cron(text).map_err(|fault| at(&of("schedule"), fault))?;
            Rhythm::Schedule(Box::new(cron), text.clone())
        }
        (None, None, Some(rpo)) => Rhythm::Rpo(rpo),
        (Some(_), Some(_), _) => {
            return Err(at(key, "expected one of every and schedule, found both"));
        }
        (None, None, None) => {
            return Err(at(
                key,
                "expected every, schedule or rpo, found none of them",
            ));
        }
    };
    let period = match &rhythm {
        Rhythm::Every(period) | Rhythm::Rpo(period) => *period,
        Rhythm::Schedule(..) => DAYS_366,
    };
    let jitter = time(
        of("jitter"),
        written.jitter.as_ref(),
        Duration::from_secs(1)..=period,
    )?;
    let jitter = jitter.unwrap_or_default();
    if let (Some(rpo), Some(every)) = (rpo, every)
        && every > rpo
    {
        let (every, rpo) = (duration_text(every), duration_text(rpo));
        return Err(at(
            &of("rpo"),
            format!("expected no less than every = {every}, found {rpo}: it could not be kept"),
        ));
    }
    let windows = written.rate.iter().enumerate().map(|(index, written)| {
        let of = |field: &str| format!("{key}.rate[{index}].{field}");
        Ok(RateWindow {
            from: time_of_day(&written.from).map_err(|fault| at(&of("from"), fault))?,
            to: time_of_day(&written.to).map_err(|fault| at(&of("to"), fault))?,
            days: days(written.days.as_deref().unwrap_or("mon-sun"))
                .map_err(|fault| at(&of("days"), fault))?,
            limit_bytes_per_second: limit(&of("limit"), &written.limit)?,
        })
    });
    let hook = |field: &str, command: &[String], timeout: Option<&String>| -> Result<Hook> {
        let key = of(field);
        if !command
            .first()
            .is_some_and(|program| program.starts_with('/'))
        {
            return Err(at(
                &format!("{key}.command"),
                format!(
                    "expected a program by its whole path, and its arguments, found {command:?}"
                ),
            ));
        }
        Ok(Hook {
            command: command.to_vec(),
            timeout: time(format!("{key}.timeout"), timeout, HOOK_TIMEOUT)?
                .unwrap_or(HOOK_TIMEOUT_DEFAULT),
        })
    };
    let pre = written.pre.as_ref();
    let post = written.post.as_ref();
    let retry = time(of("retry_after"), written.retry_after.as_ref(), RETRY_AFTER)?;
    let all_day = written.limit.as_deref();
    Ok(Policy {
        name: name.to_owned(),
        rhythm,
        rpo,
        jitter,
        retry_after: retry.unwrap_or(RETRY_AFTER_DEFAULT),
        limit_bytes_per_second: all_day.map(|text| limit(&of("limit"), text)).transpose()?,
        windows: windows.collect::<Result<_>>()?,
        congestion: written.congestion.unwrap_or_default(),
        quiesce: written.quiesce.unwrap_or_default(),
        audit_ppm: within(&of("audit_ppm"), written.audit_ppm, AUDIT_PPM)?
            .unwrap_or(BackupSettings::default().audit_ppm),
        keep: keep::valid(&of("keep"), written.keep.as_ref(), zone)?,
        pre: pre
            .map(|pre| hook("pre", &pre.command, pre.timeout.as_ref()))
            .transpose()?,
        pre_on_failure: pre.and_then(|pre| pre.on_failure).unwrap_or_default(),
        post: post
            .map(|post| hook("post", &post.command, post.timeout.as_ref()))
            .transpose()?,
    })
}

/// Five fields; and it must come to pass some day.
fn cron(text: &str) -> Result<Cron, String> {
    let wrong = |why: String| {
        format!(
            "expected a cron expression of five fields such as \"30 2 * * mon-fri\", found {text:?}: {why}"
        )
    };
    let cron = CronParser::builder()
        .seconds(Seconds::Disallowed)
        .year(Year::Disallowed)
        .build()
        .parse(text)
        .map_err(|error| wrong(error.to_string()))?;
    let some_day = Timestamp::UNIX_EPOCH.to_zoned(TimeZone::UTC);
    match cron.find_next_occurrence(&some_day, true) {
        Ok(_) => Ok(cron),
        Err(_) => Err(wrong("it never comes".to_owned())),
    }
}

fn groups_refer(settings: &Settings) -> Result<()> {
    let known = |names: Vec<&String>| match names.is_empty() {
        true => "none is there".to_owned(),
        false => {
            let names: Vec<&str> = names.into_iter().map(String::as_str).collect();
            format!("there is {}", names.join(", "))
        }
    };
    let mut group_of: BTreeMap<&str, &str> = BTreeMap::new();
    for (name, group) in &settings.groups {
        let of = |field: &str| format!("group.{name}.{field}");
        if !settings.policies.contains_key(&group.policy) {
            let there = known(settings.policies.keys().collect());
            let found = &group.policy;
            return Err(at(
                &of("policy"),
                format!("expected the name of a policy, found {found:?}; {there}"),
            ));
        }
        if !settings.repositories.contains_key(&group.repository) {
            let there = known(settings.repositories.keys().collect());
            let found = &group.repository;
            return Err(at(
                &of("repository"),
                format!("expected the name of a repository, found {found:?}; {there}"),
            ));
        }
        if group.machines.is_empty() {
            return Err(at(
                &of("machines"),
                "expected at least one machine, found none",
            ));
        }
        for machine in &group.machines {
            if glob::is_pattern(machine) {
                continue;
            }
            // A pattern of images may find it later.
            if !settings.machines.contains_key(machine) && settings.patterns.is_empty() {
                let there = known(settings.machines.keys().collect());
                return Err(at(
                    &of("machines"),
                    format!("expected names or patterns of machines, found {machine:?}; {there}"),
                ));
            }
            if let Some(other) = group_of.insert(machine, name)
                && other != name
            {
                return Err(at(
                    &of("machines"),
                    format!(
                        "expected machines of no other group, found {machine:?}, which is in group.{other}"
                    ),
                ));
            }
        }
    }
    Ok(())
}
