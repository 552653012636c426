//! Simulated threads, time and randomness: the whole layer, its hand-offs, races, followers and the pace of its drain.
//!
//! Built on its own, because outside a simulated run nothing of the crate works then; `faults::in_simulation` does so.

#![cfg(forebay_simulation)]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    unreachable_pub,
    reason = "these are tests; their modules share what is public in them"
)]

mod draining;
mod followers;
mod hand_offs;
mod harness;
mod races;
#[path = "../support/mod.rs"]
mod support;
mod whole_layer;
