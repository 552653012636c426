//! A layer: one journal, one store, one order. Speaks keys and bytes; the typed caches stand on it.

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

/// How long a closing layer tries to say that it has ended.
const GOODBYE: Duration = Duration::from_secs(1);

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
    /// What says that the layer lives, if the store has an ear for it.
    pub(crate) heartbeat: Option<Heartbeat>,
    /// What follows the store's owner, in a layer that is not that.
    pub(crate) follower: Option<Arc<Follower>>,
    /// The runtime of the flusher's thread: it drives the timers, so that callers need no runtime.
    pub(crate) runtime: Handle,
    pub(crate) flusher: Mutex<Option<FlusherThread>>,
}

/// A write that was handed over, or waits for room in the queue.
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
    /// Whether it needs a flusher that moves.
    through: bool,
    submission: Submission<Option<WriteTicket>>,
}

impl Layer {
    /// Makes memory show every write that was acknowledged before the call. To be called before a cache's memory is
    /// looked at or changed.
    #[inline]
    pub fn catch_up(&self) {
        self.reads.catch_up();
    }

    /// What is beyond memory.
    pub fn reads(&self) -> &Arc<Lookup> {
        &self.reads
    }

    /// What goes on in the background.
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

    /// Whether there is a journal, which write-behind needs.
    pub fn has_journal(&self) -> bool {
        self.log.is_some()
    }

    /// Writes a frame: acknowledged when it is committed, or when the store holds it.
    ///
    /// Dropping the future before the frame was handed over does nothing; afterwards the frame happens wholly,
    /// though nobody waits any more.
    ///
    /// # Errors
    /// See [`ErrorKind`]; with [`ErrorKind::InDoubt`] the frame may still take effect.
    pub async fn write(&self, body: FrameBody, policy: WritePolicy, effects: Effects) -> Result<Seq> {
        let writing = self.begin_write(body, policy, effects, None)?;
        self.end_write(writing).await
    }

    /// Hands a frame over, unless it has to wait for room in the queue: then [`Layer::end_write`] does. `key_guard` is
    /// released when the frame has ended, though its writer may be gone by then.
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

    /// Waits for what comes of a write.
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

    /// No future: what a write consists of would be moved into it, and from there to where it is handed over.
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
        if u64::from(records) > self.core.options.queue_records_max
            || u64::from(bytes) > self.core.options.queue_bytes_max
        {
            let context =
                format!("a write of {records} records and {bytes} bytes is larger than the whole queue");
            return Err(Error::new(ErrorKind::TooLarge, context));
        }
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

    /// Waits until a write is handed over; returns where its answer comes.
    async fn handed_over(&self, writing: Writing) -> Result<Answer> {
        if let Some(waiting) = writing.waiting {
            // In a place of its own, so that a write that finds room does not carry that wait with it.
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

    fn hand_over(&self, submission: Submission<Option<WriteTicket>>) {
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
            NotEntered::Shut => Err(NotEntered::Shut),
        };
        match entered {
            Ok(()) => Ok(()),
            Err(_) => {
                self.core.check_writable(through)?;
                Err(Error::layer_closed())
            }
        }
    }

    /// Waits for room; a flusher that stands makes none, so its error ends the wait.
    async fn enter_or_halt(&self, records: u32, bytes: u32) -> Result<Result<(), NotEntered>> {
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

    /// Waits for `future` so long; the timer is the layer's own.
    pub(crate) async fn within<T>(&self, wait: Duration, future: impl Future<Output = T>) -> Option<T> {
        let timer = {
            let _entered = self.runtime.enter();
            clock::sleep(wait)
        };
        tokio::pin!(timer);
        tokio::pin!(future);
        tokio::select! {
            biased;
            output = &mut future => Some(output),
            () = &mut timer => None,
        }
    }

    /// Waits until the store holds everything up to `seq`.
    ///
    /// # Errors
    /// Why it will not get there: halted, fenced, failed, closed.
    pub async fn wait_applied(&self, seq: Seq) -> Result<()> {
        self.core.wait_applied(seq).await
    }

    /// Waits until a read can show the effect of the write with this number, or of a later one; says whether it has to
    /// read past memory for that.
    ///
    /// # Errors
    /// [`ErrorKind::Transient`] if that takes longer than a write-through may; else as [`Layer::wait_applied`].
    pub(crate) async fn reach(&self, seq: Seq) -> Result<bool> {
        let wait = self.core.options.through_timeout;
        let reached = async {
            match &self.follower {
                Some(follower) => follower.reach(seq).await,
                None if self.last_committed() >= seq => Ok(false),
                None => self.wait_applied(seq).await.map(|()| false),
            }
        };
        self.within(wait, reached).await.unwrap_or_else(|| {
            let context = format!("the store has not come to record {seq} within {wait:?}");
            Err(Error::new(ErrorKind::Transient, context))
        })
    }

    /// Waits until the store holds what was committed before the call. Returns how far that was.
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

    /// Lets a halted flusher go on.
    pub fn resume(&self) {
        self.core.resumed.notify_waiters();
    }

    /// How the layer is.
    pub fn health(&self) -> Health {
        let letters = self.letters.as_ref().map_or(0, |letters| letters.record_count());
        self.core.health(letters, self.log.as_ref().map_or(0, |log| log.bytes_on_disk()))
    }

    /// What has been counted.
    pub fn stats(&self) -> Stats {
        // Counted by the caches, each for itself, so that a hit counts once.
        let queue = self.core.pending.lock().stats(self.ticker.now());
        Stats { memory_hits: self.views.memory_hits(), queue, ..self.core.metrics.snapshot() }
    }

    /// The dead-letter list, oldest first.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] without a journal.
    pub fn dead_letters(&self) -> Result<Vec<DeadLetter>> {
        Ok(self.letters()?.list())
    }

    /// Replays (or discards) the dead letters of these keys, and of all keys that share a batch with them.
    ///
    /// # Errors
    /// [`ErrorKind::Rejected`] if the store still will not take them; they stay in the list then.
    pub async fn settle_dead_letters(&self, keys: &[Key], discard: bool) -> Result<()> {
        self.letters()?;
        if keys.is_empty() {
            return Ok(());
        }
        let operation = if discard { Operation::Discard } else { Operation::Replay };
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

    /// Opens a change stream from some place on.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] if the layer was opened without changes; else see [`ChangeStream`].
    pub async fn changes(&self, from: ChangesFrom) -> Result<ChangeStream> {
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

    /// Removes a named cursor, and returns whether there was one.
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

    /// Takes no more writes, drains until `deadline`, stops, and says what is left.
    ///
    /// Dropping the future leaves the layer closing: it takes no more writes, and stops when it is dropped.
    ///
    /// # Errors
    /// A failure to bring the journal to a clean end. Nothing acknowledged is lost by it.
    pub async fn close(self: &Arc<Self>, deadline: Duration) -> Result<Closed> {
        self.core.start_closing();
        // The committer ends first: whatever was handed over is committed then, and counts as to be drained.
        let ended = self.on_thread(|layer| layer.committer.close()).await?;
        let drained = if self.flusher.lock().unwrap_or_else(PoisonError::into_inner).is_none() {
            Ok(())
        } else {
            match self.within(deadline, self.flush()).await {
                Some(drained) => drained.map(drop),
                None => Err(self.not_drained(deadline)),
            }
        };
        if let Some(heartbeat) = &self.heartbeat {
            // A store that does not listen any more hears it by the silence.
            let _ = self.within(GOODBYE, heartbeat.end()).await;
        }
        self.on_thread(Layer::stop).await?;
        let queued = self.core.pending.lock().size().records;
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

    /// Runs what waits for threads on a thread of its own, so that no runtime's thread waits.
    async fn on_thread<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Layer) -> T + Send + 'static,
    ) -> Result<T> {
        let layer = Arc::clone(self);
        let (sender, done) = oneshot::channel();
        let spawned = thread::Builder::new().name("forebay-close".into()).spawn(move || {
            // Nobody waiting any more is no error: the work is done all the same.
            drop(sender.send(work(&layer)));
        });
        spawned.map_err(|error| Error::io("starting the thread that closes the layer", error))?;
        done.await.map_err(|_| Error::layer_closed())
    }

    /// Stops flusher and committer and waits for their threads. Idempotent.
    pub(crate) fn stop(&self) {
        self.core.start_closing();
        let flusher = self.flusher.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(FlusherThread { stop, thread }) = flusher else { return };
        stop.send_replace(true);
        let runtime = thread.join();
        // Its outcome was told by the close that asked for it, or is found by the next opening.
        drop(self.committer.close());
        let panicked = Error::new(ErrorKind::StoreFailed, "the flusher's thread panicked");
        self.core.fail(HealthState::Closed, if runtime.is_err() { panicked } else { Error::layer_closed() });
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
        // Last, because timers of those who have just been answered belong to it.
        if let Ok(runtime) = runtime {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Layer {
    /// Loses nothing: what is pending is drained after the next open. Waits for the threads, so that the
    /// journal and the store can be opened again at once; a failed last sync is found by that opening.
    fn drop(&mut self) {
        self.stop();
    }
}
