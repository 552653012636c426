//! The history of applies since the layer opened: ages and bytes, by which the lag behind the store is measured.

use std::sync::PoisonError;
use std::time::Duration;

use crate::ids::Seq;
use crate::journal::frame::Location;
use crate::queue::age::AgeRing;
use crate::seam::clock::Ticker;
use crate::seam::sync::{Mutex, MutexGuard};

/// The batches that the flusher has applied since the layer opened.
///
/// An age and a number of bytes may be too high, by what a 32nd of the batches since then took; they are never too low.
pub(crate) struct ApplyHistory {
    ticker: Ticker,
    /// The watermark with which the layer opened.
    opened_at: Seq,
    state: Mutex<AppliedState>,
}

struct AppliedState {
    ring: AgeRing,
    watermark: Seq,
    /// The end in the journal of everything applied.
    end: Option<Location>,
    /// The bytes of the journal that have been applied, trimmed or not.
    bytes: u64,
}

impl ApplyHistory {
    /// Begins with the watermark of a layer that opens. Nobody knows when that was applied, so it counts from now.
    pub(crate) fn new(ticker: Ticker, watermark: Seq, end: Option<Location>) -> ApplyHistory {
        let mut ring = AgeRing::default();
        ring.note(Seq::ZERO, 0, ticker.now());
        let state = Mutex::new(AppliedState { ring, watermark, end, bytes: 0 });
        ApplyHistory { ticker, opened_at: watermark, state }
    }

    /// Notes a batch: the store holds everything up to `watermark`, which took so many bytes of the journal, up to
    /// `end`.
    pub(crate) fn note(&self, watermark: Seq, end: Option<Location>, bytes: u64) {
        let now = self.ticker.now();
        let mut guard = self.state();
        let state = &mut *guard;
        state.ring.note(state.watermark.next(), state.bytes, now);
        state.watermark = watermark;
        state.end = end.or(state.end);
        state.bytes += bytes;
    }

    /// Returns how long ago the first record after `seq` was applied; zero if none was.
    pub(crate) fn age_after(&self, seq: Seq) -> Duration {
        let state = self.state();
        if seq >= state.watermark {
            return Duration::ZERO;
        }
        state.ring.of(seq.next(), self.ticker.now()).map_or(Duration::ZERO, |(age, _)| age)
    }

    /// Returns a number up to which everything was applied at least this long ago; zero if there is none.
    pub(crate) fn applied_for(&self, age: Duration) -> Seq {
        let state = self.state();
        if age.is_zero() {
            return state.watermark;
        }
        // The records of the group itself may have been applied later than its first one.
        state.ring.first_at_age(age, self.ticker.now()).before()
    }

    /// Returns how many bytes of the journal were applied after `seq`; `None` if some were before the layer opened.
    pub(crate) fn bytes_after(&self, seq: Seq) -> Option<u64> {
        let state = self.state();
        if seq < self.opened_at {
            return None;
        }
        let before = match seq >= state.watermark {
            true => state.bytes,
            false => state.ring.of(seq.next(), self.ticker.now()).map_or(0, |(_, bytes_before)| bytes_before),
        };
        Some(state.bytes.saturating_sub(before))
    }

    /// Returns the end in the journal of everything applied.
    pub(crate) fn end(&self) -> Option<Location> {
        self.state().end
    }

    fn state(&self) -> MutexGuard<'_, AppliedState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use crate::seam::clock::Clock;

    struct Seconds(Arc<AtomicU64>);

    impl Clock for Seconds {
        fn now(&self) -> Duration {
            Duration::from_secs(self.0.load(Ordering::SeqCst))
        }
    }

    #[test]
    fn an_age_is_that_of_the_next_batch_or_higher_however_many_there_were() {
        let seconds = Arc::new(AtomicU64::new(0));
        let applied = ApplyHistory::new(Ticker::new(Seconds(Arc::clone(&seconds))), Seq(5), None);
        for second in 1..=5_000 {
            seconds.store(second, Ordering::SeqCst);
            applied.note(Seq(5 + 2 * second), None, 100);
        }
        assert!(applied.state().ring.is_within_bounds());
        assert_eq!(applied.age_after(Seq(10_005)), Duration::ZERO, "all of it");
        assert_eq!(applied.age_after(Seq(10_004)), Duration::ZERO, "its second is not over");
        for seq in (0..10_003).step_by(7) {
            let since = if seq < 5 { 0 } else { (seq - 5) / 2 + 1 };
            assert!(applied.age_after(Seq(seq)) >= Duration::from_secs(5_000 - since), "after {seq}");
        }
        assert_eq!(applied.age_after(Seq(10_001)), Duration::from_secs(1));
    }

    #[test]
    fn bytes_are_those_of_the_batches_behind_or_more_however_many_there_were() {
        const BATCHES: u64 = 50_000;
        let applied = ApplyHistory::new(Ticker::default(), Seq(5), None);
        assert_eq!(applied.bytes_after(Seq(5)), Some(0));
        (1..=BATCHES).for_each(|batch| applied.note(Seq(5 + 2 * batch), None, 100));
        assert_eq!(applied.bytes_after(Seq(4)), None, "nobody has counted that");
        for batch in 0..=BATCHES {
            let (told, is) = (applied.bytes_after(Seq(5 + 2 * batch)).unwrap(), 100 * (BATCHES - batch));
            assert!(told >= is && told <= is + is / 16, "{told} bytes instead of {is} behind batch {batch}");
            assert!(applied.bytes_after(Seq(6 + 2 * batch)).unwrap() >= is.saturating_sub(100));
        }
        assert!(applied.state().ring.is_within_bounds());
    }
}
