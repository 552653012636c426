//! The list of all that is compared.

use crate::peers;
use crate::subject::Entry;

/// The peers that need no optional dependency come first.
pub(crate) const ENTRIES: &[Entry] = &[
    peers::raw::RAW,
    peers::raw::RAW_GROUP,
    peers::forebay::BEHIND,
    peers::forebay::DRAINED,
    peers::forebay::JOURNAL,
    peers::forebay::THROUGH,
    #[cfg(feature = "sled")]
    peers::sled::ENTRY,
    #[cfg(feature = "redb")]
    peers::redb::ENTRY,
    #[cfg(feature = "fjall")]
    peers::fjall::ENTRY,
    #[cfg(feature = "rocksdb")]
    peers::rocksdb::ENTRY,
    #[cfg(feature = "sqlite")]
    peers::sqlite::ENTRY,
    #[cfg(feature = "raft-engine")]
    peers::raft_engine::ENTRY,
    #[cfg(feature = "okaywal")]
    peers::okaywal::ENTRY,
    #[cfg(feature = "persistent-queue")]
    peers::persistent_queue::ENTRY,
    #[cfg(feature = "redis")]
    peers::redis::ENTRY,
];

/// Ours and the bare calls; the rest are peers.
pub(crate) fn is_peer(name: &str) -> bool {
    !name.starts_with("raw") && !name.starts_with("forebay")
}
