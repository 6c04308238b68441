//! Which image of this host is the content of which disk at which point. Not from the log, and not
//! needed: where nothing is remembered, all is read.

use super::Catalogue;
use crate::error::Result;
use crate::source::Remembered;
use rusqlite::{OptionalExtension as _, params};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use tidegate_protocol::ids::PointId;

impl Catalogue {
    /// What is remembered of an image.
    pub fn image(&self, path: &Path) -> Result<Option<Remembered>> {
        self.read(|connection| {
            connection
                .prepare_cached("SELECT disk, point, seal FROM image WHERE path = ?1")?
                .query_row([path.as_os_str().as_bytes()], |row| {
                    Ok(Remembered {
                        disk: row.get(0)?,
                        point: PointId(row.get(1)?),
                        seal: row.get(2)?,
                    })
                })
                .optional()
        })
    }

    /// Remembers it, in place of what was.
    pub fn set_image(&self, path: &Path, remembered: &Remembered) -> Result<()> {
        let Remembered { disk, point, seal } = remembered;
        self.write(|transaction| {
            let path = path.as_os_str().as_bytes();
            transaction
                .execute(
                    "INSERT OR REPLACE INTO image (path, disk, point, seal) VALUES (?1, ?2, ?3, ?4)",
                    params![path, disk, point.0, seal],
                )
                .map_err(|error| self.error(error))?;
            Ok(())
        })
    }
}
