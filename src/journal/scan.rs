//! The scanner: walks over a segment's frames and finds the place where they stop being sound.
//!
//! Recovery and the survey share it, so that both draw the line between a torn tail and damage at the same place. It
//! only reads ([`Scan::write_tail_again`] apart), trusts no length before its checksum holds, and keeps a window of
//! the file in memory, not the file. A [`FrameVisitor`] sees each sound frame while it is in the window.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::disk::contract::{Disk, DiskFile};
use crate::error::{Error, Result};
use crate::ids::Seq;
use crate::journal::errors::{cannot, damage};
use crate::journal::frame::{
    FRAME_ALIGN_BYTES, FRAME_HEADER_BYTES, FRAME_NONCE_AT, FrameHeader, Location, SoundFrame,
};
use crate::journal::pool::parse_spare_name;
use crate::journal::segment::{SEGMENT_HEADER_BYTES, Seal, SegmentHeader, parse_segment_name};
use crate::safeguard::Safeguard;

/// The file that is locked while the journal is open.
pub(crate) const LOCK_NAME: &str = "lock";
/// The number of bytes that are read at once.
const WINDOW_BYTES: u64 = 256 * 1024;
/// The number of bytes of header checksums that are added to the chain at once.
const UNCHAINED_MAX: usize = 4096;
/// The size of a block that is skipped as a whole if it is zero, when headers are searched for.
const BLOCK_BYTES: usize = 4096;
const ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

/// The files of a journal's directory, by kind.
#[derive(Default)]
pub(crate) struct JournalFiles {
    pub(crate) segments: Vec<u64>,
    pub(crate) spares: Vec<u64>,
    pub(crate) unfinished: Vec<String>,
    pub(crate) lock: bool,
}

impl JournalFiles {
    pub(crate) fn read(disk: &dyn Disk, dir: &Path) -> Result<JournalFiles> {
        let mut listing = JournalFiles::default();
        for name in disk.list(dir).map_err(|error| cannot("list", dir, error))? {
            // Other names are left alone: a directory may hold the cursors and files of the layer, and nobody
            // asked us to delete those.
            if let Some(number) = parse_segment_name(&name) {
                listing.segments.push(number);
            } else if let Some(number) = parse_spare_name(&name, "seg") {
                listing.spares.push(number);
            } else if parse_spare_name(&name, "tmp").is_some() {
                listing.unfinished.push(name);
            } else if name == LOCK_NAME {
                listing.lock = true;
            }
        }
        // A file system lists in any order, and the checks of neighbours need that of the numbers.
        listing.segments.sort_unstable();
        listing.spares.sort_unstable();
        Ok(listing)
    }
}

/// Sees each sound frame that holds records, in order. A frame that it refuses counts as damage.
pub(crate) trait FrameVisitor: Send {
    fn visit(&mut self, frame: &SoundFrame<'_>) -> Result<()>;
}

/// Ignores the frames.
impl FrameVisitor for () {
    fn visit(&mut self, _: &SoundFrame<'_>) -> Result<()> {
        Ok(())
    }
}

/// A walk over one segment's frames.
pub(crate) struct Scan {
    pub(crate) path: PathBuf,
    nonce: u64,
    /// The end of the sound frames so far. Its chain lacks the checksums in `unchained`.
    pub(crate) found: Seal,
    /// The header checksums that are not in the chain yet, because adding many at once costs as much as adding one.
    /// Empty after a walk.
    unchained: Vec<u8>,
    /// The highest synced offset that a sound frame promises.
    promised: u64,
    /// The number of the first record; `None` before it.
    pub(crate) first: Option<Seq>,
    /// The witness of the last sound frame; `None` before the first.
    pub(crate) witness: Option<Seq>,
    /// The end before the last sound frame, if that frame is a promise (it holds no records).
    before_promise: Option<Seal>,
    window: FileWindow,
}

/// The reason why a walk stopped before its limit, with a sentence.
pub(crate) enum ScanStop {
    /// There is no sound frame: a torn write, or damage.
    Unsound(String),
    /// A sound frame of this segment does not continue the one before it. No torn write looks like that.
    Broken(String),
}

/// The bytes after the sound frames of a last segment.
pub(crate) enum TailEnd {
    /// The remains of a torn write, with their length.
    Torn(u64),
    /// Damage, with a sentence and the offset up to which the segment should be sound.
    Damaged(String, u64),
}

impl Scan {
    /// Starts a walk over `file`, whose header has been read.
    ///
    /// # Errors
    /// `Damaged` if the file is shorter than when it became a segment.
    pub(crate) fn over(file: Box<dyn DiskFile>, path: PathBuf, header: &SegmentHeader) -> Result<Scan> {
        let scan = Scan::over_any(file, path, header)?;
        match scan.cut_short(header) {
            Some(why) => {
                let stake = format!("records after {} cannot be trusted", scan.found.last);
                Err(damage(&scan.path, scan.window.len, &why, &stake))
            }
            None => Ok(scan),
        }
    }

    /// Starts a walk as [`Scan::over`] does, over a file that may be shorter than it was.
    pub(crate) fn over_any(file: Box<dyn DiskFile>, path: PathBuf, header: &SegmentHeader) -> Result<Scan> {
        let len = file.len().map_err(|error| cannot("read", &path, error))?;
        let window = FileWindow { file, len, start: 0, bytes: Vec::new() };
        Ok(Scan {
            path,
            window,
            nonce: header.nonce,
            found: start_of(header),
            unchained: Vec::with_capacity(UNCHAINED_MAX),
            promised: SEGMENT_HEADER_BYTES,
            first: None,
            witness: None,
            before_promise: None,
        })
    }

    /// Returns a sentence if the file is shorter than when it became a segment.
    pub(crate) fn cut_short(&self, header: &SegmentHeader) -> Option<String> {
        let len = self.window.len;
        (len < header.prepared).then(|| format!("the file is {len} bytes long and was {}", header.prepared))
    }

    /// Goes back to the first frame.
    pub(crate) fn rewind(&mut self, header: &SegmentHeader) {
        self.found = start_of(header);
        self.unchained.clear();
    }

    /// Returns the file's length at the start of the walk, or at the last [`Scan::look_again`].
    pub(crate) fn len(&self) -> u64 {
        self.window.len
    }

    /// Checks a segment up to the end that its successor records.
    pub(crate) fn sealed(&mut self, seal: &Seal, visitor: &mut dyn FrameVisitor) -> Result<()> {
        // Sealed segments were synced before their successor was made, so here even a torn frame is damage.
        if let Some(ScanStop::Unsound(why) | ScanStop::Broken(why)) = self.walk(seal.end, visitor)? {
            return Err(self.damaged(&why, seal.end));
        }
        match self.differs(seal) {
            Some(why) => {
                Err(damage(&self.path, SEGMENT_HEADER_BYTES, &why, "none of its records can be trusted"))
            }
            None => Ok(()),
        }
    }

    /// Returns a sentence if the segment, walked to its end, is not the one that its successor recorded.
    pub(crate) fn differs(&self, seal: &Seal) -> Option<String> {
        let found = &self.found;
        (found != seal && Safeguard::Seal.holds()).then(|| {
            format!(
                "its frames end at byte {} with record {} and chain {:#010x}, but its successor says byte {}, \
                 record {} and chain {:#010x}",
                found.end, found.last, found.chain, seal.end, seal.last, seal.chain
            )
        })
    }

    /// Finds the end of the last segment. Returns the number of bytes that a torn write left after it.
    pub(crate) fn last_segment(&mut self, visitor: &mut dyn FrameVisitor) -> Result<u64> {
        let Some(stop) = self.walk(self.window.len, visitor)? else { return Ok(0) };
        match self.end(stop)? {
            TailEnd::Torn(bytes) => Ok(bytes),
            TailEnd::Damaged(why, until) => Err(self.damaged(&why, until)),
        }
    }

    /// Decides whether a walk over the last segment stopped at a torn write or at damage.
    pub(crate) fn end(&mut self, stop: ScanStop) -> Result<TailEnd> {
        let why = match stop {
            ScanStop::Broken(why) => return Ok(TailEnd::Damaged(why, self.window.len)),
            ScanStop::Unsound(why) => why,
        };
        let remains = self.frames_after_end()?;
        match remains.promised {
            // A later frame says that a sync had covered this place, so no crash can have torn it.
            Some(promised) if Safeguard::SyncedOffset.holds() => {
                let why = format!("{why}, though everything up to byte {promised} had been synced");
                Ok(TailEnd::Damaged(why, promised))
            }
            _ => Ok(TailEnd::Torn(remains.torn_bytes)),
        }
    }

    /// Makes the frames that no promise covers durable, by writing their bytes once more and syncing them.
    ///
    /// A sync alone is not enough. After a sync that failed in an earlier process, the pages may still be readable,
    /// clean, and not on the disk. Writing the bytes that were read can do no harm. A promise at the end is cut off
    /// the segment instead, because it is of no further use.
    pub(crate) fn write_tail_again(&mut self) -> Result<()> {
        if let Some(before) = self.before_promise {
            self.found = before;
        }
        let mut at = self.promised;
        // What a promise covers was synced by a process that saw the sync succeed.
        if at >= self.found.end {
            return Ok(());
        }
        while at < self.found.end {
            let wanted = (self.found.end - at).min(WINDOW_BYTES / 2);
            let part = self.window.at(at, wanted);
            let mut part = part.map_err(|error| cannot("read", &self.path, error))?.to_vec();
            // A file that grew may lack the last frame's padding, without which that frame is whole.
            part.resize(wanted as usize, 0);
            let written = self.window.file.write_all_at(&part, at);
            written.map_err(|error| cannot("write", &self.path, error))?;
            at += part.len() as u64;
        }
        self.window.file.sync_data().map_err(|error| cannot("sync", &self.path, error))
    }

    /// Moves over all sound frames up to `limit`. Returns the reason if it stops before.
    pub(crate) fn walk(&mut self, limit: u64, visitor: &mut dyn FrameVisitor) -> Result<Option<ScanStop>> {
        while self.found.end < limit {
            if let Err(stop) = self.step(limit, visitor)? {
                self.chain();
                return Ok(Some(stop));
            }
        }
        self.chain();
        Ok(None)
    }

    /// Adds the pending header checksums to the chain.
    fn chain(&mut self) {
        self.found.chain = crc32c::crc32c_append(self.found.chain, &self.unchained);
        self.unchained.clear();
    }

    /// Moves over one frame, or returns the reason why there is none.
    #[inline]
    pub(crate) fn step(
        &mut self,
        limit: u64,
        visitor: &mut dyn FrameVisitor,
    ) -> Result<Result<FrameHeader, ScanStop>> {
        let unsound = |why: &str| Ok(Err(ScanStop::Unsound(why.to_owned())));
        let (at, path) = (self.found.end, &self.path);
        let unread = |error| cannot("read", path, error);
        let head = self.window.at(at, FRAME_HEADER_BYTES).map_err(unread)?;
        let Some((header, crc)) = FrameHeader::decode(head) else {
            return unsound("no sound frame header");
        };
        // A recycled file holds old frames, which are sound in themselves.
        if header.nonce != self.nonce && Safeguard::Nonce.holds() {
            // Unsound and not broken: an intact tail may end exactly where the old content begins.
            return unsound("a frame of another use of this file");
        }
        // Sound and of this use of the file, but out of order: records between the two are lost.
        if let Err(why) = header.follows(self.found.last) {
            return Ok(Err(ScanStop::Broken(format!("a frame that {why}"))));
        }
        // The length is compared with the bytes that are there before a body of that length is read.
        if header.content_bytes() > limit.min(self.window.len).saturating_sub(at) {
            // Unsound and not broken: a file that grew by appends may end within the frame that a crash tore.
            return unsound("a frame that runs beyond the end");
        }
        let body = self.window.body(at, &header).map_err(unread)?;
        if crc32c::crc32c(body) != header.body_crc && Safeguard::BodyChecksum.holds() {
            return unsound("a frame with a body that fails its checksum");
        }
        if header.count > 0 {
            self.first.get_or_insert(header.first);
            let location = Location { segment: self.found.number, offset: at };
            visitor.visit(&SoundFrame { header: &header, location, body }).map_err(|error| {
                let last = header.last();
                let stake = format!("records {} to {last} cannot be read", header.first);
                damage(path, at, &format!("a frame that is not what its writer wrote: {error}"), &stake)
            })?;
        }
        self.before_promise = None;
        if header.count == 0 {
            // The seal before a promise has to be complete, because the tail may be cut there.
            self.chain();
            self.before_promise = Some(self.found);
        }
        self.promised = self.promised.max(header.synced_offset);
        self.witness = Some(header.applied);
        // Also of a promise: the chain covers every frame.
        self.unchained.extend_from_slice(&crc.to_le_bytes());
        if self.unchained.len() >= UNCHAINED_MAX {
            self.chain();
        }
        self.found.last = header.last();
        self.found.end += header.bytes_on_disk();
        Ok(Ok(header))
    }

    /// Reads the body of the frame at `offset`, over which a step has moved.
    pub(crate) fn body(&mut self, offset: u64, header: &FrameHeader) -> Result<Bytes> {
        let body = self.window.read(offset + FRAME_HEADER_BYTES, header.body_len);
        body.map_err(|error| self.unread(error))
    }

    /// Continues at the next frame, at or after `from`, that is sound in itself and follows all frames found so far.
    ///
    /// Returns false if there is none before `limit`. The chain is invalid from then on.
    pub(crate) fn resume(&mut self, from: u64, limit: u64) -> Result<bool> {
        let (mut from, limit) = (from, limit.min(self.window.len));
        while let Some((at, header)) = self.next_header(from)? {
            // Bytes of a record can look like a header, so the search goes on right after its first word.
            from = at + FRAME_ALIGN_BYTES;
            // A frame with older numbers would make records come twice.
            let later = header.prev >= self.found.last && header.follows(header.prev).is_ok();
            if !later || header.content_bytes() > limit.saturating_sub(at) {
                continue;
            }
            let body = self.window.body(at, &header).map_err(|error| cannot("read", &self.path, error))?;
            // The header alone proves nothing here: bytes of a record can look like one.
            if crc32c::crc32c(body) == header.body_crc {
                self.found.end = at;
                self.found.last = header.prev;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Drops the window and reads the file's length again, because a writer may have changed both.
    pub(crate) fn look_again(&mut self) -> Result<()> {
        self.window.bytes.clear();
        self.window.len = self.window.file.len().map_err(|error| self.unread(error))?;
        Ok(())
    }

    /// Searches the bytes after the end for frames of this segment.
    fn frames_after_end(&mut self) -> Result<FramesAfterEnd> {
        let end = self.found.end;
        let (mut from, mut promised, mut torn_end) = (end, None, end);
        while let Some((at, header)) = self.next_header(from)? {
            from = at + FRAME_ALIGN_BYTES;
            // For people only: the promises alone decide what these bytes are.
            torn_end = torn_end.saturating_add(header.bytes_on_disk()).min(self.window.len);
            // A promise for bytes before the end says nothing about what is missing after it.
            if header.synced_offset > end {
                promised = promised.max(Some(header.synced_offset));
            }
        }
        Ok(FramesAfterEnd { promised, torn_bytes: torn_end - end })
    }

    fn next_header(&mut self, from: u64) -> Result<Option<(u64, FrameHeader)>> {
        let found = self.window.next_header(self.nonce, from);
        found.map_err(|error| self.unread(error))
    }

    fn damaged(&self, why: &str, until: u64) -> Error {
        let bytes = until.saturating_sub(self.found.end);
        let stake = format!("records after {} cannot be trusted; {bytes} bytes", self.found.last);
        damage(&self.path, self.found.end, why, &stake)
    }

    fn unread(&self, error: io::Error) -> Error {
        cannot("read", &self.path, error)
    }
}

/// A summary of the frames after the end of the sound ones.
struct FramesAfterEnd {
    /// The highest synced offset after the end that one of them promises.
    promised: Option<u64>,
    /// The distance from the end to the last byte that one of them would reach.
    torn_bytes: u64,
}

/// Returns the position before a segment's first frame.
fn start_of(header: &SegmentHeader) -> Seal {
    Seal { number: header.number, last: header.predecessor.last, end: SEGMENT_HEADER_BYTES, chain: 0 }
}

/// A buffer over a part of a file.
struct FileWindow {
    file: Box<dyn DiskFile>,
    len: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl FileWindow {
    /// Returns `len` bytes at `offset`, or fewer at the end of the file.
    ///
    /// The window grows to `len`, so the caller must have checked it.
    #[inline]
    fn at(&mut self, offset: u64, len: u64) -> io::Result<&[u8]> {
        let inside = offset.checked_sub(self.start).map(|skip| skip + len);
        if inside.is_none_or(|end| end > self.bytes.len() as u64) {
            self.move_to(offset, len)?;
        }
        let rest = self.bytes.get((offset - self.start) as usize..).unwrap_or(&[]);
        Ok(rest.get(..len as usize).unwrap_or(rest))
    }

    #[cold]
    fn move_to(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let wanted = WINDOW_BYTES.max(len).min(self.len.saturating_sub(offset));
        // Emptied first, so that a failed read leaves no bytes that look like content.
        let mut bytes = std::mem::take(&mut self.bytes);
        if bytes.len() < wanted as usize {
            bytes = vec![0; wanted as usize];
        }
        bytes.truncate(wanted as usize);
        let read = self.file.read_at(&mut bytes, offset)?;
        bytes.truncate(read);
        self.bytes = bytes;
        self.start = offset;
        Ok(())
    }

    /// Returns the body of the frame at `offset`. Its header must be sound, and its content must end within the file.
    fn body(&mut self, offset: u64, header: &FrameHeader) -> io::Result<&[u8]> {
        let content = self.at(offset, header.content_bytes())?;
        match content.split_at_checked(FRAME_HEADER_BYTES as usize) {
            Some((_, body)) if body.len() == header.body_len as usize => Ok(body),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Reads exactly `len` bytes, whose presence a checksum has shown.
    fn read(&self, offset: u64, len: u32) -> io::Result<Bytes> {
        let mut bytes = vec![0; len as usize];
        if self.file.read_at(&mut bytes, offset)? < bytes.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Bytes::from(bytes))
    }

    /// Finds the next sound header with this nonce at or after `from`, with its offset.
    fn next_header(&mut self, nonce: u64, from: u64) -> io::Result<Option<(u64, FrameHeader)>> {
        let nonce = nonce.to_le_bytes();
        let step = WINDOW_BYTES / 2;
        let mut start = from;
        while start < self.len {
            // Chunks overlap by a header, so that none is missed at a boundary.
            let chunk = self.at(start, step + FRAME_HEADER_BYTES)?;
            // Most of the bytes after the end are zero, because they were never written.
            let blocks = chunk.chunks(BLOCK_BYTES).zip((0..).step_by(BLOCK_BYTES));
            for (block, block_at) in blocks.filter(|(block, _)| !ZEROS.starts_with(block)) {
                let words = block.chunks_exact(FRAME_ALIGN_BYTES as usize).enumerate();
                for (word, _) in words.filter(|(_, bytes)| *bytes == nonce) {
                    let nonce_at = block_at + word as u64 * FRAME_ALIGN_BYTES;
                    let skip = nonce_at.checked_sub(FRAME_NONCE_AT).filter(|&at| at < step);
                    let head = skip.and_then(|skip| Some((skip, chunk.get(skip as usize..)?)));
                    let found =
                        head.and_then(|(skip, head)| Some((start + skip, FrameHeader::decode(head)?.0)));
                    if found.is_some() {
                        return Ok(found);
                    }
                }
            }
            start += step;
        }
        Ok(None)
    }
}
