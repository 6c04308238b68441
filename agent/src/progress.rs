//! Counters of a running job, shared with whoever shows them.

use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, Ordering};

/// How far a backup, restore or verify has come. All in bytes.
#[derive(Debug, Default)]
pub struct Progress {
    total: AtomicU64,
    done: AtomicU64,
    read: AtomicU64,
    new: AtomicU64,
    stored: AtomicU64,
    kept: AtomicU64,
}

/// [`Progress`] at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// What the job covers.
    pub total_bytes: u64,
    /// What of it is dealt with, holes included.
    pub done_bytes: u64,
    /// Read from the source, or from a target in place.
    pub read_bytes: u64,
    /// Of chunks that the repository did not have.
    pub new_bytes: u64,
    /// Uploaded by a backup, fetched by a restore or verify.
    pub stored_bytes: u64,
    /// Found right in the target.
    pub kept_bytes: u64,
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident: $field:ident;)+) => {
        impl Progress {
            $($(#[$doc])* pub fn $name(&self, bytes: u64) {
                self.$field.fetch_add(bytes, Ordering::Relaxed);
            })+
        }
    };
}

counters! {
    /// Adds to what the job covers.
    add_total: total;
    /// Adds to what is dealt with.
    add_done: done;
    /// Adds to what was read.
    add_read: read;
    /// Adds to what is new.
    add_new: new;
    /// Adds to what went to or came from the store.
    add_stored: stored;
    /// Adds to what was found right in the target.
    add_kept: kept;
}

impl Progress {
    /// Sets the counters to those of a job elsewhere.
    pub fn set(&self, to: &Snapshot) {
        let store = |counter: &AtomicU64, bytes| counter.store(bytes, Ordering::Relaxed);
        store(&self.total, to.total_bytes);
        store(&self.done, to.done_bytes);
        store(&self.read, to.read_bytes);
        store(&self.new, to.new_bytes);
        store(&self.stored, to.stored_bytes);
        store(&self.kept, to.kept_bytes);
    }

    /// The counters now.
    pub fn snapshot(&self) -> Snapshot {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Snapshot {
            total_bytes: load(&self.total),
            done_bytes: load(&self.done),
            read_bytes: load(&self.read),
            new_bytes: load(&self.new),
            stored_bytes: load(&self.stored),
            kept_bytes: load(&self.kept),
        }
    }
}
