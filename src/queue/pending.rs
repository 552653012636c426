//! The pending view: the value of each pending key, and the queue for the flusher.
//!
//! Pending records are in four places. Journaled frames in memory are packed, with an index of their keys (`Packed`).
//! Of frames that are in the journal alone an index knows which of them may have a key (`SpilledIndex`). Of dead
//! letters the view has the keys and their places in the list. Frames that are written through wait in a queue of their
//! own, since nobody may see them yet. A key may be in several places; its newest record counts, and places in the
//! journal are in the order of sequence numbers.
//!
//! One lock guards all of it, and no disk is read under it. `inbox` describes how frames get here.
//!
//! Frames beyond the memory budget are spilled: left to the journal, from which the flusher reads them back in order.
//! Spilling goes on until the flusher has caught up, so that merging the two sources in order stays simple.

use std::collections::{BTreeMap, HashMap, VecDeque};

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::ids::{Key, Seq};
use crate::journal::frame::{Location, slices_of};
use crate::metrics::QueueStats;
use crate::queue::age::AgeRing;
use crate::queue::packed::{PACKED_BYTES_MAX, Packed};
use crate::queue::queued::{QueueSize, QueuedFrame};
use crate::queue::record::RecordRef;
use crate::queue::spilled::{SpilledIndex, UnappliedRecords};
use crate::queue::ticket::WriteTicket;
use crate::safeguard::Safeguard;
use crate::seam::clock::Moment;
use crate::seam::random::HashBuilder;

/// A pending value, or where to read it.
#[derive(Clone, Debug)]
pub(crate) enum PendingValue {
    /// The value itself.
    InMemory(Bytes),
    /// No value: the record removes its key.
    Removed,
    /// The value of a letter's n-th record in the dead-letter list.
    InDeadLetter { letter: Seq, record: u32 },
}

/// The result of a look-up in the pending view.
#[derive(Debug)]
pub(crate) struct PendingLookup {
    /// The key's state as far as it is known without reading the journal.
    pub(crate) state: KeyState,
    /// Frames of the journal that may have a newer record of the key, newest first. There may be more before the last
    /// of them, but none if this is empty.
    pub(crate) candidates: Vec<Location>,
}

/// A key's state as far as it is known without reading the journal.
#[derive(Clone, Debug)]
pub(crate) enum KeyState {
    /// Nothing is pending; the store has the value.
    Absent,
    /// Nothing is committed, but a write-through of the key is in flight, and the store may show it before it is
    /// durable.
    InFlightThrough,
    /// The newest committed record is pending.
    Pending { version: Seq, value: PendingValue },
}

impl KeyState {
    /// Returns true if a record with this number is newer.
    pub(crate) fn is_older_than(&self, seq: Seq) -> bool {
        !matches!(self, KeyState::Pending { version, .. } if *version >= seq)
    }
}

/// The newest dead letter's record of a key.
#[derive(Debug)]
struct DeadLetterRecord {
    version: Seq,
    value: PendingValue,
}

/// The write-throughs of a key that are in flight.
#[derive(Default)]
struct InFlightThrough {
    count: u32,
    /// The newest record of the key that was written behind meanwhile.
    superseded_by: Seq,
}

/// The queue that has the next frame in memory.
enum FrameQueue {
    Through,
    Packed,
}

/// The state behind the lock.
#[derive(Default)]
pub(crate) struct Pending {
    packed: Packed,
    spilled_index: SpilledIndex,
    /// The newest dead-letter record of each key that has any.
    dead_letters: HashMap<Key, DeadLetterRecord, HashBuilder>,
    in_flight: HashMap<Key, InFlightThrough, HashBuilder>,
    /// Frames that are written through and that the flusher has not taken.
    throughs: VecDeque<QueuedFrame>,
    /// Journaled frames after the first and up to the second number are only in the journal.
    spilled: Option<(Seq, Seq)>,
    tickets: BTreeMap<Seq, WriteTicket>,
    memory_bytes: u64,
    size: QueueSize,
    /// The end of the last journaled frame that was parked.
    parked_end: Option<Location>,
    /// The moments at which groups were committed.
    commits: AgeRing,
    last_committed: Seq,
    /// The number of records that were spilled since it was last taken.
    spilled_records: u64,
    /// The reason why a frame could not be added.
    failure: Option<Error>,
    /// The number of write-throughs that ended without taking effect.
    refused_throughs: u64,
}

impl Pending {
    /// Returns the view of what an opening found unapplied, whose values stay in the journal.
    pub(crate) fn recovered(found: UnappliedRecords) -> Pending {
        let spilled = found.begins.map(|_| (found.applied, found.last));
        Pending { spilled_index: found.index, size: found.size, spilled, ..Pending::default() }
    }

    /// Takes the number of records that were spilled since the last call, and the reason if a frame could not be added.
    pub(crate) fn take_outcome(&mut self) -> (u64, Option<Error>) {
        (std::mem::take(&mut self.spilled_records), self.failure.take())
    }

    /// Sets the last committed number of a layer that opens. The age of what it recovered counts from `now`.
    pub(crate) fn start_at(&mut self, last_committed: Seq, now: Moment) {
        self.last_committed = last_committed;
        if self.size.records > 0 {
            self.commits.note(Seq::ZERO, 0, now);
        }
    }

    /// Drops a recovered frame, the first one, because the store turned out to have it.
    pub(crate) fn drop_recovered(&mut self, frame: &QueuedFrame) -> Result<()> {
        self.spilled =
            self.spilled.map(|(_, until)| (frame.last(), until)).filter(|(from, until)| from < until);
        self.retire(frame)
    }

    /// Adds a committed frame and its ticket. `group_at` is the moment of the commit, at the first frame of a group.
    #[inline]
    pub(crate) fn add(
        &mut self,
        group_at: Option<Moment>,
        frame: QueuedFrame,
        ticket: Option<Box<WriteTicket>>,
        memory_bytes_max: u64,
    ) {
        let (first, records) = (frame.first, u64::from(frame.count));
        if let Some(at) = group_at {
            self.commits.note(first, 0, at);
        }
        match self.try_add(frame, ticket, memory_bytes_max) {
            Ok(spilled) => self.spilled_records += if spilled { records } else { 0 },
            Err(error) => self.failure = Some(error),
        }
    }

    /// Returns true if the frame was spilled.
    fn try_add(
        &mut self,
        mut frame: QueuedFrame,
        ticket: Option<Box<WriteTicket>>,
        memory_bytes_max: u64,
    ) -> Result<bool> {
        let size = frame.bytes;
        // Even a frame that would fit has to follow those that were spilled before it: in memory it would come before
        // them.
        let spilling = self.spilled.is_some() && Safeguard::SpillInOrder.holds();
        let over =
            spilling || self.memory_bytes.saturating_add(size) > memory_bytes_max.min(PACKED_BYTES_MAX);
        // A frame that is written through is nowhere else, so it stays in memory whatever the budget says.
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
        self.supersede_throughs(&frame)?;
        match frame.location {
            Some(location) if spill => {
                self.extend_spilled(frame.last(), after);
                let position = self.spilled_index.begin_frame(location)?;
                for bytes in slices_of(&frame.content, frame.count) {
                    self.spilled_index.add(&RecordRef::parse(bytes)?, position);
                }
            }
            Some(location) => self.packed.push(&frame, location)?,
            None => {
                self.begin_through(&frame)?;
                self.throughs.push_back(frame);
            }
        }
        Ok(spill)
    }

    /// Looks a key up; in the journal, only before a location if there is one.
    pub(crate) fn find(&mut self, key: &Key, before: Option<Location>) -> PendingLookup {
        let packed = self.packed.find(key.as_bytes());
        // Packed frames are searched first, and only journaled frames behind the one found can be newer.
        let behind = packed.as_ref().map(|(_, location, _)| *location);
        let candidates = self.spilled_index.find(key.as_bytes(), behind, before);
        let mut state = match packed {
            Some((version, _, value)) => {
                let value = value.map_or(PendingValue::Removed, PendingValue::InMemory);
                KeyState::Pending { version, value }
            }
            None => KeyState::Absent,
        };
        if let Some(record) = self.dead_letters.get(key).filter(|record| state.is_older_than(record.version))
        {
            state = KeyState::Pending { version: record.version, value: record.value.clone() };
        }
        // A committed record answers a read by itself; the write-through, which is later, is not seen yet.
        if matches!(state, KeyState::Absent) && self.has_in_flight_through(key) {
            state = KeyState::InFlightThrough;
        }
        PendingLookup { state, candidates }
    }

    /// Returns true if a write-through of `key` is in flight.
    pub(crate) fn has_in_flight_through(&self, key: &Key) -> bool {
        Safeguard::UnsettledReads.holds() && self.in_flight.contains_key(key)
    }

    /// Returns how many write-throughs have ended without taking effect.
    pub(crate) fn refused_throughs(&self) -> u64 {
        self.refused_throughs
    }

    /// Returns true if the store may have answered a load of `key` with a write-through that is in flight or was
    /// refused.
    ///
    /// `refused_before` is [`Pending::refused_throughs`] from before the load. A store may show such a value before it
    /// is durable, so the answer cannot be used.
    pub(crate) fn load_is_in_doubt(&self, key: &Key, refused_before: u64) -> bool {
        self.has_in_flight_through(key)
            || Safeguard::UnsettledReads.holds() && self.refused_throughs != refused_before
    }

    /// Removes a frame that was to be written through and will not be.
    pub(crate) fn refuse_through(&mut self, frame: &QueuedFrame) -> Result<()> {
        self.refused_throughs += 1;
        self.retire(frame)
    }

    /// Returns the range of frames that are only in the journal: after the first and up to the second number.
    pub(crate) fn spilled(&self) -> Option<(Seq, Seq)> {
        self.spilled
    }

    /// Notes that the flusher has read the journal up to `last`. Returns true if that was all of it, which ends the
    /// spilling.
    pub(crate) fn note_read_back(&mut self, last: Seq) -> bool {
        let caught_up = self.spilled.is_some_and(|(_, until)| until <= last);
        if caught_up {
            self.spilled = None;
        }
        caught_up
    }

    /// Returns true if there is a next frame in memory; see [`Pending::front_before`].
    pub(crate) fn has_before(&self, limit: Option<Seq>) -> bool {
        self.next_before(limit).is_some()
    }

    /// Returns the next frame in memory, which stays, if it comes before `limit`.
    ///
    /// Without a limit it has to come before all spilled frames: some may have been spilled since the caller looked.
    pub(crate) fn front_before(&mut self, limit: Option<Seq>) -> Option<QueuedFrame> {
        match self.next_before(limit)? {
            FrameQueue::Through => self.throughs.front().cloned(),
            FrameQueue::Packed => self.packed.front(),
        }
    }

    /// Takes the next frame in memory if it comes before `limit`; see [`Pending::front_before`].
    pub(crate) fn pop_before(&mut self, limit: Option<Seq>) -> Option<QueuedFrame> {
        match self.next_before(limit)? {
            FrameQueue::Through => self.throughs.pop_front(),
            FrameQueue::Packed => self.packed.pop_front(),
        }
    }

    fn next_before(&self, limit: Option<Seq>) -> Option<FrameQueue> {
        // Found by the simulation: a write-through was taken before a frame that was spilled unseen, the watermark
        // passed that frame, and no later batch brought it to the store.
        let limit = limit.or_else(|| self.spilled.map(|(after, _)| after.next()));
        let through = self.throughs.front().map(|frame| (frame.first, FrameQueue::Through));
        let packed = self.packed.front_first().map(|first| (first, FrameQueue::Packed));
        let next = through.into_iter().chain(packed).min_by_key(|(first, _)| *first);
        next.filter(|(first, _)| limit.is_none_or(|limit| *first < limit)).map(|(_, queue)| queue)
    }

    /// Takes the ticket of the frame that starts at `first`, if a writer waits for its apply.
    pub(crate) fn take_ticket(&mut self, first: Seq) -> Option<WriteTicket> {
        self.tickets.remove(&first)
    }

    /// Returns, for each record of a frame that is written through, whether its key was written behind meanwhile. To be
    /// called before the frame is retired.
    pub(crate) fn superseded(&self, frame: &QueuedFrame) -> Result<Vec<bool>> {
        if frame.location.is_some() {
            return Ok(Vec::new());
        }
        let is_superseded = |seq: Seq, key: &[u8]| {
            self.in_flight.get(key).is_some_and(|in_flight| in_flight.superseded_by > seq)
        };
        let records = slices_of(&frame.content, frame.count).zip(0_u64..);
        records
            .map(|(bytes, at)| Ok(is_superseded(frame.first.plus(at), RecordRef::parse(bytes)?.key)))
            .collect()
    }

    /// Takes all tickets, when nothing will be applied any more. Write-throughs stay in flight: whether they took
    /// effect is unknown.
    pub(crate) fn take_tickets(&mut self) -> Vec<WriteTicket> {
        std::mem::take(&mut self.tickets).into_values().collect()
    }

    /// Takes every frame that is written through and that the flusher has not taken.
    pub(crate) fn take_throughs(&mut self) -> Vec<QueuedFrame> {
        std::mem::take(&mut self.throughs).into()
    }

    /// Removes a frame that the store holds, or that ended otherwise. Journaled frames end in their order, except for
    /// those that are parked.
    ///
    /// A key is removed only if the frame's record is its newest: a newer pending record has to stay.
    pub(crate) fn retire(&mut self, frame: &QueuedFrame) -> Result<()> {
        if frame.location.is_none() {
            for bytes in slices_of(&frame.content, frame.count) {
                self.end_through(RecordRef::parse(bytes)?.key);
            }
        }
        // A write-through's notice has a `journal_end`, too, and no location; it says nothing about spilled frames.
        if let (Some(_), Some(end)) = (frame.location, frame.journal_end) {
            self.spilled_index.retire_up_to(end, frame.count);
        }
        self.remove(frame)
    }

    /// Moves a frame's keys to the dead-letter list, from which they stay readable.
    pub(crate) fn park(&mut self, frame: &QueuedFrame) -> Result<()> {
        for (numbered, at) in frame.records().zip(0_u32..) {
            let (seq, record) = numbered?;
            let value = match record.stored() {
                Some(_) => PendingValue::InDeadLetter { letter: frame.first, record: at },
                None => PendingValue::Removed,
            };
            self.add_dead_letter(&record.key, seq, value);
        }
        // The spilled index is told later, by `note_applied`: frames before this one may still be pending, and to
        // retire up to here would drop them as well.
        self.parked_end = self.parked_end.max(frame.journal_end);
        self.remove(frame)
    }

    /// Adds a dead letter's record of a key, unless the key has a newer one.
    pub(crate) fn add_dead_letter(&mut self, key: &Key, version: Seq, value: PendingValue) {
        let record = DeadLetterRecord { version, value };
        match self.dead_letters.get_mut(key) {
            // A frame that came before the rejected one in its batch is parked after it.
            Some(existing) if existing.version > version => {}
            Some(existing) => *existing = record,
            // A key that is a slice of its frame would keep the whole frame in memory.
            None => drop(self.dead_letters.insert(key.detached(), record)),
        }
    }

    /// Removes a key whose dead letters, up to `newest`, were replayed or discarded.
    pub(crate) fn remove_dead_letter(&mut self, key: &Key, newest: Seq) {
        if self.dead_letters.get(key).is_some_and(|record| record.version <= newest) {
            self.dead_letters.remove(key);
        }
    }

    /// Returns the queue's size, the batch that is being applied included.
    pub(crate) fn size(&self) -> QueueSize {
        self.size
    }

    /// Notes that nothing up to `applied` is pending any more.
    pub(crate) fn note_applied(&mut self, applied: Seq) {
        if let Some(end) = self.parked_end.take() {
            self.spilled_index.retire_up_to(end, 0);
        }
        match self.size.records {
            0 => self.commits.clear(),
            _ => self.commits.drop_before(applied.next()),
        }
    }

    /// Returns the queue's figures.
    pub(crate) fn stats(&self, now: Moment) -> QueueStats {
        let QueueSize { records, bytes } = self.size;
        QueueStats { records, bytes, oldest_age: self.commits.oldest_age(now) }
    }

    /// Returns the last committed sequence number.
    pub(crate) fn last_committed(&self) -> Seq {
        self.last_committed
    }

    fn extend_spilled(&mut self, last: Seq, after: Seq) {
        self.spilled = Some(match self.spilled {
            Some((from, _)) => (from, last),
            None => (after, last),
        });
    }

    /// Notes, for write-throughs that are in flight, that a frame which is written behind has newer records of their
    /// keys. Memory has the newer value then, and must not go back to the older one when the store confirms it.
    fn supersede_throughs(&mut self, frame: &QueuedFrame) -> Result<()> {
        // Most layers write nothing through, and then a put parses no record here.
        if self.in_flight.is_empty() || frame.location.is_none() {
            return Ok(());
        }
        for (bytes, at) in slices_of(&frame.content, frame.count).zip(0_u64..) {
            let record = RecordRef::parse(bytes)?;
            if let Some(in_flight) = self.in_flight.get_mut(record.key).filter(|_| record.is_update()) {
                in_flight.superseded_by = frame.first.plus(at);
            }
        }
        Ok(())
    }

    fn remove(&mut self, frame: &QueuedFrame) -> Result<()> {
        self.uncount(frame);
        match frame.packed_at {
            Some(at) => self.packed.retire(frame, at),
            None => Ok(()),
        }
    }

    fn begin_through(&mut self, frame: &QueuedFrame) -> Result<()> {
        for numbered in frame.records() {
            let (_, record) = numbered?;
            self.in_flight.entry(record.key).or_default().count += 1;
        }
        Ok(())
    }

    fn end_through(&mut self, key: &[u8]) {
        if let Some(in_flight) = self.in_flight.get_mut(key) {
            in_flight.count -= 1;
            if in_flight.count == 0 {
                self.in_flight.remove(key);
            }
        }
    }

    fn count(&mut self, frame: &QueuedFrame) {
        self.size.records += u64::from(frame.count);
        self.size.bytes += frame.bytes;
    }

    fn uncount(&mut self, frame: &QueuedFrame) {
        let bytes = frame.bytes;
        self.size.records = self.size.records.saturating_sub(u64::from(frame.count));
        self.size.bytes = self.size.bytes.saturating_sub(bytes);
        // A frame that was read back counts in the queue and took no memory of the budget.
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

    /// Returns the location of the frame `seq` in the journal.
    fn at(seq: u64) -> Location {
        Location { segment: 1, offset: 4096 + seq * 128 }
    }

    /// Returns the number in memory, and the frames of the journal that may be newer.
    fn look_up(pending: &mut Pending) -> (Option<u64>, Vec<Location>) {
        let PendingLookup { state, candidates } = pending.find(&key(), None);
        let version = match state {
            KeyState::Pending { version, .. } => Some(version.0),
            KeyState::InFlightThrough | KeyState::Absent => None,
        };
        (version, candidates)
    }

    #[test]
    fn the_newest_of_a_keys_records_counts_wherever_it_is() {
        let mut pending = Pending::default();
        pending.try_add(frame(1, true), None, 1 << 20).unwrap();
        assert_eq!(look_up(&mut pending), (Some(1), vec![]));
        for seq in [2, 3] {
            assert!(pending.try_add(frame(seq, true), None, 0).unwrap(), "left to the journal");
        }
        assert_eq!(look_up(&mut pending), (Some(1), vec![at(3), at(2)]));
        assert!(pending.note_read_back(Seq(3)), "the flusher has caught up");
        pending.try_add(frame(4, true), None, 1 << 20).unwrap();
        assert_eq!(look_up(&mut pending), (Some(4), vec![]), "what is in memory is newer");
        // The flusher has them in this order.
        let first = pending.pop_before(None).unwrap();
        for (ended, left) in [(first, vec![at(3), at(2)]), (frame(2, true), vec![at(3)])] {
            pending.retire(&ended).unwrap();
            let PendingLookup { candidates, .. } = pending.find(&key(), None);
            assert!(candidates.is_empty() && look_up(&mut pending).0 == Some(4));
            assert_eq!(pending.spilled_index.find(key().as_bytes(), None, None), left);
        }
        pending.retire(&frame(3, true)).unwrap();
        assert_eq!(look_up(&mut pending), (Some(4), vec![]));
        assert!(pending.spilled_index.is_empty());
    }

    /// A frame was parked, and then a write-through before it was refused, both before the apply: what was still to be
    /// applied must not be forgotten by that.
    #[test]
    fn what_ends_before_its_turn_takes_nothing_along() {
        let mut pending = Pending::default();
        pending.try_add(frame(1, false), None, 1 << 20).unwrap();
        for seq in [2, 3, 4] {
            pending.try_add(frame(seq, true), None, 0).unwrap();
        }
        pending.park(&frame(4, true)).unwrap();
        pending.refuse_through(&frame(1, false)).unwrap();
        assert_eq!(look_up(&mut pending), (Some(4), vec![at(4), at(3), at(2)]));
        pending.retire(&frame(2, true)).unwrap();
        assert_eq!(look_up(&mut pending), (Some(4), vec![at(4), at(3)]));
        pending.retire(&frame(3, true)).unwrap();
        pending.note_applied(Seq(4));
        assert_eq!(look_up(&mut pending), (Some(4), vec![]), "the dead letter is left");
        pending.remove_dead_letter(&key(), Seq(4));
        assert_eq!(look_up(&mut pending), (None, vec![]));
        assert_eq!(pending.size(), QueueSize::default());
    }

    #[test]
    fn a_write_through_is_superseded_by_what_was_written_behind_meanwhile_and_by_nothing_else() {
        for memory_bytes_max in [0, 1 << 20] {
            let mut pending = Pending::default();
            pending.try_add(frame(1, true), None, memory_bytes_max).unwrap();
            let through = [frame(2, false), frame(4, false)];
            pending.try_add(through[0].clone(), None, memory_bytes_max).unwrap();
            pending.try_add(frame(3, true), None, memory_bytes_max).unwrap();
            pending.try_add(through[1].clone(), None, memory_bytes_max).unwrap();
            assert_eq!(pending.superseded(&through[0]).unwrap(), [true]);
            assert_eq!(pending.superseded(&through[1]).unwrap(), [false]);
            through.iter().for_each(|frame| pending.retire(frame).unwrap());
            assert!(pending.in_flight.is_empty());
        }
    }

    /// The flusher saw that nothing was spilled; then a write-behind was committed and spilled, and a write-through
    /// behind it was queued in memory. The flusher took the write-through, the watermark passed the acknowledged
    /// write-behind, and no later batch could bring it to the store any more. Found by the simulation.
    #[test]
    fn a_frame_in_memory_does_not_overtake_one_that_was_spilled_unseen() {
        let mut pending = Pending::default();
        pending.try_add(frame(1, false), None, 0).unwrap();
        assert!(pending.try_add(frame(2, true), None, 0).unwrap(), "beyond the memory budget");
        pending.try_add(frame(3, false), None, 0).unwrap();
        assert_eq!(pending.front_before(None).map(|frame| frame.first), Some(Seq(1)));
        assert!(pending.pop_before(None).is_some());
        assert!(pending.front_before(None).is_none(), "2 comes first, from the journal");
        assert_eq!(pending.front_before(Some(Seq(4))).map(|frame| frame.first), Some(Seq(3)));
    }
}
