//! Sends changes to other processes: change streams, publishers, followers, the outbox.

pub mod change;
pub mod changes;
pub mod follow;
pub(crate) mod follower;
#[cfg(feature = "postgres")]
pub mod outbox;
pub mod publisher;
pub mod tasks;
