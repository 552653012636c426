//! The change stream: the changes that the store holds, in the layer's order. They are read from the journal, up to the
//! watermark.
//!
//! Sequence numbers prove that nothing is left out. Every number up to the watermark is covered by a frame of the
//! journal or by a range that is reported as lost. So neither a trimmed segment nor a write that left nothing in the
//! journal can be missed silently. A change is never reported before the store holds it.

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

/// The bytes of the journal that are read at once. The changes that are ready take about as much memory.
const READ_AHEAD_BYTES: u64 = 256 << 10;

/// The parts of a layer that its change streams read from. Does not keep the layer open.
pub(crate) struct ChangeSource {
    pub(crate) core: Arc<Core>,
    pub(crate) log: Arc<Log>,
    pub(crate) letters: Option<Arc<DeadLetters>>,
    pub(crate) cursors: Arc<Cursors>,
    pub(crate) applied: Arc<ApplyHistory>,
    pub(crate) runtime: Handle,
}

/// A stream of the changes of a layer that the store holds, in the layer's order.
///
/// Made by [`Forebay::changes`](crate::Forebay::changes). It ends with the layer and does not keep it open.
pub struct ChangeStream {
    source: Arc<ChangeSource>,
    subscription: Option<CursorSubscription>,
    ahead: Option<Ahead>,
    read: Read,
    told: Seq,
    /// The place in the journal right after the last returned change, if it is known.
    told_end: Option<Location>,
}

/// A reader of the journal at some place. It can be dropped: the stream knows how far it has read.
struct Ahead {
    reader: Reader,
    /// A frame that was read and that the store does not hold yet.
    frame: Option<Frame>,
}

/// The outcomes that are read and not returned yet. The last outcome of a frame has the place after the frame.
struct Read {
    ready: VecDeque<(ChangeOutcome, Option<Location>)>,
    /// The last number that they cover.
    to: Seq,
}

impl ChangeSource {
    /// Opens a stream that begins at `from`.
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

    /// Removes a cursor. Returns true if there was one.
    pub(crate) async fn forget(&self, name: &str) -> Result<bool> {
        let (cursors, log, core) = (Arc::clone(&self.cursors), Arc::clone(&self.log), Arc::clone(&self.core));
        let name = cursor_name(name)?;
        self.aside(move || {
            let known = cursors.remove(&name)?;
            // The journal may have kept segments for this cursor alone.
            trim(&core, &cursors, &log);
            Ok(known)
        })
        .await
    }

    /// Returns the named cursors.
    pub(crate) fn cursors(&self) -> Vec<CursorStatus> {
        let listed = self.cursors.list().into_iter();
        let status = listed.map(|(CursorSummary { name, acknowledged }, open)| {
            let lag = self.lag(acknowledged, None);
            CursorStatus { name, acknowledged, open, lag }
        });
        status.collect()
    }

    /// Returns the lag of a position behind the store. `from` is its place in the journal, if it is known.
    pub(crate) fn lag(&self, told: Seq, from: Option<Location>) -> ChangeLag {
        let watermark = self.core.status.borrow().watermark;
        if told >= watermark {
            return ChangeLag::default();
        }
        // With a known place the journal gives the exact bytes. Without one the history of applies does, back to the
        // opening of the layer.
        let held = || self.applied.end().map_or(0, |end| self.log.bytes_between(told, from, end));
        let counted = if from.is_none() { self.applied.bytes_after(told) } else { None };
        ChangeLag {
            records: watermark.0.saturating_sub(told.0),
            bytes: counted.unwrap_or_else(held),
            age: self.applied.age_after(told),
        }
    }

    /// Waits until the store holds a number after `seq`. Returns the watermark.
    async fn wait_beyond(&self, seq: Seq) -> Result<Seq> {
        let committed = || self.core.pending.lock().last_committed();
        if !Safeguard::ChangesBehindWatermark.holds() && committed() > seq {
            return Ok(committed());
        }
        let mut watched = self.core.status.subscribe();
        // A halted flusher is not the end, since it can be resumed.
        let over = |state| matches!(state, HealthState::Fenced | HealthState::Failed | HealthState::Closed);
        let status = watched.wait_for(|status| status.watermark > seq || over(status.state)).await;
        let status = status.map_err(|_| Error::layer_closed())?;
        // Before the error: what was applied before the layer ended is still delivered.
        if status.watermark > seq {
            return Ok(status.watermark);
        }
        Err(status.error.clone().unwrap_or_else(Error::layer_closed))
    }

    /// Reads on up to the watermark, at most about [`READ_AHEAD_BYTES`]. An error is returned only once everything
    /// before it has been delivered.
    fn read(&self, mut ahead: Ahead, after: Seq, watermark: Seq) -> Result<(Option<Ahead>, Read)> {
        let mut read = Read { ready: VecDeque::new(), to: after };
        match self.read_on(&mut ahead, &mut read, watermark) {
            Ok(()) => Ok((Some(ahead), read)),
            // The reader is dropped, so the next read meets the same error, with nothing ready before it.
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
                // The journal holds nothing for the numbers up to the watermark, so they are lost.
                later => {
                    ahead.frame = later;
                    read.ready.extend(lost(read.to, watermark));
                    read.to = watermark;
                    return Ok(());
                }
            };
            let told = self.changes_of(&frame, read.to)?;
            // A hole before the frame: a trimmed segment, or writes that left nothing in the journal.
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

    /// Returns the changes of a frame that come after `after`.
    fn changes_of(&self, frame: &Frame, after: Seq) -> Result<Vec<ChangeOutcome>> {
        // Parking comes before the watermark passes the frame, so this answer is final.
        let parked = self.letters.as_ref().is_some_and(|letters| letters.holds(frame.first));
        let mut told = Vec::new();
        for (bytes, at) in frame.records().zip(0_u64..) {
            let (seq, record) = (frame.first.plus(at), Record::parse(&bytes)?);
            if record.is_control() {
                // A replay or discard also covers keys that share a batch with the named ones. The journal does not say
                // which, so the whole frame is reported as lost.
                let after = after.max(Seq(frame.first.0.saturating_sub(1)));
                return Ok(vec![ChangeOutcome::PlaceLost { after, until: frame.last() }]);
            }
            if seq > after {
                told.extend(change(seq, record, parked).map(ChangeOutcome::Change));
            }
        }
        Ok(told)
    }

    /// Runs blocking file access on the layer's own runtime, since the caller may have none.
    async fn aside<T: Send + 'static>(&self, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        self.runtime.spawn_blocking(work).await.map_err(|_| Error::layer_closed())?
    }
}

impl ChangeStream {
    /// Returns the next change or lost range, and waits until the store holds one.
    ///
    /// Changes come in order, and each at least once: after a restart a stream with a cursor begins again after the
    /// last acknowledged number. If the future is dropped, the next call returns the same item. Costs a read of the
    /// journal on the layer's own threads, for some hundred KiB at a time.
    ///
    /// # Errors
    /// The reason why the layer has ended ([`ErrorKind::Closed`], [`ErrorKind::Fenced`], its failure), after all
    /// applied changes have been returned; [`ErrorKind::Closed`] may come some changes earlier.
    /// [`ErrorKind::Damaged`] or [`ErrorKind::Io`] if the journal cannot be read; the next call tries again.
    pub async fn next(&mut self) -> Result<ChangeOutcome> {
        loop {
            if let Some(outcome) = self.ready() {
                return Ok(outcome);
            }
            let watermark = self.more().await?;
            self.read_to(watermark).await?;
        }
    }

    /// Waits until the store holds more than has been read, and returns the watermark. All that was read must have been
    /// returned before. Dropping the future loses nothing.
    pub(crate) async fn more(&mut self) -> Result<Seq> {
        self.told = self.read.to;
        self.source.wait_beyond(self.read.to).await
    }

    /// Reads on, up to `watermark` or about [`READ_AHEAD_BYTES`]. The frames may hold nothing to deliver. If the future
    /// is dropped, they are read again by the next call.
    pub(crate) async fn read_to(&mut self, watermark: Seq) -> Result<()> {
        let after = self.read.to;
        let anew = || Ahead { reader: self.source.log.read_after(after), frame: None };
        let ahead = self.ahead.take().unwrap_or_else(anew);
        let source = Arc::clone(&self.source);
        let read = self.source.aside(move || source.read(ahead, after, watermark));
        (self.ahead, self.read) = read.await?;
        Ok(())
    }

    /// Returns the next outcome that has been read already.
    pub(crate) fn ready(&mut self) -> Option<ChangeOutcome> {
        let (outcome, end) = self.read.ready.pop_front()?;
        self.told_end = end.or(self.told_end);
        // The end of a read may lie behind its last change: the records in between have nothing to deliver.
        self.told = if self.read.ready.is_empty() { self.read.to } else { outcome.seq() };
        let metrics = &self.source.core.metrics;
        match &outcome {
            ChangeOutcome::Change(_) => metrics.changes_delivered.add(1),
            ChangeOutcome::PlaceLost { .. } => metrics.places_lost.add(1),
        }
        Some(outcome)
    }

    /// Moves the durable cursor to `seq`: changes up to this number are not delivered again.
    ///
    /// Durable on return. Costs two syncs, so acknowledge several changes together where you can. If the future is
    /// dropped, the cursor may or may not have moved.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] if `seq` was not returned yet; [`ErrorKind::Unsupported`] without a cursor;
    /// [`ErrorKind::Closed`]; a failure of the file system, which leaves the cursor in place.
    pub async fn acknowledge(&self, seq: Seq) -> Result<()> {
        let Some(subscription) = &self.subscription else {
            let context = "only a stream with a named cursor can acknowledge: nothing remembers another one";
            return Err(Error::new(ErrorKind::Unsupported, context));
        };
        // The journal would be trimmed for changes that the subscriber has never seen.
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

    /// Returns the lag of the last returned change behind the store.
    #[must_use]
    pub fn lag(&self) -> ChangeLag {
        self.source.lag(self.told, self.told_end)
    }

    /// Returns the last number that the stream has delivered or passed over.
    #[must_use]
    pub fn told(&self) -> Seq {
        self.told
    }

    /// Returns the place in the journal right after that number, if it is known.
    pub(crate) fn told_end(&self) -> Option<Location> {
        self.told_end
    }

    /// Returns the source that the stream reads from.
    pub(crate) fn source(&self) -> &Arc<ChangeSource> {
        &self.source
    }

    /// Converts this into a blocking iterator, for callers without a runtime.
    #[must_use]
    pub fn blocking(self) -> BlockingChangeStream {
        BlockingChangeStream { inner: self, ended: false }
    }
}

/// A [`ChangeStream`] for callers without a runtime: an iterator whose steps wait as [`ChangeStream::next`] does.
///
/// It ends after the error that ends the layer.
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
        // Those pass, and the next step reads again. Any other error would repeat for ever, so the iterator ends.
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

    /// Returns the stream itself.
    #[must_use]
    pub fn stream(&self) -> &ChangeStream {
        &self.inner
    }
}

fn cursor_name(name: &str) -> Result<NamespaceName> {
    let bad = |error: Error| error.wrap(ErrorKind::InvalidName, "a cursor is named as a namespace is");
    NamespaceName::parse(name).map_err(bad)
}

/// Trims the journal for its cursors. A failure is only a warning: a segment stays, and the next trim tries again.
fn trim(core: &Core, cursors: &Cursors, log: &Log) {
    if let Err(error) = cursors.trim_for_cursor(log) {
        core.warn(Some(error));
    }
}

fn lost(after: Seq, until: Seq) -> Option<(ChangeOutcome, Option<Location>)> {
    let is_lost = until > after && Safeguard::LostPlaceIsTold.holds();
    is_lost.then_some((ChangeOutcome::PlaceLost { after, until }, None))
}

/// Returns the change that a record makes. A list of versions is none: the versions themselves are reported.
fn change(seq: Seq, record: Record, parked: bool) -> Option<Change> {
    let (key, version) = match record.key.stored_kind() {
        StoredKind::Value => (record.key.clone(), None),
        StoredKind::Version(key, version) => (key, Some(version)),
        StoredKind::VersionList => return None,
    };
    let stale_key = |key: &Key| ChangeKind::Invalidate(Invalidation::Key(key.clone()));
    let kind = match (Invalidation::of_token(&key, &record.value), record.operation, version) {
        // A token is stored as a put, but its bytes mean nothing to a subscriber.
        (Some(what), ..) => ChangeKind::Invalidate(what),
        // The store refused the record, so its value must not reach a subscriber.
        _ if parked => stale_key(&key),
        (None, Operation::Put, None) => ChangeKind::Put(record.value),
        (None, Operation::Put, Some(version)) => ChangeKind::PutVersion(version, record.value),
        (None, Operation::Remove, None) => ChangeKind::Remove,
        (None, Operation::Remove, Some(version)) => ChangeKind::RemoveVersion(version),
        // The journal holds no value of a write-through.
        (None, Operation::Notice | Operation::Replay | Operation::Discard, _) => stale_key(&key),
    };
    Some(Change { seq, key, kind })
}
