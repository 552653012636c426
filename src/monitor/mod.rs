//! The consistency monitor: samples applied writes, and asks every follower after given delays what it would serve.
//!
//! It measures what readers of followers notice, from outside of the machinery that propagates changes: the share of
//! writes that are consistent within a delay. The manual has a page on it. It only asks; it never changes a follower's
//! memory.

pub mod consistency;
#[cfg(feature = "metrics")]
mod figures;
pub mod observer;
pub mod report;
mod tally;

pub use consistency::{Monitor, MonitorBuilder};
pub use observer::{Observation, Observer, Served, Trouble};
pub use report::{FollowerReport, MonitorReport, Offender, Reason, Share};
