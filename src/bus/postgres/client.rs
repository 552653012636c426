//! The connections and statements that the calls and the subscriptions of a Postgres bus share.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;

use crate::error::{Error, ErrorKind};
use crate::postgres::failure::{CallFailure, ErrorClass};
use crate::postgres::outbox::{self, Outbox, Retention, TRIM_EVERY_ROWS, incarnation_sql};
use crate::postgres::pool::{ConnectionPool, Lease};
use crate::postgres::server::PostgresServer;

/// The number of rows in one read; at most 32 MiB.
const ROWS_AT_ONCE: usize = 64;

/// The connections and statements.
pub(super) struct PostgresClient {
    pub(super) label: String,
    pub(super) server: PostgresServer,
    pub(super) outbox: Outbox,
    pub(super) read: ReadSql,
    pub(super) poll_interval: Duration,
    calls: ConnectionPool,
    retention: Retention,
    /// True if the tables existed at the last call.
    pub(super) ensured: AtomicBool,
    /// The number of rows published since a channel was last trimmed.
    untrimmed: AtomicU64,
}

impl PostgresClient {
    /// Makes a client that is not connected yet.
    pub(super) fn new(
        server: PostgresServer,
        poll_interval: Duration,
        retention: Retention,
    ) -> PostgresClient {
        PostgresClient {
            label: server.label(),
            outbox: Outbox::new(&server.schema),
            read: ReadSql::new(&server.schema),
            calls: ConnectionPool::new(server.clone(), 1),
            server,
            poll_interval,
            retention,
            ensured: AtomicBool::new(false),
            untrimmed: AtomicU64::new(0),
        }
    }

    /// Takes the connection for calls, and creates missing tables.
    pub(super) async fn lease(&self) -> Result<Lease<'_>, CallFailure> {
        let mut lease = self.calls.lease().await?;
        // Looked up at the first call and after each failure, and not at every call: it costs two queries.
        if !self.ensured.load(Ordering::Relaxed) {
            self.outbox.ensure(lease.session()).await?;
            self.ensured.store(true, Ordering::Relaxed);
        }
        Ok(lease)
    }

    /// Inserts messages in one transaction, and trims the channel in the same one if it is time.
    pub(super) async fn publish(
        &self,
        channel: &str,
        rows: &[(Option<&str>, Bytes)],
    ) -> Result<(), CallFailure> {
        const DOING: &str = "publishing";
        let mut lease = self.lease().await?;
        let session = lease.session();
        let insert = self.outbox.prepare_insert(session).await?;
        // `Relaxed`, and before the insert: a failed one only brings the next trim forward.
        let written = self.untrimmed.fetch_add(rows.len() as u64, Ordering::Relaxed);
        // A single insert is a transaction of its own and saves two round trips.
        if written < TRIM_EVERY_ROWS {
            outbox::insert(session, &insert, channel, rows).await?;
        } else {
            let trim = self.outbox.prepare_trim(session).await?;
            session.run(DOING, "BEGIN").await?;
            outbox::insert(session, &insert, channel, rows).await?;
            trim.run(session, channel, self.retention).await?;
            session.run(DOING, "COMMIT").await?;
            // Only after the commit: a trim that was rolled back is still due.
            self.untrimmed.store(0, Ordering::Relaxed);
        }
        lease.keep();
        Ok(())
    }

    /// Converts a failure of a call.
    pub(super) fn error(&self, failure: CallFailure) -> Error {
        let kind = match failure.class {
            ErrorClass::Transient => ErrorKind::Transient,
            ErrorClass::Rejected | ErrorClass::Permanent => ErrorKind::BusFailed,
        };
        failure.within(&self.label).into_error(kind)
    }
}

/// The statements that read the outbox of one schema.
pub(super) struct ReadSql {
    pub(super) read: String,
    pub(super) oldest: String,
    pub(super) now: String,
    pub(super) listen: String,
    pub(super) backlog: String,
}

impl ReadSql {
    /// Makes the statements for a schema whose name was checked.
    pub(super) fn new(schema: &str) -> ReadSql {
        let incarnation = incarnation_sql(schema);
        let stamp = |column: &str| format!("(extract(epoch FROM {column}) * 1000000)::int8");
        let (created, touched, now) =
            (stamp("o.created"), stamp("c.touched"), stamp("outbox_channel.touched"));
        ReadSql {
            // One statement has one snapshot: the rows, the recorded trims and the running transactions belong
            // together.
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
            // A durable write. Without it a crash could make the server give out again transaction numbers that it has
            // given out before, and rows with them would come before the position of the subscription and be skipped.
            now: format!(
                "INSERT INTO \"{schema}\".outbox_channel (channel) VALUES ($1) \
                 ON CONFLICT (channel) DO UPDATE \
                   SET touched = greatest(outbox_channel.touched, clock_timestamp()) \
                 RETURNING {incarnation}, pg_snapshot_xmin(pg_current_snapshot())::text, {now}"
            ),
            listen: format!("LISTEN \"{schema}_outbox\""),
            backlog: format!(
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
