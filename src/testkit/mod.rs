//! For the tests of a user's own store: what it has to pass, and a store that fails.
//!
//! The simulated file system is at [`crate::disk::simulated`].

pub mod conformance;
pub mod flaky;

pub use self::flaky::FlakyStore;
