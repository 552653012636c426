//! Real servers for tests, examples and benchmarks: started on a free port of this machine with their data in a
//! temporary directory, stopped when they are dropped, and stopped, paused and restarted in between.
//!
//! A server that is not installed is a panic. `bash .ci/install redis-server nats-server postgresql` installs them.

#![allow(missing_docs, reason = "a member of the workspace, which is not published")]
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "whoever starts a server needs it: a panic ends the test"
)]

pub mod certificates;
pub mod nats;
pub mod postgres;
pub mod process;
pub mod redis;
pub mod server;
