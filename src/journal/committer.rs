//! The committer: numbers all writes in one order, writes them in groups, and reports each outcome.
//!
//! Guarantees:
//! - Sequence numbers follow the order of submission.
//! - A group is reported to the [`Sink`] only when it is as durable as configured, in order and never concurrently.
//! - Every ticket ends in exactly one of [`Sink::committed`] and [`Sink::refused`], whatever fails or panics.
//! - After a failed sync, a write error with unknown outcome, or a panic, it is poisoned and writes nothing any more.
//!
//! It does not interpret records, and it never retries.
//!
//! # Group commit
//! Submissions wait in one queue. The write token is the exclusive right to number, write and sync them. Its holder
//! commits the whole queue as one group (it leads, the submissions in the group follow). It may release the token only
//! when the queue is empty or when another thread waits for the token, which then has the same duty. Queue and token
//! are guarded by one lock, so no submission can be left behind.
//!
//! - Under [`Durability::Sync`] a thread of its own holds the token whenever there is work: it writes a whole group,
//!   syncs once, and reports. While it syncs, the next group forms. A caller that may block and finds the committer
//!   idle commits on its own thread, because waking that thread and being woken by it costs a good part of a sync.
//! - Under [`Durability::Buffered`], and without a journal, the submitting caller takes the token if it is free, and
//!   otherwise leaves its submission to the holder. Under `Buffered`, callers that may block do so one after the other.
//!   A thread syncs at the interval. It does not hold the token while it syncs, so that writers go on.
//!
//! The queue has no bound of its own: submitters pass a gate before it, or wait for their ticket.

use std::mem;
use std::sync::{Arc, OnceLock, PoisonError};
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::Seq;
use crate::journal::errors::{guarded, outcome_unknown, panicked};
use crate::journal::frame::{FrameBody, Location};
use crate::journal::log::Log;
use crate::journal::options::Durability;
use crate::journal::writer::{GroupFrame, Writer};
use crate::safeguard::Safeguard;
use crate::seam::clock;
use crate::seam::sync::thread::{self, JoinHandle};
use crate::seam::sync::{Condvar, Mutex, MutexGuard};

/// The number of groups after which a caller that commits for others hands the token to the next one that comes.
const GROUPS_FOR_OTHERS_MAX: u32 = 16;
/// The longest time for which the thread, after a group, stays parked for half of the expected submissions: less than
/// a sync takes.
const LINGER_PARKED_MAX: Duration = Duration::from_micros(100);
/// The longest time for which it then spins for the rest of them: about the cost of being woken.
const LINGER_SPINNING_MAX: Duration = Duration::from_micros(50);
/// The capacity that a group's vectors keep after a large group.
const GROUP_KEPT: usize = 1024;

/// Receives the outcomes of a committer.
///
/// No method may call the committer, and none should block, because all writers wait meanwhile.
pub trait Sink: Send + Sync + 'static {
    /// Identifies a submission and its waiter.
    type Ticket: Send + 'static;

    /// Reports a group that is durable as configured and visible to readers. In order, never concurrently.
    ///
    /// It drains the group. A panic poisons the committer: tickets still in the group are refused, and the sink has to
    /// answer those that it took out (a ticket may do so in its `Drop`).
    fn committed(&self, group: &mut Vec<Committed<Self::Ticket>>);

    /// Reports a submission that was not committed, or whose outcome is unknown
    /// ([`ErrorKind::Poisoned`], "outcome unknown").
    fn refused(&self, ticket: Self::Ticket, error: &Error);

    /// Reports once that nothing is written any more, and why, before any submission is refused for that reason.
    fn poisoned(&self, error: &Error);
}

/// A batch to commit.
#[derive(Debug)]
pub struct Submission<T> {
    /// Its records, at least one.
    pub body: FrameBody,
    /// True to write it to the journal; false to give it sequence numbers only.
    pub journaled: bool,
    /// Comes back with the outcome.
    pub ticket: T,
}

/// A batch that is committed.
#[derive(Debug)]
pub struct Committed<T> {
    /// Its records and the number of the first one; the others follow without a gap.
    pub frame: GroupFrame,
    /// The location of its frame; `None` if it was not journaled.
    pub location: Option<Location>,
    /// The ticket that was submitted with it.
    pub ticket: T,
    journaled: bool,
}

impl<T> Committed<T> {
    /// Makes a queued batch of a submission: it has no number yet and is not in the journal.
    pub(crate) fn waiting(submission: Submission<T>) -> Committed<T> {
        let Submission { body, journaled, ticket } = submission;
        Committed { frame: GroupFrame { first: Seq::ZERO, body }, location: None, ticket, journaled }
    }

    /// Returns its last record's sequence number.
    #[must_use]
    pub fn last(&self) -> Seq {
        let GroupFrame { first, body } = &self.frame;
        Seq(first.0.saturating_add(u64::from(body.count())).saturating_sub(1))
    }
}

/// Commits submissions in one order. Dropping it closes it; call [`Committer::close`] to learn of an error.
pub struct Committer<S: Sink> {
    core: Arc<CommitterCore<S>>,
    closing: Mutex<Closing>,
}

struct Closing {
    thread: Option<JoinHandle<()>>,
    closed: Option<Result<()>>,
}

/// Decides which thread writes and when it syncs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum CommitMode {
    Sync,
    Buffered(Duration),
    Unjournaled,
}

struct CommitterCore<S: Sink> {
    mode: CommitMode,
    sink: Arc<S>,
    queue: Mutex<SubmissionQueue<S::Ticket>>,
    /// Notified when the token was released while a thread waits for it.
    token_released: Condvar,
    /// Notified when there is work for the committer's thread.
    work: Condvar,
    poison: OnceLock<Error>,
    /// Held during a sync, so that synced offsets and failures are reported in order.
    syncing: Mutex<()>,
    /// Held by a caller that may block, under [`Durability::Buffered`]. Without it, a caller that leaves its submission
    /// to another one has to be woken for the answer, which takes longer than its write.
    blocking_callers: Mutex<()>,
}

struct SubmissionQueue<T> {
    waiting: Vec<Committed<T>>,
    /// The write token, while no thread holds it.
    token: Option<Box<WriteToken<T>>>,
    /// The number of threads that wait for the token.
    token_waiters: usize,
    /// The number of groups that the token's holder has committed since it took the token.
    groups: u32,
    /// The queue length at which to wake the thread, under [`Durability::Sync`]; `usize::MAX` once it was woken.
    wake_at: usize,
    /// True while the thread has nothing to do and expects no submission.
    idle: bool,
    closed: bool,
}

/// The write token: all state that only one thread may touch at a time. Its vectors are reused between groups.
struct WriteToken<T> {
    journal: Option<(Arc<Log>, Writer)>,
    /// The last sequence number that was given.
    last: Seq,
    /// True if something was written that no sync point covers yet.
    unsynced: bool,
    /// The number of submissions that came while the last group was written and synced.
    came_meanwhile: usize,
    group: Vec<Committed<T>>,
    locations: Vec<Location>,
}

type QueueGuard<'a, S> = MutexGuard<'a, SubmissionQueue<<S as Sink>::Ticket>>;

impl<S: Sink> Committer<S> {
    /// Starts committing after `last`, to a journal or, with `None`, without one.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] for a bad interval, [`ErrorKind::Io`] if no thread can be started.
    pub fn start(
        journal: Option<(Arc<Log>, Writer)>,
        durability: Durability,
        last: Seq,
        sink: Arc<S>,
    ) -> Result<Committer<S>> {
        durability.validate()?;
        let mode = match (&journal, durability) {
            (None, _) => CommitMode::Unjournaled,
            (Some(_), Durability::Sync) => CommitMode::Sync,
            (Some(_), Durability::Buffered { sync_interval }) => CommitMode::Buffered(sync_interval),
        };
        let queue = SubmissionQueue {
            waiting: Vec::new(),
            token: Some(Box::new(WriteToken::new(journal, last))),
            token_waiters: 0,
            groups: 0,
            wake_at: usize::MAX,
            idle: true,
            closed: false,
        };
        let core = Arc::new(CommitterCore {
            mode,
            sink,
            queue: Mutex::new(queue),
            token_released: Condvar::new(),
            work: Condvar::new(),
            poison: OnceLock::new(),
            syncing: Mutex::new(()),
            blocking_callers: Mutex::new(()),
        });
        // Unjournaled there is nothing to sync on a timer, and callers commit their own submissions.
        let thread = match mode {
            CommitMode::Sync => Some(spawn(&core, "forebay-commit", CommitterCore::commit_groups)?),
            CommitMode::Buffered(interval) => {
                Some(spawn(&core, "forebay-sync", move |core| core.sync_at(interval))?)
            }
            CommitMode::Unjournaled => None,
        };
        Ok(Committer { core, closing: Mutex::new(Closing { thread, closed: None }) })
    }

    /// Queues a batch for the next group commit.
    ///
    /// The outcome, errors included, goes to the sink, before this returns or later, on this thread or another. Never
    /// waits for a sync. Under [`Durability::Buffered`] it may write, for other callers too.
    pub fn submit(&self, submission: Submission<S::Ticket>) {
        self.enqueue(submission, false);
    }

    /// Queues a batch as [`Committer::submit`] does, on a thread that may wait for the disk.
    ///
    /// If the committer is idle, the caller commits the batch itself. Under [`Durability::Buffered`] it waits for its
    /// turn to do so.
    pub fn submit_blocking(&self, submission: Submission<S::Ticket>) {
        let one_at_a_time = matches!(self.core.mode, CommitMode::Buffered(_));
        let _turn = one_at_a_time.then(|| lock(&self.core.blocking_callers));
        self.enqueue(submission, true);
    }

    fn enqueue(&self, submission: Submission<S::Ticket>, may_block: bool) {
        let core = &*self.core;
        // Before the queue, so that a bad submission cannot fail the group of its neighbours.
        if let Err(error) = core.check(&submission) {
            return core.refuse(submission.ticket, &error);
        }
        let mut queue = lock(&core.queue);
        if queue.closed {
            drop(queue);
            // Unlocked before, because a sink may take locks of its own.
            return core.refuse(submission.ticket, &Error::new(ErrorKind::Closed, "the journal is closed"));
        }
        // A lone submission while the thread is parked: no group can form that would be worth waiting for.
        let alone = queue.idle && queue.waiting.is_empty() && queue.token.is_some();
        queue.waiting.push(Committed::waiting(submission));
        if core.mode == CommitMode::Sync {
            if may_block && alone {
                // One group only: submissions that come meanwhile have woken the thread.
                let (queue, mut token) = core.acquire(queue);
                let queue = core.commit_group(queue, &mut token);
                drop(core.release(queue, token));
            } else if queue.waiting.len() >= queue.wake_at {
                // Woken once: until the thread runs, every further caller would pay for a system call in vain.
                queue.wake_at = usize::MAX;
                drop(queue);
                core.work.notify_one();
            }
            return;
        }
        // A thread that waits for the token commits the queue when it gets it.
        if queue.token_waiters > 0 {
            return;
        }
        // After many groups the holder may be stuck with other callers' work for ever, so this caller relieves it.
        if queue.token.is_some() || queue.groups >= GROUPS_FOR_OTHERS_MAX {
            let (queue, token) = core.acquire(queue);
            core.commit_queue_and_release(queue, token);
        }
    }

    /// Makes everything durable that was committed before the call. Blocking; does nothing unless buffered.
    ///
    /// # Errors
    /// [`ErrorKind::Poisoned`] if the sync failed, or if the committer was poisoned before.
    pub fn sync(&self) -> Result<()> {
        match self.core.mode {
            CommitMode::Buffered(_) => self.core.sync(),
            CommitMode::Sync | CommitMode::Unjournaled => self.core.check_usable(),
        }
    }

    /// Commits all submissions so far, refuses later ones, syncs, ends the journal cleanly, joins the thread and
    /// releases the journal. Blocking. A second call returns the same result.
    ///
    /// # Errors
    /// [`ErrorKind::Poisoned`] if not everything is durable, or the error of writing the journal's last frame;
    /// everything committed is durable in that case.
    pub fn close(&self) -> Result<()> {
        let mut closing = lock(&self.closing);
        if let Some(closed) = &closing.closed {
            return closed.clone();
        }
        lock(&self.core.queue).closed = true;
        self.core.work.notify_all();
        // The thread ends only when the queue is empty, or by a panic, after which `finish` answers the rest.
        if let Some(Err(panic)) = closing.thread.take().map(JoinHandle::join) {
            self.core.poison(&panicked("the committer's thread", &*panic));
        }
        let closed = self.core.finish();
        closing.closed = Some(closed.clone());
        closed
    }
}

impl<S: Sink> Drop for Committer<S> {
    fn drop(&mut self) {
        // Every ticket has its answer, and the sink knows of a poisoning: the result holds nothing new.
        drop(self.close());
    }
}

impl<S: Sink> CommitterCore<S> {
    /// Runs the thread under `Sync`. Ends when the committer is closed and the queue is empty.
    fn commit_groups(&self) {
        let mut queue = lock(&self.queue);
        loop {
            queue.idle = true;
            queue = self.wait_for(queue, 1, None);
            // Cleared before the token is taken: a caller that finds it set would commit beside this thread and
            // split the group.
            queue.idle = false;
            if queue.waiting.is_empty() {
                return;
            }
            let written = queue.waiting.len();
            let (unlocked, mut token) = self.acquire(queue);
            queue = self.commit_group(unlocked, &mut token);
            let expected = written + token.came_meanwhile;
            queue = self.release(queue, token);
            queue = self.linger(queue, expected);
        }
    }

    /// Waits a little for the writers that were just answered.
    ///
    /// As a rule they submit again at once, and a group that leaves without them makes them wait for two syncs. Waking
    /// the thread takes as long as some of them take to come. So it stays parked for half of them and spins for the
    /// rest. A lone writer is never delayed, because only its own submission is expected.
    fn linger<'a>(&'a self, mut queue: QueueGuard<'a, S>, expected: usize) -> QueueGuard<'a, S> {
        if expected > 1 {
            // By the queue's length and not by a count of wake-ups: a condition variable may wake without cause.
            queue = self.wait_for(queue, expected.div_ceil(2), Some(LINGER_PARKED_MAX));
        }
        let until = clock::now() + LINGER_SPINNING_MAX;
        while queue.waiting.len() < expected && !queue.closed && clock::now() < until {
            drop(queue);
            // Spins without the lock, because otherwise no submission could come.
            thread::yield_now();
            queue = lock(&self.queue);
        }
        queue
    }

    /// Waits until `count` submissions are queued, for `most` at the longest, or until the committer is closed.
    fn wait_for<'a>(
        &'a self,
        mut queue: QueueGuard<'a, S>,
        count: usize,
        most: Option<Duration>,
    ) -> QueueGuard<'a, S> {
        let until = most.map(|time| clock::now() + time);
        while queue.waiting.len() < count && !queue.closed {
            queue.wake_at = count;
            queue = match until.map(|until| until.saturating_duration_since(clock::now())) {
                None => self.work.wait(queue).unwrap_or_else(PoisonError::into_inner),
                Some(left) if left.is_zero() => break,
                Some(left) => self.work.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
        queue.wake_at = usize::MAX;
        queue
    }

    /// Runs the thread under `Buffered`. Ends when the committer is closed or poisoned.
    fn sync_at(&self, interval: Duration) {
        loop {
            let next = clock::now() + interval;
            let mut queue = lock(&self.queue);
            loop {
                if queue.closed {
                    return;
                }
                let left = next.saturating_duration_since(clock::now());
                if left.is_zero() {
                    break;
                }
                queue = self.work.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
            }
            drop(queue);
            // A failed sync has poisoned the committer for good, so a further try could only report a false
            // success (ATC 2020).
            if self.sync().is_err() {
                return;
            }
        }
    }

    fn sync(&self) -> Result<()> {
        let _one_at_a_time = lock(&self.syncing);
        let (queue, mut token) = self.acquire(lock(&self.queue));
        // Frames that are written from here on set it again, and the next sync covers them.
        let unsynced = mem::take(&mut token.unsynced);
        let point = token.journal.as_ref().filter(|_| unsynced).map(|(_, writer)| writer.sync_point());
        self.commit_queue_and_release(queue, token);
        // Checked after the queue was committed: those submissions need their refusal even if nothing may be
        // synced.
        self.check_usable()?;
        let Some(point) = point else { return Ok(()) };
        // Without the token, so that writers need not wait for the disk.
        if let Err(error) = guarded("syncing the journal", || point.sync()) {
            return Err(self.poison(&error));
        }
        let (queue, mut token) = self.acquire(lock(&self.queue));
        // Only now: a frame that promised an offset before its sync would turn a torn tail into damage. And after
        // every sync, or damage would pass for a torn tail (Pebble #6031).
        if let Some((_, writer)) = &mut token.journal {
            writer.synced(point);
        }
        self.commit_queue_and_release(queue, token);
        Ok(())
    }

    /// Commits the rest of the queue and closes the journal, after the thread has ended and no submission is let in.
    fn finish(&self) -> Result<()> {
        let _one_at_a_time = lock(&self.syncing);
        let (mut queue, mut token) = self.acquire(lock(&self.queue));
        while !queue.waiting.is_empty() {
            queue = self.commit_group(queue, &mut token);
        }
        let journal = token.journal.take();
        // Closing the journal syncs what is left.
        token.unsynced = false;
        self.commit_queue_and_release(queue, token);
        let usable = self.check_usable();
        let Some((log, mut writer)) = journal else { return usable };
        // A poisoned journal gets no last frame, which would vouch for writes whose outcome is unknown.
        let closed = usable.and_then(|()| guarded("closing the journal", || writer.close()));
        // Before `shutdown` releases the lock: no write of ours may reach a directory that another process owns by
        // then.
        drop(writer);
        log.shutdown();
        match closed {
            Err(error) if error.kind() == ErrorKind::Poisoned => Err(self.poison(&error)),
            other => other,
        }
    }

    /// Waits for the token and takes it.
    fn acquire<'a>(
        &'a self,
        mut queue: QueueGuard<'a, S>,
    ) -> (QueueGuard<'a, S>, Box<WriteToken<S::Ticket>>) {
        queue.token_waiters += 1;
        loop {
            if let Some(token) = queue.token.take() {
                queue.token_waiters -= 1;
                return (queue, token);
            }
            queue = self.token_released.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Commits queued submissions, then releases the token.
    ///
    /// One group even if threads wait for the token, because the holder's own submission may be queued.
    fn commit_queue_and_release<'a>(
        &'a self,
        mut queue: QueueGuard<'a, S>,
        mut token: Box<WriteToken<S::Ticket>>,
    ) {
        // The bound counts groups for other callers, so it starts over with each holder.
        queue.groups = 0;
        while !queue.waiting.is_empty() && (queue.groups == 0 || queue.token_waiters == 0) {
            queue = self.commit_group(queue, &mut token);
        }
        drop(self.release(queue, token));
    }

    fn release<'a>(
        &'a self,
        mut queue: QueueGuard<'a, S>,
        token: Box<WriteToken<S::Ticket>>,
    ) -> QueueGuard<'a, S> {
        queue.groups = 0;
        queue.token = Some(token);
        if queue.token_waiters > 0 {
            self.token_released.notify_one();
        }
        queue
    }

    /// Commits the whole queue as one group, unlocked meanwhile.
    fn commit_group<'a>(
        &'a self,
        mut queue: QueueGuard<'a, S>,
        token: &mut WriteToken<S::Ticket>,
    ) -> QueueGuard<'a, S> {
        mem::swap(&mut queue.waiting, &mut token.group);
        queue.groups = queue.groups.saturating_add(1);
        drop(queue);
        self.commit(token);
        // After every group, because one burst would otherwise keep its memory for the life of the layer.
        token.shrink();
        lock(&self.queue)
    }

    /// Writes the group and answers each of its tickets. Never unwinds.
    fn commit(&self, token: &mut WriteToken<S::Ticket>) {
        if let Err(error) = self.check_usable() {
            return token.group.drain(..).for_each(|one| self.refuse(one.ticket, &error));
        }
        let sync = self.mode == CommitMode::Sync;
        let written = guarded("writing to the journal", || token.write(sync));
        let full = match written {
            Ok(full) => full,
            Err(cause) => {
                let later = self.poison(&cause);
                let in_flight = outcome_unknown(&cause);
                return token.group.drain(..).for_each(|one| {
                    // A submission that was not to be journaled certainly did not happen.
                    self.refuse(one.ticket, if one.journaled { &in_flight } else { &later });
                });
            }
        };
        if let Some(full) = full {
            let unwritten = token.group.extract_if(.., |one| one.journaled && one.location.is_none());
            unwritten.for_each(|one| self.refuse(one.ticket, &full));
            // All refused frames came after all written ones, so those keep the numbers that are on disk; the
            // unjournaled ones move up, which leaves no gap where a refused frame was.
            number(token.last, &mut token.group);
        }
        // Only what was written or numbered moves the counter: the numbers of refused frames are free again, which
        // keeps numbers dense.
        if let Some(last) = token.group.last() {
            token.last = last.last();
        }
        // Readers are shown journaled frames only; what was never in the journal cannot be read from it.
        let published = token.group.iter().rev().find(|one| one.location.is_some());
        if let (Some((_, writer)), Some(published)) = (&token.journal, published) {
            writer.publish(published.last());
        }
        token.came_meanwhile = if sync { lock(&self.queue).waiting.len() } else { 0 };
        if !token.group.is_empty() {
            self.report_committed(&mut token.group);
        }
    }

    fn report_committed(&self, committed: &mut Vec<Committed<S::Ticket>>) {
        // A sink is not ours: its panic must not unwind through the token, or no later caller would ever get it
        // back.
        let reported = guarded("reporting a committed group", || {
            self.sink.committed(committed);
            if committed.is_empty() {
                return Ok(());
            }
            Err(Error::new(ErrorKind::Poisoned, "the sink left tickets of a committed group unanswered"))
        });
        // A panic of the sink leaves it in an unknown state, so no later group may be reported to it.
        if let Err(cause) = reported {
            self.poison(&cause);
            let error = outcome_unknown(&cause);
            committed.drain(..).for_each(|left| self.refuse(left.ticket, &error));
        }
    }

    fn refuse(&self, ticket: S::Ticket, error: &Error) {
        let reported = guarded("reporting a refused submission", || {
            self.sink.refused(ticket, error);
            Ok(())
        });
        // A sink that cannot answer one waiter cannot be trusted with the next.
        if let Err(cause) = reported {
            self.poison(&cause);
        }
    }

    /// Stops all writing, for this reason unless there was an earlier one. Returns the error for later callers.
    fn poison(&self, cause: &Error) -> Error {
        let context = "refused and not written, because the journal failed earlier";
        let error = cause.clone().wrap(ErrorKind::Poisoned, context);
        if self.poison.set(error.clone()).is_ok() {
            // A panic was reported by the panic hook, and no submission is left to refuse for it.
            drop(guarded("reporting that the journal failed", || {
                self.sink.poisoned(&cause.clone().wrap(ErrorKind::Poisoned, "the journal failed"));
                Ok(())
            }));
        }
        // The first reason counts. A later one is most often its consequence and would hide the cause.
        self.poison.get().cloned().unwrap_or(error)
    }

    fn check_usable(&self) -> Result<()> {
        self.poison.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    fn check(&self, submission: &Submission<S::Ticket>) -> Result<()> {
        if submission.body.count() == 0 {
            let context = "a batch without records has no place in the order";
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        // Acknowledging it as journaled would promise that it survives a crash.
        if submission.journaled && self.mode == CommitMode::Unjournaled {
            let context = "a write is to be journaled, but there is no journal";
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        Ok(())
    }
}

impl<T> WriteToken<T> {
    fn new(journal: Option<(Arc<Log>, Writer)>, last: Seq) -> WriteToken<T> {
        WriteToken {
            journal,
            last,
            unsynced: false,
            came_meanwhile: 0,
            group: Vec::new(),
            locations: Vec::new(),
        }
    }

    /// Frees the memory of a large group.
    fn shrink(&mut self) {
        self.group.shrink_to(GROUP_KEPT);
        self.locations.shrink_to(GROUP_KEPT);
    }

    /// Numbers the group, writes the part of it that is to be journaled, and syncs that if asked to.
    ///
    /// Returns the error of a full disk, if it was full. Submissions at the end that were not written have no location
    /// then.
    #[inline]
    fn write(&mut self, sync: bool) -> Result<Option<Error>> {
        // Also without a journal: a submission that is only numbered takes its place in the same order.
        number(self.last, &mut self.group);
        self.locations.clear();
        let Some((_, writer)) = &mut self.journal else { return Ok(None) };
        let journaled = self.group.iter().filter(|one| one.journaled).map(|one| &one.frame);
        let count = journaled.clone().count();
        if count == 0 {
            return Ok(None);
        }
        let error = writer.append(journaled, &mut self.locations).err();
        match &error {
            // A full disk may have taken the first frames of the group. These count; the rest is refused.
            Some(error) if error.kind() != ErrorKind::DiskFull => return Err(error.clone()),
            None if self.locations.len() != count => {
                return Err(Error::new(ErrorKind::Poisoned, "the journal's writer lost count of its frames"));
            }
            _ => {}
        }
        let journaled = self.group.iter_mut().filter(|one| one.journaled);
        for (one, location) in journaled.zip(&self.locations) {
            one.location = Some(*location);
        }
        if !self.locations.is_empty() {
            // An answer before the sync would acknowledge a write that a power cut takes back.
            if sync && Safeguard::AcknowledgeAfterSync.holds() {
                writer.sync()?;
            } else {
                // The interval's sync, or the one before an apply, covers it.
                self.unsynced = true;
            }
        }
        Ok(error)
    }
}

/// Gives a group the numbers that follow `last`.
fn number<T>(mut last: Seq, group: &mut [Committed<T>]) {
    for one in group {
        one.frame.first = last.next();
        last = last.plus(u64::from(one.frame.body.count()));
    }
}

fn spawn<S: Sink>(
    core: &Arc<CommitterCore<S>>,
    name: &str,
    run: impl FnOnce(&CommitterCore<S>) + Send + 'static,
) -> Result<JoinHandle<()>> {
    let core = Arc::clone(core);
    let thread = thread::Builder::new().name(name.to_owned()).spawn(move || run(&core));
    thread.map_err(|error| Error::io(format!("cannot start the thread {name}"), error))
}

/// Locks a mutex, poisoned or not: sinks and writers run outside these locks, so a panic leaves nothing half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
