//! The outbox: a table that programs fill in the transaction that changes the data, and that a bus reads.
//!
//! Rows are read in the order (transaction, number), and only from transactions older than every running one. So the
//! rows read are final: no row can appear before them, however late a transaction commits. The number alone would not
//! do, because numbers are drawn in another order than transactions commit; a gap between numbers means nothing.
//!
//! A position in the table must not be trusted blindly after a restore or a crash. So it contains the *incarnation* of
//! the table: a number drawn when the table was created, the identity of the server's data, and its timeline. And it
//! names a row together with the time when it was written. The row must still be there unless it was trimmed, and trims
//! are recorded.

use std::time::Duration;

use bytes::Bytes;
use tokio_postgres::Statement;

use crate::error::{Error, ErrorKind, Result};
use crate::postgres::failure::{CallFailure, ErrorClass};
use crate::postgres::pool::{Session, column};

/// The version of the tables' layout.
const LAYOUT: i32 = 1;
/// The default retention of a channel.
const ROWS_DEFAULT: u64 = 65_536;
const AGE_DEFAULT: Duration = Duration::from_secs(24 * 3600);
const AGE_MIN: Duration = Duration::from_secs(1);
const AGE_MAX: Duration = Duration::from_secs(366 * 24 * 3600);
const ROWS_MAX: u64 = 1 << 40;
/// The number of rows after which a publisher trims.
pub(crate) const TRIM_EVERY_ROWS: u64 = 1024;

/// The retention of a channel: the rows beyond either limit are trimmed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Retention {
    pub(crate) rows: u64,
    pub(crate) age: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        Retention { rows: ROWS_DEFAULT, age: AGE_DEFAULT }
    }
}

impl Retention {
    /// Checks the limits.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`].
    pub(crate) fn check(&self) -> Result<()> {
        let refuse = |context: String| Err(Error::new(ErrorKind::InvalidOption, context));
        if !(1..=ROWS_MAX).contains(&self.rows) {
            return refuse(format!("retained rows are {}, and must be from 1 to {ROWS_MAX}", self.rows));
        }
        if !(AGE_MIN..=AGE_MAX).contains(&self.age) {
            return refuse(format!("the retained age is {:?}, and must be from 1 s to 366 days", self.age));
        }
        Ok(())
    }
}

/// The statements for the outbox of one schema.
pub(crate) struct Outbox {
    schema: String,
    insert: String,
    lock: String,
    trim: String,
}

impl Outbox {
    /// Makes the statements for a schema whose name was checked.
    pub(crate) fn new(schema: &str) -> Outbox {
        Outbox {
            insert: format!(
                "INSERT INTO \"{schema}\".outbox (channel, identity, event) \
                 SELECT $1, u.identity, u.event \
                 FROM unnest($2::text[], $3::bytea[]) WITH ORDINALITY AS u (identity, event, place) \
                 ORDER BY u.place \
                 ON CONFLICT (channel, identity) WHERE identity IS NOT NULL DO NOTHING"
            ),
            lock: format!(
                "INSERT INTO \"{schema}\".outbox_channel AS c (channel) VALUES ($1) \
                 ON CONFLICT (channel) DO UPDATE SET touched = greatest(c.touched, clock_timestamp())"
            ),
            trim: trim_sql(schema),
            schema: schema.to_owned(),
        }
    }

    /// Creates the tables if they do not exist, and checks their layout.
    pub(crate) async fn ensure(&self, session: &Session) -> Result<(), CallFailure> {
        let schema = &self.schema;
        let there = format!(
            "SELECT to_regclass('\"{schema}\".outbox_meta') IS NOT NULL \
             AND to_regclass('\"{schema}\".outbox') IS NOT NULL"
        );
        let doing = "looking for the outbox";
        let found = session.query(doing, &there).await?;
        // Looked up first, because `CREATE` needs privileges that an ordinary role lacks even if all tables exist.
        if !found.first().map(|row| column(row, 0)).transpose()?.unwrap_or(false) {
            session.run("making the outbox", &create_sql(schema)).await?;
        }
        let layout = session.query(doing, &format!("SELECT layout FROM \"{schema}\".outbox_meta")).await?;
        match layout.first().map(|row| column::<i32>(row, 0)).transpose()? {
            Some(LAYOUT) => Ok(()),
            Some(other) => {
                let sentence = format!("the outbox has layout {other}, which is unknown");
                Err(CallFailure::new(ErrorClass::Permanent, sentence))
            }
            // Without its incarnation no position can be told from one of an earlier outbox of this name.
            None => Err(CallFailure::new(ErrorClass::Permanent, "the outbox has lost its incarnation")),
        }
    }

    /// Prepares the statement that inserts rows.
    pub(crate) async fn prepare_insert(&self, session: &mut Session) -> Result<Statement, CallFailure> {
        session.statement(&self.insert).await
    }

    /// Prepares the statements that trim a channel.
    pub(crate) async fn prepare_trim(&self, session: &mut Session) -> Result<Trim, CallFailure> {
        Ok(Trim { lock: session.statement(&self.lock).await?, trim: session.statement(&self.trim).await? })
    }
}

/// The statements that trim a channel within a transaction: one records how far, one deletes. They lock the row of the
/// channel until the transaction ends, so that two transactions that trim cannot deadlock over the rows.
#[derive(Clone)]
pub(crate) struct Trim {
    lock: Statement,
    trim: Statement,
}

impl Trim {
    /// Deletes the rows beyond the retention that readers can have read by now.
    pub(crate) async fn run(
        &self,
        session: &Session,
        channel: &str,
        retention: Retention,
    ) -> Result<(), CallFailure> {
        const DOING: &str = "trimming the outbox";
        let rows = i64::try_from(retention.rows).unwrap_or(i64::MAX);
        let age_s = retention.age.as_secs_f64();
        // Both are sent at once. The second statement takes its snapshot after the first one has waited for the lock.
        let (locked, trimmed) = tokio::join!(
            biased;
            async { session.rows(DOING, &self.lock, &[&channel]).await },
            async { session.rows(DOING, &self.trim, &[&channel, &rows, &age_s]).await },
        );
        locked.and(trimmed).map(drop)
    }
}

/// Inserts rows. A row whose identity the channel already has is left out.
pub(crate) async fn insert(
    session: &Session,
    statement: &Statement,
    channel: &str,
    rows: &[(Option<&str>, Bytes)],
) -> Result<(), CallFailure> {
    let identities: Vec<Option<&str>> = rows.iter().map(|(identity, _)| *identity).collect();
    let events: Vec<&[u8]> = rows.iter().map(|(_, event)| event.as_ref()).collect();
    session.rows("writing to the outbox", statement, &[&channel, &identities, &events]).await.map(drop)
}

/// Returns the SQL expression of the incarnation (see the head of the module). An ordinary role may read all parts.
pub(crate) fn incarnation_sql(schema: &str) -> String {
    format!(
        "(SELECT m.incarnation || '-' || (pg_control_system()).system_identifier || '-' || \
         left(pg_walfile_name(pg_current_wal_lsn()), 8) FROM \"{schema}\".outbox_meta m)"
    )
}

/// Returns the statement that trims: `$1` channel, `$2` rows, `$3` seconds.
fn trim_sql(schema: &str) -> String {
    format!(
        "WITH bound AS ( \
           SELECT o.xid, o.id FROM \"{schema}\".outbox o \
           WHERE o.channel = $1 AND o.xid < pg_snapshot_xmin(pg_current_snapshot()) \
           AND (o.created < clock_timestamp() - make_interval(secs => $3) \
             OR (o.xid, o.id) <= (SELECT n.xid, n.id FROM \"{schema}\".outbox n WHERE n.channel = $1 \
                 ORDER BY n.xid DESC, n.id DESC OFFSET $2 LIMIT 1)) \
           ORDER BY o.xid DESC, o.id DESC LIMIT 1), \
         gone AS ( \
           DELETE FROM \"{schema}\".outbox o USING bound b \
           WHERE o.channel = $1 AND (o.xid, o.id) <= (b.xid, b.id)) \
         UPDATE \"{schema}\".outbox_channel c SET trimmed_xid = b.xid, trimmed_id = b.id FROM bound b \
         WHERE c.channel = $1 AND (b.xid, b.id) > (c.trimmed_xid, c.trimmed_id)"
    )
}

/// Returns the script in a transaction.
fn create_sql(schema: &str) -> String {
    format!("BEGIN; {} COMMIT", script_sql(schema))
}

/// Returns the statements that create missing tables. The advisory lock keeps two programs that start at once from
/// failing each other.
pub(crate) fn script_sql(schema: &str) -> String {
    let make_schema = make_schema_sql(schema);
    format!(
        "SELECT pg_advisory_xact_lock(hashtextextended('forebay {schema}', 0)); \
         {make_schema}; \
         CREATE TABLE IF NOT EXISTS \"{schema}\".outbox_meta ( \
           one boolean PRIMARY KEY DEFAULT true CHECK (one), \
           layout int4 NOT NULL, \
           incarnation text NOT NULL DEFAULT replace(gen_random_uuid()::text, '-', '')); \
         DELETE FROM \"{schema}\".outbox_meta WHERE to_regclass('\"{schema}\".outbox') IS NULL; \
         INSERT INTO \"{schema}\".outbox_meta (layout) VALUES ({LAYOUT}) ON CONFLICT DO NOTHING; \
         CREATE TABLE IF NOT EXISTS \"{schema}\".outbox_channel ( \
           channel text PRIMARY KEY, \
           trimmed_xid xid8 NOT NULL DEFAULT '0', \
           trimmed_id int8 NOT NULL DEFAULT 0, \
           touched timestamptz NOT NULL DEFAULT clock_timestamp()); \
         CREATE TABLE IF NOT EXISTS \"{schema}\".outbox ( \
           channel text NOT NULL, \
           xid xid8 NOT NULL DEFAULT pg_current_xact_id(), \
           id int8 NOT NULL GENERATED BY DEFAULT AS IDENTITY, \
           identity text, \
           event bytea CHECK (octet_length(event) <= 524288), \
           namespace text, \
           key_bytes bytea, \
           key_text text, \
           key_number int8, \
           operation text CHECK (operation IN ('invalidate', 'remove', 'namespace')), \
           version int8, \
           created timestamptz NOT NULL DEFAULT clock_timestamp(), \
           PRIMARY KEY (channel, xid, id), \
           CHECK ((event IS NULL) <> (operation IS NULL))); \
         CREATE UNIQUE INDEX IF NOT EXISTS outbox_identity ON \"{schema}\".outbox (channel, identity) \
           WHERE identity IS NOT NULL; \
         CREATE OR REPLACE FUNCTION \"{schema}\".outbox_notify() RETURNS trigger \
         LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $notify$ \
         BEGIN \
           PERFORM pg_notify('{schema}_outbox', n.channel) FROM (SELECT DISTINCT channel FROM new_rows) n; \
           RETURN NULL; \
         END $notify$; \
         DROP TRIGGER IF EXISTS outbox_notify ON \"{schema}\".outbox; \
         CREATE TRIGGER outbox_notify AFTER INSERT ON \"{schema}\".outbox \
           REFERENCING NEW TABLE AS new_rows \
           FOR EACH STATEMENT EXECUTE FUNCTION \"{schema}\".outbox_notify(); \
         CREATE OR REPLACE FUNCTION \"{schema}\".outbox_emptied() RETURNS trigger \
         LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $emptied$ \
         BEGIN \
           UPDATE \"{schema}\".outbox_meta SET incarnation = replace(gen_random_uuid()::text, '-', ''); \
           RETURN NULL; \
         END $emptied$; \
         DROP TRIGGER IF EXISTS outbox_emptied ON \"{schema}\".outbox; \
         CREATE TRIGGER outbox_emptied AFTER TRUNCATE ON \"{schema}\".outbox \
           FOR EACH STATEMENT EXECUTE FUNCTION \"{schema}\".outbox_emptied(); "
    )
}

/// Returns the statement that creates the schema. `CREATE SCHEMA IF NOT EXISTS` would need the privilege to create one
/// even if the schema exists.
pub(crate) fn make_schema_sql(schema: &str) -> String {
    format!(
        "DO $make$ BEGIN IF to_regnamespace('{schema}') IS NULL THEN CREATE SCHEMA \"{schema}\"; END IF; \
         END $make$"
    )
}
