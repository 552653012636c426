//! Draining the queue into the store: batches, pacing, coalescing, parking.

pub(crate) mod accounts;
pub(crate) mod applied;
pub(crate) mod batching;
pub(crate) mod flusher;
pub(crate) mod parking;
pub(crate) mod plan;
