//! A disk into an image of another format, by QEMU.
//!
//! Not a writer of formats: the disk is shown on a private socket, and `qemu-img convert` reads it
//! from there. The invariants: under the final name there is the whole durable image or nothing of
//! ours; the image's virtual size is the disk's, to the byte, or nothing is begun. Until the end all
//! files stand in the folder `<path>.tidegate-partial`, under their final names, since a VMDK names
//! its extents. It goes when the conversion fails; one that a killed process left behind is used again.

use super::file::{claim, lock, publish, unfinished};
use crate::error::{Error, Kind, Result};
use crate::format::Format;
use crate::nbd::server::{Export, Limits, Server};
use crate::qemu::{self, Readable, Running, Task, Tool};
use async_trait::async_trait;
use bytes::Bytes;
use serde_json::json;
use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio_util::sync::CancellationToken;

/// All formats count in sectors of so many bytes.
const SECTOR_BYTES: u64 = 512;
/// The largest VHD, which its tables set.
const VHD_BYTES_MAX: u64 = 2040 << 30;
/// The largest VHDX, which its specification sets.
const VHDX_BYTES_MAX: u64 = 64 << 40;
/// How long QEMU may take to tell the size of what it has written.
const INFO_TIME_MAX: Duration = Duration::from_secs(30);

/// What to make of a disk.
#[derive(Debug, Clone)]
pub struct ConvertSettings {
    /// Any format but raw, which [`super::create_file`] writes.
    pub format: Format,
    /// A VMDK's (`monolithicSparse`, `streamOptimized`, `monolithicFlat`, `twoGbMaxExtentSparse`,
    /// `twoGbMaxExtentFlat`), VHD's or VHDX's (`dynamic`, `fixed`) sub-format; the first named of
    /// each by default.
    pub subformat: Option<String>,
    /// Compress the clusters of a qcow2 image (zstd).
    pub compress: bool,
    /// Replace an image that is there already.
    pub overwrite: bool,
}

impl ConvertSettings {
    /// The format's defaults; nothing is overwritten.
    pub fn new(format: Format) -> Self {
        Self {
            format,
            subformat: None,
            compress: false,
            overwrite: false,
        }
    }

    /// Checks that a disk of `size_bytes` can be written so, before anything is begun.
    ///
    /// # Errors
    /// [`Kind::Config`] for settings that do not go together; [`Kind::Unsupported`] for a size that
    /// the format cannot hold exactly.
    pub fn check(&self, size_bytes: u64) -> Result<()> {
        let format = self.format;
        let config = |what: String| Err(Error::new(Kind::Config, what));
        if format == Format::Raw {
            return config("a raw image is not converted, but written as it is".to_owned());
        }
        let known = subformats(format);
        if let Some(subformat) = &self.subformat
            && !known.contains(&subformat.as_str())
        {
            return config(format!(
                "{format} has no sub-format {subformat:?}: expected {}",
                if known.is_empty() {
                    "none".to_owned()
                } else {
                    known.join(", ")
                }
            ));
        }
        if self.compress && format != Format::Qcow2 {
            return config(format!("only qcow2 images are compressed, not {format}"));
        }
        let refuse = |why: String| {
            Err(Error::new(
                Kind::Unsupported,
                format!("a disk of {size_bytes} bytes does not fit {format}: {why}"),
            )
            .advise("write it as a raw image (--format raw)"))
        };
        let bytes_max = match format {
            Format::Vhd => VHD_BYTES_MAX,
            Format::Vhdx => VHDX_BYTES_MAX,
            Format::Raw | Format::Qcow2 | Format::Vmdk => u64::MAX,
        };
        if !size_bytes.is_multiple_of(SECTOR_BYTES) {
            return refuse(format!("it counts in sectors of {SECTOR_BYTES} bytes"));
        }
        if size_bytes == 0 && format != Format::Qcow2 {
            return refuse("it cannot be empty".to_owned());
        }
        if size_bytes > bytes_max {
            return refuse(format!("it holds at most {bytes_max} bytes"));
        }
        Ok(())
    }

    /// For `qemu-img convert -o`.
    fn options(&self) -> Vec<String> {
        let subformats = subformats(self.format);
        let mut options = Vec::new();
        if let Some(subformat) = self.subformat.as_deref().or(subformats.first().copied()) {
            options.push(format!("subformat={subformat}"));
        }
        match self.format {
            // Readable by every QEMU since 2012; zstd since 2020.
            Format::Qcow2 if self.compress => options.push("compression_type=zstd".to_owned()),
            // Otherwise the size is rounded up to what a geometry can express.
            Format::Vhd => options.push("force_size=on".to_owned()),
            Format::Raw | Format::Qcow2 | Format::Vmdk | Format::Vhdx => {}
        }
        options
    }
}

/// The sub-formats, the default one first.
fn subformats(format: Format) -> &'static [&'static str] {
    match format {
        Format::Raw | Format::Qcow2 => &[],
        Format::Vmdk => &[
            "monolithicSparse",
            "streamOptimized",
            "monolithicFlat",
            "twoGbMaxExtentSparse",
            "twoGbMaxExtentFlat",
        ],
        Format::Vhd | Format::Vhdx => &["dynamic", "fixed"],
    }
}

/// Writes `export` as an image named `path`. `progress` is called with fractions from 0 to 1.
///
/// Replacing a VMDK of several files replaces its extents one by one, so an interruption in that
/// moment leaves the old image unreadable; everything else is replaced at once.
///
/// Dropping the future stops QEMU and removes what it has written. Must be called on a runtime.
///
/// # Errors
/// Those of [`ConvertSettings::check`]; [`Kind::Conflict`] when `path` exists and is not to be
/// overwritten; [`Kind::NoSpace`]; [`Kind::Unsupported`] without `qemu-img`.
pub async fn convert(
    export: Arc<dyn Export>,
    path: &Path,
    settings: &ConvertSettings,
    progress: impl Fn(f64) + Send,
) -> Result<()> {
    let size_bytes = export.size_bytes();
    settings.check(size_bytes)?;
    let purpose = format!("writing {}", path.display());
    Tool::Img.find(&purpose)?;
    // Dropped in reverse order: QEMU is stopped before its files and its socket go.
    let files = PartialFolder::create(path, settings.overwrite)?;
    let task = Task::Write(&files.folder);
    let mut command = Tool::Img.command(&purpose, task, &Readable::new())?;
    let socket_folder = qemu::private_folder()?;
    let socket = socket_folder.path().join("nbd");
    let server = Server::bind(&socket)?;
    let stop = CancellationToken::new();
    let _stop_when_dropped = stop.clone().drop_guard();
    let watched = Arc::new(Watched {
        export,
        first_error: Mutex::new(None),
    });
    tokio::spawn(server.run(watched.clone(), Limits::default(), stop));

    let disk = json!({
        "driver": "raw",
        "file": { "driver": "nbd", "server": { "type": "unix", "path": socket } },
    });
    command.args(["convert", "-p", "-O", settings.format.qemu_name()]);
    let options = settings.options().join(",");
    if !options.is_empty() {
        command.args(["-o", &options]);
    }
    if settings.compress {
        command.arg("-c");
    }
    command.arg(format!("json:{disk}")).arg(files.image());
    let mut running = Running::start(command, Stdio::piped())?;
    let mut fractions = listen(&mut running);
    while let Some(fraction) = fractions.recv().await {
        progress(fraction);
    }
    // Its output has ended, so it is ending.
    let status = loop {
        match running.ended()? {
            Some(status) => break status,
            None => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    if !status.success() {
        if let Some(error) = watched.take_error() {
            return Err(error);
        }
        let object = path.display().to_string();
        return Err(qemu::failure(&object, &running.messages(), Some(status)));
    }
    let format = settings.format;
    let finishing = tokio::task::spawn_blocking(move || {
        files.ensure_size(format, size_bytes)?;
        files.publish()
    });
    finishing
        .await
        .map_err(|error| Error::new(Kind::Bug, "finishing an image panicked").caused_by(error))?
}

/// The disk, remembering why it could not be read: QEMU would only say "Input/output error".
struct Watched {
    export: Arc<dyn Export>,
    first_error: Mutex<Option<Error>>,
}

impl Watched {
    fn watch<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| {
            let said = Error::new(error.kind(), error.to_string());
            self.lock().get_or_insert(error);
            said
        })
    }

    fn take_error(&self) -> Option<Error> {
        self.lock().take()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Error>> {
        self.first_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Export for Watched {
    fn size_bytes(&self) -> u64 {
        self.export.size_bytes()
    }

    async fn allocation(&self, range: Range<u64>) -> Result<Vec<(Range<u64>, bool)>> {
        self.watch(self.export.allocation(range).await)
    }

    async fn read(&self, offset: u64, length: u32) -> Result<Bytes> {
        self.watch(self.export.read(offset, length).await)
    }
}

/// Hears the progress that `qemu-img -p` prints, until it ends.
fn listen(running: &mut Running) -> Receiver<f64> {
    let (sender, fractions) = channel(FRACTIONS_MAX);
    if let Some(stdout) = running.take_stdout() {
        std::thread::spawn(move || hear(stdout, &sender));
    }
    fractions
}

/// Progress that may wait to be shown; then QEMU waits.
const FRACTIONS_MAX: usize = 16;
/// More than any line of progress has.
const LINE_BYTES_MAX: usize = 64;

fn hear(mut stdout: ChildStdout, fractions: &Sender<f64>) {
    let mut line = Vec::new();
    let mut buffer = [0; 256];
    while let Ok(count @ 1..) = stdout.read(&mut buffer) {
        for &byte in &buffer[..count] {
            if byte != b'\r' && byte != b'\n' {
                if line.len() < LINE_BYTES_MAX {
                    line.push(byte);
                }
                continue;
            }
            if let Some(fraction) = parse_progress(&line) {
                // Nobody listens any more when the conversion was given up.
                let _ = fractions.blocking_send(fraction);
            }
            line.clear();
        }
    }
}

/// Reads a line such as `    (12.50/100%)`.
pub(crate) fn parse_progress(line: &[u8]) -> Option<f64> {
    let text = std::str::from_utf8(line).ok()?.trim();
    let percent = text.strip_prefix('(')?.strip_suffix("/100%)")?;
    let percent: f64 = percent.parse().ok()?;
    (0.0..=100.0).contains(&percent).then_some(percent / 100.0)
}

/// The folder in which an image comes into being. It goes, with what is in it, when dropped.
#[derive(Debug)]
struct PartialFolder {
    folder: PathBuf,
    path: PathBuf,
    name: OsString,
    overwrite: bool,
    /// Held for as long as we may write here.
    _lock: File,
}

impl PartialFolder {
    fn create(path: &Path, overwrite: bool) -> Result<Self> {
        let folder = claim(path, overwrite)?;
        // QEMU takes "a:b" for a protocol, but not behind a slash.
        let folder = std::path::absolute(&folder)
            .map_err(|error| Error::io(format!("cannot find {}", folder.display()), error))?;
        let cannot = |error| Error::io(format!("cannot create {}", folder.display()), error);
        match DirBuilder::new().mode(0o700).create(&folder) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            made => made.map_err(cannot)?,
        }
        let handle = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
            .open(&folder)
            .map_err(|error| match error.kind() {
                // The unfinished raw image of another restore.
                std::io::ErrorKind::NotADirectory => unfinished(&folder),
                _ => cannot(error),
            })?;
        lock(&handle, &folder)?;
        // Whoever left something here without a lock was killed. A conversion begins anew.
        for entry in std::fs::read_dir(&folder).map_err(cannot)? {
            std::fs::remove_file(entry.map_err(cannot)?.path()).map_err(cannot)?;
        }
        Ok(Self {
            folder,
            path: path.to_owned(),
            name: path.file_name().unwrap_or_default().to_owned(),
            overwrite,
            _lock: handle,
        })
    }

    fn image(&self) -> PathBuf {
        self.folder.join(&self.name)
    }

    /// Asks QEMU for the image's size, which must be the disk's.
    fn ensure_size(&self, format: Format, size_bytes: u64) -> Result<()> {
        let object = self.path.display().to_string();
        let readable = vec![self.folder.clone()];
        let mut command = Tool::Img.command(&format!("writing {object}"), Task::Look, &readable)?;
        command
            .args(["info", "--output=json", "-f", format.qemu_name()])
            .arg(self.image());
        let answer = qemu::ask(command, &object, INFO_TIME_MAX)?;
        let info: serde_json::Value = serde_json::from_slice(&answer).unwrap_or_default();
        let found = info.get("virtual-size").and_then(serde_json::Value::as_u64);
        if found != Some(size_bytes) {
            return Err(Error::new(
                Kind::Unsupported,
                format!(
                    "{object} would not have the disk's size: expected {size_bytes} bytes, QEMU \
                     wrote {found:?}"
                ),
            )
            .advise("write it as a raw image, or try a newer QEMU"));
        }
        Ok(())
    }

    /// Makes all files durable and gives them their names, the image's own name last.
    fn publish(&self) -> Result<()> {
        let cannot = |error| {
            Error::io(
                format!("cannot make {} durable", self.folder.display()),
                error,
            )
        };
        let mut extents = Vec::new();
        for entry in std::fs::read_dir(&self.folder).map_err(cannot)? {
            let entry = entry.map_err(cannot)?;
            let file = File::open(entry.path()).map_err(cannot)?;
            file.set_permissions(Permissions::from_mode(0o600))
                .and_then(|()| file.sync_all())
                .map_err(cannot)?;
            if entry.file_name() != self.name {
                extents.push(entry.file_name());
            }
        }
        extents.sort();
        for extent in &extents {
            let path = self.path.with_file_name(extent);
            publish(&self.folder.join(extent), &path, self.overwrite)?;
        }
        publish(&self.image(), &self.path, self.overwrite)
    }
}

impl Drop for PartialFolder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.folder) {
            tracing::warn!(folder = %self.folder.display(), %error, "cannot clean up");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn sizes_that_do_not_fit_are_refused_before_anything_is_begun() {
        for (format, size_bytes, sound) in [
            (Format::Qcow2, 0, true),
            (Format::Vmdk, 0, false),
            (Format::Qcow2, 511, false),
            (Format::Vmdk, 512, true),
            (Format::Vhd, VHD_BYTES_MAX, true),
            (Format::Vhd, VHD_BYTES_MAX + 512, false),
            (Format::Vhdx, VHDX_BYTES_MAX, true),
            (Format::Vhdx, VHDX_BYTES_MAX + 512, false),
        ] {
            let checked = ConvertSettings::new(format).check(size_bytes);
            assert_eq!(checked.is_ok(), sound, "{format} {size_bytes}");
            if let Err(error) = checked {
                assert_eq!(error.kind(), Kind::Unsupported);
                assert!(error.advice().unwrap().contains("raw"));
            }
        }
    }

    #[test]
    fn settings_that_make_no_sense_are_refused() {
        let settings = |format, subformat: &str, compress| ConvertSettings {
            subformat: (!subformat.is_empty()).then(|| subformat.to_owned()),
            compress,
            ..ConvertSettings::new(format)
        };
        for (settings, sound) in [
            (settings(Format::Vmdk, "streamOptimized", false), true),
            (settings(Format::Vmdk, "dynamic", false), false),
            (settings(Format::Vhd, "fixed,force_size=off", false), false),
            (settings(Format::Qcow2, "dynamic", false), false),
            (settings(Format::Qcow2, "", true), true),
            (settings(Format::Vhdx, "", true), false),
            (settings(Format::Raw, "", false), false),
        ] {
            assert_eq!(settings.check(512).is_ok(), sound, "{settings:?}");
        }
    }

    /// A conversion can run as a task of its own.
    #[test]
    fn the_future_is_send() {
        fn assert_send<T: Send>(_: impl FnOnce(Arc<dyn Export>) -> T) {}
        let settings = ConvertSettings::new(Format::Qcow2);
        assert_send(|export| convert(export, Path::new("a"), &settings, |_| {}));
    }

    #[test]
    fn progress_is_read() {
        assert_eq!(parse_progress(b"    (12.50/100%)"), Some(0.125));
        assert_eq!(parse_progress(b"(100.00/100%)"), Some(1.0));
        for line in [
            &b"(nan/100%)"[..],
            b"(101.0/100%)",
            b"",
            b"\xff",
            b"(1/100%",
        ] {
            assert_eq!(parse_progress(line), None);
        }
    }
}
