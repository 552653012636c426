//! The writes that the parent knows to be acknowledged, and the checks of a store's image against them.
//!
//! No I/O here: acknowledgements and images go in, findings come out. The tests below feed it images that
//! each break one promise and see it found.
//!
//! The checks from outside:
//! - *lost*: a key shows something older than its last acknowledged write, or nothing, or bytes that nobody
//!   wrote.
//! - *reordered*: the store shows a write beyond its own watermark, half of an atomic batch, or an
//!   unacknowledged write in a place in the order where it cannot be; or readers saw something else before
//!   the drain than after it.
//! - *applied twice*: a write that was acknowledged under one sequence number is in the store under another,
//!   a write that was overwritten long ago is back under a newer one, the watermark went back, or an opening
//!   that had nothing to replay changed something. A second application that puts the same value under the
//!   same number over itself cannot be seen from outside, and does no harm.
//!
//! Each thread has at most one write under way when it is killed. Such a write may have happened or not, but
//! wholly.

use std::collections::{BTreeMap, BTreeSet};

use crate::history::{Id, Kind, Place, Side, Step};
use crate::order::Order;

/// The value of one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    /// The write that its value names; `None` if the value is not what that write wrote.
    pub(crate) id: Option<Id>,
    /// The sequence number that the store has for it.
    pub(crate) version: u64,
}

/// All that a store holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Image {
    pub(crate) watermark: u64,
    pub(crate) shown: BTreeMap<Place, Shown>,
}

/// Faults by kind, and a description of the first one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Findings {
    pub(crate) lost: u64,
    pub(crate) reordered: u64,
    pub(crate) applied_twice: u64,
    pub(crate) sentences: Vec<String>,
}

const SENTENCES_MAX: usize = 20;

#[derive(Clone, Copy)]
enum Fault {
    Lost,
    Reordered,
    AppliedTwice,
}

impl Findings {
    fn add(&mut self, fault: Fault, sentence: String) {
        let (count, name) = match fault {
            Fault::Lost => (&mut self.lost, "lost"),
            Fault::Reordered => (&mut self.reordered, "reordered"),
            Fault::AppliedTwice => (&mut self.applied_twice, "applied twice"),
        };
        *count += 1;
        if self.sentences.len() < SENTENCES_MAX {
            self.sentences.push(format!("{name}: {sentence}"));
        }
    }

    pub(crate) fn merge(&mut self, other: Findings) {
        self.lost += other.lost;
        self.reordered += other.reordered;
        self.applied_twice += other.applied_twice;
        let room = SENTENCES_MAX.saturating_sub(self.sentences.len());
        self.sentences.extend(other.sentences.into_iter().take(room));
    }

    pub(crate) fn is_clean(&self) -> bool {
        self.lost + self.reordered + self.applied_twice == 0
    }
}

/// All that the children acknowledged.
pub(crate) struct Ledger {
    seed: u64,
    /// Per key, in the layer's order: the last change before this round, then this round's. `None` is a removal.
    changes: Order<Place, u64, Option<Id>>,
    /// This round's acknowledgements: the last sequence number of each write.
    acknowledged: BTreeMap<u64, Step>,
    /// Per thread, the next write that nobody has begun.
    next: Vec<u64>,
    /// Writes that may have been under way when a child was killed in this round.
    doubtful: Vec<Step>,
    watermark: u64,
}

impl Ledger {
    pub(crate) fn new(seed: u64, threads: usize) -> Ledger {
        Ledger {
            seed,
            changes: Order::default(),
            acknowledged: BTreeMap::new(),
            next: vec![1; threads],
            doubtful: Vec::new(),
            watermark: 0,
        }
    }

    /// Per thread, the number that its first write in the next child gets.
    pub(crate) fn next(&self) -> &[u64] {
        &self.next
    }

    /// A child said that `id` is done, and that `seq` is the sequence number of its last record.
    ///
    /// Fails on what no correct child can say: a write out of its thread's order, or a number that was used
    /// before.
    pub(crate) fn acknowledge(&mut self, id: Id, seq: u64) -> Result<(), String> {
        let next = self.next.get_mut(id.thread).ok_or_else(|| format!("{id:?}: no such thread"))?;
        if *next != id.counter {
            return Err(format!("{id:?} was acknowledged where {next} was to come"));
        }
        *next += 1;
        let step = Step::of(self.seed, id);
        let first = seq + 1 - records(&step);
        if first <= self.watermark {
            return Err(format!(
                "{id:?} got number {first}, and the store was already at {}",
                self.watermark
            ));
        }
        if self.acknowledged.insert(seq, step).is_some() {
            return Err(format!("{id:?} got number {seq}, which another write has"));
        }
        for (place, seq) in step.places().zip(first..) {
            self.changes.insert(place, seq, (!step.removes).then_some(id));
        }
        Ok(())
    }

    /// A child is dead: what each thread would have written next may be under way for ever.
    pub(crate) fn killed(&mut self) {
        for (thread, next) in self.next.iter_mut().enumerate() {
            self.doubtful.push(Step::of(self.seed, Id { thread, counter: *next }));
            *next += 1;
        }
    }

    /// Leaves out so many of each thread's numbers: somebody else may be using them.
    pub(crate) fn leave_out(&mut self, count: u64) {
        self.next.iter_mut().for_each(|next| *next += count);
    }

    /// Writes acknowledged in this round.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged.len() as u64
    }

    /// Acknowledged writes of this round above `watermark`.
    pub(crate) fn beyond(&self, watermark: u64) -> u64 {
        self.acknowledged.range(watermark + 1..).count() as u64
    }

    /// Returns the faults of the store alone, before anything is replayed: it has to be a prefix of the history.
    pub(crate) fn check_prefix(&self, image: &Image) -> Findings {
        let mut findings = self.check_up_to(image, image.watermark);
        for (seq, step) in self.acknowledged.range(image.watermark + 1..) {
            if matches!(step.kind, Kind::Through(_)) {
                let sentence = format!(
                    "{:?} (number {seq}) was acknowledged by a store at {}",
                    step.id, image.watermark
                );
                findings.add(Fault::Lost, sentence);
            }
        }
        findings
    }

    /// Returns the faults of the store after recovery, when every acknowledged write has to be in it.
    pub(crate) fn check_whole(&self, image: &Image) -> Findings {
        let mut findings = self.check_up_to(image, u64::MAX);
        if let Some((seq, step)) = self.acknowledged.range(image.watermark + 1..).next_back() {
            let sentence =
                format!("{:?} is number {seq}, and the drained store is at {}", step.id, image.watermark);
            findings.add(Fault::Lost, sentence);
        }
        findings
    }

    fn check_up_to(&self, image: &Image, limit: u64) -> Findings {
        let mut findings = Findings::default();
        if image.watermark < self.watermark {
            let sentence = format!("the watermark went from {} to {}", self.watermark, image.watermark);
            findings.add(Fault::AppliedTwice, sentence);
        }
        for place in self.touched(image) {
            let expected = self.changes.newest(place, limit).map(|(seq, id)| (seq, *id));
            let outcome = match image.shown.get(&place) {
                Some(shown) => self.check_shown(place, expected, shown, image.watermark),
                None => self.check_absent(place, expected),
            };
            if let Err((fault, sentence)) = outcome {
                findings.add(fault, format!("{place:?}: {sentence}"));
            }
        }
        for key in Place::pair_keys() {
            let [left, right] = Side::BOTH.map(|side| image.shown.get(&Place { side, key }));
            let whole = match (left, right) {
                (Some(left), Some(right)) => left.id == right.id && left.version + 1 == right.version,
                (left, right) => left.is_none() && right.is_none(),
            };
            if !whole {
                let sentence = format!("pair {key} was written in halves: {left:?} and {right:?}");
                findings.add(Fault::Reordered, sentence);
            }
        }
        findings
    }

    fn touched(&self, image: &Image) -> BTreeSet<Place> {
        self.changes.places().chain(image.shown.keys().copied()).collect()
    }

    fn check_shown(
        &self,
        place: Place,
        expected: Option<(u64, Option<Id>)>,
        shown: &Shown,
        watermark: u64,
    ) -> Result<(), (Fault, String)> {
        let version = shown.version;
        let Some(id) = shown.id else {
            return Err((Fault::Lost, format!("version {version} is not what anybody wrote")));
        };
        if version > watermark {
            return Err((Fault::Reordered, format!("version {version} is in a store at {watermark}")));
        }
        let expected_seq = expected.map_or(0, |(seq, _)| seq);
        if let Some((known, _)) = self.changes.of(place).find(|(_, change)| **change == Some(id)) {
            if known != version {
                let sentence = format!("{id:?} is number {known} and stands at {version}");
                return Err((Fault::AppliedTwice, sentence));
            }
            if version < expected_seq {
                return Err((Fault::Lost, format!("{id:?} ({version}) stands where {expected:?} was")));
            }
            return Ok(());
        }
        let doubtful = self.doubtful.iter().any(|step| step.id == id);
        match (doubtful, version > expected_seq) {
            (true, true) => Ok(()),
            (true, false) => Err((Fault::Reordered, format!("{id:?} ({version}) stands over {expected:?}"))),
            (false, true) => Err((Fault::AppliedTwice, format!("{id:?} is back, as {version}"))),
            (false, false) => Err((Fault::Lost, format!("{id:?} ({version}) stands where {expected:?} was"))),
        }
    }

    fn check_absent(&self, place: Place, expected: Option<(u64, Option<Id>)>) -> Result<(), (Fault, String)> {
        let was_there = expected.is_some_and(|(_, id)| id.is_some());
        let removes = |step: &Step| step.removes && step.places().any(|removed| removed == place);
        if was_there && !self.doubtful.iter().any(removes) {
            return Err((Fault::Lost, format!("nothing stands where {expected:?} was")));
        }
        Ok(())
    }

    /// Takes a checked image as the truth that the next round starts from.
    pub(crate) fn adopt(&mut self, image: &Image) {
        for place in self.touched(image) {
            match image.shown.get(&place) {
                Some(shown) => self.changes.replace(place, shown.version, shown.id),
                None => self.changes.replace(place, image.watermark, None),
            }
        }
        self.watermark = image.watermark;
        self.acknowledged.clear();
        self.doubtful.clear();
    }
}

/// Counts the differences between two images that have to be equal, as faults of the kind `fault`.
pub(crate) fn check_same(what: &str, before: &Image, after: &Image) -> Findings {
    let mut findings = Findings::default();
    let touched: BTreeSet<&Place> = before.shown.keys().chain(after.shown.keys()).collect();
    for place in touched {
        let (was, is) = (before.shown.get(place), after.shown.get(place));
        if was != is {
            findings.add(Fault::AppliedTwice, format!("{what} changed {place:?} from {was:?} to {is:?}"));
        }
    }
    findings
}

/// Counts the values that readers saw before the drain and the store lacks after it.
pub(crate) fn check_reads(seen: &BTreeMap<Place, Option<Id>>, drained: &Image) -> Findings {
    let mut findings = Findings::default();
    for (place, id) in seen {
        let is = drained.shown.get(place).and_then(|shown| shown.id);
        if *id != is {
            findings
                .add(Fault::Reordered, format!("{place:?} read {id:?}, and the drained store holds {is:?}"));
        }
    }
    findings
}

/// The number of records of a step.
fn records(step: &Step) -> u64 {
    step.places().count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: u64 = 7;

    /// A ledger of one thread with all of `count` writes acknowledged, the image that follows, and the last
    /// step.
    fn honest(count: u64) -> (Ledger, Image, Vec<(u64, Step)>) {
        let mut ledger = Ledger::new(SEED, 1);
        let mut image = Image::default();
        let mut steps = Vec::new();
        for counter in 1..=count {
            let id = Id { thread: 0, counter };
            let step = Step::of(SEED, id);
            let first = image.watermark + 1;
            image.watermark += records(&step);
            ledger.acknowledge(id, image.watermark).unwrap();
            apply(&mut image, &step, first);
            steps.push((first, step));
        }
        (ledger, image, steps)
    }

    fn apply(image: &mut Image, step: &Step, first: u64) {
        for (place, version) in step.places().zip(first..) {
            if step.removes {
                image.shown.remove(&place);
            } else {
                image.shown.insert(place, Shown { id: Some(step.id), version });
            }
        }
    }

    fn counts(findings: &Findings) -> (u64, u64, u64) {
        (findings.lost, findings.reordered, findings.applied_twice)
    }

    /// A place of a single, present key, and the step that wrote it last.
    fn a_single(image: &Image) -> Place {
        let pairs: Vec<u64> = Place::pair_keys().collect();
        *image.shown.keys().find(|place| !pairs.contains(&place.key)).unwrap()
    }

    #[test]
    fn every_prefix_of_an_honest_history_is_clean() {
        let (ledger, image, steps) = honest(500);
        assert!(ledger.check_whole(&image).is_clean(), "{:?}", ledger.check_whole(&image));
        let mut prefix = Image::default();
        for (first, step) in &steps {
            apply(&mut prefix, step, *first);
            prefix.watermark = first + records(step) - 1;
            let findings = ledger.check_up_to(&prefix, prefix.watermark);
            assert!(findings.is_clean(), "{findings:?}");
        }
    }

    #[test]
    fn what_is_missing_or_older_is_lost() {
        let (ledger, image, _) = honest(500);
        let mut missing = image.clone();
        missing.shown.remove(&a_single(&image));
        assert_eq!(counts(&ledger.check_whole(&missing)), (1, 0, 0));

        // The image of the first half claims to be the whole.
        let (_, mut half, _) = honest(250);
        half.watermark = image.watermark;
        assert!(ledger.check_whole(&half).lost > 10);

        let mut garbled = image.clone();
        garbled.shown.get_mut(&a_single(&image)).unwrap().id = None;
        assert_eq!(counts(&ledger.check_whole(&garbled)), (1, 0, 0));

        let (_, half, steps) = honest(250);
        let through = steps.iter().any(|(_, step)| matches!(step.kind, Kind::Through(_)));
        assert!(through && ledger.check_prefix(&half).lost > 0, "a write-through was acknowledged beyond it");
    }

    #[test]
    fn a_write_beyond_the_watermark_or_half_a_batch_is_reordered() {
        let (ledger, image, _) = honest(500);
        let mut behind = image.clone();
        behind.watermark -= 3;
        assert!(ledger.check_up_to(&behind, behind.watermark).reordered > 0);

        let key =
            Place::pair_keys().find(|key| image.shown.contains_key(&Place { side: Side::Left, key: *key }));
        let mut torn = image.clone();
        torn.shown.remove(&Place { side: Side::Left, key: key.unwrap() });
        assert_eq!(counts(&ledger.check_whole(&torn)), (1, 1, 0));
    }

    #[test]
    fn another_number_an_old_write_or_a_watermark_that_went_back_is_applied_twice() {
        let (mut ledger, image, steps) = honest(500);
        let single = a_single(&image);
        let mut renumbered = image.clone();
        renumbered.watermark += 10;
        renumbered.shown.get_mut(&single).unwrap().version = image.watermark + 5;
        assert_eq!(counts(&ledger.check_whole(&renumbered)), (0, 0, 1));
        assert_eq!(check_same("an idle opening", &image, &renumbered).applied_twice, 1);

        ledger.adopt(&image);
        assert!(ledger.check_whole(&image).is_clean());
        let overwritten = |(_, step): &&(u64, Step)| {
            !step.removes
                && step.places().eq([single])
                && image.shown.get(&single).is_some_and(|shown| shown.id != Some(step.id))
        };
        let (_, old) = steps.iter().find(overwritten).unwrap();
        let mut back = image.clone();
        back.watermark += 1;
        back.shown.insert(single, Shown { id: Some(old.id), version: back.watermark });
        assert_eq!(counts(&ledger.check_whole(&back)), (0, 0, 1));

        let mut earlier = image.clone();
        earlier.watermark -= 1;
        assert!(ledger.check_whole(&earlier).applied_twice > 0);
    }

    #[test]
    fn a_write_under_way_may_have_happened_or_not_but_only_at_the_end() {
        let (mut ledger, image, _) = honest(500);
        ledger.killed();
        let step = Step::of(SEED, Id { thread: 0, counter: 501 });
        assert!(ledger.check_whole(&image).is_clean());
        let mut happened = image.clone();
        happened.watermark += records(&step);
        apply(&mut happened, &step, image.watermark + 1);
        assert!(ledger.check_whole(&happened).is_clean());
        assert_eq!(ledger.next(), [502], "its number is not used again");
        assert!(ledger.acknowledge(Id { thread: 0, counter: 501 }, image.watermark + 9).is_err());
        assert!(
            ledger.acknowledge(Id { thread: 0, counter: 502 }, image.watermark).is_err(),
            "a number used twice"
        );
    }

    #[test]
    fn a_reader_must_not_see_what_the_drain_takes_back() {
        let (_, image, _) = honest(100);
        let mut seen: BTreeMap<Place, Option<Id>> =
            image.shown.iter().map(|(place, shown)| (*place, shown.id)).collect();
        assert!(check_reads(&seen, &image).is_clean());
        seen.insert(a_single(&image), Some(Id { thread: 0, counter: 9999 }));
        assert_eq!(check_reads(&seen, &image).reordered, 1);
    }
}
