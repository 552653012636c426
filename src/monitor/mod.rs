//! The consistency monitor: samples applied writes, and asks every follower after given delays what it would serve.
//!
//! It measures what readers of followers notice, from outside of the machinery that propagates changes: the share of
//! writes that are consistent within a delay. The manual has a page on it. It only asks; it never changes a follower's
//! memory.

pub(crate) mod consistency;
#[cfg(feature = "metrics")]
mod figures;
pub(crate) mod observer;
pub(crate) mod report;
mod tally;

pub use consistency::MonitorBuilder;
// Documented once, at the crate's root.
#[doc(no_inline)]
pub use consistency::Monitor;
#[doc(no_inline)]
pub use observer::{Observation, Observer};
pub use observer::{Served, Trouble};
#[doc(no_inline)]
pub use report::MonitorReport;
pub use report::{FollowerReport, Offender, Reason, Share};
