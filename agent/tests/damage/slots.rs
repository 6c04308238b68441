//! Key slots, damaged in every way: who has the right passphrase learns which slot it is that does not
//! open, and other slots go on opening.

use crate::lab::Lab;
use crate::world::{Edit, judged, keys_below};
use object_store::memory::InMemory;
use std::sync::Arc;
use tidegate_agent::Kind;
use tidegate_agent::repository::open_slot;
use tidegate_agent::store::{Store, StoreSettings};
use tidegate_protocol::keys::Level;
use tidegate_protocol::slot::{Argon2Cost, Credential, NewWrapping};

/// Patience is not what is tested.
const COST: Argon2Cost = Argon2Cost {
    memory_kib: 64,
    passes: 1,
    lanes: 1,
};

#[tokio::test(flavor = "multi_thread")]
async fn damaged_slots_are_named_and_others_open() {
    let bucket = Arc::new(InMemory::new());
    let settings = StoreSettings::default();
    let store = Store::from_object_store(bucket.clone(), "", "bucket", &settings);
    let lab = Lab::on(&store).await;
    let repository = lab.open().await;
    let mut slots = Vec::new();
    for label in ["first", "second"] {
        let with = NewWrapping::Passphrase(label, COST);
        let made = repository.key_add_slot(Level::Restore, label, &with).await;
        slots.push(made.unwrap().slot.unwrap().object_key());
    }
    assert_eq!(keys_below(&bucket, "keys").await.len(), 2);
    let (first, second) = (slots[0].clone(), slots[1].clone());

    // The edit, and what each passphrase comes to.
    let cases = [
        (Edit::Delete(first.clone()), "gone", "opens"),
        (Edit::Truncate(first.clone()), "named", "opens"),
        (Edit::Flip(first.clone()), "named", "opens"),
        (
            Edit::Replace(first.clone(), vec![7; 1 << 20]),
            "named",
            "opens",
        ),
        (Edit::Swap(first.clone(), second.clone()), "named", "named"),
        (Edit::Older(second.clone(), first.clone()), "opens", "named"),
    ];
    for (edit, of_first, of_second) in cases {
        let damaged = edit.of(&bucket).await;
        let store = Store::from_object_store(damaged, "", "bucket", &settings);
        for (passphrase, slot, expected) in
            [("first", &first, of_first), ("second", &second, of_second)]
        {
            let credential = Credential::Passphrase(passphrase);
            let found = match open_slot(&store, &credential, None).await {
                Ok(keys) => {
                    assert_eq!(keys.level(), Level::Restore);
                    "opens"
                }
                Err(error) if expected == "gone" => {
                    // The slot of the other is all there is to try, and nothing says that one is gone.
                    assert_eq!(error.kind(), Kind::Denied, "{error:?}");
                    "gone"
                }
                Err(error) => {
                    judged(&error, std::slice::from_ref(slot));
                    "named"
                }
            };
            assert_eq!(found, expected, "{edit:?}, {passphrase}");
        }
    }
}
