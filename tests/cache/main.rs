//! Caches: what a read may be answered with, for how long, and what makes it stale.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    unreachable_pub,
    reason = "these are tests; their modules share what is public in them"
)]

mod cache_aside;
mod expiration;
mod metrics;
mod namespaces;
mod read_sets;
mod servable;
mod staleness_bound;
#[path = "../support/mod.rs"]
mod support;
mod tags_and_rules;
mod versions;
