//! When what was applied, and how much of the journal that was: what the lag behind the store is measured by.
//!
//! One mark for each batch, up to a thousand or so; when there are more, neighbours become one that counts as applied
//! when the earlier was, and as beginning where the earlier began. So an age and a number of bytes may come out too
//! high, never too low.

use std::collections::VecDeque;
use std::sync::PoisonError;
use std::time::Duration;

use crate::ids::Seq;
use crate::journal::frame::Location;
use crate::seam::clock::{Moment, Ticker};
use crate::seam::sync::{Mutex, MutexGuard};

const MARKS_MAX: usize = 1024;

/// What the flusher has applied since the layer opened.
pub(crate) struct Applied {
    ticker: Ticker,
    /// The watermark with which the layer opened.
    opened_at: Seq,
    state: Mutex<State>,
}

struct State {
    /// Ascending.
    marks: VecDeque<Mark>,
    /// What lies in the journal behind all that is applied.
    end: Option<Location>,
    /// How many bytes of the journal have been applied, whether it still has them or not.
    bytes: u64,
}

/// A batch.
#[derive(Clone, Copy)]
struct Mark {
    /// What it ended with.
    last: Seq,
    /// When it had been applied.
    at: Moment,
    /// How many bytes had been applied with it.
    bytes: u64,
}

impl Applied {
    /// Of a layer that opens with this watermark. When that was applied nobody knows, so it counts from now.
    pub(crate) fn new(ticker: Ticker, watermark: Seq, end: Option<Location>) -> Applied {
        let marks = VecDeque::from([Mark { last: watermark, at: ticker.now(), bytes: 0 }]);
        let state = Mutex::new(State { marks, end, bytes: 0 });
        Applied { ticker, opened_at: watermark, state }
    }

    /// Notes that the store holds everything up to `watermark`, and that this took so many bytes of the journal, which
    /// end there.
    pub(crate) fn note(&self, watermark: Seq, end: Option<Location>, bytes: u64) {
        let now = self.ticker.now();
        let mut state = self.state();
        state.end = end.or(state.end);
        state.bytes += bytes;
        if state.marks.len() >= MARKS_MAX {
            let marks = std::mem::take(&mut state.marks);
            let marks: Vec<_> = marks.into();
            let thinned = marks.chunks(2).filter_map(|pair| {
                let (first, last) = (pair.first()?, pair.last()?);
                Some(Mark { at: first.at, ..*last })
            });
            state.marks = thinned.collect();
        }
        let bytes = state.bytes;
        state.marks.push_back(Mark { last: watermark, at: now, bytes });
    }

    /// How long ago the first of what comes after `seq` was applied; nothing if nothing was.
    pub(crate) fn age_after(&self, seq: Seq) -> Duration {
        let state = self.state();
        let next = state.marks.partition_point(|mark| mark.last <= seq);
        let applied = state.marks.get(next).map(|mark| mark.at);
        applied.map_or(Duration::ZERO, |at| self.ticker.now().since(at))
    }

    /// How many bytes of the journal were applied after `seq`; nothing if some of that was before the layer opened.
    pub(crate) fn bytes_after(&self, seq: Seq) -> Option<u64> {
        let state = self.state();
        let next = state.marks.partition_point(|mark| mark.last <= seq);
        let before =
            next.checked_sub(1).and_then(|before| state.marks.get(before)).map_or(0, |mark| mark.bytes);
        (seq >= self.opened_at).then(|| state.bytes.saturating_sub(before))
    }

    /// What lies in the journal behind all that is applied.
    pub(crate) fn end(&self) -> Option<Location> {
        self.state().end
    }

    fn state(&self) -> MutexGuard<'_, State> {
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
        let applied = Applied::new(Ticker::new(Seconds(Arc::clone(&seconds))), Seq(5), None);
        for second in 1..=5_000 {
            seconds.store(second, Ordering::SeqCst);
            applied.note(Seq(5 + 2 * second), None, 100);
        }
        assert!(applied.state().marks.len() <= MARKS_MAX);
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
        const BATCHES: u64 = 5_000;
        let applied = Applied::new(Ticker::default(), Seq(5), None);
        assert_eq!(applied.bytes_after(Seq(5)), Some(0));
        (1..=BATCHES).for_each(|batch| applied.note(Seq(5 + 2 * batch), None, 100));
        assert_eq!(applied.bytes_after(Seq(4)), None, "nobody has counted that");
        for batch in 0..=BATCHES {
            let (told, is) = (applied.bytes_after(Seq(5 + 2 * batch)).unwrap(), 100 * (BATCHES - batch));
            // What was thinned most often counts for 16 batches at once.
            assert!(told >= is && told <= is + 1_600, "{told} bytes instead of {is} behind batch {batch}");
            assert!(applied.bytes_after(Seq(6 + 2 * batch)).unwrap() >= is.saturating_sub(100));
        }
        assert_eq!(applied.bytes_after(Seq(5 + 2 * BATCHES - 2)), Some(100), "the last ones are exact");
    }
}
