//! The flusher's next batch: its frames, from memory and from the journal, and the wait for more of them.
//!
//! Writers come first. While they go on committing, the drain yields to them, since it shares the processors and the
//! disk with them. It never waits for them to end: what is pending may reach a bounded age and size, and nobody who
//! waits for an apply or for room is delayed by this. Once that bound is reached, everything that was pending is
//! drained without another wait.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};
use crate::ids::Seq;
use crate::journal::frame::Frame;
use crate::journal::log::{Log, Reader};
use crate::options::LayerOptions;
use crate::queue::pending::Pending;
use crate::queue::queued::QueuedFrame;
use crate::queue::record::{Operation, Record};
use crate::queue::state::Core;
use crate::seam::clock;
use crate::seam::sync::thread;

/// The frames that are taken or retired under one lock, so that the committer does not wait long for it.
pub(crate) const FRAMES_PER_LOCK: usize = 64;

/// The time that the flusher waits for writers which it just answered: about a third of an apply.
const SPIN_MAX: Duration = Duration::from_micros(100);

/// Builds the flusher's batches, one after the other.
pub(crate) struct Batcher {
    core: Arc<Core>,
    log: Option<Arc<Log>>,
    /// Reads spilled frames, while there are any.
    reader: Option<Reader>,
    /// The spilled frame that was read last and is in no batch yet.
    ahead: Option<Frame>,
    /// The last number in the journal when the layer opened.
    recovered: Seq,
    /// Everything up to this number is drained without a wait.
    drain_to: Seq,
    /// Everything after `drain_to` was committed later than this.
    drain_began: Instant,
    /// The time at which a write-through was last answered.
    through_answered: Option<Instant>,
    /// True if others wait to be notified of what is applied, so that the drain may not yield to writers.
    notifies: bool,
}

/// The progress of the flusher that its next batch depends on.
#[derive(Clone, Copy)]
pub(crate) struct FlusherProgress {
    /// The watermark.
    pub(crate) applied: Seq,
    /// The last number of a write-through that was refused.
    pub(crate) refused: Seq,
    /// The number of write-throughs that the last batch answered.
    pub(crate) answered: usize,
}

/// The batch that is being built.
#[derive(Default)]
struct BatchBuilder {
    frames: Vec<QueuedFrame>,
    records: usize,
    bytes: u64,
    full: bool,
}

impl Batcher {
    /// Makes a batcher for a layer that opens with a journal up to `recovered`.
    pub(crate) fn new(core: Arc<Core>, log: Option<Arc<Log>>, recovered: Seq, notifies: bool) -> Batcher {
        Batcher {
            core,
            log,
            reader: None,
            ahead: None,
            recovered,
            drain_to: Seq::ZERO,
            drain_began: clock::now(),
            through_answered: None,
            notifies,
        }
    }

    /// Waits for work, and for the batch to fill if the options say so and nothing is urgent. Returns an empty batch if
    /// nothing is pending and the watermark has to pass refused numbers.
    ///
    /// # Errors
    /// The journal's, when spilled frames cannot be read back.
    pub(crate) async fn next_batch(&mut self, progress: FlusherProgress) -> Result<Vec<QueuedFrame>> {
        let core = Arc::clone(&self.core);
        let mut batch = BatchBuilder::default();
        // Everything older was drained, so nothing that is pending by now was committed earlier.
        let mut oldest = self.drain_began;
        loop {
            let work = core.work.notified();
            self.fill(&mut batch)?;
            if !batch.frames.is_empty() {
                break;
            }
            // With nothing pending, everything committed before the refused numbers has ended, too.
            if progress.refused > progress.applied {
                return Ok(batch.frames);
            }
            work.await;
            oldest = clock::now();
        }
        if progress.answered > 0 {
            self.through_answered = Some(clock::now());
        }
        self.spin_for(progress.answered, &mut batch)?;
        if core.options.batch_linger.is_zero() {
            return Ok(batch.frames);
        }
        if batch.frames.first().is_some_and(|frame| frame.first > self.drain_to) {
            self.linger(oldest, progress.applied).await;
            self.drain_to = core.pending.lock().last_committed();
            self.drain_began = clock::now();
        }
        self.fill(&mut batch)?;
        Ok(batch.frames)
    }

    /// Waits for the batch to fill, unless something is urgent. While more is being committed it waits longer, and for
    /// more than a batch.
    async fn linger(&self, oldest: Instant, applied: Seq) {
        let (core, linger) = (&self.core, self.core.options.batch_linger);
        let until = oldest + self.delay_max();
        let mut committed = core.pending.lock().last_committed();
        loop {
            let yields = clock::now() + linger <= until;
            core.set_drain_yields(yields);
            let deadline = clock::sleep(linger);
            tokio::pin!(deadline);
            loop {
                if core.is_urgent(applied) {
                    return;
                }
                tokio::select! {
                    biased;
                    () = &mut deadline => break,
                    () = core.urgent.notified() => {}
                }
            }
            let newest = core.pending.lock().last_committed();
            // Writers that have stopped need no more time, and those that go on may not have more.
            if newest == committed || !yields {
                return;
            }
            committed = newest;
        }
    }

    /// Returns the age that a pending record may reach while the drain yields to writers.
    fn delay_max(&self) -> Duration {
        let delay_max = self.core.options.drain_delay_max;
        // A writer that wrote through a moment ago may do so again, and would wait for everything pending by then. A
        // subscriber of changes waits for the apply.
        let through = self.through_answered.is_some_and(|at| clock::now() < at + delay_max);
        if self.notifies || through { Duration::ZERO } else { delay_max }
    }

    /// Spins for so many writers whose write-throughs were just answered. As a rule they write through again at once,
    /// and one that misses this batch waits for two applies. A lone writer is never kept waiting.
    fn spin_for(&mut self, writers: usize, batch: &mut BatchBuilder) -> Result<()> {
        if writers < 2 {
            return Ok(());
        }
        let until = clock::now() + SPIN_MAX;
        while !batch.full && batch.frames.len() < writers && clock::now() < until {
            thread::yield_now();
            self.fill(batch)?;
        }
        Ok(())
    }

    /// Takes pending frames, in order, until there are none or the batch is full.
    fn fill(&mut self, batch: &mut BatchBuilder) -> Result<()> {
        while !batch.full {
            // Before the lock, since it reads the disk.
            self.read_ahead()?;
            let limit = self.ahead.as_ref().map(|frame| frame.first);
            let mut pending = self.core.pending.lock();
            if pending.has_before(limit) {
                self.take_from_memory(batch, &mut pending, limit)?;
                continue;
            }
            let frame = match &self.ahead {
                Some(ahead) if ahead.last() <= self.recovered => {
                    QueuedFrame { after: ahead.prev, ..QueuedFrame::read(ahead) }
                }
                Some(ahead) => QueuedFrame::read(ahead),
                // Frames were spilled between the read and the lock.
                None if pending.spilled().is_some() => continue,
                None => return Ok(()),
            };
            if !batch.admits(&frame, &self.core.options)? {
                return Ok(());
            }
            // All spilled frames are read. The next ones lie further on, so their reader begins anew.
            if pending.note_read_back(frame.last()) {
                self.reader = None;
            }
            self.ahead = None;
            batch.frames.push(frame);
        }
        Ok(())
    }

    /// Takes some frames that come before `limit` from memory.
    fn take_from_memory(
        &self,
        batch: &mut BatchBuilder,
        pending: &mut Pending,
        limit: Option<Seq>,
    ) -> Result<()> {
        for _ in 0..FRAMES_PER_LOCK {
            let Some(front) = pending.front_before(limit) else { return Ok(()) };
            if batch.full || !batch.admits(&front, &self.core.options)? {
                return Ok(());
            }
            batch.frames.extend(pending.pop_before(limit));
        }
        Ok(())
    }

    /// Reads the next spilled frame, if there is one and it has not been read.
    fn read_ahead(&mut self) -> Result<()> {
        if self.ahead.is_some() {
            return Ok(());
        }
        let Some((after, until)) = self.core.pending.lock().spilled() else { return Ok(()) };
        let Some(log) = &self.log else { return Ok(()) };
        loop {
            let reader = self.reader.get_or_insert_with(|| log.read_after(after));
            let frame = reader.next_frame()?.ok_or_else(|| {
                let context = format!("the journal ends before record {until}, which it has committed");
                Error::new(ErrorKind::Damaged, context)
            })?;
            if !is_notice_of_memory(&frame, self.recovered)? {
                self.ahead = Some(frame);
                return Ok(());
            }
        }
    }
}

impl BatchBuilder {
    /// Returns true and counts the frame if it fits; if not, the batch is full.
    ///
    /// A single frame always fits, because a frame is never split. A command to the dead-letter list is a batch of its
    /// own.
    fn admits(&mut self, frame: &QueuedFrame, options: &LayerOptions) -> Result<bool> {
        let control = is_control(frame)?;
        let records = self.records + frame.count as usize;
        let bytes = self.bytes + frame.bytes;
        let over = records > options.batch_records_max || bytes > options.batch_bytes_max;
        if !self.frames.is_empty() && (control || over) {
            self.full = true;
            return Ok(false);
        }
        self.full = control || records >= options.batch_records_max || bytes >= options.batch_bytes_max;
        (self.records, self.bytes) = (records, bytes);
        Ok(true)
    }
}

/// Returns true if a frame is a command to the dead-letter list.
pub(crate) fn is_control(frame: &QueuedFrame) -> Result<bool> {
    match frame.records().next() {
        Some(numbered) => Ok(numbered?.1.is_control()),
        None => Ok(false),
    }
}

/// Returns true if a frame of the journal is the notice of a write-through whose frame is in memory.
///
/// Notices up to `recovered` are an earlier process's, and of those nothing else is left: they are drained themselves.
fn is_notice_of_memory(frame: &Frame, recovered: Seq) -> Result<bool> {
    match frame.records().next() {
        Some(bytes) if frame.last() > recovered => Ok(Record::parse(&bytes)?.operation == Operation::Notice),
        _ => Ok(false),
    }
}
