//! What is in memory and may be served. No I/O happens here.

pub(crate) mod extra;
pub mod fence;
pub mod freshness;
pub mod resident;
pub mod scope;
pub mod servable;
