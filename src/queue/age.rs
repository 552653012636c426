//! Ages of numbered records from a bounded number of marks, instead of a time for each record.
//!
//! One ring serves the age of the oldest pending record and the lag of whoever reads what was applied. It never answers
//! with too young an age or too few bytes; it may answer with too much, by what at most a 32nd of the groups since then
//! took.

use std::cell::Cell;
use std::collections::VecDeque;
use std::time::Duration;

use crate::ids::Seq;
use crate::seam::clock::Moment;

/// The number of marks from which on old ones are joined. With 2^40 groups about 1,700 are left.
const MARKS_MAX: usize = 2048;
/// A mark may cover one group for every so many groups that came after it.
const FINENESS: u64 = 32;

/// Marks of groups of records, in ascending order.
#[derive(Debug, Default)]
pub(crate) struct AgeRing {
    marks: VecDeque<Mark>,
    /// The number of groups noted so far.
    groups: u64,
}

/// The first of some groups that follow each other. It covers all records up to the next mark.
#[derive(Clone, Copy, Debug)]
struct Mark {
    /// The number of groups before it.
    group: u64,
    first: Seq,
    /// The bytes of all records before `first`.
    bytes_before: u64,
    at: Moment,
}

impl AgeRing {
    /// Notes a group that begins with `first`, behind all groups noted so far and so many bytes.
    pub(crate) fn note(&mut self, first: Seq, bytes_before: u64, at: Moment) {
        // Before the push, so that the ring's buffer does not grow past its bound.
        if self.marks.len() >= MARKS_MAX {
            self.join_old_marks();
        }
        self.marks.push_back(Mark { group: self.groups, first, bytes_before, at });
        self.groups += 1;
    }

    /// Drops the marks that cover nothing from `oldest` on.
    pub(crate) fn drop_before(&mut self, oldest: Seq) {
        while self.marks.get(1).is_some_and(|mark| mark.first <= oldest) {
            self.marks.pop_front();
        }
    }

    /// Drops all marks.
    pub(crate) fn clear(&mut self) {
        self.marks.clear();
    }

    /// Returns the age of the oldest record that a mark covers; zero without marks.
    pub(crate) fn oldest_age(&self, now: Moment) -> Duration {
        self.marks.front().map_or(Duration::ZERO, |mark| now.since(mark.at))
    }

    /// Returns the age of the record `seq` and the bytes before its group; `None` if no mark covers it.
    pub(crate) fn of(&self, seq: Seq, now: Moment) -> Option<(Duration, u64)> {
        let covering = self.marks.partition_point(|mark| mark.first <= seq).checked_sub(1)?;
        self.marks.get(covering).map(|mark| (now.since(mark.at), mark.bytes_before))
    }

    /// Returns the first record of the newest group that is at least this old; zero if none is.
    pub(crate) fn first_at_age(&self, age: Duration, now: Moment) -> Seq {
        let old = self.marks.partition_point(|mark| now.since(mark.at) >= age);
        old.checked_sub(1).and_then(|at| self.marks.get(at)).map_or(Seq::ZERO, |mark| mark.first)
    }

    /// Returns whether there are no more marks than there may be.
    #[cfg(test)]
    pub(crate) fn is_within_bounds(&self) -> bool {
        self.marks.len() <= MARKS_MAX
    }

    /// Joins marks that are far back, each with the one before it, which is older and has fewer bytes before it.
    #[cold]
    fn join_old_marks(&mut self) {
        // In place, so that no second buffer is needed: what is kept moves to the front, never past what is read.
        let marks = Cell::from_mut(self.marks.make_contiguous()).as_slice_of_cells();
        let ends = marks.iter().skip(1).map(|next| next.get().group).chain([self.groups]);
        let mut last_kept: Option<u64> = None;
        let mut kept = 0;
        let mut places = marks.iter();
        for (mark, end) in marks.iter().zip(ends) {
            let joins = last_kept.is_some_and(|group| (end - group) * FINENESS <= self.groups - end);
            if joins {
                continue;
            }
            last_kept = Some(mark.get().group);
            kept += 1;
            if let Some(place) = places.next() {
                place.set(mark.get());
            }
        }
        self.marks.truncate(kept);
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
        let mut ring = AgeRing::default();
        (1..=COUNT).for_each(|seq| ring.note(Seq(seq), seq, second(seq)));
        assert!(ring.marks.len() <= MARKS_MAX);
        for oldest in (1..=COUNT).step_by(997) {
            ring.drop_before(Seq(oldest));
            let (told, is) = (ring.oldest_age(second(COUNT)).as_secs(), COUNT - oldest);
            assert!(told >= is && told <= is + COUNT / 32, "{told} s instead of {is} s");
        }
        ring.clear();
        assert_eq!(ring.oldest_age(second(COUNT)), Duration::ZERO);
        ring.note(Seq(COUNT + 1), 0, second(COUNT));
        assert_eq!(ring.oldest_age(second(COUNT + 3)).as_secs(), 3);
    }

    #[test]
    fn a_record_is_as_old_as_its_group_or_a_32nd_of_what_came_since_older() {
        const COUNT: u64 = 1_000_000;
        let mut ring = AgeRing::default();
        assert_eq!(ring.of(Seq(1), second(1)), None);
        let mut most = 0;
        for seq in 1..=COUNT {
            ring.note(Seq(seq), seq, second(seq));
            most = most.max(ring.marks.len());
        }
        assert!(most <= MARKS_MAX && ring.marks.capacity() <= MARKS_MAX, "{most} marks");
        assert_eq!(ring.of(Seq(0), second(COUNT)), None);
        for seq in (1..=COUNT).step_by(331).chain([COUNT - 1, COUNT]) {
            let (age, bytes_before) = ring.of(Seq(seq), second(COUNT)).unwrap();
            let (age, is) = (age.as_secs(), COUNT - seq);
            assert!(age >= is && age <= is + is / FINENESS, "{age} s instead of {is} s");
            assert_eq!(bytes_before, COUNT - age);
        }
    }
}
