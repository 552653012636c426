//! The change stream: what the store has been given, in the layer's order, read from the journal behind the watermark.
//!
//! Numbers are the proof that nothing is left out: every number up to the watermark is told as a change, or within a
//! range of numbers that cannot be told, which is what a lost place is. So neither a trimmed segment nor a write that
//! left nothing in the journal can be missed silently.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::feed::change::{Change, ChangeKind, ChangeLag, ChangeOutcome, ChangesFrom, CursorStatus};
use crate::flush::applied::ApplyHistory;
use crate::ids::{Key, NamespaceName, Seq, StoredKind};
use crate::invalidation::Invalidation;
use crate::journal::cursors::{CursorSubscription, CursorSummary, Cursors};
use crate::journal::frame::{Frame, Location};
use crate::journal::log::Log;
use crate::journal::log::Reader;
use crate::queue::dead_letters::DeadLetters;
use crate::queue::health::HealthState;
use crate::queue::record::{Operation, Record};
use crate::queue::state::Core;
use crate::safeguard::Safeguard;
use crate::seam::blocking::blocking_calls;
use crate::seam::clock::{Handle, block_on};

/// How much of the journal is read at once; what is ready to be told takes about that.
const READ_AHEAD_BYTES: u64 = 256 << 10;

/// What the streams of a layer need of it. Keeps no layer open.
pub(crate) struct ChangeSource {
    pub(crate) core: Arc<Core>,
    pub(crate) log: Arc<Log>,
    pub(crate) letters: Option<Arc<DeadLetters>>,
    pub(crate) cursors: Arc<Cursors>,
    pub(crate) applied: Arc<ApplyHistory>,
    pub(crate) runtime: Handle,
}

/// The changes of a layer, in their order. Ends with the layer, and does not keep it open.
///
/// Made by [`Forebay::changes`](crate::Forebay::changes).
pub struct ChangeStream {
    source: Arc<ChangeSource>,
    subscription: Option<CursorSubscription>,
    ahead: Option<Ahead>,
    read: Read,
    told: Seq,
    /// What lies in the journal behind what was told, if that is known.
    told_end: Option<Location>,
}

/// The journal from some place on. Lost without harm: the stream knows how far it has read.
struct Ahead {
    reader: Reader,
    /// What was read and is not applied yet.
    frame: Option<Frame>,
}

/// What is ready to be told. Of a frame the last knows what lies behind the frame.
struct Read {
    ready: VecDeque<(ChangeOutcome, Option<Location>)>,
    /// How far that reaches.
    to: Seq,
}

impl ChangeSource {
    /// A stream from there on.
    pub(crate) async fn stream(self: &Arc<Self>, from: ChangesFrom) -> Result<ChangeStream> {
        let (subscription, after) = match from {
            ChangesFrom::After(seq) => (None, seq),
            ChangesFrom::Cursor(name) => {
                let (cursors, name) = (Arc::clone(&self.cursors), cursor_name(&name)?);
                let (subscription, place) = self.aside(move || cursors.subscribe(&name)).await?;
                (Some(subscription), place)
            }
        };
        let read = Read { ready: VecDeque::new(), to: after };
        let source = Arc::clone(self);
        Ok(ChangeStream { source, subscription, ahead: None, read, told: after, told_end: None })
    }

    /// Gives a cursor up.
    pub(crate) async fn forget(&self, name: &str) -> Result<bool> {
        let (cursors, log, core) = (Arc::clone(&self.cursors), Arc::clone(&self.log), Arc::clone(&self.core));
        let name = cursor_name(name)?;
        self.aside(move || {
            let known = cursors.remove(&name)?;
            trim(&core, &cursors, &log);
            Ok(known)
        })
        .await
    }

    /// The named cursors.
    pub(crate) fn cursors(&self) -> Vec<CursorStatus> {
        let listed = self.cursors.list().into_iter();
        let status = listed.map(|(CursorSummary { name, acknowledged }, open)| {
            let lag = self.lag(acknowledged, None);
            CursorStatus { name, acknowledged, open, lag }
        });
        status.collect()
    }

    /// How far one is behind the store who stands at this number and, if that is known, here in the journal.
    pub(crate) fn lag(&self, told: Seq, from: Option<Location>) -> ChangeLag {
        let watermark = self.core.status.borrow().watermark;
        if told >= watermark {
            return ChangeLag::default();
        }
        let held = || self.applied.end().map_or(0, |end| self.log.bytes_between(told, from, end));
        let counted = if from.is_none() { self.applied.bytes_after(told) } else { None };
        ChangeLag {
            records: watermark.0.saturating_sub(told.0),
            bytes: counted.unwrap_or_else(held),
            age: self.applied.age_after(told),
        }
    }

    /// Waits until the store holds something after `seq`; returns how far that goes.
    async fn wait_beyond(&self, seq: Seq) -> Result<Seq> {
        let committed = || self.core.pending.lock().last_committed();
        if !Safeguard::ChangesBehindWatermark.holds() && committed() > seq {
            return Ok(committed());
        }
        let mut watched = self.core.status.subscribe();
        let over = |state| matches!(state, HealthState::Fenced | HealthState::Failed | HealthState::Closed);
        let status = watched.wait_for(|status| status.watermark > seq || over(status.state)).await;
        let status = status.map_err(|_| Error::layer_closed())?;
        if status.watermark > seq {
            return Ok(status.watermark);
        }
        Err(status.error.clone().unwrap_or_else(Error::layer_closed))
    }

    /// Reads what comes next up to the watermark: all of it, or about as much as is read at once. An error comes when
    /// what lies before it has been told.
    fn read(&self, mut ahead: Ahead, after: Seq, watermark: Seq) -> Result<(Option<Ahead>, Read)> {
        let mut read = Read { ready: VecDeque::new(), to: after };
        match self.read_on(&mut ahead, &mut read, watermark) {
            Ok(()) => Ok((Some(ahead), read)),
            Err(_) if !read.ready.is_empty() => Ok((None, read)),
            Err(error) => Err(error),
        }
    }

    fn read_on(&self, ahead: &mut Ahead, read: &mut Read, watermark: Seq) -> Result<()> {
        let mut bytes = 0;
        while read.to < watermark && bytes < READ_AHEAD_BYTES {
            let next = match ahead.frame.take() {
                Some(frame) => Some(frame),
                None => ahead.reader.next_frame()?,
            };
            let frame = match next {
                Some(frame) if frame.last() <= watermark => frame,
                // Nothing in the journal explains the numbers up to the watermark.
                later => {
                    ahead.frame = later;
                    read.ready.extend(lost(read.to, watermark));
                    read.to = watermark;
                    return Ok(());
                }
            };
            let told = self.tell(&frame, read.to)?;
            read.ready.extend(lost(read.to, Seq(frame.first.0.saturating_sub(1))));
            read.ready.extend(told.into_iter().map(|outcome| (outcome, None)));
            if let Some((_, end)) = read.ready.back_mut() {
                *end = Some(frame.location.behind(frame.len_on_disk()));
            }
            read.to = frame.last();
            bytes += frame.len_on_disk();
        }
        Ok(())
    }

    /// What a frame says, as far as it comes after `after`.
    fn tell(&self, frame: &Frame, after: Seq) -> Result<Vec<ChangeOutcome>> {
        // The watermark has passed it: if it was parked, that was before.
        let parked = self.letters.as_ref().is_some_and(|letters| letters.holds(frame.first));
        let mut told = Vec::new();
        for (bytes, at) in frame.records().zip(0_u64..) {
            let (seq, record) = (frame.first.plus(at), Record::parse(&bytes)?);
            if record.is_control() {
                // Only the flusher knew which keys share a batch with those that it names.
                let after = after.max(Seq(frame.first.0.saturating_sub(1)));
                return Ok(vec![ChangeOutcome::PlaceLost { after, until: frame.last() }]);
            }
            if seq > after {
                told.extend(change(seq, record, parked).map(ChangeOutcome::Change));
            }
        }
        Ok(told)
    }

    /// Runs blocking file access on the layer's own runtime, not on the caller's.
    async fn aside<T: Send + 'static>(&self, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        self.runtime.spawn_blocking(work).await.map_err(|_| Error::layer_closed())?
    }
}

impl ChangeStream {
    /// The next change, or the range that cannot be told; waits until the store holds it.
    ///
    /// In order, and each at least once: after a restart a stream with a cursor begins again behind what was
    /// acknowledged. Dropping the future loses nothing: what it would have returned is returned by the next call. Costs
    /// a read of the journal, on the layer's own threads, for some hundred KiB of it at a time.
    ///
    /// # Errors
    /// When all that is applied has been told: why the layer has ended ([`ErrorKind::Closed`], [`ErrorKind::Fenced`],
    /// its failure), or [`ErrorKind::Closed`] some changes before that. [`ErrorKind::Damaged`] or [`ErrorKind::Io`] if
    /// the journal cannot be read; the next call tries again.
    pub async fn next(&mut self) -> Result<ChangeOutcome> {
        loop {
            if let Some(outcome) = self.ready() {
                return Ok(outcome);
            }
            let watermark = self.more().await?;
            self.read_to(watermark).await?;
        }
    }

    /// Waits until the store holds more than what has been read, which is to have been told; returns how far that
    /// goes. Dropping the future loses nothing, not even time.
    pub(crate) async fn more(&mut self) -> Result<Seq> {
        self.told = self.read.to;
        self.source.wait_beyond(self.read.to).await
    }

    /// Reads on, up to there or about as much as is read at once. What is read may be nothing that is told. If the
    /// future is dropped, it has to be read again.
    pub(crate) async fn read_to(&mut self, watermark: Seq) -> Result<()> {
        let after = self.read.to;
        let anew = || Ahead { reader: self.source.log.read_after(after), frame: None };
        let ahead = self.ahead.take().unwrap_or_else(anew);
        let source = Arc::clone(&self.source);
        let read = self.source.aside(move || source.read(ahead, after, watermark));
        (self.ahead, self.read) = read.await?;
        Ok(())
    }

    /// The next of what has been read already.
    pub(crate) fn ready(&mut self) -> Option<ChangeOutcome> {
        let (outcome, end) = self.read.ready.pop_front()?;
        self.told_end = end.or(self.told_end);
        self.told = if self.read.ready.is_empty() { self.read.to } else { outcome.seq() };
        let metrics = &self.source.core.metrics;
        match &outcome {
            ChangeOutcome::Change(_) => metrics.changes_delivered.add(1),
            ChangeOutcome::PlaceLost { .. } => metrics.places_lost.add(1),
        }
        Some(outcome)
    }

    /// Moves the durable cursor: what has this number or a lower one need not be told again. Durable on return; costs
    /// two syncs, so acknowledge some changes together where that does. Whether it happened is open if the future is
    /// dropped.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] if that was not told yet; [`ErrorKind::Unsupported`] without a cursor;
    /// [`ErrorKind::Closed`]; the file system's, and then the cursor is where it was.
    pub async fn acknowledge(&self, seq: Seq) -> Result<()> {
        let Some(subscription) = &self.subscription else {
            let context = "only a stream with a named cursor can acknowledge: nothing remembers another one";
            return Err(Error::new(ErrorKind::Unsupported, context));
        };
        if seq > self.told {
            let context = format!("acknowledged up to {seq}, and told up to {}", self.told);
            return Err(Error::new(ErrorKind::InvalidOption, context));
        }
        let (cursors, name) = (Arc::clone(&subscription.cursors), subscription.name.clone());
        let (core, log) = (Arc::clone(&self.source.core), Arc::clone(&self.source.log));
        let acknowledged = self.source.aside(move || {
            cursors.acknowledge(&name, seq)?;
            trim(&core, &cursors, &log);
            Ok(())
        });
        acknowledged.await
    }

    /// How far what was told is behind the store.
    #[must_use]
    pub fn lag(&self) -> ChangeLag {
        self.source.lag(self.told, self.told_end)
    }

    /// How far it has told.
    #[must_use]
    pub fn told(&self) -> Seq {
        self.told
    }

    /// Where that ends in the journal, if that is known.
    pub(crate) fn told_end(&self) -> Option<Location> {
        self.told_end
    }

    /// What it is made of.
    pub(crate) fn source(&self) -> &Arc<ChangeSource> {
        &self.source
    }

    /// The same stream for a caller without a runtime.
    #[must_use]
    pub fn blocking(self) -> BlockingChangeStream {
        BlockingChangeStream { inner: self, ended: false }
    }
}

/// A [`ChangeStream`] for callers without a runtime: an iterator, each step of which waits as [`ChangeStream::next`]
/// does. It ends behind the error that ends the layer.
pub struct BlockingChangeStream {
    inner: ChangeStream,
    ended: bool,
}

impl Iterator for BlockingChangeStream {
    type Item = Result<ChangeOutcome>;

    fn next(&mut self) -> Option<Result<ChangeOutcome>> {
        if self.ended {
            return None;
        }
        let runtime = self.inner.source.runtime.clone();
        let next = block_on(Some(&runtime), self.inner.next());
        let again = |error: &Error| matches!(error.kind(), ErrorKind::Damaged | ErrorKind::Io);
        self.ended = next.as_ref().is_err_and(|error| !again(error));
        Some(next)
    }
}

impl BlockingChangeStream {
    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        block_on(Some(&self.inner.source.runtime), future)
    }

    blocking_calls! { ChangeStream:
        fn acknowledge(seq: Seq) -> Result<()>;
    }

    /// The stream itself.
    #[must_use]
    pub fn stream(&self) -> &ChangeStream {
        &self.inner
    }
}

fn cursor_name(name: &str) -> Result<NamespaceName> {
    let bad = |error: Error| error.wrap(ErrorKind::InvalidName, "a cursor is named as a namespace is");
    NamespaceName::parse(name).map_err(bad)
}

/// That a segment stays is not the subscriber's trouble: it costs room, and the next trim tries again.
fn trim(core: &Core, cursors: &Cursors, log: &Log) {
    if let Err(error) = cursors.trim_for_cursor(log) {
        core.warn(Some(error));
    }
}

fn lost(after: Seq, until: Seq) -> Option<(ChangeOutcome, Option<Location>)> {
    let is_lost = until > after && Safeguard::LostPlaceIsTold.holds();
    is_lost.then_some((ChangeOutcome::PlaceLost { after, until }, None))
}

/// What a record says to a subscriber. Which versions there are it hears from the versions themselves.
fn change(seq: Seq, record: Record, parked: bool) -> Option<Change> {
    let (key, version) = match record.key.stored_kind() {
        StoredKind::Value => (record.key.clone(), None),
        StoredKind::Version(key, version) => (key, Some(version)),
        StoredKind::VersionList => return None,
    };
    let stale_key = |key: &Key| ChangeKind::Invalidate(Invalidation::Key(key.clone()));
    let kind = match (Invalidation::of_token(&key, &record.value), record.operation, version) {
        (Some(what), ..) => ChangeKind::Invalidate(what),
        // The store did not take it, so its value is nobody's.
        _ if parked => stale_key(&key),
        (None, Operation::Put, None) => ChangeKind::Put(record.value),
        (None, Operation::Put, Some(version)) => ChangeKind::PutVersion(version, record.value),
        (None, Operation::Remove, None) => ChangeKind::Remove,
        (None, Operation::Remove, Some(version)) => ChangeKind::RemoveVersion(version),
        (None, Operation::Notice | Operation::Replay | Operation::Discard, _) => stale_key(&key),
    };
    Some(Change { seq, key, kind })
}
