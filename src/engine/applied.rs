//! When what was applied, and how far that is in the journal: what the lag of the change stream is measured by.
//!
//! One mark for each batch, up to a thousand or so; when there are more, neighbours become one that counts as applied
//! when the earlier was. So an age may come out too high, never too low.

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
    state: Mutex<State>,
}

struct State {
    /// What a batch ended with, and when it had been applied; ascending.
    marks: VecDeque<(Seq, Moment)>,
    /// What lies in the journal behind all that is applied.
    end: Option<Location>,
}

impl Applied {
    /// Of a layer that opens with this watermark. When that was applied nobody knows, so it counts from now.
    pub(crate) fn new(ticker: Ticker, watermark: Seq, end: Option<Location>) -> Applied {
        let marks = VecDeque::from([(watermark, ticker.now())]);
        Applied { ticker, state: Mutex::new(State { marks, end }) }
    }

    /// Notes that the store holds everything up to `watermark`.
    pub(crate) fn note(&self, watermark: Seq, end: Option<Location>) {
        let now = self.ticker.now();
        let mut state = self.state();
        state.end = end.or(state.end);
        if state.marks.len() >= MARKS_MAX {
            let marks = std::mem::take(&mut state.marks);
            let marks: Vec<_> = marks.into();
            let thinned = marks.chunks(2).filter_map(|pair| {
                let (_, earlier) = pair.first()?;
                pair.last().map(|(last, _)| (*last, *earlier))
            });
            state.marks = thinned.collect();
        }
        state.marks.push_back((watermark, now));
    }

    /// How long ago the first of what comes after `seq` was applied; nothing if nothing was.
    pub(crate) fn age_after(&self, seq: Seq) -> Duration {
        let state = self.state();
        let next = state.marks.partition_point(|(last, _)| *last <= seq);
        let applied = state.marks.get(next).map(|(_, at)| *at);
        applied.map_or(Duration::ZERO, |at| self.ticker.now().since(at))
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
            applied.note(Seq(5 + 2 * second), None);
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
}
