//! When what was applied, and how much of the journal that was: what the lag behind the store is measured by.
//!
//! One mark for each batch, up to a thousand or so; when there are more, neighbours that are far back become one, which
//! counts as applied when the earlier was and as beginning where the earlier began. So an age and a number of bytes may
//! come out too high, by what a 16th of the batches behind took, and never too low.

use std::collections::VecDeque;
use std::sync::PoisonError;
use std::time::Duration;

use crate::ids::Seq;
use crate::journal::frame::Location;
use crate::seam::clock::{Moment, Ticker};
use crate::seam::sync::{Mutex, MutexGuard};

const MARKS_MAX: usize = 1024;
/// Of all the batches behind a mark, so many times what the mark stands for. With 2^40 batches that makes 900 marks.
const FINENESS: u64 = 16;

/// What the flusher has applied since the layer opened.
pub(crate) struct ApplyHistory {
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

/// A batch, or several that follow each other.
#[derive(Clone, Copy)]
struct Mark {
    /// The numbers of the first and the last of them, from zero.
    batches: (u64, u64),
    /// What it ended with.
    last: Seq,
    /// When the first had been applied.
    at: Moment,
    /// How many bytes had been applied with the last.
    bytes: u64,
}

impl Mark {
    /// One mark for this and what came before it, if that is little against what has come since.
    fn joined(self, earlier: Mark, newest: u64) -> Option<Mark> {
        let (first, last) = (earlier.batches.0, self.batches.1);
        let is_far_back = (last - first + 1) * FINENESS <= newest - last;
        is_far_back.then_some(Mark { batches: (first, last), at: earlier.at, ..self })
    }
}

impl ApplyHistory {
    /// Of a layer that opens with this watermark. When that was applied nobody knows, so it counts from now.
    pub(crate) fn new(ticker: Ticker, watermark: Seq, end: Option<Location>) -> ApplyHistory {
        let marks = VecDeque::from([Mark { batches: (0, 0), last: watermark, at: ticker.now(), bytes: 0 }]);
        let state = Mutex::new(State { marks, end, bytes: 0 });
        ApplyHistory { ticker, opened_at: watermark, state }
    }

    /// Notes that the store holds everything up to `watermark`, and that this took so many bytes of the journal, which
    /// end there.
    pub(crate) fn note(&self, watermark: Seq, end: Option<Location>, bytes: u64) {
        let now = self.ticker.now();
        let mut state = self.state();
        state.end = end.or(state.end);
        state.bytes += bytes;
        let batch = state.marks.back().map_or(0, |mark| mark.batches.1 + 1);
        let mark = Mark { batches: (batch, batch), last: watermark, at: now, bytes: state.bytes };
        state.marks.push_back(mark);
        if state.marks.len() > MARKS_MAX {
            thin(&mut state.marks, batch);
        }
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

/// Joins marks from the newest on.
fn thin(marks: &mut VecDeque<Mark>, newest: u64) {
    let mut thinned: VecDeque<Mark> = VecDeque::with_capacity(MARKS_MAX + 1);
    while let Some(earlier) = marks.pop_back() {
        match thinned.front().and_then(|mark| mark.joined(earlier, newest)) {
            Some(joined) => {
                thinned.pop_front();
                thinned.push_front(joined);
            }
            None => thinned.push_front(earlier),
        }
    }
    *marks = thinned;
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
        assert!(applied.state().marks.len() <= MARKS_MAX);
    }
}
