//! Systems of record: the contract of a store, and the stores that come with the crate.
//!
//! The embedded stores (sled, redb, fjall) share `embedded`; the store in a Postgres database shares the module
//! `postgres` of the crate with the bus over one.

pub mod contract;
#[cfg(any(feature = "fjall", feature = "redb", feature = "sled"))]
mod embedded;
#[cfg(feature = "fjall")]
pub mod fjall;
pub mod memory;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "redb")]
pub mod redb;
#[cfg(feature = "sled")]
pub mod sled;

pub use contract::{Batch, BoxFuture, Op, OwnerStatus, Progress, Store, StoreError, Tenure, Versioned};
#[cfg(feature = "fjall")]
pub use fjall::{FjallOptions, FjallStore};
pub use memory::MemoryStore;
#[cfg(feature = "postgres")]
pub use postgres::{PostgresStore, PostgresStoreOptions};
#[cfg(feature = "redb")]
pub use redb::{RedbOptions, RedbStore};
#[cfg(feature = "sled")]
pub use sled::{SledOptions, SledStore};
