//! The position of a listener in the chain of events of an owner: the number up to which it has received everything.
//!
//! A pure state machine of epochs and of ranges of sequence numbers. A listener may apply directives in any order and
//! more than once; only the tracker knows up to which number it has them *all*.

use std::collections::BTreeMap;

use crate::ids::{Epoch, Seq};
use crate::safeguard::Safeguard;

/// The number of ranges behind a gap that are remembered. Further ones must be received again.
const RANGES_MAX: usize = 256;

/// The numbers that a listener has received.
#[derive(Clone, Debug, Default)]
pub struct Tracker {
    epoch: Epoch,
    position: Seq,
    /// The ranges received behind a gap: after the key, up to the value.
    beyond: BTreeMap<Seq, Seq>,
}

/// The continuity of an event with those received before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Continuity {
    /// The event continues at the position of the listener, or repeats what it has received.
    InOrder,
    /// Numbers are missing before the event.
    Gap,
    /// The event is of an owner that was succeeded by another one. It must be ignored.
    OldEpoch,
}

impl Tracker {
    /// Makes the tracker of a listener that needs nothing up to `position` and knows this epoch.
    #[must_use]
    pub fn new(epoch: Epoch, position: Seq) -> Tracker {
        Tracker { epoch, position, beyond: BTreeMap::new() }
    }

    /// Returns the number up to which everything was received.
    #[must_use]
    pub fn position(&self) -> Seq {
        self.position
    }

    /// Returns the newest known epoch.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Returns true if numbers are missing before the newest received one.
    #[must_use]
    pub fn has_gap(&self) -> bool {
        !self.beyond.is_empty()
    }

    /// Records that there is an owner of this epoch.
    pub fn learn_epoch(&mut self, epoch: Epoch) {
        self.epoch = self.epoch.max(epoch);
    }

    /// Records an event of this epoch that covers the numbers after `after` and up to `until`.
    pub fn observe(&mut self, epoch: Epoch, after: Seq, until: Seq) -> Continuity {
        // A late event of an owner that was followed must not move the position past numbers of its successor.
        if epoch < self.epoch && Safeguard::OldOwnerRefused.holds() {
            return Continuity::OldEpoch;
        }
        self.learn_epoch(epoch);
        if after > self.position && Safeguard::GapIsNoticed.holds() {
            // A range that is not remembered must be received again. The position never passes it, so nothing is
            // skipped.
            if self.beyond.len() < RANGES_MAX {
                let known = self.beyond.entry(after).or_insert(until);
                *known = until.max(*known);
            }
            return Continuity::Gap;
        }
        // A repeated event changes nothing, because a position never goes back.
        self.raise(until);
        Continuity::InOrder
    }

    /// Raises the position: nothing up to it is missing any more, whether it was received or not.
    pub fn raise(&mut self, position: Seq) {
        self.position = position.max(self.position);
        // Closing a gap may connect several ranges behind it.
        while let Some(first) = self.beyond.first_entry()
            && *first.key() <= self.position
        {
            self.position = self.position.max(first.remove());
        }
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
        assert!(tracker.position() == Seq(12) && tracker.has_gap());
        assert_eq!(tracker.beyond.values().max(), Some(&Seq(17)));
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
