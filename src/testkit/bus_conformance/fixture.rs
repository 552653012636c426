//! The bus under test, and the times that the suite waits.

use std::sync::Arc;
use std::time::Duration;

use crate::bus::contract::{BoxFuture, Bus, Channel};

/// The time within which everything expected must come.
pub const DEADLINE: Duration = Duration::from_secs(30);
/// The time after which a publisher repeats a call while servers restart and connections are cut.
pub const ATTEMPT: Duration = Duration::from_secs(3);
/// The time for which a check watches that nothing comes while nothing is published.
pub const QUIET: Duration = Duration::from_millis(500);

/// A bus under test, with its server if it has one.
pub trait BusFixture: Send + Sync {
    /// Makes a client with connections of its own.
    fn connect(&self) -> BoxFuture<'_, Arc<dyn Bus>>;

    /// Removes all messages of a channel without restarting its numbering. The channel may be one that was never used.
    fn trim<'a>(&'a self, channel: &'a Channel) -> BoxFuture<'a, ()>;

    /// Kills the server, starts it again with the same data, and returns once it answers. Returns false if there is
    /// none.
    fn restart(&self) -> BoxFuture<'_, bool>;

    /// Cuts all connections of all clients, and refuses new ones until [`BusFixture::mend`]. Returns false if this is
    /// not possible.
    fn cut(&self) -> BoxFuture<'_, bool>;

    /// Accepts connections again after [`BusFixture::cut`].
    fn mend(&self) -> BoxFuture<'_, ()>;

    /// Returns true (the default) if positions are exact: no message before a position is delivered after it.
    fn positions_are_exact(&self) -> bool {
        true
    }
}
