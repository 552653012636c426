//! The committer: gives every write its place in the one order, and tells when it is committed.
//!
//! Guarantees: sequence numbers follow the order of submission; a group is told to the [`Sink`] only when it is as
//! durable as configured, in order and never concurrently; every submitted ticket ends in exactly one of
//! [`Sink::committed`] and [`Sink::refused`], whatever fails or panics; after a failed sync, an unknown write error
//! or a panic nothing is written any more (poisoned). It knows nothing of what records mean, and never retries.
//!
//! # Who writes
//! There is one right to write, the baton (`Order`), and one line in which submissions wait. Whoever takes the
//! baton writes all that waits, and may give it back only when nothing waits or somebody else asks for it, who
//! then has the same duty. Both are looked at under one lock, so no submission can be left behind.
//!
//! - Under [`Durability::Sync`] one thread has the baton whenever there is work: it writes a whole group, syncs
//!   once, tells the sink. While it syncs, the next group forms. A caller that may block and finds nobody at work does
//!   that for itself: to wake the thread and to be woken by it costs a good part of a sync.
//! - Under [`Durability::Buffered`], and without a journal, the submitting caller takes the baton if it is free, and
//!   else leaves its submission to the one who has it. Under the first, callers that may block come one after the
//!   other, and a thread syncs at the interval, and not while it holds the baton: writers go on meanwhile.
//!
//! The line itself has no bound: whoever submits has a gate in front of it, or waits for its ticket.

use std::mem;
use std::sync::{Arc, OnceLock, PoisonError};
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::Seq;
use crate::journal::guard::{guarded, outcome_unknown, panicked};
use crate::journal::log::Log;
use crate::journal::options::Durability;
use crate::journal::order::{Order, number};
use crate::journal::sink::{Committed, Sink, Submission};
use crate::journal::writer::Writer;
use crate::seam::clock;
use crate::seam::sync::thread::{self, JoinHandle};
use crate::seam::sync::{Condvar, Mutex, MutexGuard};

/// After so many groups written for others, a caller hands the baton to the next one that comes.
const ROUNDS_FOR_OTHERS_MAX: u32 = 16;
/// How long the thread waits after a group for half of those who are expected, and then, awake, for the rest: less than
/// a sync takes, and about what it costs to be woken.
const LINGER_MAX: [Duration; 2] = [Duration::from_micros(100), Duration::from_micros(50)];

/// Commits submissions in one order. Dropping it closes it; an error of that is lost then, so rather call
/// [`Committer::close`].
pub struct Committer<S: Sink> {
    shared: Arc<Shared<S>>,
    closing: Mutex<Closing>,
}

struct Closing {
    thread: Option<JoinHandle<()>>,
    closed: Option<Result<()>>,
}

/// Who writes, and when it is synced.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Sync,
    Buffered(Duration),
    Unjournaled,
}

struct Shared<S: Sink> {
    mode: Mode,
    sink: Arc<S>,
    line: Mutex<Line<S::Ticket>>,
    /// The baton is back, and somebody asked for it.
    baton: Condvar,
    /// There is something to do for the thread.
    work: Condvar,
    poison: OnceLock<Error>,
    /// One sync at a time, so that synced offsets and failures are told in order.
    syncing: Mutex<()>,
    /// Of callers that may block, under [`Durability::Buffered`]: who left its submission to another would have to be
    /// woken for the answer, which takes longer than its write.
    turn: Mutex<()>,
}

struct Line<T> {
    waiting: Vec<Committed<T>>,
    /// The baton, while nobody has it.
    order: Option<Box<Order<T>>>,
    /// How many wait for the baton.
    asking: usize,
    /// How many groups the one who has the baton has written.
    rounds: u32,
    /// At how many submissions the thread is to be woken, under [`Durability::Sync`]; more than any once it was.
    wanted: usize,
    /// The thread has nothing to do and expects nobody.
    idle: bool,
    closed: bool,
}

impl<S: Sink> Committer<S> {
    /// Starts committing after `last`, to a journal or, with `None`, to the order alone.
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
            (None, _) => Mode::Unjournaled,
            (Some(_), Durability::Sync) => Mode::Sync,
            (Some(_), Durability::Buffered { sync_interval }) => Mode::Buffered(sync_interval),
        };
        let line = Line {
            waiting: Vec::new(),
            order: Some(Box::new(Order::new(journal, last))),
            asking: 0,
            rounds: 0,
            wanted: usize::MAX,
            idle: true,
            closed: false,
        };
        let shared = Arc::new(Shared {
            mode,
            sink,
            line: Mutex::new(line),
            baton: Condvar::new(),
            work: Condvar::new(),
            poison: OnceLock::new(),
            syncing: Mutex::new(()),
            turn: Mutex::new(()),
        });
        let thread = match mode {
            Mode::Sync => Some(spawn(&shared, "forebay-commit", Shared::commit_groups)?),
            Mode::Buffered(interval) => {
                Some(spawn(&shared, "forebay-sync", move |shared| shared.sync_at(interval))?)
            }
            Mode::Unjournaled => None,
        };
        Ok(Committer { shared, closing: Mutex::new(Closing { thread, closed: None }) })
    }

    /// Takes a batch into the order. The outcome, errors included, goes to the sink: before this returns or later,
    /// on this thread or another. Never waits for a sync; under [`Durability::Buffered`] it may write, for others too.
    pub fn submit(&self, submission: Submission<S::Ticket>) {
        self.enter(submission, false);
    }

    /// As [`Committer::submit`], on a thread that may wait for the disk: if nobody is committing, it does so itself,
    /// and under [`Durability::Buffered`] it waits for its turn to.
    pub fn submit_blocking(&self, submission: Submission<S::Ticket>) {
        let one_at_a_time = matches!(self.shared.mode, Mode::Buffered(_));
        let _turn = one_at_a_time.then(|| lock(&self.shared.turn));
        self.enter(submission, true);
    }

    fn enter(&self, submission: Submission<S::Ticket>, may_block: bool) {
        let shared = &*self.shared;
        if let Err(error) = shared.check(&submission) {
            return shared.refuse(submission.ticket, &error);
        }
        let mut line = lock(&shared.line);
        if line.closed {
            drop(line);
            return shared.refuse(submission.ticket, &Error::new(ErrorKind::Closed, "the journal is closed"));
        }
        let alone = line.idle && line.waiting.is_empty() && line.order.is_some();
        line.waiting.push(Committed::waiting(submission));
        if shared.mode == Mode::Sync {
            if may_block && alone {
                // Once: whoever comes meanwhile has woken the thread.
                let (line, mut order) = shared.take(line);
                let line = shared.round(line, &mut order);
                drop(shared.put_down(line, order));
            } else if line.waiting.len() >= line.wanted {
                // Once: until it runs, each of those who come would pay for a system call that changes nothing.
                line.wanted = usize::MAX;
                drop(line);
                shared.work.notify_one();
            }
            return;
        }
        // Those who ask for the baton write what waits when they get it.
        if line.asking > 0 {
            return;
        }
        if line.order.is_some() || line.rounds >= ROUNDS_FOR_OTHERS_MAX {
            let (line, order) = shared.take(line);
            shared.give_back(line, order);
        }
    }

    /// Makes everything durable that was committed before the call. Blocking; nothing to do unless it is buffered.
    ///
    /// # Errors
    /// [`ErrorKind::Poisoned`] if it could not be made durable, or if the committer was poisoned before.
    pub fn sync(&self) -> Result<()> {
        match self.shared.mode {
            Mode::Buffered(_) => self.shared.sync(),
            Mode::Sync | Mode::Unjournaled => self.shared.check_usable(),
        }
    }

    /// Commits what was submitted, refuses what comes later, syncs, ends the journal cleanly, joins the thread and lets
    /// go of the journal. Blocking. Called again it says the same.
    ///
    /// # Errors
    /// [`ErrorKind::Poisoned`] if not everything is durable, or the error of writing the journal's last frame;
    /// everything committed is durable in that case.
    pub fn close(&self) -> Result<()> {
        let mut closing = lock(&self.closing);
        if let Some(closed) = &closing.closed {
            return closed.clone();
        }
        lock(&self.shared.line).closed = true;
        self.shared.work.notify_all();
        if let Some(Err(panic)) = closing.thread.take().map(JoinHandle::join) {
            self.shared.poison(&panicked("the committer's thread", &*panic));
        }
        let closed = self.shared.finish();
        closing.closed = Some(closed.clone());
        closed
    }
}

impl<S: Sink> Drop for Committer<S> {
    fn drop(&mut self) {
        // Every ticket has its answer, and the poisoning was told to the sink: the result says nothing new.
        drop(self.close());
    }
}

impl<S: Sink> Shared<S> {
    /// The thread under `Sync`. Ends when it is closed and nothing waits.
    fn commit_groups(&self) {
        let mut line = lock(&self.line);
        loop {
            line.idle = true;
            line = self.wait_for(line, 1, None);
            line.idle = false;
            if line.waiting.is_empty() {
                return;
            }
            let written = line.waiting.len();
            let (unlocked, mut order) = self.take(line);
            line = self.round(unlocked, &mut order);
            let expected = written + order.came_meanwhile;
            line = self.put_down(line, order);
            line = self.linger(line, expected);
        }
    }

    /// Looks out for those who were just answered: they come again at once, as a rule, and a group that leaves without
    /// them makes them wait for two syncs. To be woken takes as long as some of them take to come, so half of them wake
    /// the thread, which is awake for the last one. A lone writer is never kept waiting, since it alone is expected.
    fn linger<'a>(&'a self, mut line: Guard<'a, S>, expected: usize) -> Guard<'a, S> {
        let [asleep, awake] = LINGER_MAX;
        if expected > 1 {
            line = self.wait_for(line, expected.div_ceil(2), Some(asleep));
        }
        let until = clock::now() + awake;
        while line.waiting.len() < expected && !line.closed && clock::now() < until {
            drop(line);
            thread::yield_now();
            line = lock(&self.line);
        }
        line
    }

    /// Waits until so many submissions wait, for this time at most, or until it is closed.
    fn wait_for<'a>(&'a self, mut line: Guard<'a, S>, count: usize, most: Option<Duration>) -> Guard<'a, S> {
        let until = most.map(|time| clock::now() + time);
        while line.waiting.len() < count && !line.closed {
            line.wanted = count;
            line = match until.map(|until| until.saturating_duration_since(clock::now())) {
                None => self.work.wait(line).unwrap_or_else(PoisonError::into_inner),
                Some(left) if left.is_zero() => break,
                Some(left) => self.work.wait_timeout(line, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
        line.wanted = usize::MAX;
        line
    }

    /// The thread under `Buffered`. Ends when it is closed or poisoned.
    fn sync_at(&self, interval: Duration) {
        loop {
            let next = clock::now() + interval;
            let mut line = lock(&self.line);
            loop {
                if line.closed {
                    return;
                }
                let left = next.saturating_duration_since(clock::now());
                if left.is_zero() {
                    break;
                }
                line = self.work.wait_timeout(line, left).unwrap_or_else(PoisonError::into_inner).0;
            }
            drop(line);
            if self.sync().is_err() {
                return;
            }
        }
    }

    fn sync(&self) -> Result<()> {
        let _one_at_a_time = lock(&self.syncing);
        let (line, mut order) = self.take(lock(&self.line));
        let unsynced = mem::take(&mut order.unsynced);
        let point = order.journal.as_ref().filter(|_| unsynced).map(|(_, writer)| writer.sync_point());
        self.give_back(line, order);
        self.check_usable()?;
        let Some(point) = point else { return Ok(()) };
        // Whoever has the baton may write meanwhile.
        if let Err(error) = guarded("syncing the journal", || point.sync()) {
            return Err(self.poison(&error));
        }
        let (line, mut order) = self.take(lock(&self.line));
        if let Some((_, writer)) = &mut order.journal {
            writer.synced(point);
        }
        self.give_back(line, order);
        Ok(())
    }

    /// What is left to do once the thread has ended and nothing more is let in.
    fn finish(&self) -> Result<()> {
        let _one_at_a_time = lock(&self.syncing);
        let (mut line, mut order) = self.take(lock(&self.line));
        while !line.waiting.is_empty() {
            line = self.round(line, &mut order);
        }
        let journal = order.journal.take();
        order.unsynced = false;
        self.give_back(line, order);
        let usable = self.check_usable();
        let Some((log, mut writer)) = journal else { return usable };
        // A poisoned journal gets no last frame: that would vouch for what is not known.
        let closed = usable.and_then(|()| guarded("closing the journal", || writer.close()));
        drop(writer);
        log.shutdown();
        match closed {
            Err(error) if error.kind() == ErrorKind::Poisoned => Err(self.poison(&error)),
            other => other,
        }
    }

    /// Waits for the baton. Whoever takes it gives it back with [`Shared::give_back`].
    fn take<'a>(&'a self, mut line: Guard<'a, S>) -> (Guard<'a, S>, Box<Order<S::Ticket>>) {
        line.asking += 1;
        loop {
            if let Some(order) = line.order.take() {
                line.asking -= 1;
                return (line, order);
            }
            line = self.baton.wait(line).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Writes what waits, then lets the baton go.
    fn give_back<'a>(&'a self, mut line: Guard<'a, S>, mut order: Box<Order<S::Ticket>>) {
        line.rounds = 0;
        while !line.waiting.is_empty() && (line.rounds == 0 || line.asking == 0) {
            line = self.round(line, &mut order);
        }
        drop(self.put_down(line, order));
    }

    fn put_down<'a>(&'a self, mut line: Guard<'a, S>, order: Box<Order<S::Ticket>>) -> Guard<'a, S> {
        line.rounds = 0;
        line.order = Some(order);
        if line.asking > 0 {
            self.baton.notify_one();
        }
        line
    }

    /// Commits all that waits, as one group.
    fn round<'a>(&'a self, mut line: Guard<'a, S>, order: &mut Order<S::Ticket>) -> Guard<'a, S> {
        mem::swap(&mut line.waiting, &mut order.group);
        line.rounds = line.rounds.saturating_add(1);
        drop(line);
        self.commit(order);
        order.shrink();
        lock(&self.line)
    }

    /// Answers every ticket of the group. Never unwinds.
    fn commit(&self, order: &mut Order<S::Ticket>) {
        if let Err(error) = self.check_usable() {
            return order.group.drain(..).for_each(|one| self.refuse(one.ticket, &error));
        }
        let sync = self.mode == Mode::Sync;
        let written = guarded("writing to the journal", || order.write(sync));
        let full = match written {
            Ok(full) => full,
            Err(cause) => {
                let later = self.poison(&cause);
                let in_flight = outcome_unknown(&cause);
                return order.group.drain(..).for_each(|one| {
                    // What was not to be written has surely not happened.
                    self.refuse(one.ticket, if one.journaled { &in_flight } else { &later });
                });
            }
        };
        if let Some(full) = full {
            let unwritten = order.group.extract_if(.., |one| one.journaled && one.location.is_none());
            unwritten.for_each(|one| self.refuse(one.ticket, &full));
            // All that was refused came behind all that was written, which so has the numbers that it was written with.
            number(order.last, &mut order.group);
        }
        if let Some(last) = order.group.last() {
            order.last = last.last();
        }
        let published = order.group.iter().rev().find(|one| one.location.is_some());
        if let (Some((_, writer)), Some(published)) = (&order.journal, published) {
            writer.publish(published.last());
        }
        order.came_meanwhile = if sync { lock(&self.line).waiting.len() } else { 0 };
        if !order.group.is_empty() {
            self.tell(&mut order.group);
        }
    }

    fn tell(&self, committed: &mut Vec<Committed<S::Ticket>>) {
        let told = guarded("telling what was committed", || {
            self.sink.committed(committed);
            if committed.is_empty() {
                return Ok(());
            }
            Err(Error::new(ErrorKind::Poisoned, "the sink left tickets of a committed group unanswered"))
        });
        if let Err(cause) = told {
            self.poison(&cause);
            let error = outcome_unknown(&cause);
            committed.drain(..).for_each(|left| self.refuse(left.ticket, &error));
        }
    }

    fn refuse(&self, ticket: S::Ticket, error: &Error) {
        let told = guarded("telling what was refused", || {
            self.sink.refused(ticket, error);
            Ok(())
        });
        if let Err(cause) = told {
            self.poison(&cause);
        }
    }

    /// Writes nothing any more, for this reason or an earlier one; returns what later callers are told.
    fn poison(&self, cause: &Error) -> Error {
        let context = "refused and not written, because the journal failed earlier";
        let error = cause.clone().wrap(ErrorKind::Poisoned, context);
        if self.poison.set(error.clone()).is_ok() {
            // The panic hook has reported a panic, and there is nothing left to refuse for it.
            drop(guarded("telling that the journal failed", || {
                self.sink.poisoned(&cause.clone().wrap(ErrorKind::Poisoned, "the journal failed"));
                Ok(())
            }));
        }
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
        if submission.journaled && self.mode == Mode::Unjournaled {
            let context = "a write is to be journaled, but there is no journal";
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        Ok(())
    }
}

type Guard<'a, S> = MutexGuard<'a, Line<<S as Sink>::Ticket>>;

fn spawn<S: Sink>(
    shared: &Arc<Shared<S>>,
    name: &str,
    run: impl FnOnce(&Shared<S>) + Send + 'static,
) -> Result<JoinHandle<()>> {
    let shared = Arc::clone(shared);
    let thread = thread::Builder::new().name(name.to_owned()).spawn(move || run(&shared));
    thread.map_err(|error| Error::io(format!("cannot start the thread {name}"), error))
}

/// No panic happens under these locks that leaves anything half done: sinks and writers run outside them.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
