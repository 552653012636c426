//! Where in the journal the records are that are in the journal alone: found there at the opening, or left to it when
//! memory was full.
//!
//! It has no keys, but eight bytes a record: a piece of its key's hash, and the frame's place. So it cannot say that a
//! key is here, only which frames may have it, newest first; whoever asks reads them and compares. Two keys that share
//! a piece cost a read, never a lie.
//!
//! Records come in the journal's order and end in it. They are strewn over partitions by their hash and appended there,
//! and what was appended is sorted when somebody looks: so to take a record in costs the same whatever is here, and
//! nothing as large as all of it is ever copied. What has ended is told by its place alone, and swept a partition at a
//! time.
//!
//! At an opening there are several of these, each with the records of some segments. They have one way to hash and one
//! numbering of places, so that to append one to another is to hand over its pieces.

use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::mem;
use std::ops::Range;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::{Key, Seq};
use crate::journal::frame::{FRAME_ALIGN_BYTES, Location, SoundFrame};
use crate::journal::scan::FrameVisitor;
use crate::queue::queued::QueueSize;
use crate::queue::record::RecordRef;
use crate::safeguard::Safeguard;
use crate::seam::random::HashBuilder;

/// Into so many partitions records are strewn: few enough for the places to append to in a processor's caches, and so
/// many that to sort one of them takes less than a millisecond, with ten million records.
const PARTITIONS: usize = 1 << PARTITION_BITS;
const PARTITION_BITS: u32 = 10;
/// So many bits of a slot are its frame's place; the others are of its key's hash.
const PLACE_BITS: u32 = 40;
const PLACE_MASK: u64 = (1 << PLACE_BITS) - 1;
/// In the crate's tests keys share their pieces as a rule, so that what is rare elsewhere is tried all the time.
const HASH_MASK: u64 = if cfg!(any(test, forebay_simulation)) { 0xF << 58 } else { u64::MAX };
/// How many slots of a partition may be unsorted when somebody looks, beside an eighth of those that are sorted.
const UNSORTED_MAX: usize = 64;
/// How many places are told at a time.
const CANDIDATES_MAX: usize = 4;
/// How many slots a piece has at the least and at the most.
const PIECE_SLOTS_MIN: usize = 4;
const PIECE_SLOTS_MAX: usize = 64;
/// So many records are strewn at a time.
const UNSTREWN_MAX: usize = 256;

/// The index.
#[derive(Default)]
pub(crate) struct SpilledIndex {
    /// None while there is nothing.
    partitions: Vec<Partition>,
    /// The last records, by hash and place, that are in no partition yet: each one's place to append to is far from the
    /// others', and waiting for it costs less if several are waited for together.
    unstrewn: Vec<(u64, u64)>,
    hasher: HashBuilder,
    /// The segments that have frames here, each with the place at which it begins. Places are offsets in units of the
    /// frames' alignment, and go on from segment to segment.
    segments: VecDeque<(u64, u64)>,
    /// Behind the last place.
    end: u64,
    /// Before this place everything has ended.
    low: u64,
    /// How many slots there are, those that have ended and were not swept included.
    slots: usize,
    /// How many records have ended that no sweep was made for.
    unswept: usize,
    /// The partition to sweep next.
    next_sweep: usize,
}

/// Slots: in the upper bits a piece of the key's hash, in the lower ones the place.
#[derive(Default)]
struct Partition {
    /// In order.
    sorted: Vec<u64>,
    /// Later in the journal than those, as they came: in pieces, so that nothing is copied when there are more, and
    /// little is set aside.
    late: Vec<Vec<u64>>,
}

impl SpilledIndex {
    /// Whether nothing is here.
    pub(crate) fn is_empty(&self) -> bool {
        self.partitions.is_empty()
    }

    /// Takes the place of the next frame, for its records; it lies behind all that came before.
    pub(crate) fn place(&mut self, location: Location) -> Result<u64> {
        let units = location.offset / FRAME_ALIGN_BYTES;
        let place = match self.begin_of(location.segment).map(|begin| begin + units) {
            Some(place) if place < PLACE_MASK => place,
            _ => self.make_room(location.segment, units)?,
        };
        debug_assert!(place >= self.end, "frames come in the journal's order");
        self.end = place + 1;
        Ok(place)
    }

    /// Takes a record of the frame at `place`, if it updates its key.
    #[inline]
    pub(crate) fn take(&mut self, record: &RecordRef<'_>, place: u64) {
        if !record.is_update() {
            return;
        }
        if self.unstrewn.len() >= UNSTREWN_MAX {
            self.strew();
        }
        self.unstrewn.push((self.hash(record.key), place));
        self.slots += 1;
    }

    /// Brings every record to its partition.
    fn strew(&mut self) {
        for (hash, place) in self.unstrewn.drain(..) {
            if let Some(partition) = self.partitions.get_mut(partition_of(hash)) {
                partition.push(slot_of(hash, place));
            }
        }
    }

    /// Nothing, to be appended to this when it has taken what lies behind so many bytes of the journal.
    pub(crate) fn part(&self, bytes_before: u64) -> SpilledIndex {
        let end = bytes_before.div_ceil(FRAME_ALIGN_BYTES);
        SpilledIndex { hasher: self.hasher.clone(), end, ..SpilledIndex::default() }
    }

    /// Takes in a part, of which nothing has ended. It is as if each of its records had been taken.
    pub(crate) fn append(&mut self, mut part: SpilledIndex) -> Result<()> {
        let Some((begin, _)) = part.segments.front() else { return Ok(()) };
        if *begin < self.end {
            // Its places began anew.
            return Err(outgrown());
        }
        part.strew();
        self.strew();
        if self.is_empty() {
            *self = part;
            return Ok(());
        }
        for (mine, its) in self.partitions.iter_mut().zip(part.partitions) {
            mine.late.extend(its.late);
        }
        self.segments.extend(part.segments);
        self.slots += part.slots;
        self.end = part.end;
        Ok(())
    }

    /// Where a key's records may be, newest first, and no more than [`CANDIDATES_MAX`] of them: behind `after`, and
    /// before `before`.
    pub(crate) fn find(
        &mut self,
        key: &[u8],
        after: Option<Location>,
        before: Option<Location>,
    ) -> Vec<Location> {
        if self.is_empty() {
            return Vec::new();
        }
        self.strew();
        let hash = self.hash(key);
        let from = after.map_or(0, |after| self.place_at(after.behind(FRAME_ALIGN_BYTES))).max(self.low);
        let to = before.map_or(self.end, |before| self.place_at(before));
        let Some(partition) = self.partitions.get_mut(partition_of(hash)) else { return Vec::new() };
        let places = partition.find(&(slot_of(hash, from)..slot_of(hash, to)));
        places.into_iter().filter_map(|place| self.location_of(place)).collect()
    }

    /// Says that everything before `end`, `records` of it since the last time, has ended.
    pub(crate) fn pass(&mut self, end: Location, records: u32) {
        if self.is_empty() {
            return;
        }
        let passed = match Safeguard::RetireByNumber.holds() {
            true => self.place_at(end),
            // As if newer records of the same keys ended as well.
            false => self.end,
        };
        self.low = self.low.max(passed);
        if self.low >= self.end {
            let hasher = mem::take(&mut self.hasher);
            *self = SpilledIndex { hasher, ..SpilledIndex::default() };
            return;
        }
        // A segment goes when another one begins before what is left.
        while self.segments.get(1).is_some_and(|(begin, _)| *begin <= self.low) {
            self.segments.pop_front();
        }
        self.strew();
        self.unswept += records as usize;
        let share = (self.slots / PARTITIONS).max(1);
        for _ in 0..PARTITIONS.min(self.unswept / share) {
            self.sweep_one();
        }
        self.unswept %= share;
    }

    /// Lets go of what has ended in one of the partitions.
    fn sweep_one(&mut self) {
        let (low, next) = (self.low, (self.next_sweep + 1) % PARTITIONS);
        if let Some(partition) = self.partitions.get_mut(self.next_sweep) {
            self.slots -= partition.sweep(low);
        }
        self.next_sweep = next;
    }

    fn hash(&self, key: &[u8]) -> u64 {
        let hash = self.hasher.hash_one(key);
        // The upper bits decide, and a hasher for tables may be weak there.
        (hash ^ hash >> 32).wrapping_mul(0x9E37_79B9_7F4A_7C15) & HASH_MASK
    }

    /// Begins a segment, and begins places anew if they would run out. Returns the place.
    fn make_room(&mut self, segment: u64, units: u64) -> Result<u64> {
        if self.partitions.is_empty() {
            self.partitions.resize_with(PARTITIONS, Partition::default);
        }
        if self.end.saturating_add(units) >= PLACE_MASK {
            self.begin_anew();
        }
        let begin = self.begin_of(segment).unwrap_or(self.end);
        let place = begin.saturating_add(units);
        if place >= PLACE_MASK {
            return Err(outgrown());
        }
        if self.begin_of(segment).is_none() {
            self.segments.push_back((begin, segment));
        }
        Ok(place)
    }

    /// Moves all places down by what has ended.
    fn begin_anew(&mut self) {
        let by = self.segments.front().map_or(self.end, |(begin, _)| *begin);
        self.strew();
        for partition in &mut self.partitions {
            self.slots -= partition.sweep(self.low);
            partition.slots_mut().for_each(|slot| *slot -= by);
        }
        self.segments.iter_mut().for_each(|(begin, _)| *begin -= by);
        self.low = self.low.saturating_sub(by);
        self.end -= by;
    }

    /// Where a segment begins, if it is the last one here.
    fn begin_of(&self, segment: u64) -> Option<u64> {
        self.segments.back().filter(|(_, number)| *number == segment).map(|(begin, _)| *begin)
    }

    /// The place of what lies at or behind a location.
    fn place_at(&self, location: Location) -> u64 {
        let at = self.segments.partition_point(|(_, number)| *number < location.segment);
        let next = self.segments.get(at + 1).map_or(self.end, |(begin, _)| *begin);
        match self.segments.get(at) {
            Some((begin, number)) if *number == location.segment => {
                next.min(begin + location.offset.div_ceil(FRAME_ALIGN_BYTES))
            }
            Some((begin, _)) => *begin,
            None => self.end,
        }
    }

    fn location_of(&self, place: u64) -> Option<Location> {
        let at = self.segments.partition_point(|(begin, _)| *begin <= place).checked_sub(1)?;
        let (begin, segment) = *self.segments.get(at)?;
        Some(Location { segment, offset: (place - begin) * FRAME_ALIGN_BYTES })
    }
}

/// Keys' hashes and places; values stay in the journal.
#[derive(Default)]
pub(crate) struct UnappliedRecords {
    /// The watermark that the store told.
    pub(crate) applied: Seq,
    /// Where it begins, if there is any.
    pub(crate) begins: Option<Location>,
    /// The number of its last record.
    pub(crate) last: Seq,
    pub(crate) size: QueueSize,
    pub(crate) journaled: SpilledIndex,
}

impl UnappliedRecords {
    /// Nothing yet, of what lies behind `applied`.
    pub(crate) fn after(applied: Seq) -> UnappliedRecords {
        UnappliedRecords { applied, ..UnappliedRecords::default() }
    }

    /// Nothing yet, to be appended to this when it has heard of what lies behind so many bytes of the journal.
    pub(crate) fn part(&self, bytes_before: u64) -> UnappliedRecords {
        let journaled = self.journaled.part(bytes_before);
        UnappliedRecords { applied: self.applied, journaled, ..UnappliedRecords::default() }
    }

    /// With a part that was heard behind this.
    pub(crate) fn with(mut self, part: UnappliedRecords) -> Result<UnappliedRecords> {
        self.begins = self.begins.or(part.begins);
        self.last = self.last.max(part.last);
        self.size.records += part.size.records;
        self.size.bytes += part.size.bytes;
        self.journaled.append(part.journaled)?;
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
        self.last = frame.header.last();
        self.size.records += u64::from(frame.header.count);
        self.size.bytes += frame.header.bytes_on_disk();
        let place = self.journaled.place(frame.location)?;
        frame.each_record(|bytes| {
            let record = RecordRef::parse(bytes)?;
            Key::check(record.key)?;
            self.journaled.take(&record, place);
            Ok(())
        })
    }
}

impl Partition {
    #[inline]
    fn push(&mut self, slot: u64) {
        match self.late.last_mut() {
            Some(piece) if piece.len() < piece.capacity() => piece.push(slot),
            last => {
                let slots = last.map_or(0, |piece| piece.len() * 2).clamp(PIECE_SLOTS_MIN, PIECE_SLOTS_MAX);
                let mut piece = Vec::with_capacity(slots);
                piece.push(slot);
                self.late.push(piece);
            }
        }
    }

    /// The places of the newest slots in a range.
    fn find(&mut self, range: &Range<u64>) -> Vec<u64> {
        let late: usize = self.late.iter().map(Vec::len).sum();
        if late > UNSORTED_MAX + self.sorted.len() / 8 {
            self.sort(late);
        }
        let from = self.sorted.partition_point(|slot| *slot < range.start);
        let to = self.sorted.partition_point(|slot| *slot < range.end);
        let sorted = self.sorted.get(from..to).unwrap_or_default();
        let late = self.late.iter().rev().flat_map(|piece| piece.iter().rev());
        let late = late.filter(|slot| range.contains(*slot));
        let newest_first = late.chain(sorted.iter().rev()).map(|slot| slot & PLACE_MASK);
        let mut places: Vec<u64> = newest_first.take(CANDIDATES_MAX).collect();
        // A frame may have several records of a key.
        places.dedup();
        places
    }

    #[allow(clippy::stable_sort_primitive, reason = "it finds what is in order already, and merges the rest")]
    fn sort(&mut self, late: usize) {
        self.sorted.reserve_exact(late);
        mem::take(&mut self.late).into_iter().for_each(|piece| self.sorted.extend(piece));
        self.sorted.sort();
    }

    /// Lets go of what has ended; returns how much that was.
    fn sweep(&mut self, low: u64) -> usize {
        let before = self.slots_mut().count();
        for slots in self.late.iter_mut().chain([&mut self.sorted]) {
            slots.retain(|slot| slot & PLACE_MASK >= low);
        }
        self.late.retain(|piece| !piece.is_empty());
        if self.sorted.capacity() / 4 > self.sorted.len() {
            self.sorted.shrink_to(self.sorted.len() * 2);
        }
        before - self.slots_mut().count()
    }

    fn slots_mut(&mut self) -> impl Iterator<Item = &mut u64> {
        self.sorted.iter_mut().chain(self.late.iter_mut().flatten())
    }
}

fn outgrown() -> Error {
    let context = "the backlog that is in the journal alone has outgrown its index, which has room for 8 TiB";
    Error::new(ErrorKind::Unsupported, context)
}

fn partition_of(hash: u64) -> usize {
    (hash >> (u64::BITS - PARTITION_BITS)) as usize
}

/// The bits of a hash behind those that choose the partition, and a place.
fn slot_of(hash: u64, place: u64) -> u64 {
    hash << PARTITION_BITS >> PLACE_BITS << PLACE_BITS | place
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::record::Operation;

    const KEYS: u64 = 50;

    /// Beside the index, what it is to know.
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
        let place = index.place(location).unwrap();
        index.take(&record, place);
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
                self.index.pass(location.behind(FRAME_ALIGN_BYTES), 1);
            }
        }

        /// Everything that is told of a key, a few at a time.
        fn told(&mut self, number: u64, after: Option<Location>) -> Vec<Location> {
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
            let told = self.told(number, after);
            assert!(
                told.is_sorted_by(|newer, older| newer > older),
                "newest first, and none twice: {told:?}"
            );
            for location in &told {
                assert!(self.frames.iter().any(|(live, _)| live == location), "{location:?} has ended");
                assert!(after.is_none_or(|after| *location > after));
            }
            let live = self.frames.iter().filter(|(_, one)| *one == number).map(|(location, _)| *location);
            for location in live.filter(|location| after.is_none_or(|after| *location > after)) {
                assert!(told.contains(&location), "{location:?} is missing among {told:?}");
            }
        }
    }

    #[test]
    fn every_frame_that_may_have_a_key_is_told_until_it_ends() {
        let near_the_end_of_places = SpilledIndex { end: PLACE_MASK - 10_000, ..SpilledIndex::default() };
        for (index, is_near) in [(SpilledIndex::default(), false), (near_the_end_of_places, true)] {
            let mut model = Model::new(index);
            let (mut drawn, mut began_anew) = (1_u64, false);
            // So many that not all of them end by chance.
            (0..200).for_each(|number| model.take(number % KEYS, 100));
            for round in 0..20_000_u64 {
                drawn = drawn.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let (which, number, bytes) = (drawn >> 60, (drawn >> 40) % KEYS, (drawn >> 50) % 300 + 8);
                match which {
                    0..=10 => {
                        let end = model.index.end;
                        model.take(number, bytes);
                        began_anew |= model.index.end < end;
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
            assert_eq!(began_anew, is_near);
            assert!(model.index.slots <= 2 * records + 2 * PARTITIONS, "{} slots", model.index.slots);
            model.end(records);
            assert!(model.index.is_empty(), "nothing is kept");
        }
    }

    /// One key is written over and over: each look has to find its newest record at once.
    #[test]
    fn a_look_at_a_key_with_many_records_tells_a_few() {
        let mut model = Model::new(SpilledIndex::default());
        (0..100_000).for_each(|_| model.take(1, 8));
        let newest = model.frames.last().unwrap().0;
        let told = model.index.find(&key(1), None, None);
        assert_eq!((told.len(), told.first()), (CANDIDATES_MAX, Some(&newest)));
    }

    #[test]
    fn a_backlog_that_outgrows_the_index_is_an_error() {
        let mut index = SpilledIndex::default();
        take(&mut index, Location { segment: 1, offset: 8 }, 1);
        let far = Location { segment: 2, offset: PLACE_MASK * FRAME_ALIGN_BYTES };
        assert_eq!(index.place(far).unwrap_err().kind(), ErrorKind::Unsupported);
        assert_eq!(index.find(&key(1), None, None), [Location { segment: 1, offset: 8 }]);
    }

    #[test]
    fn a_record_takes_no_more_than_16_bytes() {
        let mut index = SpilledIndex::default();
        const COUNT: u64 = 200_000;
        for number in 0..COUNT {
            let place =
                index.place(Location { segment: number / 1_000, offset: number % 1_000 * 192 }).unwrap();
            // As keys that do not share pieces are strewn.
            let hash = (number + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let partition = index.partitions.get_mut(partition_of(hash)).unwrap();
            partition.push(slot_of(hash, place));
        }
        let pieces = index.partitions.iter().flat_map(|partition| &partition.late);
        let of_pieces = pieces.map(|piece| size_of::<Vec<u64>>() + piece.capacity() * size_of::<u64>());
        let partitions = index.partitions.capacity() * size_of::<Partition>();
        let taken = of_pieces.sum::<usize>() + partitions;
        assert!(taken as u64 <= 16 * COUNT + 60_000, "{taken} bytes");
    }

    /// An opening has several parts, each of some segments. They begin at places of their own; beside that the whole is
    /// as if one had taken everything.
    #[test]
    fn parts_appended_are_as_if_one_had_taken_everything() {
        const FRAMES: u64 = 3_000;
        let end = FRAME_ALIGN_BYTES * 100 + 4096;
        // Few records a segment in some partitions, so that what was not sorted is looked at, too.
        let location =
            |at: u64| Location { segment: 7 + at / 100, offset: 4096 + at % 100 * FRAME_ALIGN_BYTES };
        for parts in [vec![0..0, 0..FRAMES], vec![0..100, 100..900, 900..900, 900..2_000, 2_000..FRAMES]] {
            let mut whole = SpilledIndex::default();
            let mut one = SpilledIndex { hasher: whole.hasher.clone(), ..SpilledIndex::default() };
            for range in parts {
                let mut part = whole.part(range.start / 100 * end);
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
                        index.pass(location(1_234), 1_234);
                    }
                }
            }
            for index in [&mut whole, &mut one] {
                index.pass(location(FRAMES + 500), 2_266);
                assert!(index.is_empty(), "nothing is kept");
            }
        }
    }

    /// More than a place can say lies before a part, so its places began anew.
    #[test]
    fn a_part_that_outgrows_the_index_is_an_error() {
        let mut index = SpilledIndex::default();
        take(&mut index, Location { segment: 1, offset: 8 }, 1);
        let mut part = index.part(PLACE_MASK * FRAME_ALIGN_BYTES);
        take(&mut part, Location { segment: 2, offset: 8 }, 2);
        assert_eq!(index.append(part).unwrap_err().kind(), ErrorKind::Unsupported);
        assert_eq!(index.find(&key(1), None, None), [Location { segment: 1, offset: 8 }]);
    }
}
