//! A bus over Redis Streams (feature `redis`); Valkey works the same. Each channel is a stream.
//!
//! Redis hides its losses: a reader behind an entry that was trimmed gets the remaining entries without any notice,
//! `XINFO STREAM` reports only deletions of single entries, and a stream that was deleted and created again looks like
//! a long one. So each entry carries its own identification. A script adds it together with a *number*, which grows by
//! one with each entry of the channel, and the *incarnation* of the channel, which was drawn when the numbering began
//! (`entry`). Both are in a hash beside the stream. The next entry of a listener must have the next number of the same
//! incarnation; otherwise entries are missing ([`crate::bus::Delivery::PositionLost`]). If entries were lost and no
//! later one has come, the listener notices by comparing its position with the state of the channel, whenever it
//! connects and after every idle read.

mod client;
mod entry;
mod listener;
mod script;

use std::fmt;
use std::sync::Arc;

use crate::bus::contract::{BoxFuture, Bus, Channel, Message, StartPosition, Subscription};
use crate::bus::redis::client::RedisClient;
use crate::bus::redis::entry::EntryPosition;
use crate::bus::redis::listener::RedisListener;
use crate::error::Result;

pub use crate::bus::redis::client::RedisBusOptions;

/// A bus over Redis Streams. Cheap to clone; all clones are the same bus.
///
/// All publishing shares one connection, and each subscription has its own. A message is as durable as the server makes
/// it: with `appendfsync always` it survives a crash of the server's machine; by default the messages of a second may
/// be lost, which listeners notice. See also [`crate::manual::buses`].
#[derive(Clone)]
pub struct RedisBus(Arc<RedisClient>);

impl fmt::Debug for RedisBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBus").field("server", &self.0.server).finish_non_exhaustive()
    }
}

impl RedisBus {
    /// Makes a bus over the server at `url`, with the default options: see [`RedisBus::with_options`].
    ///
    /// # Errors
    /// Those of [`RedisBus::with_options`].
    pub fn new(url: &str) -> Result<RedisBus> {
        RedisBus::with_options(url, RedisBusOptions::new())
    }

    /// Makes a bus over the server at `redis://[user][:password@]host[:port][/database]`, or `rediss://` for TLS
    /// (feature `redis-tls`), or `unix:///path`. The bus connects when it is first used.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`](crate::error::ErrorKind::InvalidOption) if the URL cannot be parsed or needs TLS in
    /// a build without it, or if an option is out of range.
    pub fn with_options(url: &str, options: RedisBusOptions) -> Result<RedisBus> {
        Ok(RedisBus(Arc::new(RedisClient::new(url, options)?)))
    }
}

impl Bus for RedisBus {
    fn publish<'a>(&'a self, channel: &'a Channel, messages: &'a [Message]) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.0.publish(channel, messages))
    }

    fn subscribe<'a>(
        &'a self,
        channel: &'a Channel,
        from: StartPosition,
    ) -> BoxFuture<'a, Result<Box<dyn Subscription>>> {
        Box::pin(async move {
            let wanted = match &from {
                StartPosition::After(position) => Some(EntryPosition::parse(position)?),
                StartPosition::Now | StartPosition::Oldest => None,
            };
            let listener = RedisListener::begin(Arc::clone(&self.0), channel, &from, wanted).await?;
            Ok(Box::new(listener) as Box<dyn Subscription>)
        })
    }
}
