//! The seam to the system: threads, locks, time and randomness, as `disk` is the seam to the file system.
//!
//! In an ordinary build these are plain re-exports, without cost. In a simulation they are the simulator's, so that one
//! seed decides which thread goes on, when a wait ends and which random numbers are drawn.

pub(crate) mod backoff;
pub(crate) mod blocking;
pub(crate) mod clock;
pub(crate) mod future;
pub(crate) mod parallel;
pub(crate) mod priority;
pub(crate) mod random;
#[cfg(forebay_simulation)]
pub mod simulated;
pub(crate) mod span;
pub(crate) mod sync;
