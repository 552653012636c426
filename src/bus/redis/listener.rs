//! One listener of a stream: reads on, connects again, and compares its place with what the server holds.

use std::collections::VecDeque;
use std::sync::Arc;

use ::redis::aio::MultiplexedConnection;
use bytes::Bytes;

use crate::bus::contract::{BoxFuture, Channel, Delivery, StartPosition, Subscription};
use crate::bus::redis::Inner;
use crate::bus::redis::entry::{Entry, EntryId, Place};
use crate::bus::redis::script::{Holding, Keys};
use crate::bus::server;
use crate::error::{ErrorKind, Result};

/// How many entries are read at once; 32 MiB of the largest.
const READ_ENTRIES_MAX: usize = 64;

/// What `XREAD` answers: nothing, or of each stream its name and its entries with their names and fields.
type Read = Option<Vec<(String, Vec<(String, Vec<Bytes>)>)>>;

pub(super) struct Listener {
    bus: Arc<Inner>,
    channel: Channel,
    place: Place,
    /// Whether what should come next cannot be had.
    lost: bool,
    /// Read and not delivered.
    entries: VecDeque<Entry>,
    connection: Option<MultiplexedConnection>,
    /// A read on its way. Kept here, so that nothing is read twice when the future of a delivery is dropped.
    step: Option<BoxFuture<'static, Result<Step>>>,
}

/// What one read found.
struct Step {
    connection: MultiplexedConnection,
    entries: VecDeque<Entry>,
    /// Where to go on, if what should come next cannot be had.
    lost: Option<Place>,
}

impl Listener {
    /// Finds out where to begin, so that nothing is missed that is published from now on.
    pub(super) async fn begin(
        bus: Arc<Inner>,
        channel: &Channel,
        from: &StartPosition,
        wanted: Option<Place>,
    ) -> Result<Listener> {
        let mut connection = bus.connect_to_listen().await?;
        let id = wanted.as_ref().map_or_else(EntryId::default, |place| place.id);
        let holding = bus.look(&mut connection, channel, id).await?;
        let (place, lost) = match wanted {
            Some(place) if holding.follows(&place) => (place, false),
            Some(_) => (holding.start(), true),
            None if *from == StartPosition::Oldest => (holding.start(), false),
            None => (holding.end(), false),
        };
        let (channel, connection) = (channel.clone(), Some(connection));
        Ok(Listener { bus, channel, place, lost, entries: VecDeque::new(), connection, step: None })
    }

    /// Takes the next entry, or says that one is missing before it.
    fn take(&mut self) -> Option<Delivery> {
        let entry = self.entries.pop_front()?;
        if entry.place.mark != self.place.mark.next() {
            self.place.mark = entry.place.mark.before();
            self.entries.push_front(entry);
            return Some(Delivery::PositionLost);
        }
        let position = entry.place.position();
        self.place = entry.place;
        Some(Delivery::Message(position, entry.body))
    }
}

impl Subscription for Listener {
    fn next(&mut self) -> BoxFuture<'_, Result<Delivery>> {
        Box::pin(async move {
            loop {
                if std::mem::take(&mut self.lost) {
                    return Ok(Delivery::PositionLost);
                }
                if let Some(delivery) = self.take() {
                    return Ok(delivery);
                }
                let step = self.step.get_or_insert_with(|| {
                    let connection = self.connection.take();
                    Box::pin(step(
                        Arc::clone(&self.bus),
                        self.channel.clone(),
                        self.place.clone(),
                        connection,
                    ))
                });
                let found = step.await;
                self.step = None;
                let Step { connection, entries, lost } = found?;
                self.connection = Some(connection);
                self.entries = entries;
                if let Some(place) = lost {
                    (self.place, self.lost) = (place, true);
                }
            }
        })
    }
}

/// Reads what is behind `place`, waiting for it a while. On a new connection, and after waiting in vain, the place is
/// compared with what the server holds. After an error the connection is given up.
async fn step(
    bus: Arc<Inner>,
    channel: Channel,
    place: Place,
    connection: Option<MultiplexedConnection>,
) -> Result<Step> {
    let is_new = connection.is_none();
    let mut connection = match connection {
        Some(connection) => connection,
        None => bus.connect_to_listen().await?,
    };
    let lost = |holding: &Holding| (!holding.follows(&place)).then(|| holding.start());
    let mut found = if is_new { lost(&bus.look(&mut connection, &channel, place.id).await?) } else { None };
    let mut entries = VecDeque::new();
    if found.is_none() {
        entries = bus.read(&mut connection, &channel, place.id).await?;
        if entries.is_empty() {
            found = lost(&bus.look(&mut connection, &channel, place.id).await?);
        }
    }
    Ok(Step { connection, entries, lost: found })
}

impl Inner {
    async fn connect_to_listen(&self) -> Result<MultiplexedConnection> {
        self.connect(self.options.idle + self.options.timeout).await
    }

    async fn look(
        &self,
        connection: &mut MultiplexedConnection,
        channel: &Channel,
        id: EntryId,
    ) -> Result<Holding> {
        let keys = Keys::of(&self.options.prefix, channel);
        let incarnation = server::draw_incarnation()?;
        let looked = self.scripts.look(connection, &keys, &incarnation, id).await;
        looked.map_err(|error| self.error(format_args!("looking what channel {channel} holds"), &error))
    }

    /// What is behind this entry; nothing if nothing came for a while.
    async fn read(
        &self,
        connection: &mut MultiplexedConnection,
        channel: &Channel,
        after: EntryId,
    ) -> Result<VecDeque<Entry>> {
        let keys = Keys::of(&self.options.prefix, channel);
        let mut command = ::redis::cmd("XREAD");
        command.arg("COUNT").arg(READ_ENTRIES_MAX);
        command.arg("BLOCK").arg(u64::try_from(self.options.idle.as_millis()).unwrap_or(u64::MAX));
        command.arg("STREAMS").arg(&keys.stream).arg(after.to_string());
        let read: Read = command
            .query_async(connection)
            .await
            .map_err(|error| self.error(format_args!("reading channel {channel}"), &error))?;
        let entries = read.into_iter().flatten().flat_map(|(_, entries)| entries);
        let own = entries.map(|(id, fields)| {
            Entry::of(&id, &fields).ok_or_else(|| {
                let why = format!("entry {} of stream {} is not of this bus", id.escape_debug(), keys.stream);
                self.server.error(ErrorKind::BusFailed, format_args!("reading channel {channel}"), why)
            })
        });
        own.collect()
    }
}
