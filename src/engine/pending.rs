//! The memory view of what the store lacks: which value each pending key has, and the queue for the flusher.
//!
//! Three places have what is pending: journaled frames in memory are packed, with an index of their keys (`Packed`);
//! of those that are in the journal alone, and of dead letters, the view has the keys and where they are; and frames
//! that are written through wait in a queue of their own, since nobody may see them yet. A key that is in the first
//! is not in the second.
//!
//! One lock guards it all; `inbox` says how frames get here.
//!
//! Frames beyond the memory budget are left to the journal ("spilled"), and the flusher reads them back in order. Once
//! spilling has begun it goes on until the flusher has caught up, so that the order in which to merge the two sources
//! stays simple.

use std::collections::{BTreeMap, HashMap, VecDeque};

use bytes::Bytes;

use crate::engine::age::CommitTimes;
use crate::engine::commit::Ticket;
use crate::engine::packed::{PACKED_BYTES_MAX, Packed};
use crate::engine::queued::QueuedFrame;
use crate::engine::record::{Operation, Record};
use crate::error::{Error, Result};
use crate::ids::{Key, Seq};
use crate::journal::frame::Location;
use crate::metrics::QueueStats;
use crate::safeguard::Safeguard;
use crate::seam::clock::Moment;
use crate::seam::random::HashBuilder;

/// Where a pending value is.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// Here.
    Memory(Bytes),
    /// Nowhere: the record removes its key.
    Removed,
    /// In the journal, as the n-th record of a frame.
    Journal { frame: Location, record: u32 },
    /// In the dead-letter list, as the n-th record of a letter.
    DeadLetter { letter: Seq, record: u32 },
}

/// What the pending view knows of a key.
#[derive(Clone, Debug)]
pub(crate) enum Found {
    /// Nothing; the store is the truth.
    Absent,
    /// Nothing yet, but a write-through of the key is under way, and the store may show it before it is durable.
    Unsettled,
    /// The newest committed value.
    Pending { version: Seq, place: Place },
}

#[derive(Debug)]
struct Slot {
    version: Seq,
    place: Place,
}

/// Where the next frame in memory is.
enum Next {
    Through,
    Packed,
}

/// The queue's size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Backlog {
    pub(crate) records: u64,
    pub(crate) bytes: u64,
}

/// The state behind the lock.
#[derive(Default)]
pub(crate) struct Pending {
    packed: Packed,
    /// The newest records of keys that have none in memory.
    elsewhere: HashMap<Key, Slot, HashBuilder>,
    unsettled: HashMap<Key, u32, HashBuilder>,
    /// Frames that are written through.
    through: VecDeque<QueuedFrame>,
    /// Journaled frames after the first and up to the second number are only in the journal.
    spilled: Option<(Seq, Seq)>,
    tickets: BTreeMap<Seq, Ticket>,
    memory_bytes: u64,
    backlog: Backlog,
    times: CommitTimes,
    last_committed: Seq,
    /// How many records were left to the journal since somebody asked.
    spilled_records: u64,
    /// A frame could not be taken in.
    failure: Option<Error>,
    /// How many write-throughs ended without taking effect.
    refusals: u64,
}

impl Pending {
    /// How many records were left to the journal since the last call, and whether a frame could not be taken in.
    pub(crate) fn outcome(&mut self) -> (u64, Option<Error>) {
        (std::mem::take(&mut self.spilled_records), self.failure.take())
    }

    /// Sets where a recovered layer starts: everything committed before it, nothing of it in memory.
    pub(crate) fn start_at(&mut self, last_committed: Seq, now: Moment) {
        self.last_committed = last_committed;
        if self.backlog.records > 0 {
            self.times.note(Seq::ZERO, now);
        }
    }

    /// Takes a recovered frame: its values stay in the journal.
    pub(crate) fn recover(&mut self, frame: &QueuedFrame, after: Seq) -> Result<()> {
        self.spill(frame.last(), after);
        self.count(frame);
        self.index_in_journal(frame)
    }

    /// Takes a committed frame and its ticket; with the moment of its commit if it begins a group.
    pub(crate) fn take_in(
        &mut self,
        at: Option<Moment>,
        frame: QueuedFrame,
        ticket: Option<Ticket>,
        memory_bytes_max: u64,
    ) {
        let (first, records) = (frame.first, u64::from(frame.count));
        at.into_iter().for_each(|at| self.times.note(first, at));
        match self.commit(frame, ticket, memory_bytes_max) {
            Ok(spilled) => self.spilled_records += if spilled { records } else { 0 },
            Err(error) => self.failure = Some(error),
        }
    }

    /// Returns whether the frame's values were left to the journal.
    fn commit(
        &mut self,
        mut frame: QueuedFrame,
        ticket: Option<Ticket>,
        memory_bytes_max: u64,
    ) -> Result<bool> {
        let size = frame.bytes;
        let spilling = self.spilled.is_some() && Safeguard::SpillInOrder.holds();
        let over =
            spilling || self.memory_bytes.saturating_add(size) > memory_bytes_max.min(PACKED_BYTES_MAX);
        let spill = over && frame.location.is_some();
        self.count(&frame);
        if let Some(ticket) = ticket {
            self.tickets.insert(frame.first, ticket);
        }
        let after = std::mem::replace(&mut self.last_committed, frame.last());
        if !spill {
            frame.counted = true;
            self.memory_bytes += size;
        }
        match frame.location {
            Some(_) if spill => {
                self.spill(frame.last(), after);
                self.index_in_journal(&frame)?;
            }
            Some(location) => {
                let elsewhere = &mut self.elsewhere;
                self.packed.push(&frame, location, |key| {
                    if !elsewhere.is_empty() {
                        elsewhere.remove(key);
                    }
                })?;
            }
            None => {
                self.unsettle(&frame)?;
                self.through.push_back(frame);
            }
        }
        Ok(spill)
    }

    /// What is known of `key`.
    pub(crate) fn find(&self, key: &Key) -> Found {
        if let Some((version, value)) = self.packed.find(key.as_bytes()) {
            return Found::Pending { version, place: value.map_or(Place::Removed, Place::Memory) };
        }
        match self.elsewhere.get(key) {
            Some(slot) => Found::Pending { version: slot.version, place: slot.place.clone() },
            None if self.is_unsettled(key) => Found::Unsettled,
            None => Found::Absent,
        }
    }

    /// Whether a write-through of `key` is under way.
    pub(crate) fn is_unsettled(&self, key: &Key) -> bool {
        Safeguard::UnsettledReads.holds() && self.unsettled.contains_key(key)
    }

    /// How many write-throughs have ended without taking effect.
    pub(crate) fn refusals(&self) -> u64 {
        self.refusals
    }

    /// Whether what was loaded of `key`, since there were so many refusals, may be of a write-through that is under way
    /// or did not take effect: the store may show it before it is durable.
    pub(crate) fn may_have_shown(&self, key: &Key, refusals: u64) -> bool {
        self.is_unsettled(key) || Safeguard::UnsettledReads.holds() && self.refusals != refusals
    }

    /// Forgets a frame that was to be written through and will not be.
    pub(crate) fn refuse(&mut self, frame: &QueuedFrame) -> Result<()> {
        self.refusals += 1;
        self.retire(frame)
    }

    /// Which frames are only in the journal: after the first and up to the second number.
    pub(crate) fn spilled(&self) -> Option<(Seq, Seq)> {
        self.spilled
    }

    /// Says that the flusher has read the journal up to `last`; ends the spilling if that is all of it.
    pub(crate) fn read_back(&mut self, last: Seq) -> bool {
        let caught_up = self.spilled.is_some_and(|(_, until)| until <= last);
        if caught_up {
            self.spilled = None;
        }
        caught_up
    }

    /// Whether there is a next frame in memory; see [`Pending::front_before`].
    pub(crate) fn has_before(&self, limit: Option<Seq>) -> bool {
        self.next_before(limit).is_some()
    }

    /// The next frame in memory, which stays, if it comes before `limit` or, without one, before all spilled frames:
    /// those may have been committed since the caller looked for them.
    pub(crate) fn front_before(&mut self, limit: Option<Seq>) -> Option<QueuedFrame> {
        match self.next_before(limit)? {
            Next::Through => self.through.front().cloned(),
            Next::Packed => self.packed.front(),
        }
    }

    /// The next frame in memory, if it comes before `limit`.
    pub(crate) fn pop_before(&mut self, limit: Option<Seq>) -> Option<QueuedFrame> {
        match self.next_before(limit)? {
            Next::Through => self.through.pop_front(),
            Next::Packed => self.packed.pop_front(),
        }
    }

    fn next_before(&self, limit: Option<Seq>) -> Option<Next> {
        let limit = limit.or_else(|| self.spilled.map(|(after, _)| after.next()));
        let through = self.through.front().map(|frame| (frame.first, Next::Through));
        let packed = self.packed.front_first().map(|first| (first, Next::Packed));
        let next = through.into_iter().chain(packed).min_by_key(|(first, _)| *first);
        next.filter(|(first, _)| limit.is_none_or(|limit| *first < limit)).map(|(_, next)| next)
    }

    /// The ticket of the frame that starts at `first`, if somebody waits for its apply.
    pub(crate) fn take_ticket(&mut self, first: Seq) -> Option<Ticket> {
        self.tickets.remove(&first)
    }

    /// Of each record of a frame that was written through, whether its key has a newer pending one.
    pub(crate) fn superseded(&self, frame: &QueuedFrame) -> Result<Vec<bool>> {
        if frame.location.is_some() {
            return Ok(Vec::new());
        }
        let newer = |(seq, record): (Seq, Record)| {
            let elsewhere = self.elsewhere.get(&record.key).map(|slot| slot.version);
            let version = elsewhere.or_else(|| self.packed.version(record.key.as_bytes()));
            version.is_some_and(|version| version > seq)
        };
        frame.records().map(|numbered| numbered.map(newer)).collect()
    }

    /// All tickets, when nothing will be applied any more. What was unsettled stays so.
    pub(crate) fn take_tickets(&mut self) -> Vec<Ticket> {
        std::mem::take(&mut self.tickets).into_values().collect()
    }

    /// Removes every frame that was written through and that the flusher has not taken.
    pub(crate) fn take_unjournaled(&mut self) -> Vec<QueuedFrame> {
        std::mem::take(&mut self.through).into()
    }

    /// Forgets a frame that the store holds, or that ended otherwise.
    ///
    /// A key is forgotten only if the frame's record is its newest: a newer pending one must not go with it.
    pub(crate) fn retire(&mut self, frame: &QueuedFrame) -> Result<()> {
        for numbered in frame.records() {
            let (seq, record) = numbered?;
            if frame.location.is_none() {
                self.settle(&record.key);
            } else if self
                .elsewhere
                .get(&record.key)
                .is_some_and(|slot| slot.version == seq || !Safeguard::RetireByNumber.holds())
            {
                self.elsewhere.remove(&record.key);
            }
        }
        self.end(frame)
    }

    /// Moves a frame's keys to the dead-letter list: they stay readable from there.
    pub(crate) fn park(&mut self, frame: &QueuedFrame) -> Result<()> {
        for (numbered, at) in frame.records().zip(0_u32..) {
            let (seq, record) = numbered?;
            self.bury(
                &record.key,
                seq,
                record.stored().is_some(),
                Place::DeadLetter { letter: frame.first, record: at },
            );
        }
        self.end(frame)
    }

    /// Takes a dead letter found at recovery.
    pub(crate) fn bury(&mut self, key: &Key, seq: Seq, has_value: bool, place: Place) {
        let place = if has_value { place } else { Place::Removed };
        match self.packed.version(key.as_bytes()) {
            Some(newer) if newer > seq => return,
            Some(_) => self.packed.forget(key.as_bytes()),
            None => {}
        }
        match self.elsewhere.get(key) {
            Some(slot) if slot.version > seq => {}
            _ => self.put_elsewhere(key, Slot { version: seq, place }),
        }
    }

    /// Forgets a key whose dead letters were replayed or discarded, unless it has a newer record.
    pub(crate) fn unbury(&mut self, key: &Key, newest: Seq) {
        if self.elsewhere.get(key).is_some_and(|slot| slot.version <= newest) {
            self.elsewhere.remove(key);
        }
    }

    /// The queue's size, what the flusher has in hand included.
    pub(crate) fn backlog(&self) -> Backlog {
        self.backlog
    }

    /// Says that nothing up to `applied` is pending any more.
    pub(crate) fn passed(&mut self, applied: Seq) {
        self.times.forget_before(applied.next(), self.backlog.records == 0);
    }

    /// The queue as its owner sees it.
    pub(crate) fn queue(&self, now: Moment) -> QueueStats {
        let Backlog { records, bytes } = self.backlog;
        QueueStats { records, bytes, oldest_age: self.times.oldest(now) }
    }

    /// The last committed sequence number.
    pub(crate) fn last_committed(&self) -> Seq {
        self.last_committed
    }

    fn spill(&mut self, last: Seq, after: Seq) {
        self.spilled = Some(match self.spilled {
            Some((from, _)) => (from, last),
            None => (after, last),
        });
    }

    fn index_in_journal(&mut self, frame: &QueuedFrame) -> Result<()> {
        let Some(location) = frame.location else { return Ok(()) };
        for (numbered, at) in frame.records().zip(0_u32..) {
            let (version, record) = numbered?;
            if !record.is_update() {
                continue;
            }
            let place = match record.operation {
                Operation::Put => Place::Journal { frame: location, record: at },
                _ => Place::Removed,
            };
            self.packed.forget(record.key.as_bytes());
            self.put_elsewhere(&record.key, Slot { version, place });
        }
        Ok(())
    }

    fn put_elsewhere(&mut self, key: &Key, slot: Slot) {
        match self.elsewhere.get_mut(key) {
            Some(there) => *there = slot,
            // A key that is a slice of its frame would keep the whole frame in memory for as long as newer frames
            // write the key.
            None => drop(self.elsewhere.insert(key.detached(), slot)),
        }
    }

    /// Ends a frame, wherever it came from.
    fn end(&mut self, frame: &QueuedFrame) -> Result<()> {
        self.uncount(frame);
        match frame.packed_at {
            Some(at) => self.packed.end(frame, at),
            None => Ok(()),
        }
    }

    fn unsettle(&mut self, frame: &QueuedFrame) -> Result<()> {
        for numbered in frame.records() {
            let (_, record) = numbered?;
            *self.unsettled.entry(record.key).or_insert(0) += 1;
        }
        Ok(())
    }

    fn settle(&mut self, key: &Key) {
        if let Some(count) = self.unsettled.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                self.unsettled.remove(key);
            }
        }
    }

    fn count(&mut self, frame: &QueuedFrame) {
        self.backlog.records += u64::from(frame.count);
        self.backlog.bytes += frame.bytes;
    }

    fn uncount(&mut self, frame: &QueuedFrame) {
        let bytes = frame.bytes;
        self.backlog.records = self.backlog.records.saturating_sub(u64::from(frame.count));
        self.backlog.bytes = self.backlog.bytes.saturating_sub(bytes);
        if frame.counted {
            self.memory_bytes = self.memory_bytes.saturating_sub(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::record::{Operation, push};
    use crate::ids::NamespaceName;
    use crate::journal::frame::FrameBuilder;

    fn frame(seq: u64, journaled: bool) -> QueuedFrame {
        let key = Key::new(&NamespaceName::parse("n").unwrap(), b"k").unwrap();
        let mut body = FrameBuilder::new();
        push(&mut body, Operation::Put, true, key.as_bytes(), b"value").unwrap();
        let location = journaled.then_some(Location { segment: 1, offset: 4096 });
        QueuedFrame::committed(Seq(seq), body.finish(), location)
    }

    /// The flusher saw that nothing was spilled; then a write-behind was committed and spilled, and a write-through
    /// behind it was queued in memory. The flusher took the write-through, the watermark passed the acknowledged
    /// write-behind, and no later batch could bring it to the store any more. Found by the simulation.
    #[test]
    fn a_frame_in_memory_does_not_overtake_one_that_was_spilled_unseen() {
        let mut pending = Pending::default();
        pending.commit(frame(1, false), None, 0).unwrap();
        assert!(pending.commit(frame(2, true), None, 0).unwrap(), "beyond the memory budget");
        pending.commit(frame(3, false), None, 0).unwrap();
        assert_eq!(pending.front_before(None).map(|frame| frame.first), Some(Seq(1)));
        assert!(pending.pop_before(None).is_some());
        assert!(pending.front_before(None).is_none(), "2 comes first, from the journal");
        assert_eq!(pending.front_before(Some(Seq(4))).map(|frame| frame.first), Some(Seq(3)));
    }
}
