//! The store's content over time, and the check that the answers of followers are explained by it.

use std::collections::BTreeMap;
use std::time::Duration;

use forebay::bus::{Directive, Payload};
use forebay::{Epoch, Key, Seq};

use crate::followers::bus::{Published, names};
use crate::harness::history::Violation;
use crate::harness::linear::Value;
use crate::harness::plan::Place;
use crate::harness::run::number_of;
use crate::harness::world::Applied;
use crate::support::order::Order;

/// A record of a key: its value, and when the store had it.
#[derive(Clone, Copy, Debug)]
struct Step {
    value: Value,
    at: Duration,
}

/// The answer of a follower.
#[derive(Clone, Debug)]
pub struct Answer {
    pub follower: usize,
    /// Of which of its lives.
    pub life: u64,
    pub at: Place,
    /// The begin of the read: in simulated time, and in the count of all that began and ended.
    pub from: Duration,
    pub began: u64,
    pub ended: u64,
    pub value: Value,
    pub proof: Option<Proof>,
    /// The age that the answer may have; nothing if the follower serves what it cannot verify, and said so.
    pub bound: Option<Duration>,
    /// The record that the reader wants to see at the least.
    pub least: Option<Seq>,
}

/// The proof that an answer brings along.
#[derive(Clone, Copy, Debug)]
pub struct Proof {
    pub version: Option<Seq>,
    pub age: Duration,
}

pub struct Ledger {
    keys: BTreeMap<Key, Place>,
    steps: Order<Place, Seq, Step>,
    /// Every record that took effect.
    applied: BTreeMap<Seq, Key>,
    pub violations: Vec<Violation>,
}

impl Ledger {
    pub fn new(applied: &[Applied], keys: BTreeMap<Key, Place>) -> Ledger {
        let mut ledger =
            Ledger { keys, steps: Order::default(), applied: BTreeMap::new(), violations: Vec::new() };
        let mut watermark = Seq::ZERO;
        for Applied { watermark: next, ops, at, .. } in applied {
            for op in ops.iter().filter(|op| op.seq > watermark) {
                let Some(place) = ledger.keys.get(&op.key).copied() else { continue };
                let value = op.value.as_ref().map(|value| number_of(value));
                ledger.steps.insert(place, op.seq, Step { value, at: *at });
                ledger.applied.insert(op.seq, op.key.clone());
            }
            watermark = *next;
        }
        ledger
    }

    fn violated(&mut self, promise: &'static str, what: String) {
        self.violations.push(Violation { promise, what });
    }

    /// Values that travelled and were replaced in the apply that made them true, so that the store never showed them.
    pub fn add_published(&mut self, published: &[Published]) {
        let mut unknown = Vec::new();
        for Published { event, .. } in published {
            let Payload::Directives(directives) = &event.payload else { continue };
            for directive in directives {
                let Directive::Put(key, seq, value) = directive else { continue };
                let Some(place) = self.keys.get(key).copied() else { continue };
                let number = number_of(value);
                let known = self.steps.newest(place, *seq).filter(|(newest, _)| newest == seq);
                let replaced_at = self.steps.after(place, *seq).map(|(_, step)| step.at);
                match (known, replaced_at) {
                    (Some((_, known)), _) if known.value == Some(number) => {}
                    (None, Some(at)) => {
                        let step = Step { value: Some(number), at };
                        self.steps.insert(place, *seq, step);
                    }
                    _ => unknown.push(format!("{directive:?} was published, and is not what the store got")),
                }
            }
        }
        unknown.into_iter().for_each(|what| self.violated("P8", what));
    }

    /// Every change is published at least once, under each journal; an event names all that it covers.
    pub fn check_published(&mut self, published: &[Published], journals: &[(Epoch, usize)], end: Seq) {
        let journals: BTreeMap<Epoch, usize> = journals.iter().copied().collect();
        let mut told: BTreeMap<(usize, usize), Seq> = BTreeMap::new();
        let mut found = Vec::new();
        for Published { bus, event } in published {
            let Some(journal) = journals.get(&event.epoch) else {
                found.push(format!("{event:?} is of an owner that never was"));
                continue;
            };
            let told = told.entry((*bus, *journal)).or_insert(Seq::ZERO);
            if event.after > *told {
                found.push(format!("over bus {bus} it was told up to {told}, and then {event:?}"));
            }
            *told = event.until.max(*told);
            let covered = self.applied.range(event.after.next()..event.until.next());
            for (seq, key) in covered.filter(|(seq, key)| !names(event, key, **seq)) {
                found.push(format!("{event:?} does not tell of {seq}, {key:?}"));
            }
        }
        let last = journals.last_key_value().map(|(_, journal)| *journal);
        for ((bus, journal), told) in &told {
            if Some(*journal) == last && *told != end {
                found.push(format!("over bus {bus} it was told up to {told}, and the store is at {end}"));
            }
        }
        found.into_iter().for_each(|what| self.violated("P8", what));
    }

    /// Returns the number of this value of the place, and when the store got something newer; the last of them,
    /// if it had the value more than once. Nothing if it never had it.
    fn life_of(&self, at: Place, value: Value) -> Option<(Seq, Option<Duration>)> {
        let found = self.steps.of(at).rfind(|(_, step)| step.value == value);
        let seq = match (found, value) {
            (Some((seq, _)), _) => seq,
            // Before anything was written.
            (None, None) => Seq::ZERO,
            (None, Some(_)) => return None,
        };
        let replaced = self.steps.after(at, seq).map(|(_, step)| step.at);
        Some((seq, replaced))
    }

    /// Checks that the answers can be explained.
    pub fn check_answers(&mut self, answers: &[Answer]) {
        let mut found = Vec::new();
        for answer in answers {
            let Some((seq, replaced)) = self.life_of(answer.at, answer.value) else {
                found.push(("P7", format!("{answer:?}, which the store never had")));
                continue;
            };
            let stale = replaced.and_then(|replaced| answer.from.checked_sub(replaced));
            if let (Some(stale), Some(bound)) = (stale, answer.bound)
                && stale >= bound
            {
                found.push(("P7", format!("{answer:?}, which was replaced {stale:?} before")));
            }
            if let Some(Proof { version, age }) = answer.proof {
                if stale.is_some_and(|stale| stale > age) {
                    found.push((
                        "P7",
                        format!("{answer:?}, which was replaced {stale:?} before: its age lies"),
                    ));
                }
                if answer.value.is_some() && version != Some(seq) {
                    found.push(("P7", format!("{answer:?}, which is version {seq}")));
                }
            }
            if let Some(least) = answer.least {
                let newest = self.steps.newest(answer.at, least);
                if let Some((newest, _)) = newest.filter(|(newest, _)| *newest > seq) {
                    found.push(("P4", format!("{answer:?}, which is version {seq}, and there was {newest}")));
                }
            }
        }
        found.into_iter().for_each(|(promise, what)| self.violated(promise, what));
    }

    /// Counts the reads that returned an older version than a read of the same follower and key which had ended before
    /// they began.
    pub fn went_back(&self, answers: &[Answer]) -> u64 {
        let mut of_key: BTreeMap<(usize, u64, Place), Vec<&Answer>> = BTreeMap::new();
        for answer in answers {
            of_key.entry((answer.follower, answer.life, answer.at)).or_default().push(answer);
        }
        let mut went_back = 0;
        for (answers, (_, _, at)) in of_key.iter().map(|(key, answers)| (answers, key)) {
            for late in answers {
                let Some((seq, _)) = self.life_of(*at, late.value) else { continue };
                let before = answers.iter().filter(|early| early.ended < late.began && early.value.is_some());
                let newest =
                    before.filter_map(|early| self.life_of(*at, early.value)).map(|(seq, _)| seq).max();
                went_back += u64::from(newest.is_some_and(|newest| newest > seq));
            }
        }
        went_back
    }
}
