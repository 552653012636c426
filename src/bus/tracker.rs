//! What one listener knows of one owner's chain of events: up to where it has heard everything.
//!
//! A pure state machine: of epochs and of ranges of sequence numbers. Directives may be carried out as they come, in
//! whatever order and however often; only this says how far *everything* has been heard.

use std::collections::BTreeMap;

use crate::ids::{Epoch, Seq};
use crate::safeguard::Safeguard;

/// How many ranges that lie behind a gap are remembered; what goes beyond has to be heard again.
const RANGES_MAX: usize = 256;

/// How far a listener has heard everything.
#[derive(Clone, Debug, Default)]
pub struct Tracker {
    epoch: Epoch,
    position: Seq,
    /// What has been heard behind a gap: after which number, up to which.
    beyond: BTreeMap<Seq, Seq>,
}

/// What an event is to a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Continuity {
    /// It goes on where the listener stands, or repeats what it knows.
    InOrder,
    /// Something is missing before it.
    Gap,
    /// It is of an owner that another one has followed. Nothing of it counts.
    OldEpoch,
}

impl Tracker {
    /// Of a listener who needs nothing up to `position`, and knows of this epoch.
    #[must_use]
    pub fn new(epoch: Epoch, position: Seq) -> Tracker {
        Tracker { epoch, position, beyond: BTreeMap::new() }
    }

    /// Up to where everything has been heard.
    #[must_use]
    pub fn position(&self) -> Seq {
        self.position
    }

    /// The newest epoch that is known.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Whether something is missing before what has been heard.
    #[must_use]
    pub fn has_gap(&self) -> bool {
        !self.beyond.is_empty()
    }

    /// Notes that there is an owner of this epoch.
    pub fn learn_epoch(&mut self, epoch: Epoch) {
        self.epoch = self.epoch.max(epoch);
    }

    /// Notes an event of this epoch that tells what happened after one number and up to another.
    pub fn observe(&mut self, epoch: Epoch, after: Seq, until: Seq) -> Continuity {
        if epoch < self.epoch && Safeguard::OldOwnerRefused.holds() {
            return Continuity::OldEpoch;
        }
        self.learn_epoch(epoch);
        if after > self.position && Safeguard::GapIsNoticed.holds() {
            if self.beyond.len() < RANGES_MAX {
                let known = self.beyond.entry(after).or_insert(until);
                *known = until.max(*known);
            }
            return Continuity::Gap;
        }
        self.raise(until);
        Continuity::InOrder
    }

    /// Notes that nothing up to `position` is missing any more, whether it was heard or not.
    pub fn raise(&mut self, position: Seq) {
        self.position = position.max(self.position);
        while let Some(first) = self.beyond.first_entry()
            && *first.key() <= self.position
        {
            self.position = self.position.max(first.remove());
        }
    }

    /// Up to where something was heard, with or without gaps.
    #[must_use]
    pub fn newest(&self) -> Seq {
        self.beyond.values().copied().max().unwrap_or_default().max(self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_gap_is_noticed_and_closed_in_any_order() {
        let mut tracker = Tracker::new(Epoch(1), Seq(10));
        assert_eq!(tracker.observe(Epoch(1), Seq(10), Seq(12)), Continuity::InOrder);
        assert_eq!(tracker.observe(Epoch(1), Seq(14), Seq(16)), Continuity::Gap);
        assert_eq!(tracker.observe(Epoch(1), Seq(16), Seq(17)), Continuity::Gap);
        assert!(tracker.position() == Seq(12) && tracker.has_gap() && tracker.newest() == Seq(17));
        assert_eq!(
            tracker.observe(Epoch(1), Seq(11), Seq(14)),
            Continuity::InOrder,
            "it overlaps what is known"
        );
        assert!(tracker.position() == Seq(17) && !tracker.has_gap());
        assert_eq!(tracker.observe(Epoch(1), Seq(0), Seq(9)), Continuity::InOrder, "a duplicate");
        assert_eq!(tracker.position(), Seq(17));
    }

    #[test]
    fn an_older_epoch_does_not_count() {
        let mut tracker = Tracker::new(Epoch(1), Seq(10));
        tracker.learn_epoch(Epoch(2));
        assert_eq!(tracker.observe(Epoch(1), Seq(10), Seq(11)), Continuity::OldEpoch);
        assert_eq!((tracker.position(), tracker.has_gap()), (Seq(10), false));
        assert_eq!(tracker.observe(Epoch(3), Seq(10), Seq(11)), Continuity::InOrder);
        assert_eq!(tracker.observe(Epoch(2), Seq(11), Seq(12)), Continuity::OldEpoch);
    }

    proptest! {
        /// Whatever is heard in whatever order: the position is where the first number is missing.
        #[test]
        fn the_position_never_passes_what_was_not_heard(
            ranges in proptest::collection::vec((0_u64..40, 0_u64..6), 0..40),
        ) {
            let mut tracker = Tracker::new(Epoch(1), Seq::ZERO);
            let mut heard = [false; 64];
            for (after, count) in ranges {
                prop_assert_ne!(tracker.observe(Epoch(1), Seq(after), Seq(after + count)), Continuity::OldEpoch);
                heard[after as usize..(after + count) as usize].fill(true);
                let first_missing = heard.iter().position(|heard| !heard).unwrap();
                prop_assert_eq!(tracker.position(), Seq(first_missing as u64));
            }
        }
    }
}
