//! The journal by itself: appends and the queue for users, the committer, and the disks under both.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    unreachable_pub,
    reason = "these are tests; their modules share what is public in them"
)]

mod committer;
mod disk;
mod queue;
mod simulated_disk;
