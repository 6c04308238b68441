//! What records say: one protobuf message for each kind, and the rules that each must keep.
//!
//! The rules are part of the format: a record whose body breaks one is void, for every reader alike.
//! What depends on the log before it (does that point exist?) is not checked here.

use crate::codec::fixed;
use crate::error::FormatError;
use crate::ids::{KeyId, MomentId, PackId, PageId, PointId, RunId, SegmentId, SlotId};
use crate::keys::Level;
use crate::limits::{BUNDLE_PACKS_MAX, DELTA_PAGES_MAX, DISKS_MAX, NAME_BYTES_MAX, PACK_BYTES_MAX};
use crate::pack::{Location, PackKind};
use crate::page::{self, PageRef};
use prost::Message;

const OBJECT: &str = "log record";

/// A recovery point exists.
#[derive(Clone, PartialEq, Message)]
pub struct PointCommitted {
    /// [`PointId`].
    #[prost(bytes = "vec", tag = "1")]
    pub point: Vec<u8>,
    /// The machine, as the operator names it.
    #[prost(string, tag = "2")]
    pub machine: String,
    /// The machine's disks at this point.
    #[prost(message, repeated, tag = "3")]
    pub disks: Vec<Disk>,
    /// The [`PointId`] it was compared with; empty for a first one.
    #[prost(bytes = "vec", tag = "4")]
    pub parent: Vec<u8>,
    /// A [`Consistency`] tag.
    #[prost(uint32, tag = "5")]
    pub consistency: u32,
    /// The moment of the disks that this point holds, Unix time in nanoseconds.
    #[prost(fixed64, tag = "6")]
    pub taken_unix_ns: u64,
    /// When the run was done, Unix time in nanoseconds.
    #[prost(fixed64, tag = "7")]
    pub finished_unix_ns: u64,
    /// [`SegmentId`]s that index this run's new chunks.
    #[prost(bytes = "vec", repeated, tag = "8")]
    pub segments: Vec<Vec<u8>>,
    /// The tree packs that this run wrote.
    #[prost(message, repeated, tag = "9")]
    pub tree_packs: Vec<PackSize>,
    /// The [`RunId`] that ends with this point.
    #[prost(bytes = "vec", tag = "10")]
    pub run: Vec<u8>,
    /// The host that wrote it, as it names itself.
    #[prost(string, tag = "11")]
    pub host: String,
    /// What the run moved.
    #[prost(message, optional, tag = "12")]
    pub totals: Option<Totals>,
    /// Until when this point is kept, Unix time in nanoseconds; 0 without an end. Any value is sound:
    /// one in the past gives up only this point.
    #[prost(fixed64, tag = "13")]
    pub keep_until_unix_ns: u64,
    /// The moment of a group that it is part of; absent where the machine was taken by itself. No
    /// rule hangs on it: one that is not sound says nothing, see [`PointCommitted::together`].
    #[prost(message, optional, boxed, tag = "14")]
    pub together: Option<Box<Together>>,
}

impl PointCommitted {
    /// The moment of a group that it is part of, where what it says of it can be shown.
    pub fn together(&self) -> Option<(MomentId, &Together)> {
        let together = self.together.as_ref()?;
        let moment = fixed(OBJECT, "moment", &together.moment).ok()?;
        name("group", &together.group).ok()?;
        Some((MomentId(moment), together))
    }

    pub(crate) fn check(&self) -> Result<(), FormatError> {
        point_id(&self.point)?;
        name("machine", &self.machine)?;
        optional::<{ PointId::BYTES }>("parent", &self.parent)?;
        optional::<{ RunId::BYTES }>("run", &self.run)?;
        segment_ids(&self.segments)?;
        printable("host", &self.host)?;
        self.tree_packs.iter().try_for_each(PackSize::check)?;
        if self.disks.len() > DISKS_MAX {
            return Err(out_of_range("disks", self.disks.len() as u64));
        }
        let mut names: Vec<&str> = Vec::with_capacity(self.disks.len());
        for disk in &self.disks {
            name("disk", &disk.name)?;
            printable("source format", &disk.source_format)?;
            disk.tree()?;
            disk.delta_pages()?;
            names.push(&disk.name);
        }
        names.sort_unstable();
        if names.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(rule("two disks have one name"));
        }
        Ok(())
    }
}

/// Several machines at one moment.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Together {
    /// A [`MomentId`]: points of one moment have the same.
    #[prost(bytes = "vec", tag = "1")]
    pub moment: Vec<u8>,
    /// The group, as the operator names it.
    #[prost(string, tag = "2")]
    pub group: String,
    /// Machines whose disks were taken at this moment, this one among them (a count).
    #[prost(uint32, tag = "3")]
    pub machines: u32,
    /// Machines that should have been (a count).
    #[prost(uint32, tag = "4")]
    pub expected: u32,
    /// How far apart the moments of any two of its machines are at most, in nanoseconds, by one
    /// monotonic clock.
    #[prost(uint64, tag = "5")]
    pub skew_ns: u64,
}

/// What a run moved, in bytes unless said otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Totals {
    /// Sum of the disks' sizes.
    #[prost(uint64, tag = "1")]
    pub virtual_bytes: u64,
    /// Bytes that are not holes.
    #[prost(uint64, tag = "2")]
    pub allocated_bytes: u64,
    /// Bytes read from the source.
    #[prost(uint64, tag = "3")]
    pub read_bytes: u64,
    /// Bytes of chunks that the repository did not have.
    #[prost(uint64, tag = "4")]
    pub new_bytes: u64,
    /// Bytes uploaded.
    #[prost(uint64, tag = "5")]
    pub stored_bytes: u64,
    /// Chunks seen (a count).
    #[prost(uint64, tag = "6")]
    pub chunks: u64,
}

/// A disk of a recovery point.
#[derive(Clone, PartialEq, Message)]
pub struct Disk {
    /// Its name within the machine.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its size in bytes.
    #[prost(uint64, tag = "2")]
    pub size_bytes: u64,
    /// The root page; absent when the whole disk is hole.
    #[prost(message, optional, tag = "3")]
    pub root: Option<StoredPageRef>,
    /// The format of the image it was read from, for people.
    #[prost(string, tag = "4")]
    pub source_format: String,
    /// Delta pages laid over the tree, the oldest first: what a later one says outranks it all.
    #[prost(message, repeated, tag = "5")]
    pub deltas: Vec<StoredPageRef>,
    /// How its changes since the parent point were found; absent where nothing tracked them.
    #[prost(message, optional, tag = "6")]
    pub tracking: Option<Tracking>,
    /// A [`Role`] tag.
    #[prost(uint32, tag = "7")]
    pub role: u32,
}

/// How changes of a disk were found, where something tracked them.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Tracking {
    /// True where the tracker was believed; false where all was read and compared.
    #[prost(bool, tag = "1")]
    pub believed: bool,
    /// Why not, for the audit.
    #[prost(string, tag = "2")]
    pub reason: String,
    /// Blocks of 4 KiB that the tracker called unchanged and that were compared all the same.
    #[prost(uint64, tag = "3")]
    pub audited_blocks: u64,
    /// Chunks among them that had changed.
    #[prost(uint64, tag = "4")]
    pub false_chunks: u64,
}

/// What a [`Disk`] is to its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// A disk.
    Disk,
    /// Its definition, as its hypervisor takes it.
    Definition,
    /// Variables of its firmware.
    Nvram,
    /// What its trusted platform module holds.
    Tpm,
}

impl Role {
    /// The tag in stored records.
    pub const fn tag(self) -> u32 {
        match self {
            Self::Disk => 0,
            Self::Definition => 1,
            Self::Nvram => 2,
            Self::Tpm => 3,
        }
    }

    /// The role with that tag.
    pub const fn from_tag(tag: u32) -> Option<Self> {
        match tag {
            0 => Some(Self::Disk),
            1 => Some(Self::Definition),
            2 => Some(Self::Nvram),
            3 => Some(Self::Tpm),
            _ => None,
        }
    }
}

impl Disk {
    /// The delta pages, checked.
    pub fn delta_pages(&self) -> Result<Vec<PageRef>, FormatError> {
        if self.deltas.len() > DELTA_PAGES_MAX {
            return Err(out_of_range("delta pages", self.deltas.len() as u64));
        }
        self.deltas.iter().map(StoredPageRef::decode).collect()
    }

    /// The root page, checked, and the tree's levels.
    pub fn tree(&self) -> Result<(Option<PageRef>, u8), FormatError> {
        let levels = page::tree_levels(self.size_bytes).ok_or(FormatError::Range {
            object: OBJECT,
            field: "disk size",
            found: self.size_bytes,
        })?;
        let root = self.root.as_ref().map(StoredPageRef::decode).transpose()?;
        Ok((root, levels))
    }
}

/// A [`PageRef`] as stored.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct StoredPageRef {
    /// [`PageId`].
    #[prost(bytes = "vec", tag = "1")]
    pub id: Vec<u8>,
    /// [`PackId`].
    #[prost(bytes = "vec", tag = "2")]
    pub pack: Vec<u8>,
    /// As in [`Location`].
    #[prost(uint32, tag = "3")]
    pub frame_offset: u32,
    /// As in [`Location`].
    #[prost(uint32, tag = "4")]
    pub frame_bytes: u32,
    /// As in [`Location`].
    #[prost(uint32, tag = "5")]
    pub offset_in_frame: u32,
    /// As in [`Location`].
    #[prost(uint32, tag = "6")]
    pub length: u32,
}

impl StoredPageRef {
    /// For storing.
    pub fn encode(page: &PageRef) -> Self {
        Self {
            id: page.id.0.to_vec(),
            pack: page.location.pack.0.to_vec(),
            frame_offset: page.location.frame_offset,
            frame_bytes: page.location.frame_bytes,
            offset_in_frame: page.location.offset_in_frame,
            length: page.location.length,
        }
    }

    /// Checked.
    pub fn decode(&self) -> Result<PageRef, FormatError> {
        let location = Location {
            pack: PackId(fixed(OBJECT, "pack", &self.pack)?),
            frame_offset: self.frame_offset,
            frame_bytes: self.frame_bytes,
            offset_in_frame: self.offset_in_frame,
            length: self.length,
        };
        location.check(OBJECT, PackKind::Tree)?;
        Ok(PageRef {
            id: PageId(fixed(OBJECT, "page", &self.id)?),
            location,
        })
    }
}

/// A pack and its size.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PackSize {
    /// [`PackId`].
    #[prost(bytes = "vec", tag = "1")]
    pub pack: Vec<u8>,
    /// Size in bytes.
    #[prost(uint64, tag = "2")]
    pub bytes: u64,
}

impl PackSize {
    pub(crate) fn check(&self) -> Result<(), FormatError> {
        fixed::<{ PackId::BYTES }>(OBJECT, "pack", &self.pack).map(drop)
    }
}

/// What a point's disks are worth to the software on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Consistency {
    /// The image was not in use.
    Offline,
    /// As after a power cut.
    Crash,
    /// The guest had flushed and frozen its file systems.
    Application,
}

impl Consistency {
    /// The tag in stored records.
    pub const fn tag(self) -> u32 {
        match self {
            Self::Offline => 1,
            Self::Crash => 2,
            Self::Application => 3,
        }
    }

    /// The name for a tag.
    pub const fn name_of(tag: u32) -> &'static str {
        match tag {
            1 => "offline",
            2 => "crash",
            3 => "application",
            _ => "unknown",
        }
    }
}

/// Recovery points are given up.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PointExpired {
    /// [`PointId`]s.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub points: Vec<Vec<u8>>,
    /// Why, for the audit.
    #[prost(string, tag = "2")]
    pub reason: String,
}

impl PointExpired {
    pub(crate) fn check(&self) -> Result<(), FormatError> {
        point_ids(&self.points).map(drop)
    }
}

/// Recovery points must not be given up.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct HoldSet {
    /// Name of the hold, 16 random bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub hold: Vec<u8>,
    /// [`PointId`]s.
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub points: Vec<Vec<u8>>,
    /// Why, for the audit.
    #[prost(string, tag = "3")]
    pub reason: String,
    /// When it ends by itself, Unix time in nanoseconds; 0 never.
    #[prost(fixed64, tag = "4")]
    pub until_unix_ns: u64,
}

impl HoldSet {
    pub(crate) fn check(&self) -> Result<(), FormatError> {
        fixed::<16>(OBJECT, "hold", &self.hold)?;
        point_ids(&self.points).map(drop)
    }
}

/// A hold ends.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct HoldLifted {
    /// Name of the hold.
    #[prost(bytes = "vec", tag = "1")]
    pub hold: Vec<u8>,
    /// Why, for the audit.
    #[prost(string, tag = "2")]
    pub reason: String,
}

impl HoldLifted {
    pub(crate) fn check(&self) -> Result<(), FormatError> {
        fixed::<16>(OBJECT, "hold", &self.hold).map(drop)
    }
}

/// Packs that no live point needs.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PacksCondemned {
    /// [`PackId`]s.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub packs: Vec<Vec<u8>>,
}

impl PacksCondemned {
    pub(crate) fn check(&self) -> Result<(), FormatError> {
        pack_ids(&self.packs).map(drop)
    }
}

/// Condemned packs that are deleted from now on, or rescued.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PacksSwept {
    /// [`PackId`]s that are deleted after this record.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub packs: Vec<Vec<u8>>,
    /// [`PackId`]s that a newer point uses: condemned no longer.
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub rescued: Vec<Vec<u8>>,
}

impl PacksSwept {
    pub(crate) fn check(&self) -> Result<(), FormatError> {
        pack_ids(&self.packs)?;
        pack_ids(&self.rescued).map(drop)
    }
}

/// Chunks have a new place.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ChunksRelocated {
    /// [`SegmentId`]s that say where the chunks are now.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub segments: Vec<Vec<u8>>,
}

impl ChunksRelocated {
    pub(crate) fn check(&self) -> Result<(), FormatError> {
        segment_ids(&self.segments).map(drop)
    }
}

/// Packs, or index segments, that are missing or do not hash to their name.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PacksFoundBad {
    /// [`PackId`]s.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub packs: Vec<Vec<u8>>,
    /// What was found, for the audit.
    #[prost(string, tag = "2")]
    pub reason: String,
    /// [`SegmentId`]s: nobody reads them any more, and their packs are named anew.
    #[prost(bytes = "vec", repeated, tag = "3")]
    pub segments: Vec<Vec<u8>>,
}

impl PacksFoundBad {
    pub(crate) fn check(&self) -> Result<(), FormatError> {
        pack_ids(&self.packs)?;
        segment_ids(&self.segments).map(drop)
    }
}

/// Index segments were replaced.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct IndexMerged {
    /// [`SegmentId`]s that are read no longer.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub removed: Vec<Vec<u8>>,
    /// [`SegmentId`]s that stand for them.
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub added: Vec<Vec<u8>>,
}

impl IndexMerged {
    pub(crate) fn check(&self) -> Result<(), FormatError> {
        segment_ids(&self.removed)?;
        segment_ids(&self.added).map(drop)
    }
}

/// Packs lie one after the other in one object, and their own objects may go.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PacksBundled {
    /// The object, named as a pack is: a [`PackId`] of all its bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub bundle: Vec<u8>,
    /// The packs in it, in their order there: each begins where the one before it ends.
    #[prost(message, repeated, tag = "2")]
    pub packs: Vec<PackSize>,
}

impl PacksBundled {
    pub(crate) fn check(&self) -> Result<(), FormatError> {
        fixed::<{ PackId::BYTES }>(OBJECT, "bundle", &self.bundle)?;
        if !(1..=BUNDLE_PACKS_MAX).contains(&self.packs.len()) {
            return Err(out_of_range("packs", self.packs.len() as u64));
        }
        let mut names = vec![&self.bundle];
        let mut bytes: u64 = 0;
        for pack in &self.packs {
            pack.check()?;
            bytes = bytes.saturating_add(pack.bytes);
            names.push(&pack.pack);
        }
        if bytes > PACK_BYTES_MAX.into() {
            return Err(out_of_range("bytes", bytes));
        }
        names.sort_unstable();
        if names.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(rule(
                "two packs of a bundle, or a pack and the bundle, have one name",
            ));
        }
        Ok(())
    }

    /// Where each pack begins in the bundle, in bytes. The sum was checked.
    pub fn places(&self) -> impl Iterator<Item = (u64, &PackSize)> {
        self.packs.iter().scan(0, |next: &mut u64, pack| {
            let start = *next;
            *next = next.saturating_add(pack.bytes);
            Some((start, pack))
        })
    }
}

/// A writable volume was opened.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct VolumeOpened {
    /// Name of the volume, 16 random bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub volume: Vec<u8>,
    /// Counts openings: an older epoch may not commit any more.
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    /// The [`PointId`] it starts from.
    #[prost(bytes = "vec", tag = "3")]
    pub point: Vec<u8>,
    /// The machine its points belong to.
    #[prost(string, tag = "4")]
    pub machine: String,
}

impl VolumeOpened {
    pub(crate) fn check(&self) -> Result<(), FormatError> {
        fixed::<16>(OBJECT, "volume", &self.volume)?;
        name("machine", &self.machine)?;
        optional::<{ PointId::BYTES }>("point", &self.point)
    }
}

/// A signing key was certified or revoked, or a slot was made or removed.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct KeyChanged {
    /// [`crate::ids::KeyId`].
    #[prost(bytes = "vec", tag = "1")]
    pub key: Vec<u8>,
    /// The level's tag.
    #[prost(uint32, tag = "2")]
    pub level: u32,
    /// What the operator calls it.
    #[prost(string, tag = "3")]
    pub label: String,
    /// True when the key is void from the next record on.
    #[prost(bool, tag = "4")]
    pub revoked: bool,
    /// The [`crate::ids::SlotId`] that holds it; empty for a key file.
    #[prost(bytes = "vec", tag = "5")]
    pub slot: Vec<u8>,
}

impl KeyChanged {
    pub(crate) fn check(&self) -> Result<(), FormatError> {
        fixed::<{ KeyId::BYTES }>(OBJECT, "key", &self.key)?;
        u8::try_from(self.level)
            .ok()
            .and_then(Level::from_tag)
            .ok_or_else(|| out_of_range("level", self.level.into()))?;
        optional::<{ SlotId::BYTES }>("slot", &self.slot)
    }
}

/// What a drill, a verify or a scrub found.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Evidence {
    /// "verify", "scrub" or "drill".
    #[prost(string, tag = "1")]
    pub activity: String,
    /// [`PointId`]s concerned.
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub points: Vec<Vec<u8>>,
    /// True when nothing was found wanting.
    #[prost(bool, tag = "3")]
    pub passed: bool,
    /// The report, as JSON.
    #[prost(string, tag = "4")]
    pub report: String,
}

impl Evidence {
    pub(crate) fn check(&self) -> Result<(), FormatError> {
        point_ids(&self.points).map(drop)
    }
}

/// Segments of a run that is still under way.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct RunAnnounced {
    /// [`RunId`].
    #[prost(bytes = "vec", tag = "1")]
    pub run: Vec<u8>,
    /// The machine.
    #[prost(string, tag = "2")]
    pub machine: String,
    /// [`SegmentId`]s that have landed since the run's last announcement.
    #[prost(bytes = "vec", repeated, tag = "3")]
    pub segments: Vec<Vec<u8>>,
    /// True when the run ends without a point.
    #[prost(bool, tag = "4")]
    pub abandoned: bool,
}

impl RunAnnounced {
    pub(crate) fn check(&self) -> Result<(), FormatError> {
        run_id(&self.run)?;
        name("machine", &self.machine)?;
        segment_ids(&self.segments).map(drop)
    }
}

macro_rules! id_list {
    ($(#[$doc:meta])* $name:ident, $id:ident) => {
        $(#[$doc])*
        pub fn $name(list: &[Vec<u8>]) -> Result<Vec<$id>, FormatError> {
            list.iter()
                .map(|bytes| fixed(OBJECT, stringify!($name), bytes).map($id))
                .collect()
        }
    };
}

id_list!(
    /// Pack names of a message, checked.
    pack_ids, PackId
);
id_list!(
    /// Segment names of a message, checked.
    segment_ids, SegmentId
);
id_list!(
    /// Point names of a message, checked.
    point_ids, PointId
);

/// A run's name of a message, checked.
pub fn run_id(bytes: &[u8]) -> Result<RunId, FormatError> {
    fixed(OBJECT, "run", bytes).map(RunId)
}

/// A point's name of a message, checked.
pub fn point_id(bytes: &[u8]) -> Result<PointId, FormatError> {
    fixed(OBJECT, "point", bytes).map(PointId)
}

/// A name that people type and read: not empty, not long, nothing in it that a terminal obeys.
fn name(field: &'static str, text: &str) -> Result<(), FormatError> {
    if text.is_empty() {
        return Err(out_of_range(field, 0));
    }
    printable(field, text)
}

fn printable(field: &'static str, text: &str) -> Result<(), FormatError> {
    if text.len() > NAME_BYTES_MAX {
        return Err(out_of_range(field, text.len() as u64));
    }
    if let Some(control) = text.chars().find(|letter| letter.is_control()) {
        return Err(FormatError::Tag {
            object: OBJECT,
            field,
            found: u32::from(control).into(),
        });
    }
    Ok(())
}

/// Empty, or of `N` bytes.
fn optional<const N: usize>(field: &'static str, bytes: &[u8]) -> Result<(), FormatError> {
    match bytes {
        [] => Ok(()),
        bytes => fixed::<N>(OBJECT, field, bytes).map(drop),
    }
}

fn out_of_range(field: &'static str, found: u64) -> FormatError {
    FormatError::Range {
        object: OBJECT,
        field,
        found,
    }
}

fn rule(detail: &str) -> FormatError {
    FormatError::Message {
        object: OBJECT,
        detail: detail.to_owned(),
    }
}
