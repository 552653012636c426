//! Systems of record: the contract, and the stores that the crate brings along.

pub mod contract;
mod directory;
mod embedded;
#[cfg(feature = "fjall")]
pub mod fjall;
#[cfg(feature = "fjall")]
mod fjall_journal;
#[cfg(feature = "fjall")]
mod fjall_open;
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
pub mod sled;
mod sled_blobs;
mod sled_files;
mod sled_open;
mod sled_single;
mod worker;

pub use contract::{Batch, BoxFuture, Op, OwnerStatus, Progress, Store, StoreError, Tenure, Versioned};
#[cfg(feature = "fjall")]
pub use fjall::{FjallOptions, FjallStore};
pub use memory::MemoryStore;
#[cfg(feature = "postgres")]
pub use postgres::{PostgresStore, PostgresStoreOptions};
#[cfg(feature = "redb")]
pub use redb::{RedbOptions, RedbStore};
pub use sled::{SledOptions, SledStore};
