//! The consistency monitor: samples applied writes, and asks every follower after given delays what it would serve.
//!
//! It measures the one thing that readers of followers notice, from outside of the machinery that is to bring it about:
//! the share of writes that are consistent within a delay. The manual has a page on it. It only asks; it never changes
//! what a follower holds.

mod checking;
#[cfg(feature = "metrics")]
mod figures;
pub mod observer;
pub mod report;
pub mod sampling;
mod tally;

pub use observer::{Observation, Observer, Served, Trouble};
pub use report::{FollowerReport, MonitorReport, Offender, Reason, Share};
pub use sampling::{Monitor, MonitorBuilder};
