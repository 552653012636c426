//! Systems of record: the contract, and the stores that the crate brings along.

pub mod contract;
#[cfg(any(feature = "fjall", feature = "redb", feature = "sled"))]
mod directory;
#[cfg(any(feature = "fjall", feature = "redb", feature = "sled"))]
mod embedded;
#[cfg(feature = "fjall")]
pub mod fjall;
#[cfg(feature = "fjall")]
mod fjall_journal;
#[cfg(feature = "fjall")]
mod fjall_open;
#[cfg(any(feature = "fjall", feature = "redb", feature = "sled"))]
mod layout;
pub mod memory;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "postgres")]
mod postgres_apply;
#[cfg(feature = "postgres")]
mod postgres_pulse;
#[cfg(feature = "postgres")]
mod postgres_sql;
#[cfg(feature = "redb")]
pub mod redb;
#[cfg(feature = "sled")]
pub mod sled;
#[cfg(feature = "sled")]
mod sled_blobs;
#[cfg(feature = "sled")]
mod sled_files;
#[cfg(feature = "sled")]
mod sled_open;
#[cfg(feature = "sled")]
mod sled_single;
#[cfg(any(feature = "fjall", feature = "redb", feature = "sled"))]
mod worker;

pub use contract::{Atomicity, Batch, BoxFuture, Op, Progress, Pulse, Store, StoreError, Tenure, Versioned};
#[cfg(feature = "fjall")]
pub use fjall::{FjallOptions, FjallStore};
pub use memory::MemoryStore;
#[cfg(feature = "postgres")]
pub use postgres::{PostgresStore, PostgresStoreOptions};
#[cfg(feature = "redb")]
pub use redb::{RedbOptions, RedbStore};
#[cfg(feature = "sled")]
pub use sled::{SledOptions, SledStore};
