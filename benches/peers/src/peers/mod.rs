//! Forebay, its peers, and the bare system calls, each in a file of its own and each peer behind a feature.

#[cfg(feature = "fjall")]
mod fjall;
mod forebay;
#[cfg(feature = "okaywal")]
mod okaywal;
#[cfg(feature = "persistent-queue")]
mod persistent_queue;
#[cfg(feature = "raft-engine")]
mod raft_engine;
mod raw;
#[cfg(feature = "redb")]
mod redb;
#[cfg(feature = "redis")]
mod redis;
pub(crate) mod registry;
#[cfg(feature = "rocksdb")]
mod rocksdb;
#[cfg(feature = "sled")]
mod sled;
#[cfg(feature = "sqlite")]
mod sqlite;
