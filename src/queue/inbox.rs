//! The inbox before the pending view: committed frames are visible as soon as they are in it.
//!
//! Whoever locks the view adds the inbox's frames first, to the view and to the caches' memory, and whoever reads
//! memory without the lock checks whether there are any. So a reader that misses memory sees either all of a frame or
//! none of it, and never an older value after a newer one; and writers are answered before that work is done.

use std::collections::VecDeque;
use std::sync::PoisonError;

use crate::error::Error;
use crate::queue::pending::Pending;
use crate::queue::queued::{QueueSize, QueuedFrame};
use crate::queue::ticket::{Effects, WriteTicket};
use crate::seam::clock::{Moment, Ticker};
use crate::seam::sync::atomic::{AtomicUsize, Ordering};
use crate::seam::sync::{Mutex, MutexGuard};

/// The frames that are moved under one lock, so that readers wait for it no longer than some microseconds.
const FRAMES_PER_LOCK: usize = 64;

/// A committed frame and its effects.
pub(crate) struct CommittedFrame {
    pub(crate) frame: QueuedFrame,
    /// The ticket of a writer that waits for its apply.
    pub(crate) ticket: Option<Box<WriteTicket>>,
    /// The effects that memory shows at once.
    pub(crate) effects: Effects,
}

/// The pending view behind its lock, and the inbox before it.
pub(crate) struct PendingView {
    /// Each group's first frame has the moment at which it was submitted or else committed.
    inbox: Mutex<VecDeque<(Option<Moment>, CommittedFrame)>>,
    /// The number of frames that are in the inbox, or on their way from it into memory.
    unseen: AtomicUsize,
    pending: Mutex<Pending>,
    memory_bytes_max: u64,
    ticker: Ticker,
}

impl PendingView {
    /// Makes an empty view that keeps so many bytes of frames in memory.
    pub(crate) fn new(memory_bytes_max: u64, ticker: Ticker) -> PendingView {
        let (inbox, pending) = (Mutex::default(), Mutex::default());
        PendingView { inbox, unseen: AtomicUsize::new(0), pending, memory_bytes_max, ticker }
    }

    /// Locks the view, with everything that is committed in it.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Pending> {
        let mut pending = lock(&self.pending);
        self.drain_inbox(&mut pending, usize::MAX);
        pending
    }

    /// Makes frames visible to every read that begins from now on. The iterator runs under a lock.
    pub(crate) fn publish(&self, frames: impl ExactSizeIterator<Item = CommittedFrame>) {
        let mut inbox = lock(&self.inbox);
        // Counted before the first is there, so that no reader takes an inbox with frames for an empty one.
        self.unseen.fetch_add(frames.len(), Ordering::SeqCst);
        inbox.reserve(frames.len());
        for (index, frame) in frames.enumerate() {
            let at = (index == 0).then(|| frame.effects.since().unwrap_or_else(|| self.ticker.now()));
            inbox.push_back((at, frame));
        }
    }

    /// Makes memory show everything that is committed. Costs one atomic load if it does already.
    #[inline]
    pub(crate) fn catch_up(&self) {
        if self.unseen.load(Ordering::SeqCst) > 0 {
            self.drain_until_seen();
        }
    }

    #[cold]
    fn drain_until_seen(&self) {
        while self.unseen.load(Ordering::SeqCst) > 0
            && self.drain_inbox(&mut lock(&self.pending), FRAMES_PER_LOCK) > 0
        {}
    }

    /// Moves the whole inbox into the view. Returns the queue's size and [`Pending::take_outcome`].
    pub(crate) fn drain_all(&self) -> (QueueSize, (u64, Option<Error>)) {
        loop {
            let mut pending = lock(&self.pending);
            if self.drain_inbox(&mut pending, FRAMES_PER_LOCK) < FRAMES_PER_LOCK {
                return (pending.size(), pending.take_outcome());
            }
        }
    }

    /// Moves frames from the inbox into the view, in order, and returns how many. If none were left, all are in memory,
    /// whoever moved them.
    fn drain_inbox(&self, pending: &mut Pending, at_most: usize) -> usize {
        // Frames leave the inbox only under the view's lock, which is held here: so as many as are counted are in the
        // inbox, or about to be put there.
        let at_most = at_most.min(self.unseen.load(Ordering::SeqCst));
        let mut count = 0;
        while count < at_most {
            // One at a time, so that the committer, which holds up all writers, waits for no more than that.
            let next = lock(&self.inbox).pop_front();
            let Some((at, CommittedFrame { frame, ticket, effects })) = next else { break };
            let first = frame.first;
            pending.add(at, frame, ticket, self.memory_bytes_max);
            effects.publish(first);
            count += 1;
        }
        // Only now: a reader that finds nothing unseen reads memory without the lock.
        if count > 0 {
            self.unseen.fetch_sub(count, Ordering::SeqCst);
        }
        count
    }
}

/// Locks a mutex, poisoned or not.
///
/// Code of the user's types that runs under these locks is caught before it gets here, so a poisoned lock means a
/// defect of this module; the flusher could only go on with the same state anyway.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ids::Seq;
    use crate::journal::frame::{FrameBuilder, Location};
    use crate::queue::record::{Operation, push};
    use crate::queue::ticket::Effect;
    use crate::seam::clock::Clock;

    struct FixedClock(u64);

    impl Clock for FixedClock {
        fn now(&self) -> Duration {
            Duration::from_secs(self.0)
        }
    }

    struct SubmittedAt(Option<Moment>);

    impl Effect for SubmittedAt {
        fn publish(self: Box<Self>, _: Seq) {}

        fn since(&self) -> Option<Moment> {
            self.0
        }
    }

    #[test]
    fn what_is_pending_is_as_old_as_its_submission_or_else_its_commit() {
        let at = |second| Moment::at(Duration::from_secs(second));
        for (submitted, age) in [(Some(at(3)), 7), (None, 0)] {
            let view = PendingView::new(u64::MAX, Ticker::new(FixedClock(10)));
            let mut body = FrameBuilder::new();
            push(&mut body, Operation::Put, true, b"n\0k", b"value").unwrap();
            let location = Some(Location { segment: 1, offset: 4096 });
            let frame = QueuedFrame::committed(Seq(1), body.finish(), location);
            let effects = Effects::One(Box::new(SubmittedAt(submitted)));
            view.publish([CommittedFrame { frame, ticket: None, effects }].into_iter());
            assert_eq!(view.lock().stats(at(10)).oldest_age, Duration::from_secs(age));
        }
    }
}
