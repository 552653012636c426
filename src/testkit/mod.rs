//! For the tests of a store: what every store must do, and a store that misbehaves on command.
//!
//! Nothing here belongs into a running service; the module exists only with the feature `testkit`.

pub mod conformance;
pub mod flaky;

pub use flaky::FlakyStore;
