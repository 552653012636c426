//! How old the oldest pending record is, from a bounded number of marks instead of a time for each record.

use std::collections::VecDeque;
use std::time::Duration;

use crate::ids::Seq;
use crate::seam::clock::Moment;

/// How many marks are kept; an age comes out too high by as much time as a 32nd of the queue took to be committed.
const MARKS_MAX: usize = 64;

/// When what is pending was committed.
#[derive(Debug)]
pub(crate) struct CommitTimes {
    /// Records with the moments at which they were committed, both ascending.
    marks: VecDeque<(Seq, Moment)>,
    /// Of so many groups one is marked.
    stride: u64,
    /// How many groups have come since the last mark.
    skipped: u64,
}

impl Default for CommitTimes {
    fn default() -> Self {
        CommitTimes { marks: VecDeque::new(), stride: 1, skipped: 0 }
    }
}

impl CommitTimes {
    /// A group of records that begins with this one was committed now.
    pub(crate) fn note(&mut self, first: Seq, now: Moment) {
        self.skipped += 1;
        if self.skipped < self.stride && !self.marks.is_empty() {
            return;
        }
        if self.marks.len() >= MARKS_MAX {
            let mut keeps = false;
            self.marks.retain(|_| {
                keeps = !keeps;
                keeps
            });
            self.stride = self.stride.saturating_mul(2);
        }
        self.skipped = 0;
        self.marks.push_back((first, now));
    }

    /// Nothing before this record is pending any more, or nothing at all.
    pub(crate) fn forget_before(&mut self, oldest: Seq, nothing_left: bool) {
        if nothing_left {
            *self = CommitTimes::default();
        }
        while self.marks.get(1).is_some_and(|(first, _)| *first <= oldest) {
            self.marks.pop_front();
        }
        if self.marks.len() < MARKS_MAX / 4 {
            self.stride = (self.stride / 2).max(1);
        }
    }

    /// How long ago the oldest pending record was committed, if there is one.
    pub(crate) fn oldest(&self, now: Moment) -> Duration {
        self.marks.front().map_or(Duration::ZERO, |(_, at)| now.since(*at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(second: u64) -> Moment {
        Moment::at(Duration::from_secs(second))
    }

    #[test]
    fn the_oldest_is_never_told_younger_than_it_is_and_not_much_older() {
        const COUNT: u64 = 100_000;
        let mut times = CommitTimes::default();
        (1..=COUNT).for_each(|seq| times.note(Seq(seq), second(seq)));
        assert!(times.marks.len() <= MARKS_MAX);
        for oldest in (1..=COUNT).step_by(997) {
            times.forget_before(Seq(oldest), false);
            let (told, is) = (times.oldest(second(COUNT)).as_secs(), COUNT - oldest);
            assert!(told >= is && told <= is + COUNT / 32, "{told} s instead of {is} s");
        }
        times.forget_before(Seq(COUNT + 1), true);
        assert_eq!(times.oldest(second(COUNT)), Duration::ZERO);
        times.note(Seq(COUNT + 1), second(COUNT));
        assert_eq!(times.oldest(second(COUNT + 3)).as_secs(), 3);
    }
}
