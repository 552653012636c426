//! Typed views of one layer's namespaces, and the same calls without a runtime.

mod asking;
pub mod batch;
pub mod blocking;
pub mod codec;
pub(crate) mod counting;
pub mod derive;
pub mod entry;
pub mod flights;
pub(crate) mod forgetting;
pub(crate) mod get;
pub mod group;
pub mod opening;
pub(crate) mod reading;
pub mod receipt;
pub mod rules;
pub mod source;
pub mod throttle;
pub mod typed;
pub mod versions;
pub mod view;
