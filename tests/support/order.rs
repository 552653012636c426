//! The one order of everything that was written, and how much of it a death may take: what every search checks against.
//!
//! A layer gives each record a number. Whatever is found later, in the store, in memory or in a follower, is a prefix
//! of that order: of each key the newest record up to one number. What was acknowledged lies in the prefix.

#![allow(dead_code, unreachable_pub, reason = "each program uses a part of it")]

use std::collections::BTreeMap;

/// Of each place, by number, what it became.
#[derive(Clone, Debug)]
pub struct Order<P, N, V>(BTreeMap<P, BTreeMap<N, V>>);

impl<P, N, V> Default for Order<P, N, V> {
    fn default() -> Order<P, N, V> {
        Order(BTreeMap::new())
    }
}

impl<P: Ord + Copy, N: Ord + Copy, V> Order<P, N, V> {
    /// Record `number` made this of `place`; returns what it made of it before, which only a defect can do.
    pub fn insert(&mut self, place: P, number: N, value: V) -> Option<V> {
        self.0.entry(place).or_default().insert(number, value)
    }

    /// All that is known of a place is this, from now on.
    pub fn replace(&mut self, place: P, number: N, value: V) {
        self.0.insert(place, BTreeMap::from([(number, value)]));
    }

    /// The places that were written.
    pub fn places(&self) -> impl Iterator<Item = P> {
        self.0.keys().copied()
    }

    /// Iterates over the records of a place, in order.
    pub fn of(&self, place: P) -> impl DoubleEndedIterator<Item = (N, &V)> {
        self.0.get(&place).into_iter().flatten().map(|(number, value)| (*number, value))
    }

    /// Returns the record of a place that counts if everything up to `number` has taken effect, and nothing else.
    pub fn newest(&self, place: P, number: N) -> Option<(N, &V)> {
        let (number, value) = self.0.get(&place)?.range(..=number).next_back()?;
        Some((*number, value))
    }

    /// Returns the record that replaces `number` of a place.
    pub fn after(&self, place: P, number: N) -> Option<(N, &V)> {
        self.of(place).find(|(other, _)| *other > number)
    }
}

impl<P: Ord + Copy, N: Ord + Copy, V: Clone> Order<P, N, Option<V>> {
    /// Returns what all places hold if everything up to `number` has taken effect; `None` is a removal.
    pub fn content(&self, number: N) -> BTreeMap<P, V> {
        let held = |place: P| Some((place, self.newest(place, number)?.1.clone()?));
        self.places().filter_map(held).collect()
    }
}

/// Up to where an order has to be found again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Promised {
    /// After the process was killed.
    pub written: u64,
    /// After a power cut, too: it was synced, or it was served after recovery.
    pub durable: u64,
}

impl Promised {
    pub fn written(&mut self, last: u64) {
        self.written = self.written.max(last);
    }

    pub fn durable(&mut self, last: u64) {
        self.written(last);
        self.durable = self.durable.max(last);
    }

    /// Returns the last record that has to be there after this kind of death.
    pub fn least(&self, power_cut: bool) -> u64 {
        if power_cut { self.durable } else { self.written }
    }

    /// Promises no more than a power cut leaves.
    pub fn power_cut(&mut self) {
        self.written = self.durable;
    }

    /// Takes what was recovered for all there is, from now on and for good.
    pub fn cut_after(&mut self, last: u64) {
        *self = Promised { written: last, durable: last };
    }
}
