//! One journal, one store, one order: the only place that joins the rooms below. It knows keys and bytes, never types.

pub mod dead_letter_list;
pub mod inspect;
pub mod invalidation;
#[expect(clippy::module_inception, reason = "the layer itself is the first thing to read in its room")]
pub mod layer;
#[cfg(feature = "metrics")]
pub(crate) mod metrics;
pub(crate) mod opening;
pub mod ownership;
