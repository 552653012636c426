//! The calls of a run and their answers, and the check that the promises allow them.
//!
//! Every write has a value of its own, so that what is read or found in the store names its write. A write is
//! *acknowledged* (then it has a sequence number), *refused* (then nobody may ever see it) or *doubtful*: it was in
//! flight when its layer died, or was told so. A doubtful write takes effect before the next layer has opened, or
//! never.

use std::collections::{BTreeMap, BTreeSet};

use forebay::Seq;

use crate::harness::linear::{Action, Timed, Value, linearizable};
use crate::harness::plan::Place;
use crate::harness::world::Applied;
use crate::support::order::Order;

/// A promise that was not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub promise: &'static str,
    pub what: String,
}

/// The answer to the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Nothing yet.
    Open,
    Acknowledged(Seq),
    Refused,
    Doubtful,
    /// Acknowledged, and taken back by a power cut, as `Buffered` allows.
    Lost,
}

/// An atomic write of one record or several.
#[derive(Clone, Debug)]
pub struct Write {
    pub changes: Vec<(Place, Value)>,
    pub from: u64,
    pub to: u64,
    pub fate: Fate,
}

#[derive(Clone, Debug)]
pub struct Read {
    at: Place,
    from: u64,
    to: u64,
    value: Value,
}

#[derive(Clone, Debug)]
struct ExternalChange {
    key: u32,
    value: u64,
    from: u64,
    /// The end of the call that reported it to the layer.
    told: u64,
}

#[derive(Debug, Default)]
pub struct History {
    pub violations: Vec<Violation>,
    pub operations: u64,
    clock: u64,
    values: u64,
    /// Since the last restart.
    initial: BTreeMap<Place, Value>,
    writes: Vec<Write>,
    reads: Vec<Read>,
    /// Writes of before the last restart, whose values may still be in the store.
    earlier: Vec<Write>,
    external_changes: Vec<ExternalChange>,
    external_reads: Vec<Read>,
    /// Acknowledged up to here, and not allowed to be lost by anything.
    floor: Seq,
}

impl History {
    pub fn violated(&mut self, promise: &'static str, what: String) {
        self.violations.push(Violation { promise, what });
    }

    pub fn now(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// Begins a write of these places: of a new value, or a removal.
    pub fn begin_write(&mut self, changes: &[(Place, bool)]) -> usize {
        self.operations += 1;
        let from = self.now();
        let changes = changes.iter().map(|(at, puts)| {
            self.values += 1;
            (*at, puts.then_some(self.values))
        });
        let write = Write { changes: changes.collect(), from, to: u64::MAX, fate: Fate::Open };
        self.writes.push(write);
        self.earlier.len() + self.writes.len() - 1
    }

    pub fn write(&self, id: usize) -> &Write {
        self.earlier.get(id).unwrap_or_else(|| &self.writes[id - self.earlier.len()])
    }

    pub fn end_write(&mut self, id: usize, fate: Fate) {
        let now = self.now();
        let earlier = self.earlier.len();
        let Some(write) = id.checked_sub(earlier).and_then(|at| self.writes.get_mut(at)) else { return };
        write.fate = fate;
        if fate != Fate::Doubtful {
            write.to = now;
        }
    }

    pub fn end_read(&mut self, at: Place, from: u64, value: Value) {
        let to = self.now();
        self.reads.push(Read { at, from, to, value });
    }

    pub fn begin_external(&mut self, key: u32) -> u64 {
        self.operations += 1;
        self.values += 1;
        let (value, from) = (self.values, self.now());
        self.external_changes.push(ExternalChange { key, value, from, told: u64::MAX });
        value
    }

    pub fn end_external(&mut self, value: u64) {
        let now = self.now();
        let mut changes = self.external_changes.iter_mut();
        if let Some(change) = changes.find(|change| change.value == value) {
            change.told = now;
        }
    }

    pub fn end_external_read(&mut self, key: u32, from: u64, value: Value) {
        let to = self.now();
        self.external_reads.push(Read { at: (usize::MAX, key), from, to, value });
    }

    /// Forbids the loss of anything acknowledged up to `seq`, whatever the durability is.
    pub fn raise_floor(&mut self, seq: Seq) {
        self.floor = self.floor.max(seq);
    }

    pub fn last_acknowledged(&self) -> Seq {
        let last = self.writes.iter().filter_map(|write| match write.fate {
            Fate::Acknowledged(seq) => Some(seq),
            _ => None,
        });
        last.max().unwrap_or(Seq::ZERO)
    }

    /// A layer opened on what is left, and says that it has committed up to `committed`. P1.
    pub fn reopened(&mut self, committed: Seq, may_lose: bool) {
        let acknowledged = if may_lose { self.floor } else { self.last_acknowledged().max(self.floor) };
        if committed < acknowledged {
            let what = format!("{acknowledged} was acknowledged, and the layer opens at {committed}");
            self.violated("P1", what);
        }
        self.floor = self.floor.max(committed);
        let now = self.now();
        for write in &mut self.writes {
            if matches!(write.fate, Fate::Open | Fate::Doubtful) {
                write.fate = Fate::Doubtful;
                write.to = write.to.min(now);
            }
        }
        if may_lose {
            // Under `Buffered` a power cut takes the end of the order, and its numbers are given again.
            for write in &mut self.writes {
                if matches!(write.fate, Fate::Acknowledged(seq) if seq > committed) {
                    write.fate = Fate::Lost;
                }
            }
        }
    }

    /// Begins anew after a loss that is allowed, from what was found: which has to be a prefix of the order. P2.
    pub fn restart(&mut self, found: BTreeMap<Place, Value>) {
        let (committed, known) = (self.floor, known(&self.writes));
        for (at, value) in &found {
            let last = known.newest(*at, committed);
            let expected = last.map(|(_, value)| *value).or_else(|| self.initial.get(at).copied()).flatten();
            let doubtful = self.writes.iter().filter(|write| write.fate == Fate::Doubtful);
            let mut doubtful = doubtful.flat_map(|write| &write.changes);
            if *value != expected && !doubtful.any(|change| change == &(*at, *value)) {
                let what =
                    format!("{at:?} holds {value:?} after the cut at {committed}, and not {expected:?}");
                self.violated("P2", what);
            }
        }
        // What was lost was acknowledged and read before: this history ends with the loss.
        let lost: Vec<Place> = found.keys().copied().collect();
        lost.iter().for_each(|at| self.check_register(*at));
        self.earlier.append(&mut self.writes);
        self.reads.clear();
        self.initial = found;
    }

    /// Checks that the store was a prefix of the order after each apply, and that no batch is torn. P2.
    ///
    /// `place_of` reads a stored key, `value_of` a stored value.
    pub fn check_prefixes(
        &mut self,
        applied: &[Applied],
        keys: &BTreeMap<forebay::Key, Place>,
        value_of: impl Fn(&[u8]) -> u64,
    ) {
        let all: Vec<Write> = self.earlier.iter().chain(&self.writes).cloned().collect();
        let known = known(&all);
        let mut writers: BTreeMap<u64, (&Write, u64)> = BTreeMap::new();
        let mut removes_doubtfully: BTreeSet<Place> = BTreeSet::new();
        for write in &all {
            for ((at, value), index) in write.changes.iter().zip(0..) {
                match value {
                    Some(value) => drop(writers.insert(*value, (write, index))),
                    None if matches!(write.fate, Fate::Open | Fate::Doubtful) => {
                        removes_doubtfully.insert(*at);
                    }
                    None => {}
                }
            }
        }
        let places: BTreeMap<Place, &forebay::Key> = keys.iter().map(|(key, at)| (*at, key)).collect();
        let mut found = Vec::new();
        for Applied { watermark, content, .. } in applied {
            for (at, key) in &places {
                let expected = known.newest(*at, *watermark);
                let Some(held) = content.get(*key) else {
                    if expected.is_some_and(|(_, value)| value.is_some()) && !removes_doubtfully.contains(at)
                    {
                        found.push(format!("at {watermark} the store lacks {at:?}, written as {expected:?}"));
                    }
                    continue;
                };
                let (version, value) = (held.version, value_of(&held.value));
                if version > *watermark {
                    found.push(format!("at {watermark} the store holds record {version} of {at:?}"));
                }
                if let Some((seq, _)) = expected.filter(|(seq, _)| *seq > version) {
                    found.push(format!(
                        "at {watermark} {at:?} is that of {version}, and {seq} was written later"
                    ));
                }
                let Some((write, index)) = writers.get(&value) else {
                    found.push(format!("at {watermark} {at:?} holds {value}, which nobody wrote"));
                    continue;
                };
                let last = Seq::new(version.get() + write.changes.len() as u64 - 1 - index);
                let told = match write.fate {
                    Fate::Acknowledged(seq) => seq == last,
                    Fate::Refused | Fate::Lost => false,
                    Fate::Open | Fate::Doubtful => true,
                };
                if !told {
                    let fate = write.fate;
                    found.push(format!(
                        "at {watermark} {at:?} holds {value} as record {version}; it was {fate:?}"
                    ));
                }
                if last > *watermark {
                    found.push(format!("at {watermark} a batch is there up to {version} of {last}"));
                }
            }
            for write in &all {
                if let Fate::Acknowledged(last) = write.fate {
                    let first = Seq::new(last.get() + 1 - write.changes.len() as u64);
                    if first <= *watermark && *watermark < last {
                        found.push(format!(
                            "the watermark {watermark} lies within a batch, {first} to {last}"
                        ));
                    }
                }
            }
        }
        found.into_iter().for_each(|what| self.violated("P2", what));
    }

    /// P1, P4, P5, P6 as they are seen from outside: there is an order of all that was done to a key in which every
    /// read returns what was written last. P6 once more, of values that somebody else changes.
    pub fn check_reads(&mut self) {
        let mut places: BTreeSet<Place> = self.initial.keys().copied().collect();
        places.extend(self.writes.iter().flat_map(|write| write.changes.iter().map(|(at, _)| *at)));
        places.extend(self.reads.iter().map(|read| read.at));
        places.into_iter().for_each(|at| self.check_register(at));
        let mut found = Vec::new();
        for read in &self.external_reads {
            let of_key = |change: &&ExternalChange| change.key == read.at.1;
            let told = self.external_changes.iter().filter(of_key).filter(|change| change.told < read.from);
            let oldest = told.map(|change| change.value).max();
            let began = self.external_changes.iter().filter(of_key).filter(|change| change.from < read.to);
            let exists =
                read.value.is_none() || began.map(|change| Some(change.value)).any(|v| v == read.value);
            if read.value < oldest || !exists {
                found.push(format!("{read:?}, and {oldest:?} was told before it began"));
            }
        }
        found.into_iter().for_each(|what| self.violated("P6", what));
    }

    fn check_register(&mut self, at: Place) {
        let mut ops = Vec::new();
        for write in self.writes.iter().filter(|write| write.fate != Fate::Refused) {
            if let Some((_, value)) = write.changes.iter().rfind(|(place, _)| *place == at) {
                let doubtful = matches!(write.fate, Fate::Open | Fate::Doubtful);
                ops.push(Timed { from: write.from, to: write.to, action: Action::Write(*value), doubtful });
            }
        }
        for read in self.reads.iter().filter(|read| read.at == at) {
            ops.push(Timed {
                from: read.from,
                to: read.to,
                action: Action::Read(read.value),
                doubtful: false,
            });
        }
        let initial = self.initial.get(&at).copied().flatten();
        if !linearizable(initial, &ops) {
            ops.sort_by_key(|op| op.from);
            let lines: Vec<String> = ops.iter().map(|op| format!("  {op:?}")).collect();
            let what = format!(
                "no order explains what was read of {at:?}, at first {initial:?}:\n{}",
                lines.join("\n")
            );
            self.violated("P4", what);
        }
    }
}

/// The acknowledged records of each place, by number.
fn known(writes: &[Write]) -> Order<Place, Seq, Value> {
    let mut known = Order::default();
    for write in writes {
        if let Fate::Acknowledged(last) = write.fate {
            let first = last.get() + 1 - write.changes.len() as u64;
            for ((at, value), seq) in write.changes.iter().zip(first..) {
                known.insert(*at, Seq::new(seq), *value);
            }
        }
    }
    known
}
