//! The conformance suite of [`Bus`](crate::bus::contract::Bus), for any implementation.
//!
//! Each check uses channels of its own, so one server serves all checks, and panics with a sentence that names the
//! broken rule. No check waits longer than [`DEADLINE`] for an expected message. Checks that restart the server or cut
//! the network are skipped if the fixture cannot do so. The suite runs on tokio.
//!
//! ```
//! use std::sync::Arc;
//!
//! use forebay::bus::{BoxFuture, Bus, Channel, LocalBus};
//! use forebay::testkit::bus_conformance::{self, BusFixture};
//!
//! #[derive(Default)]
//! struct WithinThisProcess(LocalBus);
//!
//! impl BusFixture for WithinThisProcess {
//!     fn connect(&self) -> BoxFuture<'_, Arc<dyn Bus>> {
//!         Box::pin(async { Arc::new(self.0.clone()) as Arc<dyn Bus> })
//!     }
//!
//!     fn trim<'a>(&'a self, channel: &'a Channel) -> BoxFuture<'a, ()> {
//!         Box::pin(async { self.0.trim(channel) })
//!     }
//!
//!     fn restart(&self) -> BoxFuture<'_, bool> {
//!         Box::pin(async { false })
//!     }
//!
//!     fn cut(&self) -> BoxFuture<'_, bool> {
//!         Box::pin(async { false })
//!     }
//!
//!     fn mend(&self) -> BoxFuture<'_, ()> {
//!         Box::pin(async {})
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! bus_conformance::check(&WithinThisProcess::default()).await;
//! # }
//! ```

#![allow(clippy::panic, reason = "a check that fails ends the test that it is part of")]

mod delivery;
mod failures;
mod fixture;
mod listening;
mod positions;

// The single checks are for the tests of the suite itself, which break one rule each.
#[doc(hidden)]
pub use crate::testkit::bus_conformance::delivery::{
    bodies_of_every_size, cancelled_waits_lose_nothing, channels_are_apart, many_listeners,
    now_misses_nothing_that_comes_later, order_within_a_publisher, publishing_again_does_no_harm,
    several_publishers_and_listeners, too_large_is_refused_as_a_whole, waits_while_nothing_is_published,
};
#[doc(hidden)]
pub use crate::testkit::bus_conformance::failures::{cuts_lose_nothing, restarts_lose_nothing};
pub use crate::testkit::bus_conformance::fixture::{ATTEMPT, BusFixture, DEADLINE, QUIET};
#[doc(hidden)]
pub use crate::testkit::bus_conformance::positions::{
    a_gap_is_told, a_position_resumes_in_another_client, a_trim_that_took_nothing_is_not_told,
    after_goes_on_exactly, oldest_brings_all_that_is_held, what_is_no_position_is_told,
};

/// Runs all checks, one after the other.
///
/// # Panics
/// With a sentence that names the broken rule.
pub async fn check(fixture: &dyn BusFixture) {
    order_within_a_publisher(fixture).await;
    several_publishers_and_listeners(fixture).await;
    many_listeners(fixture).await;
    channels_are_apart(fixture).await;
    now_misses_nothing_that_comes_later(fixture).await;
    publishing_again_does_no_harm(fixture).await;
    bodies_of_every_size(fixture).await;
    too_large_is_refused_as_a_whole(fixture).await;
    waits_while_nothing_is_published(fixture).await;
    cancelled_waits_lose_nothing(fixture).await;
    oldest_brings_all_that_is_held(fixture).await;
    after_goes_on_exactly(fixture).await;
    a_position_resumes_in_another_client(fixture).await;
    a_gap_is_told(fixture).await;
    a_trim_that_took_nothing_is_not_told(fixture).await;
    what_is_no_position_is_told(fixture).await;
    cuts_lose_nothing(fixture).await;
    restarts_lose_nothing(fixture).await;
}
