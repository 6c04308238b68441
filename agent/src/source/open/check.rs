//! Is an image whole?
//!
//! Not a repair: QEMU reads what lies behind the end of a truncated image's file as zeros and says
//! nothing, so a disk that has lost half of itself would be backed up without a word. The invariant:
//! an image whose own tables point behind its end is refused; damage that does not concern reading
//! (wrong reference counts after a crash) is told and tolerated.

use crate::error::{Error, Kind, Result};
use crate::format::Format;
use crate::qemu::{self, Readable, Task, Tool};
use serde_json::{Value, json};
use std::time::Duration;

/// How long a check may take. It reads all tables: about 160 MiB a TiB of a full qcow2 image.
const CHECK_TIME_MAX: Duration = Duration::from_secs(15 * 60);
/// What qemu-img says of a qcow2 image that is cut off. It says so before all else.
const QCOW2_CUT_OFF: &str = "exceeding the end of the file";
/// The same of a VMDK.
const VMDK_CUT_OFF: &str = "after EOF";

/// What it says when the tables do not fit into what a child may take.
const NO_MEMORY: &str = "Cannot allocate memory";

/// Exit codes of `qemu-img check`.
mod exit {
    pub(super) const SOUND: i32 = 0;
    pub(super) const LEAKS_ONLY: i32 = 3;
    pub(super) const NO_CHECK_FOR_FORMAT: i32 = 63;
}

/// Checks one file; `node` are its options for QEMU, `files` what it is made of. VHD and VHDX images are checked by QEMU when
/// they are opened.
pub(super) fn check(mut node: Value, files: &Readable, object: &str, format: Format) -> Result<()> {
    if !matches!(format, Format::Qcow2 | Format::Vmdk) {
        return Ok(());
    }
    node["backing"] = Value::Null;
    let mut command = Tool::Img.command(&format!("reading {object}"), Task::Look, files)?;
    command.args(["check", "--output=json", &format!("json:{node}")]);
    let finished = match qemu::run(command, object, CHECK_TIME_MAX) {
        Err(error) if error.kind() == Kind::Unavailable => {
            tracing::warn!(image = object, %error, "the image is read unchecked");
            return Ok(());
        }
        finished => finished?,
    };
    let says = &finished.messages;
    if says.contains(NO_MEMORY) {
        tracing::warn!(
            image = object,
            "the image is too large to be checked, and read unchecked"
        );
        return Ok(());
    }
    if says.contains(QCOW2_CUT_OFF) || says.contains(VMDK_CUT_OFF) {
        return Err(Error::new(
            Kind::BadInput,
            format!("{object} is cut off: its tables point behind the end of the file"),
        )
        .advise("copy the image again from where it came"));
    }
    match finished.status.code() {
        Some(exit::SOUND | exit::LEAKS_ONLY | exit::NO_CHECK_FOR_FORMAT) => Ok(()),
        _ if counted(&finished.stdout) => {
            tracing::warn!(
                image = object,
                "the image has errors in its tables; look at `qemu-img check`"
            );
            Ok(())
        }
        _ => Err(qemu::failure(object, says, Some(finished.status))),
    }
}

/// True when the check came to its end, and its result is about the image.
fn counted(stdout: &[u8]) -> bool {
    serde_json::from_slice::<Value>(stdout)
        .is_ok_and(|result| result.get("check-errors") == Some(&json!(0)))
}
