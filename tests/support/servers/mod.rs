//! Real servers for the tests of the buses: started on a free port of this machine with their data in a temporary
//! directory, stopped when the test is over, and stopped, paused and restarted in between.
//!
//! A server that is not installed fails the test. `bash .ci/install redis-server nats-server` installs them.

#![allow(dead_code, unreachable_pub, reason = "each program uses a part of it")]
#![allow(clippy::panic, clippy::unwrap_used, clippy::indexing_slicing, reason = "these are tests")]

pub mod certificates;
pub mod nats;
pub mod process;
pub mod redis;
pub mod server;
