//! What the callers, the committer and the flusher share: the pending view, the gate, and how the layer is.

use std::mem;
use std::sync::{Arc, PoisonError};

use tokio::sync::{Notify, watch};

use crate::error::{Error, ErrorKind, Result};
use crate::ids::{Epoch, Seq};
use crate::journal::committer::{Committed, Sink};
use crate::metrics::Metrics;
use crate::options::LayerOptions;
use crate::queue::gate::Gate;
use crate::queue::health::{Health, HealthState};
use crate::queue::inbox::{PendingView, Revealed};
use crate::queue::queued::{QueueSize, QueuedFrame};
use crate::queue::ticket::{Effects, Ticket, Until};
use crate::safeguard::Safeguard;
use crate::seam::sync::Mutex;
use crate::seam::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// The drain gives way to writers until one of so many parts of the queue's bounds is pending, or of what may stay in
/// memory, unless a batch is more.
const GIVES_WAY_SHARE: u64 = 4;

/// How far the layer has come and how it is; watched by all who wait.
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
    pub(crate) epoch: Epoch,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) pending: PendingView,
    pub(crate) gate: Gate,
    pub(crate) status: watch::Sender<Status>,
    /// Wakes the flusher when it has nothing to do.
    pub(crate) work: Notify,
    /// Wakes the flusher when it lingers and should not; see [`Core::is_urgent`].
    pub(crate) urgent: Notify,
    /// How many writers wait for room in the queue.
    waiting_writers: AtomicUsize,
    /// The newest sequence number whose apply somebody waits for; until then the flusher does not linger.
    hurry_to: AtomicU64,
    /// When the flusher lingers, a whole batch is not enough.
    drain_gives_way: AtomicBool,
    /// Wakes the flusher after a halt.
    pub(crate) resumed: Notify,
    /// Wakes readers of keys whose write-through has ended.
    pub(crate) settled: Notify,
    closing: AtomicBool,
    /// A failure beside the data, such as a segment that could not be recycled.
    warning: Mutex<Option<Error>>,
}

impl Core {
    pub(crate) fn new(options: LayerOptions, epoch: Epoch, watermark: Seq, pending: PendingView) -> Core {
        let backlog = pending.lock().backlog();
        let gate =
            Gate::new(options.queue_records_max, options.queue_bytes_max, backlog.records, backlog.bytes);
        let status = Status { watermark, state: HealthState::Healthy, error: None, attempts: 0 };
        Core {
            options,
            epoch,
            metrics: Arc::default(),
            pending,
            gate,
            status: watch::Sender::new(status),
            work: Notify::new(),
            urgent: Notify::new(),
            waiting_writers: AtomicUsize::new(0),
            hurry_to: AtomicU64::new(0),
            drain_gives_way: AtomicBool::new(false),
            resumed: Notify::new(),
            settled: Notify::new(),
            closing: AtomicBool::new(false),
            warning: Mutex::new(None),
        }
    }

    /// Whether a write may be handed over; `through` ones also need a flusher that moves.
    pub(crate) fn check_writable(&self, through: bool) -> Result<()> {
        if self.closing.load(Ordering::SeqCst) {
            return Err(Error::layer_closed());
        }
        if self.options.follows {
            let context = "the layer follows another process, which alone may write";
            return Err(Error::new(ErrorKind::ReadOnly, context));
        }
        let status = self.status.borrow();
        match (status.state, &status.error) {
            (HealthState::Fenced | HealthState::Failed, Some(error)) => Err(error.clone()),
            (HealthState::Halted, Some(error)) if through => Err(error.clone()),
            (HealthState::Closed, _) => Err(Error::layer_closed()),
            _ => Ok(()),
        }
    }

    pub(crate) fn start_closing(&self) {
        self.closing.store(true, Ordering::SeqCst);
    }

    /// Whether the flusher should not linger: somebody waits for what comes after `applied`, or for room in the queue,
    /// or enough is there.
    pub(crate) fn is_urgent(&self, applied: Seq) -> bool {
        self.hurry_to.load(Ordering::SeqCst) > applied.0
            || self.waiting_writers.load(Ordering::SeqCst) > 0
            || self.is_enough(self.pending.lock().backlog())
    }

    /// The flusher is about to linger, and says whether it gives way to writers, so that a whole batch is not enough.
    pub(crate) fn drain_gives_way(&self, gives_way: bool) {
        self.drain_gives_way.store(gives_way, Ordering::SeqCst);
    }

    /// Tells the flusher that somebody waits until `seq` is applied.
    fn hurry(&self, seq: Seq) {
        self.hurry_to.fetch_max(seq.0, Ordering::SeqCst);
        self.urgent.notify_one();
    }

    /// Tells the flusher, for as long as the guard lives, that a writer waits for room.
    pub(crate) fn wait_for_room(&self) -> WaitingWriter<'_> {
        self.waiting_writers.fetch_add(1, Ordering::SeqCst);
        self.urgent.notify_one();
        WaitingWriter(self)
    }

    /// Whether so much is pending that the flusher should not linger.
    fn is_enough(&self, backlog: QueueSize) -> bool {
        let options = &self.options;
        let (records, bytes) = match self.drain_gives_way.load(Ordering::SeqCst) {
            true => {
                let memory =
                    (options.pending_memory_bytes_max / GIVES_WAY_SHARE).max(options.batch_bytes_max);
                let queue = options.queue_bytes_max / GIVES_WAY_SHARE;
                (options.queue_records_max.div_ceil(GIVES_WAY_SHARE), queue.min(memory))
            }
            false => {
                let records = u64::try_from(options.batch_records_max).unwrap_or(u64::MAX);
                (records, options.batch_bytes_max)
            }
        };
        backlog.records >= records || backlog.bytes >= bytes
    }

    /// Ends all writing. The first failure stays the reason; whoever waits learns it.
    pub(crate) fn fail(&self, state: HealthState, error: Error) {
        let first = self.status.send_if_modified(|status| {
            let running =
                !matches!(status.state, HealthState::Fenced | HealthState::Failed | HealthState::Closed);
            if running {
                status.state = state;
                status.error = Some(error.clone());
            }
            running
        });
        self.gate.shut();
        let reason = if first { Some(error) } else { self.status.borrow().error.clone() };
        self.abandon_tickets(&reason.unwrap_or_else(Error::layer_closed));
        self.settled.notify_waiters();
    }

    /// Answers everybody who waits for an apply that this layer will not see.
    pub(crate) fn abandon_tickets(&self, reason: &Error) {
        let tickets = self.pending.lock().take_tickets();
        for ticket in tickets {
            let context =
                "the layer stopped before the store confirmed the write; it may or may not be there";
            ticket.answer(Err(reason.clone().wrap(ErrorKind::InDoubt, context)));
        }
    }

    /// Waits until the store holds everything up to `seq`, or will not get there.
    pub(crate) async fn wait_applied(&self, seq: Seq) -> Result<()> {
        let mut watched = self.status.subscribe();
        self.hurry(seq);
        let reached = watched
            .wait_for(|status| {
                status.watermark >= seq
                    || !matches!(status.state, HealthState::Healthy | HealthState::Retrying)
            })
            .await
            .map_err(|_| Error::layer_closed())?;
        if reached.watermark >= seq {
            return Ok(());
        }
        Err(reached.error.clone().unwrap_or_else(Error::layer_closed))
    }

    pub(crate) fn warn(&self, error: Option<Error>) {
        *self.warning.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }

    pub(crate) fn health(&self, dead_letters: u64, journal_bytes: u64) -> Health {
        let (backlog, committed) = {
            let pending = self.pending.lock();
            (pending.backlog(), pending.last_committed())
        };
        let status = self.status.borrow().clone();
        let warning = self.warning.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Health {
            state: status.state,
            error: status.error.or(warning),
            attempts: status.attempts,
            epoch: self.epoch,
            watermark: status.watermark,
            committed,
            queued_records: backlog.records,
            queued_bytes: backlog.bytes,
            dead_letters,
            journal_bytes,
        }
    }

    /// For a ticket that came when the layer had failed already and those before it had been answered: a failure sets
    /// the state first and answers then, so either it or this sees the ticket.
    fn abandon_if_over(&self) {
        let status = self.status.borrow().clone();
        if matches!(status.state, HealthState::Fenced | HealthState::Failed | HealthState::Closed) {
            self.abandon_tickets(&status.error.unwrap_or_else(Error::layer_closed));
        }
    }
}

impl Sink for Core {
    type Ticket = Option<Ticket>;

    /// Reveals the frames and answers their writers, before memory has taken the frames in: see [`PendingView`].
    fn committed(&self, group: &mut Vec<Committed<Option<Ticket>>>) {
        // Taken out: if this unwinds they must not stay, since what is revealed is not to be refused.
        let mut told = mem::take(group);
        let (mut records, mut waited_for) = (0, None);
        // The tickets of those who are answered stay where they lie: to move them costs as much as all else here.
        let revealed = told.iter_mut().map(|Committed { frame, location, ticket, .. }| {
            let (first, body) = (frame.first, mem::take(&mut frame.body));
            let frame = match ticket.as_mut().and_then(|ticket| ticket.through.take()) {
                Some(through) => QueuedFrame::noticed(first, *through, *location, &body),
                None => QueuedFrame::committed(first, body, *location),
            };
            records += u64::from(frame.count);
            if let Some(ticket) = ticket.as_mut().filter(|ticket| ticket.until == Until::Committed) {
                return Revealed { frame, ticket: None, effects: ticket.take_effects() };
            }
            waited_for = Some(first);
            let mut ticket = ticket.take().map(Box::new);
            let effects = match &mut ticket {
                Some(ticket) if !Safeguard::ThroughUnseenUntilApplied.holds() => ticket.take_effects(),
                _ => Effects::None,
            };
            Revealed { frame, ticket, effects }
        });
        self.pending.reveal(revealed);
        for Committed { frame, ticket, .. } in told.drain(..) {
            let Some(ticket) = ticket else { continue };
            let last = frame.first.plus(u64::from(ticket.records).saturating_sub(1));
            ticket.answer(Ok(last));
        }
        *group = told;
        self.metrics.records_committed.add(records);
        let (backlog, (spilled, failure)) = self.pending.take_in_all();
        self.metrics.records_spilled.add(spilled);
        // Said before the flusher is woken: it may run at once, on this processor, and would begin to linger.
        match waited_for {
            Some(seq) => self.hurry(seq),
            None if self.is_enough(backlog) => self.urgent.notify_one(),
            None => {}
        }
        self.work.notify_one();
        if waited_for.is_some() {
            self.abandon_if_over();
        }
        // The record was encoded by this process a moment ago: memory is not what it was.
        if let Some(error) = failure {
            self.fail(HealthState::Failed, error);
        }
    }

    fn refused(&self, ticket: Option<Ticket>, error: &Error) {
        // Only what is revealed loses its ticket before its answer, and such a one is not refused.
        let Some(ticket) = ticket else { return };
        self.gate.leave(u64::from(ticket.records), u64::from(ticket.bytes));
        ticket.answer(Err(error.clone()));
    }

    fn poisoned(&self, error: &Error) {
        self.fail(HealthState::Failed, error.clone());
    }
}

/// A writer at the full gate.
pub(crate) struct WaitingWriter<'a>(&'a Core);

impl Drop for WaitingWriter<'_> {
    fn drop(&mut self) {
        self.0.waiting_writers.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What a writer learns whose frame got no answer: whoever had it panicked.
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

    /// The flusher as it wakes up: it looks whether it may linger.
    struct Woken {
        core: Arc<Core>,
        found_urgent: Mutex<Vec<bool>>,
    }

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.found_urgent.lock().unwrap().push(self.core.is_urgent(Seq::ZERO));
        }
    }

    /// Woken on the writer's processor, the flusher ran before the writer had said that it waits. So it began to
    /// linger, with a timer and another wake-up, before each apply of a lone writer.
    #[test]
    fn who_waits_for_an_apply_has_said_so_when_the_flusher_wakes_up() {
        let pending = PendingView::new(1 << 20, Ticker::default());
        let core = Arc::new(Core::new(LayerOptions::default(), Epoch(1), Seq::ZERO, pending));
        let woken = Arc::new(Woken { core: Arc::clone(&core), found_urgent: Mutex::default() });
        let waker = Waker::from(Arc::clone(&woken));
        for until in [Until::Committed, Until::Applied] {
            let mut work = pin!(core.work.notified());
            let mut is_woken = || work.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
            assert!(!is_woken());
            let mut body = FrameBuilder::new();
            let key = Key::new(&NamespaceName::parse("n").unwrap(), b"k").unwrap();
            push(&mut body, Operation::Put, true, key.as_bytes(), b"value").unwrap();
            let (answer, _answered) = oneshot::channel();
            let ticket = Ticket {
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
