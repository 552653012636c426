//! Systems of record: the contract of a store, and the stores that come with the crate.
//!
//! The embedded stores (sled, redb, fjall) share `embedded`; the store in a Postgres database shares the module
//! `postgres` of the crate with the bus over one.

pub(crate) mod contract;
#[cfg(any(feature = "fjall", feature = "redb", feature = "sled"))]
mod embedded;
#[cfg(feature = "fjall")]
pub(crate) mod fjall;
pub(crate) mod memory;
#[cfg(feature = "postgres")]
pub(crate) mod postgres;
#[cfg(feature = "redb")]
pub(crate) mod redb;
#[cfg(feature = "sled")]
pub(crate) mod sled;

#[doc(no_inline)]
pub use crate::ids::{Tenure, TenureId};
pub use contract::{
    Batch, BoxFuture, Claim, Op, OwnerStatus, Placement, Progress, Standing, StoreError, Versioned,
};
// Documented once, at the crate's root.
#[doc(no_inline)]
pub use contract::Store;
#[cfg(feature = "fjall")]
pub use fjall::FjallOptions;
#[cfg(feature = "fjall")]
#[doc(no_inline)]
pub use fjall::FjallStore;
#[doc(no_inline)]
pub use memory::MemoryStore;
#[cfg(feature = "postgres")]
#[doc(no_inline)]
pub use postgres::PostgresStore;
#[cfg(feature = "postgres")]
pub use postgres::{Applying, PostgresStoreOptions};
#[cfg(feature = "redb")]
pub use redb::RedbOptions;
#[cfg(feature = "redb")]
#[doc(no_inline)]
pub use redb::RedbStore;
#[cfg(feature = "sled")]
pub use sled::SledOptions;
#[cfg(feature = "sled")]
#[doc(no_inline)]
pub use sled::SledStore;
