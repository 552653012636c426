//! A layer: what it acknowledges and when, the order in which the store gets it, failures, and old formats.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    unreachable_pub,
    reason = "these are tests; their modules share what is public in them"
)]

mod compatibility;
mod failures;
mod model;
mod reads;
mod refeeding;
#[path = "../support/mod.rs"]
mod support;
#[cfg(target_os = "linux")]
mod threads;
mod watermark;
mod went_back;
mod writes;
