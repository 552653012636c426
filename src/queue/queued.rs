//! A committed frame on its way to the store, and the queue's size.

use bytes::Bytes;

use crate::error::Result;
use crate::ids::Seq;
use crate::journal::frame::{Frame, FrameBody, Location, bytes_on_disk, records_of};
use crate::queue::record::Record;

/// A committed frame that the flusher has not applied.
#[derive(Clone, Debug)]
pub(crate) struct QueuedFrame {
    pub(crate) first: Seq,
    /// The number before the first one that it accounts for. As a rule that is the one before its own first number. A
    /// frame of an earlier tenure accounts for the numbers before it that are not in the journal, too: nothing else is
    /// left of them.
    pub(crate) after: Seq,
    /// The number of its records.
    pub(crate) count: u32,
    /// The bytes that it counts for in the queue.
    pub(crate) bytes: u64,
    /// Its location in the journal; `None` if it was written through.
    pub(crate) location: Option<Location>,
    /// The end of it, or of its notice, in the journal; `None` if neither is there.
    pub(crate) journal_end: Option<Location>,
    /// Its encoded records; padding may follow.
    pub(crate) content: Bytes,
    /// Its offset among the packed frames, if it came from there.
    pub(crate) packed_at: Option<u64>,
    /// True if its bytes count against the memory budget; false if it was read back from the journal.
    pub(crate) counted: bool,
}

/// A number of records, and the bytes that they count for in the queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct QueueSize {
    pub(crate) records: u64,
    pub(crate) bytes: u64,
}

impl QueuedFrame {
    /// Makes a frame that was just committed.
    pub(crate) fn committed(first: Seq, body: FrameBody, location: Option<Location>) -> QueuedFrame {
        // A write-through counts as many bytes as it would take in the journal: it takes them in memory.
        let (count, bytes) = (body.count(), body.len_on_disk());
        let journal_end = location.map(|at| at.behind(bytes));
        let (content, packed_at, counted) = (body.into_padded(), None, false);
        QueuedFrame {
            first,
            after: first.before(),
            count,
            bytes,
            location,
            journal_end,
            content,
            packed_at,
            counted,
        }
    }

    /// Makes a frame that is written through and of which the journal holds a notice at `at`.
    pub(crate) fn noticed(
        first: Seq,
        body: FrameBody,
        at: Option<Location>,
        notice: &FrameBody,
    ) -> QueuedFrame {
        let journal_end = at.map(|at| at.behind(notice.len_on_disk()));
        QueuedFrame { journal_end, ..QueuedFrame::committed(first, body, None) }
    }

    /// Makes a frame that was read back from the journal.
    pub(crate) fn read(frame: &Frame) -> QueuedFrame {
        QueuedFrame::journaled(frame.first, frame.count, frame.location, frame.content())
    }

    /// Makes a frame that was taken from the packed ones.
    pub(crate) fn packed(
        first: Seq,
        count: u32,
        location: Location,
        content: Bytes,
        packed_at: u64,
    ) -> QueuedFrame {
        let packed_at = Some(packed_at);
        QueuedFrame { packed_at, counted: true, ..QueuedFrame::journaled(first, count, location, content) }
    }

    fn journaled(first: Seq, count: u32, location: Location, content: Bytes) -> QueuedFrame {
        let bytes = bytes_on_disk(content.len());
        let (journal_end, location) = (Some(location.behind(bytes)), Some(location));
        QueuedFrame {
            first,
            after: first.before(),
            count,
            bytes,
            location,
            journal_end,
            content,
            packed_at: None,
            counted: false,
        }
    }

    /// Returns the number of its last record.
    pub(crate) fn last(&self) -> Seq {
        self.first.plus(u64::from(self.count).saturating_sub(1))
    }

    /// Returns its encoded records.
    pub(crate) fn encoded(&self) -> impl Iterator<Item = Bytes> + use<> {
        // Padding follows the records, and would parse as empty ones.
        records_of(&self.content).take(self.count as usize)
    }

    /// Returns its records with their sequence numbers.
    pub(crate) fn records(&self) -> impl Iterator<Item = Result<(Seq, Record)>> + '_ {
        let numbered = self.encoded().zip(0_u64..);
        numbered.map(|(bytes, at)| Ok((self.first.plus(at), Record::parse(&bytes)?)))
    }
}
