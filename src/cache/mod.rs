//! Typed views of one layer's namespaces, and the same calls without a runtime.

pub mod batch;
pub mod blocking;
pub mod codec;
pub mod typed;
pub mod view;
