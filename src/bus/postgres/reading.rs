//! The subscriptions of a Postgres bus: reading the outbox from a position on, and noticing that a position is lost.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::task::JoinHandle;
use tokio_postgres::Row;

use crate::bus::contract::{BoxFuture, Channel, Delivery, Position, StartPosition, Subscription};
use crate::bus::event::{Directive, Event, Payload};
use crate::bus::postgres::client::PostgresClient;
use crate::error::Result;
use crate::ids::{Epoch, Key, NamespaceName, Seq};
use crate::invalidation::Invalidation;
use crate::postgres::driver::{Driver, ended};
use crate::postgres::failure::{CallFailure, ErrorClass};
use crate::postgres::pool::{Session, column, within, xid};
use crate::seam::backoff::Backoff;

/// The delay before the next read if committed rows wait for a running transaction; doubled up to the poll interval.
const BLOCKED_DELAY_FIRST: Duration = Duration::from_millis(2);
/// The delays before a new connection after failures.
const RECONNECT: Backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(2));

/// A position in the outbox: behind a row, or between two.
#[derive(Clone, Debug, PartialEq, Eq)]
struct OutboxPosition {
    incarnation: String,
    xid: u64,
    id: i64,
    /// The time when the row was written, in microseconds: after the restore of an earlier backup another row may have
    /// the same numbers. For a position without a row, the time when it was determined.
    stamp: i64,
    /// True if there is, or was, a row with these numbers.
    of_row: bool,
}

/// The reader of one channel. It moves to a task of the driver for each read, and back.
pub(super) struct OutboxReader {
    client: Arc<PostgresClient>,
    channel: String,
    position: Option<OutboxPosition>,
    /// A connection that listens to notifications.
    session: Option<Session>,
    failures: u64,
}

type Read = (OutboxReader, Result<VecDeque<Delivery>, CallFailure>);

/// A subscription. A read goes on even if its future is dropped, and the next call takes its result.
pub(super) struct PostgresListener {
    driver: Arc<Driver>,
    client: Arc<PostgresClient>,
    ready: VecDeque<Delivery>,
    /// `None` while a read is running.
    reader: Option<OutboxReader>,
    reading: Option<JoinHandle<Read>>,
}

impl OutboxPosition {
    fn position(&self) -> Position {
        Position::new(format!("{}:{}:{}:{}", self.incarnation, self.xid, self.id, self.stamp))
    }

    fn parse(position: &Position) -> Option<OutboxPosition> {
        let mut parts = position.as_str().split(':');
        let (incarnation, xid) = (parts.next()?, parts.next()?);
        let (id, stamp) = (parts.next()?, parts.next()?);
        let place = OutboxPosition {
            incarnation: incarnation.to_owned(),
            xid: xid.parse().ok()?,
            id: id.parse().ok()?,
            stamp: stamp.parse().ok()?,
            of_row: true,
        };
        // Text with more parts is a position of another bus.
        (parts.next().is_none() && !place.incarnation.is_empty()).then_some(place)
    }
}

impl OutboxReader {
    pub(super) fn new(client: Arc<PostgresClient>, channel: &Channel) -> OutboxReader {
        let channel = channel.as_str().to_owned();
        OutboxReader { client, channel, position: None, session: None, failures: 0 }
    }

    /// Connects and determines the start position.
    pub(super) async fn begin(&mut self, from: &StartPosition) -> Result<(), CallFailure> {
        const DOING: &str = "finding where to begin";
        let mut session = self.connected().await?;
        let place = match from {
            StartPosition::After(position) => OutboxPosition::parse(position).ok_or_else(|| {
                let shown = position.as_str().escape_debug();
                CallFailure::new(ErrorClass::Permanent, format!("it has no position \"{shown}\""))
            })?,
            StartPosition::Oldest => {
                let statement = session.statement(&self.client.read.oldest).await?;
                let rows = session.rows(DOING, &statement, &[&self.channel]).await?;
                let row = rows.first().ok_or_else(no_answer)?;
                edge(column(row, 0)?, xid(row, 1)?, column(row, 2)?, 0)
            }
            StartPosition::Now => {
                let statement = session.statement(&self.client.read.now).await?;
                let rows = session.rows(DOING, &statement, &[&self.channel]).await?;
                let row = rows.first().ok_or_else(no_answer)?;
                // Behind all rows of transactions that have ended: whatever commits from now on has a number of at
                // least `xmin`.
                edge(column(row, 0)?, xid(row, 1)?.saturating_sub(1), i64::MAX, column(row, 2)?)
            }
        };
        self.position = Some(place);
        self.session = Some(session);
        Ok(())
    }

    /// Returns a connection that listens to notifications, and creates missing tables.
    async fn connected(&mut self) -> Result<Session, CallFailure> {
        if let Some(session) = self.session.take() {
            return Ok(session);
        }
        // A connection of its own, because `LISTEN` belongs to a connection.
        let session = Session::open(&self.client.server).await?;
        self.client.outbox.ensure(&session).await?;
        // Before the first read: a row that is committed in between is then notified, and read.
        session.run("ordering wake-ups", &self.client.read.listen).await?;
        Ok(session)
    }

    /// Waits for deliveries, after a delay if the last read failed.
    async fn run(mut self) -> Read {
        if self.failures > 0 {
            tokio::time::sleep(RECONNECT.delay(self.failures)).await;
        }
        let read = self.wait().await;
        match &read {
            Ok(_) => self.failures = 0,
            Err(_) => {
                self.failures = self.failures.saturating_add(1);
                // The connection may be in the middle of an answer.
                if let Some(session) = self.session.take() {
                    session.abort();
                }
            }
        }
        (self, read)
    }

    async fn wait(&mut self) -> Result<VecDeque<Delivery>, CallFailure> {
        let client = Arc::clone(&self.client);
        let limit = client.server.call_timeout;
        let while_blocked = Backoff::new(BLOCKED_DELAY_FIRST, client.poll_interval);
        let mut reads = 0;
        loop {
            let mut session = within("connecting", limit, self.connected()).await?;
            let mut notifications = session.notifications();
            // Marked before the read: a notification that comes during the read must cause another one.
            notifications.mark_unchanged();
            let read = within("reading", limit, self.read(&mut session)).await;
            // Kept before `?`, so that `run` can close it after an error.
            self.session = Some(session);
            let (ready, is_blocked) = read?;
            if !ready.is_empty() {
                return Ok(ready);
            }
            reads += 1;
            let delay = if is_blocked { while_blocked.delay(reads) } else { client.poll_interval };
            tokio::select! {
                changed = notifications.changed() => {
                    changed.map_err(|_| CallFailure::new(ErrorClass::Transient, "the connection was closed"))?;
                    reads = 0;
                }
                () = tokio::time::sleep(delay) => {}
            }
        }
    }

    /// Reads the next rows. Also returns whether committed rows wait for a running transaction.
    async fn read(&mut self, session: &mut Session) -> Result<(VecDeque<Delivery>, bool), CallFailure> {
        let Some(place) = &mut self.position else { return Err(no_answer()) };
        let statement = session.statement(&self.client.read.read).await?;
        let text = place.xid.to_string();
        let rows =
            session.rows("reading", &statement, &[&self.channel, &text, &place.id, &place.stamp]).await?;
        let head = rows.first().ok_or_else(no_answer)?;
        let incarnation: &str = column(head, 0)?;
        let (xmin, trimmed) = (xid(head, 1)?, (xid(head, 2)?, column::<i64>(head, 3)?));
        let (found, is_blocked): (bool, bool) = (column(head, 4)?, column(head, 5)?);
        let (at, touched): (_, i64) = ((place.xid, place.id), column(head, 16)?);
        let is_there = match place.of_row {
            true => found || at == trimmed,
            // Lost if a transaction may still write at this position, or if the position is newer than all of this
            // database: then a backup was restored, and the numbers may be given out again.
            false => place.xid < xmin && place.stamp <= touched,
        };
        if place.incarnation != incarnation || at < trimmed || !is_there {
            // Go on with the oldest row that is left.
            *place = edge(incarnation, trimmed.0, trimmed.1, 0);
            return Ok((VecDeque::from([Delivery::PositionLost]), is_blocked));
        }
        let mut ready = VecDeque::with_capacity(rows.len());
        for row in &rows {
            // The left join gives one row without an event if there is nothing to read.
            let Some(id) = column(row, 7)? else { continue };
            let body = body(row)?;
            (place.xid, place.id, place.stamp, place.of_row) = (xid(row, 6)?, id, column(row, 15)?, true);
            ready.push_back(Delivery::Message(place.position(), body));
        }
        Ok((ready, is_blocked))
    }
}

impl PostgresListener {
    pub(super) fn new(driver: Arc<Driver>, reader: OutboxReader) -> PostgresListener {
        let client = Arc::clone(&reader.client);
        PostgresListener { driver, client, ready: VecDeque::new(), reader: Some(reader), reading: None }
    }
}

impl Subscription for PostgresListener {
    fn next(&mut self) -> BoxFuture<'_, Result<Delivery>> {
        Box::pin(async move {
            loop {
                if let Some(delivery) = self.ready.pop_front() {
                    return Ok(delivery);
                }
                if let Some(reader) = self.reader.take() {
                    self.reading = Some(self.driver.begin(reader.run()));
                }
                let reading = self.reading.as_mut().ok_or_else(ended)?;
                // If the future is dropped here, the read stays in `self`.
                let read = reading.await;
                // Before the result is looked at: a finished task must not be awaited again.
                self.reading = None;
                let (reader, read) = read.map_err(|_| ended())?;
                self.reader = Some(reader);
                self.ready = read.map_err(|failure| self.client.error(failure))?;
            }
        })
    }
}

impl Drop for PostgresListener {
    fn drop(&mut self) {
        // Nobody takes the result any more, and the read would keep its connection until the next message.
        if let Some(reading) = &self.reading {
            reading.abort();
        }
    }
}

/// Makes a position without a row.
fn edge(incarnation: &str, xid: u64, id: i64, stamp: i64) -> OutboxPosition {
    OutboxPosition { incarnation: incarnation.to_owned(), xid, id, stamp, of_row: false }
}

fn no_answer() -> CallFailure {
    CallFailure::new(ErrorClass::Permanent, "the outbox gives no answer")
}

/// Converts a row into the bytes of an event.
fn body(row: &Row) -> Result<Bytes, CallFailure> {
    if let Some(event) = column::<Option<&[u8]>>(row, 8)? {
        return Ok(Bytes::copy_from_slice(event));
    }
    let (operation, namespace): (Option<&str>, Option<&str>) = (column(row, 9)?, column(row, 10)?);
    let key = encoded_key(column(row, 11)?, column(row, 12)?, column(row, 13)?);
    let version = column::<Option<i64>>(row, 14)?.and_then(|version| u64::try_from(version).ok());
    let directive = directive(operation, namespace, key.as_deref(), Seq(version.unwrap_or_default()));
    let payload = Payload::Directives(vec![directive]);
    // Outside of an owner's chain: the row of a trigger has no place in the order of its numbers.
    let event = Event { epoch: Epoch(0), after: Seq::ZERO, until: Seq::ZERO, as_of_us: 0, payload };
    event.encode().map_err(|error| CallFailure::new(ErrorClass::Permanent, format!("{error:#}")))
}

/// Converts a row without an event into a directive. If the key is invalid, the directive covers the namespace; if the
/// namespace is invalid, everything.
fn directive(
    operation: Option<&str>,
    namespace: Option<&str>,
    key: Option<&[u8]>,
    version: Seq,
) -> Directive {
    let Some(Ok(name)) = namespace.map(NamespaceName::parse) else {
        return Directive::Invalidate(Invalidation::Everything, version);
    };
    let key = key.map(|key| Key::new(&name, key));
    match (operation, key) {
        (Some("invalidate"), Some(Ok(key))) => Directive::Invalidate(Invalidation::Key(key), version),
        (Some("remove"), Some(Ok(key))) => Directive::Remove(key, version),
        // An operation of a later version, or a bad key: rather too much is invalidated than too little.
        _ => Directive::Invalidate(Invalidation::Namespace(name), version),
    }
}

/// Encodes a key like the default codec: a number in 8 bytes, a text preceded by its length, little-endian.
fn encoded_key(bytes: Option<&[u8]>, text: Option<&str>, number: Option<i64>) -> Option<Bytes> {
    let of_text = |text: &str| {
        let mut encoded = BytesMut::with_capacity(8 + text.len());
        encoded.put_u64_le(text.len() as u64);
        encoded.put_slice(text.as_bytes());
        encoded.freeze()
    };
    bytes
        .map(Bytes::copy_from_slice)
        .or_else(|| text.map(of_text))
        .or_else(|| number.map(|number| Bytes::copy_from_slice(&number.to_le_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_survives_and_another_buss_is_none() {
        let place = OutboxPosition {
            incarnation: "a1-7-00000001".into(),
            xid: u64::MAX,
            id: 7,
            stamp: -3,
            of_row: true,
        };
        assert_eq!(OutboxPosition::parse(&place.position()), Some(place));
        for other in ["", "17", "a:1:2", "a:1:2:3:4", ":1:2:3", "a:x:1:2", "1700-0", "a:-1:2:3"] {
            assert_eq!(OutboxPosition::parse(&Position::new(other)), None, "{other}");
        }
    }

    #[test]
    fn what_a_row_cannot_say_of_a_key_it_says_of_more() {
        let name = NamespaceName::parse("products").unwrap();
        let key = Key::new(&name, b"7").unwrap();
        let said = |operation, namespace, key| directive(operation, namespace, key, Seq::ZERO);
        let seven = Some(b"7".as_slice());
        assert_eq!(said(Some("remove"), Some("products"), seven), Directive::Remove(key.clone(), Seq::ZERO));
        assert_eq!(
            said(Some("invalidate"), Some("products"), seven),
            Directive::Invalidate(Invalidation::Key(key), Seq::ZERO)
        );
        let all = Directive::Invalidate(Invalidation::Namespace(name), Seq::ZERO);
        let long = vec![0; crate::ids::KEY_BYTES_MAX];
        assert_eq!(said(Some("namespace"), Some("products"), seven), all);
        assert_eq!(said(Some("invalidate"), Some("products"), None), all);
        assert_eq!(said(Some("invalidate"), Some("products"), Some(&long)), all);
        for bad in [None, Some(""), Some("!tokens")] {
            assert_eq!(
                said(Some("remove"), bad, seven),
                Directive::Invalidate(Invalidation::Everything, Seq::ZERO)
            );
        }
    }
}
