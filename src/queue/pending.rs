//! The memory view of what the store lacks: which value each pending key has, and the queue for the flusher.
//!
//! Four places have what is pending: journaled frames in memory are packed, with an index of their keys (`Packed`); of
//! those that are in the journal alone it is known which frames may have a key (`SpilledIndex`); of dead letters the view
//! has the keys and where they are; and frames that are written through wait in a queue of their own, since nobody may
//! see them yet. A key may be in several, and its newest record counts: places in the journal are in the order of
//! numbers.
//!
//! One lock guards it all, and nothing is read from a disk under it; `inbox` says how frames get here.
//!
//! Frames beyond the memory budget are left to the journal ("spilled"), and the flusher reads them back in order. Once
//! spilling has begun it goes on until the flusher has caught up, so that the order in which to merge the two sources
//! stays simple.

use std::collections::{BTreeMap, HashMap, VecDeque};

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::ids::{Key, Seq};
use crate::journal::frame::{Location, slices_of};
use crate::metrics::QueueStats;
use crate::queue::age::CommitTimes;
use crate::queue::packed::{PACKED_BYTES_MAX, Packed};
use crate::queue::queued::{QueueSize, QueuedFrame};
use crate::queue::record::RecordRef;
use crate::queue::spilled::{SpilledIndex, UnappliedRecords};
use crate::queue::ticket::Ticket;
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
    /// In the dead-letter list, as the n-th record of a letter.
    DeadLetter { letter: Seq, record: u32 },
}

/// What the pending view knows of a key.
#[derive(Debug)]
pub(crate) struct Sought {
    /// What it knows without reading the journal.
    pub(crate) found: Found,
    /// Which frames of the journal may have a newer record of the key, newest first. There may be more before the last
    /// of them, but none if there are none.
    pub(crate) journaled: Vec<Location>,
}

/// What the pending view knows of a key without reading the journal.
#[derive(Clone, Debug)]
pub(crate) enum Found {
    /// Nothing; the store is the truth.
    Absent,
    /// Nothing yet, but a write-through of the key is under way, and the store may show it before it is durable.
    Unsettled,
    /// The newest committed value.
    Pending { version: Seq, place: Place },
}

impl Found {
    /// Whether a record of that number is newer.
    pub(crate) fn is_before(&self, seq: Seq) -> bool {
        !matches!(self, Found::Pending { version, .. } if *version >= seq)
    }
}

/// A dead letter's record.
#[derive(Debug)]
struct Buried {
    version: Seq,
    place: Place,
}

/// The write-throughs of a key that are under way.
#[derive(Default)]
struct Unsettled {
    count: u32,
    /// The newest record of the key that was written behind meanwhile.
    overtaken_by: Seq,
}

/// Where the next frame in memory is.
enum Next {
    Through,
    Packed,
}

/// The state behind the lock.
#[derive(Default)]
pub(crate) struct Pending {
    packed: Packed,
    journaled: SpilledIndex,
    /// The newest dead letters of keys.
    buried: HashMap<Key, Buried, HashBuilder>,
    unsettled: HashMap<Key, Unsettled, HashBuilder>,
    /// Frames that are written through.
    through: VecDeque<QueuedFrame>,
    /// SpilledIndex frames after the first and up to the second number are only in the journal.
    spilled: Option<(Seq, Seq)>,
    tickets: BTreeMap<Seq, Ticket>,
    memory_bytes: u64,
    backlog: QueueSize,
    /// Behind the last journaled frame that was parked.
    parked_end: Option<Location>,
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
    /// What was found at the opening: its values stay in the journal.
    pub(crate) fn recovered(found: UnappliedRecords) -> Pending {
        let spilled = found.begins.map(|_| (found.applied, found.last));
        Pending { journaled: found.journaled, backlog: found.size, spilled, ..Pending::default() }
    }

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

    /// Says that the store has a recovered frame after all.
    pub(crate) fn recovered_before(&mut self, frame: &QueuedFrame) -> Result<()> {
        self.spilled =
            self.spilled.map(|(_, until)| (frame.last(), until)).filter(|(from, until)| from < until);
        self.retire(frame)
    }

    /// Takes a committed frame and its ticket; with the moment of its commit if it begins a group.
    pub(crate) fn take_in(
        &mut self,
        at: Option<Moment>,
        frame: QueuedFrame,
        ticket: Option<Box<Ticket>>,
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
        ticket: Option<Box<Ticket>>,
        memory_bytes_max: u64,
    ) -> Result<bool> {
        let size = frame.bytes;
        let spilling = self.spilled.is_some() && Safeguard::SpillInOrder.holds();
        let over =
            spilling || self.memory_bytes.saturating_add(size) > memory_bytes_max.min(PACKED_BYTES_MAX);
        let spill = over && frame.location.is_some();
        self.count(&frame);
        if let Some(ticket) = ticket {
            self.tickets.insert(frame.first, *ticket);
        }
        let after = std::mem::replace(&mut self.last_committed, frame.last());
        if !spill {
            frame.counted = true;
            self.memory_bytes += size;
        }
        self.overtake(&frame)?;
        match frame.location {
            Some(location) if spill => {
                self.spill(frame.last(), after);
                let place = self.journaled.place(location)?;
                for bytes in slices_of(&frame.content, frame.count) {
                    self.journaled.take(&RecordRef::parse(bytes)?, place);
                }
            }
            Some(location) => self.packed.push(&frame, location)?,
            None => {
                self.unsettle(&frame)?;
                self.through.push_back(frame);
            }
        }
        Ok(spill)
    }

    /// What is known of `key`; of the journal, before a place.
    pub(crate) fn find(&mut self, key: &Key, before: Option<Location>) -> Sought {
        let packed = self.packed.find(key.as_bytes());
        let behind = packed.as_ref().map(|(_, location, _)| *location);
        let journaled = self.journaled.find(key.as_bytes(), behind, before);
        let mut found = match packed {
            Some((version, _, value)) => {
                Found::Pending { version, place: value.map_or(Place::Removed, Place::Memory) }
            }
            None => Found::Absent,
        };
        if let Some(buried) = self.buried.get(key).filter(|buried| found.is_before(buried.version)) {
            found = Found::Pending { version: buried.version, place: buried.place.clone() };
        }
        if matches!(found, Found::Absent) && self.is_unsettled(key) {
            found = Found::Unsettled;
        }
        Sought { found, journaled }
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

    /// Of each record of a frame that is written through, whether its key has been written behind meanwhile. To be
    /// asked before the frame ends.
    pub(crate) fn superseded(&self, frame: &QueuedFrame) -> Result<Vec<bool>> {
        if frame.location.is_some() {
            return Ok(Vec::new());
        }
        let overtaken = |seq: Seq, key: &[u8]| {
            self.unsettled.get(key).is_some_and(|unsettled| unsettled.overtaken_by > seq)
        };
        let records = slices_of(&frame.content, frame.count).zip(0_u64..);
        records.map(|(bytes, at)| Ok(overtaken(frame.first.plus(at), RecordRef::parse(bytes)?.key))).collect()
    }

    /// All tickets, when nothing will be applied any more. What was unsettled stays so.
    pub(crate) fn take_tickets(&mut self) -> Vec<Ticket> {
        std::mem::take(&mut self.tickets).into_values().collect()
    }

    /// Removes every frame that was written through and that the flusher has not taken.
    pub(crate) fn take_unjournaled(&mut self) -> Vec<QueuedFrame> {
        std::mem::take(&mut self.through).into()
    }

    /// Forgets a frame that the store holds, or that ended otherwise. SpilledIndex ones end in their order, but for those
    /// that are parked.
    ///
    /// A key is forgotten only if the frame's record is its newest: a newer pending one must not go with it.
    pub(crate) fn retire(&mut self, frame: &QueuedFrame) -> Result<()> {
        if frame.location.is_none() {
            for bytes in slices_of(&frame.content, frame.count) {
                self.settle(RecordRef::parse(bytes)?.key);
            }
        }
        if let (Some(_), Some(end)) = (frame.location, frame.journal_end) {
            self.journaled.pass(end, frame.count);
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
        // Frames before it may not have ended yet; see `passed`.
        self.parked_end = self.parked_end.max(frame.journal_end);
        self.end(frame)
    }

    /// Takes a record of a dead letter.
    pub(crate) fn bury(&mut self, key: &Key, seq: Seq, has_value: bool, place: Place) {
        let buried = Buried { version: seq, place: if has_value { place } else { Place::Removed } };
        match self.buried.get_mut(key) {
            Some(there) if there.version > seq => {}
            Some(there) => *there = buried,
            // A key that is a slice of its frame would keep the whole frame in memory.
            None => drop(self.buried.insert(key.detached(), buried)),
        }
    }

    /// Forgets a key whose dead letters were replayed or discarded.
    pub(crate) fn unbury(&mut self, key: &Key, newest: Seq) {
        if self.buried.get(key).is_some_and(|buried| buried.version <= newest) {
            self.buried.remove(key);
        }
    }

    /// The queue's size, what the flusher has in hand included.
    pub(crate) fn backlog(&self) -> QueueSize {
        self.backlog
    }

    /// Says that nothing up to `applied` is pending any more.
    pub(crate) fn passed(&mut self, applied: Seq) {
        if let Some(end) = self.parked_end.take() {
            self.journaled.pass(end, 0);
        }
        self.times.forget_before(applied.next(), self.backlog.records == 0);
    }

    /// The queue as its owner sees it.
    pub(crate) fn queue(&self, now: Moment) -> QueueStats {
        let QueueSize { records, bytes } = self.backlog;
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

    /// Lets those know whose write-through is under way that a newer record of their key is there.
    fn overtake(&mut self, frame: &QueuedFrame) -> Result<()> {
        if self.unsettled.is_empty() || frame.location.is_none() {
            return Ok(());
        }
        for (bytes, at) in slices_of(&frame.content, frame.count).zip(0_u64..) {
            let record = RecordRef::parse(bytes)?;
            if let Some(unsettled) = self.unsettled.get_mut(record.key).filter(|_| record.is_update()) {
                unsettled.overtaken_by = frame.first.plus(at);
            }
        }
        Ok(())
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
            self.unsettled.entry(record.key).or_default().count += 1;
        }
        Ok(())
    }

    fn settle(&mut self, key: &[u8]) {
        if let Some(unsettled) = self.unsettled.get_mut(key) {
            unsettled.count -= 1;
            if unsettled.count == 0 {
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
    use crate::ids::NamespaceName;
    use crate::journal::frame::FrameBuilder;
    use crate::queue::record::{Operation, push};

    fn key() -> Key {
        Key::new(&NamespaceName::parse("n").unwrap(), b"k").unwrap()
    }

    fn frame(seq: u64, journaled: bool) -> QueuedFrame {
        let mut body = FrameBuilder::new();
        push(&mut body, Operation::Put, true, key().as_bytes(), b"value").unwrap();
        let location = journaled.then_some(at(seq));
        QueuedFrame::committed(Seq(seq), body.finish(), location)
    }

    /// Where the frame `seq` is in the journal.
    fn at(seq: u64) -> Location {
        Location { segment: 1, offset: 4096 + seq * 128 }
    }

    /// The number in memory, and the frames of the journal that may be newer.
    fn sought(pending: &mut Pending) -> (Option<u64>, Vec<Location>) {
        let Sought { found, journaled } = pending.find(&key(), None);
        let version = match found {
            Found::Pending { version, .. } => Some(version.0),
            Found::Unsettled | Found::Absent => None,
        };
        (version, journaled)
    }

    #[test]
    fn the_newest_of_a_keys_records_counts_wherever_it_is() {
        let mut pending = Pending::default();
        pending.commit(frame(1, true), None, 1 << 20).unwrap();
        assert_eq!(sought(&mut pending), (Some(1), vec![]));
        for seq in [2, 3] {
            assert!(pending.commit(frame(seq, true), None, 0).unwrap(), "left to the journal");
        }
        assert_eq!(sought(&mut pending), (Some(1), vec![at(3), at(2)]));
        assert!(pending.read_back(Seq(3)), "the flusher has caught up");
        pending.commit(frame(4, true), None, 1 << 20).unwrap();
        assert_eq!(sought(&mut pending), (Some(4), vec![]), "what is in memory is newer");
        // The flusher has them in this order.
        let first = pending.pop_before(None).unwrap();
        for (ended, left) in [(first, vec![at(3), at(2)]), (frame(2, true), vec![at(3)])] {
            pending.retire(&ended).unwrap();
            let Sought { journaled, .. } = pending.find(&key(), None);
            assert!(journaled.is_empty() && sought(&mut pending).0 == Some(4));
            assert_eq!(pending.journaled.find(key().as_bytes(), None, None), left);
        }
        pending.retire(&frame(3, true)).unwrap();
        assert_eq!(sought(&mut pending), (Some(4), vec![]));
        assert!(pending.journaled.is_empty());
    }

    /// A frame was parked, and then a write-through before it was refused, both before the apply: what was still to be
    /// applied must not be forgotten by that.
    #[test]
    fn what_ends_before_its_turn_takes_nothing_along() {
        let mut pending = Pending::default();
        pending.commit(frame(1, false), None, 1 << 20).unwrap();
        for seq in [2, 3, 4] {
            pending.commit(frame(seq, true), None, 0).unwrap();
        }
        pending.park(&frame(4, true)).unwrap();
        pending.refuse(&frame(1, false)).unwrap();
        assert_eq!(sought(&mut pending), (Some(4), vec![at(4), at(3), at(2)]));
        pending.retire(&frame(2, true)).unwrap();
        assert_eq!(sought(&mut pending), (Some(4), vec![at(4), at(3)]));
        pending.retire(&frame(3, true)).unwrap();
        pending.passed(Seq(4));
        assert_eq!(sought(&mut pending), (Some(4), vec![]), "the dead letter is left");
        pending.unbury(&key(), Seq(4));
        assert_eq!(sought(&mut pending), (None, vec![]));
        assert_eq!(pending.backlog(), QueueSize::default());
    }

    #[test]
    fn a_write_through_is_superseded_by_what_was_written_behind_meanwhile_and_by_nothing_else() {
        for memory_bytes_max in [0, 1 << 20] {
            let mut pending = Pending::default();
            pending.commit(frame(1, true), None, memory_bytes_max).unwrap();
            let through = [frame(2, false), frame(4, false)];
            pending.commit(through[0].clone(), None, memory_bytes_max).unwrap();
            pending.commit(frame(3, true), None, memory_bytes_max).unwrap();
            pending.commit(through[1].clone(), None, memory_bytes_max).unwrap();
            assert_eq!(pending.superseded(&through[0]).unwrap(), [true]);
            assert_eq!(pending.superseded(&through[1]).unwrap(), [false]);
            through.iter().for_each(|frame| pending.retire(frame).unwrap());
            assert!(pending.unsettled.is_empty());
        }
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
