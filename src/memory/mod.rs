//! The entries in memory, and the decision which of them may be served. No I/O happens here.

pub mod advice;
pub mod dependencies;
pub mod entry;
pub mod fence;
pub mod freshness;
pub mod metrics;
pub mod resident;
pub mod scope;
pub mod servable;
pub mod views;
