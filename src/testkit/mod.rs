//! For the tests of a store or a bus: what every one must do, and one that misbehaves on command. For the tests of what
//! expires: a clock that is moved by hand.
//!
//! Nothing here belongs into a running service; the module exists only with the feature `testkit`.

pub mod bus_conformance;
pub mod clock;
pub mod conformance;
mod draw;
pub mod faulty_bus;
pub mod flaky;
pub mod heartbeat_conformance;
pub mod proxy;

pub use clock::ManualClock;
pub use faulty_bus::FaultyBus;
pub use flaky::FlakyStore;
pub use proxy::Proxy;
