//! A bus within one process: for several layers of it, and for tests.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use tokio::sync::watch;

use crate::bus::contract::{
    BoxFuture, Bus, Channel, Delivery, Message, Position, StartPosition, Subscription,
};
use crate::error::{Error, ErrorKind, Result};
use crate::seam::sync::{Mutex, MutexGuard};

/// How many messages a channel holds unless it is told otherwise.
const RETAINED_DEFAULT: usize = 65_536;

/// A bus within one process. Cheap to clone; all clones are one bus.
///
/// Each channel holds its last messages, 65,536 unless told otherwise; who comes too late for one is told that it has
/// lost its position. Nothing outlives the process.
#[derive(Clone)]
pub struct LocalBus {
    channels: Arc<Mutex<HashMap<Channel, Arc<Log>>>>,
    retained: usize,
}

struct Log {
    held: Mutex<Held>,
    /// The number behind the last message.
    end: watch::Sender<u64>,
}

#[derive(Default)]
struct Held {
    messages: VecDeque<Bytes>,
    /// The number of the first of them.
    first: u64,
}

struct Listener {
    log: Arc<Log>,
    /// The number of what comes next.
    next: u64,
    /// Whether what should have come next may not be what has that number.
    lost: bool,
}

impl Default for LocalBus {
    fn default() -> Self {
        LocalBus::new(RETAINED_DEFAULT)
    }
}

impl LocalBus {
    /// A bus whose channels hold so many messages, one at the least.
    #[must_use]
    pub fn new(retained: usize) -> LocalBus {
        LocalBus { channels: Arc::default(), retained: retained.max(1) }
    }

    /// Forgets the messages of a channel, as a bus does whose retention is short.
    pub fn trim(&self, channel: &Channel) {
        let log = self.log(channel);
        let mut held = log.held();
        let count = held.messages.len();
        held.messages.clear();
        held.first += u64::try_from(count).unwrap_or(u64::MAX);
    }

    fn log(&self, channel: &Channel) -> Arc<Log> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(Log { held: Mutex::default(), end: watch::Sender::new(0) });
        Arc::clone(channels.entry(channel.clone()).or_insert_with(new))
    }
}

impl Log {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn end(&self) -> u64 {
        self.first + u64::try_from(self.messages.len()).unwrap_or(u64::MAX)
    }
}

impl Bus for LocalBus {
    fn publish<'a>(&'a self, channel: &'a Channel, messages: &'a [Message]) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            messages.iter().try_for_each(Message::check)?;
            let log = self.log(channel);
            let end = {
                let mut held = log.held();
                for message in messages {
                    held.messages.push_back(message.body.clone());
                    if held.messages.len() > self.retained {
                        held.messages.pop_front();
                        held.first += 1;
                    }
                }
                held.end()
            };
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
                        // A number that was never given is of another bus, or of this one's earlier life.
                        (next.min(held.end()), next > held.end())
                    }
                }
            };
            Ok(Box::new(Listener { log, next, lost }) as Box<dyn Subscription>)
        })
    }
}

fn number(position: &Position) -> Result<u64> {
    position.as_str().parse().map_err(|_| {
        let context = format!("the local bus has no position \"{}\"", position.as_str().escape_debug());
        Error::new(ErrorKind::BusFailed, context)
    })
}

impl Subscription for Listener {
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
                let mut ends = self.log.end.subscribe();
                let waited = ends.wait_for(|known| *known > end).await;
                waited.map_err(|_| Error::new(ErrorKind::Closed, "the local bus is gone"))?;
            }
        })
    }
}
