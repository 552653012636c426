//! What is in memory and may be served. No I/O happens here.

pub mod advice;
mod dropping;
pub mod entry;
pub mod evictions;
pub(crate) mod extra;
pub mod fence;
pub mod freshness;
pub mod metrics;
pub mod reloads;
pub mod resident;
pub mod scope;
pub mod servable;
pub mod views;
