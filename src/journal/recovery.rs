//! Recovery: from a directory to an open log.
//!
//! Guarantees that what is served was durable before it was read, that nothing on the disk changes before everything
//! has been found sound, that damage is told with file, offset and what is at stake, and that recovering again
//! comes to the same end. It streams through the segments and keeps no record in memory.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::contract::{Disk, DiskFile};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{JournalId, Seq};
use crate::journal::frame::{FRAME_ALIGN_BYTES, FRAME_HEADER_BYTES, FRAME_NONCE_AT, FrameHeader};
use crate::journal::log::Log;
use crate::journal::options::JournalOptions;
use crate::journal::pool::{Pool, parse_spare_name};
use crate::journal::segment::{
    SEGMENT_HEADER_BYTES, Seal, Segment, SegmentHeader, cannot, damage, parse_segment_name, segment_name,
};
use crate::journal::writer::Writer;
use crate::seam::random;

const LOCK_NAME: &str = "lock";
/// How much is read at once.
const WINDOW_BYTES: u64 = 1024 * 1024;
/// What is looked at as a whole when headers are searched for.
const BLOCK_BYTES: usize = 4096;
const ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

/// A journal that was opened.
#[derive(Debug)]
pub struct Opened {
    /// What readers and whoever trims share.
    pub log: Arc<Log>,
    /// The one appender.
    pub writer: Writer,
    /// The journal's identity.
    pub id: JournalId,
    /// Whether there was no journal before.
    pub created: bool,
    /// The last journaled sequence number before the oldest retained frame; zero if nothing was ever trimmed.
    pub first_prev: Seq,
    /// The last journaled sequence number; zero if there never was one.
    pub last: Seq,
    /// How many bytes of an interrupted write were cut off the end: a number for people, it may include what the
    /// file held in an earlier use.
    pub torn_bytes: u64,
}

impl Log {
    /// Opens the journal in `dir`, or creates one if the directory holds no segment. Blocking; reads the whole
    /// backlog once to verify it.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`]; [`ErrorKind::Locked`] if somebody has it open; [`ErrorKind::UnknownFormat`]
    /// and [`ErrorKind::Damaged`], and then nothing was changed on the disk; [`ErrorKind::DiskFull`] or
    /// [`ErrorKind::Io`] from the file system.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path, options: &JournalOptions) -> Result<Opened> {
        options.validate()?;
        disk.create_dir_all(dir).map_err(|error| cannot("create", dir, error))?;
        let lock = disk.lock(&dir.join(LOCK_NAME)).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => {
                let context =
                    format!("the journal in {} is open already, here or in another process", dir.display());
                Error::with_source(ErrorKind::Locked, context, error)
            }
            _ => cannot("lock", dir, error),
        })?;
        // What is listed from here on stays, whatever happens next.
        disk.sync_dir(dir).map_err(|error| cannot("sync", dir, error))?;
        let listing = Listing::read(&*disk, dir)?;
        let headers = read_headers(&*disk, dir, &listing.segments)?;
        let recovered = scan_all(&*disk, dir, &headers)?;

        // Everything is sound: from here on the disk may change.
        for name in &listing.unfinished {
            let path = dir.join(name);
            disk.remove(&path).map_err(|error| cannot("remove", &path, error))?;
        }
        let pool = Pool::adopt(Arc::clone(&disk), dir.to_owned(), options.clone(), &listing.spares)?;
        let Some(recovered) = recovered else {
            let id = draw_id()?;
            let made = pool.make_segment(id, 1, options.segment_bytes, Seal::default())?;
            let segment = Arc::new(made.0);
            let segments = BTreeMap::from([(1, Arc::clone(&segment))]);
            let log = Arc::new(Log::new(disk, dir.to_owned(), options.clone(), pool, id, segments, lock)?);
            let writer = Writer::created(Arc::clone(&log), segment, made.1);
            let (first_prev, last) = (Seq::ZERO, Seq::ZERO);
            return Ok(Opened { log, writer, id, created: true, first_prev, last, torn_bytes: 0 });
        };
        let Recovered { id, segments, before_tail, tail, first_prev, torn_bytes } = recovered;
        let log = Arc::new(Log::new(disk, dir.to_owned(), options.clone(), pool, id, segments, lock)?);
        let writer = Writer::recovered(Arc::clone(&log), tail, before_tail);
        Ok(Opened { log, writer, id, created: false, first_prev, last: tail.last, torn_bytes })
    }
}

struct Listing {
    segments: Vec<u64>,
    spares: Vec<u64>,
    unfinished: Vec<String>,
}

impl Listing {
    fn read(disk: &dyn Disk, dir: &Path) -> Result<Listing> {
        let mut listing = Listing { segments: Vec::new(), spares: Vec::new(), unfinished: Vec::new() };
        for name in disk.list(dir).map_err(|error| cannot("list", dir, error))? {
            if let Some(number) = parse_segment_name(&name) {
                listing.segments.push(number);
            } else if let Some(number) = parse_spare_name(&name, "seg") {
                listing.spares.push(number);
            } else if parse_spare_name(&name, "tmp").is_some() {
                listing.unfinished.push(name);
            }
        }
        listing.segments.sort_unstable();
        listing.spares.sort_unstable();
        Ok(listing)
    }
}

/// Reads and checks every header before any frame: an unknown format must be met before anything else is done.
fn read_headers(disk: &dyn Disk, dir: &Path, numbers: &[u64]) -> Result<Vec<SegmentHeader>> {
    let mut headers: Vec<SegmentHeader> = Vec::with_capacity(numbers.len());
    for &number in numbers {
        let path = dir.join(segment_name(number));
        let file = disk.open(&path).map_err(|error| cannot("open", &path, error))?;
        if numbers.last() == Some(&number) {
            // The others were synced before they got a successor.
            file.sync_data().map_err(|error| cannot("sync", &path, error))?;
        }
        let header = SegmentHeader::read(&*file, &path, number)?;
        if let Some(before) = headers.last() {
            check_neighbours(dir, before, &header)?;
        }
        headers.push(header);
    }
    Ok(headers)
}

fn check_neighbours(dir: &Path, before: &SegmentHeader, header: &SegmentHeader) -> Result<()> {
    let path = dir.join(segment_name(header.number));
    let stake = format!("records after {} cannot be trusted", before.predecessor.last);
    if header.journal != before.journal {
        let why = format!("it belongs to journal {}, its neighbour to {}", header.journal, before.journal);
        return Err(damage(&path, 0, &why, &stake));
    }
    let expected = before.number.saturating_add(1);
    if header.number != expected {
        let missing = dir.join(segment_name(expected));
        let stake = format!("the records up to {} that it held are lost", header.predecessor.last);
        return Err(damage(&missing, 0, "the file is missing between two others", &stake));
    }
    if header.predecessor.number != before.number {
        let why = format!("it names segment {} as its predecessor", header.predecessor.number);
        return Err(damage(&path, 0, &why, &stake));
    }
    Ok(())
}

struct Recovered {
    id: JournalId,
    segments: BTreeMap<u64, Arc<Segment>>,
    before_tail: Seal,
    tail: Seal,
    first_prev: Seq,
    torn_bytes: u64,
}

/// Verifies every frame of every segment.
fn scan_all(disk: &dyn Disk, dir: &Path, headers: &[SegmentHeader]) -> Result<Option<Recovered>> {
    let (Some(first), Some(last)) = (headers.first(), headers.last()) else {
        return Ok(None);
    };
    let mut segments = BTreeMap::new();
    let mut tail = Seal::default();
    let mut torn_bytes = 0;
    for (at, header) in headers.iter().enumerate() {
        let path = dir.join(segment_name(header.number));
        let mut scan = Scan::open(disk, path, header)?;
        match headers.get(at + 1) {
            Some(successor) => scan.sealed(&successor.predecessor)?,
            None => {
                torn_bytes = scan.last_segment()?;
                scan.write_tail_again()?;
            }
        }
        tail = scan.found;
        segments.insert(header.number, Arc::new(Segment::new(*header, scan.path, tail.end, tail.last)));
    }
    let (id, before_tail, first_prev) = (last.journal, last.predecessor, first.predecessor.last);
    Ok(Some(Recovered { id, segments, before_tail, tail, first_prev, torn_bytes }))
}

/// A walk over one segment's frames.
struct Scan {
    path: PathBuf,
    window: Window,
    nonce: u64,
    found: Seal,
    /// The furthest synced offset that a sound frame promises.
    promised: u64,
    /// Where the last frame that was found begins, if it holds no records.
    before_promise: Option<Seal>,
}

/// Why a walk stopped before its limit.
enum Stop {
    /// Nothing sound is there: a torn write, or damage.
    Unsound(String),
    /// A sound frame of this segment that does not continue the one before: no torn write looks like this.
    Broken(String),
}

impl Scan {
    fn open(disk: &dyn Disk, path: PathBuf, header: &SegmentHeader) -> Result<Scan> {
        let file = disk.open(&path).map_err(|error| cannot("open", &path, error))?;
        let len = file.len().map_err(|error| cannot("read", &path, error))?;
        let last = header.predecessor.last;
        let found = Seal { number: header.number, last, end: SEGMENT_HEADER_BYTES, chain: 0 };
        if len < header.prepared {
            let why = format!("the file is {len} bytes long and was {}", header.prepared);
            return Err(damage(&path, len, &why, &format!("records after {last} cannot be trusted")));
        }
        Ok(Scan {
            path,
            window: Window { file, len, start: 0, bytes: Vec::new() },
            nonce: header.nonce,
            found,
            promised: SEGMENT_HEADER_BYTES,
            before_promise: None,
        })
    }

    /// Checks a segment of which its successor says how it ends.
    fn sealed(&mut self, seal: &Seal) -> Result<()> {
        if let Some(Stop::Unsound(why) | Stop::Broken(why)) = self.walk(seal.end)? {
            return Err(self.damaged(&why, seal.end));
        }
        if self.found != *seal {
            let why = format!(
                "its frames end at byte {} with record {} and chain {:#010x}, but its successor says byte {}, \
                 record {} and chain {:#010x}",
                self.found.end, self.found.last, self.found.chain, seal.end, seal.last, seal.chain
            );
            return Err(damage(&self.path, SEGMENT_HEADER_BYTES, &why, "none of its records can be trusted"));
        }
        Ok(())
    }

    /// Finds the end of the last segment; returns how many bytes a torn write left behind it.
    fn last_segment(&mut self) -> Result<u64> {
        let len = self.window.len;
        match self.walk(len)? {
            None => Ok(0),
            Some(Stop::Broken(why)) => Err(self.damaged(&why, len)),
            Some(Stop::Unsound(why)) => match self.promised_beyond()? {
                Some(promised) => {
                    let why = format!("{why}, though everything up to byte {promised} had been synced");
                    Err(self.damaged(&why, promised))
                }
                None => self.torn_bytes(),
            },
        }
    }

    /// Makes the frames durable that no promise covers, by writing again what they are.
    ///
    /// The sync before the reading is not enough: if a sync failed in an earlier process, its pages may still be
    /// readable, and clean, and not on the disk. What is written now is what is read, so it can harm nothing. A promise
    /// at the end is left out of the segment instead: it has done its duty.
    fn write_tail_again(&mut self) -> Result<()> {
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

    fn walk(&mut self, limit: u64) -> Result<Option<Stop>> {
        while self.found.end < limit {
            if let Some(stop) = self.step(limit).map_err(|error| cannot("read", &self.path, error))? {
                return Ok(Some(stop));
            }
        }
        Ok(None)
    }

    fn step(&mut self, limit: u64) -> io::Result<Option<Stop>> {
        let unsound = |why: &str| Ok(Some(Stop::Unsound(why.to_owned())));
        let head = self.window.at(self.found.end, FRAME_HEADER_BYTES)?;
        let Some((header, crc)) = FrameHeader::decode(head) else {
            return unsound("no sound frame header");
        };
        if header.nonce != self.nonce {
            return unsound("a frame of another use of this file");
        }
        if let Err(why) = header.follows(self.found.last) {
            return Ok(Some(Stop::Broken(format!("a frame that {why}"))));
        }
        if header.content_bytes() > limit.min(self.window.len).saturating_sub(self.found.end) {
            return unsound("a frame that runs beyond the end");
        }
        let body_at = self.found.end + FRAME_HEADER_BYTES;
        if self.window.checksum(body_at, u64::from(header.body_len))? != header.body_crc {
            return unsound("a frame with a body that fails its checksum");
        }
        self.before_promise = (header.count == 0).then_some(self.found);
        self.promised = self.promised.max(header.synced_offset);
        self.found.chain = crc32c::crc32c_append(self.found.chain, &crc.to_le_bytes());
        self.found.last = header.last();
        self.found.end += header.bytes_on_disk();
        Ok(None)
    }

    /// The furthest synced offset beyond the end that any frame of this segment behind the end promises.
    fn promised_beyond(&mut self) -> Result<Option<u64>> {
        let (end, nonce) = (self.found.end, self.nonce);
        let mut promised = None;
        let found = self.window.headers_with(nonce, end, |header| {
            if header.synced_offset > end {
                promised = promised.max(Some(header.synced_offset));
            }
        });
        found.map_err(|error| cannot("read", &self.path, error))?;
        Ok(promised)
    }

    /// How far behind the end a frame of this segment was begun.
    fn torn_bytes(&mut self) -> Result<u64> {
        let (end, nonce, len) = (self.found.end, self.nonce, self.window.len);
        let mut behind = end;
        let found = self.window.headers_with(nonce, end, |header| {
            behind = behind.saturating_add(header.bytes_on_disk()).min(len);
        });
        found.map_err(|error| cannot("read", &self.path, error))?;
        Ok(behind - end)
    }

    fn damaged(&self, why: &str, until: u64) -> Error {
        let bytes = until.saturating_sub(self.found.end);
        let stake = format!("records after {} cannot be trusted; {bytes} bytes", self.found.last);
        damage(&self.path, self.found.end, why, &stake)
    }
}

/// A file seen through a buffer.
struct Window {
    file: Box<dyn DiskFile>,
    len: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl Window {
    /// At most `len` bytes at `offset`, fewer at the end of the file. `len` is at most the window's size.
    fn at(&mut self, offset: u64, len: u64) -> io::Result<&[u8]> {
        let inside = offset.checked_sub(self.start).map(|skip| skip + len);
        if inside.is_none_or(|end| end > self.bytes.len() as u64) {
            let wanted = WINDOW_BYTES.min(self.len.saturating_sub(offset));
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
        }
        let skip = (offset - self.start) as usize;
        let end = self.bytes.len().min(skip.saturating_add(len as usize));
        Ok(self.bytes.get(skip..end).unwrap_or(&[]))
    }

    fn checksum(&mut self, mut offset: u64, mut len: u64) -> io::Result<u32> {
        let mut crc = 0;
        while len > 0 {
            let part = self.at(offset, len.min(WINDOW_BYTES / 2))?;
            if part.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            crc = crc32c::crc32c_append(crc, part);
            let read = part.len() as u64;
            offset += read;
            len -= read;
        }
        Ok(crc)
    }

    /// Calls `seen` with every sound header with this nonce at or behind `from`.
    fn headers_with(&mut self, nonce: u64, from: u64, mut seen: impl FnMut(&FrameHeader)) -> io::Result<()> {
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
                    let behind = nonce_at.checked_sub(FRAME_NONCE_AT).filter(|&at| at < step);
                    let head = behind.and_then(|at| chunk.get(at as usize..));
                    if let Some((header, _)) = head.and_then(FrameHeader::decode) {
                        seen(&header);
                    }
                }
            }
            start += step;
        }
        Ok(())
    }
}

fn draw_id() -> Result<JournalId> {
    let mut id = [0; 16];
    random::fill(&mut id)
        .map_err(|error| Error::new(ErrorKind::Io, format!("cannot draw the journal's identity: {error}")))?;
    Ok(JournalId(id))
}
