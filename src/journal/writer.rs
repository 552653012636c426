//! The writer: the one appender of a log.
//!
//! Guarantees:
//! - A segment is synced before its successor exists.
//! - The header and the name of a segment are durable before its first frame is written.
//! - Frames that a failed append refused do not come back.
//! - A failed sync ends all writing.
//!
//! It waits for the disk alone. It gives no sequence numbers: frames come with theirs.

use std::mem;
use std::sync::Arc;

use crate::disk::contract::DiskFile;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{Seq, TenureId};
use crate::journal::errors::cannot;
use crate::journal::frame::{FRAME_HEADER_BYTES, FrameBody, FrameBuilder, Location};
use crate::journal::log::Log;
use crate::journal::segment::{SEGMENT_HEADER_BYTES, Seal, Segment};
use crate::safeguard::Safeguard;

/// The largest body that is copied into the group's buffer. Larger ones are written from where they are.
const COPIED_BODY_BYTES_MAX: usize = 256 * 1024;
/// The capacity that the group's buffer keeps between two groups.
const BUFFER_KEPT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The number of staged frames whose memory stays allocated between two groups.
const STAGED_KEPT_MAX: usize = 1024;

/// The one appender of a log. Owned by the committer.
pub struct Writer {
    log: Arc<Log>,
    /// The tenure of the segments that it makes.
    tenure: TenureId,
    /// The newest witness in a frame on the disk.
    witnessed: Seq,
    /// The end of the last segment, as far as it is written.
    tail: Seal,
    /// The end of the segment before, as the last segment's header records it.
    before_tail: Seal,
    /// `None` only until the first append after an open, because a recovered segment is never appended to.
    active: Option<ActiveSegment>,
    buffer: Vec<u8>,
    /// Empty between two appends; keeps its memory.
    staged: Vec<StagedFrame>,
    closed: bool,
}

/// The segment that is being written.
struct ActiveSegment {
    segment: Arc<Segment>,
    file: Arc<dyn DiskFile>,
    synced: u64,
    /// The highest synced offset that a frame on disk promises.
    promised: u64,
    /// True after a write that failed because the disk was full: no frame is added to this segment.
    full: bool,
}

/// A frame to append: its number and its content.
#[derive(Clone, Debug)]
pub struct GroupFrame {
    /// The sequence number of its first record; larger than every earlier one.
    pub first: Seq,
    /// Its records, at least one.
    pub body: FrameBody,
}

/// A sync that makes everything durable that was appended before the point was taken.
pub struct SyncPoint {
    log: Arc<Log>,
    file: Option<Arc<dyn DiskFile>>,
    nonce: u64,
    end: u64,
}

impl SyncPoint {
    /// Syncs without borrowing the writer. Blocking.
    ///
    /// # Errors
    /// [`ErrorKind::Poisoned`]; the writer refuses everything afterwards.
    pub fn sync(&self) -> Result<()> {
        match &self.file {
            Some(file) => self.log.sync_file(&**file),
            None => self.log.check_usable(),
        }
    }
}

impl Writer {
    /// Makes a writer that continues after a recovered segment, whose content is durable up to `tail.end`. Its frames
    /// are of this tenure.
    pub(crate) fn recovered(log: Arc<Log>, tenure: TenureId, tail: Seal, before_tail: Seal) -> Writer {
        Writer {
            log,
            tenure,
            witnessed: Seq::ZERO,
            tail,
            before_tail,
            active: None,
            buffer: Vec::new(),
            staged: Vec::new(),
            closed: false,
        }
    }

    /// Makes a writer into a new segment.
    pub(crate) fn created(log: Arc<Log>, segment: Arc<Segment>, file: Arc<dyn DiskFile>) -> Writer {
        let mut writer =
            Writer::recovered(log, segment.header.tenure, Seal::default(), segment.header.predecessor);
        writer.activate(segment, file);
        writer
    }

    /// Lets later frames belong to another tenure. They go to a new segment, whose header names it.
    ///
    /// # Errors
    /// As [`Writer::sync`].
    pub(crate) fn begin_tenure(&mut self, tenure: TenureId) -> Result<()> {
        if self.tenure != tenure {
            // The next segment's header vouches for all frames of this one.
            self.sync()?;
            (self.active, self.tenure) = (None, tenure);
        }
        Ok(())
    }

    /// Appends frames, and adds the location of each written frame to `written`, in order.
    ///
    /// It does so after an error too: frames without a location were not written and will not come back. Makes one
    /// write for each segment it touches, and two more for each body over 256 KiB, which is not copied. Blocking.
    ///
    /// # Errors
    /// - [`ErrorKind::DiskFull`]; later appends may succeed.
    /// - [`ErrorKind::Poisoned`] with an unknown outcome of the frames in flight; later appends are refused.
    /// - [`ErrorKind::Closed`] after [`Writer::close`].
    /// - [`ErrorKind::Unsupported`] for frames that are out of order or empty; nothing is written then.
    #[inline]
    pub fn append<'a>(
        &mut self,
        group: impl IntoIterator<Item = &'a GroupFrame> + Clone,
        written: &mut Vec<Location>,
    ) -> Result<()> {
        let mut staged = Staged { tail: self.tail, frames: mem::take(&mut self.staged) };
        let result = self.append_all(group, &mut staged, written);
        self.buffer.clear();
        self.buffer.shrink_to(BUFFER_KEPT_BYTES_MAX);
        staged.frames.clear();
        staged.frames.shrink_to(STAGED_KEPT_MAX);
        self.staged = staged.frames;
        result
    }

    /// Makes all appended frames durable, and moves the synced offset. Blocking.
    ///
    /// # Errors
    /// [`ErrorKind::Poisoned`] with an unknown outcome; the writer refuses everything afterwards.
    pub fn sync(&mut self) -> Result<()> {
        let end = self.tail.end;
        match &mut self.active {
            // Without new frames there is nothing to sync, and a sync costs a disk's flush even then.
            Some(active) if active.synced < end => {
                self.log.sync_file(&*active.file)?;
                active.synced = end;
                Ok(())
            }
            _ => self.log.check_usable(),
        }
    }

    /// Returns the sync that makes all frames so far durable, so that the writer is free meanwhile.
    #[must_use]
    pub fn sync_point(&self) -> SyncPoint {
        let active = self.active.as_ref().filter(|active| active.synced < self.tail.end);
        SyncPoint {
            log: Arc::clone(&self.log),
            file: active.map(|active| Arc::clone(&active.file)),
            nonce: active.map_or(0, |active| active.segment.header.nonce),
            end: self.tail.end,
        }
    }

    /// Moves the synced offset after [`SyncPoint::sync`] succeeded.
    #[allow(clippy::needless_pass_by_value, reason = "a point counts once")]
    pub fn synced(&mut self, point: SyncPoint) {
        // By nonce: the writer may have moved to another segment, whose offsets have nothing to do with this
        // point.
        if let Some(active) = &mut self.active
            && active.segment.header.nonce == point.nonce
        {
            // Never back: another sync may have gone further than this point meanwhile.
            active.synced = active.synced.max(point.end);
        }
    }

    /// Makes all records up to and including `last` visible to readers.
    pub fn publish(&self, last: Seq) {
        self.log.publish(last);
    }

    /// Returns the last sequence number that was written. For tests.
    #[cfg(any(test, forebay_mutation))]
    #[must_use]
    pub fn last(&self) -> Seq {
        self.tail.last
    }

    /// Syncs, and writes a promise: a frame without records that holds the last synced offset and the witness.
    ///
    /// With the promise, recovery can tell later damage below that offset from a torn write. A second call does
    /// nothing. Blocking.
    ///
    /// # Errors
    /// [`ErrorKind::Poisoned`] as for [`Writer::sync`], or the error of writing the promise; all appended frames
    /// are durable in that case.
    pub fn close(&mut self) -> Result<()> {
        if self.closed {
            return Ok(());
        }
        // The promise must not speak of bytes that are not synced yet.
        self.sync()?;
        // Before the promise is written: if that fails, the journal must not be written any more either.
        self.closed = true;
        // The store has gone on since the last frame. Without a witness of that, an older copy of it would pass for the
        // store that this journal was written for.
        let unwitnessed = self.log.applied() > self.witnessed;
        match &self.active {
            // A full segment gets no promise: there is no room for it, and the frames on disk are complete without one.
            Some(active) if active.full || (active.promised == active.synced && !unwitnessed) => {
                return Ok(());
            }
            None if !unwitnessed => return Ok(()),
            Some(_) => {}
            None => self.rotate(0)?,
        }
        let mut staged = Staged { tail: self.tail, frames: Vec::new() };
        self.stage(self.tail.last.next(), &FrameBuilder::new().finish(), &mut staged)?;
        self.flush(&mut staged, &mut Vec::new())?;
        // The promise itself has to survive, or damage below it would pass for a torn write.
        self.sync()
    }

    fn append_all<'a>(
        &mut self,
        group: impl IntoIterator<Item = &'a GroupFrame> + Clone,
        staged: &mut Staged,
        written: &mut Vec<Location>,
    ) -> Result<()> {
        if self.closed {
            return Err(Error::new(ErrorKind::Closed, "the journal is closed"));
        }
        self.log.check_usable()?;
        check_order(self.tail.last, group.clone())?;
        for GroupFrame { first, body } in group {
            let need = body.len_on_disk();
            // One frame never spans two segments: recovery would have to trust a file to complete another.
            if !self.fits(staged.tail.end, need) {
                // What belongs to the old segment goes out first, because its end becomes part of the next header.
                self.flush(staged, written)?;
                self.rotate(need)?;
                staged.tail = self.tail;
            }
            // Copying a large body would double its memory for one write less.
            if body.padded().len() > COPIED_BODY_BYTES_MAX {
                // The body comes first: without its header a crash leaves nothing that looks like a frame.
                self.flush(staged, written)?;
                self.write_body(body.padded(), staged.tail.end + FRAME_HEADER_BYTES)?;
                self.stage(*first, body, staged)?;
                self.flush(staged, written)?;
            } else {
                self.stage(*first, body, staged)?;
                self.buffer.extend_from_slice(body.padded());
            }
        }
        self.flush(staged, written)
    }

    /// Puts a frame's header into the buffer.
    fn stage(&mut self, first: Seq, body: &FrameBody, staged: &mut Staged) -> Result<()> {
        let Some(active) = &mut self.active else {
            return Err(no_segment());
        };
        let tail = &mut staged.tail;
        // The offset as it is now: a frame must not promise a sync that has not happened.
        let applied = self.log.applied();
        let header = body.header(first, tail.last, active.segment.header.nonce, active.synced, applied);
        let end = self.buffer.len() as u64 + header.content_bytes();
        let crc = header.encode(&mut self.buffer);
        active.promised = active.synced;
        self.witnessed = applied;
        let (last, bytes_on_disk) = (header.last(), header.bytes_on_disk());
        tail.last = last;
        tail.end += bytes_on_disk;
        staged.frames.push(StagedFrame { end, last, bytes_on_disk, crc });
        Ok(())
    }

    /// Writes the staged frames, and moves the tail over those that reached the file.
    fn flush(&mut self, staged: &mut Staged, written: &mut Vec<Location>) -> Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let result = self.write(&self.buffer, self.tail.end);
        let whole = match &result {
            Ok(()) => self.buffer.len(),
            // A full disk takes a prefix, and frames in it would come back after a crash. They have to be counted
            // as written.
            Err(error) if error.kind() == ErrorKind::DiskFull => self.written_of_buffer()?,
            // After any other error nothing may be counted: the log is poisoned, and the outcome is unknown.
            Err(_) => 0,
        };
        self.count_frames(whole, staged, written);
        self.buffer.clear();
        if let Some(active) = &mut self.active {
            // The bytes after the tail are unknown after a failed write, so no frame may follow them.
            active.full |= result.is_err();
            active.segment.advance(self.tail.end, self.tail.last);
        }
        result
    }

    fn write_body(&mut self, body: &[u8], at: u64) -> Result<()> {
        let result = self.write(body, at);
        if let Some(active) = &mut self.active {
            active.full |= result.is_err();
        }
        result
    }

    fn write(&self, bytes: &[u8], at: u64) -> Result<()> {
        let active = self.active.as_ref().ok_or_else(no_segment)?;
        active.file.write_all_at(bytes, at).map_err(|error| {
            // A full disk is known to have taken a prefix. After any other error it is unknown what reached the file.
            let error = cannot("write", &active.segment.path, error);
            if error.kind() == ErrorKind::DiskFull { error } else { self.log.poison(error) }
        })
    }

    /// Returns the number of the buffer's bytes that are in the file after a write that failed on a full disk.
    fn written_of_buffer(&self) -> Result<usize> {
        let active = self.active.as_ref().ok_or_else(no_segment)?;
        let mut found = vec![0; self.buffer.len()];
        // If the file cannot be read either, it is unknown what a recovery would find.
        let read = active.file.read_at(&mut found, self.tail.end);
        let read = read.map_err(|error| self.log.poison(cannot("read", &active.segment.path, error)))?;
        let same = found.iter().take(read).zip(&self.buffer).take_while(|(found, meant)| found == meant);
        Ok(same.count())
    }

    /// Moves the tail over the frames that lie wholly in the first `whole` bytes of the buffer.
    ///
    /// A recovery would find these frames, so they count as written.
    fn count_frames(&mut self, whole: usize, staged: &mut Staged, written: &mut Vec<Location>) {
        for StagedFrame { end, last, bytes_on_disk, crc } in &staged.frames {
            // A body that was not copied was written before its header.
            if (*end).min(self.buffer.len() as u64) > whole as u64 {
                break;
            }
            written.push(Location { segment: self.tail.number, offset: self.tail.end });
            self.tail.end += bytes_on_disk;
            self.tail.last = *last;
            // In the order of the file, because the successor's seal compares the chain of all frames (RocksDB
            // #13226).
            self.tail.chain = crc32c::crc32c_append(self.tail.chain, &crc.to_le_bytes());
        }
        staged.frames.clear();
    }

    fn fits(&self, end: u64, need: u64) -> bool {
        // A header's room is reserved for the promise of a clean close.
        let behind = end.saturating_add(need).saturating_add(FRAME_HEADER_BYTES);
        self.active.as_ref().is_some_and(|active| !active.full && behind <= active.segment.header.capacity)
    }

    /// Moves to a new segment with room for a frame of `need` bytes.
    fn rotate(&mut self, need: u64) -> Result<()> {
        // The successor's header vouches for all frames of this segment.
        if Safeguard::SyncBeforeSuccessor.holds() {
            self.sync()?;
        }
        let wanted = SEGMENT_HEADER_BYTES.saturating_add(need).saturating_add(FRAME_HEADER_BYTES);
        // A batch larger than a segment gets one of its own size, which is never recycled.
        let capacity = wanted.max(self.log.options.segment_bytes);
        let (number, predecessor) = if self.tail.end == SEGMENT_HEADER_BYTES {
            // An empty segment gets no successor: the new one takes its name and its predecessor, in one rename.
            (self.tail.number, self.before_tail)
        } else {
            (self.tail.number.saturating_add(1), self.tail)
        };
        let made = self.log.pool.make_segment((self.log.id(), self.tenure), number, capacity, predecessor);
        let (segment, file) = made.map_err(|error| match error.kind() {
            // Nothing has changed, so a later append may try again. After any other error the segment may exist.
            ErrorKind::DiskFull => error,
            _ => self.log.poison(error),
        })?;
        let segment = Arc::new(segment);
        self.log.insert(Arc::clone(&segment));
        self.activate(segment, file);
        Ok(())
    }

    fn activate(&mut self, segment: Arc<Segment>, file: Arc<dyn DiskFile>) {
        let header = &segment.header;
        let (end, last) = (SEGMENT_HEADER_BYTES, header.predecessor.last);
        self.tail = Seal { number: header.number, last, end, chain: 0 };
        self.before_tail = header.predecessor;
        self.active = Some(ActiveSegment { segment, file, synced: end, promised: end, full: false });
    }
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("log", &self.log).field("tail", &self.tail).finish_non_exhaustive()
    }
}

/// The frames in the buffer, which are not written yet.
struct Staged {
    /// The tail as it will be after the write; its chain is not kept up to date.
    tail: Seal,
    frames: Vec<StagedFrame>,
}

/// A frame in the buffer, or its header alone.
struct StagedFrame {
    /// The end of header and body in the buffer, if the body is there.
    end: u64,
    last: Seq,
    bytes_on_disk: u64,
    /// The header's checksum.
    crc: u32,
}

fn check_order<'a>(mut last: Seq, group: impl IntoIterator<Item = &'a GroupFrame>) -> Result<()> {
    for GroupFrame { first, body } in group {
        // A bug of the caller. Recovery would take such a frame for damage.
        if *first <= last || body.count() == 0 {
            let context = format!("a frame of {} records at {first}, after {last}", body.count());
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        last = Seq(first.0.saturating_add(u64::from(body.count()) - 1));
    }
    Ok(())
}

fn no_segment() -> Error {
    Error::new(ErrorKind::Closed, "the journal has no active segment")
}
