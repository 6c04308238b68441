//! The files that make up an image, found out one by one and checked before QEMU reads data.
//!
//! Not a parser: `qemu-img info` in a confined child says what one file names, without following it.
//! The invariant: every file of a finished [`Graph`] was in reach, and the graph names all of them
//! to QEMU, so that a header that changes meanwhile cannot bring in another.

use super::{Image, check, vmdk};
use crate::error::{Error, Kind, Result};
use crate::format::Format;
use crate::qemu::{self, Readable, Task, Tool};
use serde::Deserialize;
use serde_json::{Value, json};
use std::fmt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The longest chain of backing files that is followed. Real ones stay below 30.
const LAYERS_MAX: usize = 100;
/// How long `qemu-img info` may take for one file.
const INFO_TIME_MAX: Duration = Duration::from_secs(30);

/// Where the files that an image names may stand.
#[derive(Debug)]
pub(super) struct Reach {
    folders: Vec<PathBuf>,
}

impl Reach {
    /// The folder of `image`, and `more` folders.
    pub(super) fn new(image: &Path, more: &[PathBuf]) -> Result<Self> {
        let image = canonical(image)?;
        let own = image.parent().unwrap_or(&image).to_owned();
        let more = more.iter().map(|folder| canonical(folder));
        let folders = std::iter::once(Ok(own))
            .chain(more)
            .collect::<Result<_>>()?;
        Ok(Self { folders })
    }

    /// The real path of `named`, a file that `by` names, if it is in reach.
    pub(super) fn check(&self, named: &Path, by: &Path) -> Result<PathBuf> {
        let real = canonical(named).map_err(|error| {
            Error::new(
                error.kind(),
                format!(
                    "{} names {}, which cannot be opened",
                    by.display(),
                    named.display()
                ),
            )
            .caused_by(error)
        })?;
        if !self.folders.iter().any(|folder| real.starts_with(folder)) {
            return Err(Error::new(
                Kind::Denied,
                format!(
                    "{} names {}, which lies in another folder: an image that somebody else made \
                     could name a secret file of this host",
                    by.display(),
                    real.display()
                ),
            )
            .advise("if the image is yours, allow that folder with --backing-folder"));
        }
        Ok(real)
    }
}

/// The real path, which QEMU must be able to take: its options are JSON, and so UTF-8.
fn canonical(path: &Path) -> Result<PathBuf> {
    let real = std::fs::canonicalize(path)
        .map_err(|error| Error::io(format!("cannot find {}", path.display()), error))?;
    if real.to_str().is_none() {
        return Err(Error::new(
            Kind::Config,
            format!(
                "the name {} is not UTF-8, which QEMU cannot open",
                real.display()
            ),
        )
        .advise("give the file and its folders names in UTF-8"));
    }
    Ok(real)
}

/// An image and the files below it, top first.
#[derive(Debug)]
pub(super) struct Graph {
    asked: PathBuf,
    layers: Vec<Layer>,
}

/// One image of a chain.
#[derive(Debug)]
pub(super) struct Layer {
    path: PathBuf,
    format: Format,
    /// The disk's size as this image has it, in bytes.
    size_bytes: u64,
    /// Where a qcow2 image keeps its data, if not in itself.
    data_file: Option<PathBuf>,
    /// The other files that a VMDK consists of.
    extents: Vec<PathBuf>,
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.path.display(), self.format)?;
        match &self.data_file {
            Some(data) => write!(f, " with its data in {}", data.display()),
            None => Ok(()),
        }
    }
}

impl Graph {
    /// Follows what `path` names, and what that names.
    pub(super) fn resolve(path: &Path, format: Format, reach: &Reach) -> Result<Self> {
        let mut graph = Self {
            asked: path.to_owned(),
            layers: Vec::new(),
        };
        let mut next = Some((canonical(path)?, format));
        while let Some((path, format)) = next {
            if graph.layers.iter().any(|layer| layer.path == path) {
                return Err(Error::new(
                    Kind::BadInput,
                    format!("{} is its own backing file", path.display()),
                ));
            }
            if graph.layers.len() == LAYERS_MAX {
                return Err(Error::new(
                    Kind::BadInput,
                    format!(
                        "{} has more than {LAYERS_MAX} backing files",
                        graph.asked.display()
                    ),
                )
                .advise("shorten the chain with `qemu-img rebase` or `virsh blockcommit`"));
            }
            let layer;
            (layer, next) = Layer::look(path, format, reach)?;
            graph.layers.push(layer);
        }
        Ok(graph)
    }

    /// Checks that no image of the chain is cut off.
    pub(super) fn check(&self) -> Result<()> {
        self.layers.iter().try_for_each(|layer| {
            check::check(
                layer.node(),
                &layer.files(),
                &layer.path.display().to_string(),
                layer.format,
            )
        })
    }

    /// Every file that is read for it.
    pub(super) fn files(&self) -> Readable {
        self.layers.iter().flat_map(Layer::files).collect()
    }

    /// Top first.
    pub(super) fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// The path that the operator gave, and the format.
    pub(super) fn describe(&self) -> String {
        let format = self
            .layers
            .first()
            .map_or(Format::Raw, |layer| layer.format);
        format!("{} ({format})", self.asked.display())
    }

    /// The whole graph, as QEMU takes it in the place of a file name.
    pub(super) fn qemu_name(&self) -> String {
        let mut below = Value::Null;
        for layer in self.layers.iter().rev() {
            let mut node = layer.node();
            if matches!(layer.format, Format::Qcow2 | Format::Vmdk) {
                // Null stands for "none", whatever the header says.
                node["backing"] = below;
            }
            below = node;
        }
        format!("json:{below}")
    }
}

/// What `qemu-img info` says of one file.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Info {
    virtual_size: u64,
    #[serde(default)]
    encrypted: bool,
    full_backing_filename: Option<String>,
    pub(crate) backing_filename: Option<String>,
    backing_filename_format: Option<String>,
    #[serde(default)]
    format_specific: Specific,
}

#[derive(Debug, Default, Deserialize)]
struct Specific {
    #[serde(default)]
    data: SpecificData,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct SpecificData {
    data_file: Option<String>,
    #[serde(default)]
    data_file_raw: bool,
    #[serde(default)]
    corrupt: bool,
}

impl Layer {
    /// Looks at one file; what is below it, if anything.
    fn look(
        path: PathBuf,
        format: Format,
        reach: &Reach,
    ) -> Result<(Self, Option<(PathBuf, Format)>)> {
        let mut layer = Self {
            path,
            format,
            size_bytes: 0,
            data_file: None,
            extents: Vec::new(),
        };
        if format == Format::Raw {
            layer.size_bytes = Image::look(&layer.path)?.size_bytes;
            return Ok((layer, None));
        }
        if format == Format::Vmdk {
            layer.extents = vmdk::check_extents(&layer.path, reach)?;
        }
        let info = layer.info()?;
        layer.size_bytes = info.virtual_size;
        if info.encrypted {
            return Err(Error::new(
                Kind::Unsupported,
                format!("{} is encrypted", layer.path.display()),
            )
            .advise("decrypt it with `qemu-img convert`, or back up its bytes with --format raw"));
        }
        if info.format_specific.data.corrupt {
            tracing::warn!(
                image = %layer.path.display(),
                "the image is marked as corrupt; check it with `qemu-img check`"
            );
        }
        if let Some(data) = &info.format_specific.data.data_file {
            layer.data_file = Some(reach.check(&beside(&layer.path, data)?, &layer.path)?);
            layer.ensure_data_file_reaches(&info)?;
        }
        let below = layer.below(&info, reach)?;
        Ok((layer, below))
    }

    /// A raw data file holds the disk byte for byte, so its length tells whether it is cut off.
    fn ensure_data_file_reaches(&self, info: &Info) -> Result<()> {
        let Some(data) = &self.data_file else {
            return Ok(());
        };
        let found = Image::look(data)?.size_bytes;
        if info.format_specific.data.data_file_raw && found < info.virtual_size {
            return Err(Error::new(
                Kind::BadInput,
                format!(
                    "{} is cut off: expected {} bytes, found {found}",
                    data.display(),
                    info.virtual_size
                ),
            ));
        }
        Ok(())
    }

    fn info(&self) -> Result<Info> {
        let object = self.path.display().to_string();
        let mut command = Tool::Img.command(
            &format!("reading {object} ({})", self.format),
            Task::Look,
            &self.files(),
        )?;
        let name = format!("json:{}", self.node());
        command.args(["info", "--output=json", &name]);
        let answer = qemu::ask(command, &object, INFO_TIME_MAX)?;
        serde_json::from_slice(&answer).map_err(|error| {
            Error::new(
                Kind::Unsupported,
                format!("qemu-img says something unexpected about {object}"),
            )
            .caused_by(error)
            .advise("use QEMU 6.0 or newer")
        })
    }

    fn below(&self, info: &Info, reach: &Reach) -> Result<Option<(PathBuf, Format)>> {
        let Some(named) = info
            .full_backing_filename
            .as_ref()
            .or(info.backing_filename.as_ref())
        else {
            return Ok(None);
        };
        let path = reach.check(&beside(&self.path, named)?, &self.path)?;
        let asked = match info.backing_filename_format.as_deref() {
            // Headers written by hand may name the protocol layer, which is raw to us.
            Some("file" | "host_device") => Some(Format::Raw),
            Some(name) => Some(name.parse::<Format>().map_err(|error| {
                Error::new(
                    Kind::Unsupported,
                    format!(
                        "the backing file {} of {} cannot be read",
                        named,
                        self.path.display()
                    ),
                )
                .caused_by(error)
            })?),
            // A parent of a VMDK is a VMDK; of a qcow2 image without a word about it, what our own
            // rule says.
            None if self.format == Format::Vmdk => Some(Format::Vmdk),
            None => None,
        };
        let format = Image::look(&path)?.choose(asked).map_err(|error| {
            Error::new(
                error.kind(),
                format!(
                    "the backing file of {} is of no certain format",
                    self.path.display()
                ),
            )
            .caused_by(error)
            .advise("record it in the image: qemu-img rebase -u -b FILE -F FORMAT IMAGE")
        })?;
        Ok(Some((path, format)))
    }

    /// Where it stands.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The disk's size as this image has it, in bytes.
    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// This file, and those that are no images of their own.
    pub(super) fn files(&self) -> Readable {
        let mut files = vec![self.path.clone()];
        files.extend(self.data_file.clone());
        files.extend(self.extents.iter().cloned());
        files
    }

    /// This file alone, as QEMU's options.
    fn node(&self) -> Value {
        let mut node = json!({
            "driver": self.format.qemu_name(),
            "read-only": true,
            "file": file_node(&self.path),
        });
        if let Some(data) = &self.data_file {
            node["data-file"] = file_node(data);
        }
        if self.format == Format::Vhd {
            // By default QEMU computes the size of some writers' VHDs from their geometry, which is
            // smaller than the disk; the footer has it exactly.
            node["force_size_calc"] = json!("current_size");
        }
        node
    }
}

fn file_node(path: &Path) -> Value {
    let is_device = std::fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device());
    let driver = if is_device { "host_device" } else { "file" };
    // `canonical` has refused names that are not UTF-8.
    json!({ "driver": driver, "filename": path.to_string_lossy() })
}

/// The path of a file that `image` names, refusing what QEMU would take for a protocol.
pub(crate) fn beside(image: &Path, named: &str) -> Result<PathBuf> {
    let before_slash = named.split('/').next().unwrap_or_default();
    if before_slash.contains(':') || named.is_empty() {
        return Err(Error::new(
            Kind::Denied,
            format!(
                "{} names {named:?}, which is no file: images may not reach out to servers",
                image.display()
            ),
        )
        .advise("if the image is yours, convert it to a single file with `qemu-img convert`"));
    }
    Ok(match image.parent() {
        // An absolute name replaces the folder.
        Some(folder) => folder.join(named),
        None => PathBuf::from(named),
    })
}
