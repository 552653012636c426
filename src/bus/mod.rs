//! Events between processes: the contract of a bus, the format of the events, and the buses that come with the crate.

pub(crate) mod contract;
pub(crate) mod event;
pub(crate) mod local;
#[cfg(feature = "nats")]
pub(crate) mod nats;
#[cfg(feature = "postgres")]
pub(crate) mod postgres;
#[cfg(feature = "redis")]
pub(crate) mod redis;
#[cfg(any(feature = "redis", feature = "nats"))]
mod server;
pub(crate) mod tracker;

pub use contract::{
    BODY_BYTES_MAX, BoxFuture, Delivery, Identity, Message, Position, StartPosition, Subscription,
};
// Documented once, at the crate's root.
#[doc(no_inline)]
pub use contract::{Bus, Channel};
pub use event::{Directive, Event, Payload};
#[doc(no_inline)]
pub use local::LocalBus;
#[cfg(feature = "nats")]
pub use nats::{NatsBus, NatsBusOptions};
#[cfg(feature = "postgres")]
#[doc(no_inline)]
pub use postgres::PostgresBus;
#[cfg(feature = "postgres")]
pub use postgres::{OutboxBacklog, PostgresBusOptions};
#[cfg(feature = "redis")]
pub use redis::{RedisBus, RedisBusOptions};
#[cfg(forebay_mutation)]
pub use tracker::{Continuity, Tracker};
