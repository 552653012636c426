//! The SQL statements of a Postgres store.

use std::borrow::Cow;
use std::collections::HashMap;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio_postgres::Statement;

use crate::ids::{Epoch, JournalId, Key, Seq, Tenure, TenureId};
use crate::postgres::failure::{CallFailure, ErrorClass};
use crate::postgres::outbox::make_schema_sql;
use crate::postgres::pool::{Parameters, Session, column};
use crate::store::contract::{Batch, Claim, Op, OwnerStatus, Progress, Standing, StoreError, Versioned};

/// The columns of the row that says where the store stands.
const COLUMNS: &str = "epoch, tenure, batch, applied, journaled, journal";
/// The version of the layout of the tables.
const LAYOUT: i32 = 2;
/// The longest key that is stored unchanged, in bytes. An index of Postgres takes some 2,700.
const PLAIN_KEY_BYTES_MAX: usize = 1024;
/// The number of keys in one query.
const LOAD_KEYS_MAX: usize = 512;
/// The size from which on changes are split into several statements. A single value may be larger.
const STATEMENT_BYTES_MAX: usize = 16 << 20;

/// The statements of a store in one schema.
pub(super) struct Sql {
    schema: String,
    standing: String,
    lock: String,
    claim: String,
    advance: String,
    load: String,
    put: String,
    remove: String,
}

/// The prepared statements that change data.
pub(super) struct Writes {
    put: Statement,
    remove: Statement,
    advance: Statement,
}

/// The parameters of one pair of statements, an upsert and a delete.
#[derive(Default)]
pub(super) struct StatementChunk<'a> {
    keys: Vec<Cow<'a, [u8]>>,
    long_keys: Vec<Option<&'a [u8]>>,
    values: Vec<&'a [u8]>,
    versions: Vec<i64>,
    removed: Vec<Cow<'a, [u8]>>,
    bytes: usize,
}

impl<'a> StatementChunk<'a> {
    fn push(&mut self, op: &'a Op) {
        let key = op.key.as_bytes();
        self.bytes += key.len();
        let Some(value) = &op.value else {
            self.removed.push(stored_key(key));
            return;
        };
        self.bytes += value.len();
        self.keys.push(stored_key(key));
        self.long_keys.push((key.len() > PLAIN_KEY_BYTES_MAX).then_some(key));
        self.values.push(value);
        self.versions.push(signed(op.seq.0));
    }

    /// Splits changes of different keys into chunks of limited size.
    pub(super) fn divide(ops: &[&'a Op]) -> Vec<StatementChunk<'a>> {
        let mut parts = vec![StatementChunk::default()];
        for op in ops {
            let size = op.key.as_bytes().len() + op.value.as_ref().map_or(0, Bytes::len);
            // A chunk may be exceeded by a single large value, which cannot be split.
            if parts.last().is_some_and(|last| last.bytes > 0 && last.bytes + size > STATEMENT_BYTES_MAX) {
                parts.push(StatementChunk::default());
            }
            if let Some(last) = parts.last_mut() {
                last.push(op);
            }
        }
        parts
    }
}

impl Sql {
    /// Makes the statements for a schema whose name was checked.
    pub(super) fn new(schema: &str) -> Sql {
        Sql {
            standing: format!("SELECT {COLUMNS} FROM \"{schema}\".tenure"),
            // The setting ends with the transaction. The stricter `remote_apply` stays if it is configured.
            lock: format!(
                "SELECT {COLUMNS}, set_config('synchronous_commit', \
                 CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, \
                 true) FROM \"{schema}\".tenure FOR UPDATE"
            ),
            claim: format!(
                "WITH alive AS (UPDATE \"{schema}\".pulse SET renewals = renewals + 1, ended = false) \
                 UPDATE \"{schema}\".tenure SET epoch = $1, tenure = $2, journal = $3, batch = 0"
            ),
            advance: format!("UPDATE \"{schema}\".tenure SET applied = $1, journaled = $2, batch = $3"),
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

    /// Creates the tables if they do not exist.
    pub(super) async fn ensure(&self, session: &Session) -> Result<(), CallFailure> {
        let schema = &self.schema;
        let there = format!("SELECT to_regclass('\"{schema}\".tenure') IS NOT NULL");
        let found = session.query("looking for the store's tables", &there).await?;
        // Looked up first, because `CREATE` needs privileges that an ordinary role lacks even if all tables exist.
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
               epoch int8 NOT NULL DEFAULT 0, \
               tenure bytea NOT NULL DEFAULT decode(repeat('00', 16), 'hex') CHECK (octet_length(tenure) = 16), \
               batch int8 NOT NULL DEFAULT 0, applied int8 NOT NULL DEFAULT 0, \
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

    /// Reads the version of the layout.
    pub(super) async fn layout(&self, session: &Session) -> Result<i32, CallFailure> {
        let sql = format!("SELECT layout FROM \"{}\".tenure", self.schema);
        let rows = session.query("reading the layout", &sql).await?;
        rows.first().map_or_else(|| Err(no_tenure()), |row| column(row, 0))
    }

    /// Returns true if this version of the crate knows the layout.
    pub(super) fn knows(&self, layout: i32) -> bool {
        layout == LAYOUT
    }

    pub(super) async fn standing(&self, session: &mut Session) -> Result<Standing, CallFailure> {
        let statement = session.statement(&self.standing).await?;
        standing(&session.rows("reading the tenure", &statement, &[]).await?)
    }

    /// Begins a transaction and locks the tenure.
    pub(super) async fn lock(&self, session: &mut Session) -> Result<Standing, CallFailure> {
        // A deferred constraint would fail in the commit, where no record can be named for it.
        const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET CONSTRAINTS ALL IMMEDIATE";
        let statement = session.statement(&self.lock).await?;
        let (begun, locked) = tokio::join!(
            biased;
            session.run("beginning a transaction", BEGIN),
            session.rows("locking the tenure", &statement, &[]),
        );
        begun?;
        standing(&locked?)
    }

    /// Claims the store, and returns where it stood before.
    pub(super) async fn claim(
        &self,
        session: &mut Session,
        claim: &Claim,
    ) -> Result<Result<Standing, StoreError>, CallFailure> {
        let statement = session.statement(&self.claim).await?;
        // Waits for an apply that is under way: after the claim, that one is either part of the progress or never
        // applied.
        let before = self.lock(session).await?;
        let claimed = match before.claimed(claim) {
            Ok(claimed) => claimed,
            Err(refused) => {
                session.run("ending a transaction", "ROLLBACK").await?;
                return Ok(Err(refused));
            }
        };
        let (epoch, id) = (signed(claimed.tenure.epoch.0), claimed.tenure.id.0.to_vec());
        let journal = claimed.journal.map(|journal| journal.0.to_vec());
        let (updated, committed) = tokio::join!(
            biased;
            async { session.rows("claiming the store", &statement, &[&epoch, &id, &journal]).await },
            session.run("claiming the store", "COMMIT"),
        );
        updated?;
        // A claim whose commit failed may have happened; the epoch is not given out then.
        committed.map(|()| Ok(before))
    }

    /// Prepares the statements that change data, before a transaction begins: preparing within it would add round trips
    /// while the row of the tenure is locked.
    pub(super) async fn prepare_writes(&self, session: &mut Session) -> Result<Writes, CallFailure> {
        Ok(Writes {
            put: session.statement(&self.put).await?,
            remove: session.statement(&self.remove).await?,
            advance: session.statement(&self.advance).await?,
        })
    }

    pub(super) async fn load_many(
        &self,
        session: &mut Session,
        keys: &[Key],
    ) -> Result<Vec<Option<Versioned>>, CallFailure> {
        let statement = session.statement(&self.load).await?;
        let mut answers = Vec::with_capacity(keys.len());
        // Bounded, because the driver holds the whole answer of a query in memory.
        for some in keys.chunks(LOAD_KEYS_MAX) {
            let places: Vec<Cow<'_, [u8]>> = some.iter().map(|key| stored_key(key.as_bytes())).collect();
            let rows = session.rows("loading", &statement, &[&places]).await?;
            let mut found: HashMap<&[u8], Versioned> = HashMap::with_capacity(rows.len());
            for row in &rows {
                let value = Bytes::copy_from_slice(column(row, 1)?);
                found.insert(column(row, 0)?, Versioned { value, version: Seq(unsigned(column(row, 2)?)) });
            }
            // The rows come in any order, and a key may be requested twice.
            answers.extend(places.iter().map(|place| found.get(place.as_ref()).cloned()));
        }
        Ok(answers)
    }
}

impl Writes {
    /// Writes one chunk. Sent with the first poll.
    pub(super) async fn write(
        &self,
        session: &Session,
        part: &StatementChunk<'_>,
    ) -> Result<(), CallFailure> {
        const DOING: &str = "writing records";
        // Both are sent before the first answer, which saves a round trip while the tenure is locked.
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
    pub(super) async fn advance(&self, session: &Session, batch: &Batch) -> Result<(), CallFailure> {
        let (applied, journaled) = (signed(batch.until.0), signed(batch.journaled.0));
        let with: Parameters<'_> = &[&applied, &journaled, &signed(batch.number)];
        session.rows("moving the watermark", &self.advance, with).await.map(drop)
    }
}

pub(super) fn no_tenure() -> CallFailure {
    CallFailure::new(ErrorClass::Permanent, "the row of the tenure is gone")
}

fn standing(rows: &[tokio_postgres::Row]) -> Result<Standing, CallFailure> {
    // Without its row the store has no watermark; starting from zero would apply everything again.
    let row = rows.first().ok_or_else(no_tenure)?;
    let number = |at| column(row, at).map(unsigned);
    let identity = |bytes: &[u8]| {
        bytes.try_into().map_err(|_| {
            CallFailure::new(ErrorClass::Permanent, "an identity in the row of the tenure is malformed")
        })
    };
    let (tenure, journal): (&[u8], Option<&[u8]>) = (column(row, 1)?, column(row, 5)?);
    Ok(Standing {
        tenure: Tenure { epoch: Epoch(number(0)?), id: TenureId(identity(tenure)?) },
        batch: number(2)?,
        progress: Progress { applied: Seq(number(3)?), journaled: Seq(number(4)?) },
        journal: journal.map(identity).transpose()?.map(JournalId),
    })
}

/// Returns the primary key under which a key is stored.
fn stored_key(key: &[u8]) -> Cow<'_, [u8]> {
    match key.split_at_checked(PLAIN_KEY_BYTES_MAX) {
        // A hash keeps two long keys with the same start apart; the whole key is stored beside it.
        Some((start, rest)) if !rest.is_empty() => {
            let mut stored = start.to_vec();
            stored.extend_from_slice(&Sha256::digest(key));
            Cow::Owned(stored)
        }
        _ => Cow::Borrowed(key),
    }
}

/// Reinterprets the bits, because Postgres has no unsigned integers.
pub(super) fn signed(number: u64) -> i64 {
    i64::from_ne_bytes(number.to_ne_bytes())
}

pub(super) fn unsigned(number: i64) -> u64 {
    u64::from_ne_bytes(number.to_ne_bytes())
}

/// The statements of the heartbeat, a counter in a table of its own, so that it waits for no lock but that of the
/// tenure's row.
pub(super) struct HeartbeatSql {
    renew: String,
    status: String,
    standing: String,
}

impl HeartbeatSql {
    /// Makes the statements for a schema whose name was checked.
    pub(super) fn new(schema: &str) -> HeartbeatSql {
        HeartbeatSql {
            // `FOR SHARE` keeps a claim from happening between the check of the epoch and the update: without it an old
            // owner could mark the tenure of a new one as ended.
            renew: format!(
                "WITH owner AS (SELECT epoch, tenure, applied FROM \"{schema}\".tenure FOR SHARE) \
                 UPDATE \"{schema}\".pulse SET renewals = renewals + 1, ended = $3 \
                 FROM owner WHERE owner.epoch = $1 AND owner.tenure = $2 RETURNING owner.applied"
            ),
            status: format!(
                "SELECT epoch, renewals, ended FROM \"{schema}\".tenure CROSS JOIN \"{schema}\".pulse"
            ),
            standing: format!("SELECT {COLUMNS} FROM \"{schema}\".tenure"),
        }
    }

    /// Records a heartbeat, or the end of the owner. Returns the watermark, or where the store stands if it has another
    /// owner.
    pub(super) async fn renew(
        &self,
        session: &mut Session,
        tenure: Tenure,
        ends: bool,
    ) -> Result<Result<Seq, Standing>, CallFailure> {
        const DOING: &str = "renewing the tenure";
        let statement = session.statement(&self.renew).await?;
        let (epoch, id) = (signed(tenure.epoch.0), tenure.id.0.to_vec());
        // The tenure is part of the statement, so that an old owner changes nothing, whatever it read before.
        let renewed = session.rows(DOING, &statement, &[&epoch, &id, &ends]).await?;
        match renewed.first() {
            Some(row) => Ok(Ok(Seq(unsigned(column(row, 0)?)))),
            None => Ok(Err(standing(&session.query(DOING, &self.standing).await?)?)),
        }
    }

    pub(super) async fn owner_status(&self, session: &mut Session) -> Result<OwnerStatus, CallFailure> {
        let statement = session.statement(&self.status).await?;
        let rows = session.rows("reading the owner's heartbeat", &statement, &[]).await?;
        let row = rows.first().ok_or_else(no_tenure)?;
        let (epoch, renewals, ended): (i64, i64, bool) = (column(row, 0)?, column(row, 1)?, column(row, 2)?);
        Ok(if epoch == 0 || ended { OwnerStatus::Free } else { OwnerStatus::Owned(unsigned(renewals)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_key_has_a_place_that_no_other_key_has() {
        let plain = vec![7; PLAIN_KEY_BYTES_MAX];
        assert_eq!(stored_key(&plain).as_ref(), plain);
        let (one, two) = (vec![7; PLAIN_KEY_BYTES_MAX + 1], vec![7; PLAIN_KEY_BYTES_MAX + 2]);
        assert_ne!(stored_key(&one), stored_key(&two));
        assert!(stored_key(&one).starts_with(&plain) && stored_key(&one).len() == PLAIN_KEY_BYTES_MAX + 32);
        let pretender = stored_key(&one).into_owned();
        assert_ne!(stored_key(&pretender), stored_key(&one), "whoever knows the place cannot take it");
    }

    #[test]
    fn numbers_keep_their_bits() {
        for number in [0, 1, u64::MAX, 1 << 63, (1 << 63) - 1] {
            assert_eq!(unsigned(signed(number)), number);
        }
    }
}
