//! The seam to the system: threads, locks, time and randomness, as `disk` is the one to the file system.
//!
//! In every ordinary build these are plain re-exports, without cost. Under the feature `simulation` they are the
//! simulator's, so that one seed decides which thread goes on, when a wait ends and what is drawn.

pub(crate) mod backoff;
pub(crate) mod beside;
pub(crate) mod blocking;
pub(crate) mod clock;
pub(crate) mod priority;
pub(crate) mod random;
#[cfg(feature = "simulation")]
pub mod simulated;
pub(crate) mod span;
pub(crate) mod sync;
