//! The layer: one journal, one store, one order of writes. The typed caches are built on it.
//!
//! It handles keys and bytes only. It hands writes over, waits for their outcome, and starts and ends everything that
//! runs in the background.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use crate::bus::contract::Bus;
use crate::error::{Error, ErrorKind, Result};
use crate::feed::change::{ChangesFrom, CursorStatus};
use crate::feed::changes::{ChangeSource, ChangeStream};
use crate::feed::follower::Follower;
use crate::feed::publisher::{Publication, Publish, Publishers, PublishingLayer};
use crate::feed::tasks::Tasks;
use crate::ids::{Key, Seq};
use crate::journal::committer::Committer;
use crate::journal::committer::Submission;
use crate::journal::cursors::Cursors;
use crate::journal::frame::{FrameBody, FrameBuilder};
use crate::journal::log::Log;
use crate::layer::ownership::Heartbeat;
use crate::memory::views::Views;
use crate::metrics::{Metrics, Stats};
use crate::options::{Backpressure, LayerOptions, WritePolicy};
use crate::queue::dead_letters::{DeadLetter, DeadLetters};
use crate::queue::gate::NotEntered;
use crate::queue::health::{Closed, Health, HealthState};
use crate::queue::key_locks::{KeyGuard, KeyLocks};
use crate::queue::lookup::Lookup;
use crate::queue::record::{Operation, notices_of, push};
use crate::queue::state::{Core, unanswered};
use crate::queue::ticket::{Effects, Until, WriteTicket};
use crate::safeguard::Safeguard;
use crate::seam::clock::{self, Handle, Runtime, Ticker};
use crate::seam::sync::Mutex;
use crate::seam::sync::thread::{self, JoinHandle};

/// The time that a closing layer spends on marking itself as gone in the store.
const CLOSE_NOTICE_TIMEOUT: Duration = Duration::from_secs(1);

/// The flusher's thread and how to stop it.
pub(crate) struct FlusherThread {
    pub(crate) stop: watch::Sender<bool>,
    pub(crate) thread: JoinHandle<Runtime>,
}

/// An open layer.
pub struct Layer {
    pub(crate) core: Arc<Core>,
    pub(crate) reads: Arc<Lookup>,
    pub(crate) tasks: Tasks,
    pub(crate) ticker: Ticker,
    pub(crate) committer: Arc<Committer<Core>>,
    pub(crate) log: Option<Arc<Log>>,
    pub(crate) letters: Option<Arc<DeadLetters>>,
    pub(crate) cursors: Option<Arc<Cursors>>,
    pub(crate) changes: Option<Arc<ChangeSource>>,
    pub(crate) publishers: Publishers,
    pub(crate) views: Arc<Views>,
    pub(crate) key_locks: KeyLocks,
    /// The owner's heartbeat, if the store supports one.
    pub(crate) heartbeat: Option<Heartbeat>,
    /// The follower of the store's owner, in a layer that does not own the store.
    pub(crate) follower: Option<Arc<Follower>>,
    /// The runtime of the flusher's thread: it drives the timers, so that callers need no runtime.
    pub(crate) runtime: Handle,
    pub(crate) flusher: Mutex<Option<FlusherThread>>,
}

/// A write that was handed to the committer, or waits for room in the queue.
pub(crate) struct Writing {
    until: Until,
    answer: Answer,
    waiting: Option<Box<Waiting>>,
}

type Answer = oneshot::Receiver<Result<Seq>>;

/// A write that found no room.
struct Waiting {
    refused: NotEntered,
    records: u32,
    bytes: u32,
    /// True for a write-through: it needs a flusher that is not halted.
    through: bool,
    submission: Submission<Option<WriteTicket>>,
}

impl Layer {
    /// Makes memory show every write that was acknowledged before the call. Call it before a cache's memory is read or
    /// changed.
    #[inline]
    pub fn catch_up(&self) {
        self.reads.catch_up();
    }

    /// The look-up beyond memory: pending writes, then the store.
    pub fn reads(&self) -> &Arc<Lookup> {
        &self.reads
    }

    /// The background tasks.
    pub fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// The clock that ages are read from.
    pub fn ticker(&self) -> &Ticker {
        &self.ticker
    }

    /// The open caches.
    pub fn views(&self) -> &Arc<Views> {
        &self.views
    }

    /// The counters.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.core.metrics
    }

    /// The options that the layer was opened with.
    pub fn options(&self) -> &LayerOptions {
        &self.core.options
    }

    /// True if there is a journal, which write-behind needs.
    pub fn has_journal(&self) -> bool {
        self.log.is_some()
    }

    /// Writes a frame, and returns its number once it is committed (write-behind) or once the store holds it
    /// (write-through).
    ///
    /// If the future is dropped before the frame is handed over, nothing is written. Later the whole frame is still
    /// written.
    ///
    /// # Errors
    /// See [`ErrorKind`]; with [`ErrorKind::InDoubt`] the frame may still take effect.
    pub async fn write(&self, body: FrameBody, policy: WritePolicy, effects: Effects) -> Result<Seq> {
        let writing = self.begin_write(body, policy, effects, None)?;
        self.end_write(writing).await
    }

    /// Hands a frame over. If it has to wait for room in the queue, [`Layer::end_write`] hands it over.
    ///
    /// `key_guard` is released when the frame has been written or has failed, even if the writer's future is gone by
    /// then.
    ///
    /// # Errors
    /// As [`Layer::write`].
    pub(crate) fn begin_write(
        &self,
        body: FrameBody,
        policy: WritePolicy,
        effects: Effects,
        key_guard: Option<KeyGuard>,
    ) -> Result<Writing> {
        let behind = policy == WritePolicy::Behind;
        if behind && !self.has_journal() {
            let context = "write-behind needs a journal, and this layer was opened without one";
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        let until = if behind { Until::Committed } else { Until::Applied };
        self.submit(body, until, behind, effects, key_guard)
    }

    /// Waits for the outcome of a write, and returns its number.
    ///
    /// # Errors
    /// As [`Layer::write`].
    pub(crate) async fn end_write(&self, writing: Writing) -> Result<Seq> {
        let until = writing.until;
        let answer = self.handed_over(writing).await?;
        if until == Until::Committed {
            return answer.await.map_err(|_| unanswered())?;
        }
        let timeout = self.core.options.through_timeout;
        // The store may be unreachable for long. The frame cannot be taken back, so its outcome is in doubt.
        match self.within(timeout, answer).await {
            Some(answer) => answer.map_err(|_| unanswered())?,
            None => {
                let context = format!(
                    "the store has not confirmed the write within {timeout:?}; it may still take effect"
                );
                Err(Error::new(ErrorKind::InDoubt, context))
            }
        }
    }

    /// Hands a frame over, or returns it as waiting for room. Not async, because the frame would be copied into the
    /// future and out of it again.
    #[inline]
    fn submit(
        &self,
        body: FrameBody,
        until: Until,
        journaled: bool,
        effects: Effects,
        key_guard: Option<KeyGuard>,
    ) -> Result<Writing> {
        self.core.check_writable(!journaled)?;
        let records = body.count();
        let bytes = u32::try_from(body.len_on_disk())
            .map_err(|_| Error::new(ErrorKind::TooLarge, "a frame of 4 GiB or more"))?;
        // It would wait for room for ever, because even the empty queue has too little.
        if u64::from(records) > self.core.options.queue_records_max
            || u64::from(bytes) > self.core.options.queue_bytes_max
        {
            let context =
                format!("a write of {records} records and {bytes} bytes is larger than the whole queue");
            return Err(Error::new(ErrorKind::TooLarge, context));
        }
        // The change stream reads the journal. Without a notice there, it would report a write-through as a lost place.
        let noticed = !journaled && self.core.options.changes && Safeguard::ThroughLeavesNotice.holds();
        let notice = noticed.then(|| notices_of(&body)).transpose()?;
        let (sender, answer) = oneshot::channel();
        let mut ticket =
            WriteTicket { until, effects, answer: sender, records, bytes, through: None, key_guard };
        let submission = match notice {
            None => Submission { body, journaled, ticket: Some(ticket) },
            Some(notice) => {
                ticket.through = Some(Box::new(body));
                Submission { body: notice, journaled: true, ticket: Some(ticket) }
            }
        };
        if let Err(refused) = self.core.gate.try_enter(records, bytes) {
            let waiting = Box::new(Waiting { refused, records, bytes, through: !journaled, submission });
            return Ok(Writing { until, answer, waiting: Some(waiting) });
        }
        self.hand_over(submission);
        Ok(Writing { until, answer, waiting: None })
    }

    /// Waits until a write is handed over, and returns the receiver of its answer.
    async fn handed_over(&self, writing: Writing) -> Result<Answer> {
        if let Some(waiting) = writing.waiting {
            // Boxed, so that the future of a write that finds room does not grow by the size of this wait.
            let entering = async {
                let Waiting { refused, records, bytes, through, submission } = *waiting;
                self.enter(refused, records, bytes, through).await?;
                self.hand_over(submission);
                Ok::<(), Error>(())
            };
            Box::pin(entering).await?;
        }
        Ok(writing.answer)
    }

    #[inline]
    fn hand_over(&self, submission: Submission<Option<WriteTicket>>) {
        // On a thread that may block, an idle committer lets the caller commit, which saves a change of threads.
        match clock::may_block() {
            true => self.committer.submit_blocking(submission),
            false => self.committer.submit(submission),
        }
    }

    async fn enter(&self, refused: NotEntered, records: u32, bytes: u32, through: bool) -> Result<()> {
        let full = || {
            self.core.metrics.writes_refused_full.add(1);
            let backlog = self.core.pending.lock().size();
            let context = format!(
                "the queue is full: {} records and {} bytes wait for the store",
                backlog.records, backlog.bytes
            );
            Err(Error::new(ErrorKind::QueueFull, context))
        };
        let entered = match refused {
            NotEntered::Full => match self.core.options.backpressure {
                Backpressure::Refuse => return full(),
                Backpressure::Wait => self.enter_or_halt(records, bytes).await?,
                Backpressure::WaitFor(wait) => {
                    match self.within(wait, self.enter_or_halt(records, bytes)).await {
                        Some(entered) => entered?,
                        None => return full(),
                    }
                }
            },
            // The gate is shut by a close or a failure. Neither makes room again, so there is nothing to wait for.
            NotEntered::Shut => Err(NotEntered::Shut),
        };
        match entered {
            Ok(()) => Ok(()),
            Err(_) => {
                // The layer's own failure says more than that it is closed.
                self.core.check_writable(through)?;
                Err(Error::layer_closed())
            }
        }
    }

    /// Waits for room. A halted flusher makes none, so its error ends the wait.
    async fn enter_or_halt(&self, records: u32, bytes: u32) -> Result<Result<(), NotEntered>> {
        // The flusher may be lingering for a larger batch. A waiting writer makes it drain at once.
        let _waiting = self.core.wait_for_room();
        let mut status = self.core.status.subscribe();
        let halted = status.wait_for(|status| status.state == HealthState::Halted);
        tokio::select! {
            biased;
            entered = self.core.gate.enter(records, bytes) => Ok(entered),
            halted = halted => {
                Err(halted.ok().and_then(|status| status.error.clone()).unwrap_or_else(Error::layer_closed))
            }
        }
    }

    /// Waits for `future` for at most this long. The timer runs on the layer's runtime, since the caller may have none.
    pub(crate) async fn within<T>(&self, wait: Duration, future: impl Future<Output = T>) -> Option<T> {
        let timer = {
            let _entered = self.runtime.enter();
            clock::sleep(wait)
        };
        tokio::pin!(timer);
        tokio::pin!(future);
        tokio::select! {
            // The output wins over the timer: a write that has just ended must not be reported as in doubt.
            biased;
            output = &mut future => Some(output),
            () = &mut timer => None,
        }
    }

    /// Waits until the store holds everything up to `seq`.
    ///
    /// # Errors
    /// The reason why the store will not reach it: the layer is halted, fenced, failed or closed.
    pub async fn wait_applied(&self, seq: Seq) -> Result<()> {
        self.core.wait_applied(seq).await
    }

    /// Waits until a read can show the write with this number or a later one. Returns true if the read has to bypass
    /// memory for that.
    ///
    /// # Errors
    /// [`ErrorKind::Transient`] if that takes longer than a write-through may; else as [`Layer::wait_applied`].
    pub(crate) async fn reach(&self, seq: Seq) -> Result<bool> {
        let wait = self.core.options.through_timeout;
        let reached = async {
            match &self.follower {
                Some(follower) => follower.reach(seq).await,
                // Reads show pending writes, so the owner's own commits need not have reached the store.
                None if self.last_committed() >= seq => Ok(false),
                None => self.wait_applied(seq).await.map(|()| false),
            }
        };
        self.within(wait, reached).await.unwrap_or_else(|| {
            let context = format!("the store has not come to record {seq} within {wait:?}");
            Err(Error::new(ErrorKind::Transient, context))
        })
    }

    /// Waits until the store holds all that was committed before the call. Returns the last number of that.
    ///
    /// # Errors
    /// As [`Layer::wait_applied`].
    pub async fn flush(&self) -> Result<Seq> {
        let target = self.last_committed();
        self.core.wait_applied(target).await?;
        Ok(target)
    }

    /// The last committed sequence number.
    pub fn last_committed(&self) -> Seq {
        self.core.pending.lock().last_committed()
    }

    /// The last sequence number that the store holds.
    pub fn watermark(&self) -> Seq {
        self.core.status.borrow().watermark
    }

    /// Lets a halted flusher try again.
    pub fn resume(&self) {
        self.core.resumed.notify_waiters();
    }

    /// Returns the state of the layer: its queue, its journal, its last failure.
    pub fn health(&self) -> Health {
        let letters = self.letters.as_ref().map_or(0, |letters| letters.record_count());
        self.core.health(letters, self.log.as_ref().map_or(0, |log| log.bytes_on_disk()))
    }

    /// Returns the counters of the layer.
    pub fn stats(&self) -> Stats {
        // Hits are counted by each cache and summed up here, so that a hit pays for one counter.
        let queue = self.core.pending.lock().stats(self.ticker.now());
        Stats { memory_hits: self.views.memory_hits(), queue, ..self.core.metrics.snapshot() }
    }

    /// Returns the dead letters, oldest first.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] without a journal.
    pub fn dead_letters(&self) -> Result<Vec<DeadLetter>> {
        Ok(self.letters()?.list())
    }

    /// Replays or discards the dead letters of these keys, and of all keys that share a batch with them.
    ///
    /// # Errors
    /// [`ErrorKind::Rejected`] if the store still refuses; the letters stay in the list then.
    pub async fn settle_dead_letters(&self, keys: &[Key], discard: bool) -> Result<()> {
        self.letters()?;
        // An empty frame has no number to wait for.
        if keys.is_empty() {
            return Ok(());
        }
        let operation = if discard { Operation::Discard } else { Operation::Replay };
        // The order is a frame of the journal, so that it has a number among the writes and survives a crash.
        let mut frame = FrameBuilder::new();
        for key in keys {
            push(&mut frame, operation, true, key.as_bytes(), &[])?;
        }
        let writing = self.submit(frame.finish(), Until::Applied, true, Effects::None, None)?;
        self.handed_over(writing).await?.await.map_err(|_| unanswered())?.map(drop)
    }

    fn letters(&self) -> Result<&Arc<DeadLetters>> {
        self.letters.as_ref().ok_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                "there are no dead letters without a journal to keep them beside",
            )
        })
    }

    /// Opens a change stream that begins at `from`.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] if the layer was opened without changes; else see [`ChangeStream`].
    pub async fn changes(&self, from: ChangesFrom) -> Result<ChangeStream> {
        // Without that option a write-through leaves no notice in the journal, and every one would be a lost place.
        if !self.core.options.changes {
            let context =
                "the layer was opened without changes(true), so its journal does not hold all changes";
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        self.change_source()?.stream(from).await
    }

    /// Lists the named cursors of the change stream.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] without a journal.
    pub fn cursors(&self) -> Result<Vec<CursorStatus>> {
        Ok(self.change_source()?.cursors())
    }

    /// Removes a named cursor. Returns true if there was one.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] without a journal; [`ErrorKind::Locked`] if it has a subscriber.
    pub async fn forget_cursor(&self, name: &str) -> Result<bool> {
        self.change_source()?.forget(name).await
    }

    fn change_source(&self) -> Result<&Arc<ChangeSource>> {
        self.changes.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, "there are no cursors without a journal to keep them beside")
        })
    }

    /// Starts a publisher of the layer's changes.
    ///
    /// # Errors
    /// As [`Layer::changes`]; [`ErrorKind::InvalidName`], [`ErrorKind::InvalidOption`].
    pub(crate) async fn publish(&self, bus: Arc<dyn Bus>, publish: Publish) -> Result<Publication> {
        publish.check()?;
        let stream = self.changes(ChangesFrom::Cursor(publish.cursor_name().to_owned())).await?;
        let parts = PublishingLayer {
            reads: self.reads(),
            ticker: self.ticker(),
            tasks: self.tasks(),
            publishers: &self.publishers,
        };
        Publication::start(bus, publish, stream, parts)
    }

    /// Refuses new writes, drains the queue for at most `deadline`, stops, and returns what is left in the queue.
    ///
    /// If the future is dropped, the layer stays closing: it refuses writes, and stops when it is dropped.
    ///
    /// # Errors
    /// A failure to end the journal cleanly. No acknowledged write is lost by it.
    pub async fn close(self: &Arc<Self>, deadline: Duration) -> Result<Closed> {
        self.core.start_closing();
        // The committer ends first. Otherwise a write could be committed after the flush below has read its target, and
        // would be left in the queue.
        let ended = self.on_thread(|layer| layer.committer.close()).await?;
        // A stopped layer has no flusher that drains, so a flush would wait in vain.
        let drained = if self.flusher.lock().unwrap_or_else(PoisonError::into_inner).is_none() {
            Ok(())
        } else {
            match self.within(deadline, self.flush()).await {
                Some(drained) => drained.map(drop),
                None => Err(self.not_drained(deadline)),
            }
        };
        if let Some(heartbeat) = &self.heartbeat {
            // Best effort: if the store does not answer, the next owner sees the silence instead.
            let _ = self.within(CLOSE_NOTICE_TIMEOUT, heartbeat.end()).await;
        }
        self.on_thread(Layer::stop).await?;
        let queued = self.core.pending.lock().size().records;
        // An empty queue is a complete close, even if the drain failed on the way. Records that are left are replayed
        // from the journal at the next opening, so a failure is their reason and no error of the call.
        match (queued, ended, drained) {
            (0, ended, _) => ended.map(|()| Closed { queued, reason: None }),
            (_, Err(error), _) | (_, Ok(()), Err(error)) => Ok(Closed { queued, reason: Some(error) }),
            (_, Ok(()), Ok(())) => Ok(Closed { queued, reason: Some(Error::layer_closed()) }),
        }
    }

    fn not_drained(&self, deadline: Duration) -> Error {
        let context = format!("the store did not take everything within {deadline:?}");
        match self.core.status.borrow().error.clone() {
            Some(error) => error.wrap(ErrorKind::Transient, context),
            None => Error::new(ErrorKind::Transient, context),
        }
    }

    /// Runs blocking work on a thread of its own, so that no thread of the caller's runtime blocks.
    async fn on_thread<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Layer) -> T + Send + 'static,
    ) -> Result<T> {
        let layer = Arc::clone(self);
        let (sender, done) = oneshot::channel();
        let spawned = thread::Builder::new().name("forebay-close".into()).spawn(move || {
            // The receiver may be gone, because the close was cancelled. The work is done all the same.
            drop(sender.send(work(&layer)));
        });
        spawned.map_err(|error| Error::io("starting the thread that closes the layer", error))?;
        done.await.map_err(|_| Error::layer_closed())
    }

    /// Stops flusher, committer and tasks, waits for their threads, and releases store and files. Idempotent.
    pub(crate) fn stop(&self) {
        self.core.start_closing();
        let flusher = self.flusher.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(FlusherThread { stop, thread }) = flusher else { return };
        stop.send_replace(true);
        let runtime = thread.join();
        // A close has returned its outcome already. After a mere drop the next opening finds a failed sync.
        drop(self.committer.close());
        let panicked = Error::new(ErrorKind::StoreFailed, "the flusher's thread panicked");
        self.core.fail(HealthState::Closed, if runtime.is_err() { panicked } else { Error::layer_closed() });
        // Tasks end before the store is released: they hold it, and it could not be opened again at once.
        self.tasks.end();
        self.reads.release_store();
        if let Some(cursors) = &self.cursors {
            cursors.shutdown();
        }
        if let Some(log) = &self.log {
            log.shutdown();
        }
        if let Some(letters) = &self.letters {
            letters.shutdown();
        }
        // Last, because callers that were answered above may still hold timers of this runtime.
        if let Ok(runtime) = runtime {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Layer {
    /// Stops the layer without draining it. Nothing is lost: pending writes are drained after the next opening.
    ///
    /// Waits for the threads, so that the journal and the store can be opened again at once. The next opening finds a
    /// failed last sync.
    fn drop(&mut self) {
        self.stop();
    }
}
