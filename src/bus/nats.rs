//! A bus over NATS JetStream (feature `nats`), server 2.9 or newer. Each channel is a stream.
//!
//! JetStream numbers the messages of a stream. But if it cannot start at the requested number, it silently starts at
//! the first message that is left. So each delivery must have the next number; if it has not, the listener returns
//! [`crate::bus::Delivery::PositionLost`]. And whenever a consumer is created, and after every idle pull, the listener
//! compares its position with the state of the stream. A stream that was deleted and created again has another creation
//! time. A server that lost messages and gave out their numbers again has another time for the message at the
//! listener's position.
//!
//! A listener pulls from a consumer of its own, and creates a new one if anything is wrong with it: the server must
//! answer each pull, with or without messages, within a bounded time.

mod link;
mod listener;
mod options;
mod stream;

use std::fmt;
use std::sync::Arc;

use crate::bus::contract::{BoxFuture, Bus, Channel, Message, StartPosition, Subscription};
use crate::bus::nats::link::NatsClient;
use crate::bus::nats::listener::NatsListener;
use crate::bus::nats::options::Settings;
use crate::bus::nats::stream::StreamPosition;
use crate::error::Result;

pub use crate::bus::nats::options::NatsBusOptions;

/// A bus over NATS JetStream. Cheap to clone; all clones are the same bus and share one connection.
///
/// The bus belongs to the tokio runtime in which it is first used. A message is as durable as its stream: it is on as
/// many servers as the stream has replicas, in files that NATS syncs every two minutes by default. Listeners notice
/// lost messages. See also [`crate::manual::buses`].
#[derive(Clone)]
pub struct NatsBus(Arc<NatsClient>);

impl fmt::Debug for NatsBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsBus").field("server", &self.0.settings.server).finish_non_exhaustive()
    }
}

impl NatsBus {
    /// Makes a bus over the servers at `url`, with the default options: see [`NatsBus::with_options`].
    ///
    /// # Errors
    /// Those of [`NatsBus::with_options`].
    pub fn new(url: &str) -> Result<NatsBus> {
        NatsBus::with_options(url, NatsBusOptions::new())
    }

    /// Makes a bus over the servers at `nats://[user:password@]host[:port]`, or `nats://token@host`, or `tls://` to
    /// require TLS; several servers of one cluster are separated by commas. The bus connects when it is first used.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`](crate::error::ErrorKind::InvalidOption) if the URL cannot be parsed or an option is
    /// out of range.
    pub fn with_options(url: &str, options: NatsBusOptions) -> Result<NatsBus> {
        Ok(NatsBus(Arc::new(NatsClient::new(Settings::new(url, options)?))))
    }
}

impl Bus for NatsBus {
    fn publish<'a>(&'a self, channel: &'a Channel, messages: &'a [Message]) -> BoxFuture<'a, Result<()>> {
        Box::pin(stream::publish(&self.0, channel, messages))
    }

    fn subscribe<'a>(
        &'a self,
        channel: &'a Channel,
        from: StartPosition,
    ) -> BoxFuture<'a, Result<Box<dyn Subscription>>> {
        Box::pin(async move {
            let wanted = match &from {
                StartPosition::After(position) => Some(StreamPosition::parse(position)?),
                StartPosition::Now | StartPosition::Oldest => None,
            };
            let listener = NatsListener::begin(Arc::clone(&self.0), channel, &from, wanted).await?;
            Ok(Box::new(listener) as Box<dyn Subscription>)
        })
    }
}
