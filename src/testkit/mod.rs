//! Tools for tests: conformance suites for stores and buses, a store and a bus that fail on command, a TCP proxy that
//! cuts and delays connections, and a clock that is moved by hand.
//!
//! The module exists only with the feature `testkit` and is not meant for a running service.

pub mod bus_conformance;
pub mod clock;
pub mod conformance;
mod draw;
pub mod faulty_bus;
pub mod flaky;
pub mod proxy;

pub use clock::ManualClock;
pub use faulty_bus::FaultyBus;
pub use flaky::FlakyStore;
pub use proxy::Proxy;
