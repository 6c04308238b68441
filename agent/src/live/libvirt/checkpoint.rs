//! Which of a domain's checkpoints continues which recovery point, and what becomes of each.
//!
//! Pure. A checkpoint of libvirt is a dirty bitmap in each disk's image that records from one moment
//! on. Ours are named after repository and point, as bitmaps are ([`super::super::bitmap`]), so the
//! log says what each is worth. libvirt chains them: deleting one adds what it recorded to the one
//! before it, or forgets it where there is none.

use super::super::bitmap;
use tidegate_protocol::ids::{PointId, RepositoryId};

/// What to make of a domain's checkpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Decision {
    /// The checkpoint to continue, and its point; why there is none.
    pub(super) base: Result<(String, PointId), String>,
    /// Those that earlier runs have left.
    pub(super) delete: Vec<String>,
}

/// Decides. `standing` tells a point that is committed and live by its place in the log, higher for
/// later ones; none of all others.
pub(super) fn decide(
    names: &[String],
    repository: RepositoryId,
    standing: impl Fn(PointId) -> Option<u64>,
) -> Decision {
    let ours = names.iter().filter_map(|name| {
        let (of, point) = bitmap::parse(name)?;
        (of == repository).then_some((name, point))
    });
    let (mut committed, mut delete) = (Vec::new(), Vec::new());
    let mut unknown = None;
    for (name, point) in ours {
        match standing(point) {
            Some(place) => committed.push((place, name, point)),
            None => {
                delete.push(name.clone());
                unknown = Some(point);
            }
        }
    }
    committed.sort_unstable();
    let base = committed.pop();
    delete.extend(committed.into_iter().map(|(_, name, _)| name.clone()));
    Decision {
        base: match (base, unknown) {
            (Some((_, name, point)), _) => Ok((name.clone(), point)),
            (None, Some(point)) => Err(format!(
                "libvirt's checkpoint continues point {}, which is not in the repository, or no more",
                point.short()
            )),
            (None, None) => Err("libvirt has recorded no changes for this repository".to_owned()),
        },
        delete,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPOSITORY: RepositoryId = RepositoryId([7; 16]);

    fn name(point: u8) -> String {
        bitmap::name(REPOSITORY, PointId([point; 16]))
    }

    #[test]
    fn the_newest_that_is_committed_is_continued_and_the_others_go() {
        let other = bitmap::name(RepositoryId([8; 16]), PointId([9; 16]));
        let names = [name(1), name(2), name(3), other, "somebody's".to_owned()];
        // 2 was committed last; the run of 3 was killed.
        let standing = |point: PointId| match point.0[0] {
            1 => Some(10),
            2 => Some(20),
            _ => None,
        };
        let decision = decide(&names, REPOSITORY, standing);
        assert_eq!(decision.base, Ok((name(2), PointId([2; 16]))));
        assert_eq!(decision.delete, [name(3), name(1)]);
    }

    #[test]
    fn without_a_committed_one_there_is_a_reason() {
        let none = decide(&[], REPOSITORY, |_| Some(1));
        assert!(none.base.is_err() && none.delete.is_empty());
        let gone = decide(&[name(5)], REPOSITORY, |_| None);
        assert!(gone.base.is_err_and(|why| why.contains("05050505")));
        assert_eq!(gone.delete, [name(5)]);
    }
}
