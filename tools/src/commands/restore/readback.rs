//! Reads a converted image back and compares it with the point, byte for byte.
//!
//! Raw targets are read back by the engine itself, by hash; a converted image is read through the
//! same door as an image to back up, so a fault of the converter shows.

use crate::context::blocking;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use tidegate_agent::format::Format;
use tidegate_agent::nbd::server::Export;
use tidegate_agent::source::{OpenSettings, SourceReader, open_source};
use tidegate_agent::{Error, Kind, Result};
use tokio::runtime::Handle;

/// How much is compared at once.
const WINDOW_BYTES: u64 = 4 << 20;

/// Fails where the image at `path` holds anything else than `export`.
pub(super) async fn compare(export: Arc<dyn Export>, path: PathBuf, format: Format) -> Result<()> {
    let runtime = Handle::current();
    blocking(move || {
        let how = OpenSettings {
            format: Some(format),
            ..OpenSettings::default()
        };
        let source = open_source(&path, &how)?;
        let differs = |what: String| {
            Err(Error::new(
                Kind::Corrupt,
                format!(
                    "{} was read back and is not the disk: {what}",
                    path.display()
                ),
            )
            .advise("do not use it; restore as raw, and report this"))
        };
        if source.size_bytes() != export.size_bytes() {
            return differs(format!(
                "expected {} bytes, found {}",
                export.size_bytes(),
                source.size_bytes()
            ));
        }
        let mut reader = source.reader()?;
        let mut start = 0;
        while start < export.size_bytes() {
            let end = (start + WINDOW_BYTES).min(export.size_bytes());
            let expected = runtime.block_on(read_export(&*export, start..end))?;
            let found = read_source(&mut *reader, start..end)?;
            if let Some(at) = first_difference(expected.as_deref(), found.as_deref()) {
                return differs(format!("the first difference is at byte {}", start + at));
            }
            start = end;
        }
        Ok(())
    })
    .await
}

/// The window's bytes; `None` where they are all zero by the map.
async fn read_export(export: &dyn Export, window: Range<u64>) -> Result<Option<Vec<u8>>> {
    let map = export.allocation(window.clone()).await?;
    if !map.iter().any(|(_, data)| *data) {
        return Ok(None);
    }
    let length = u32::try_from(window.end - window.start).unwrap_or(u32::MAX);
    let bytes = export.read(window.start, length).await?;
    Ok(Some(bytes.to_vec()))
}

fn read_source(reader: &mut dyn SourceReader, window: Range<u64>) -> Result<Option<Vec<u8>>> {
    if reader.allocation(window.clone())?.is_empty() {
        return Ok(None);
    }
    let length = usize::try_from(window.end - window.start).unwrap_or(usize::MAX);
    let mut bytes = vec![0; length];
    reader.read_at(window.start, &mut bytes)?;
    Ok(Some(bytes))
}

fn first_difference(expected: Option<&[u8]>, found: Option<&[u8]>) -> Option<u64> {
    let at = match (expected, found) {
        (None, None) => None,
        (Some(bytes), None) | (None, Some(bytes)) => bytes.iter().position(|byte| *byte != 0),
        (Some(expected), Some(found)) if expected == found => None,
        (Some(expected), Some(found)) => Some(
            expected
                .iter()
                .zip(found)
                .position(|(a, b)| a != b)
                .unwrap_or_else(|| expected.len().min(found.len())),
        ),
    };
    at.map(|at| at as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_equal_zeros_and_nothing_else() {
        assert_eq!(first_difference(None, None), None);
        assert_eq!(first_difference(Some(&[0, 0]), None), None);
        assert_eq!(first_difference(None, Some(&[0, 3])), Some(1));
        assert_eq!(first_difference(Some(&[1, 2]), Some(&[1, 2])), None);
        assert_eq!(first_difference(Some(&[1, 2]), Some(&[1, 3])), Some(1));
        assert_eq!(first_difference(Some(&[1, 2]), Some(&[1])), Some(1));
    }
}
