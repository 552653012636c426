//! Systems of record: the contract, and the stores that the crate brings along.

pub mod contract;
