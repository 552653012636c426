//! For the tests of a store: what every store must do, and a store that misbehaves on command. For the
//! tests of what expires: a clock that is moved by hand.
//!
//! Nothing here belongs into a running service; the module exists only with the feature `testkit`.

pub mod clock;
pub mod conformance;
pub mod flaky;

pub use clock::ManualClock;
pub use flaky::FlakyStore;
