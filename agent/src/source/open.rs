//! From a path to a disk: which format it is, and which files may be read for it.
//!
//! Not a parser: raw images are read natively, all others by QEMU in a child. The invariants:
//!
//! - what a guest wrote never decides the format ([`crate::format::choose`]);
//! - an image may name other files (backing files, extents, a data file), and whoever made it may
//!   have named a secret of this host. So every such file must be a regular file or block device
//!   *beside or below the image*, or below a folder that the operator allows; names of protocols
//!   (`nbd:`, `json:`, `http:`) are refused;
//! - QEMU is then handed the whole graph of files that was checked, and follows no name that stands
//!   in an image (but for VMDK extents, whose names are plain names of files beside it).

mod check;
pub(crate) mod graph;
mod snapshot;
pub(crate) mod vmdk;

use super::raw::open_disk;
pub use snapshot::{Memory, Remembered, Snapshot, Stamp, open_snapshot};

use super::{Changes, NbdSource, RawSource, Source};
use crate::error::{Error, Kind, Result};
use crate::format::{self, Format};
use crate::qemu::{self, Running, Task, Tool};
use graph::{Graph, Reach};
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long QEMU may take to open an image.
const START_TIME_MAX: Duration = Duration::from_secs(60);
/// As much of an image's head as a magic number or a VMDK descriptor's first lines need.
const HEAD_BYTES: usize = 4096;

/// How to open an image.
#[derive(Debug, Clone, Default)]
pub struct OpenSettings {
    /// What the operator says that it is.
    pub format: Option<Format>,
    /// Folders whose files images may name as backing file, extent or data file, besides the
    /// image's own folder.
    pub backing_folders: Vec<PathBuf>,
    /// Leave out the check that an image's tables are whole, which reads all of them.
    pub skip_check: bool,
}

/// Opens a disk image or block device, read-only.
///
/// # Errors
/// [`Kind::Config`] when only the operator can say which format it is; [`Kind::BadInput`] when it
/// is no sound image; [`Kind::Denied`] when it names files that it may not; [`Kind::Conflict`] when
/// a running machine writes to it; [`Kind::Unsupported`] when it is encrypted, or QEMU's tools are
/// not installed.
pub fn open_source(path: &Path, settings: &OpenSettings) -> Result<Box<dyn Source>> {
    let image = Image::look(path)?;
    let format = image.choose(settings.format)?;
    if format == Format::Raw {
        return Ok(Box::new(RawSource::open(path)?));
    }
    let reach = Reach::new(path, &settings.backing_folders)?;
    let graph = Graph::resolve(path, format, &reach)?;
    if !settings.skip_check {
        graph.check()?;
    }
    for layer in graph.layers() {
        tracing::info!(image = %path.display(), "reads {layer}");
    }
    Ok(Box::new(serve(&graph, Changes::Unknown)?))
}

/// What can be said of an image without parsing it.
struct Image {
    path: PathBuf,
    is_device: bool,
    size_bytes: u64,
    head: Vec<u8>,
    tail: Vec<u8>,
}

impl Image {
    fn look(path: &Path) -> Result<Self> {
        let file = open_disk(path)?;
        let cannot = |error| Error::io(format!("cannot read {}", path.display()), error);
        let is_device = file
            .metadata()
            .map_err(cannot)?
            .file_type()
            .is_block_device();
        let size_bytes = (&file).seek(SeekFrom::End(0)).map_err(cannot)?;
        Ok(Self {
            path: path.to_owned(),
            is_device,
            size_bytes,
            head: read_up_to(&file, 0, HEAD_BYTES).map_err(cannot)?,
            tail: read_up_to(&file, size_bytes.saturating_sub(512), 512).map_err(cannot)?,
        })
    }

    fn choose(&self, asked: Option<Format>) -> Result<Format> {
        let looks = Format::of_magic(&self.head, &self.tail);
        let chosen = format::choose(&self.path, self.is_device, asked, looks)?;
        if chosen == Format::Vhd && format::is_differencing_vhd(&self.head, &self.tail) {
            return Err(Error::new(
                Kind::Unsupported,
                format!(
                    "{} is a differencing VHD: it holds changes to a parent image only",
                    self.path.display()
                ),
            )
            .advise("merge it with its parent first (Hyper-V: Merge-VHD)"));
        }
        Ok(chosen)
    }
}

/// What stands at `offset`, at most `count` bytes; less at the end of the file.
fn read_up_to(file: &File, offset: u64, count: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; count];
    let mut filled = 0;
    while filled < count {
        match file.read_at(&mut bytes[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(more) => filled += more,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// The child that serves an image, and the private folder of its socket.
struct Server {
    // Before the folder: it is killed, then its socket goes.
    running: Running,
    _folder: TempDir,
}

/// Starts a child that serves the graph, and connects to it.
fn serve(graph: &Graph, changes: Changes) -> Result<NbdSource> {
    let name = graph.describe();
    let folder = qemu::private_folder()?;
    let socket = folder.path().join("nbd");
    let mut command = Tool::Nbd.command(
        &format!("reading {name}"),
        Task::Serve(folder.path()),
        &graph.files(),
    )?;
    command
        .args(["--read-only", "--persistent", "--shared=0", "--socket"])
        .arg(&socket);
    if matches!(changes, Changes::Layers { .. }) {
        command.arg("--allocation-depth");
    }
    command.arg(graph.qemu_name());
    let running = Running::start(command, Stdio::null())?;
    let mut server = Server {
        running,
        _folder: folder,
    };

    let deadline = Instant::now() + START_TIME_MAX;
    loop {
        if let Some(status) = server.running.ended()? {
            return Err(qemu::failure(
                &name,
                &server.running.messages(),
                Some(status),
            ));
        }
        if std::os::unix::net::UnixStream::connect(&socket).is_ok() {
            break;
        }
        if Instant::now() > deadline {
            return Err(Error::new(
                Kind::Unavailable,
                format!(
                    "QEMU did not open {name} within {} s",
                    START_TIME_MAX.as_secs()
                ),
            ));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let server = Arc::new(Mutex::new(server));
    let keep = Box::new(Arc::clone(&server));
    NbdSource::connect_tracked(&socket, "", name.clone(), changes, keep).map_err(|error| {
        // It may have failed between listening and serving; then it said why.
        let soon = Instant::now() + Duration::from_secs(1);
        let mut server = server.lock().unwrap_or_else(PoisonError::into_inner);
        match server.running.ended_by(soon) {
            Ok(Some(status)) => {
                qemu::failure(&name, &server.running.messages(), Some(status)).caused_by(error)
            }
            _ => error,
        }
    })
}
