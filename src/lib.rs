//! Forebay is a cache layer in front of a durable store.
//!
//! This file is a table of contents; what a module promises stands at its own head.

pub mod disk;
pub mod error;
pub mod ids;
pub mod journal;
pub mod memory;
pub mod metrics;
pub mod options;
pub mod store;
#[cfg(feature = "testkit")]
pub mod testkit;
