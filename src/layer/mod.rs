//! The layer: joins one journal, one store and one order of writes. No other module joins the modules below.
//!
//! It handles keys and bytes, never the types of a cache.

pub mod dead_letter_list;
pub(crate) mod history;
pub mod inspect;
pub mod invalidation;
#[expect(clippy::module_inception, reason = "the layer itself is the first thing to read in its room")]
pub mod layer;
#[cfg(feature = "metrics")]
pub(crate) mod metrics;
pub(crate) mod opening;
pub mod ownership;
