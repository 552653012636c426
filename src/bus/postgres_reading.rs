//! How a subscription reads the outbox: from which place on, when to look, and when its place is lost.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::task::JoinHandle;
use tokio_postgres::Row;

use crate::bus::contract::{BoxFuture, Channel, Delivery, Position, StartPosition, Subscription};
use crate::bus::event::{Directive, Event, Payload};
use crate::bus::postgres::Shared;
use crate::error::Result;
use crate::ids::{Epoch, Key, NamespaceName, Seq};
use crate::postgres::driver::{Driver, ended};
use crate::postgres::failure::{Failure, Sort};
use crate::postgres::outbox::incarnation_sql;
use crate::postgres::pool::{Session, column, within, xid};

/// How many rows are read at once; at the most 32 MiB.
const ROWS_AT_ONCE: usize = 64;
/// When to look again for rows that are committed and held up; doubled up to the poll interval.
const HELD_PAUSE_FIRST: Duration = Duration::from_millis(2);
/// How long to wait before connecting after a failure; doubled up to the second.
const RECONNECT_PAUSE_FIRST: Duration = Duration::from_millis(20);
const RECONNECT_PAUSE_MAX: Duration = Duration::from_secs(2);

/// The statements for one schema.
pub(crate) struct ReadSql {
    read: String,
    oldest: String,
    now: String,
    listen: String,
    pub(crate) held_up: String,
}

/// A place in the outbox: behind which row, or between which.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    incarnation: String,
    xid: u64,
    id: i64,
    /// When its row was written, in microseconds: after a return to an earlier copy of the database another row may
    /// have the same numbers. Of a place without a row, when it was resolved.
    stamp: i64,
    /// Whether there is, or was, a row of these numbers.
    of_row: bool,
}

/// A place, as far as it was resolved.
enum Standing {
    At(Place),
    Nowhere,
}

/// Reads one channel. Moves to the driver's thread for each read, and back.
pub(crate) struct Reader {
    shared: Arc<Shared>,
    channel: String,
    standing: Standing,
    /// Connected, and listening.
    session: Option<Session>,
    failures: u32,
}

type Read = (Reader, Result<VecDeque<Delivery>, Failure>);

/// A subscription. A read that is under way goes on though nobody waits for it, and is taken up by the next call.
pub(crate) struct Listener {
    driver: Arc<Driver>,
    shared: Arc<Shared>,
    ready: VecDeque<Delivery>,
    /// `None` while a read is under way.
    reader: Option<Reader>,
    reading: Option<JoinHandle<Read>>,
}

impl ReadSql {
    /// Of a schema whose name was checked.
    pub(crate) fn new(schema: &str) -> ReadSql {
        let incarnation = incarnation_sql(schema);
        let stamp = |column: &str| format!("(extract(epoch FROM {column}) * 1000000)::int8");
        let (created, touched, now) =
            (stamp("o.created"), stamp("c.touched"), stamp("outbox_channel.touched"));
        ReadSql {
            // One statement, so one snapshot: what is read, what was trimmed, and what still runs belong together.
            read: format!(
                "WITH h AS MATERIALIZED ( \
                   SELECT {incarnation} AS incarnation, pg_snapshot_xmin(pg_current_snapshot()) AS xmin, \
                     coalesce(c.trimmed_xid, '0'::xid8) AS trimmed_xid, coalesce(c.trimmed_id, 0) AS trimmed_id, \
                     EXISTS (SELECT FROM \"{schema}\".outbox o \
                       WHERE o.channel = $1 AND o.xid = $2::text::xid8 AND o.id = $3 AND {created} = $4) AS found, \
                     coalesce({touched}, 0) AS touched, \
                     EXISTS (SELECT FROM \"{schema}\".outbox o \
                       WHERE o.channel = $1 AND o.xid >= pg_snapshot_xmin(pg_current_snapshot())) AS held \
                   FROM (SELECT) one LEFT JOIN \"{schema}\".outbox_channel c ON c.channel = $1) \
                 SELECT h.incarnation, h.xmin::text, h.trimmed_xid::text, h.trimmed_id, h.found, h.held, \
                   r.xid::text, r.id, r.event, r.operation, r.namespace, r.key_bytes, r.key_text, r.key_number, \
                   r.version, r.stamp, h.touched \
                 FROM h LEFT JOIN LATERAL ( \
                   SELECT o.*, {created} AS stamp FROM \"{schema}\".outbox o \
                   WHERE o.channel = $1 AND (o.xid, o.id) > ($2::text::xid8, $3) AND o.xid < h.xmin \
                   ORDER BY o.xid, o.id LIMIT {ROWS_AT_ONCE}) r ON true \
                 ORDER BY r.xid, r.id"
            ),
            oldest: format!(
                "SELECT {incarnation}, coalesce(c.trimmed_xid, '0'::xid8)::text, coalesce(c.trimmed_id, 0) \
                 FROM (SELECT) one LEFT JOIN \"{schema}\".outbox_channel c ON c.channel = $1"
            ),
            // A durable write: it makes sure that after a crash no older transaction's number is given out again,
            // behind which the subscription would then stand.
            now: format!(
                "INSERT INTO \"{schema}\".outbox_channel (channel) VALUES ($1) \
                 ON CONFLICT (channel) DO UPDATE \
                   SET touched = greatest(outbox_channel.touched, clock_timestamp()) \
                 RETURNING {incarnation}, pg_snapshot_xmin(pg_current_snapshot())::text, {now}"
            ),
            listen: format!("LISTEN \"{schema}_outbox\""),
            held_up: format!(
                "SELECT count(*), extract(epoch FROM clock_timestamp() - min(o.created))::float8, \
                   (SELECT extract(epoch FROM clock_timestamp() - min(t.begun))::float8 FROM ( \
                     SELECT xact_start AS begun FROM pg_stat_activity WHERE backend_xid IS NOT NULL \
                     UNION ALL SELECT prepared FROM pg_prepared_xacts) t) \
                 FROM \"{schema}\".outbox o \
                 WHERE o.channel = $1 AND o.xid >= pg_snapshot_xmin(pg_current_snapshot())"
            ),
        }
    }
}

impl Place {
    fn position(&self) -> Position {
        Position::new(format!("{}:{}:{}:{}", self.incarnation, self.xid, self.id, self.stamp))
    }

    fn parse(position: &Position) -> Option<Place> {
        let mut parts = position.as_str().split(':');
        let (incarnation, xid) = (parts.next()?, parts.next()?);
        let (id, stamp) = (parts.next()?, parts.next()?);
        let place = Place {
            incarnation: incarnation.to_owned(),
            xid: xid.parse().ok()?,
            id: id.parse().ok()?,
            stamp: stamp.parse().ok()?,
            of_row: true,
        };
        (parts.next().is_none() && !place.incarnation.is_empty()).then_some(place)
    }
}

impl Reader {
    pub(crate) fn new(shared: Arc<Shared>, channel: &Channel) -> Reader {
        let channel = channel.as_str().to_owned();
        Reader { shared, channel, standing: Standing::Nowhere, session: None, failures: 0 }
    }

    /// Connects and resolves where to begin.
    pub(crate) async fn begin(&mut self, from: &StartPosition) -> Result<(), Failure> {
        const DOING: &str = "finding where to begin";
        let mut session = self.connected().await?;
        let place = match from {
            StartPosition::After(position) => Place::parse(position).ok_or_else(|| {
                let shown = position.as_str().escape_debug();
                Failure::new(Sort::Lasting, format!("it has no position \"{shown}\""))
            })?,
            StartPosition::Oldest => {
                let statement = session.statement(&self.shared.read.oldest).await?;
                let rows = session.rows(DOING, &statement, &[&self.channel]).await?;
                let row = rows.first().ok_or_else(no_answer)?;
                edge(column(row, 0)?, xid(row, 1)?, column(row, 2)?, 0)
            }
            StartPosition::Now => {
                let statement = session.statement(&self.shared.read.now).await?;
                let rows = session.rows(DOING, &statement, &[&self.channel]).await?;
                let row = rows.first().ok_or_else(no_answer)?;
                edge(column(row, 0)?, xid(row, 1)?.saturating_sub(1), i64::MAX, column(row, 2)?)
            }
        };
        self.standing = Standing::At(place);
        self.session = Some(session);
        Ok(())
    }

    /// The connection, with the table there and wake-ups ordered.
    async fn connected(&mut self) -> Result<Session, Failure> {
        if let Some(session) = self.session.take() {
            return Ok(session);
        }
        let session = Session::open(&self.shared.server).await?;
        self.shared.outbox.ensure(&session).await?;
        session.run("ordering wake-ups", &self.shared.read.listen).await?;
        Ok(session)
    }

    /// Waits until there is something to deliver.
    async fn run(mut self) -> Read {
        if self.failures > 0 {
            let pause = RECONNECT_PAUSE_FIRST.saturating_mul(1 << self.failures.min(16).saturating_sub(1));
            tokio::time::sleep(pause.min(RECONNECT_PAUSE_MAX)).await;
        }
        let read = self.wait().await;
        match &read {
            Ok(_) => self.failures = 0,
            Err(_) => {
                self.failures = self.failures.saturating_add(1);
                if let Some(session) = self.session.take() {
                    session.cut();
                }
            }
        }
        (self, read)
    }

    async fn wait(&mut self) -> Result<VecDeque<Delivery>, Failure> {
        let shared = Arc::clone(&self.shared);
        let limit = shared.server.call_timeout;
        let mut pause = HELD_PAUSE_FIRST;
        loop {
            let mut session = within("connecting", limit, self.connected()).await?;
            let mut news = session.news();
            news.mark_unchanged();
            let read = within("reading", limit, self.read(&mut session)).await;
            self.session = Some(session);
            let (ready, held) = read?;
            if !ready.is_empty() {
                return Ok(ready);
            }
            let now = if held { pause.min(shared.poll_interval) } else { shared.poll_interval };
            pause = pause.saturating_mul(2);
            tokio::select! {
                changed = news.changed() => {
                    changed.map_err(|_| Failure::new(Sort::Passing, "the connection was closed"))?;
                    pause = HELD_PAUSE_FIRST;
                }
                () = tokio::time::sleep(now) => {}
            }
        }
    }

    /// Reads what comes next, and says whether something is held up.
    async fn read(&mut self, session: &mut Session) -> Result<(VecDeque<Delivery>, bool), Failure> {
        let Standing::At(place) = &mut self.standing else { return Err(no_answer()) };
        let statement = session.statement(&self.shared.read.read).await?;
        let text = place.xid.to_string();
        let rows =
            session.rows("reading", &statement, &[&self.channel, &text, &place.id, &place.stamp]).await?;
        let head = rows.first().ok_or_else(no_answer)?;
        let incarnation: &str = column(head, 0)?;
        let (xmin, trimmed) = (xid(head, 1)?, (xid(head, 2)?, column::<i64>(head, 3)?));
        let (found, held): (bool, bool) = (column(head, 4)?, column(head, 5)?);
        let (at, touched): (_, i64) = ((place.xid, place.id), column(head, 16)?);
        let is_there = match place.of_row {
            true => found || at == trimmed,
            // A place where a transaction may still write, or that was resolved later than anything happened here.
            false => place.xid < xmin && place.stamp <= touched,
        };
        if place.incarnation != incarnation || at < trimmed || !is_there {
            *place = edge(incarnation, trimmed.0, trimmed.1, 0);
            return Ok((VecDeque::from([Delivery::PositionLost]), held));
        }
        let mut ready = VecDeque::with_capacity(rows.len());
        for row in &rows {
            let Some(id) = column(row, 7)? else { continue };
            let body = body(row)?;
            (place.xid, place.id, place.stamp, place.of_row) = (xid(row, 6)?, id, column(row, 15)?, true);
            ready.push_back(Delivery::Message(place.position(), body));
        }
        Ok((ready, held))
    }
}

impl Listener {
    pub(crate) fn new(driver: Arc<Driver>, reader: Reader) -> Listener {
        let shared = Arc::clone(&reader.shared);
        Listener { driver, shared, ready: VecDeque::new(), reader: Some(reader), reading: None }
    }
}

impl Subscription for Listener {
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
                // The future may be dropped here: the read stays.
                let read = reading.await;
                self.reading = None;
                let (reader, read) = read.map_err(|_| ended())?;
                self.reader = Some(reader);
                self.ready = read.map_err(|failure| self.shared.error(failure))?;
            }
        })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(reading) = &self.reading {
            reading.abort();
        }
    }
}

fn edge(incarnation: &str, xid: u64, id: i64, stamp: i64) -> Place {
    Place { incarnation: incarnation.to_owned(), xid, id, stamp, of_row: false }
}

fn no_answer() -> Failure {
    Failure::new(Sort::Lasting, "the outbox gives no answer")
}

/// What a row says, as an event's bytes.
fn body(row: &Row) -> Result<Bytes, Failure> {
    if let Some(event) = column::<Option<&[u8]>>(row, 8)? {
        return Ok(Bytes::copy_from_slice(event));
    }
    let (operation, namespace): (Option<&str>, Option<&str>) = (column(row, 9)?, column(row, 10)?);
    let key = encoded_key(column(row, 11)?, column(row, 12)?, column(row, 13)?);
    let version = column::<Option<i64>>(row, 14)?.and_then(|version| u64::try_from(version).ok());
    let directive = directive(operation, namespace, key.as_deref(), Seq(version.unwrap_or_default()));
    let payload = Payload::Directives(vec![directive]);
    let event = Event { epoch: Epoch(0), after: Seq::ZERO, until: Seq::ZERO, as_of_us: 0, payload };
    event.encode().map_err(|error| Failure::new(Sort::Lasting, error.to_string()))
}

/// What a row that is no ready event says. What cannot be said of a key is said of more.
fn directive(
    operation: Option<&str>,
    namespace: Option<&str>,
    key: Option<&[u8]>,
    version: Seq,
) -> Directive {
    let Some(Ok(name)) = namespace.map(NamespaceName::parse) else { return Directive::Everything(version) };
    let key = key.map(|key| Key::new(&name, key));
    match (operation, key) {
        (Some("invalidate"), Some(Ok(key))) => Directive::Invalidate(key, version),
        (Some("remove"), Some(Ok(key))) => Directive::Remove(key, version),
        _ => Directive::Namespace(name, version),
    }
}

/// A key as the default codec encodes it: a number in 8 bytes, a text with its length in front, little-endian.
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
        let place =
            Place { incarnation: "a1-7-00000001".into(), xid: u64::MAX, id: 7, stamp: -3, of_row: true };
        assert_eq!(Place::parse(&place.position()), Some(place));
        for other in ["", "17", "a:1:2", "a:1:2:3:4", ":1:2:3", "a:x:1:2", "1700-0", "a:-1:2:3"] {
            assert_eq!(Place::parse(&Position::new(other)), None, "{other}");
        }
    }

    #[test]
    fn what_a_row_cannot_say_of_a_key_it_says_of_more() {
        let name = NamespaceName::parse("products").unwrap();
        let key = Key::new(&name, b"7").unwrap();
        let said = |operation, namespace, key| directive(operation, namespace, key, Seq::ZERO);
        let seven = Some(b"7".as_slice());
        assert_eq!(said(Some("remove"), Some("products"), seven), Directive::Remove(key.clone(), Seq::ZERO));
        assert_eq!(said(Some("invalidate"), Some("products"), seven), Directive::Invalidate(key, Seq::ZERO));
        let all = Directive::Namespace(name, Seq::ZERO);
        let long = vec![0; crate::ids::KEY_BYTES_MAX];
        assert_eq!(said(Some("namespace"), Some("products"), seven), all);
        assert_eq!(said(Some("invalidate"), Some("products"), None), all);
        assert_eq!(said(Some("invalidate"), Some("products"), Some(&long)), all);
        for bad in [None, Some(""), Some("!tokens")] {
            assert_eq!(said(Some("remove"), bad, seven), Directive::Everything(Seq::ZERO));
        }
    }
}
