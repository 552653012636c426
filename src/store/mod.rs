//! Systems of record: the contract, and the stores that the crate brings along.

pub mod contract;
pub mod memory;
pub mod sled;
mod sled_files;
mod sled_open;
mod worker;

pub use contract::{Atomicity, Batch, BoxFuture, Op, Progress, Store, StoreError, Tenure, Versioned};
pub use memory::MemoryStore;
pub use sled::{SledOptions, SledStore};
