//! The flusher: takes committed frames in order and applies them to the store, batch after batch.
//!
//! A batch is never queued again. One that fails stays with the flusher and is sent again until the store takes it,
//! rejects a record of it, or fails for good. The watermark moves only when the store has confirmed an apply.

use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::flush::accounts::{Numbers, join};
use crate::flush::applied::ApplyHistory;
use crate::flush::batching::{Batcher, FRAMES_PER_LOCK, FlusherProgress, is_control};
use crate::flush::parking::Parking;
use crate::flush::plan::{Ops, frame_of};
use crate::ids::Seq;
use crate::journal::committer::Committer;
use crate::journal::cursors::Cursors;
use crate::journal::log::Log;
use crate::queue::health::HealthState;
use crate::queue::queued::QueuedFrame;
use crate::queue::state::Core;
use crate::queue::ticket::{Until, WriteTicket};
use crate::safeguard::Safeguard;
use crate::seam::backoff::Backoff;
use crate::seam::clock;
use crate::seam::span::Span;
use crate::store::contract::{Batch, Op, Progress, Store, StoreError};

/// The flusher of a layer.
pub(crate) struct Flusher {
    pub(crate) core: Arc<Core>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) committer: Arc<Committer<Core>>,
    pub(crate) log: Option<Arc<Log>>,
    pub(crate) cursors: Option<Arc<Cursors>>,
    pub(crate) applied: Arc<ApplyHistory>,
    pub(crate) parking: Parking,
    pub(crate) batcher: Batcher,
    /// The store's progress as of the last apply.
    pub(crate) progress: Progress,
    /// The numbers of refused write-throughs that the store's watermark has not passed.
    pub(crate) refused: Vec<Numbers>,
    /// The number of the last batch.
    pub(crate) batch: u64,
    /// The number of write-throughs that the last batch answered.
    pub(crate) answered: usize,
}

/// The reason why a batch was not applied.
enum Refusal {
    /// The store rejects this record.
    Record(Seq, Error),
    /// The layer has failed, and its waiters have been answered.
    Over,
}

impl Flusher {
    /// Drains until the layer fails.
    ///
    /// Dropping the future stops the flusher and loses nothing: the batch that it had is still in the journal, and the
    /// store either holds it or not.
    pub(crate) async fn run(mut self) {
        loop {
            let answered = std::mem::take(&mut self.answered);
            let progress =
                FlusherProgress { applied: self.progress.applied, refused: self.last_refused(), answered };
            match self.batcher.next_batch(progress).await {
                Ok(frames) => {
                    let delivered = match frames.is_empty() {
                        true => self.pass_refused().await,
                        false => self.deliver(frames).await,
                    };
                    if delivered.is_err() {
                        return;
                    }
                }
                Err(error) => return self.core.fail(HealthState::Failed, error),
            }
        }
    }

    /// Moves the watermark over the numbers of refused writes. Without it a flush that waits for those numbers would
    /// wait until something else is written.
    async fn pass_refused(&mut self) -> Result<(), ()> {
        let applied = self.last_refused();
        let mut progress = Progress { applied, ..self.progress };
        if self.core.options.changes {
            // The notices of the refused writes are in the journal, and the store must not be ahead of what is durable.
            progress.journaled = applied;
            self.committer.sync().map_err(|error| self.core.fail(HealthState::Failed, error))?;
        }
        match self.apply(Vec::new(), &[], &[], progress).await {
            Ok(()) => self.retire(&[], &[], progress),
            Err(_) => Err(()),
        }
    }

    /// Brings a batch to its end: each frame is applied, parked or refused. `Err` ends the flusher.
    async fn deliver(&mut self, mut frames: Vec<QueuedFrame>) -> Result<(), ()> {
        // The store must never be ahead of the durable journal: an opening takes a journal that ends before the store's
        // watermark for one that lost records.
        if Safeguard::SyncBeforeApply.holds() {
            self.committer.sync().map_err(|error| self.core.fail(HealthState::Failed, error))?;
        }
        // A command is a batch of its own, so it is the only frame. One that cannot be read fails below.
        if matches!(frames.last().map(is_control), Some(Ok(true))) {
            return self.deliver_command(frames).await;
        }
        let mut parked = Vec::new();
        self.park_behind_letters(&mut frames, &mut parked)
            .map_err(|error| self.core.fail(HealthState::Failed, error))?;
        // Once more, with fewer frames, after each record that the store rejects.
        loop {
            // All were refused; the watermark passes their numbers by itself.
            if frames.is_empty() && parked.is_empty() {
                return Ok(());
            }
            let progress = self.progress_after(frames.iter().chain(&parked));
            let mut ops = Ops::default();
            let planned = frames.iter().try_for_each(|frame| ops.push_frame(frame));
            planned.map_err(|error| self.core.fail(HealthState::Failed, error))?;
            match self.apply(ops.finish(), &frames, &parked, progress).await {
                Ok(()) => return self.retire(&frames, &parked, progress),
                Err(Refusal::Over) => return Err(()),
                Err(Refusal::Record(seq, error)) => {
                    self.reject(&mut frames, &mut parked, seq, error).await?;
                }
            }
        }
    }

    /// Replays or discards dead letters, as the batch's one frame commands.
    async fn deliver_command(&mut self, frames: Vec<QueuedFrame>) -> Result<(), ()> {
        let progress = self.progress_after(frames.iter());
        let Some(frame) = frames.first() else { return Ok(()) };
        let prepared = self.parking.prepare(frame);
        let mut command = prepared.map_err(|error| self.core.fail(HealthState::Failed, error))?;
        let outcome = match self.apply(std::mem::take(&mut command.ops), &frames, &[], progress).await {
            Ok(()) => {
                self.parking.finish(&command);
                Ok(())
            }
            Err(Refusal::Over) => return Err(()),
            Err(Refusal::Record(seq, error)) => {
                self.core.metrics.records_rejected.add(1);
                // Before the watermark passes the command: its resolution counts from then on.
                let revoked = self.parking.revoke(frame);
                revoked.map_err(|error| self.core.fail(HealthState::Failed, error))?;
                // The command is done, and must not come again from the journal.
                if self.apply(Vec::new(), &frames, &[], progress).await.is_err() {
                    return Err(());
                }
                Err(StoreError::Rejected { seq, error }.into_error())
            }
        };
        let ticket = self.core.pending.lock().take_ticket(frame.first);
        self.retire(&frames, &[], progress)?;
        if let Some(ticket) = ticket {
            ticket.answer(outcome.map(|()| frame.last()));
        }
        Ok(())
    }

    /// Applies a batch, and tries again until the store has taken or refused it.
    ///
    /// The batch accounts for the numbers of the applied and the parked frames, and for those of refused writes before
    /// the watermark that it sets.
    async fn apply(
        &mut self,
        ops: Vec<Op>,
        frames: &[QueuedFrame],
        parked: &[QueuedFrame],
        progress: Progress,
    ) -> Result<(), Refusal> {
        let count = ops.len() as u64;
        let (passed, later): (Vec<_>, Vec<_>) =
            self.refused.iter().copied().partition(|refused| refused.last <= progress.applied);
        let numbers = frames.iter().chain(parked).map(Numbers::of).chain(passed);
        let after = match join(numbers) {
            Ok(numbers) => numbers.map_or(progress.applied, |numbers| numbers.after),
            Err(error) => {
                self.core.fail(HealthState::Failed, error);
                return Err(Refusal::Over);
            }
        };
        // A batch that is sent again after a rejection has other changes, so it is another batch.
        self.batch += 1;
        let batch = Batch {
            tenure: self.core.tenure,
            number: self.batch,
            after,
            until: progress.applied,
            journaled: progress.journaled,
            ops,
        };
        let span = Span::apply(progress.applied.0, batch.ops.len());
        let outcome = span.around(self.apply_until_answered(&batch, &span)).await;
        if let Ok(()) = outcome {
            self.core.metrics.ops_applied.add(count);
            self.core.metrics.batches_applied.add(1);
            self.progress = progress;
            self.refused = later;
        }
        outcome
    }

    async fn apply_until_answered(&self, batch: &Batch, span: &Span) -> Result<(), Refusal> {
        let mut attempts = 0_u64;
        loop {
            match self.store.apply(batch).await {
                Ok(()) => {
                    span.note("retries", attempts);
                    return Ok(());
                }
                Err(StoreError::Rejected { seq, error }) => {
                    span.failed(error.kind());
                    return Err(Refusal::Record(seq, error));
                }
                // The attempt may have succeeded all the same. To repeat it is safe, since a store takes nothing at or
                // below its watermark.
                Err(error @ StoreError::Transient(_)) => {
                    attempts += 1;
                    self.core.metrics.apply_retries.add(1);
                    self.note_retry(attempts, error.into_error());
                    let backoff = Backoff::new(self.core.options.retry_first, self.core.options.retry_cap);
                    let wait = backoff.jittered(attempts);
                    clock::sleep(wait).await;
                }
                Err(error @ StoreError::Fenced { .. }) => {
                    span.failed(ErrorKind::Fenced);
                    self.core.fail(HealthState::Fenced, error.into_error());
                    return Err(Refusal::Over);
                }
                // Applying this batch would leave a hole before it, so the layer ends.
                Err(error @ StoreError::WentBack { .. }) => {
                    span.failed(ErrorKind::WentBack);
                    self.core.fail(HealthState::Failed, error.into_error());
                    return Err(Refusal::Over);
                }
                Err(error @ StoreError::Fatal(_)) => {
                    span.failed(ErrorKind::StoreFailed);
                    self.core.fail(HealthState::Failed, error.into_error());
                    return Err(Refusal::Over);
                }
            }
        }
    }

    /// Handles a record that the store rejects: refuses its write-through, parks its frame, or halts.
    async fn reject(
        &mut self,
        frames: &mut Vec<QueuedFrame>,
        parked: &mut Vec<QueuedFrame>,
        seq: Seq,
        error: Error,
    ) -> Result<(), ()> {
        self.core.metrics.records_rejected.add(1);
        let Some(at) = frame_of(frames, seq) else {
            // A store that breaks its contract: the batch cannot be made acceptable by leaving a record out.
            let context = format!("the store rejected record {seq}, which it was not sent");
            self.core.fail(HealthState::Failed, error.wrap(ErrorKind::StoreFailed, context));
            return Err(());
        };
        let error = StoreError::Rejected { seq, error }.into_error();
        let done = match frames.get(at) {
            // Its writer waits and was never acknowledged, so an error answers it, and nothing is kept.
            Some(frame) if frame.location.is_none() => {
                let frame = frames.remove(at);
                self.refuse(&frame, error)
            }
            Some(_) if self.parking.has_room() => {
                // Taken out first: otherwise it would be found among the frames behind it, and ended twice.
                parked.push(frames.remove(at));
                let reason = format!("{error:#}");
                let rejected = parked.last().map_or(Ok(()), |frame| self.parking.park(frame, &reason));
                rejected.and_then(|()| self.park_behind_letters(frames, parked))
            }
            _ => {
                self.halt(frames, error).await;
                Ok(())
            }
        };
        done.map_err(|error| self.core.fail(HealthState::Failed, error))
    }

    /// Halts until the owner resumes the layer. Write-throughs are refused, and nothing journaled is lost.
    async fn halt(&mut self, frames: &mut Vec<QueuedFrame>, error: Error) {
        let core = Arc::clone(&self.core);
        // Before the state is set: an owner that sees it may resume at once.
        let resumed = core.resumed.notified();
        let halted = error.wrap(ErrorKind::Halted, "the flusher is halted until the layer is resumed");
        core.status.send_modify(|status| {
            if matches!(status.state, HealthState::Healthy | HealthState::Retrying) {
                status.state = HealthState::Halted;
                status.error = Some(halted.clone());
            }
        });
        let (kept, mut refused): (Vec<_>, Vec<_>) =
            frames.drain(..).partition(|frame| frame.location.is_some());
        *frames = kept;
        refused.extend(core.pending.lock().take_throughs());
        for frame in &refused {
            if let Err(error) = self.refuse(frame, halted.clone()) {
                return core.fail(HealthState::Failed, error);
            }
        }
        resumed.await;
        core.status.send_modify(|status| {
            if status.state == HealthState::Halted {
                status.state = HealthState::Healthy;
                status.error = None;
            }
        });
    }

    fn refuse(&mut self, frame: &QueuedFrame, error: Error) -> Result<()> {
        self.core.refuse_through(frame, error)?;
        self.refused.push(Numbers::of(frame));
        Ok(())
    }

    /// Returns the last number of a refused write-through that the watermark has not passed; zero if there is none.
    fn last_refused(&self) -> Seq {
        self.refused.iter().map(|refused| refused.last).max().unwrap_or(Seq::ZERO)
    }

    fn park_behind_letters(
        &mut self,
        frames: &mut Vec<QueuedFrame>,
        parked: &mut Vec<QueuedFrame>,
    ) -> Result<()> {
        let refused = self.parking.park_behind_letters(frames, parked)?;
        self.refused.extend(refused);
        Ok(())
    }

    /// Ends frames that the store holds: makes write-throughs visible, answers writers, makes room, trims the journal.
    /// Parked frames have left the pending view already; they make room and move the watermark here.
    fn retire(
        &mut self,
        frames: &[QueuedFrame],
        parked: &[QueuedFrame],
        progress: Progress,
    ) -> Result<(), ()> {
        let mut tickets: Vec<(Seq, WriteTicket)> = Vec::new();
        let (mut records, mut bytes) = (0, 0);
        for some in frames.chunks(FRAMES_PER_LOCK) {
            let mut pending = self.core.pending.lock();
            for frame in some {
                let ended = pending.superseded(frame).and_then(|superseded| {
                    pending.retire(frame)?;
                    let ticket = pending.take_ticket(frame.first);
                    Ok(ticket.map(|mut ticket| {
                        debug_assert_eq!(ticket.until, Until::Applied);
                        // Under the lock, as every change of memory: a newer record cannot come in between.
                        ticket.publish_applied(frame.first, &superseded);
                        ticket
                    }))
                });
                match ended {
                    Ok(ticket) => tickets.extend(ticket.map(|ticket| (frame.last(), ticket))),
                    Err(error) => {
                        drop(pending);
                        self.core.fail(HealthState::Failed, error);
                        return Err(());
                    }
                }
                records += u64::from(frame.count);
                bytes += frame.bytes;
            }
        }
        self.core.pending.lock().note_applied(progress.applied);
        self.core.metrics.records_applied.add(records);
        for frame in parked {
            records += u64::from(frame.count);
            bytes += frame.bytes;
        }
        // Before the watermark moves: whoever sees the new one may ask for the lag behind it.
        let end = frames.iter().chain(parked).filter_map(|frame| frame.journal_end).max();
        let journaled = match (&self.log, end) {
            (Some(log), Some(end)) => log.bytes_between(Seq::ZERO, self.applied.end(), end),
            _ => 0,
        };
        self.applied.note(progress.applied, end, journaled);
        // Before anybody is answered, so that a close that comes then leaves a witness of it.
        if let Some(log) = &self.log {
            log.note_applied(progress.applied);
        }
        // Before the watermark moves: whoever waits for it may write at once, and would find the queue full.
        self.core.gate.leave(records, bytes);
        self.core.status.send_modify(|status| {
            status.watermark = progress.applied;
            status.attempts = 0;
            if status.state == HealthState::Retrying {
                status.state = HealthState::Healthy;
                status.error = None;
            }
        });
        if !tickets.is_empty() {
            self.core.through_ended.notify_waiters();
        }
        self.answered = tickets.len();
        tickets.into_iter().for_each(|(last, ticket)| ticket.answer(Ok(last)));
        self.trim(progress.journaled);
        Ok(())
    }

    /// Trims the journal and the dead-letter list, of which the store needs nothing up to `passed`. A failure costs
    /// room and no data; it becomes a warning in the layer's health, and the next batch tries again.
    fn trim(&self, passed: Seq) {
        let Some(log) = &self.log else { return };
        let mut up_to = log.published();
        // The journal keeps what the store lacks.
        if Safeguard::TrimBehindWatermark.holds() {
            up_to = up_to.min(passed);
        }
        // And, for a while, what the store may lose again.
        let options = &self.core.options;
        if !options.retain_applied_for.is_zero() && Safeguard::TailIsRetained.holds() {
            let old = self.applied.applied_for(options.retain_applied_for);
            up_to = up_to.min(old.max(log.beyond_bytes(up_to, options.retain_applied_bytes)));
        }
        let trimmed = match &self.cursors {
            Some(cursors) => cursors.trim(log, up_to),
            None => log.trim(up_to),
        };
        let letters = self.parking.trim(up_to);
        self.core.warn(trimmed.and(letters).err());
    }

    /// Returns the store's progress once it has these frames, in addition to what it has.
    fn progress_after<'a>(&self, frames: impl Iterator<Item = &'a QueuedFrame>) -> Progress {
        frames.fold(self.progress, |progress, frame| Progress {
            applied: progress.applied.max(frame.last()),
            journaled: match frame.journal_end {
                Some(_) => progress.journaled.max(frame.last()),
                None => progress.journaled,
            },
        })
    }

    fn note_retry(&self, attempts: u64, error: Error) {
        self.core.status.send_modify(|status| {
            status.attempts = attempts;
            if matches!(status.state, HealthState::Healthy | HealthState::Retrying) {
                status.state = HealthState::Retrying;
                status.error = Some(error);
            }
        });
    }
}
