//! One object deleted, cut in half, or with one bit flipped.

use crate::world::{
    Edit, FIRST_POINT, LAST_POINT, World, assert_table, packs_of, segments_of, table,
};
use tidegate_protocol::pack::PackKind;
use tidegate_protocol::{checkpoint, descriptor, record};

/// What became of points, restore, backup, verify, and verify with a backup and a verify after it. The
/// backup begins with a listing of the packs, as one does a day after the last.
///
/// - *commits, …*: the backup succeeds, and another machine cannot restore what it made, because of
///   the damage that was there before. Of a record, a verify finds it; of a pack, too, and from then on
///   backups store anew what they meet of it (last column).
/// - *older …*: so many of the older points cannot be restored then either: pages that this machine
///   has not kept, and that say what no disk says any more.
/// - Whoever never saw the last record cannot miss it: *2 points*.
const EXPECTED: &str = "\
descriptor, Delete, Fresh: missing | missing | missing | missing | missing
descriptor, Delete, Warm: missing | missing | missing | missing | missing
descriptor, Truncate, Fresh: corrupt | corrupt | corrupt | corrupt | corrupt
descriptor, Truncate, Warm: corrupt | corrupt | corrupt | corrupt | corrupt
descriptor, Flip, Fresh: corrupt | corrupt | corrupt | corrupt | corrupt
descriptor, Flip, Warm: corrupt | corrupt | corrupt | corrupt | corrupt
first record, Delete, Fresh: corrupt | corrupt | corrupt | corrupt | corrupt
first record, Delete, Warm: works | works | commits, elsewhere corrupt | corrupt | corrupt
first record, Truncate, Fresh: corrupt | corrupt | corrupt | corrupt | corrupt
first record, Truncate, Warm: works | works | commits, elsewhere corrupt | corrupt | corrupt
first record, Flip, Fresh: corrupt | corrupt | corrupt | corrupt | corrupt
first record, Flip, Warm: works | works | commits, elsewhere corrupt | corrupt | corrupt
middle record, Delete, Fresh: corrupt | corrupt | corrupt | corrupt | corrupt
middle record, Delete, Warm: works | works | commits, elsewhere corrupt | corrupt | corrupt
middle record, Truncate, Fresh: corrupt | corrupt | corrupt | corrupt | corrupt
middle record, Truncate, Warm: works | works | commits, elsewhere corrupt | corrupt | corrupt
middle record, Flip, Fresh: corrupt | corrupt | corrupt | corrupt | corrupt
middle record, Flip, Warm: works | works | commits, elsewhere corrupt | corrupt | corrupt
last record, Delete, Fresh: 2 points | 2 points | works | 2 points | works
last record, Delete, Warm: corrupt | corrupt | corrupt | corrupt | corrupt
last record, Truncate, Fresh: 2 points | 2 points | works | 2 points | works
last record, Truncate, Warm: works | works | commits, elsewhere corrupt | names it | corrupt
last record, Flip, Fresh: 2 points | 2 points | works | 2 points | works
last record, Flip, Warm: works | works | commits, elsewhere corrupt | names it | corrupt
record before a checkpoint, Delete, Fresh: works | works | works | works | works
record before a checkpoint, Delete, Warm: works | works | works | works | works
record before a checkpoint, Truncate, Fresh: works | works | works | works | works
record before a checkpoint, Truncate, Warm: works | works | works | works | works
record before a checkpoint, Flip, Fresh: works | works | works | works | works
record before a checkpoint, Flip, Warm: works | works | works | works | works
checkpoint, Delete, Fresh: works | works | works | works | works
checkpoint, Delete, Warm: works | works | works | works | works
checkpoint, Truncate, Fresh: works | works | works | works | works
checkpoint, Truncate, Warm: works | works | works | works | works
checkpoint, Flip, Fresh: works | works | works | works | works
checkpoint, Flip, Warm: works | works | works | works | works
index segment, Delete, Fresh: works | works | works | names it | works
index segment, Delete, Warm: works | works | works | names it | works
index segment, Truncate, Fresh: works | works | works | names it | works
index segment, Truncate, Warm: works | works | works | names it | works
index segment, Flip, Fresh: works | works | works | names it | works
index segment, Flip, Warm: works | works | works | names it | works
data pack, Delete, Fresh: works | missing ×3 | works | names it | works
data pack, Delete, Warm: works | missing ×3 | works | names it | works
data pack, Truncate, Fresh: works | corrupt ×3 | works | names it | works
data pack, Truncate, Warm: works | corrupt ×3 | works | names it | works
data pack, Flip, Fresh: works | corrupt ×3 | commits, restore corrupt | names it | works
data pack, Flip, Warm: works | corrupt ×3 | commits, restore corrupt | names it | works
tree pack, Delete, Fresh: works | missing ×3 | works | names it | works, older missing ×1
tree pack, Delete, Warm: works | works | works | names it | works
tree pack, Truncate, Fresh: works | corrupt ×3 | works | names it | works, older corrupt ×1
tree pack, Truncate, Warm: works | works | works | names it | works
tree pack, Flip, Fresh: works | corrupt ×3 | works | names it | works, older corrupt ×1
tree pack, Flip, Warm: works | works | commits, restore corrupt | names it | works
";

#[tokio::test(flavor = "multi_thread")]
async fn damaged_objects_are_named_or_not_needed() {
    let world = World::new().await;
    let plain = &world.bucket;
    let checkpointed = world.with_checkpoints().await;
    let log = record::object_key;
    let objects = [
        ("descriptor", plain, descriptor::OBJECT_KEY.to_owned()),
        ("first record", plain, log(1)),
        ("middle record", plain, log(FIRST_POINT)),
        ("last record", plain, log(LAST_POINT)),
        (
            "record before a checkpoint",
            &checkpointed,
            log(FIRST_POINT),
        ),
        (
            "checkpoint",
            &checkpointed,
            checkpoint::object_key(LAST_POINT),
        ),
        (
            "index segment",
            plain,
            segments_of(plain).await.swap_remove(0),
        ),
        (
            "data pack",
            plain,
            packs_of(plain, PackKind::Data).await.swap_remove(0),
        ),
        (
            "tree pack",
            plain,
            packs_of(plain, PackKind::Tree).await.swap_remove(0),
        ),
    ];
    let mut cases = Vec::new();
    for (name, bucket, key) in objects {
        for (what, edit) in [
            ("Delete", Edit::Delete(key.clone())),
            ("Truncate", Edit::Truncate(key.clone())),
            ("Flip", Edit::Flip(key.clone())),
        ] {
            cases.push((format!("{name}, {what}"), bucket, edit));
        }
    }
    assert_table(&table(&world, &cases).await, EXPECTED);
}
