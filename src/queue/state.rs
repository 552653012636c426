//! The state that a layer's callers, committer and flusher share: the pending view, the gate, and the layer's
//! condition.

use std::mem;
use std::sync::{Arc, PoisonError};

use tokio::sync::{Notify, watch};

use crate::error::{Error, ErrorKind, Result};
use crate::ids::{Seq, Tenure};
use crate::journal::committer::{Committed, Sink};
use crate::metrics::Metrics;
use crate::options::LayerOptions;
use crate::queue::gate::Gate;
use crate::queue::health::{Health, HealthState};
use crate::queue::inbox::{CommittedFrame, PendingView};
use crate::queue::queued::{QueueSize, QueuedFrame};
use crate::queue::ticket::{Effects, Until, WriteTicket};
use crate::safeguard::Safeguard;
use crate::seam::sync::Mutex;
use crate::seam::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// The drain yields to writers until one in so many parts of the queue's bounds, or of the memory budget, is pending;
/// at least a batch.
const YIELD_SHARE: u64 = 4;

/// The layer's watermark and condition, watched by all waiters.
#[derive(Clone, Debug)]
pub(crate) struct Status {
    pub(crate) watermark: Seq,
    pub(crate) state: HealthState,
    pub(crate) error: Option<Error>,
    pub(crate) attempts: u64,
}

/// The shared state of a layer.
pub(crate) struct Core {
    pub(crate) options: LayerOptions,
    pub(crate) tenure: Tenure,
    /// The number up to which a store that had gone back is fed again.
    refeed_until: Option<Seq>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) pending: PendingView,
    pub(crate) gate: Gate,
    pub(crate) status: watch::Sender<Status>,
    /// Wakes the flusher when it has nothing to do.
    pub(crate) work: Notify,
    /// Wakes the flusher when it lingers and should not any more; see [`Core::is_urgent`].
    pub(crate) urgent: Notify,
    /// The number of writers that wait for room in the queue.
    waiting_writers: AtomicUsize,
    /// The newest sequence number whose apply somebody waits for; until then the flusher does not linger.
    awaited: AtomicU64,
    /// True if the flusher lingers beyond a whole batch, to yield to writers.
    drain_yields: AtomicBool,
    /// Wakes the flusher after a halt.
    pub(crate) resumed: Notify,
    /// Wakes readers that wait for the end of a write-through.
    pub(crate) through_ended: Notify,
    closing: AtomicBool,
    /// A failure that concerns no data, such as a segment that could not be recycled.
    warning: Mutex<Option<Error>>,
}

impl Core {
    /// Makes the state of a layer that opens with this watermark and view.
    pub(crate) fn new(
        options: LayerOptions,
        tenure: Tenure,
        watermark: Seq,
        refeed_until: Option<Seq>,
        pending: PendingView,
    ) -> Core {
        let backlog = pending.lock().size();
        let gate =
            Gate::new(options.queue_records_max, options.queue_bytes_max, backlog.records, backlog.bytes);
        let status = Status { watermark, state: HealthState::Healthy, error: None, attempts: 0 };
        Core {
            options,
            tenure,
            refeed_until,
            metrics: Arc::default(),
            pending,
            gate,
            status: watch::Sender::new(status),
            work: Notify::new(),
            urgent: Notify::new(),
            waiting_writers: AtomicUsize::new(0),
            awaited: AtomicU64::new(0),
            drain_yields: AtomicBool::new(false),
            resumed: Notify::new(),
            through_ended: Notify::new(),
            closing: AtomicBool::new(false),
            warning: Mutex::new(None),
        }
    }

    /// Checks that a write may be submitted; a write-through also needs a flusher that is not halted.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`], [`ErrorKind::ReadOnly`], or the reason why the layer failed or the flusher is halted.
    pub(crate) fn check_writable(&self, through: bool) -> Result<()> {
        if self.closing.load(Ordering::SeqCst) {
            return Err(Error::layer_closed());
        }
        // Before the state: a follower is healthy and still may not write.
        if self.options.follows {
            let context = "the layer follows another process, which alone may write";
            return Err(Error::new(ErrorKind::ReadOnly, context));
        }
        let status = self.status.borrow();
        match (status.state, &status.error) {
            (HealthState::Fenced | HealthState::Failed, Some(error)) => Err(error.clone()),
            // A write-behind is still journaled while the flusher is halted; a write-through would wait for the owner.
            (HealthState::Halted, Some(error)) if through => Err(error.clone()),
            (HealthState::Closed, _) => Err(Error::layer_closed()),
            _ => Ok(()),
        }
    }

    /// Makes every later write fail with [`ErrorKind::Closed`].
    pub(crate) fn start_closing(&self) {
        self.closing.store(true, Ordering::SeqCst);
    }

    /// Returns true if the flusher should not linger: somebody waits for an apply after `applied`, or for room in the
    /// queue, or enough is pending.
    pub(crate) fn is_urgent(&self, applied: Seq) -> bool {
        self.awaited.load(Ordering::SeqCst) > applied.0
            || self.waiting_writers.load(Ordering::SeqCst) > 0
            || self.fills_a_batch(self.pending.lock().size())
    }

    /// Sets whether the flusher, which is about to linger, yields to writers, so that a whole batch does not end that.
    pub(crate) fn set_drain_yields(&self, yields: bool) {
        self.drain_yields.store(yields, Ordering::SeqCst);
    }

    /// Tells the flusher that somebody waits for the apply of `seq`.
    fn await_apply(&self, seq: Seq) {
        self.awaited.fetch_max(seq.0, Ordering::SeqCst);
        self.urgent.notify_one();
    }

    /// Tells the flusher that a writer waits for room, until the guard is dropped.
    pub(crate) fn wait_for_room(&self) -> WaitingWriter<'_> {
        self.waiting_writers.fetch_add(1, Ordering::SeqCst);
        self.urgent.notify_one();
        WaitingWriter(self)
    }

    /// Returns true if so much is pending that the flusher should not linger: a batch, or more if it yields to writers.
    fn fills_a_batch(&self, size: QueueSize) -> bool {
        let options = &self.options;
        let (records, bytes) = match self.drain_yields.load(Ordering::SeqCst) {
            true => {
                let memory = (options.pending_memory_bytes_max / YIELD_SHARE).max(options.batch_bytes_max);
                let queue = options.queue_bytes_max / YIELD_SHARE;
                (options.queue_records_max.div_ceil(YIELD_SHARE), queue.min(memory))
            }
            false => {
                let records = u64::try_from(options.batch_records_max).unwrap_or(u64::MAX);
                (records, options.batch_bytes_max)
            }
        };
        size.records >= records || size.bytes >= bytes
    }

    /// Ends all writing. The first failure stays the reason, with which all waiters are answered.
    pub(crate) fn fail(&self, state: HealthState, error: Error) {
        let first = self.status.send_if_modified(|status| {
            // A later failure is a consequence, as a rule, and must not hide the cause.
            let running =
                !matches!(status.state, HealthState::Fenced | HealthState::Failed | HealthState::Closed);
            if running {
                status.state = state;
                status.error = Some(error.clone());
            }
            running
        });
        // The state is set before anybody is answered: a ticket that comes later finds it; see `abandon_if_over`.
        self.gate.shut();
        let reason = if first { Some(error) } else { self.status.borrow().error.clone() };
        self.abandon_tickets(&reason.unwrap_or_else(Error::layer_closed));
        self.through_ended.notify_waiters();
    }

    /// Answers all writers that wait for an apply which this layer will not see.
    pub(crate) fn abandon_tickets(&self, reason: &Error) {
        let tickets = self.pending.lock().take_tickets();
        for ticket in tickets {
            let context =
                "the layer stopped before the store confirmed the write; it may or may not be there";
            ticket.answer(Err(reason.clone().wrap(ErrorKind::InDoubt, context)));
        }
    }

    /// Ends a write-through that will not happen, and answers its writer with the reason.
    pub(crate) fn refuse_through(&self, frame: &QueuedFrame, reason: Error) -> Result<()> {
        let ticket = {
            let mut pending = self.pending.lock();
            pending.refuse_through(frame)?;
            pending.take_ticket(frame.first)
        };
        self.gate.leave(u64::from(frame.count), frame.bytes);
        self.through_ended.notify_waiters();
        if let Some(ticket) = ticket {
            ticket.answer(Err(reason));
        }
        Ok(())
    }

    /// Waits until the store holds everything up to `seq`.
    ///
    /// # Errors
    /// The reason why that will not happen: the layer is halted, fenced, failed or closed.
    pub(crate) async fn wait_applied(&self, seq: Seq) -> Result<()> {
        let mut watched = self.status.subscribe();
        self.await_apply(seq);
        let reached = watched
            .wait_for(|status| {
                status.watermark >= seq
                    || !matches!(status.state, HealthState::Healthy | HealthState::Retrying)
            })
            .await
            .map_err(|_| Error::layer_closed())?;
        // The state may have ended in the very change that reached the number.
        if reached.watermark >= seq {
            return Ok(());
        }
        Err(reached.error.clone().unwrap_or_else(Error::layer_closed))
    }

    /// Sets the warning that the layer's health shows, or removes it.
    pub(crate) fn warn(&self, error: Option<Error>) {
        *self.warning.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }

    /// Returns the layer's health, with figures that the caller has.
    pub(crate) fn health(&self, dead_letters: u64, journal_bytes: u64) -> Health {
        let (size, committed) = {
            let pending = self.pending.lock();
            (pending.size(), pending.last_committed())
        };
        let status = self.status.borrow().clone();
        let warning = self.warning.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Health {
            state: status.state,
            error: status.error.or(warning),
            attempts: status.attempts,
            epoch: self.tenure.epoch,
            watermark: status.watermark,
            refeeding_until: self.refeed_until.filter(|until| *until > status.watermark),
            committed,
            queued_records: size.records,
            queued_bytes: size.bytes,
            dead_letters,
            journal_bytes,
        }
    }

    /// Answers tickets that came when the layer had failed and had answered those before them. A failure sets the state
    /// first and answers then, so either it or this sees the ticket.
    fn abandon_if_over(&self) {
        let status = self.status.borrow().clone();
        if matches!(status.state, HealthState::Fenced | HealthState::Failed | HealthState::Closed) {
            self.abandon_tickets(&status.error.unwrap_or_else(Error::layer_closed));
        }
    }
}

impl Sink for Core {
    type Ticket = Option<WriteTicket>;

    /// Makes the frames visible and answers their writers, before memory has taken the frames in: see [`PendingView`].
    fn committed(&self, group: &mut Vec<Committed<Option<WriteTicket>>>) {
        // Taken out of the group: if this unwinds, what is left in the group is refused, and these are visible by then.
        let mut committed = mem::take(group);
        let (mut records, mut last_awaited) = (0, None);
        // Tickets that are answered at once stay in the group until then: moving them would cost as much as all else
        // here.
        let frames = committed.iter_mut().map(|Committed { frame, location, ticket, .. }| {
            let (first, body) = (frame.first, mem::take(&mut frame.body));
            let frame = match ticket.as_mut().and_then(|ticket| ticket.through.take()) {
                Some(through) => QueuedFrame::noticed(first, *through, *location, &body),
                None => QueuedFrame::committed(first, body, *location),
            };
            records += u64::from(frame.count);
            if let Some(ticket) = ticket.as_mut().filter(|ticket| ticket.until == Until::Committed) {
                return CommittedFrame { frame, ticket: None, effects: ticket.take_effects() };
            }
            last_awaited = Some(first);
            let mut ticket = ticket.take().map(Box::new);
            // The effects of a write-through stay in its ticket: nobody may see it before the store holds it.
            let effects = match &mut ticket {
                Some(ticket) if !Safeguard::ThroughUnseenUntilApplied.holds() => ticket.take_effects(),
                _ => Effects::None,
            };
            CommittedFrame { frame, ticket, effects }
        });
        self.pending.publish(frames);
        for Committed { frame, ticket, .. } in committed.drain(..) {
            let Some(ticket) = ticket else { continue };
            let last = frame.first.plus(u64::from(ticket.records).saturating_sub(1));
            ticket.answer(Ok(last));
        }
        // Its memory serves the next group.
        *group = committed;
        self.metrics.records_committed.add(records);
        let (size, (spilled, failure)) = self.pending.drain_all();
        self.metrics.records_spilled.add(spilled);
        // Before the flusher is woken: it may run at once, on this processor, and would begin to linger.
        match last_awaited {
            Some(seq) => self.await_apply(seq),
            None if self.fills_a_batch(size) => self.urgent.notify_one(),
            None => {}
        }
        self.work.notify_one();
        if last_awaited.is_some() {
            self.abandon_if_over();
        }
        // This process encoded the record a moment ago, so memory is corrupt, and nothing in it can be trusted.
        if let Some(error) = failure {
            self.fail(HealthState::Failed, error);
        }
    }

    fn refused(&self, ticket: Option<WriteTicket>, error: &Error) {
        // Only a frame that is visible lost its ticket before the answer, and such a frame is not refused.
        let Some(ticket) = ticket else { return };
        self.gate.leave(u64::from(ticket.records), u64::from(ticket.bytes));
        ticket.answer(Err(error.clone()));
    }

    fn poisoned(&self, error: &Error) {
        self.fail(HealthState::Failed, error.clone());
    }
}

/// Marks that a writer waits at the full gate.
pub(crate) struct WaitingWriter<'a>(&'a Core);

impl Drop for WaitingWriter<'_> {
    fn drop(&mut self) {
        self.0.waiting_writers.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Returns the error for a writer whose frame got no answer, because the thread that had it panicked.
pub(crate) fn unanswered() -> Error {
    let context = "the write got no answer because of a panic; it may or may not take effect";
    Error::new(ErrorKind::InDoubt, context)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Key, NamespaceName};
    use crate::journal::committer::Submission;
    use crate::journal::frame::FrameBuilder;
    use crate::queue::record::{Operation, push};
    use crate::seam::clock::Ticker;
    use std::pin::pin;
    use std::task::{Context, Wake, Waker};
    use tokio::sync::oneshot;

    /// Wakes up in the flusher's place, and checks whether it may linger.
    struct WokenFlusher {
        core: Arc<Core>,
        found_urgent: Mutex<Vec<bool>>,
    }

    impl Wake for WokenFlusher {
        fn wake(self: Arc<Self>) {
            self.found_urgent.lock().unwrap().push(self.core.is_urgent(Seq::ZERO));
        }
    }

    /// Woken on the writer's processor, the flusher ran before it was told that the writer waits. So it began to
    /// linger, with a timer and another wake-up, before each apply of a lone writer.
    #[test]
    fn the_flusher_knows_that_a_writer_waits_for_an_apply_when_it_wakes_up() {
        let pending = PendingView::new(1 << 20, Ticker::default());
        let core = Arc::new(Core::new(LayerOptions::default(), Tenure::default(), Seq::ZERO, None, pending));
        let woken = Arc::new(WokenFlusher { core: Arc::clone(&core), found_urgent: Mutex::default() });
        let waker = Waker::from(Arc::clone(&woken));
        for until in [Until::Committed, Until::Applied] {
            let mut work = pin!(core.work.notified());
            let mut is_woken = || work.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
            assert!(!is_woken());
            let mut body = FrameBuilder::new();
            let key = Key::new(&NamespaceName::parse("n").unwrap(), b"k").unwrap();
            push(&mut body, Operation::Put, true, key.as_bytes(), b"value").unwrap();
            let (answer, _answered) = oneshot::channel();
            let ticket = WriteTicket {
                until,
                effects: Effects::None,
                answer,
                records: 1,
                bytes: 1,
                through: None,
                key_guard: None,
            };
            let first = core.pending.lock().last_committed().next();
            let submission = Submission { body: body.finish(), journaled: false, ticket: Some(ticket) };
            let mut committed = Committed::waiting(submission);
            committed.frame.first = first;
            core.committed(&mut vec![committed]);
            assert!(is_woken());
        }
        assert_eq!(*woken.found_urgent.lock().unwrap(), [false, true]);
    }
}
