//! The log: what its writer, its readers and whoever trims it share.
//!
//! Guarantees that a segment's content stays that segment's while anybody holds it, that segments leave the disk
//! oldest first and durably one after the other (so that no crash leaves a hole), and that after a failed sync
//! nothing is written any more. It holds the journal's lock for its life.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock, PoisonError};

use bytes::Bytes;

use crate::disk::contract::{Disk, DiskFile, DiskLock};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{JournalId, Seq};
use crate::journal::frame::{FRAME_HEADER_BYTES, Frame, FrameHeader, Location};
use crate::journal::options::JournalOptions;
use crate::journal::pool::Pool;
use crate::journal::segment::{SEGMENT_HEADER_BYTES, Segment, cannot, damage};
use crate::safeguard::Safeguard;
use crate::seam::sync::atomic::{AtomicU64, Ordering};
use crate::seam::sync::thread::JoinHandle;
use crate::seam::sync::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

type Segments = BTreeMap<u64, Arc<Segment>>;

/// An open journal, shared by its one writer and its readers. Opened by [`Log::open`].
pub struct Log {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) dir: PathBuf,
    pub(crate) options: JournalOptions,
    pub(crate) pool: Arc<Pool>,
    id: JournalId,
    segments: RwLock<Segments>,
    published: AtomicU64,
    poison: OnceLock<Error>,
    /// One sync at a time: of two concurrent ones only one learns of a failure.
    syncing: Mutex<()>,
    trimming: Mutex<()>,
    spare_thread: Mutex<Option<JoinHandle<()>>>,
    lock: Mutex<Option<Box<dyn DiskLock>>>,
}

impl Log {
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        options: JournalOptions,
        pool: Pool,
        id: JournalId,
        segments: Segments,
        lock: Box<dyn DiskLock>,
    ) -> Result<Log> {
        let published = segments.last_key_value().map_or(Seq::ZERO, |(_, segment)| segment.last());
        let pool = Arc::new(pool);
        let spare_thread = pool.start()?;
        Ok(Log {
            disk,
            dir,
            options,
            pool,
            id,
            segments: RwLock::new(segments),
            published: AtomicU64::new(published.0),
            poison: OnceLock::new(),
            syncing: Mutex::new(()),
            trimming: Mutex::new(()),
            spare_thread: Mutex::new(spare_thread),
            lock: Mutex::new(Some(lock)),
        })
    }

    /// The journal's identity, drawn when it was created.
    #[must_use]
    pub fn id(&self) -> JournalId {
        self.id
    }

    /// What segments and spares take on disk, in bytes.
    #[must_use]
    pub fn bytes_on_disk(&self) -> u64 {
        let segments: u64 = self.segments().values().map(|segment| segment.bytes_on_disk()).sum();
        segments.saturating_add(self.pool.bytes_on_disk())
    }

    /// Lets go of the segments that hold no record after `up_to`; the last segment always stays. Blocking, with
    /// one sync of the directory for each segment. A reader that is within such a segment can finish it.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if a file could not be renamed or removed: the same call may work later.
    /// [`ErrorKind::Poisoned`] if the directory could not be synced, now or earlier.
    pub fn trim(&self, up_to: Seq) -> Result<()> {
        let _one_at_a_time = self.trimming.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(oldest) = self.take_oldest(up_to) {
            // The next one may go only when this one is durably gone: a crash must not leave a hole.
            let retired = self.check_usable().map_err(|error| (Some(Arc::clone(&oldest)), error));
            match retired.and_then(|()| self.pool.retire(oldest)) {
                Ok(()) => {}
                Err((Some(kept), error)) => {
                    self.segments_mut().insert(kept.header.number, kept);
                    return Err(error);
                }
                Err((None, error)) => return Err(self.poison(error)),
            }
        }
        Ok(())
    }

    /// The highest number such that the segments which are behind it, and hold nothing after `up_to`, take no more than
    /// `bytes_max`. The last segment does not count, since it always stays.
    pub(crate) fn beyond_bytes(&self, up_to: Seq, bytes_max: u64) -> Seq {
        let segments = self.segments();
        let mut bytes = 0_u64;
        for segment in segments.values().rev().skip(1).filter(|segment| segment.last() <= up_to) {
            bytes = bytes.saturating_add(segment.bytes_on_disk());
            if bytes > bytes_max {
                return segment.last();
            }
        }
        Seq::ZERO
    }

    /// Behind the last frame.
    pub(crate) fn end(&self) -> Option<Location> {
        let segments = self.segments();
        let last = segments.last_key_value();
        last.map(|(number, segment)| Location { segment: *number, offset: segment.end() })
    }

    /// How many bytes of frames lie before `to`, and from `from` on or, without that, from where the first segment
    /// begins that holds something after `after`.
    pub(crate) fn bytes_between(&self, after: Seq, from: Option<Location>, to: Location) -> u64 {
        let segments = self.segments();
        let begin =
            |segment: &Segment| Location { segment: segment.header.number, offset: SEGMENT_HEADER_BYTES };
        let first = || segments.values().find(|segment| segment.last() > after).map(|first| begin(first));
        let Some(from) = from.or_else(first).filter(|from| from.segment <= to.segment) else { return 0 };
        let bytes = segments.range(from.segment..=to.segment).map(|(number, segment)| {
            let begin = if *number == from.segment { from.offset } else { SEGMENT_HEADER_BYTES };
            let end = if *number == to.segment { to.offset } else { segment.end() };
            end.saturating_sub(begin)
        });
        bytes.sum()
    }

    /// Reads one frame back, verified; nothing if its segment was trimmed meanwhile. Blocking.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] if the frame is not there any more as it was written, [`ErrorKind::Io`] if it
    /// cannot be read.
    pub fn read_frame(&self, at: Location) -> Result<Option<Frame>> {
        let Some(segment) = self.segment(at.segment) else {
            return Ok(None);
        };
        let Some(file) = self.open_segment(&segment)? else {
            return Ok(None);
        };
        let room = segment.end().saturating_sub(at.offset);
        let head = read_exactly(&*file, at.offset, FRAME_HEADER_BYTES.min(room))
            .map_err(|error| cannot("read", &segment.path, error))?;
        let header = check_header(&segment, at.offset, &head)?;
        let body_at = at.offset + FRAME_HEADER_BYTES;
        let body = read_exactly(&*file, body_at, u64::from(header.body_len))
            .map_err(|error| cannot("read", &segment.path, error))?;
        let frame = Frame::verified(&header, at, Bytes::from(body));
        frame.map(Some).map_err(|why| damaged_frame(&segment, at.offset, why, Some(&header)))
    }

    /// Ends the thread that prepares spares, waits for it, and lets the directory go. The writer must be closed.
    /// Also done on drop; twice is fine.
    pub fn shutdown(&self) {
        self.pool.stop();
        let thread = self.spare_thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // A panic of that thread has been reported by the panic hook, and nothing waits for a spare any more.
        drop(thread.map(JoinHandle::join));
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// The last sequence number that readers may see.
    pub(crate) fn published(&self) -> Seq {
        Seq(self.published.load(Ordering::Acquire))
    }

    pub(crate) fn publish(&self, last: Seq) {
        // The one writer does so, and numbers only grow.
        self.published.store(last.0, Ordering::Release);
    }

    pub(crate) fn segment(&self, number: u64) -> Option<Arc<Segment>> {
        self.segments().get(&number).map(Arc::clone)
    }

    /// The segment to read after `segment`, which may be one that took its number.
    pub(crate) fn successor(&self, segment: &Segment) -> Option<Arc<Segment>> {
        let segments = self.segments();
        let mut later = segments.range(segment.header.number..).map(|(_, later)| later);
        later.find(|later| later.header.nonce != segment.header.nonce).map(Arc::clone)
    }

    /// The first segment that may hold records after `after`.
    pub(crate) fn first_after(&self, after: Seq) -> Option<Arc<Segment>> {
        let segments = self.segments();
        let first = segments.values().find(|segment| segment.last() > after);
        first.or_else(|| segments.last_key_value().map(|(_, last)| last)).map(Arc::clone)
    }

    pub(crate) fn insert(&self, segment: Arc<Segment>) {
        self.segments_mut().insert(segment.header.number, segment);
    }

    /// The file of a segment, or nothing if it was trimmed meanwhile.
    pub(crate) fn open_segment(&self, segment: &Segment) -> Result<Option<Arc<dyn DiskFile>>> {
        match segment.open(&*self.disk) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.holds(segment) => Ok(None),
            Err(error) => Err(cannot("open", &segment.path, error)),
        }
    }

    pub(crate) fn check_usable(&self) -> Result<()> {
        self.poison.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    /// Refuses every later write with this error. The first one stays.
    pub(crate) fn poison(&self, why: Error) -> Error {
        let context = "the journal takes no more writes, and the outcome of those in flight is unknown";
        self.poison.get_or_init(|| why.wrap(ErrorKind::Poisoned, context)).clone()
    }

    /// Syncs a file of the journal; a failure poisons it, for nothing is known of its content then.
    pub(crate) fn sync_file(&self, file: &dyn DiskFile) -> Result<()> {
        let _one_at_a_time = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        self.check_usable()?;
        let synced = file.sync_data();
        if !Safeguard::PoisonAfterFailedSync.holds() {
            return Ok(());
        }
        synced.map_err(|error| {
            self.poison(Error::io(format!("cannot sync the active segment in {}", self.dir.display()), error))
        })
    }

    fn take_oldest(&self, up_to: Seq) -> Option<Arc<Segment>> {
        let mut segments = self.segments_mut();
        if segments.len() < 2 {
            return None;
        }
        let oldest = segments.first_entry()?;
        (oldest.get().last() <= up_to).then(|| oldest.remove())
    }

    fn holds(&self, segment: &Segment) -> bool {
        self.segment(segment.header.number).is_some_and(|held| held.header.nonce == segment.header.nonce)
    }

    fn segments(&self) -> RwLockReadGuard<'_, Segments> {
        self.segments.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn segments_mut(&self) -> RwLockWriteGuard<'_, Segments> {
        self.segments.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").field("dir", &self.dir).field("id", &self.id).finish_non_exhaustive()
    }
}

/// The header at `offset` of a segment, if it is sound, the segment's own, and followed by its whole body.
pub(crate) fn check_header(segment: &Segment, offset: u64, bytes: &[u8]) -> Result<FrameHeader> {
    let Some((header, _)) = FrameHeader::decode(bytes) else {
        return Err(damaged_frame(segment, offset, "no sound frame header", None));
    };
    if header.nonce != segment.header.nonce {
        return Err(damaged_frame(segment, offset, "a frame of another use of this file", None));
    }
    if header.bytes_on_disk() > segment.end().saturating_sub(offset) {
        return Err(damaged_frame(
            segment,
            offset,
            "a frame that runs beyond the segment's end",
            Some(&header),
        ));
    }
    Ok(header)
}

pub(crate) fn damaged_frame(
    segment: &Segment,
    offset: u64,
    why: &str,
    header: Option<&FrameHeader>,
) -> Error {
    let stake = match header {
        Some(header) => format!("records {} to {} cannot be read", header.first, header.last()),
        None => format!("{} bytes from there cannot be read", segment.end().saturating_sub(offset)),
    };
    damage(&segment.path, offset, why, &stake)
}

/// Reads `len` bytes, which were checked to be there.
pub(crate) fn read_exactly(file: &dyn DiskFile, offset: u64, len: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len as usize];
    let read = file.read_at(&mut bytes, offset)?;
    bytes.truncate(read);
    Ok(bytes)
}
