//! The journaled frames of the queue that are in memory, one behind the other in chunks, and where each key's newest
//! record is among them.
//!
//! A frame's content is there once: the index has no copies of keys, but a piece of a key's hash and the place of the
//! frame, eight bytes together, and the key is compared in the frame. So a record costs its frame's header (32 bytes),
//! its own (8), and what the index takes (10 to 21).
//!
//! Frames come and end in order, but for those of one batch. A frame that was taken out is there until it has ended,
//! since its keys are; a chunk goes when all of its frames have ended. What is handed out shares its chunk, or, while
//! that is still written to, is a copy, and none is larger than [`WHOLE_BYTES_MIN`] then.

use std::collections::VecDeque;
use std::hash::BuildHasher;

use bytes::{Buf, Bytes, BytesMut};
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use crate::error::Result;
use crate::ids::Seq;
use crate::journal::frame::{Location, slices_of, without_padding};
use crate::queue::queued::QueuedFrame;
use crate::queue::record::{Operation, RecordRef};
use crate::safeguard::Safeguard;
use crate::seam::random::HashBuilder;

const CHUNK_BYTES: usize = 32 << 10;
/// Larger frames stay in the buffer that they came in.
const WHOLE_BYTES_MIN: usize = 4 << 10;
const HEADER_BYTES: usize = 32;
/// An index of no more places is not made smaller.
const INDEX_KEPT: usize = 1024;
/// So many bits of a place are in the index.
const AT_BITS: u32 = 40;
const AT_MASK: u64 = (1 << AT_BITS) - 1;
/// More may not be here at a time, so that places can be told apart by those bits.
pub(crate) const PACKED_BYTES_MAX: u64 = 1 << (AT_BITS - 1);

/// The frames and the index of their keys.
#[derive(Default)]
pub(crate) struct Packed {
    frames: Frames,
    index: HashTable<Slot>,
    hasher: HashBuilder,
}

/// The newest record of a key: the upper bits of the key's hash, and the lower ones of its frame's place.
#[derive(Clone, Copy)]
struct Slot(u64);

#[derive(Default)]
struct Frames {
    /// By places, without gaps.
    chunks: VecDeque<Chunk>,
    open: BytesMut,
    open_at: u64,
    /// How many frames the open chunk has.
    open_frames: usize,
    /// The place of the next frame to take out.
    next: u64,
}

struct Chunk {
    at: u64,
    /// How many of its frames have not ended.
    frames: usize,
    content: Content,
}

enum Content {
    /// Frames behind their headers.
    Many(Bytes),
    One(Header, Bytes),
}

#[derive(Clone, Copy)]
struct Header {
    first: Seq,
    location: Location,
    count: u32,
    len: u32,
}

/// A frame where it lies.
#[derive(Clone, Copy)]
struct Lying<'a> {
    header: Header,
    content: &'a [u8],
    /// What it can share; nothing while its chunk is written to.
    shared: Option<&'a Bytes>,
}

impl Slot {
    fn new(hash: u64, at: u64) -> Slot {
        Slot(hash >> AT_BITS << AT_BITS | at & AT_MASK)
    }

    fn is_of(self, hash: u64) -> bool {
        self.0 >> AT_BITS == hash >> AT_BITS
    }

    fn spread(self) -> u64 {
        spread(self.0)
    }
}

/// A hash again, of the piece that the index has of one: whatever bits a table looks at, they differ.
fn spread(hash: u64) -> u64 {
    (hash >> AT_BITS).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

impl Packed {
    /// Takes a frame that comes after all others; its records are their keys' newest.
    pub(crate) fn push(&mut self, frame: &QueuedFrame, location: Location) -> Result<()> {
        let at = self.frames.push(frame, location);
        let Packed { frames, index, hasher } = self;
        for bytes in slices_of(&frame.content, frame.count) {
            let record = RecordRef::parse(bytes)?;
            if !record.is_update() {
                continue;
            }
            let hash = hasher.hash_one(record.key);
            let is_key = |slot: &Slot| slot.is_of(hash) && frames.newest(slot.0, record.key).is_some();
            match index.entry(spread(hash), is_key, |slot| slot.spread()) {
                Entry::Occupied(mut entry) => *entry.get_mut() = Slot::new(hash, at),
                Entry::Vacant(entry) => drop(entry.insert(Slot::new(hash, at))),
            }
        }
        Ok(())
    }

    /// The newest record of a key: its number, its frame's place in the journal, and its value unless it removes.
    pub(crate) fn find(&self, key: &[u8]) -> Option<(Seq, Location, Option<Bytes>)> {
        let (version, value, frame) = self.newest(key)?;
        let value = value.map(|value| match frame.shared {
            Some(shared) => shared.slice_ref(value),
            None => Bytes::copy_from_slice(value),
        });
        Some((version, frame.header.location, value))
    }

    /// The next frame, which stays.
    pub(crate) fn front(&mut self) -> Option<QueuedFrame> {
        self.frames.front()
    }

    /// The number that the next frame begins with.
    pub(crate) fn front_first(&self) -> Option<Seq> {
        self.frames.get(self.frames.next).map(|frame| frame.header.first)
    }

    /// Takes the next frame out; its keys stay known until it ends.
    pub(crate) fn pop_front(&mut self) -> Option<QueuedFrame> {
        let frame = self.frames.front()?;
        self.frames.next += stride(frame.content.len());
        Some(frame)
    }

    /// Ends a frame that was taken out from `at`, and forgets those of its keys of which it has the newest record.
    pub(crate) fn end(&mut self, frame: &QueuedFrame, at: u64) -> Result<()> {
        for bytes in slices_of(&frame.content, frame.count) {
            let record = RecordRef::parse(bytes)?;
            let hash = self.hasher.hash_one(record.key);
            let ended = Slot::new(hash, at);
            let is_ended =
                |slot: &Slot| slot.0 == ended.0 || slot.is_of(hash) && !Safeguard::RetireByNumber.holds();
            if let Ok(entry) = self.index.find_entry(spread(hash), is_ended) {
                entry.remove();
            }
        }
        self.frames.end(at);
        if self.index.is_empty() && self.index.capacity() > INDEX_KEPT {
            self.index = HashTable::new();
        }
        Ok(())
    }

    fn newest(&self, key: &[u8]) -> Option<(Seq, Option<&[u8]>, Lying<'_>)> {
        if self.index.is_empty() {
            return None;
        }
        let (hash, mut found) = (self.hasher.hash_one(key), None);
        let mut look = |slot: &Slot| {
            found = slot.is_of(hash).then(|| self.frames.newest(slot.0, key)).flatten();
            found.is_some()
        };
        self.index.find(spread(hash), &mut look)?;
        found
    }
}

impl Frames {
    /// Returns its place.
    fn push(&mut self, frame: &QueuedFrame, location: Location) -> u64 {
        let content = without_padding(&frame.content, frame.count);
        let len = u32::try_from(content.len()).unwrap_or(u32::MAX);
        let header = Header { first: frame.first, location, count: frame.count, len };
        if content.len() >= WHOLE_BYTES_MIN {
            self.seal();
            let at = self.open_at;
            let content = frame.content.slice_ref(content);
            self.open_at += stride(content.len());
            self.chunks.push_back(Chunk { at, frames: 1, content: Content::One(header, content) });
            return at;
        }
        let need = HEADER_BYTES + content.len();
        if self.open.capacity() - self.open.len() < need {
            self.seal();
            self.open = BytesMut::with_capacity(CHUNK_BYTES);
        }
        let at = self.open_at + self.open.len() as u64;
        header.encode(&mut self.open);
        self.open.extend_from_slice(content);
        self.open_frames += 1;
        at
    }

    /// Lets the frames of the open chunk be shared; later ones go behind them into the same buffer.
    fn seal(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let (at, content) = (self.open_at, self.open.split().freeze());
        self.open_at += content.len() as u64;
        let frames = std::mem::take(&mut self.open_frames);
        self.chunks.push_back(Chunk { at, frames, content: Content::Many(content) });
    }

    fn front(&mut self) -> Option<QueuedFrame> {
        if self.next >= self.open_at {
            self.seal();
        }
        let at = self.next;
        let Lying { header, content, shared } = self.get(at)?;
        let content = shared?.slice_ref(content);
        Some(QueuedFrame::packed(header.first, header.count, header.location, content, at))
    }

    fn end(&mut self, at: u64) {
        let index = self.chunks.partition_point(|chunk| chunk.at <= at).checked_sub(1);
        if let Some(chunk) = index.and_then(|index| self.chunks.get_mut(index)) {
            chunk.frames = chunk.frames.saturating_sub(1);
        }
        while self.chunks.front().is_some_and(|chunk| chunk.frames == 0) {
            self.chunks.pop_front();
        }
    }

    /// The frame at a place, of which the lower bits are enough.
    fn get(&self, at: u64) -> Option<Lying<'_>> {
        let begin = self.chunks.front().map_or(self.open_at, |chunk| chunk.at);
        let at = begin + (at.wrapping_sub(begin) & AT_MASK);
        if at >= self.open_at {
            return Lying::of(&self.open, at - self.open_at, None);
        }
        let index = self.chunks.partition_point(|chunk| chunk.at <= at).checked_sub(1)?;
        let chunk = self.chunks.get(index)?;
        match &chunk.content {
            Content::Many(bytes) => Lying::of(bytes, at - chunk.at, Some(bytes)),
            Content::One(header, bytes) => {
                Some(Lying { header: *header, content: bytes, shared: Some(bytes) })
            }
        }
    }

    /// The last record of a key in the frame at a place.
    fn newest(&self, at: u64, key: &[u8]) -> Option<(Seq, Option<&[u8]>, Lying<'_>)> {
        let frame = self.get(at)?;
        let numbered = slices_of(frame.content, frame.header.count).zip(0_u64..);
        // They were parsed when they came.
        let records = numbered.filter_map(|(bytes, at)| Some((at, RecordRef::parse(bytes).ok()?)));
        let (at, last) = records.filter(|(_, record)| record.is_update() && record.key == key).last()?;
        let value = (last.operation == Operation::Put).then_some(last.value);
        Some((frame.header.first.plus(at), value, frame))
    }
}

impl Header {
    fn encode(&self, out: &mut BytesMut) {
        for field in [self.first.0, self.location.segment, self.location.offset] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        for field in [self.count, self.len] {
            out.extend_from_slice(&field.to_le_bytes());
        }
    }

    fn decode(mut bytes: &[u8]) -> Option<Header> {
        let first = Seq(bytes.try_get_u64_le().ok()?);
        let (segment, offset) = (bytes.try_get_u64_le().ok()?, bytes.try_get_u64_le().ok()?);
        let (count, len) = (bytes.try_get_u32_le().ok()?, bytes.try_get_u32_le().ok()?);
        Some(Header { first, location: Location { segment, offset }, count, len })
    }
}

impl<'a> Lying<'a> {
    fn of(chunk: &'a [u8], at: u64, shared: Option<&'a Bytes>) -> Option<Lying<'a>> {
        let (header, rest) = chunk.get(usize::try_from(at).ok()?..)?.split_at_checked(HEADER_BYTES)?;
        let header = Header::decode(header)?;
        Some(Lying { header, content: rest.get(..header.len as usize)?, shared })
    }
}

/// How far the next frame's place is.
fn stride(content_bytes: usize) -> u64 {
    (HEADER_BYTES + content_bytes) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::frame::FrameBuilder;
    use crate::queue::record::push;

    fn frame(seq: u64, records: &[(&str, usize)]) -> (QueuedFrame, Location) {
        let mut body = FrameBuilder::new();
        for (key, bytes) in records {
            let (key, value) = (format!("n\0{key}"), vec![seq as u8; *bytes]);
            push(&mut body, Operation::Put, true, key.as_bytes(), &value).unwrap();
        }
        let location = Location { segment: seq / 100, offset: seq * 1_000 };
        (QueuedFrame::committed(Seq(seq), body.finish(), Some(location)), location)
    }

    fn push_all(packed: &mut Packed, frames: &[(QueuedFrame, Location)]) {
        frames.iter().for_each(|(frame, location)| packed.push(frame, *location).unwrap());
    }

    fn found(packed: &Packed, key: &str) -> Option<(u64, usize)> {
        let (version, _, value) = packed.find(format!("n\0{key}").as_bytes())?;
        Some((version.0, value.unwrap().len()))
    }

    /// Begins just below where the bits of a place that the index has run out.
    fn near_the_end_of_places() -> Packed {
        let at = AT_MASK - 50_000;
        Packed { frames: Frames { open_at: at, next: at, ..Frames::default() }, ..Packed::default() }
    }

    #[test]
    fn frames_of_all_sizes_come_out_as_they_went_in_and_their_keys_are_known_until_they_end() {
        let mut packed = near_the_end_of_places();
        let size = |seq: u64| [10, 4_000, 1, WHOLE_BYTES_MIN, 100_000, 3][seq as usize % 6];
        let frames: Vec<_> = (1..=400).map(|seq| frame(seq, &[(&seq.to_string(), size(seq))])).collect();
        push_all(&mut packed, &frames[..200]);
        for (at, (frame, _)) in frames.iter().enumerate() {
            if let Some((later, location)) = frames.get(at + 200) {
                packed.push(later, *location).unwrap();
            }
            let (seq, key) = (frame.first.0, frame.first.0.to_string());
            assert_eq!(packed.front().unwrap().first, packed.front_first().unwrap());
            let out = packed.pop_front().unwrap();
            assert_eq!(out.bytes, frame.bytes);
            assert_eq!((out.first, out.location), (frame.first, frame.location));
            assert_eq!(out.journal_end, frame.journal_end);
            assert!(out.encoded().eq(frame.encoded()));
            assert_eq!(found(&packed, &key), Some((seq, size(seq))), "taken out, and not ended");
            packed.end(&out, out.packed_at.unwrap()).unwrap();
            assert_eq!(found(&packed, &key), None);
        }
        assert!(packed.pop_front().is_none() && packed.frames.chunks.is_empty(), "nothing is kept");
    }

    #[test]
    fn the_end_of_an_older_record_leaves_its_keys_newer_one() {
        let mut packed = near_the_end_of_places();
        push_all(&mut packed, &[frame(1, &[("a", 1), ("b", 2), ("a", 3)]), frame(4, &[("b", 4)])]);
        assert_eq!(found(&packed, "a"), Some((3, 3)));
        let out = packed.pop_front().unwrap();
        packed.end(&out, out.packed_at.unwrap()).unwrap();
        assert_eq!((found(&packed, "a"), found(&packed, "b")), (None, Some((4, 4))));
    }

    #[test]
    fn a_record_takes_no_more_than_64_bytes_beside_its_key_and_value() {
        let mut packed = Packed::default();
        const COUNT: u64 = 15_000;
        for seq in 1..=COUNT {
            let (frame, location) = frame(seq, &[(&format!("{seq:08}"), 100)]);
            packed.push(&frame, location).unwrap();
        }
        let chunks = packed.frames.chunks.iter().map(|chunk| match &chunk.content {
            Content::Many(bytes) => bytes.len().next_multiple_of(CHUNK_BYTES) + size_of::<Chunk>(),
            Content::One(_, bytes) => bytes.len(),
        });
        let taken = chunks.sum::<usize>() + packed.frames.open.capacity() + packed.index.allocation_size();
        let beside = taken as u64 / COUNT - (2 + 8 + 100);
        assert!(beside <= 64, "{beside} bytes");
    }
}
