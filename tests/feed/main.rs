//! Changes for others: change streams, buses, events, publishers and followers, and the monitor of their lag.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    unreachable_pub,
    reason = "these are tests; their modules share what is public in them"
)]

mod change_stream;
mod event_format;
mod following;
mod local_bus;
mod monitor;
#[path = "../support/mod.rs"]
mod support;
