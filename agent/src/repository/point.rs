//! Recovery points as the engine and the operator speak of them.

use super::Repository;
use crate::error::{Error, Kind, Result};
use serde::{Serialize, Serializer};
use tidegate_protocol::FormatError;
use tidegate_protocol::ids::PointId;
use tidegate_protocol::page::PageRef;
use tidegate_protocol::record::{self, Consistency, PointCommitted};

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
    /// The point it was compared with.
    #[serde(serialize_with = "as_optional_text")]
    pub parent: Option<PointId>,
    /// What the disks are worth to the software on them: offline, crash or application.
    pub consistency: &'static str,
    /// The moment it holds, Unix time in nanoseconds.
    pub taken_unix_ns: u64,
    /// When its run was done, Unix time in nanoseconds.
    pub finished_unix_ns: u64,
    /// The host that made it.
    pub host: String,
    /// What its run moved.
    #[serde(flatten)]
    pub totals: PointTotals,
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
        self.catalogue
            .points(machine)?
            .into_iter()
            .map(|(number, body)| {
                Point::decode(number, body).map_err(|error| {
                    let key = record::object_key(number);
                    self.damaged(&key, error)
                })
            })
            .collect()
    }

    /// The point of `machine` that `selector` names.
    pub fn resolve(&self, machine: &str, selector: &Selector) -> Result<Point> {
        let mut points = self.points(Some(machine))?;
        if points.is_empty() {
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
                    (None, _) => missing(format!("that begins with {digits}")),
                }
            }
        }
    }
}

impl Point {
    fn decode(number: u64, body: PointCommitted) -> Result<Self, FormatError> {
        let totals = body.totals.unwrap_or_default();
        let disks = body
            .disks
            .into_iter()
            .map(|disk| {
                let (root, levels) = disk.tree()?;
                let deltas = disk.delta_pages()?;
                Ok(PointDisk {
                    deltas,
                    name: disk.name,
                    size_bytes: disk.size_bytes,
                    source_format: disk.source_format,
                    root,
                    levels,
                })
            })
            .collect::<Result<_, FormatError>>()?;
        Ok(Self {
            id: record::point_id(&body.point)?,
            number,
            machine: body.machine,
            disks,
            parent: record::point_id(&body.parent).ok(),
            consistency: Consistency::name_of(body.consistency),
            taken_unix_ns: body.taken_unix_ns,
            finished_unix_ns: body.finished_unix_ns,
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

    /// The disk of that name, or the only one.
    pub fn disk(&self, name: Option<&str>) -> Result<&PointDisk> {
        let found = match name {
            Some(name) => self.disks.iter().find(|disk| disk.name == name),
            None if self.disks.len() == 1 => self.disks.first(),
            None => None,
        };
        found.ok_or_else(|| {
            let names: Vec<_> = self.disks.iter().map(|disk| disk.name.as_str()).collect();
            let what = match name {
                Some(name) => format!("{}@{} has no disk {name:?}", self.machine, self.id.short()),
                None => format!("{}@{} has several disks", self.machine, self.id.short()),
            };
            Error::new(Kind::Config, what).advise(format!("name one of: {}", names.join(", ")))
        })
    }
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
