//! Exit codes: what a script can act upon.
//!
//! The numbers come from the engine's error kinds ([`tidegate_agent::Kind::exit_code`]); here they
//! are only described. Invariant: [`CODES`] names every code that the program can return.

use std::process::ExitCode;
use tidegate_agent::Kind;

/// How a command ended that did what it was asked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All is well.
    Done,
    /// The command ran to its end, and what it found is damage.
    Damaged,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Done => Self::SUCCESS,
            Outcome::Damaged => Self::from(Kind::Corrupt.exit_code()),
        }
    }
}

/// Shown below the help of the program, and in its man page.
pub(crate) const CODES: &str = "\
Exit codes:
    0  done
    1  an operation of the system failed, or a bug
    2  settings, arguments or names are wrong
    3  the named thing is not there
    4  damage: stored bytes are not what their name or signature promises
    5  a key, a credential or a right is lacking
    6  the store did not answer in time; try again later
    7  no space left
    8  the disk image given as input is damaged or not a disk
    9  somebody else got there first, or something stands in the way
   10  not possible with this version, store or machine
  130  interrupted; run the same command again to go on";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_described() {
        let kinds = [
            Kind::Config,
            Kind::Missing,
            Kind::Corrupt,
            Kind::Denied,
            Kind::Unavailable,
            Kind::NoSpace,
            Kind::BadInput,
            Kind::Conflict,
            Kind::Unsupported,
            Kind::Interrupted,
            Kind::Io,
            Kind::Bug,
        ];
        for kind in kinds {
            let code = kind.exit_code().to_string();
            assert!(
                CODES
                    .lines()
                    .any(|line| line.split_whitespace().next() == Some(&code)),
                "{kind:?} ends with {code}, which the help does not describe"
            );
        }
    }
}
