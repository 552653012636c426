//! The frame: one atomic batch of records with its checksums, on disk and in memory.
//!
//! The calling thread makes a body and its checksum, outside any lock. The one appender makes the header, because it
//! alone knows the frame's offset. Bytes from a disk are never trusted: a length is used only after the header's
//! checksum, the cap and the remaining bytes have been checked. Does no I/O.

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::Seq;
use crate::safeguard::Safeguard;

/// The largest body of a frame, in bytes.
pub const FRAME_BODY_BYTES_MAX: u64 = 256 * 1024 * 1024;

pub(crate) const FRAME_HEADER_BYTES: u64 = 56;
/// The alignment of frames, so that a search for headers need not try every byte.
pub(crate) const FRAME_ALIGN_BYTES: u64 = 8;
/// The offset of the nonce within a header.
pub(crate) const FRAME_NONCE_AT: u64 = 32;

const RECORD_LENGTH_BYTES: usize = 4;
const FEWER_RECORDS: &str = "has a body with fewer records than its header says";
const MORE_BYTES: &str = "has a body with more bytes than its records";

/// The location of a frame. Valid until its segment is trimmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Location {
    /// The segment's number.
    pub segment: u64,
    /// The offset of the frame's first byte within the segment's file.
    pub offset: u64,
}

impl Location {
    /// Returns the location `bytes` further on in the same segment.
    pub(crate) fn behind(self, bytes: u64) -> Location {
        Location { offset: self.offset.saturating_add(bytes), ..self }
    }
}

/// The fields of a frame's header, of which only the checksum has been checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    pub(crate) body_len: u32,
    pub(crate) body_crc: u32,
    pub(crate) count: u32,
    pub(crate) first: Seq,
    pub(crate) prev: Seq,
    pub(crate) nonce: u64,
    pub(crate) synced_offset: u64,
    /// The witness: the store's watermark when the frame was written. It shows a store that went back behind it.
    pub(crate) applied: Seq,
}

impl FrameHeader {
    /// Appends the encoded header and returns its checksum.
    #[inline]
    pub(crate) fn encode(&self, out: &mut Vec<u8>) -> u32 {
        let mut fields = [0_u8; FRAME_HEADER_BYTES as usize - 4];
        let mut rest = fields.as_mut_slice();
        put(&mut rest, &self.body_len.to_le_bytes());
        put(&mut rest, &self.body_crc.to_le_bytes());
        put(&mut rest, &self.count.to_le_bytes());
        put(&mut rest, &self.first.0.to_le_bytes());
        put(&mut rest, &self.prev.0.to_le_bytes());
        put(&mut rest, &self.nonce.to_le_bytes());
        put(&mut rest, &self.synced_offset.to_le_bytes());
        put(&mut rest, &self.applied.0.to_le_bytes());
        let crc = header_checksum(&fields);
        out.extend_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(&fields);
        crc
    }

    /// Decodes a header and its checksum; `None` if `bytes` do not start with a sound header.
    pub(crate) fn decode(bytes: &[u8]) -> Option<(FrameHeader, u32)> {
        let (crc, fields) = bytes.get(..FRAME_HEADER_BYTES as usize)?.split_first_chunk::<4>()?;
        let crc = u32::from_le_bytes(*crc);
        // Before any field is believed, lengths above all.
        if header_checksum(fields) != crc {
            return None;
        }
        let mut rest = fields;
        let header = FrameHeader {
            body_len: take_u32(&mut rest)?,
            body_crc: take_u32(&mut rest)?,
            count: take_u32(&mut rest)?,
            first: Seq(take_u64(&mut rest)?),
            prev: Seq(take_u64(&mut rest)?),
            nonce: take_u64(&mut rest)?,
            synced_offset: take_u64(&mut rest)?,
            applied: Seq(take_u64(&mut rest)?),
        };
        Some((header, crc))
    }

    /// Returns the last sequence number. A promise has none of its own, so it is the one before it.
    pub(crate) fn last(&self) -> Seq {
        Seq(self.first.0.saturating_add(u64::from(self.count)).saturating_sub(1))
    }

    /// Returns the size of header and body, which make a frame whole.
    pub(crate) fn content_bytes(&self) -> u64 {
        FRAME_HEADER_BYTES + u64::from(self.body_len)
    }

    /// Returns the size of header, body and padding.
    pub(crate) fn bytes_on_disk(&self) -> u64 {
        bytes_on_disk(self.body_len as usize)
    }

    /// Checks that a frame with a sound checksum continues a frame that ended with `prev`.
    ///
    /// # Errors
    /// A sentence that says why it does not.
    pub(crate) fn follows(&self, prev: Seq) -> Result<(), String> {
        if self.prev != prev && Safeguard::Continuity.holds() {
            return Err(format!("follows record {}, but the frame before it ends with {prev}", self.prev));
        }
        // Numbers only grow. A frame that repeats some would apply records twice.
        if self.first <= self.prev {
            return Err(format!("starts with record {}, which is not after {prev}", self.first));
        }
        // A length above the cap is a bug or a forgery; memory must not be reserved for it.
        if u64::from(self.body_len) > FRAME_BODY_BYTES_MAX {
            return Err(format!("claims a body of {} bytes", self.body_len));
        }
        // A promise has no number of its own, so it names the one that comes next.
        if self.count == 0 && (self.body_len != 0 || self.first != prev.next()) {
            return Err("claims to hold no records, but has a body or a place".to_owned());
        }
        Ok(())
    }
}

/// Returns the size on disk of a frame with a body of `body_len` bytes, header and padding included.
pub(crate) fn bytes_on_disk(body_len: usize) -> u64 {
    FRAME_HEADER_BYTES + (body_len as u64).next_multiple_of(FRAME_ALIGN_BYTES)
}

/// Returns the checksum of the header's fields after the checksum itself.
fn header_checksum(fields: &[u8]) -> u32 {
    // The mutant leaves out the first record's number, which lies at bytes 12 to 20.
    if !Safeguard::NumberInChecksum.holds() {
        let (before, rest) = fields.split_at_checked(12).unwrap_or((fields, &[]));
        return crc32c::crc32c_append(crc32c::crc32c(before), rest.get(8..).unwrap_or(&[]));
    }
    crc32c::crc32c(fields)
}

/// An encoded batch of records with its checksum, ready to be written. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct FrameBody {
    /// The records and the padding that follows them on disk, so that it can be written as it is.
    padded: Bytes,
    len: u32,
    crc: u32,
    count: u32,
}

impl FrameBody {
    /// Returns the records in order, as slices of one shared buffer.
    pub fn records(&self) -> impl Iterator<Item = Bytes> + use<> {
        records_of(&self.padded.slice(..self.len as usize))
    }

    /// Returns the number of records, and so of sequence numbers.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Returns the size of the frame on disk in bytes, header and padding included.
    #[must_use]
    pub fn len_on_disk(&self) -> u64 {
        FRAME_HEADER_BYTES + self.padded.len() as u64
    }

    pub(crate) fn padded(&self) -> &[u8] {
        &self.padded
    }

    /// Returns the encoded records with their padding.
    pub(crate) fn into_padded(self) -> Bytes {
        self.padded
    }

    #[inline]
    pub(crate) fn header(
        &self,
        first: Seq,
        prev: Seq,
        nonce: u64,
        synced_offset: u64,
        applied: Seq,
    ) -> FrameHeader {
        FrameHeader {
            body_len: self.len,
            body_crc: self.crc,
            count: self.count,
            first,
            prev,
            nonce,
            synced_offset,
            applied,
        }
    }
}

/// Encodes records into one [`FrameBody`].
#[derive(Debug, Default)]
pub struct FrameBuilder {
    bytes: Vec<u8>,
    count: u32,
}

impl FrameBuilder {
    /// Makes an empty builder.
    #[must_use]
    pub fn new() -> FrameBuilder {
        FrameBuilder::default()
    }

    /// Makes an empty builder with room for `bytes` bytes: the records, and four bytes for each of them.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> FrameBuilder {
        FrameBuilder { bytes: Vec::with_capacity(bytes + FRAME_ALIGN_BYTES as usize), count: 0 }
    }

    /// Adds one record, which is the concatenation of `parts`.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`] if the body would exceed [`FRAME_BODY_BYTES_MAX`]; the builder is unchanged.
    pub fn push(&mut self, parts: &[&[u8]]) -> Result<()> {
        let record = parts.iter().fold(0_u64, |sum, part| sum.saturating_add(part.len() as u64));
        let whole = record.saturating_add((self.bytes.len() + RECORD_LENGTH_BYTES) as u64);
        // Checked before anything is copied, so that a refused record leaves the builder unchanged.
        if whole > FRAME_BODY_BYTES_MAX {
            let context = format!("a batch of {whole} bytes; the limit is {FRAME_BODY_BYTES_MAX}");
            return Err(Error::new(ErrorKind::TooLarge, context));
        }
        let length = u32::try_from(record).expect("it is below the cap of 256 MiB");
        if self.bytes.is_empty() {
            // Most bodies have one record: reserving its padding too makes that one allocation.
            self.bytes.reserve_exact((whole as usize).next_multiple_of(FRAME_ALIGN_BYTES as usize));
        }
        self.bytes.extend_from_slice(&length.to_le_bytes());
        for part in parts {
            self.bytes.extend_from_slice(part);
        }
        // This cannot overflow: every record takes at least four bytes, so the cap of a body bounds their number.
        self.count += 1;
        Ok(())
    }

    /// Returns the number of records so far.
    pub(crate) fn len(&self) -> u32 {
        self.count
    }

    /// Finishes the body. Computes its checksum here, on the calling thread.
    #[must_use]
    pub fn finish(mut self) -> FrameBody {
        let len = u32::try_from(self.bytes.len()).expect("push keeps it below the cap of 256 MiB");
        let crc = crc32c::crc32c(&self.bytes);
        self.bytes.resize(self.bytes.len().next_multiple_of(FRAME_ALIGN_BYTES as usize), 0);
        FrameBody { padded: Bytes::from(self.bytes), len, crc, count: self.count }
    }
}

/// A frame that was read and whose checksums hold.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Its first record's sequence number.
    pub first: Seq,
    /// The number of records.
    pub count: u32,
    /// The last journaled sequence number before it. If it is after the number that a reader was to start after, the
    /// records between the two were trimmed before they could be read.
    pub prev: Seq,
    /// Its location.
    pub location: Location,
    body: Bytes,
}

impl Frame {
    /// Returns its last record's sequence number.
    #[must_use]
    pub fn last(&self) -> Seq {
        Seq(self.first.0.saturating_add(u64::from(self.count)).saturating_sub(1))
    }

    /// Returns the records in order, as slices of one shared buffer. A record that is kept keeps the whole buffer.
    pub fn records(&self) -> impl Iterator<Item = Bytes> + use<> {
        records_of(&self.body)
    }

    /// Returns the size of the frame on disk in bytes, header and padding included.
    #[must_use]
    pub fn len_on_disk(&self) -> u64 {
        bytes_on_disk(self.body.len())
    }

    /// Returns the encoded records.
    pub(crate) fn content(&self) -> Bytes {
        self.body.clone()
    }

    /// Returns the same records as a body, to be written elsewhere.
    pub(crate) fn to_body(&self) -> FrameBody {
        let mut builder = FrameBuilder::with_capacity(self.body.len());
        builder.bytes.extend_from_slice(&self.body);
        builder.count = self.count;
        builder.finish()
    }

    /// Makes a frame of a checked header and its body.
    ///
    /// # Errors
    /// A sentence that says how the body differs from the header.
    pub(crate) fn verified(
        header: &FrameHeader,
        location: Location,
        body: Bytes,
    ) -> Result<Frame, &'static str> {
        if crc32c::crc32c(&body) != header.body_crc {
            return Err("has a body that fails its checksum");
        }
        let mut rest: &[u8] = &body;
        // The checksum holds, so a body that does not fit its header was written wrong. It is never served.
        for _ in 0..header.count {
            split_record(&mut rest).ok_or(FEWER_RECORDS)?;
        }
        if !rest.is_empty() {
            return Err(MORE_BYTES);
        }
        Ok(Frame { first: header.first, count: header.count, prev: header.prev, location, body })
    }
}

/// A frame whose checksums hold, borrowed from the buffer that it was read into.
pub(crate) struct SoundFrame<'a> {
    pub(crate) header: &'a FrameHeader,
    pub(crate) location: Location,
    pub(crate) body: &'a [u8],
}

impl<'a> SoundFrame<'a> {
    /// Calls `take` with each record, in order.
    ///
    /// # Errors
    /// Those of `take`; `Damaged` if the body does not consist of as many records as the header says.
    pub(crate) fn each_record(&self, mut take: impl FnMut(&'a [u8]) -> Result<()>) -> Result<()> {
        let damaged = |why: &str| Error::new(ErrorKind::Damaged, format!("it {why}"));
        let mut rest = self.body;
        for _ in 0..self.header.count {
            take(split_record(&mut rest).ok_or_else(|| damaged(FEWER_RECORDS))?)?;
        }
        if rest.is_empty() { Ok(()) } else { Err(damaged(MORE_BYTES)) }
    }
}

/// Returns the records of a frame's content.
pub(crate) fn records_of(content: &Bytes) -> impl Iterator<Item = Bytes> + use<> {
    Records { content: content.clone(), at: 0 }
}

/// Returns the first `count` records of a frame's content, which padding may follow.
pub(crate) fn slices_of(content: &[u8], count: u32) -> impl Iterator<Item = &[u8]> {
    let mut rest = content;
    (0..count).map_while(move |_| split_record(&mut rest))
}

/// Splits off the next record; `None` if it is not whole.
fn split_record<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = take_u32(rest)? as usize;
    let (record, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(record)
}

/// Returns the first `count` records of a frame's content without the padding that may follow them.
pub(crate) fn without_padding(content: &[u8], count: u32) -> &[u8] {
    let len = slices_of(content, count).map(|record| RECORD_LENGTH_BYTES + record.len()).sum();
    content.get(..len).unwrap_or(content)
}

/// Iterates over a body whose lengths are known to be right: it was built here or went through [`Frame::verified`].
struct Records {
    content: Bytes,
    at: usize,
}

impl Iterator for Records {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let mut rest = self.content.get(self.at..)?;
        let length = take_u32(&mut rest)? as usize;
        if rest.len() < length {
            return None;
        }
        let start = self.at + RECORD_LENGTH_BYTES;
        self.at = start + length;
        Some(self.content.slice(start..self.at))
    }
}

/// Copies `field` to the front of `out` and moves `out` past it.
pub(crate) fn put(out: &mut &mut [u8], field: &[u8]) {
    let (place, rest) = std::mem::take(out)
        .split_at_mut_checked(field.len())
        .expect("the layout's fields fit its fixed size");
    place.copy_from_slice(field);
    *out = rest;
}

pub(crate) fn take_u32(from: &mut &[u8]) -> Option<u32> {
    let (field, rest) = from.split_first_chunk()?;
    *from = rest;
    Some(u32::from_le_bytes(*field))
}

pub(crate) fn take_u64(from: &mut &[u8]) -> Option<u64> {
    let (field, rest) = from.split_first_chunk()?;
    *from = rest;
    Some(u64::from_le_bytes(*field))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_has_the_documented_bytes() {
        let header = FrameHeader {
            body_len: 1,
            body_crc: 2,
            count: 3,
            first: Seq(4),
            prev: Seq(5),
            nonce: 6,
            synced_offset: 7,
            applied: Seq(8),
        };
        let mut out = Vec::new();
        let crc = header.encode(&mut out);
        assert_eq!(out.len() as u64, FRAME_HEADER_BYTES);
        assert_eq!(out[..4], crc.to_le_bytes());
        for (at, value) in
            [(4, 1_u8), (8, 2), (12, 3), (16, 4), (24, 5), (FRAME_NONCE_AT as usize, 6), (40, 7), (48, 8)]
        {
            assert_eq!(out[at], value);
        }
        assert_eq!(FrameHeader::decode(&out), Some((header, crc)));
        for at in 0..out.len() {
            out[at] ^= 1;
            assert_eq!(FrameHeader::decode(&out), None, "a flip at {at}");
            out[at] ^= 1;
        }
    }

    #[test]
    fn a_body_gives_back_its_records_and_lies_are_told() {
        let mut builder = FrameBuilder::new();
        builder.push(&[b"ab", b"", b"c"]).unwrap();
        builder.push(&[]).unwrap();
        let body = builder.finish();
        assert_eq!(body.count(), 2);
        assert_eq!(body.len_on_disk(), FRAME_HEADER_BYTES + 16);
        assert_eq!(body.records().collect::<Vec<_>>(), [Bytes::from("abc"), Bytes::new()]);

        let location = Location { segment: 1, offset: 0 };
        let header = body.header(Seq(1), Seq(0), 0, 0, Seq(0));
        let bytes = body.padded.slice(..body.len as usize);
        assert!(Frame::verified(&header, location, bytes.clone()).is_ok());
        for count in [0, 1, 3, u32::MAX] {
            let lie = FrameHeader { count, ..header };
            assert!(Frame::verified(&lie, location, bytes.clone()).is_err(), "{count} records");
            let lie = SoundFrame { header: &lie, location, body: &bytes };
            let error = lie.each_record(|_| Ok(())).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Damaged, "{count} records");
        }
        let (sound, mut records) = (SoundFrame { header: &header, location, body: &bytes }, Vec::new());
        let mut keep = |record| {
            records.push(record);
            Ok(())
        };
        sound.each_record(&mut keep).unwrap();
        assert_eq!(records, [&b"abc"[..], b""]);
        let empty = FrameBuilder::with_capacity(9).finish();
        assert_eq!((empty.count(), empty.records().count()), (0, 0));
    }

    #[test]
    fn a_body_over_the_cap_is_refused_and_leaves_the_builder_as_it_was() {
        let mut builder = FrameBuilder::new();
        let part = vec![0; 1024 * 1024];
        let error = builder.push(&vec![part.as_slice(); 256]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge);
        assert_eq!(builder.finish().count(), 0);
    }
}
