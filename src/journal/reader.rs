//! A reader: a cursor over the frames of a log, beside the running writer.
//!
//! Sees only what was published, in order. It holds the segment that it reads, so a trim cannot change that file
//! under it. It never writes, and remembers nothing on disk: where to start is its owner's to know.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::disk::contract::DiskFile;
use crate::error::Result;
use crate::ids::Seq;
use crate::journal::frame::{FRAME_HEADER_BYTES, Frame, FrameHeader, Location};
use crate::journal::log::{Log, check_header, damaged_frame, read_exactly};
use crate::journal::segment::{SEGMENT_HEADER_BYTES, Segment, cannot};

/// How much is read at once; records handed out keep at most this much memory beside themselves.
const READ_AHEAD_BYTES: u64 = 256 * 1024;

/// Reads a log's frames in order.
pub struct Reader {
    log: Arc<Log>,
    after: Seq,
    place: Option<Place>,
}

struct Place {
    segment: Arc<Segment>,
    file: Arc<dyn DiskFile>,
    /// The next frame's.
    offset: u64,
    /// The last sequence number before `offset`.
    prev: Seq,
    ahead: Bytes,
    ahead_at: u64,
}

impl Log {
    /// A reader of the frames whose last sequence number lies after `after`. Costs nothing until it is asked.
    #[must_use]
    pub fn read_after(self: &Arc<Self>, after: Seq) -> Reader {
        Reader { log: Arc::clone(self), after, place: None }
    }
}

impl Reader {
    /// The next frame, or nothing if all that is published has been read; ask again later. Blocking.
    ///
    /// A frame whose [`Frame::prev`] lies beyond what this reader gave last (or was to start after) tells that the
    /// records between were trimmed before they could be read.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`](crate::error::ErrorKind::Damaged) if a frame is not there any more as it was written;
    /// [`ErrorKind::Io`](crate::error::ErrorKind::Io) if it cannot be read. Asking again tries the same frame.
    pub fn next_frame(&mut self) -> Result<Option<Frame>> {
        loop {
            let Some(place) = &mut self.place else {
                let Some(segment) = self.log.first_after(self.after) else {
                    return Ok(None);
                };
                self.place = Place::start(&self.log, segment)?;
                continue;
            };
            if place.offset >= place.segment.end() {
                // Asked for first: once there is a successor, the end that is read then is the final one.
                let successor = self.log.successor(&place.segment);
                if place.offset >= place.segment.end() {
                    let Some(next) = successor else {
                        return Ok(None);
                    };
                    // If it was trimmed already, start over with what is left.
                    self.place = Place::start(&self.log, next)?;
                    continue;
                }
            }
            let header = place.header()?;
            if header.last() > self.log.published() {
                return Ok(None);
            }
            let wanted = header.count > 0 && header.last() > self.after;
            let frame = if wanted { Some(place.frame(&header)?) } else { None };
            place.offset += header.bytes_on_disk();
            place.prev = header.last();
            if let Some(frame) = frame {
                self.after = frame.last();
                return Ok(Some(frame));
            }
        }
    }
}

impl Place {
    fn start(log: &Log, segment: Arc<Segment>) -> Result<Option<Place>> {
        let Some(file) = log.open_segment(&segment)? else {
            return Ok(None);
        };
        let prev = segment.header.predecessor.last;
        let (offset, ahead_at) = (SEGMENT_HEADER_BYTES, SEGMENT_HEADER_BYTES);
        Ok(Some(Place { segment, file, offset, prev, ahead: Bytes::new(), ahead_at }))
    }

    fn header(&mut self) -> Result<FrameHeader> {
        let head = self.read_ahead(self.offset, FRAME_HEADER_BYTES)?;
        let head = self.ahead.get(head).unwrap_or_default();
        let header = check_header(&self.segment, self.offset, head)?;
        let follows = header.follows(self.prev);
        follows.map_err(|why| damaged_frame(&self.segment, self.offset, &why, Some(&header)))?;
        Ok(header)
    }

    fn frame(&mut self, header: &FrameHeader) -> Result<Frame> {
        let body = self.read_ahead(self.offset + FRAME_HEADER_BYTES, u64::from(header.body_len))?;
        let location = Location { segment: self.segment.header.number, offset: self.offset };
        Frame::verified(header, location, self.ahead.slice(body))
            .map_err(|why| damaged_frame(&self.segment, self.offset, why, Some(header)))
    }

    /// Where in what was read ahead `len` bytes at `offset` lie, or fewer if the segment ends before.
    fn read_ahead(&mut self, offset: u64, len: u64) -> Result<Range<usize>> {
        let room = self.segment.end().saturating_sub(offset);
        let len = len.min(room);
        let skip = offset.saturating_sub(self.ahead_at);
        if offset < self.ahead_at || skip + len > self.ahead.len() as u64 {
            let read = read_exactly(&*self.file, offset, len.max(READ_AHEAD_BYTES).min(room));
            self.ahead = Bytes::from(read.map_err(|error| cannot("read", &self.segment.path, error))?);
            self.ahead_at = offset;
            return Ok(0..self.ahead.len().min(len as usize));
        }
        Ok(skip as usize..(skip + len) as usize)
    }
}
