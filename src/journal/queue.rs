//! A persisted ordered queue without a cache: append, read, trim.
//!
//! Has the guarantees of the committer and the log. Every call blocks, and an append returns when its records are as
//! durable as configured. A consumer has to remember its position itself.
//!
//! ```
//! use forebay::Seq;
//! use forebay::journal::{Durability, Journal, JournalOptions};
//!
//! # fn main() -> forebay::Result<()> {
//! # let temporary = tempfile::tempdir().expect("a temporary directory");
//! # let dir = temporary.path().join("orders");
//! let journal = Journal::open(&dir, JournalOptions::default(), Durability::Sync)?;
//! let first = journal.append(&[b"order 1"])?;
//! let last = journal.append_batch([b"order 2", b"order 3"])?; // all or none survive a crash
//! assert_eq!((first, last), (Seq::new(1), Seq::new(3)));
//! journal.close()?;
//!
//! let journal = Journal::open(&dir, JournalOptions::default(), Durability::Sync)?;
//! let mut reader = journal.read_after(first);
//! let mut seen = Vec::new();
//! while let Some(frame) = reader.next_frame()? {
//!     seen.extend(frame.records());
//!     journal.trim(frame.last())?; // done with these
//! }
//! assert_eq!(seen, ["order 2", "order 3"]);
//! journal.close()
//! # }
//! ```

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use crate::disk::contract::Disk;
use crate::disk::os::OsDisk;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{JournalId, Seq, TenureId};
use crate::journal::committer::{Committed, Committer, Sink, Submission};
use crate::journal::frame::{FrameBody, FrameBuilder, Location};
use crate::journal::log::{Log, Reader};
use crate::journal::options::{Durability, JournalOptions};
use crate::journal::recovery;
use crate::journal::segment::segment_name;
use crate::seam::sync::thread::{self, Thread};

/// A persisted ordered queue. Dropping it closes it.
pub struct Journal {
    // Declared before the log and so dropped before it, because it writes to the log.
    committer: Committer<AppendSink>,
    log: Arc<Log>,
}

impl Journal {
    /// Opens the journal in a directory, or creates one there.
    ///
    /// # Errors
    /// As for [`Journal::open_on`].
    pub fn open(dir: impl AsRef<Path>, options: JournalOptions, durability: Durability) -> Result<Journal> {
        Journal::open_on(Arc::new(OsDisk), dir, options, durability)
    }

    /// Opens the journal in a directory of `disk`, or creates one there.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`]; [`ErrorKind::Locked`] if it is open already; [`ErrorKind::Damaged`] and
    /// [`ErrorKind::UnknownFormat`], and nothing is changed then; [`ErrorKind::Io`] and [`ErrorKind::DiskFull`].
    #[allow(clippy::needless_pass_by_value, reason = "as for `open`, where a default is given in place")]
    pub fn open_on(
        disk: Arc<dyn Disk>,
        dir: impl AsRef<Path>,
        options: JournalOptions,
        durability: Durability,
    ) -> Result<Journal> {
        // Before the files are touched, so that a refused option leaves no journal behind.
        durability.validate()?;
        let opened = recovery::open(disk, dir.as_ref(), &options, TenureId::default())?;
        let log = opened.log;
        let journal = Some((Arc::clone(&log), opened.writer));
        let committer = Committer::start(journal, durability, opened.last, Arc::new(AppendSink))?;
        Ok(Journal { committer, log })
    }

    /// Appends one record, the concatenation of `parts`, and returns its number. Waits until it is as durable as
    /// configured.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`], [`ErrorKind::DiskFull`] and [`ErrorKind::Closed`]: nothing was written.
    /// [`ErrorKind::Poisoned`]: the journal failed, now ("outcome unknown") or earlier, and has to be opened again.
    pub fn append(&self, parts: &[&[u8]]) -> Result<Seq> {
        let mut builder = FrameBuilder::with_capacity(parts.iter().map(|part| part.len()).sum::<usize>() + 4);
        builder.push(parts)?;
        self.commit(builder.finish())
    }

    /// Appends records of which a crash keeps all or none, and returns the last one's number. The others have the
    /// numbers directly before it.
    ///
    /// # Errors
    /// As for [`Journal::append`]; [`ErrorKind::Unsupported`] for a batch without records.
    pub fn append_batch<R: AsRef<[u8]>>(&self, records: impl IntoIterator<Item = R>) -> Result<Seq> {
        let mut builder = FrameBuilder::new();
        records.into_iter().try_for_each(|record| builder.push(&[record.as_ref()]))?;
        self.commit(builder.finish())
    }

    /// Returns a reader of the batches after `after`. A batch that contains `after` in its middle is read whole.
    #[must_use]
    pub fn read_after(&self, after: Seq) -> Reader {
        self.log.read_after(after)
    }

    /// Removes files that hold no record after `up_to`.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if a file cannot be removed; the next call tries again.
    pub fn trim(&self, up_to: Seq) -> Result<()> {
        self.log.trim(up_to)
    }

    /// Returns the file of a frame, for messages to people.
    #[must_use]
    pub fn file_of(&self, location: Location) -> PathBuf {
        self.log.dir.join(segment_name(location.segment))
    }

    /// Makes durable all records that were appended before the call. Under [`Durability::Sync`] they already are.
    ///
    /// # Errors
    /// [`ErrorKind::Poisoned`] if the journal failed, now or earlier.
    pub fn sync(&self) -> Result<()> {
        self.committer.sync()
    }

    /// Returns the journal's identity, drawn when it was created.
    #[must_use]
    pub fn id(&self) -> JournalId {
        self.log.id()
    }

    /// Returns the journal's size on disk in bytes.
    #[must_use]
    pub fn bytes_on_disk(&self) -> u64 {
        self.log.bytes_on_disk()
    }

    /// Ends the journal cleanly and releases its directory. A second call returns the same result.
    ///
    /// # Errors
    /// The failure of the last write or sync; nothing that was acknowledged is lost by it.
    pub fn close(&self) -> Result<()> {
        self.committer.close()
    }

    fn commit(&self, body: FrameBody) -> Result<Seq> {
        let slot = Arc::new(AppendSlot { answer: OnceLock::new(), waiter: thread::current() });
        let ticket = AppendTicket(Arc::clone(&slot));
        self.committer.submit_blocking(Submission { body, journaled: true, ticket });
        // The answer may come before this thread parks; `unpark` then makes the next `park` return at once.
        loop {
            if let Some(answer) = slot.answer.get() {
                return answer.clone();
            }
            // A thread may be unparked for another reason, so the answer is looked at again.
            thread::park();
        }
    }
}

/// Answers the threads that wait for their append.
struct AppendSink;

/// The place for the answer to one append.
struct AppendSlot {
    answer: OnceLock<Result<Seq>>,
    waiter: Thread,
}

struct AppendTicket(Arc<AppendSlot>);

impl AppendTicket {
    fn answer(&self, answer: Result<Seq>) {
        // The first answer counts: a panic after it must not change what the caller has read.
        if self.0.answer.set(answer).is_ok() {
            self.0.waiter.unpark();
        }
    }
}

impl Drop for AppendTicket {
    fn drop(&mut self) {
        // Only a panic drops a ticket without an answer. Its waiter must not wait for ever.
        if self.0.answer.get().is_none() {
            self.answer(Err(Error::new(
                ErrorKind::Poisoned,
                "outcome unknown: the committer was interrupted",
            )));
        }
    }
}

impl Sink for AppendSink {
    type Ticket = AppendTicket;

    fn committed(&self, group: &mut Vec<Committed<AppendTicket>>) {
        for committed in group.drain(..) {
            committed.ticket.answer(Ok(committed.last()));
        }
    }

    fn refused(&self, ticket: AppendTicket, error: &Error) {
        ticket.answer(Err(error.clone()));
    }

    // Every caller gets the error from its own append.
    fn poisoned(&self, _: &Error) {}
}
