//! Systems of record: the contract, and the stores that the crate brings along.

pub mod contract;
pub mod memory;
pub mod sled;
mod workers;

pub use self::contract::Store;
pub use self::memory::MemoryStore;
pub use self::sled::SledStore;
