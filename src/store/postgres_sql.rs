//! What a Postgres store says to its server.

use std::borrow::Cow;
use std::collections::HashMap;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio_postgres::Statement;

use crate::error::Error;
use crate::ids::{Epoch, JournalId, Key, Seq};
use crate::postgres::failure::{Failure, Sort};
use crate::postgres::outbox::make_schema_sql;
use crate::postgres::pool::{Parameters, Session, column};
use crate::store::contract::{Op, Progress, Tenure, Versioned};

/// The version of the tables' layout.
const LAYOUT: i32 = 1;
/// The longest key that is stored as it is, in bytes. An index of Postgres takes some 2,700.
const PLAIN_KEY_BYTES_MAX: usize = 1024;
/// How many keys are asked for at once.
const LOAD_KEYS_MAX: usize = 512;
/// About how many bytes one statement carries; a single value may be larger.
const STATEMENT_BYTES_MAX: usize = 16 << 20;

/// The statements for one schema.
pub(crate) struct Sql {
    schema: String,
    tenure: String,
    lock: String,
    claim: String,
    advance: String,
    load: String,
    put: String,
    remove: String,
}

/// The statements that change things, prepared.
pub(crate) struct Writes {
    put: Statement,
    remove: Statement,
    advance: Statement,
}

/// What became of a batch, if the server answered.
pub(crate) enum Applied {
    /// It is applied, or was before.
    Done,
    /// A newer epoch has claimed the store.
    Fenced(Epoch),
    /// This record is refused. Nothing of the batch was applied.
    Refused(Seq, Failure),
    /// Nobody could say what it does, so it was not done.
    Unsaid(Error),
}

/// Some changes for one statement each: what is put, and what is removed.
#[derive(Default)]
pub(crate) struct Part<'a> {
    keys: Vec<Cow<'a, [u8]>>,
    long_keys: Vec<Option<&'a [u8]>>,
    values: Vec<&'a [u8]>,
    versions: Vec<i64>,
    removed: Vec<Cow<'a, [u8]>>,
    bytes: usize,
}

impl<'a> Part<'a> {
    fn push(&mut self, op: &'a Op) {
        let key = op.key.as_bytes();
        self.bytes += key.len();
        let Some(value) = &op.value else {
            self.removed.push(place(key));
            return;
        };
        self.bytes += value.len();
        self.keys.push(place(key));
        self.long_keys.push((key.len() > PLAIN_KEY_BYTES_MAX).then_some(key));
        self.values.push(value);
        self.versions.push(signed(op.seq.0));
    }

    /// Divides changes of different keys.
    pub(crate) fn divide(ops: &[&'a Op]) -> Vec<Part<'a>> {
        let mut parts = vec![Part::default()];
        for op in ops {
            let size = op.key.as_bytes().len() + op.value.as_ref().map_or(0, Bytes::len);
            if parts.last().is_some_and(|last| last.bytes > 0 && last.bytes + size > STATEMENT_BYTES_MAX) {
                parts.push(Part::default());
            }
            if let Some(last) = parts.last_mut() {
                last.push(op);
            }
        }
        parts
    }
}

impl Sql {
    /// Of a schema whose name was checked.
    pub(crate) fn new(schema: &str) -> Sql {
        const COLUMNS: &str = "epoch, applied, journaled, journal";
        Sql {
            tenure: format!("SELECT {COLUMNS} FROM \"{schema}\".tenure"),
            // The setting ends with the transaction. A server that waits for more than its own disk keeps doing so.
            lock: format!(
                "SELECT {COLUMNS}, set_config('synchronous_commit', \
                 CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, \
                 true) FROM \"{schema}\".tenure FOR UPDATE"
            ),
            claim: format!(
                "WITH alive AS (UPDATE \"{schema}\".pulse SET renewals = renewals + 1, ended = false) \
                 UPDATE \"{schema}\".tenure SET epoch = epoch + 1, journal = $1 RETURNING {COLUMNS}"
            ),
            advance: format!("UPDATE \"{schema}\".tenure SET applied = $1, journaled = $2"),
            load: format!("SELECT key, value, version FROM \"{schema}\".data WHERE key = ANY($1)"),
            put: format!(
                "INSERT INTO \"{schema}\".data (key, value, version, long_key) \
                 SELECT * FROM unnest($1::bytea[], $2::bytea[], $3::int8[], $4::bytea[]) \
                 ON CONFLICT (key) DO UPDATE SET value = excluded.value, version = excluded.version"
            ),
            remove: format!("DELETE FROM \"{schema}\".data WHERE key = ANY($1)"),
            schema: schema.to_owned(),
        }
    }

    /// Makes the tables, if they are not there.
    pub(crate) async fn ensure(&self, session: &Session) -> Result<(), Failure> {
        let schema = &self.schema;
        let there = format!("SELECT to_regclass('\"{schema}\".tenure') IS NOT NULL");
        let found = session.query("looking for the store's tables", &there).await?;
        if found.first().map(|row| column(row, 0)).transpose()?.unwrap_or(false) {
            return Ok(());
        }
        let make_schema = make_schema_sql(schema);
        let create = format!(
            "BEGIN; \
             SELECT pg_advisory_xact_lock(hashtextextended('forebay {schema}', 0)); \
             {make_schema}; \
             CREATE TABLE IF NOT EXISTS \"{schema}\".data ( \
               key bytea PRIMARY KEY, value bytea NOT NULL, version int8 NOT NULL, long_key bytea); \
             CREATE TABLE IF NOT EXISTS \"{schema}\".tenure ( \
               one boolean PRIMARY KEY DEFAULT true CHECK (one), layout int4 NOT NULL, \
               epoch int8 NOT NULL DEFAULT 0, applied int8 NOT NULL DEFAULT 0, \
               journaled int8 NOT NULL DEFAULT 0, journal bytea CHECK (octet_length(journal) = 16)); \
             CREATE TABLE IF NOT EXISTS \"{schema}\".pulse ( \
               one boolean PRIMARY KEY DEFAULT true CHECK (one), \
               renewals int8 NOT NULL DEFAULT 0, ended boolean NOT NULL DEFAULT false); \
             INSERT INTO \"{schema}\".pulse DEFAULT VALUES ON CONFLICT DO NOTHING; \
             INSERT INTO \"{schema}\".tenure (layout) VALUES ({LAYOUT}) ON CONFLICT DO NOTHING; \
             COMMIT"
        );
        session.run("making the store's tables", &create).await
    }

    /// The layout of the tables that are there.
    pub(crate) async fn layout(&self, session: &Session) -> Result<i32, Failure> {
        let sql = format!("SELECT layout FROM \"{}\".tenure", self.schema);
        let rows = session.query("reading the layout", &sql).await?;
        rows.first().map_or_else(|| Err(no_tenure()), |row| column(row, 0))
    }

    /// Whether that layout is known.
    pub(crate) fn knows(&self, layout: i32) -> bool {
        layout == LAYOUT
    }

    pub(crate) async fn tenure(&self, session: &mut Session) -> Result<Tenure, Failure> {
        let statement = session.statement(&self.tenure).await?;
        tenure(&session.rows("reading the tenure", &statement, &[]).await?)
    }

    /// Begins a transaction and locks the tenure.
    pub(crate) async fn lock(&self, session: &mut Session) -> Result<Tenure, Failure> {
        // Constraints that wait for the commit would be nobody's who could be named.
        const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET CONSTRAINTS ALL IMMEDIATE";
        let statement = session.statement(&self.lock).await?;
        let (begun, locked) = tokio::join!(
            biased;
            session.run("beginning a transaction", BEGIN),
            session.rows("locking the tenure", &statement, &[]),
        );
        begun?;
        tenure(&locked?)
    }

    pub(crate) async fn claim(
        &self,
        session: &mut Session,
        journal: Option<JournalId>,
    ) -> Result<Tenure, Failure> {
        let statement = session.statement(&self.claim).await?;
        self.lock(session).await?;
        let journal = journal.map(|journal| journal.0.to_vec());
        let (claimed, committed) = tokio::join!(
            biased;
            async { session.rows("claiming the store", &statement, &[&journal]).await },
            session.run("claiming the store", "COMMIT"),
        );
        let claimed = tenure(&claimed?)?;
        committed.map(|()| claimed)
    }

    /// Prepares what changes things, so that nothing has to be prepared within a transaction.
    pub(crate) async fn prepare_writes(&self, session: &mut Session) -> Result<Writes, Failure> {
        Ok(Writes {
            put: session.statement(&self.put).await?,
            remove: session.statement(&self.remove).await?,
            advance: session.statement(&self.advance).await?,
        })
    }

    pub(crate) async fn load_many(
        &self,
        session: &mut Session,
        keys: &[Key],
    ) -> Result<Vec<Option<Versioned>>, Failure> {
        let statement = session.statement(&self.load).await?;
        let mut answers = Vec::with_capacity(keys.len());
        for some in keys.chunks(LOAD_KEYS_MAX) {
            let places: Vec<Cow<'_, [u8]>> = some.iter().map(|key| place(key.as_bytes())).collect();
            let rows = session.rows("loading", &statement, &[&places]).await?;
            let mut found: HashMap<&[u8], Versioned> = HashMap::with_capacity(rows.len());
            for row in &rows {
                let value = Bytes::copy_from_slice(column(row, 1)?);
                found.insert(column(row, 0)?, Versioned { value, version: Seq(unsigned(column(row, 2)?)) });
            }
            answers.extend(places.iter().map(|place| found.get(place.as_ref()).cloned()));
        }
        Ok(answers)
    }
}

impl Writes {
    /// Writes one part. Sent with the first poll.
    pub(crate) async fn write(&self, session: &Session, part: &Part<'_>) -> Result<(), Failure> {
        const DOING: &str = "writing records";
        let (put, removed) = tokio::join!(
            biased;
            async {
                match part.keys.is_empty() {
                    true => Ok(Vec::new()),
                    false => {
                        let with: Parameters<'_> = &[&part.keys, &part.values, &part.versions, &part.long_keys];
                        session.rows(DOING, &self.put, with).await
                    }
                }
            },
            async {
                match part.removed.is_empty() {
                    true => Ok(Vec::new()),
                    false => session.rows(DOING, &self.remove, &[&part.removed]).await,
                }
            },
        );
        put.and(removed).map(drop)
    }

    /// Moves the watermark. Sent with the first poll.
    pub(crate) async fn advance(&self, session: &Session, progress: Progress) -> Result<(), Failure> {
        let (applied, journaled) = (signed(progress.applied.0), signed(progress.journaled.0));
        session.rows("moving the watermark", &self.advance, &[&applied, &journaled]).await.map(drop)
    }
}

pub(crate) fn no_tenure() -> Failure {
    Failure::new(Sort::Lasting, "the row of the tenure is gone")
}

fn tenure(rows: &[tokio_postgres::Row]) -> Result<Tenure, Failure> {
    let row = rows.first().ok_or_else(no_tenure)?;
    let number = |at| column(row, at).map(unsigned);
    let journal: Option<&[u8]> = column(row, 3)?;
    let journal = journal.map(|bytes| {
        let bytes =
            bytes.try_into().map_err(|_| Failure::new(Sort::Lasting, "the journal's identity is none"));
        bytes.map(JournalId)
    });
    Ok(Tenure {
        epoch: Epoch(number(0)?),
        progress: Progress { applied: Seq(number(1)?), journaled: Seq(number(2)?) },
        journal: journal.transpose()?,
    })
}

/// Where a key lies.
fn place(key: &[u8]) -> Cow<'_, [u8]> {
    match key.split_at_checked(PLAIN_KEY_BYTES_MAX) {
        Some((start, rest)) if !rest.is_empty() => {
            let mut place = start.to_vec();
            place.extend_from_slice(&Sha256::digest(key));
            Cow::Owned(place)
        }
        _ => Cow::Borrowed(key),
    }
}

/// The same bits.
pub(crate) fn signed(number: u64) -> i64 {
    i64::from_ne_bytes(number.to_ne_bytes())
}

pub(crate) fn unsigned(number: i64) -> u64 {
    u64::from_ne_bytes(number.to_ne_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_key_has_a_place_that_no_other_key_has() {
        let plain = vec![7; PLAIN_KEY_BYTES_MAX];
        assert_eq!(place(&plain).as_ref(), plain);
        let (one, two) = (vec![7; PLAIN_KEY_BYTES_MAX + 1], vec![7; PLAIN_KEY_BYTES_MAX + 2]);
        assert_ne!(place(&one), place(&two));
        assert!(place(&one).starts_with(&plain) && place(&one).len() == PLAIN_KEY_BYTES_MAX + 32);
        let pretender = place(&one).into_owned();
        assert_ne!(place(&pretender), place(&one), "whoever knows the place cannot take it");
    }

    #[test]
    fn numbers_keep_their_bits() {
        for number in [0, 1, u64::MAX, 1 << 63, (1 << 63) - 1] {
            assert_eq!(unsigned(signed(number)), number);
        }
    }
}
