//! Events between processes: the contract of a bus, the format of the events, and the buses that come with the crate.

pub mod contract;
pub mod event;
pub mod local;
#[cfg(feature = "nats")]
pub mod nats;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(any(feature = "redis", feature = "nats"))]
mod server;
pub mod tracker;

pub use contract::{Bus, Channel, Delivery, Identity, Message, Position, StartPosition, Subscription};
pub use event::{Directive, Event, Payload};
pub use local::LocalBus;
#[cfg(feature = "nats")]
pub use nats::{NatsBus, NatsBusOptions};
#[cfg(feature = "postgres")]
pub use postgres::{OutboxBacklog, PostgresBus, PostgresBusOptions};
#[cfg(feature = "redis")]
pub use redis::{RedisBus, RedisBusOptions};
