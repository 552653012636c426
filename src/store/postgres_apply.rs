//! How a Postgres store applies a batch, and how it finds the record that the server refuses.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio_postgres::Statement;

use crate::postgres::failure::{Failure, Sort};
use crate::postgres::outbox::{self, TRIM_EVERY_ROWS, Trim};
use crate::postgres::pool::Session;
use crate::store::contract::{Batch, Op};
use crate::store::postgres::{Applying, Channelled, Shared};
use crate::store::postgres_sql::{Applied, Part, Writes};

/// What is to be done, seen behind the lock.
enum Wanted<'a> {
    Nothing(Applied),
    Changes { ops: Vec<&'a Op>, events: Vec<Bytes> },
}

/// The outbox with the statements for it, prepared.
struct News<'a> {
    outbox: &'a Channelled,
    insert: Statement,
    /// If it is time to trim.
    trim: Option<Trim>,
}

impl Shared {
    /// Applies a batch, on the one connection for it.
    pub(crate) async fn apply(&self, batch: &Batch) -> Result<Applied, Failure> {
        let mut lease = self.applies.lease().await?;
        let session = lease.session();
        let writes = self.sql.prepare_writes(session).await?;
        let news = match &self.outbox {
            Some(outbox) => Some(News::prepare(outbox, session).await?),
            None => None,
        };
        let applied = match self.apply_once(session, &writes, news.as_ref(), batch).await {
            // Whatever it was, it was not applied: the commit comes behind it.
            Err(failure) if failure.sort == Sort::Content => {
                self.find_refused(session, &writes, batch, failure).await?
            }
            other => other?,
        };
        lease.keep();
        Ok(applied)
    }

    async fn apply_once(
        &self,
        session: &mut Session,
        writes: &Writes,
        news: Option<&News<'_>>,
        batch: &Batch,
    ) -> Result<Applied, Failure> {
        let (ops, events) = match self.locked(session, batch).await? {
            Wanted::Nothing(applied) => return undone(session, applied).await,
            Wanted::Changes { ops, events } => (ops, events),
        };
        let parts = Part::divide(&ops);
        let (first, last) = parts.split_at(parts.len().saturating_sub(1));
        for part in first {
            writes.write(session, part).await?;
        }
        // The rest is sent at once, the commit behind it: of a transaction that has failed it is a rollback.
        let session = &*session;
        let (written, advanced, said, committed) = tokio::join!(
            biased;
            async {
                match last {
                    [part] => writes.write(session, part).await,
                    _ => Ok(()),
                }
            },
            writes.advance(session, batch.progress),
            async {
                match news {
                    Some(news) => news.say(session, &events).await,
                    None => Ok(()),
                }
            },
            session.run("committing a batch", "COMMIT"),
        );
        written?;
        // No record is to blame for these.
        advanced.and(said).map_err(Failure::lasting)?;
        committed?;
        if let Some(news) = news {
            news.committed(events.len());
        }
        Ok(Applied::Done)
    }

    /// Begins a transaction, locks the tenure, and looks what is left to be done.
    async fn locked<'a>(&self, session: &mut Session, batch: &'a Batch) -> Result<Wanted<'a>, Failure> {
        let held = self.sql.lock(session).await?;
        if batch.epoch < held.epoch {
            return Ok(Wanted::Nothing(Applied::Fenced(held.epoch)));
        }
        let watermark = held.progress.applied;
        if batch.progress.applied <= watermark {
            return Ok(Wanted::Nothing(Applied::Done));
        }
        let new: Vec<&Op> = batch.ops.iter().filter(|op| op.seq > watermark).collect();
        let events = match &self.outbox {
            None => Vec::new(),
            Some(outbox) => {
                let applying = Applying {
                    epoch: batch.epoch,
                    after: watermark,
                    until: batch.progress.applied,
                    ops: &new,
                };
                match (outbox.events)(&applying) {
                    Ok(events) => events,
                    Err(error) => return Ok(Wanted::Nothing(Applied::Unsaid(error))),
                }
            }
        };
        Ok(Wanted::Changes { ops: last_of_each_key(new), events })
    }

    /// Finds the first record without which what comes before it is accepted, by halving, in a transaction that is
    /// taken back. If all are accepted now, what was refused may pass.
    async fn find_refused(
        &self,
        session: &mut Session,
        writes: &Writes,
        batch: &Batch,
        refused: Failure,
    ) -> Result<Applied, Failure> {
        // The failure may have come before the commit was sent.
        session.run("ending a transaction", "ROLLBACK").await?;
        let ops = match self.locked(session, batch).await? {
            Wanted::Nothing(applied) => return undone(session, applied).await,
            Wanted::Changes { mut ops, .. } => {
                ops.sort_by_key(|op| op.seq);
                ops
            }
        };
        let mut rest = ops.as_slice();
        let mut why = refused;
        while rest.len() > 1 {
            let (first, second) = rest.split_at(rest.len() / 2);
            match accepts(session, writes, first).await? {
                Ok(()) => rest = second,
                Err(failure) => (rest, why) = (first, failure),
            }
        }
        let found = match rest {
            [op] => accepts(session, writes, rest).await?.err().map(|failure| (op.seq, failure)),
            _ => None,
        };
        session.run("ending a transaction", "ROLLBACK").await?;
        match found {
            Some((seq, failure)) => Ok(Applied::Refused(seq, failure)),
            None => Err(why.within("every record is accepted now").passing()),
        }
    }
}

impl<'a> News<'a> {
    async fn prepare(outbox: &'a Channelled, session: &mut Session) -> Result<News<'a>, Failure> {
        let insert = outbox.table.prepare_insert(session).await?;
        let trim = match outbox.untrimmed.load(Ordering::Relaxed) >= TRIM_EVERY_ROWS {
            true => Some(outbox.table.prepare_trim(session).await?),
            false => None,
        };
        Ok(News { outbox, insert, trim })
    }

    /// Writes the events, and trims the channel if it is time. Sent with the first poll.
    async fn say(&self, session: &Session, events: &[Bytes]) -> Result<(), Failure> {
        let rows: Vec<(Option<&str>, Bytes)> = events.iter().map(|event| (None, event.clone())).collect();
        let channel = &self.outbox.channel;
        let (said, trimmed) = tokio::join!(
            biased;
            outbox::insert(session, &self.insert, channel, &rows),
            async {
                match &self.trim {
                    Some(trim) => trim.run(session, channel, self.outbox.retention).await,
                    None => Ok(()),
                }
            },
        );
        said.and(trimmed)
    }

    fn committed(&self, rows: usize) {
        match self.trim {
            Some(_) => self.outbox.untrimmed.store(0, Ordering::Relaxed),
            None => drop(self.outbox.untrimmed.fetch_add(rows as u64, Ordering::Relaxed)),
        }
    }
}

/// Ends a transaction in which nothing was changed.
async fn undone(session: &Session, applied: Applied) -> Result<Applied, Failure> {
    session.run("ending a transaction", "ROLLBACK").await?;
    Ok(applied)
}

/// Whether the server takes these changes; those that it took stay, those that it refused are taken back.
async fn accepts(session: &Session, writes: &Writes, ops: &[&Op]) -> Result<Result<(), Failure>, Failure> {
    const DOING: &str = "looking for a refused record";
    session.run(DOING, "SAVEPOINT accepted").await?;
    for part in Part::divide(&last_of_each_key(ops.to_vec())) {
        match writes.write(session, &part).await {
            Ok(()) => {}
            Err(failure) if failure.sort == Sort::Content => {
                session.run(DOING, "ROLLBACK TO accepted").await?;
                return Ok(Err(failure));
            }
            Err(failure) => return Err(failure),
        }
    }
    session.run(DOING, "RELEASE accepted").await?;
    Ok(Ok(()))
}

/// The last change of each key, in the order of keys, so that two transactions lock rows in one order.
fn last_of_each_key(mut ops: Vec<&Op>) -> Vec<&Op> {
    ops.sort_by(|a, b| a.key.cmp(&b.key));
    ops.dedup_by(|later, kept| {
        let is_same = later.key == kept.key;
        if is_same {
            *kept = *later;
        }
        is_same
    });
    ops
}
