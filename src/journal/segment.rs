//! A segment: its file name, its header block, and the state that its writer shares with readers.
//!
//! A header is written and synced before its file gets a segment's name, so an unsound header is damage and never a
//! torn write. This file does not interpret frames.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, Weak};

use crate::disk::contract::{Disk, DiskFile};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{JournalId, Seq, TenureId};
use crate::journal::errors::{cannot, damage};
use crate::journal::frame::{put, take_u32, take_u64};
use crate::safeguard::Safeguard;
use crate::seam::sync::Mutex;
use crate::seam::sync::atomic::{AtomicU64, Ordering};

/// The size of the header block, after which the first frame begins.
pub(crate) const SEGMENT_HEADER_BYTES: u64 = 4096;

const MAGIC: [u8; 8] = *b"forebayJ";
const FORMAT_VERSION: u32 = 2;
const CRC_AT: usize = 12;

/// The end of a segment, as its successor's header records it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seal {
    /// The segment's number; zero before the first one.
    pub(crate) number: u64,
    /// The last sequence number in it or before it.
    pub(crate) last: Seq,
    /// The end of its last frame.
    pub(crate) end: u64,
    /// CRC-32C over the header checksums of its frames, in order.
    pub(crate) chain: u32,
}

/// The content of a segment's header block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) journal: JournalId,
    /// The tenure in which its frames were written; zeros in a journal without a store. A frame belongs to it by the
    /// nonce, so that no frame has to repeat it.
    pub(crate) tenure: TenureId,
    pub(crate) number: u64,
    pub(crate) nonce: u64,
    /// The offset up to which frames may be written.
    pub(crate) capacity: u64,
    /// The file's durable length when it became a segment. A shorter file is damage.
    pub(crate) prepared: u64,
    /// The end of the segment before it.
    pub(crate) predecessor: Seal,
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut block = vec![0; SEGMENT_HEADER_BYTES as usize];
        let mut rest = block.as_mut_slice();
        put(&mut rest, &MAGIC);
        put(&mut rest, &FORMAT_VERSION.to_le_bytes());
        put(&mut rest, &0_u32.to_le_bytes());
        put(&mut rest, &self.journal.0);
        put(&mut rest, &self.tenure.0);
        put(&mut rest, &self.number.to_le_bytes());
        put(&mut rest, &self.nonce.to_le_bytes());
        put(&mut rest, &self.capacity.to_le_bytes());
        put(&mut rest, &self.prepared.to_le_bytes());
        put(&mut rest, &self.predecessor.number.to_le_bytes());
        put(&mut rest, &self.predecessor.last.0.to_le_bytes());
        put(&mut rest, &self.predecessor.end.to_le_bytes());
        put(&mut rest, &self.predecessor.chain.to_le_bytes());
        let crc = crc32c::crc32c(&block);
        let (_, mut place) = block.split_at_mut(CRC_AT);
        put(&mut place, &crc.to_le_bytes());
        block
    }

    /// Reads the header of the file at `path`, which by its name is segment `number`.
    ///
    /// # Errors
    /// `UnknownFormat` for another format version, `Damaged` for anything else that is not a sound header of that
    /// segment, `Io` if it cannot be read.
    pub(crate) fn read(file: &dyn DiskFile, path: &Path, number: u64) -> Result<SegmentHeader> {
        let mut block = vec![0; SEGMENT_HEADER_BYTES as usize];
        let read = file.read_at(&mut block, 0).map_err(|error| cannot("read", path, error))?;
        let damaged = |why: &str| Err(damage(path, 0, why, "nothing in this segment can be trusted"));
        // A header is durable before the file has this name, so a short file is no torn write.
        if read != block.len() {
            return damaged("the file is shorter than a segment's header");
        }
        let mut rest = block.as_slice();
        if rest.split_off(..MAGIC.len()) != Some(MAGIC.as_slice()) {
            return damaged("this is not a journal segment");
        }
        let (Some(version), Some(crc)) = (take_u32(&mut rest), take_u32(&mut rest)) else {
            return damaged("the header is cut short");
        };
        // Before the checksum, which another version may compute differently.
        if version != FORMAT_VERSION && Safeguard::FormatVersion.holds() {
            let context = format!(
                "{}: format version {version}; this version of the crate knows {FORMAT_VERSION}. Nothing was changed: \
                 open it with the version that wrote it",
                path.display()
            );
            return Err(Error::new(ErrorKind::UnknownFormat, context));
        }
        let Some(header) = SegmentHeader::decode(rest) else {
            return damaged("the header is cut short");
        };
        // Encoding the fields again yields every byte of the block, so this comparison covers checksum and padding.
        if header.encode() != block {
            return damaged(&format!("the segment's header fails its checksum {crc:#010x}"));
        }
        // A file that was copied or renamed by hand is sound, and in the wrong place.
        if header.number != number {
            return damaged(&format!("the header says that this is segment {}", header.number));
        }
        Ok(header)
    }

    fn decode(mut rest: &[u8]) -> Option<SegmentHeader> {
        // The fields were only split here; the comparison in `read` decides whether they are true.
        let (journal, after) = rest.split_first_chunk::<16>()?;
        let (tenure, after) = after.split_first_chunk::<16>()?;
        let (journal, tenure) = (JournalId(*journal), TenureId(*tenure));
        rest = after;
        let mut next = || take_u64(&mut rest);
        let (number, nonce, capacity, prepared) = (next()?, next()?, next()?, next()?);
        let (before, last, end) = (next()?, Seq(next()?), next()?);
        let chain = take_u32(&mut rest)?;
        let predecessor = Seal { number: before, last, end, chain };
        Some(SegmentHeader { journal, tenure, number, nonce, capacity, prepared, predecessor })
    }
}

/// A segment of an open log.
///
/// The pool does not recycle the file while a reader holds the segment, so a reader never sees another use of the file.
pub(crate) struct Segment {
    pub(crate) header: SegmentHeader,
    pub(crate) path: PathBuf,
    /// The end of the last frame that is wholly written.
    end: AtomicU64,
    last: AtomicU64,
    /// The open file, shared by concurrent readers. Weak, because a backlog may have more segments than a process may
    /// have open files: a segment without readers keeps no file open.
    file: Mutex<Option<Weak<dyn DiskFile>>>,
}

impl Segment {
    pub(crate) fn new(header: SegmentHeader, path: PathBuf, end: u64, last: Seq) -> Segment {
        let (end, last) = (AtomicU64::new(end), AtomicU64::new(last.0));
        Segment { header, path, end, last, file: Mutex::new(None) }
    }

    pub(crate) fn end(&self) -> u64 {
        // Pairs with `advance`: what lies before this end is wholly written.
        self.end.load(Ordering::Acquire)
    }

    pub(crate) fn last(&self) -> Seq {
        Seq(self.last.load(Ordering::Acquire))
    }

    /// Everything before `end` has been written and may be read.
    pub(crate) fn advance(&self, end: u64, last: Seq) {
        // `last` first: a reader that sees the new end must find its numbers too.
        self.last.store(last.0, Ordering::Release);
        self.end.store(end, Ordering::Release);
    }

    pub(crate) fn bytes_on_disk(&self) -> u64 {
        self.end().max(self.header.prepared)
    }

    /// Lets later readers share a file that is open already.
    pub(crate) fn share(&self, file: &Arc<dyn DiskFile>) {
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::downgrade(file));
    }

    pub(crate) fn open(&self, disk: &dyn Disk) -> io::Result<Arc<dyn DiskFile>> {
        // Held while the file is opened, so that two readers do not open it twice.
        let mut shared = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = shared.as_ref().and_then(Weak::upgrade) {
            return Ok(file);
        }
        let file: Arc<dyn DiskFile> = Arc::from(disk.open(&self.path)?);
        *shared = Some(Arc::downgrade(&file));
        Ok(file)
    }
}

/// Returns the file name of segment `number`.
pub(crate) fn segment_name(number: u64) -> String {
    format!("{number:020}.seg")
}

/// Returns the number in a segment's file name, or `None` if it is not one.
pub(crate) fn parse_segment_name(name: &str) -> Option<u64> {
    let number = name.strip_suffix(".seg")?.parse().ok()?;
    // `parse` accepts signs and fewer digits too, which a journal never writes.
    (segment_name(number) == name).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_we_would_write_are_segments() {
        assert_eq!(parse_segment_name("00000000000000000042.seg"), Some(42));
        for other in ["42.seg", "spare-1.seg", "+0000000000000000042.seg", "00000000000000000042.tmp", "lock"]
        {
            assert_eq!(parse_segment_name(other), None, "{other}");
        }
    }
}
