//! The journaled frames of the queue that are in memory, packed into chunks, and an index of each key's newest record.
//!
//! A frame's content is in memory once: the index has no copies of keys, but a fragment of a key's hash and the offset
//! of the frame, eight bytes together, and the key is compared in the frame. So a record costs its frame's header (32
//! bytes), its own (8), and its share of the index (10 to 21).
//!
//! Frames are added and retired in order, except for those of one batch. A frame that was taken out stays in memory
//! until it is retired, because its keys are still looked up; a chunk goes when all of its frames are retired. What is
//! handed out shares its chunk. While a chunk is still written to, what is handed out is a copy, always smaller than
//! [`WHOLE_BYTES_MIN`].

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
/// Frames of this size and more keep the buffer that they came in.
const WHOLE_BYTES_MIN: usize = 4 << 10;
const HEADER_BYTES: usize = 32;
/// An index with room for no more entries keeps its memory when it becomes empty.
const INDEX_KEPT: usize = 1024;
/// The bits of an index entry that are its frame's offset.
const OFFSET_BITS: u32 = 40;
const OFFSET_MASK: u64 = (1 << OFFSET_BITS) - 1;
/// The most bytes at a time, so that those bits tell any two offsets apart.
pub(crate) const PACKED_BYTES_MAX: u64 = 1 << (OFFSET_BITS - 1);

/// The frames and the index of their keys.
#[derive(Default)]
pub(crate) struct Packed {
    frames: PackedChunks,
    index: HashTable<IndexEntry>,
    hasher: HashBuilder,
}

/// The newest record of a key: the upper bits of the key's hash, and the lower ones of its frame's offset.
///
/// It is packed because an entry with fields of their own for hash and offset takes 16 bytes instead of 8. The table is
/// between half and seven eighths full, so each pending record would take 9 to 18 bytes more than its 51 to 60: 15 %
/// and more. An entry of the offset alone takes 8 bytes, too, but then every growth of the table would read all frames
/// again to hash their keys.
#[derive(Clone, Copy)]
struct IndexEntry(u64);

/// The frames, one behind the other. An offset counts the bytes since the first frame ever, so it is never reused.
#[derive(Default)]
struct PackedChunks {
    /// In the order of their offsets, without gaps.
    chunks: VecDeque<Chunk>,
    /// The chunk that is written to, its offset, and how many frames it has.
    open: BytesMut,
    open_at: u64,
    open_frames: usize,
    /// The offset of the next frame to take out.
    next: u64,
}

struct Chunk {
    at: u64,
    /// The number of its frames that are not retired.
    frames: usize,
    content: ChunkContent,
}

enum ChunkContent {
    /// Frames behind their headers.
    Many(Bytes),
    /// One frame in the buffer that it came in.
    One(PackedHeader, Bytes),
}

#[derive(Clone, Copy)]
struct PackedHeader {
    first: Seq,
    location: Location,
    count: u32,
    len: u32,
}

/// A frame in its chunk.
#[derive(Clone, Copy)]
struct PackedFrame<'a> {
    header: PackedHeader,
    content: &'a [u8],
    /// The chunk to share; `None` while it is written to.
    chunk: Option<&'a Bytes>,
}

impl IndexEntry {
    fn new(hash: u64, at: u64) -> IndexEntry {
        IndexEntry(hash >> OFFSET_BITS << OFFSET_BITS | at & OFFSET_MASK)
    }

    fn has_hash(self, hash: u64) -> bool {
        self.0 >> OFFSET_BITS == hash >> OFFSET_BITS
    }

    fn table_hash(self) -> u64 {
        table_hash(self.0)
    }
}

/// Hashes the fragment that an entry has of a hash once more: a table looks at few bits, of which the fragment alone
/// would leave some zero.
fn table_hash(hash: u64) -> u64 {
    (hash >> OFFSET_BITS).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

impl Packed {
    /// Adds a frame behind all others; its records become their keys' newest.
    pub(crate) fn push(&mut self, frame: &QueuedFrame, location: Location) -> Result<()> {
        let at = self.frames.push(frame, location);
        let Packed { frames, index, hasher } = self;
        for bytes in slices_of(&frame.content, frame.count) {
            let record = RecordRef::parse(bytes)?;
            if !record.is_update() {
                continue;
            }
            let hash = hasher.hash_one(record.key);
            let is_of_key =
                |entry: &IndexEntry| entry.has_hash(hash) && frames.newest(entry.0, record.key).is_some();
            match index.entry(table_hash(hash), is_of_key, |entry| entry.table_hash()) {
                Entry::Occupied(mut entry) => *entry.get_mut() = IndexEntry::new(hash, at),
                Entry::Vacant(entry) => drop(entry.insert(IndexEntry::new(hash, at))),
            }
        }
        Ok(())
    }

    /// Returns a key's newest record: its number, its frame's location in the journal, and its value unless it removes.
    pub(crate) fn find(&self, key: &[u8]) -> Option<(Seq, Location, Option<Bytes>)> {
        let (version, value, frame) = self.newest(key)?;
        let value = value.map(|value| match frame.chunk {
            Some(chunk) => chunk.slice_ref(value),
            None => Bytes::copy_from_slice(value),
        });
        Some((version, frame.header.location, value))
    }

    /// Returns the next frame, which stays.
    pub(crate) fn front(&mut self) -> Option<QueuedFrame> {
        self.frames.front()
    }

    /// Returns the first number of the next frame.
    pub(crate) fn front_first(&self) -> Option<Seq> {
        self.frames.get(self.frames.next).map(|frame| frame.header.first)
    }

    /// Takes the next frame out; its keys are found until it is retired.
    pub(crate) fn pop_front(&mut self) -> Option<QueuedFrame> {
        let frame = self.frames.front()?;
        self.frames.next += packed_bytes(frame.content.len());
        Some(frame)
    }

    /// Retires a frame that was taken out from the offset `at`, and removes the keys of which it has the newest record.
    pub(crate) fn retire(&mut self, frame: &QueuedFrame, at: u64) -> Result<()> {
        for bytes in slices_of(&frame.content, frame.count) {
            let record = RecordRef::parse(bytes)?;
            let hash = self.hasher.hash_one(record.key);
            let retired = IndexEntry::new(hash, at);
            // An entry with another offset is a newer record's of this key, or of a key that shares the fragment.
            let is_retired = |entry: &IndexEntry| {
                entry.has_hash(hash) && (entry.0 == retired.0 || !Safeguard::RetireByNumber.holds())
            };
            if let Ok(entry) = self.index.find_entry(table_hash(hash), is_retired) {
                entry.remove();
            }
        }
        self.frames.retire(at);
        // A table keeps the memory that its largest backlog took, until it is replaced.
        if self.index.is_empty() && self.index.capacity() > INDEX_KEPT {
            self.index = HashTable::new();
        }
        Ok(())
    }

    fn newest(&self, key: &[u8]) -> Option<(Seq, Option<&[u8]>, PackedFrame<'_>)> {
        // Most look-ups of a layer that keeps up find it empty, and need no hash then.
        if self.index.is_empty() {
            return None;
        }
        let (hash, mut found) = (self.hasher.hash_one(key), None);
        let mut look = |entry: &IndexEntry| {
            found = entry.has_hash(hash).then(|| self.frames.newest(entry.0, key)).flatten();
            found.is_some()
        };
        self.index.find(table_hash(hash), &mut look)?;
        found
    }
}

impl PackedChunks {
    /// Adds a frame. Returns its offset.
    fn push(&mut self, frame: &QueuedFrame, location: Location) -> u64 {
        let content = without_padding(&frame.content, frame.count);
        let len = u32::try_from(content.len()).unwrap_or(u32::MAX);
        let header = PackedHeader { first: frame.first, location, count: frame.count, len };
        // To copy a large frame would cost more than its own buffer does. The chunk before it is sealed, because
        // offsets go on without gaps.
        if content.len() >= WHOLE_BYTES_MIN {
            self.seal();
            let at = self.open_at;
            let content = frame.content.slice_ref(content);
            self.open_at += packed_bytes(content.len());
            self.chunks.push_back(Chunk { at, frames: 1, content: ChunkContent::One(header, content) });
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

    /// Seals the open chunk, so that its frames can be shared. Later frames go behind it into the same buffer.
    fn seal(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let (at, content) = (self.open_at, self.open.split().freeze());
        self.open_at += content.len() as u64;
        let frames = std::mem::take(&mut self.open_frames);
        self.chunks.push_back(Chunk { at, frames, content: ChunkContent::Many(content) });
    }

    fn front(&mut self) -> Option<QueuedFrame> {
        // A frame is handed out as a part of its chunk, and a chunk that is written to cannot be shared.
        if self.next >= self.open_at {
            self.seal();
        }
        let at = self.next;
        let PackedFrame { header, content, chunk } = self.get(at)?;
        let content = chunk?.slice_ref(content);
        Some(QueuedFrame::packed(header.first, header.count, header.location, content, at))
    }

    fn retire(&mut self, at: u64) {
        let index = self.chunks.partition_point(|chunk| chunk.at <= at).checked_sub(1);
        if let Some(chunk) = index.and_then(|index| self.chunks.get_mut(index)) {
            chunk.frames = chunk.frames.saturating_sub(1);
        }
        // Only from the front: chunks lie without gaps, and the frames of a batch may end in any order.
        while self.chunks.front().is_some_and(|chunk| chunk.frames == 0) {
            self.chunks.pop_front();
        }
    }

    /// Returns the frame at an offset, of which the bits of an index entry are enough.
    fn get(&self, at: u64) -> Option<PackedFrame<'_>> {
        // Everything in memory lies within 2^39 bytes of the first chunk, so the lower bits tell the whole offset.
        let begin = self.chunks.front().map_or(self.open_at, |chunk| chunk.at);
        let at = begin + (at.wrapping_sub(begin) & OFFSET_MASK);
        if at >= self.open_at {
            return PackedFrame::parse(&self.open, at - self.open_at, None);
        }
        let index = self.chunks.partition_point(|chunk| chunk.at <= at).checked_sub(1)?;
        let chunk = self.chunks.get(index)?;
        match &chunk.content {
            ChunkContent::Many(bytes) => PackedFrame::parse(bytes, at - chunk.at, Some(bytes)),
            ChunkContent::One(header, bytes) => {
                Some(PackedFrame { header: *header, content: bytes, chunk: Some(bytes) })
            }
        }
    }

    /// Returns the last record of a key in the frame at an offset.
    fn newest(&self, at: u64, key: &[u8]) -> Option<(Seq, Option<&[u8]>, PackedFrame<'_>)> {
        let frame = self.get(at)?;
        let numbered = slices_of(frame.content, frame.header.count).zip(0_u64..);
        // Every record was parsed when the frame was added.
        let records = numbered.filter_map(|(bytes, at)| Some((at, RecordRef::parse(bytes).ok()?)));
        let (at, last) = records.filter(|(_, record)| record.is_update() && record.key == key).last()?;
        let value = (last.operation == Operation::Put).then_some(last.value);
        Some((frame.header.first.plus(at), value, frame))
    }
}

impl PackedHeader {
    fn encode(&self, out: &mut BytesMut) {
        for field in [self.first.0, self.location.segment, self.location.offset] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        for field in [self.count, self.len] {
            out.extend_from_slice(&field.to_le_bytes());
        }
    }

    fn decode(mut bytes: &[u8]) -> Option<PackedHeader> {
        let first = Seq(bytes.try_get_u64_le().ok()?);
        let (segment, offset) = (bytes.try_get_u64_le().ok()?, bytes.try_get_u64_le().ok()?);
        let (count, len) = (bytes.try_get_u32_le().ok()?, bytes.try_get_u32_le().ok()?);
        Some(PackedHeader { first, location: Location { segment, offset }, count, len })
    }
}

impl<'a> PackedFrame<'a> {
    /// Reads the frame that lies `at` so many bytes into a chunk.
    fn parse(bytes: &'a [u8], at: u64, chunk: Option<&'a Bytes>) -> Option<PackedFrame<'a>> {
        let (header, rest) = bytes.get(usize::try_from(at).ok()?..)?.split_at_checked(HEADER_BYTES)?;
        let header = PackedHeader::decode(header)?;
        Some(PackedFrame { header, content: rest.get(..header.len as usize)?, chunk })
    }
}

/// Returns how far a frame's offset is from the next one's.
fn packed_bytes(content_bytes: usize) -> u64 {
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

    /// Begins just below the offset at which the bits of an index entry run out.
    fn near_the_end_of_offsets() -> Packed {
        let at = OFFSET_MASK - 50_000;
        Packed {
            frames: PackedChunks { open_at: at, next: at, ..PackedChunks::default() },
            ..Packed::default()
        }
    }

    #[test]
    fn frames_of_all_sizes_come_out_as_they_went_in_and_their_keys_are_known_until_they_end() {
        let mut packed = near_the_end_of_offsets();
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
            assert_eq!(found(&packed, &key), Some((seq, size(seq))), "taken out, and not retired");
            packed.retire(&out, out.packed_at.unwrap()).unwrap();
            assert_eq!(found(&packed, &key), None);
        }
        assert!(packed.pop_front().is_none() && packed.frames.chunks.is_empty(), "nothing is kept");
    }

    #[test]
    fn the_end_of_an_older_record_leaves_its_keys_newer_one() {
        let mut packed = near_the_end_of_offsets();
        push_all(&mut packed, &[frame(1, &[("a", 1), ("b", 2), ("a", 3)]), frame(4, &[("b", 4)])]);
        assert_eq!(found(&packed, "a"), Some((3, 3)));
        let out = packed.pop_front().unwrap();
        packed.retire(&out, out.packed_at.unwrap()).unwrap();
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
            ChunkContent::Many(bytes) => bytes.len().next_multiple_of(CHUNK_BYTES) + size_of::<Chunk>(),
            ChunkContent::One(_, bytes) => bytes.len(),
        });
        let taken = chunks.sum::<usize>() + packed.frames.open.capacity() + packed.index.allocation_size();
        let beside = taken as u64 / COUNT - (2 + 8 + 100);
        assert!(beside <= 64, "{beside} bytes");
    }
}
