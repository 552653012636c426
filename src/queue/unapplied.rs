//! What a journal has that the store lacks, as it is heard of while the journal is checked: by one, or by several that
//! hear of a part each.

use crate::error::Result;
use crate::ids::{Key, Seq};
use crate::journal::frame::{Location, SoundFrame};
use crate::journal::scan::FrameVisitor;
use crate::queue::pending::Backlog;
use crate::queue::record::RecordRef;
use crate::queue::spilled::Journaled;

/// Keys' hashes and places; values stay in the journal.
#[derive(Default)]
pub(crate) struct Unapplied {
    /// The watermark that the store told.
    pub(crate) applied: Seq,
    /// Where it begins, if there is any.
    pub(crate) begins: Option<Location>,
    /// The number of its last record.
    pub(crate) last: Seq,
    pub(crate) size: Backlog,
    pub(crate) journaled: Journaled,
}

impl Unapplied {
    /// Nothing yet, of what lies behind `applied`.
    pub(crate) fn after(applied: Seq) -> Unapplied {
        Unapplied { applied, ..Unapplied::default() }
    }

    /// Nothing yet, to be appended to this when it has heard of what lies behind so many bytes of the journal.
    pub(crate) fn part(&self, bytes_before: u64) -> Unapplied {
        let journaled = self.journaled.part(bytes_before);
        Unapplied { applied: self.applied, journaled, ..Unapplied::default() }
    }

    /// With a part that was heard behind this.
    pub(crate) fn with(mut self, part: Unapplied) -> Result<Unapplied> {
        self.begins = self.begins.or(part.begins);
        self.last = self.last.max(part.last);
        self.size.records += part.size.records;
        self.size.bytes += part.size.bytes;
        self.journaled.append(part.journaled)?;
        Ok(self)
    }
}

impl FrameVisitor for Unapplied {
    #[inline]
    fn visit(&mut self, frame: &SoundFrame<'_>) -> Result<()> {
        if frame.header.last() <= self.applied {
            return Ok(());
        }
        self.begins.get_or_insert(frame.location);
        self.last = frame.header.last();
        self.size.records += u64::from(frame.header.count);
        self.size.bytes += frame.header.bytes_on_disk();
        let place = self.journaled.place(frame.location)?;
        frame.each_record(|bytes| {
            let record = RecordRef::parse(bytes)?;
            Key::check(record.key)?;
            self.journaled.take(&record, place);
            Ok(())
        })
    }
}
