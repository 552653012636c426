//! The scanner: walks over a segment's frames and says where they stop being sound, and why.
//!
//! Recovery and the survey share it, so that both draw the line between a torn tail and damage in the same place.
//! It only reads ([`Scan::write_tail_again`] apart), trusts no length before its checksum, and keeps a window of the
//! file in memory, not the file. Who wants to know what is in the frames hears of each while it is in the window.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::disk::contract::{Disk, DiskFile};
use crate::error::{Error, Result};
use crate::journal::frame::{
    FRAME_ALIGN_BYTES, FRAME_HEADER_BYTES, FRAME_NONCE_AT, FrameHeader, Location, SoundFrame,
};
use crate::journal::pool::parse_spare_name;
use crate::journal::segment::{
    SEGMENT_HEADER_BYTES, Seal, SegmentHeader, cannot, damage, parse_segment_name,
};
use crate::safeguard::Safeguard;

/// The file that whoever has the journal open holds.
pub(crate) const LOCK_NAME: &str = "lock";
/// How much is read at once.
const WINDOW_BYTES: u64 = 256 * 1024;
/// How many bytes of checksums are taken into the chain at once.
const UNCHAINED_MAX: usize = 4096;
/// What is looked at as a whole when headers are searched for.
const BLOCK_BYTES: usize = 4096;
const ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

/// What lies in a journal's directory, by name.
#[derive(Default)]
pub(crate) struct Listing {
    pub(crate) segments: Vec<u64>,
    pub(crate) spares: Vec<u64>,
    pub(crate) unfinished: Vec<String>,
    pub(crate) lock: bool,
}

impl Listing {
    pub(crate) fn read(disk: &dyn Disk, dir: &Path) -> Result<Listing> {
        let mut listing = Listing::default();
        for name in disk.list(dir).map_err(|error| cannot("list", dir, error))? {
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
        listing.segments.sort_unstable();
        listing.spares.sort_unstable();
        Ok(listing)
    }
}

/// Who hears of each frame with records, in order, when it has been found sound. What they refuse is damage.
pub(crate) type Hear<'a> = dyn FnMut(&SoundFrame<'_>) -> Result<()> + 'a;

/// A walk over one segment's frames.
pub(crate) struct Scan {
    pub(crate) path: PathBuf,
    nonce: u64,
    /// How the segment ends, as far as the walk has come; for its chain, see `unchained`.
    pub(crate) found: Seal,
    /// The checksums of headers that are not in the chain yet: for each by itself the chain would cost as much as for
    /// many. Empty when a walk has ended.
    unchained: Vec<u8>,
    /// The furthest synced offset that a sound frame promises.
    promised: u64,
    /// Where the last frame that was found begins, if it holds no records.
    before_promise: Option<Seal>,
    window: Window,
}

/// Why a walk stopped before its limit.
pub(crate) enum Stop {
    /// Nothing sound is there: a torn write, or damage.
    Unsound(String),
    /// A sound frame of this segment that does not continue the one before: no torn write looks like this.
    Broken(String),
}

/// What lies behind the sound frames of a last segment.
pub(crate) enum End {
    /// Nothing but what a torn write left, which reaches so many bytes.
    Torn(u64),
    /// Damage: why, and up to where it was to be sound.
    Damaged(String, u64),
}

impl Scan {
    /// A walk over `file`, whose header has been read.
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

    /// As [`Scan::over`], though the file may be shorter than it was.
    pub(crate) fn over_any(file: Box<dyn DiskFile>, path: PathBuf, header: &SegmentHeader) -> Result<Scan> {
        let len = file.len().map_err(|error| cannot("read", &path, error))?;
        let window = Window { file, len, start: 0, bytes: Vec::new() };
        Ok(Scan {
            path,
            window,
            nonce: header.nonce,
            found: beginning(header),
            unchained: Vec::with_capacity(UNCHAINED_MAX),
            promised: SEGMENT_HEADER_BYTES,
            before_promise: None,
        })
    }

    /// Whether the file is shorter than when it became a segment; if so, a sentence.
    pub(crate) fn cut_short(&self, header: &SegmentHeader) -> Option<String> {
        let len = self.window.len;
        (len < header.prepared).then(|| format!("the file is {len} bytes long and was {}", header.prepared))
    }

    /// Back to the first frame.
    pub(crate) fn rewind(&mut self, header: &SegmentHeader) {
        self.found = beginning(header);
        self.unchained.clear();
    }

    /// The file's length when the walk began, or was told to look again.
    pub(crate) fn len(&self) -> u64 {
        self.window.len
    }

    /// Checks a segment of which its successor says how it ends.
    pub(crate) fn sealed(&mut self, seal: &Seal, hear: &mut Hear<'_>) -> Result<()> {
        if let Some(Stop::Unsound(why) | Stop::Broken(why)) = self.walk(seal.end, hear)? {
            return Err(self.damaged(&why, seal.end));
        }
        match self.differs(seal) {
            Some(why) => {
                Err(damage(&self.path, SEGMENT_HEADER_BYTES, &why, "none of its records can be trusted"))
            }
            None => Ok(()),
        }
    }

    /// Whether the segment, walked to its end, is another one than its successor recorded; if so, a sentence.
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

    /// Finds the end of the last segment; returns how many bytes a torn write left behind it.
    pub(crate) fn last_segment(&mut self, hear: &mut Hear<'_>) -> Result<u64> {
        let Some(stop) = self.walk(self.window.len, hear)? else { return Ok(0) };
        match self.end(stop)? {
            End::Torn(bytes) => Ok(bytes),
            End::Damaged(why, until) => Err(self.damaged(&why, until)),
        }
    }

    /// What it means that the walk over a last segment stopped.
    pub(crate) fn end(&mut self, stop: Stop) -> Result<End> {
        let why = match stop {
            Stop::Broken(why) => return Ok(End::Damaged(why, self.window.len)),
            Stop::Unsound(why) => why,
        };
        let behind = self.behind()?;
        match behind.promised {
            Some(promised) if Safeguard::SyncedOffset.holds() => {
                let why = format!("{why}, though everything up to byte {promised} had been synced");
                Ok(End::Damaged(why, promised))
            }
            _ => Ok(End::Torn(behind.torn_bytes)),
        }
    }

    /// Makes the frames durable that no promise covers, by writing again what they are.
    ///
    /// To sync them is not enough: if a sync failed in an earlier process, its pages may still be readable, and clean,
    /// and not on the disk. What is written now is what is read, so it can harm nothing. A promise
    /// at the end is left out of the segment instead: it has done its duty.
    pub(crate) fn write_tail_again(&mut self) -> Result<()> {
        if let Some(before) = self.before_promise {
            self.found = before;
        }
        let mut at = self.promised;
        if at >= self.found.end {
            return Ok(());
        }
        while at < self.found.end {
            let wanted = (self.found.end - at).min(WINDOW_BYTES / 2);
            let part = self.window.at(at, wanted);
            let mut part = part.map_err(|error| cannot("read", &self.path, error))?.to_vec();
            // The last frame is whole without its padding, which a file that grew may lack.
            part.resize(wanted as usize, 0);
            let written = self.window.file.write_all_at(&part, at);
            written.map_err(|error| cannot("write", &self.path, error))?;
            at += part.len() as u64;
        }
        self.window.file.sync_data().map_err(|error| cannot("sync", &self.path, error))
    }

    pub(crate) fn walk(&mut self, limit: u64, hear: &mut Hear<'_>) -> Result<Option<Stop>> {
        while self.found.end < limit {
            if let Err(stop) = self.step(limit, hear)? {
                self.chain();
                return Ok(Some(stop));
            }
        }
        self.chain();
        Ok(None)
    }

    /// Brings the chain up to the end.
    fn chain(&mut self) {
        self.found.chain = crc32c::crc32c_append(self.found.chain, &self.unchained);
        self.unchained.clear();
    }

    /// Moves over one frame, or says why there is none.
    #[inline]
    pub(crate) fn step(&mut self, limit: u64, hear: &mut Hear<'_>) -> Result<Result<FrameHeader, Stop>> {
        let unsound = |why: &str| Ok(Err(Stop::Unsound(why.to_owned())));
        let (at, path) = (self.found.end, &self.path);
        let unread = |error| cannot("read", path, error);
        let head = self.window.at(at, FRAME_HEADER_BYTES).map_err(unread)?;
        let Some((header, crc)) = FrameHeader::decode(head) else {
            return unsound("no sound frame header");
        };
        if header.nonce != self.nonce && Safeguard::Nonce.holds() {
            return unsound("a frame of another use of this file");
        }
        if let Err(why) = header.follows(self.found.last) {
            return Ok(Err(Stop::Broken(format!("a frame that {why}"))));
        }
        if header.content_bytes() > limit.min(self.window.len).saturating_sub(at) {
            return unsound("a frame that runs beyond the end");
        }
        let body = self.window.body(at, &header).map_err(unread)?;
        if crc32c::crc32c(body) != header.body_crc && Safeguard::BodyChecksum.holds() {
            return unsound("a frame with a body that fails its checksum");
        }
        if header.count > 0 {
            let location = Location { segment: self.found.number, offset: at };
            hear(&SoundFrame { header: &header, location, body }).map_err(|error| {
                let last = header.last();
                let stake = format!("records {} to {last} cannot be read", header.first);
                damage(path, at, &format!("a frame that is not what its writer wrote: {error}"), &stake)
            })?;
        }
        self.before_promise = None;
        if header.count == 0 {
            self.chain();
            self.before_promise = Some(self.found);
        }
        self.promised = self.promised.max(header.synced_offset);
        self.unchained.extend_from_slice(&crc.to_le_bytes());
        if self.unchained.len() >= UNCHAINED_MAX {
            self.chain();
        }
        self.found.last = header.last();
        self.found.end += header.bytes_on_disk();
        Ok(Ok(header))
    }

    /// The body of the frame at `offset`, over which a step has moved.
    pub(crate) fn body(&mut self, offset: u64, header: &FrameHeader) -> Result<Bytes> {
        let body = self.window.read(offset + FRAME_HEADER_BYTES, header.body_len);
        body.map_err(|error| self.unread(error))
    }

    /// Goes on at the next frame, at or behind `from`, that is sound in itself and comes after everything found so
    /// far; false if there is none before `limit`. The chain is lost by this.
    pub(crate) fn resume(&mut self, from: u64, limit: u64) -> Result<bool> {
        let (mut from, limit) = (from, limit.min(self.window.len));
        while let Some((at, header)) = self.next_header(from)? {
            from = at + FRAME_ALIGN_BYTES;
            let later = header.prev >= self.found.last && header.follows(header.prev).is_ok();
            if !later || header.content_bytes() > limit.saturating_sub(at) {
                continue;
            }
            let body = self.window.body(at, &header).map_err(|error| cannot("read", &self.path, error))?;
            if crc32c::crc32c(body) == header.body_crc {
                self.found.end = at;
                self.found.last = header.prev;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Forgets what was read ahead, and how long the file was: somebody may be writing.
    pub(crate) fn look_again(&mut self) -> Result<()> {
        self.window.bytes.clear();
        self.window.len = self.window.file.len().map_err(|error| self.unread(error))?;
        Ok(())
    }

    /// Looks through all that is behind the end for frames of this segment.
    fn behind(&mut self) -> Result<Behind> {
        let end = self.found.end;
        let (mut from, mut promised, mut torn_end) = (end, None, end);
        while let Some((at, header)) = self.next_header(from)? {
            from = at + FRAME_ALIGN_BYTES;
            torn_end = torn_end.saturating_add(header.bytes_on_disk()).min(self.window.len);
            if header.synced_offset > end {
                promised = promised.max(Some(header.synced_offset));
            }
        }
        Ok(Behind { promised, torn_bytes: torn_end - end })
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

/// What frames behind the end tell.
struct Behind {
    /// The furthest synced offset beyond the end that one of them promises.
    promised: Option<u64>,
    /// How far behind the end one of them was begun.
    torn_bytes: u64,
}

/// Where a walk begins.
fn beginning(header: &SegmentHeader) -> Seal {
    Seal { number: header.number, last: header.predecessor.last, end: SEGMENT_HEADER_BYTES, chain: 0 }
}

/// A file seen through a buffer.
struct Window {
    file: Box<dyn DiskFile>,
    len: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl Window {
    /// At most `len` bytes at `offset`, fewer at the end of the file. The window grows to what is asked for, so `len`
    /// must be one that was checked.
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
        // Emptied first, so that a failed read leaves nothing that looks like content.
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

    /// The body of the frame at `offset`, whose header was found sound, and whose content ends before the file does.
    fn body(&mut self, offset: u64, header: &FrameHeader) -> io::Result<&[u8]> {
        let content = self.at(offset, header.content_bytes())?;
        match content.split_at_checked(FRAME_HEADER_BYTES as usize) {
            Some((_, body)) if body.len() == header.body_len as usize => Ok(body),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Exactly `len` bytes, whose presence a checksum has shown.
    fn read(&self, offset: u64, len: u32) -> io::Result<Bytes> {
        let mut bytes = vec![0; len as usize];
        if self.file.read_at(&mut bytes, offset)? < bytes.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Bytes::from(bytes))
    }

    /// The next sound header with this nonce at or behind `from`, with its place.
    fn next_header(&mut self, nonce: u64, from: u64) -> io::Result<Option<(u64, FrameHeader)>> {
        let nonce = nonce.to_le_bytes();
        let step = WINDOW_BYTES / 2;
        let mut start = from;
        while start < self.len {
            // Overlapping by a header, so that none is missed at a boundary.
            let chunk = self.at(start, step + FRAME_HEADER_BYTES)?;
            // Most of what lies behind the end was never written.
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
