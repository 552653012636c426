//! Typed views of one layer's namespaces: reading, writing, invalidating; async, and blocking for callers without a
//! runtime.
//!
//! A cache turns keys and values into bytes and back, keeps values in memory, and loads each key once at a time. It
//! never decides on its own what is durable or in which order: that is the layer's.

pub mod batch;
pub mod codec;
pub mod entry;
pub(crate) mod flights;
pub mod loader;
pub mod opening;
pub(crate) mod reading;
pub mod rules;
pub(crate) mod throttle;
pub mod typed;
pub mod versions;
pub(crate) mod view;
pub(crate) mod writing;
