//! What drains: takes committed frames in order and applies them to the store, batch after batch.
//!
//! Nothing is ever queued again. A batch that fails stays in hand and is sent again until the store takes it,
//! rejects a record of it, or shows that it never will; the watermark moves only when the store says so.

use std::cell::Cell;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::flush::applied::ApplyHistory;
use crate::flush::batching::Drain;
use crate::flush::hand::{Source, is_control};
use crate::flush::plan::{Ops, frame_of};
use crate::ids::Seq;
use crate::journal::committer::Committer;
use crate::journal::cursors::Cursors;
use crate::journal::log::Log;
use crate::memory::views::Views;
use crate::queue::dead_letters::DeadLetters;
use crate::queue::health::HealthState;
use crate::queue::queued::QueuedFrame;
use crate::queue::state::Core;
use crate::queue::ticket::{Ticket, Until};
use crate::safeguard::Safeguard;
use crate::seam::backoff::Backoff;
use crate::seam::clock;
use crate::seam::span::Span;
use crate::store::contract::{Batch, Op, Progress, Store, StoreError};

/// How many frames are taken or retired under one lock.
pub(crate) const FRAMES_AT_ONCE: usize = 64;

/// The flusher of a layer.
pub(crate) struct Flusher {
    pub(crate) core: Arc<Core>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) committer: Arc<Committer<Core>>,
    pub(crate) log: Option<Arc<Log>>,
    pub(crate) letters: Option<Arc<DeadLetters>>,
    pub(crate) views: Arc<Views>,
    pub(crate) cursors: Option<Arc<Cursors>>,
    pub(crate) applied: Arc<ApplyHistory>,
    pub(crate) progress: Progress,
    pub(crate) source: Source,
    /// The last number that was given to a write which then did not happen.
    pub(crate) refused: Cell<Seq>,
    /// How many writers the last batch answered.
    pub(crate) answered: Cell<usize>,
    pub(crate) drain: Drain,
    /// Whether others wait for what is applied: to hear of it.
    pub(crate) tells: bool,
}

/// Why a batch was not applied.
pub(crate) enum Refusal {
    /// The store will not take this record.
    Record(Seq, Error),
    /// The layer is at its end; it has been told.
    Over,
}

impl Flusher {
    /// Drains until the layer fails. Stopping it means dropping this future, which loses nothing: what is in
    /// hand is still in the journal, and the store either holds it or not.
    pub(crate) async fn run(mut self) {
        loop {
            match self.next_batch().await {
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

    /// Moves the watermark over numbers whose writes were refused, when nothing else is left to move it: whoever
    /// flushes waits for them.
    async fn pass_refused(&mut self) -> Result<(), ()> {
        let applied = self.refused.get();
        let mut progress = Progress { applied, ..self.progress };
        if self.core.options.changes {
            // Their notices are in the journal, and have to be on the disk before the store says so.
            progress.journaled = applied;
            if let Err(error) = self.committer.sync() {
                self.core.fail(HealthState::Failed, error);
                return Err(());
            }
        }
        match self.apply(Vec::new(), progress).await {
            Ok(()) => self.retire(&[], &[], progress),
            Err(_) => Err(()),
        }
    }

    /// Brings a batch to its end: applied, parked, or refused to those who wait. `Err` ends the flusher.
    async fn deliver(&mut self, mut frames: Vec<QueuedFrame>) -> Result<(), ()> {
        // The store must never be ahead of the durable journal: a journal that ends before the store's
        // watermark is how a lost journal is told.
        let synced = match Safeguard::SyncBeforeApply.holds() {
            true => self.committer.sync(),
            false => Ok(()),
        };
        let mut parked = Vec::new();
        let outcome = match synced {
            Err(error) => Err(error),
            Ok(()) if matches!(frames.last().map(is_control), Some(Ok(true))) => {
                return self.control(frames).await;
            }
            Ok(()) => self.set_parked_apart(&mut frames, &mut parked),
        };
        if let Err(error) = outcome {
            self.core.fail(HealthState::Failed, error);
            return Err(());
        }
        loop {
            let progress = self.progress_after(frames.iter().chain(&parked));
            let mut ops = Ops::default();
            let planned = frames.iter().try_for_each(|frame| ops.push_frame(frame));
            if let Err(error) = planned {
                self.core.fail(HealthState::Failed, error);
                return Err(());
            }
            match self.apply(ops.finish(), progress).await {
                Ok(()) => return self.retire(&frames, &parked, progress),
                Err(Refusal::Over) => return Err(()),
                Err(Refusal::Record(seq, error)) => {
                    self.reject(&mut frames, &mut parked, seq, error).await?;
                }
            }
        }
    }

    /// Applies until the store answers for good.
    pub(crate) async fn apply(&mut self, ops: Vec<Op>, progress: Progress) -> Result<(), Refusal> {
        let count = ops.len() as u64;
        let span = Span::apply(progress.applied.0, ops.len());
        let outcome = span.around(self.apply_until_answered(ops, progress, &span)).await;
        if let Ok(()) = outcome {
            self.core.metrics.ops_applied.add(count);
            self.core.metrics.batches_applied.add(1);
            self.progress = progress;
        }
        outcome
    }

    async fn apply_until_answered(
        &self,
        ops: Vec<Op>,
        progress: Progress,
        span: &Span,
    ) -> Result<(), Refusal> {
        let batch = Batch { epoch: self.core.epoch, ops, progress };
        let mut attempts = 0_u64;
        loop {
            match self.store.apply(&batch).await {
                Ok(()) => {
                    span.note("retries", attempts);
                    return Ok(());
                }
                Err(StoreError::Rejected { seq, error }) => {
                    span.failed(error.kind());
                    return Err(Refusal::Record(seq, error));
                }
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
                Err(error @ StoreError::Fatal(_)) => {
                    span.failed(ErrorKind::StoreFailed);
                    self.core.fail(HealthState::Failed, error.into_error());
                    return Err(Refusal::Over);
                }
            }
        }
    }

    /// Deals with a record that the store will not take.
    async fn reject(
        &mut self,
        frames: &mut Vec<QueuedFrame>,
        parked: &mut Vec<QueuedFrame>,
        seq: Seq,
        error: Error,
    ) -> Result<(), ()> {
        self.core.metrics.records_rejected.add(1);
        let Some(at) = frame_of(frames, seq) else {
            let context = format!("the store rejected record {seq}, which it was not sent");
            self.core.fail(HealthState::Failed, error.wrap(ErrorKind::StoreFailed, context));
            return Err(());
        };
        let error = StoreError::Rejected { seq, error }.into_error();
        let done = match frames.get(at) {
            Some(frame) if frame.location.is_none() => {
                let frame = frames.remove(at);
                self.refuse(&frame, error)
            }
            Some(_) if self.can_park() => {
                // Taken out first, so that it is not found among those behind it and ended twice.
                parked.push(frames.remove(at));
                let rejected = parked.last().map_or(Ok(()), |frame| self.park(frame, &format!("{error:#}")));
                rejected.and_then(|()| self.set_parked_apart(frames, parked))
            }
            _ => {
                self.halt(frames, error).await;
                Ok(())
            }
        };
        done.map_err(|error| self.core.fail(HealthState::Failed, error))
    }

    /// Stands until the owner says to go on. Who waits for the store is told, and nothing journaled is lost.
    async fn halt(&self, frames: &mut Vec<QueuedFrame>, error: Error) {
        let resumed = self.core.resumed.notified();
        let halted = error.wrap(ErrorKind::Halted, "the flusher stands");
        self.core.status.send_modify(|status| {
            if matches!(status.state, HealthState::Healthy | HealthState::Retrying) {
                status.state = HealthState::Halted;
                status.error = Some(halted.clone());
            }
        });
        let (kept, mut refused): (Vec<_>, Vec<_>) =
            frames.drain(..).partition(|frame| frame.location.is_some());
        *frames = kept;
        refused.extend(self.core.pending.lock().take_unjournaled());
        for frame in &refused {
            if let Err(error) = self.refuse(frame, halted.clone()) {
                return self.core.fail(HealthState::Failed, error);
            }
        }
        resumed.await;
        self.core.status.send_modify(|status| {
            if status.state == HealthState::Halted {
                status.state = HealthState::Healthy;
                status.error = None;
            }
        });
    }

    /// Ends a frame that was to be written through and will not be.
    pub(crate) fn refuse(&self, frame: &QueuedFrame, error: Error) -> Result<()> {
        let ticket = {
            let mut pending = self.core.pending.lock();
            pending.refuse(frame)?;
            pending.take_ticket(frame.first)
        };
        self.refused.set(self.refused.get().max(frame.last()));
        self.core.gate.leave(u64::from(frame.count), frame.bytes);
        self.core.settled.notify_waiters();
        if let Some(ticket) = ticket {
            ticket.answer(Err(error));
        }
        Ok(())
    }

    /// The store holds these frames: makes write-throughs visible, answers, makes room, trims the journal.
    pub(crate) fn retire(
        &self,
        frames: &[QueuedFrame],
        parked: &[QueuedFrame],
        progress: Progress,
    ) -> Result<(), ()> {
        let mut tickets: Vec<(Seq, Ticket)> = Vec::new();
        let (mut records, mut bytes) = (0, 0);
        for some in frames.chunks(FRAMES_AT_ONCE) {
            let mut pending = self.core.pending.lock();
            for frame in some {
                let ended = pending.superseded(frame).and_then(|superseded| {
                    pending.retire(frame)?;
                    let ticket = pending.take_ticket(frame.first);
                    Ok(ticket.map(|mut ticket| {
                        debug_assert_eq!(ticket.until, Until::Applied);
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
        self.core.pending.lock().passed(progress.applied);
        self.core.metrics.records_applied.add(records);
        for frame in parked {
            records += u64::from(frame.count);
            bytes += frame.bytes;
        }
        // Before the watermark is told, so that the lag behind it can be.
        let end = frames.iter().chain(parked).filter_map(|frame| frame.journal_end).max();
        let journaled = match (&self.log, end) {
            (Some(log), Some(end)) => log.bytes_between(Seq::ZERO, self.applied.end(), end),
            _ => 0,
        };
        self.applied.note(progress.applied, end, journaled);
        // The room first: whoever waits for the watermark may write at once.
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
            self.core.settled.notify_waiters();
        }
        self.answered.set(tickets.len());
        tickets.into_iter().for_each(|(last, ticket)| ticket.answer(Ok(last)));
        if let Some(log) = &self.log {
            // Segments that stay behind, the dead letters' included, cost room, not data; the next batch tries again.
            let passed = match Safeguard::TrimBehindWatermark.holds() {
                true => progress.journaled,
                false => self.core.pending.lock().last_committed(),
            };
            let trimmed = match &self.cursors {
                Some(cursors) => cursors.trim(log, passed),
                None => log.trim(passed),
            };
            let letters = self.letters.as_ref().map_or(Ok(()), |letters| letters.trim());
            self.core.warn(trimmed.and(letters).err());
        }
        Ok(())
    }

    pub(crate) fn progress_after<'a>(&self, frames: impl Iterator<Item = &'a QueuedFrame>) -> Progress {
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
