//! The fault programme: power cuts, failing operations, damage, and the tests on simulated threads.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    unreachable_pub,
    reason = "these are tests; their modules share what is public in them"
)]

mod corruption;
mod countdown;
mod history_store;
mod images;
mod in_simulation;
mod journal_run;
mod layer_run;
#[cfg(target_os = "linux")]
mod power_cut;
#[path = "../support/mod.rs"]
mod support;

/// Counts what is allocated, so that `corruption` sees whether a damaged length was believed.
#[global_allocator]
static ALLOCATOR: peak_alloc::PeakAlloc = peak_alloc::PeakAlloc;
