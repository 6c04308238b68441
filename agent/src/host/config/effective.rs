//! Settings as valid → as written, with everything said that was left out.

use super::keep;
use super::units::{days_text, duration_text, rate_text, time_of_day_text};
use super::written::{self, Written};
use super::{Find, Origin, Policy, RepositorySettings, Rhythm, Settings};
use crate::config::WrittenStore;
use std::time::Duration;

pub(super) fn written(settings: &Settings) -> Written {
    let service = &settings.service;
    Written {
        service: written::Service {
            concurrency: Some(service.concurrency),
            state_dir: Some(service.state_dir.clone()),
            socket: Some(service.socket.clone()),
            socket_group: Some(service.socket_group.clone()),
            listen: service.listen.map(|address| address.to_string()),
            stop_grace: Some(duration_text(service.stop_grace)),
            time_zone: service
                .time_zone_name
                .clone()
                .or_else(|| service.time_zone.iana_name().map(str::to_owned)),
            scratch_dir: Some(service.scratch.folder.clone()),
            scratch_max_mib: Some(service.scratch.bytes_max >> 20),
            scratch_reserve_mib: Some(service.scratch.reserve_bytes >> 20),
        },
        repository: settings
            .repositories
            .iter()
            .map(|(name, repository)| (name.clone(), repository_written(repository)))
            .collect(),
        policy: settings
            .policies
            .iter()
            .map(|(name, policy)| (name.clone(), policy_written(policy)))
            .collect(),
        group: settings
            .groups
            .iter()
            .map(|(name, group)| {
                let group = written::Group {
                    machines: group.machines.clone(),
                    policy: group.policy.clone(),
                    repository: group.repository.clone(),
                    together_within: group.together_within.map(duration_text),
                };
                (name.clone(), group)
            })
            .collect(),
        machine: settings
            .machines
            .iter()
            .map(|(name, origin)| (name.clone(), machine_written(origin)))
            .collect(),
        machines: settings
            .patterns
            .iter()
            .map(|pattern| {
                let mut written = written::Pattern {
                    pattern: None,
                    vm: None,
                    tag: None,
                    connect: None,
                    name: Some(pattern.name.clone()),
                    exclude: pattern.exclude.clone(),
                    format: None,
                    backing_folders: Vec::new(),
                    skip_check: false,
                };
                match &pattern.find {
                    Find::Images { pattern, reading } => {
                        written.pattern = Some(pattern.clone());
                        written.format = reading.format.map(|format| format.to_string());
                        written.backing_folders.clone_from(&reading.backing_folders);
                        written.skip_check = reading.skip_check;
                    }
                    Find::Domains {
                        pattern,
                        tag,
                        connect,
                    } => {
                        written.vm = Some(pattern.clone());
                        written.tag.clone_from(tag);
                        written.connect.clone_from(connect);
                    }
                }
                written
            })
            .collect(),
    }
}

fn machine_written(origin: &Origin) -> written::Machine {
    let mut written = written::Machine {
        images: Vec::new(),
        vm: None,
        qmp: None,
        connect: None,
        format: None,
        backing_folders: Vec::new(),
        skip_check: false,
    };
    match origin {
        Origin::Images { images, reading } => {
            written.images.clone_from(images);
            written.format = reading.format.map(|format| format.to_string());
            written.backing_folders.clone_from(&reading.backing_folders);
            written.skip_check = reading.skip_check;
        }
        Origin::Domain { domain, connect } => {
            written.vm = Some(domain.clone());
            written.connect.clone_from(connect);
        }
        Origin::Monitor(socket) => written.qmp = Some(socket.clone()),
    }
    written
}

fn repository_written(repository: &RepositorySettings) -> written::Repository {
    let how = repository.backup();
    let store = &repository.store;
    written::Repository {
        location: repository.location.clone(),
        key: repository.key.written(),
        cache_dir: Some(repository.cache_dir.clone()),
        identity: Some(repository.identity.clone()),
        connections: Some(store.link.connections),
        workers: Some(how.workers),
        compression_level: Some(how.compression_level),
        pack_mib: Some(how.pack_bytes >> 20),
        uploads_in_flight: Some(how.uploads_in_flight),
        store: WrittenStore {
            connect_timeout_seconds: Some(store.connect_timeout.as_secs()),
            request_timeout_seconds: Some(store.request_timeout.as_secs()),
            operation_deadline_seconds: Some(store.operation_deadline.as_secs()),
        },
    }
}

fn policy_written(policy: &Policy) -> written::Policy {
    let time = |time: Duration| Some(duration_text(time));
    written::Policy {
        every: match &policy.rhythm {
            Rhythm::Every(every) => time(*every),
            _ => None,
        },
        schedule: match &policy.rhythm {
            Rhythm::Schedule(_, text) => Some(text.clone()),
            _ => None,
        },
        rpo: policy.rpo.and_then(time),
        jitter: (!policy.jitter.is_zero()).then(|| duration_text(policy.jitter)),
        retry_after: time(policy.retry_after),
        limit: policy.limit_bytes_per_second.map(rate_text),
        congestion: Some(policy.congestion),
        quiesce: Some(policy.quiesce),
        audit_ppm: Some(policy.audit_ppm),
        keep: keep::written(&policy.keep),
        pre: policy.pre.as_ref().map(|hook| written::PreHook {
            command: hook.command.clone(),
            timeout: time(hook.timeout),
            on_failure: Some(policy.pre_on_failure),
        }),
        post: policy.post.as_ref().map(|hook| written::PostHook {
            command: hook.command.clone(),
            timeout: time(hook.timeout),
        }),
        rate: policy
            .windows
            .iter()
            .map(|window| written::Rate {
                from: time_of_day_text(window.from),
                to: time_of_day_text(window.to),
                days: Some(days_text(&window.days)),
                limit: rate_text(window.limit_bytes_per_second),
            })
            .collect(),
    }
}
