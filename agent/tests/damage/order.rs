//! Objects that are sound in themselves and stand in the wrong place: two of a kind swapped, an older
//! one under a newer one's name, the log cut short.

use crate::lab::Lab;
use crate::world::{
    Edit, FIRST_POINT, LAST_POINT, World, assert_table, packs_of, segments_of, table,
};
use tidegate_protocol::pack::PackKind;
use tidegate_protocol::{checkpoint, descriptor, record};

/// As in `objects`. What stands under another name than its own is found by that name: packs and
/// segments by their hash, records by the chain, checkpoints by the record that they speak of.
///
/// - *1 points*, *2 points*: a log that was cut short is sound; only who has seen it longer can tell.
/// - Two packs of the same size would be told apart by reading them only: these are the largest and the
///   smallest.
/// - A descriptor of another repository is *denied*: the key does not fit it.
const EXPECTED: &str = "\
first two records, swapped, Fresh: corrupt | corrupt | corrupt | corrupt | corrupt
first two records, swapped, Warm: works | works | commits, elsewhere corrupt | corrupt | corrupt
two points, swapped, Fresh: corrupt | corrupt | corrupt | corrupt | corrupt
two points, swapped, Warm: works | works | commits, elsewhere corrupt | corrupt | corrupt
last two points, swapped, Fresh: 1 points | 1 points | works | 1 points | works
last two points, swapped, Warm: works | works | commits, elsewhere corrupt | names it | corrupt
two checkpoints, swapped, Fresh: works | works | works | works | works
two checkpoints, swapped, Warm: works | works | works | works | works
two segments, swapped, Fresh: works | works | works | names it | works
two segments, swapped, Warm: works | works | works | names it | works
two data packs, swapped, Fresh: works | corrupt ×3 | works | names it | works
two data packs, swapped, Warm: works | corrupt ×3 | works | names it | works
two tree packs, swapped, Fresh: works | corrupt ×3 | works | names it | works, older corrupt ×2
two tree packs, swapped, Warm: works | works | works | names it | works
data and tree pack, swapped, Fresh: works | corrupt ×3 | works | names it | works, older corrupt ×1
data and tree pack, swapped, Warm: works | corrupt ×3 | works | names it | works
descriptor, of another repository, Fresh: denied | denied | denied | denied | denied
descriptor, of another repository, Warm: denied | denied | denied | denied | denied
middle record, an older one, Fresh: corrupt | corrupt | corrupt | corrupt | corrupt
middle record, an older one, Warm: works | works | commits, elsewhere corrupt | corrupt | corrupt
last record, an older one, Fresh: 2 points | 2 points | works | 2 points | works
last record, an older one, Warm: works | works | commits, elsewhere corrupt | names it | corrupt
log, cut short by one, Fresh: 2 points | 2 points | works | 2 points | works
log, cut short by one, Warm: corrupt | corrupt | corrupt | corrupt | corrupt
log, cut short by two, Fresh: 1 points | 1 points | works | 1 points | works
log, cut short by two, Warm: corrupt | corrupt | corrupt | corrupt | corrupt
log and checkpoints, cut short by one, Fresh: 2 points | 2 points | works | 2 points | works
log and checkpoints, cut short by one, Warm: corrupt | corrupt | corrupt | corrupt | corrupt
log, cut short below its checkpoint, Fresh: 2 points | 2 points | works | 2 points | works
log, cut short below its checkpoint, Warm: corrupt | corrupt | corrupt | corrupt | corrupt
checkpoint, an older one, Fresh: works | works | works | works | works
checkpoint, an older one, Warm: works | works | works | works | works
segment, an older one, Fresh: works | works | works | names it | works
segment, an older one, Warm: works | works | works | names it | works
tree pack, an older one, Fresh: works | corrupt ×1 | works | names it | works, older corrupt ×1
tree pack, an older one, Warm: works | works | works | names it | works
";

#[tokio::test(flavor = "multi_thread")]
async fn swapped_and_older_objects_are_named_or_not_needed() {
    let world = World::new().await;
    let plain = &world.bucket;
    let checkpointed = &world.with_checkpoints().await;
    let log = record::object_key;
    let data = packs_of(plain, PackKind::Data).await;
    let tree = packs_of(plain, PackKind::Tree).await;
    let segments = segments_of(plain).await;
    let newest_checkpoint = checkpoint::object_key(LAST_POINT);
    let older_checkpoint = checkpoint::object_key(LAST_POINT - 1);
    // One whose keys nobody here has.
    let foreign = Lab::in_memory().await;
    let foreign = foreign.store.get(descriptor::OBJECT_KEY, 1 << 20).await;

    let swap = |a: &str, b: &str| Edit::Swap(a.to_owned(), b.to_owned());
    let older = |key: &str, by: &str| Edit::Older(key.to_owned(), by.to_owned());
    let cases = [
        ("first two records, swapped", plain, swap(&log(1), &log(2))),
        (
            "two points, swapped",
            plain,
            swap(&log(FIRST_POINT), &log(FIRST_POINT + 1)),
        ),
        (
            "last two points, swapped",
            plain,
            swap(&log(LAST_POINT - 1), &log(LAST_POINT)),
        ),
        (
            "two checkpoints, swapped",
            checkpointed,
            swap(&older_checkpoint, &newest_checkpoint),
        ),
        (
            "two segments, swapped",
            plain,
            swap(&segments[0], &segments[1]),
        ),
        (
            "two data packs, swapped",
            plain,
            swap(&data[0], &data[data.len() - 1]),
        ),
        ("two tree packs, swapped", plain, swap(&tree[0], &tree[1])),
        (
            "data and tree pack, swapped",
            plain,
            swap(&data[0], &tree[0]),
        ),
        (
            "descriptor, of another repository",
            plain,
            Edit::Replace(descriptor::OBJECT_KEY.to_owned(), foreign.unwrap().to_vec()),
        ),
        (
            "middle record, an older one",
            plain,
            older(&log(LAST_POINT - 1), &log(FIRST_POINT)),
        ),
        (
            "last record, an older one",
            plain,
            older(&log(LAST_POINT), &log(LAST_POINT - 1)),
        ),
        (
            "log, cut short by one",
            plain,
            Edit::Cut(vec![log(LAST_POINT)]),
        ),
        (
            "log, cut short by two",
            plain,
            Edit::Cut(vec![log(LAST_POINT - 1), log(LAST_POINT)]),
        ),
        (
            "log and checkpoints, cut short by one",
            checkpointed,
            Edit::Cut(vec![log(LAST_POINT), newest_checkpoint.clone()]),
        ),
        (
            "log, cut short below its checkpoint",
            checkpointed,
            Edit::Cut(vec![log(LAST_POINT)]),
        ),
        (
            "checkpoint, an older one",
            checkpointed,
            older(&newest_checkpoint, &older_checkpoint),
        ),
        (
            "segment, an older one",
            plain,
            older(&segments[1], &segments[0]),
        ),
        ("tree pack, an older one", plain, older(&tree[1], &tree[0])),
    ];
    let cases: Vec<_> = cases
        .into_iter()
        .map(|(name, bucket, edit)| (name.to_owned(), bucket, edit))
        .collect();
    assert_table(&table(&world, &cases).await, EXPECTED);
}
