//! A listener of a stream: it reads on, reconnects, and compares its position with the state of the channel.

use std::collections::VecDeque;
use std::sync::Arc;

use ::redis::aio::MultiplexedConnection;

use crate::bus::contract::{BoxFuture, Channel, Delivery, StartPosition, Subscription};
use crate::bus::redis::client::RedisClient;
use crate::bus::redis::entry::{ChannelEntry, EntryId, EntryPosition};
use crate::bus::redis::script::ChannelState;
use crate::error::Result;

/// A subscription.
pub(super) struct RedisListener {
    client: Arc<RedisClient>,
    channel: Channel,
    place: EntryPosition,
    /// True if the next entries are missing and the caller has not been told.
    lost: bool,
    /// Entries that were read and not delivered yet.
    entries: VecDeque<ChannelEntry>,
    connection: Option<MultiplexedConnection>,
    /// The running read. It is kept here so that dropping the future of a delivery loses no entry.
    step: Option<BoxFuture<'static, Result<ReadStep>>>,
}

/// The result of one step: a check of the position if one is due, and a read.
struct ReadStep {
    connection: MultiplexedConnection,
    entries: VecDeque<ChannelEntry>,
    /// The position to go on at, if the next entries are missing.
    lost: Option<EntryPosition>,
}

impl RedisListener {
    /// Determines the start position. No message that is published from now on will be missed.
    pub(super) async fn begin(
        client: Arc<RedisClient>,
        channel: &Channel,
        from: &StartPosition,
        wanted: Option<EntryPosition>,
    ) -> Result<RedisListener> {
        // A connection of its own, because a blocking `XREAD` keeps it busy.
        let mut connection = client.connect_to_listen().await?;
        let id = wanted.as_ref().map_or_else(EntryId::default, |place| place.id);
        let holding = client.read_state(&mut connection, channel, id).await?;
        let (place, lost) = match wanted {
            Some(place) if holding.follows(&place) => (place, false),
            Some(_) => (holding.start(), true),
            None if *from == StartPosition::Oldest => (holding.start(), false),
            None => (holding.end(), false),
        };
        let (channel, connection) = (channel.clone(), Some(connection));
        Ok(RedisListener { client, channel, place, lost, entries: VecDeque::new(), connection, step: None })
    }

    /// Takes the next entry, or returns that entries are missing before it.
    fn take(&mut self) -> Option<Delivery> {
        let entry = self.entries.pop_front()?;
        // By number and incarnation, because IDs have gaps anyway and show nothing.
        if entry.place.mark != self.place.mark.next() {
            // The entry stays queued, and the position moves right before it: the next call delivers it.
            self.place.mark = entry.place.mark.before();
            self.entries.push_front(entry);
            return Some(Delivery::PositionLost);
        }
        let position = entry.place.position();
        self.place = entry.place;
        Some(Delivery::Message(position, entry.body))
    }
}

impl Subscription for RedisListener {
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
                        Arc::clone(&self.client),
                        self.channel.clone(),
                        self.place.clone(),
                        connection,
                    ))
                });
                let found = step.await;
                // Before `?`: a finished future must not be polled again.
                self.step = None;
                let ReadStep { connection, entries, lost } = found?;
                // Only after success: an error may leave an unread answer on the connection, and the next read
                // would take it for its own.
                self.connection = Some(connection);
                self.entries = entries;
                if let Some(place) = lost {
                    (self.place, self.lost) = (place, true);
                }
            }
        })
    }
}

/// Reads the entries behind `place`, and waits for them for a while. On a new connection, and after a read without an
/// entry, compares the position with the state of the channel. After an error the connection is dropped.
async fn step(
    client: Arc<RedisClient>,
    channel: Channel,
    place: EntryPosition,
    connection: Option<MultiplexedConnection>,
) -> Result<ReadStep> {
    let is_new = connection.is_none();
    let mut connection = match connection {
        Some(connection) => connection,
        None => client.connect_to_listen().await?,
    };
    let lost = |holding: &ChannelState| (!holding.follows(&place)).then(|| holding.start());
    // The new connection may lead to a server that was restarted with less data.
    let mut found =
        if is_new { lost(&client.read_state(&mut connection, &channel, place.id).await?) } else { None };
    let mut entries = VecDeque::new();
    if found.is_none() {
        entries = client.read(&mut connection, &channel, place.id).await?;
        // An idle channel and one whose newest entries were lost look the same to `XREAD`.
        if entries.is_empty() {
            found = lost(&client.read_state(&mut connection, &channel, place.id).await?);
        }
    }
    Ok(ReadStep { connection, entries, lost: found })
}
