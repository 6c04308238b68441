//! What a host may ask for: pure decisions from its rights and the request.
//!
//! Nothing is overwritten here whatever the rights are: there is no request for it.

use tidegate_protocol::keys::Level;
use tidegate_protocol::record::Kind as RecordKind;
use tidegate_protocol::rights::{Right, Rights};
use tidegate_protocol::wire::{Kind, Object};

/// Refuses a request, in words for whoever sent it; `object` is what stands at its key, if it has one.
pub(super) fn check(rights: Rights, kind: Kind, object: Option<Object>) -> Result<(), String> {
    let needed: &[Right] = match (kind, object) {
        (Kind::Hello | Kind::Status | Kind::Renew, _) => return Ok(()),
        // Another protocol's request.
        (Kind::Join, _) => return Err("a host with a certificate has joined already".to_owned()),
        (Kind::Have | Kind::Get | Kind::Size | Kind::List | Kind::Follow, _) => READERS,
        (Kind::Append, _) => READERS,
        (Kind::Put, Some(Object::Pack(_) | Object::Segment(_))) => {
            &[Right::Backup, Right::Maintenance]
        }
        (Kind::Put, Some(Object::Slot(_) | Object::Checkpoint(_))) => &[Right::Maintenance],
        (Kind::Put, Some(Object::Record(_))) => {
            return Err("records come by append".to_owned());
        }
        (Kind::Put, Some(Object::Descriptor)) => {
            return Err("a repository is made beside the bucket, by `tidegate init`".to_owned());
        }
        (Kind::Put, None) => return Err("no object of a repository stands at that key".to_owned()),
        (Kind::Delete, Some(Object::Pack(_) | Object::Segment(_) | Object::Slot(_))) => {
            &[Right::Maintenance]
        }
        (Kind::Delete, _) => return Err("the log has not given that object up".to_owned()),
    };
    match needed.iter().any(|right| rights.has(*right)) {
        true => Ok(()),
        false => Err(lacking(kind.as_str(), needed)),
    }
}

/// Refuses a record of a kind that the rights do not cover. What the key may sign is another question.
pub(super) fn check_record(rights: Rights, kind: RecordKind) -> Result<(), String> {
    let covered = rights.has(Right::Maintenance)
        || rights.has(Right::Backup) && kind.may_be_signed_by(Level::Host)
        || rights.has(Right::Restore) && RESTORE_RECORDS.contains(&kind);
    match covered {
        true => Ok(()),
        false => Err(format!(
            "this host has no right to append the record «{}»",
            kind.as_str()
        )),
    }
}

const READERS: &[Right] = &[Right::Backup, Right::Restore, Right::Maintenance];

/// What a restore, an export or a drill leaves in the log.
const RESTORE_RECORDS: &[RecordKind] = &[
    RecordKind::HoldSet,
    RecordKind::HoldLifted,
    RecordKind::PacksFoundBad,
    RecordKind::Evidence,
];

fn lacking(what: &str, needed: &[Right]) -> String {
    let names: Vec<_> = needed.iter().map(|right| right.as_str()).collect();
    format!(
        "this host has no right to {what} here: it needs one of {}",
        names.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_protocol::ids::{PackId, SegmentId, SlotId};

    const PACK: Object = Object::Pack(PackId([1; 32]));
    const SEGMENT: Object = Object::Segment(SegmentId([1; 32]));
    const SLOT: Object = Object::Slot(SlotId([1; 16]));

    /// The whole table of requests that write or read something, for each right by itself.
    #[test]
    fn each_right_allows_what_it_says_and_no_more() {
        use Right::{Backup, Maintenance, Monitor, Restore};
        let requests = [
            (Kind::Have, None, vec![Backup, Restore, Maintenance]),
            (Kind::Get, Some(PACK), vec![Backup, Restore, Maintenance]),
            (Kind::Size, Some(PACK), vec![Backup, Restore, Maintenance]),
            (Kind::List, None, vec![Backup, Restore, Maintenance]),
            (Kind::Follow, None, vec![Backup, Restore, Maintenance]),
            (Kind::Append, None, vec![Backup, Restore, Maintenance]),
            (Kind::Put, Some(PACK), vec![Backup, Maintenance]),
            (Kind::Put, Some(SEGMENT), vec![Backup, Maintenance]),
            (Kind::Put, Some(SLOT), vec![Maintenance]),
            (Kind::Put, Some(Object::Checkpoint(9)), vec![Maintenance]),
            (Kind::Put, Some(Object::Record(9)), vec![]),
            (Kind::Put, Some(Object::Descriptor), vec![]),
            (Kind::Put, None, vec![]),
            (Kind::Delete, Some(PACK), vec![Maintenance]),
            (Kind::Delete, Some(SLOT), vec![Maintenance]),
            (Kind::Delete, Some(SEGMENT), vec![Maintenance]),
            (Kind::Delete, Some(Object::Record(9)), vec![]),
            (Kind::Delete, Some(Object::Checkpoint(9)), vec![]),
            (Kind::Delete, Some(Object::Descriptor), vec![]),
            (Kind::Delete, None, vec![]),
            (Kind::Join, None, vec![]),
            (
                Kind::Status,
                None,
                vec![Backup, Restore, Maintenance, Monitor],
            ),
            (
                Kind::Renew,
                None,
                vec![Backup, Restore, Maintenance, Monitor],
            ),
        ];
        for (kind, object, allowed) in requests {
            for right in Right::ALL {
                assert_eq!(
                    check(Rights::of(right), kind, object).is_ok(),
                    allowed.contains(&right),
                    "{kind:?} {object:?} with {right:?}"
                );
            }
        }
    }

    #[test]
    fn records_are_covered_by_rights_too() {
        let may = |right, kind| check_record(Rights::of(right), kind).is_ok();
        assert!(may(Right::Backup, RecordKind::PointCommitted));
        assert!(!may(Right::Backup, RecordKind::PacksSwept));
        assert!(!may(Right::Backup, RecordKind::PointExpired));
        assert!(may(Right::Restore, RecordKind::PacksFoundBad));
        assert!(!may(Right::Restore, RecordKind::PointCommitted));
        assert!(may(Right::Maintenance, RecordKind::PacksSwept));
        for kind in RecordKind::ALL {
            assert!(!may(Right::Monitor, *kind));
            assert!(check_record(Rights::NONE, *kind).is_err());
        }
    }
}
