//! The index of records that are in the journal alone: found there at an opening, or spilled because memory was full.
//!
//! It has no keys, but eight bytes a record: a fragment of the key's hash, and the frame's position. So it cannot tell
//! that a key is here, only which frames may have it, newest first; the caller reads those frames and compares. Two
//! keys that share a fragment cost a read and never give a wrong answer.
//!
//! Records arrive in the journal's order and are retired in it. They are partitioned by their hash, appended to their
//! partition unsorted, and sorted when somebody looks a key up: so adding a record costs the same whatever the size of
//! the index, and nothing as large as all of it is ever copied. What is retired is recognised by its position alone,
//! and swept a partition at a time.
//!
//! An opening fills several indexes in parallel, each from some segments. They share one hasher and one numbering of
//! positions, so that appending one to another moves its chunks and copies no slot.

use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::mem;
use std::ops::Range;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::{Key, Seq};
use crate::journal::frame::{FRAME_ALIGN_BYTES, Location, SoundFrame};
use crate::journal::scan::FrameVisitor;
use crate::queue::queued::QueueSize;
use crate::queue::record::{Operation, RecordRef};
use crate::safeguard::Safeguard;
use crate::seam::random::HashBuilder;

/// The number of partitions: few enough that the ends to append to stay in a processor's caches, and so many that
/// sorting one takes less than a millisecond with ten million records.
const PARTITIONS: usize = 1 << PARTITION_BITS;
const PARTITION_BITS: u32 = 10;
/// The bits of a slot that are its frame's position; the others are of its key's hash.
///
/// A slot with fields of their own for hash and position would take 16 bytes instead of 8, and so would each record
/// here: that is more than the 3 % a plain entry may cost.
const POSITION_BITS: u32 = 40;
const POSITION_MASK: u64 = (1 << POSITION_BITS) - 1;
/// The unsorted slots that a partition may have when it is searched, beside an eighth of its sorted ones.
const UNSORTED_MAX: usize = 64;
/// The most frames that one search returns.
const CANDIDATES_MAX: usize = 4;
/// The least and the most slots of a chunk.
const CHUNK_SLOTS_MIN: usize = 4;
const CHUNK_SLOTS_MAX: usize = 64;
/// The records that are staged before they are partitioned.
const STAGED_MAX: usize = 256;

/// The index of spilled records.
pub(crate) struct SpilledIndex {
    /// Empty while the index is.
    partitions: Vec<Partition>,
    /// The last records, by hash and position, which are in no partition yet. Each goes to memory far from the others',
    /// and the waits for it overlap if several are written together.
    staging: Vec<(u64, u64)>,
    hasher: HashBuilder,
    /// The bits of a hash that count; all of them, except where a test wants keys to share their fragments.
    hash_mask: u64,
    /// The segments that have frames here, each with the position of its begin. Positions are offsets in units of the
    /// frames' alignment, and go on from segment to segment.
    segments: VecDeque<(u64, u64)>,
    /// The end of all positions.
    end: u64,
    /// Everything before this position is retired.
    low: u64,
    /// The number of slots, those that are retired and not swept included.
    slots: usize,
    /// The number of retired records that no sweep was made for.
    unswept: usize,
    /// The next partition to sweep.
    next_sweep: usize,
}

/// Slots, each with a fragment of the key's hash in its upper bits and the frame's position in the lower ones.
#[derive(Default)]
struct Partition {
    sorted: Vec<u64>,
    /// Slots later in the journal than the sorted ones, in their order of arrival. They are in chunks, so that nothing
    /// is copied when there are more, and little memory is reserved.
    unsorted: Vec<Vec<u64>>,
}

impl Default for SpilledIndex {
    fn default() -> Self {
        SpilledIndex::new(u64::MAX)
    }
}

impl SpilledIndex {
    /// Returns an empty index in which only these bits of a key's hash count.
    pub(crate) fn new(hash_mask: u64) -> SpilledIndex {
        SpilledIndex {
            partitions: Vec::new(),
            staging: Vec::new(),
            hasher: HashBuilder::default(),
            hash_mask,
            segments: VecDeque::new(),
            end: 0,
            low: 0,
            slots: 0,
            unswept: 0,
            next_sweep: 0,
        }
    }

    /// Returns true if nothing is here.
    pub(crate) fn is_empty(&self) -> bool {
        self.partitions.is_empty()
    }

    /// Returns the position for the records of the next frame, which lies behind all that came before.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] if the index has no position left.
    pub(crate) fn begin_frame(&mut self, location: Location) -> Result<u64> {
        let units = location.offset / FRAME_ALIGN_BYTES;
        let position = match self.begin_of_last(location.segment).map(|begin| begin + units) {
            Some(position) if position < POSITION_MASK => position,
            _ => self.make_room(location.segment, units)?,
        };
        debug_assert!(position >= self.end, "frames come in the journal's order");
        self.end = position + 1;
        Ok(position)
    }

    /// Adds a record of the frame at `position`, if it updates its key.
    #[inline]
    pub(crate) fn add(&mut self, record: &RecordRef<'_>, position: u64) {
        // Notices and commands have no value that a read could want.
        if !record.is_update() {
            return;
        }
        if self.staging.len() >= STAGED_MAX {
            self.partition_staged();
        }
        self.staging.push((self.hash(record.key), position));
        self.slots += 1;
    }

    /// Moves the staged records to their partitions.
    fn partition_staged(&mut self) {
        for (hash, position) in self.staging.drain(..) {
            if let Some(partition) = self.partitions.get_mut(partition_of(hash)) {
                partition.push(slot_of(hash, position));
            }
        }
    }

    /// Returns an empty index that can be appended to this one, for what lies behind so many bytes of the journal.
    pub(crate) fn empty_part(&self, bytes_before: u64) -> SpilledIndex {
        let end = bytes_before.div_ceil(FRAME_ALIGN_BYTES);
        SpilledIndex { hasher: self.hasher.clone(), end, ..SpilledIndex::new(self.hash_mask) }
    }

    /// Appends a part of which nothing is retired, as if each of its records had been added here.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] if the part outgrew the positions.
    pub(crate) fn append(&mut self, mut part: SpilledIndex) -> Result<()> {
        let Some((begin, _)) = part.segments.front() else { return Ok(()) };
        if *begin < self.end {
            // The part rebased its positions, so they are no longer those of this index.
            return Err(outgrown());
        }
        part.partition_staged();
        self.partition_staged();
        if self.is_empty() {
            *self = part;
            return Ok(());
        }
        for (mine, its) in self.partitions.iter_mut().zip(part.partitions) {
            mine.unsorted.extend(its.unsorted);
        }
        self.segments.extend(part.segments);
        self.slots += part.slots;
        self.end = part.end;
        Ok(())
    }

    /// Returns the frames that may have a record of a key, newest first and at most [`CANDIDATES_MAX`]: those behind
    /// the frame at `after`, and before `before`.
    pub(crate) fn find(
        &mut self,
        key: &[u8],
        after: Option<Location>,
        before: Option<Location>,
    ) -> Vec<Location> {
        if self.is_empty() {
            return Vec::new();
        }
        self.partition_staged();
        let hash = self.hash(key);
        let from = after.map_or(0, |after| self.position_at(after.behind(FRAME_ALIGN_BYTES))).max(self.low);
        let to = before.map_or(self.end, |before| self.position_at(before));
        let Some(partition) = self.partitions.get_mut(partition_of(hash)) else { return Vec::new() };
        let positions = partition.find(&(slot_of(hash, from)..slot_of(hash, to)));
        positions.into_iter().filter_map(|position| self.location_of(position)).collect()
    }

    /// Retires everything before `end`, which are `records` since the last call.
    pub(crate) fn retire_up_to(&mut self, end: Location, records: u32) {
        if self.is_empty() {
            return;
        }
        self.low = self.low.max(self.position_at(end));
        // Only what ended is retired: the same keys may have newer records behind it.
        let all_retired = self.low >= self.end || !Safeguard::RetireByNumber.holds();
        if all_retired {
            let hasher = mem::take(&mut self.hasher);
            *self = SpilledIndex { hasher, ..SpilledIndex::new(self.hash_mask) };
            return;
        }
        // A segment goes when another one begins before what is left.
        while self.segments.get(1).is_some_and(|(begin, _)| *begin <= self.low) {
            self.segments.pop_front();
        }
        self.partition_staged();
        // One partition for each of so many records as it has, so that a frame's end never sweeps the whole index.
        self.unswept += records as usize;
        let share = (self.slots / PARTITIONS).max(1);
        for _ in 0..PARTITIONS.min(self.unswept / share) {
            self.sweep_one();
        }
        self.unswept %= share;
    }

    /// Removes what is retired from one of the partitions.
    fn sweep_one(&mut self) {
        let (low, next) = (self.low, (self.next_sweep + 1) % PARTITIONS);
        if let Some(partition) = self.partitions.get_mut(self.next_sweep) {
            self.slots -= partition.sweep(low);
        }
        self.next_sweep = next;
    }

    fn hash(&self, key: &[u8]) -> u64 {
        let hash = self.hasher.hash_one(key);
        // The upper bits choose the partition, and a hasher for tables may be weak there.
        (hash ^ hash >> 32).wrapping_mul(0x9E37_79B9_7F4A_7C15) & self.hash_mask
    }

    /// Begins a segment, and rebases the positions if they would run out. Returns the position.
    fn make_room(&mut self, segment: u64, units: u64) -> Result<u64> {
        // Not before the first frame: most layers never spill, and 1,024 partitions take 48 KiB.
        if self.partitions.is_empty() {
            self.partitions.resize_with(PARTITIONS, Partition::default);
        }
        if self.end.saturating_add(units) >= POSITION_MASK {
            self.rebase();
        }
        let begin = self.begin_of_last(segment).unwrap_or(self.end);
        let position = begin.saturating_add(units);
        if position >= POSITION_MASK {
            return Err(outgrown());
        }
        if self.begin_of_last(segment).is_none() {
            self.segments.push_back((begin, segment));
        }
        Ok(position)
    }

    /// Moves all positions down by what is retired.
    fn rebase(&mut self) {
        let by = self.segments.front().map_or(self.end, |(begin, _)| *begin);
        self.partition_staged();
        for partition in &mut self.partitions {
            self.slots -= partition.sweep(self.low);
            partition.slots_mut().for_each(|slot| *slot -= by);
        }
        self.segments.iter_mut().for_each(|(begin, _)| *begin -= by);
        self.low = self.low.saturating_sub(by);
        self.end -= by;
    }

    /// Returns the position of a segment's begin, if it is the last one here.
    fn begin_of_last(&self, segment: u64) -> Option<u64> {
        self.segments.back().filter(|(_, number)| *number == segment).map(|(begin, _)| *begin)
    }

    /// Returns the first position at or behind a location.
    fn position_at(&self, location: Location) -> u64 {
        let at = self.segments.partition_point(|(_, number)| *number < location.segment);
        let next = self.segments.get(at + 1).map_or(self.end, |(begin, _)| *begin);
        match self.segments.get(at) {
            Some((begin, number)) if *number == location.segment => {
                next.min(begin + location.offset.div_ceil(FRAME_ALIGN_BYTES))
            }
            // The location's segment has no frames here: the next one that has some lies behind it.
            Some((begin, _)) => *begin,
            None => self.end,
        }
    }

    fn location_of(&self, position: u64) -> Option<Location> {
        let at = self.segments.partition_point(|(begin, _)| *begin <= position).checked_sub(1)?;
        let (begin, segment) = *self.segments.get(at)?;
        Some(Location { segment, offset: (position - begin) * FRAME_ALIGN_BYTES })
    }
}

impl Partition {
    #[inline]
    fn push(&mut self, slot: u64) {
        match self.unsorted.last_mut() {
            Some(chunk) if chunk.len() < chunk.capacity() => chunk.push(slot),
            last => {
                let slots = last.map_or(0, |chunk| chunk.len() * 2).clamp(CHUNK_SLOTS_MIN, CHUNK_SLOTS_MAX);
                let mut chunk = Vec::with_capacity(slots);
                chunk.push(slot);
                self.unsorted.push(chunk);
            }
        }
    }

    /// Returns the positions of the newest slots in a range.
    fn find(&mut self, range: &Range<u64>) -> Vec<u64> {
        let unsorted: usize = self.unsorted.iter().map(Vec::len).sum();
        // Few unsorted slots are searched one by one: to sort them for every look-up would cost more.
        if unsorted > UNSORTED_MAX + self.sorted.len() / 8 {
            self.sort(unsorted);
        }
        let from = self.sorted.partition_point(|slot| *slot < range.start);
        let to = self.sorted.partition_point(|slot| *slot < range.end);
        let sorted = self.sorted.get(from..to).unwrap_or_default();
        let unsorted = self.unsorted.iter().rev().flat_map(|chunk| chunk.iter().rev());
        let unsorted = unsorted.filter(|slot| range.contains(*slot));
        let newest_first = unsorted.chain(sorted.iter().rev()).map(|slot| slot & POSITION_MASK);
        let mut positions: Vec<u64> = newest_first.take(CANDIDATES_MAX).collect();
        // A frame may have several records of a key.
        positions.dedup();
        positions
    }

    #[allow(clippy::stable_sort_primitive, reason = "it finds what is in order already, and merges the rest")]
    fn sort(&mut self, unsorted: usize) {
        self.sorted.reserve_exact(unsorted);
        mem::take(&mut self.unsorted).into_iter().for_each(|chunk| self.sorted.extend(chunk));
        self.sorted.sort();
    }

    /// Removes the slots before the position `low`. Returns how many they were.
    fn sweep(&mut self, low: u64) -> usize {
        let before = self.slots_mut().count();
        for slots in self.unsorted.iter_mut().chain([&mut self.sorted]) {
            slots.retain(|slot| slot & POSITION_MASK >= low);
        }
        self.unsorted.retain(|chunk| !chunk.is_empty());
        // Not at every sweep: the partition may fill again.
        if self.sorted.capacity() / 4 > self.sorted.len() {
            self.sorted.shrink_to(self.sorted.len() * 2);
        }
        before - self.slots_mut().count()
    }

    fn slots_mut(&mut self) -> impl Iterator<Item = &mut u64> {
        self.sorted.iter_mut().chain(self.unsorted.iter_mut().flatten())
    }
}

fn outgrown() -> Error {
    let context = "the backlog that is in the journal alone has outgrown its index, which has room for 8 TiB";
    Error::new(ErrorKind::Unsupported, context)
}

fn partition_of(hash: u64) -> usize {
    (hash >> (u64::BITS - PARTITION_BITS)) as usize
}

/// Packs the bits of a hash below those that choose the partition, and a position.
fn slot_of(hash: u64, position: u64) -> u64 {
    hash << PARTITION_BITS >> POSITION_BITS << POSITION_BITS | position
}

/// The records of a journal that the store lacks, collected while the journal is checked at an opening.
///
/// It has the keys' hashes and the frames' positions; values stay in the journal. Several of these may each visit a
/// part of the journal.
#[derive(Default)]
pub(crate) struct UnappliedRecords {
    /// The watermark of the store when it was asked.
    pub(crate) applied: Seq,
    /// The location of the first frame that the store lacks, if there is one.
    pub(crate) begins: Option<Location>,
    /// The number of the last record.
    pub(crate) last: Seq,
    pub(crate) size: QueueSize,
    pub(crate) index: SpilledIndex,
    pub(crate) unjournaled: Unjournaled,
}

/// Ranges of numbers whose values the journal does not hold: of write-throughs, and of writes that were refused.
#[derive(Default)]
pub(crate) struct Unjournaled(Vec<(Seq, Seq)>);

/// The most ranges that are remembered; more are named by none.
const UNJOURNALED_MAX: usize = 64;

impl Unjournaled {
    /// Notes that the numbers from `first` to `last`, which come after all noted before, are not in the journal.
    pub(crate) fn note(&mut self, first: Seq, last: Seq) {
        if let Some(before) = self.0.last_mut().filter(|before| before.1.next() == first) {
            before.1 = last;
        } else if self.0.len() < UNJOURNALED_MAX {
            self.0.push((first, last));
        }
    }

    /// Returns the ranges after `after` and up to `until`.
    pub(crate) fn within(&self, after: Seq, until: Seq) -> Vec<(Seq, Seq)> {
        let clipped = self.0.iter().map(|(first, last)| ((*first).max(after.next()), (*last).min(until)));
        clipped.filter(|(first, last)| first <= last).collect()
    }
}

impl UnappliedRecords {
    /// Returns an empty collection for what lies behind `applied`; its index has this hash mask.
    pub(crate) fn after(applied: Seq, hash_mask: u64) -> UnappliedRecords {
        let index = SpilledIndex::new(hash_mask);
        UnappliedRecords { applied, index, ..UnappliedRecords::default() }
    }

    /// Returns an empty collection that can be appended to this one, for what lies behind so many bytes of the journal.
    pub(crate) fn empty_part(&self, bytes_before: u64) -> UnappliedRecords {
        let index = self.index.empty_part(bytes_before);
        UnappliedRecords { applied: self.applied, index, ..UnappliedRecords::default() }
    }

    /// Appends a part that lies behind this one in the journal.
    ///
    /// # Errors
    /// As [`SpilledIndex::append`].
    pub(crate) fn with(mut self, part: UnappliedRecords) -> Result<UnappliedRecords> {
        self.begins = self.begins.or(part.begins);
        self.last = self.last.max(part.last);
        self.size.records += part.size.records;
        self.size.bytes += part.size.bytes;
        self.index.append(part.index)?;
        part.unjournaled.0.into_iter().for_each(|(first, last)| self.unjournaled.note(first, last));
        Ok(self)
    }
}

impl FrameVisitor for UnappliedRecords {
    #[inline]
    fn visit(&mut self, frame: &SoundFrame<'_>) -> Result<()> {
        if frame.header.last() <= self.applied {
            return Ok(());
        }
        self.begins.get_or_insert(frame.location);
        let before = frame.header.prev.max(self.applied).next();
        if before < frame.header.first {
            self.unjournaled.note(before, frame.header.first.before());
        }
        self.last = frame.header.last();
        self.size.records += u64::from(frame.header.count);
        self.size.bytes += frame.header.bytes_on_disk();
        let position = self.index.begin_frame(frame.location)?;
        let (first, last) = (frame.header.first, frame.header.last());
        let (index, unjournaled) = (&mut self.index, &mut self.unjournaled);
        let mut notices = false;
        frame.each_record(|bytes| {
            let record = RecordRef::parse(bytes)?;
            notices |= record.operation == Operation::Notice;
            // Parsing leaves the key unchecked, and a record that cannot be applied has to be found by the opening,
            // not by the flusher.
            Key::check(record.key)?;
            index.add(&record, position);
            Ok(())
        })?;
        // A notice says that there was a write-through, and not what it wrote.
        if notices {
            unjournaled.note(first, last);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: u64 = 50;
    /// Keys share sixteen fragments, so that what is rare elsewhere is tried all the time.
    const SHARED: u64 = 0xF << 58;

    /// Returns indexes with the shipped mask and with that of the simulation.
    fn empty_indexes() -> [SpilledIndex; 2] {
        [u64::MAX, SHARED].map(SpilledIndex::new)
    }

    /// An index, and the frames that it has to know.
    struct Model {
        index: SpilledIndex,
        frames: Vec<(Location, u64)>,
        next: Location,
    }

    fn key(number: u64) -> Vec<u8> {
        format!("n\0{number}").into_bytes()
    }

    fn take(index: &mut SpilledIndex, location: Location, number: u64) {
        let key = key(number);
        let record = RecordRef { operation: Operation::Put, coalesce: true, key: &key, value: b"" };
        let position = index.begin_frame(location).unwrap();
        index.add(&record, position);
    }

    impl Model {
        fn new(index: SpilledIndex) -> Model {
            Model { index, frames: Vec::new(), next: Location { segment: 7, offset: 4096 } }
        }

        fn take(&mut self, number: u64, bytes: u64) {
            if self.next.offset > 100_000 {
                // A segment may have none of the frames that come here.
                self.next = Location { segment: self.next.segment + 1 + bytes % 2, offset: 4096 };
            }
            take(&mut self.index, self.next, number);
            self.frames.push((self.next, number));
            self.next = self.next.behind(bytes.next_multiple_of(FRAME_ALIGN_BYTES));
        }

        fn end(&mut self, frames: usize) {
            for (location, _) in self.frames.drain(..frames) {
                self.index.retire_up_to(location.behind(FRAME_ALIGN_BYTES), 1);
            }
        }

        /// Collects everything that is found of a key, a few at a time.
        fn found(&mut self, number: u64, after: Option<Location>) -> Vec<Location> {
            let (mut all, mut before) = (Vec::new(), None);
            loop {
                let some = self.index.find(&key(number), after, before);
                assert!(some.len() <= CANDIDATES_MAX);
                let Some(last) = some.last() else { return all };
                before = Some(*last);
                all.extend(some);
            }
        }

        fn check(&mut self, number: u64, after: Option<Location>) {
            let found = self.found(number, after);
            assert!(
                found.is_sorted_by(|newer, older| newer > older),
                "newest first, and none twice: {found:?}"
            );
            for location in &found {
                assert!(self.frames.iter().any(|(live, _)| live == location), "{location:?} has ended");
                assert!(after.is_none_or(|after| *location > after));
            }
            let live = self.frames.iter().filter(|(_, one)| *one == number).map(|(location, _)| *location);
            for location in live.filter(|location| after.is_none_or(|after| *location > after)) {
                assert!(found.contains(&location), "{location:?} is missing among {found:?}");
            }
        }
    }

    #[test]
    fn every_frame_that_may_have_a_key_is_found_until_it_ends() {
        let near_the_end = empty_indexes().map(|index| SpilledIndex { end: POSITION_MASK - 10_000, ..index });
        let near_the_end = near_the_end.map(|index| (index, true));
        for (index, is_near) in empty_indexes().map(|index| (index, false)).into_iter().chain(near_the_end) {
            let mut model = Model::new(index);
            let (mut drawn, mut was_rebased) = (1_u64, false);
            // So many that not all of them end by chance.
            (0..200).for_each(|number| model.take(number % KEYS, 100));
            for round in 0..20_000_u64 {
                drawn = drawn.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let (which, number, bytes) = (drawn >> 60, (drawn >> 40) % KEYS, (drawn >> 50) % 300 + 8);
                match which {
                    0..=10 => {
                        let end = model.index.end;
                        model.take(number, bytes);
                        was_rebased |= model.index.end < end;
                    }
                    // Some times all of it ends.
                    11 if round % 64 == 0 && round > 2_000 => model.end(model.frames.len()),
                    11..=13 => model.end(model.frames.len().min(bytes as usize % 6)),
                    14 => model.check(number, None),
                    _ => {
                        let middle = model.frames.get(model.frames.len() / 2).map(|(location, _)| *location);
                        model.check(number, middle);
                    }
                }
            }
            let records = model.frames.len();
            assert_eq!(was_rebased, is_near);
            assert!(model.index.slots <= 2 * records + 2 * PARTITIONS, "{} slots", model.index.slots);
            model.end(records);
            assert!(model.index.is_empty(), "nothing is kept");
        }
    }

    /// One key is written over and over: each look has to find its newest record at once.
    #[test]
    fn a_look_at_a_key_with_many_records_returns_a_few() {
        for index in empty_indexes() {
            let mut model = Model::new(index);
            (0..100_000).for_each(|_| model.take(1, 8));
            let newest = model.frames.last().unwrap().0;
            let found = model.index.find(&key(1), None, None);
            assert_eq!((found.len(), found.first()), (CANDIDATES_MAX, Some(&newest)));
        }
    }

    #[test]
    fn a_backlog_that_outgrows_the_index_is_an_error() {
        let mut index = SpilledIndex::default();
        take(&mut index, Location { segment: 1, offset: 8 }, 1);
        let far = Location { segment: 2, offset: POSITION_MASK * FRAME_ALIGN_BYTES };
        assert_eq!(index.begin_frame(far).unwrap_err().kind(), ErrorKind::Unsupported);
        assert_eq!(index.find(&key(1), None, None), [Location { segment: 1, offset: 8 }]);
    }

    #[test]
    fn a_record_takes_no_more_than_16_bytes() {
        let mut index = SpilledIndex::default();
        const COUNT: u64 = 200_000;
        for number in 0..COUNT {
            let position = index
                .begin_frame(Location { segment: number / 1_000, offset: number % 1_000 * 192 })
                .unwrap();
            // Spread as the hashes of keys that share no fragments are.
            let hash = (number + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let partition = index.partitions.get_mut(partition_of(hash)).unwrap();
            partition.push(slot_of(hash, position));
        }
        let chunks = index.partitions.iter().flat_map(|partition| &partition.unsorted);
        let of_chunks = chunks.map(|chunk| size_of::<Vec<u64>>() + chunk.capacity() * size_of::<u64>());
        let partitions = index.partitions.capacity() * size_of::<Partition>();
        let taken = of_chunks.sum::<usize>() + partitions;
        assert!(taken as u64 <= 16 * COUNT + 60_000, "{taken} bytes");
    }

    /// An opening has several parts, each of some segments. They begin at positions of their own; apart from that the
    /// whole is as if one index had taken everything.
    #[test]
    fn parts_appended_are_as_if_one_had_taken_everything() {
        const FRAMES: u64 = 3_000;
        let end = FRAME_ALIGN_BYTES * 100 + 4096;
        // Few records a segment in some partitions, so that what was not sorted is looked at, too.
        let location =
            |at: u64| Location { segment: 7 + at / 100, offset: 4096 + at % 100 * FRAME_ALIGN_BYTES };
        let few = vec![0..0, 0..FRAMES];
        let many = vec![0..100, 100..900, 900..900, 900..2_000, 2_000..FRAMES];
        for (parts, mask) in
            [(few.clone(), SHARED), (few, u64::MAX), (many.clone(), SHARED), (many, u64::MAX)]
        {
            let mut whole = SpilledIndex::new(mask);
            let mut one = SpilledIndex { hasher: whole.hasher.clone(), ..SpilledIndex::new(mask) };
            for range in parts {
                let mut part = whole.empty_part(range.start / 100 * end);
                for at in range {
                    [&mut part, &mut one].into_iter().for_each(|index| take(index, location(at), at % KEYS));
                }
                whole.append(part).unwrap();
            }
            assert_eq!(whole.slots, one.slots);
            // Twice, since looking sorts; and then with more behind it, and less before it.
            for round in 0..4 {
                for number in 0..KEYS {
                    for (after, before) in [(None, None), (Some(location(150)), Some(location(2_050)))] {
                        let found = |index: &mut SpilledIndex| index.find(&key(number), after, before);
                        assert_eq!(found(&mut whole), found(&mut one), "key {number} in round {round}");
                    }
                }
                for index in [&mut whole, &mut one] {
                    if round == 1 {
                        (FRAMES..FRAMES + 500).for_each(|at| take(index, location(at), at % KEYS));
                        index.retire_up_to(location(1_234), 1_234);
                    }
                }
            }
            for index in [&mut whole, &mut one] {
                index.retire_up_to(location(FRAMES + 500), 2_266);
                assert!(index.is_empty(), "nothing is kept");
            }
        }
    }

    /// More than a position can count lies before a part, so it rebased its positions.
    #[test]
    fn a_part_that_outgrows_the_index_is_an_error() {
        let mut index = SpilledIndex::default();
        take(&mut index, Location { segment: 1, offset: 8 }, 1);
        let mut part = index.empty_part(POSITION_MASK * FRAME_ALIGN_BYTES);
        take(&mut part, Location { segment: 2, offset: 8 }, 2);
        assert_eq!(index.append(part).unwrap_err().kind(), ErrorKind::Unsupported);
        assert_eq!(index.find(&key(1), None, None), [Location { segment: 1, offset: 8 }]);
    }
}
