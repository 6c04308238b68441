//! Recovery points as the engine and the operator speak of them.

use super::Repository;
use super::catalogue::ExpiredPoint;
use crate::error::{Error, Kind, Result};
use serde::{Serialize, Serializer};
use tidegate_protocol::FormatError;
use tidegate_protocol::ids::{MomentId, PointId};
use tidegate_protocol::page::PageRef;
use tidegate_protocol::record::{self, Consistency, PointCommitted, Role, Tracking};

/// Fewest hexadecimal digits by which a point may be named.
const ID_DIGITS_MIN: usize = 4;

/// Which point of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// The newest.
    Latest,
    /// By the first hexadecimal digits of its id, at least four.
    Id(String),
    /// The newest taken at or before this moment, Unix time in nanoseconds.
    At(u64),
}

/// A recovery point.
#[derive(Debug, Clone, Serialize)]
pub struct Point {
    /// Its name.
    #[serde(rename = "point", serialize_with = "as_text")]
    pub id: PointId,
    /// The log record that committed it.
    pub number: u64,
    /// The machine.
    pub machine: String,
    /// The machine's disks.
    pub disks: Vec<PointDisk>,
    /// What the machine needs besides.
    pub files: Vec<PointFile>,
    /// The point it was compared with.
    #[serde(serialize_with = "as_optional_text")]
    pub parent: Option<PointId>,
    /// What the disks are worth to the software on them: offline, crash or application.
    pub consistency: &'static str,
    /// The moment it holds, Unix time in nanoseconds.
    pub taken_unix_ns: u64,
    /// When its run was done, Unix time in nanoseconds.
    pub finished_unix_ns: u64,
    /// Until when it is kept, Unix time in nanoseconds; 0 without an end.
    pub keep_until_unix_ns: u64,
    /// With whom it was frozen; none where it was taken by itself.
    pub together: Option<PointTogether>,
    /// The host that made it.
    pub host: String,
    /// What its run moved.
    #[serde(flatten)]
    pub totals: PointTotals,
}

/// The moment of a group that a recovery point is part of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PointTogether {
    /// The same for all points of that moment.
    #[serde(serialize_with = "as_text")]
    pub moment: MomentId,
    /// The group.
    pub group: String,
    /// Machines that were taken at this moment.
    pub machines: u32,
    /// Machines that should have been.
    pub expected: u32,
    /// How far apart the moments of any two of them are at most, in nanoseconds.
    pub skew_ns: u64,
}

/// Something of a machine that is no disk, and stored like one.
#[derive(Debug, Clone, Serialize)]
pub struct PointFile {
    /// What it is to the machine; none where a newer program knows.
    #[serde(serialize_with = "as_role")]
    pub role: Option<Role>,
    /// Its content.
    #[serde(flatten)]
    pub content: PointDisk,
}

/// A disk of a recovery point.
#[derive(Debug, Clone, Serialize)]
pub struct PointDisk {
    /// Its name within the machine.
    pub name: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// The format of the image it was read from.
    pub source_format: String,
    /// The tree's root; `None` is all hole.
    #[serde(skip)]
    pub root: Option<PageRef>,
    /// Levels of inner pages.
    #[serde(skip)]
    pub levels: u8,
    /// Delta pages over the tree, the oldest first.
    #[serde(skip)]
    pub deltas: Vec<PageRef>,
    /// How its changes were found, where something tracked them.
    #[serde(
        serialize_with = "as_tracking",
        skip_serializing_if = "Option::is_none"
    )]
    pub tracking: Option<Tracking>,
}

/// What a run moved, in bytes unless said otherwise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct PointTotals {
    /// Sum of the disks' sizes.
    pub virtual_bytes: u64,
    /// Bytes that are not holes.
    pub allocated_bytes: u64,
    /// Bytes read from the source.
    pub read_bytes: u64,
    /// Bytes of chunks that the repository did not have.
    pub new_bytes: u64,
    /// Bytes uploaded.
    pub stored_bytes: u64,
    /// Chunks seen (a count).
    pub chunks: u64,
}

impl Repository {
    /// Recovery points, oldest first; of one machine or of all.
    pub fn points(&self, machine: Option<&str>) -> Result<Vec<Point>> {
        let points = self.catalogue.points(machine)?;
        points.into_iter().map(|found| self.read(found)).collect()
    }

    /// The newest recovery point of a machine.
    pub fn newest_point(&self, machine: &str) -> Result<Option<Point>> {
        let found = self.catalogue.newest_point(machine)?;
        found.map(|found| self.read(found)).transpose()
    }

    /// The recovery point of that name.
    pub fn point(&self, point: PointId) -> Result<Option<Point>> {
        let found = self.catalogue.point(point)?;
        found.map(|found| self.read(found)).transpose()
    }

    fn read(&self, (number, body): (u64, PointCommitted)) -> Result<Point> {
        Point::decode(number, body).map_err(|error| {
            let key = record::object_key(number);
            self.damaged(&key, error)
        })
    }

    /// The point of `machine` that `selector` names.
    pub fn resolve(&self, machine: &str, selector: &Selector) -> Result<Point> {
        let mut points = self.points(Some(machine))?;
        let expired = self.catalogue.expired_points(machine)?;
        if points.is_empty() && expired.is_empty() {
            return Err(Error::new(
                Kind::Missing,
                format!("{}: there is no machine {machine:?}", self.store.label()),
            )
            .advise("`tidegate points` lists machines and their recovery points"));
        }
        let missing = |what: String| {
            Err(Error::new(
                Kind::Missing,
                format!("machine {machine:?} has no recovery point {what}"),
            )
            .advise(format!("`tidegate points --machine {machine}` lists them")))
        };
        match selector {
            Selector::Latest => points
                .pop()
                .map_or_else(|| missing("at all".to_owned()), Ok),
            Selector::At(unix_ns) => {
                points.retain(|point| point.taken_unix_ns <= *unix_ns);
                match points.pop() {
                    Some(point) => Ok(point),
                    None => missing("that old".to_owned()),
                }
            }
            Selector::Id(digits) => {
                if digits.len() < ID_DIGITS_MIN {
                    return Err(Error::new(
                        Kind::Config,
                        format!("{digits:?} is too short for a point's id"),
                    )
                    .advise(format!("give at least {ID_DIGITS_MIN} of its digits")));
                }
                let digits = digits.to_ascii_lowercase();
                points.retain(|point| point.id.to_string().starts_with(&digits));
                match (points.pop(), points.is_empty()) {
                    (Some(point), true) => Ok(point),
                    (Some(_), false) => Err(Error::new(
                        Kind::Config,
                        format!("several recovery points of {machine:?} begin with {digits}"),
                    )
                    .advise("give more digits")),
                    (None, _) => {
                        let of_that_name =
                            |gone: &&ExpiredPoint| gone.point.to_string().starts_with(&digits);
                        missing(match expired.iter().find(of_that_name) {
                            Some(gone) => gone_text(gone),
                            None => format!("that begins with {digits}"),
                        })
                    }
                }
            }
        }
    }
}

fn gone_text(gone: &ExpiredPoint) -> String {
    let when = i64::try_from(gone.time_unix_ns / 1_000_000_000).unwrap_or(i64::MAX);
    let when =
        jiff::Timestamp::from_second(when).map_or_else(|_| "?".to_owned(), |at| at.to_string());
    format!(
        "{} any more: it was expired at {when} ({})",
        gone.point.short(),
        gone.reason
    )
}

impl Point {
    fn decode(number: u64, body: PointCommitted) -> Result<Self, FormatError> {
        let totals = body.totals.unwrap_or_default();
        let (mut disks, mut files) = (Vec::new(), Vec::new());
        let together = body.together().map(|(moment, together)| PointTogether {
            moment,
            group: together.group.clone(),
            machines: together.machines,
            expected: together.expected,
            skew_ns: together.skew_ns,
        });
        for disk in body.disks {
            let (root, levels) = disk.tree()?;
            let deltas = disk.delta_pages()?;
            let role = Role::from_tag(disk.role);
            let content = PointDisk {
                name: disk.name,
                size_bytes: disk.size_bytes,
                source_format: disk.source_format,
                root,
                levels,
                deltas,
                tracking: disk.tracking,
            };
            match role {
                Some(Role::Disk) => disks.push(content),
                role => files.push(PointFile { role, content }),
            }
        }
        Ok(Self {
            id: record::point_id(&body.point)?,
            number,
            machine: body.machine,
            disks,
            files,
            parent: record::point_id(&body.parent).ok(),
            consistency: Consistency::name_of(body.consistency),
            taken_unix_ns: body.taken_unix_ns,
            finished_unix_ns: body.finished_unix_ns,
            keep_until_unix_ns: body.keep_until_unix_ns,
            together,
            host: body.host,
            totals: PointTotals {
                virtual_bytes: totals.virtual_bytes,
                allocated_bytes: totals.allocated_bytes,
                read_bytes: totals.read_bytes,
                new_bytes: totals.new_bytes,
                stored_bytes: totals.stored_bytes,
                chunks: totals.chunks,
            },
        })
    }

    /// All that it stores: disks, then what the machine needs besides.
    pub fn contents(&self) -> impl Iterator<Item = &PointDisk> {
        let files = self.files.iter().map(|file| &file.content);
        self.disks.iter().chain(files)
    }

    /// The disk of that name, or what else is stored under it; without a name the only disk.
    pub fn disk(&self, name: Option<&str>) -> Result<&PointDisk> {
        let found = match name {
            Some(name) => self.contents().find(|it| it.name == name),
            None if self.disks.len() == 1 => self.disks.first(),
            None => None,
        };
        found.ok_or_else(|| {
            let names: Vec<_> = self.contents().map(|it| it.name.as_str()).collect();
            let what = match name {
                Some(name) => format!("{}@{} has no disk {name:?}", self.machine, self.id.short()),
                None => format!("{}@{} has several disks", self.machine, self.id.short()),
            };
            Error::new(Kind::Config, what).advise(format!("name one of: {}", names.join(", ")))
        })
    }
}

fn as_role<S: Serializer>(
    role: &Option<Role>,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_str(match role {
        Some(Role::Disk) => "disk",
        Some(Role::Definition) => "definition",
        Some(Role::Nvram) => "nvram",
        Some(Role::Tpm) => "tpm",
        None => "unknown",
    })
}

fn as_tracking<S: Serializer>(
    tracking: &Option<Tracking>,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Told<'a> {
        believed: bool,
        reason: &'a str,
        audited_blocks: u64,
        false_chunks: u64,
    }
    let told = tracking.as_ref().map(|tracking| Told {
        believed: tracking.believed,
        reason: &tracking.reason,
        audited_blocks: tracking.audited_blocks,
        false_chunks: tracking.false_chunks,
    });
    told.serialize(serializer)
}

pub(crate) fn as_text<S: Serializer>(
    value: &impl std::fmt::Display,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

pub(crate) fn as_optional_text<S: Serializer, T: std::fmt::Display>(
    value: &Option<T>,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.collect_str(value),
        None => serializer.serialize_none(),
    }
}
