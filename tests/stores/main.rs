//! The stores that come with the crate, and the operator's binary that drains into them.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    unreachable_pub,
    reason = "these are tests; their modules share what is public in them"
)]

mod cli;
mod conformance;
mod crash;
mod embedded;
#[path = "../support/mod.rs"]
mod support;
#[cfg(target_os = "linux")]
mod syscalls;
