//! How committed frames come to be seen: the pending view's lock, and an inbox before it.
//!
//! A committed frame is seen as soon as it is in the inbox: whoever takes the lock takes the frames in first, into the
//! view and into the caches' memory, and whoever reads memory without it looks whether there are any. So a reader who
//! misses memory sees either everything of the frame or nothing, and never an older value after a newer one, and
//! writers are answered before that work is done.

use std::collections::VecDeque;
use std::sync::PoisonError;

use crate::error::Error;
use crate::queue::pending::Pending;
use crate::queue::queued::{QueueSize, QueuedFrame};
use crate::queue::ticket::{Effects, Ticket};
use crate::seam::clock::{Moment, Ticker};
use crate::seam::sync::atomic::{AtomicUsize, Ordering};
use crate::seam::sync::{Mutex, MutexGuard};

/// How many frames are taken into memory under one lock, so that readers are not kept out for longer than some
/// microseconds.
const AT_ONCE: usize = 64;

/// A frame that is committed, and what it changes.
pub(crate) struct Revealed {
    pub(crate) frame: QueuedFrame,
    /// Of who waits for its apply.
    pub(crate) ticket: Option<Box<Ticket>>,
    /// On memory, at once.
    pub(crate) effects: Effects,
}

/// The view behind its lock, and the inbox before it.
pub(crate) struct PendingView {
    /// With the moment of the hand-over, or else of the commit, at the first frame of each group.
    inbox: Mutex<VecDeque<(Option<Moment>, Revealed)>>,
    /// How many frames are in the inbox, or on their way from it into memory.
    unseen: AtomicUsize,
    state: Mutex<Pending>,
    memory_bytes_max: u64,
    ticker: Ticker,
}

impl PendingView {
    pub(crate) fn new(memory_bytes_max: u64, ticker: Ticker) -> PendingView {
        let (inbox, state) = (Mutex::default(), Mutex::default());
        PendingView { inbox, unseen: AtomicUsize::new(0), state, memory_bytes_max, ticker }
    }

    /// The view, with everything that is committed.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Pending> {
        let mut state = lock(&self.state);
        self.take_in(&mut state, usize::MAX);
        state
    }

    /// Reveals frames: every read that begins from now on sees them. The iterator runs under a lock.
    pub(crate) fn reveal(&self, frames: impl ExactSizeIterator<Item = Revealed>) {
        let mut inbox = lock(&self.inbox);
        self.unseen.fetch_add(frames.len(), Ordering::SeqCst);
        inbox.reserve(frames.len());
        for (place, frame) in frames.enumerate() {
            let at = (place == 0).then(|| frame.effects.since().unwrap_or_else(|| self.ticker.now()));
            inbox.push_back((at, frame));
        }
    }

    /// Makes memory show everything that is committed.
    #[inline]
    pub(crate) fn catch_up(&self) {
        if self.unseen.load(Ordering::SeqCst) > 0 {
            self.take_in_some();
        }
    }

    #[cold]
    fn take_in_some(&self) {
        while self.unseen.load(Ordering::SeqCst) > 0 && self.take_in(&mut lock(&self.state), AT_ONCE) > 0 {}
    }

    /// Takes in everything that is committed, and tells the backlog and what came of it since somebody asked.
    pub(crate) fn take_in_all(&self) -> (QueueSize, (u64, Option<Error>)) {
        loop {
            let mut state = lock(&self.state);
            if self.take_in(&mut state, AT_ONCE) < AT_ONCE {
                return (state.backlog(), state.outcome());
            }
        }
    }

    /// Takes frames from the inbox, in their order, since only one has the state. Returns how many; with none left, all
    /// are in memory, whoever took them.
    fn take_in(&self, state: &mut Pending, at_most: usize) -> usize {
        // Only who has the state takes frames out, so these are all in the inbox, or about to be put there.
        let at_most = at_most.min(self.unseen.load(Ordering::SeqCst));
        let mut count = 0;
        while count < at_most {
            let next = lock(&self.inbox).pop_front();
            let Some((at, Revealed { frame, ticket, effects })) = next else { break };
            let first = frame.first;
            state.take_in(at, frame, ticket, self.memory_bytes_max);
            effects.publish(first);
            count += 1;
        }
        if count > 0 {
            self.unseen.fetch_sub(count, Ordering::SeqCst);
        }
        count
    }
}

/// Code of the user's types that runs under these locks is caught before it gets here, so a poisoned lock means a
/// defect of this module; going on with the same state is what the flusher would do anyway.
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

    struct At(u64);

    impl Clock for At {
        fn now(&self) -> Duration {
            Duration::from_secs(self.0)
        }
    }

    struct HandedOver(Option<Moment>);

    impl Effect for HandedOver {
        fn publish(self: Box<Self>, _: Seq) {}

        fn since(&self) -> Option<Moment> {
            self.0
        }
    }

    #[test]
    fn what_is_pending_is_as_old_as_its_hand_over_or_else_its_commit() {
        let at = |second| Moment::at(Duration::from_secs(second));
        for (handed_over, age) in [(Some(at(3)), 7), (None, 0)] {
            let view = PendingView::new(u64::MAX, Ticker::new(At(10)));
            let mut body = FrameBuilder::new();
            push(&mut body, Operation::Put, true, b"n\0k", b"value").unwrap();
            let location = Some(Location { segment: 1, offset: 4096 });
            let frame = QueuedFrame::committed(Seq(1), body.finish(), location);
            let effects = Effects::One(Box::new(HandedOver(handed_over)));
            view.reveal([Revealed { frame, ticket: None, effects }].into_iter());
            assert_eq!(view.lock().queue(at(10)).oldest_age, Duration::from_secs(age));
        }
    }
}
