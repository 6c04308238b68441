//! With what versions of the contenders, and on what machine, figures were taken.

use super::Contender;
use anyhow::Result;

pub(super) fn describe(contenders: &[Contender]) -> Result<String> {
    let mut versions = Vec::new();
    for contender in contenders {
        versions.extend(contender.version()?);
    }
    Ok(format!(
        "{}\nVersions: {}.",
        crate::machine::describe()?,
        versions.join("; ")
    ))
}
