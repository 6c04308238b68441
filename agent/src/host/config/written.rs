//! The configuration file of a host, as written. What it means is in the module above.
//!
//! Unknown keys are refused everywhere. What is written back ([`Written`] of valid settings) names
//! every key, also those that were left out.

use crate::config::WrittenStore;
use crate::link::congestion::Congestion;
use crate::live::Quiesce;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(Debug, Default, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Written {
    #[serde(default)]
    pub(super) service: Service,
    #[serde(default)]
    pub(super) repository: BTreeMap<String, Repository>,
    #[serde(default)]
    pub(super) policy: BTreeMap<String, Policy>,
    #[serde(default)]
    pub(super) group: BTreeMap<String, Group>,
    #[serde(default)]
    pub(super) machine: BTreeMap<String, Machine>,
    #[serde(default)]
    pub(super) machines: Vec<Pattern>,
}

#[derive(Debug, Default, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Service {
    pub(super) concurrency: Option<usize>,
    pub(super) state_dir: Option<PathBuf>,
    pub(super) socket: Option<PathBuf>,
    pub(super) socket_group: Option<String>,
    pub(super) listen: Option<String>,
    pub(super) stop_grace: Option<String>,
    pub(super) time_zone: Option<String>,
    pub(super) scratch_dir: Option<PathBuf>,
    pub(super) scratch_max_mib: Option<u64>,
    pub(super) scratch_reserve_mib: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Repository {
    pub(super) location: String,
    pub(super) key: String,
    pub(super) cache_dir: Option<PathBuf>,
    pub(super) identity: Option<PathBuf>,
    pub(super) connections: Option<usize>,
    pub(super) workers: Option<usize>,
    pub(super) compression_level: Option<i32>,
    pub(super) pack_mib: Option<u32>,
    pub(super) uploads_in_flight: Option<usize>,
    #[serde(default)]
    pub(super) store: WrittenStore,
}

#[derive(Debug, Default, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Policy {
    pub(super) every: Option<String>,
    pub(super) schedule: Option<String>,
    pub(super) rpo: Option<String>,
    pub(super) jitter: Option<String>,
    pub(super) retry_after: Option<String>,
    pub(super) limit: Option<String>,
    pub(super) congestion: Option<Congestion>,
    pub(super) quiesce: Option<Quiesce>,
    pub(super) audit_ppm: Option<u32>,
    pub(super) keep: Option<Keep>,
    pub(super) pre: Option<PreHook>,
    pub(super) post: Option<PostHook>,
    #[serde(default)]
    pub(super) rate: Vec<Rate>,
}

#[derive(Debug, Default, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Keep {
    pub(super) all: Option<String>,
    pub(super) hourly: Option<String>,
    pub(super) daily: Option<String>,
    pub(super) weekly: Option<String>,
    pub(super) monthly: Option<String>,
    pub(super) yearly: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rate {
    pub(super) from: String,
    pub(super) to: String,
    pub(super) days: Option<String>,
    pub(super) limit: String,
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PreHook {
    pub(super) command: Vec<String>,
    pub(super) timeout: Option<String>,
    pub(super) on_failure: Option<OnFailure>,
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PostHook {
    pub(super) command: Vec<String>,
    pub(super) timeout: Option<String>,
}

/// What becomes of a run whose `pre` hook fails.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// It fails too, and nothing is backed up.
    #[default]
    Abort,
    /// It goes on, and says so.
    Continue,
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Group {
    pub(super) machines: Vec<String>,
    pub(super) policy: String,
    pub(super) repository: String,
    pub(super) together_within: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Machine {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) images: Vec<PathBuf>,
    pub(super) vm: Option<String>,
    pub(super) qmp: Option<PathBuf>,
    pub(super) connect: Option<String>,
    pub(super) format: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) backing_folders: Vec<PathBuf>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) skip_check: bool,
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pattern {
    pub(super) pattern: Option<String>,
    pub(super) vm: Option<String>,
    pub(super) tag: Option<String>,
    pub(super) connect: Option<String>,
    pub(super) name: Option<String>,
    #[serde(default)]
    pub(super) exclude: Vec<String>,
    pub(super) format: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) backing_folders: Vec<PathBuf>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) skip_check: bool,
}
