//! A bus within one process, for several layers of it and for tests.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use tokio::sync::watch;

use crate::bus::contract::{
    BoxFuture, Bus, Channel, Delivery, Message, Position, StartPosition, Subscription,
};
use crate::error::{Error, ErrorKind, Result};
use crate::seam::sync::{Mutex, MutexGuard};

/// The default retention of a channel, in messages.
const RETAINED_DEFAULT: usize = 65_536;

/// A bus within one process. Cheap to clone; all clones are the same bus.
///
/// Each channel keeps its last messages, 65,536 by default. A listener that comes too late for a message gets
/// [`Delivery::PositionLost`]. Nothing survives the process.
#[derive(Clone)]
pub struct LocalBus {
    channels: Arc<Mutex<HashMap<Channel, Arc<ChannelLog>>>>,
    retained: usize,
}

struct ChannelLog {
    held: Mutex<RetainedMessages>,
    /// The number of the next message.
    end: watch::Sender<u64>,
}

#[derive(Default)]
struct RetainedMessages {
    messages: VecDeque<Bytes>,
    /// The number of the first message in `messages`.
    first: u64,
}

struct LocalListener {
    log: Arc<ChannelLog>,
    /// The number of the next message to deliver.
    next: u64,
    /// True if the number of the next message is not of this channel, so that messages may be missing.
    lost: bool,
}

impl fmt::Debug for LocalBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalBus").field("retained", &self.retained).finish_non_exhaustive()
    }
}

impl Default for LocalBus {
    fn default() -> Self {
        LocalBus::new(RETAINED_DEFAULT)
    }
}

impl LocalBus {
    /// Makes a bus whose channels keep so many messages, at least one.
    #[must_use]
    pub fn new(retained: usize) -> LocalBus {
        // With none retained no listener would ever get a message.
        LocalBus { channels: Arc::default(), retained: retained.max(1) }
    }

    /// Removes all messages of a channel, as if the retention were short.
    pub fn trim(&self, channel: &Channel) {
        let log = self.log(channel);
        let mut held = log.held();
        let count = held.messages.len();
        held.messages.clear();
        // The numbers go on: a position before the trim must be found lost and not be filled by new messages.
        held.first += u64::try_from(count).unwrap_or(u64::MAX);
    }

    fn log(&self, channel: &Channel) -> Arc<ChannelLog> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(ChannelLog { held: Mutex::default(), end: watch::Sender::new(0) });
        Arc::clone(channels.entry(channel.clone()).or_insert_with(new))
    }
}

impl ChannelLog {
    fn held(&self) -> MutexGuard<'_, RetainedMessages> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RetainedMessages {
    fn end(&self) -> u64 {
        self.first + u64::try_from(self.messages.len()).unwrap_or(u64::MAX)
    }
}

impl Bus for LocalBus {
    fn publish<'a>(&'a self, channel: &'a Channel, messages: &'a [Message]) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            // All are checked before the first one is published: a refused call must publish nothing.
            messages.iter().try_for_each(Message::check)?;
            let log = self.log(channel);
            let end = {
                let mut held = log.held();
                for message in messages {
                    held.messages.push_back(message.body.clone());
                    // The oldest goes, because a publisher must not wait for a listener that has stopped.
                    if held.messages.len() > self.retained {
                        held.messages.pop_front();
                        held.first += 1;
                    }
                }
                held.end()
            };
            // Publishers get here after the lock is released, so an earlier end may come after a later one. It must not
            // move the end back.
            log.end.send_if_modified(|known| {
                let newer = end > *known;
                *known = end.max(*known);
                newer
            });
            Ok(())
        })
    }

    fn subscribe<'a>(
        &'a self,
        channel: &'a Channel,
        from: StartPosition,
    ) -> BoxFuture<'a, Result<Box<dyn Subscription>>> {
        Box::pin(async move {
            let log = self.log(channel);
            let (next, lost) = {
                let held = log.held();
                match &from {
                    StartPosition::Now => (held.end(), false),
                    StartPosition::Oldest => (held.first, false),
                    StartPosition::After(position) => {
                        let next = number(position)?.saturating_add(1);
                        // A number beyond the end is of another bus, or of an earlier process.
                        (next.min(held.end()), next > held.end())
                    }
                }
            };
            Ok(Box::new(LocalListener { log, next, lost }) as Box<dyn Subscription>)
        })
    }
}

fn number(position: &Position) -> Result<u64> {
    position.as_str().parse().map_err(|_| {
        let context = format!("the local bus has no position \"{}\"", position.as_str().escape_debug());
        Error::new(ErrorKind::BusFailed, context)
    })
}

impl Subscription for LocalListener {
    fn next(&mut self) -> BoxFuture<'_, Result<Delivery>> {
        Box::pin(async move {
            loop {
                let end = {
                    let held = self.log.held();
                    if self.lost || self.next < held.first {
                        (self.next, self.lost) = (self.next.max(held.first), false);
                        return Ok(Delivery::PositionLost);
                    }
                    let at = usize::try_from(self.next - held.first).unwrap_or(usize::MAX);
                    if let Some(body) = held.messages.get(at) {
                        let position = Position::new(self.next.to_string());
                        self.next += 1;
                        return Ok(Delivery::Message(position, body.clone()));
                    }
                    held.end()
                };
                // Waits past the end that was read under the lock, so a message that came since ends the wait at
                // once.
                let mut ends = self.log.end.subscribe();
                let waited = ends.wait_for(|known| *known > end).await;
                waited.map_err(|_| Error::new(ErrorKind::Closed, "the local bus is gone"))?;
            }
        })
    }
}
