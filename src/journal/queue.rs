//! A persisted ordered queue by itself: append, read, trim. For those who need no cache.
//!
//! Guarantees what the committer and the log guarantee; every call is blocking, and an append returns when its
//! records are as durable as configured. Where a consumer has come to is its own to remember.
//!
//! ```
//! use forebay::ids::Seq;
//! use forebay::journal::options::{Durability, JournalOptions};
//! use forebay::journal::queue::Journal;
//!
//! # fn main() -> forebay::error::Result<()> {
//! # let temporary = tempfile::tempdir().expect("a temporary directory");
//! # let dir = temporary.path().join("orders");
//! let journal = Journal::open(&dir, JournalOptions::default(), Durability::Sync)?;
//! let first = journal.append(&[b"order 1"])?;
//! let last = journal.append_batch([b"order 2", b"order 3"])?; // all or none survive a crash
//! assert_eq!((first, last), (Seq(1), Seq(3)));
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
use crate::ids::{JournalId, Seq};
use crate::journal::committer::Committer;
use crate::journal::frame::{FrameBody, FrameBuilder, Location};
use crate::journal::log::Log;
use crate::journal::options::{Durability, JournalOptions};
use crate::journal::reader::Reader;
use crate::journal::segment::segment_name;
use crate::journal::sink::{Committed, Sink, Submission};
use crate::seam::sync::thread::{self, Thread};

/// A persisted ordered queue. Dropping it closes it.
pub struct Journal {
    // Declared first, so dropped first: it writes to the log.
    committer: Committer<Waiters>,
    log: Arc<Log>,
}

impl Journal {
    /// Opens the journal in a directory, or makes one there.
    ///
    /// # Errors
    /// As for [`Journal::open_on`].
    pub fn open(dir: impl AsRef<Path>, options: JournalOptions, durability: Durability) -> Result<Journal> {
        Journal::open_on(Arc::new(OsDisk), dir, options, durability)
    }

    /// Opens the journal in a directory of a disk.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`]; [`ErrorKind::Locked`] if it is open elsewhere; [`ErrorKind::Damaged`] and
    /// [`ErrorKind::UnknownFormat`], nothing is changed then; [`ErrorKind::Io`] and [`ErrorKind::DiskFull`].
    #[allow(clippy::needless_pass_by_value, reason = "as for `open`, where a default is given in place")]
    pub fn open_on(
        disk: Arc<dyn Disk>,
        dir: impl AsRef<Path>,
        options: JournalOptions,
        durability: Durability,
    ) -> Result<Journal> {
        durability.validate()?;
        let opened = Log::open(disk, dir.as_ref(), &options)?;
        let log = opened.log;
        let journal = Some((Arc::clone(&log), opened.writer));
        let committer = Committer::start(journal, durability, opened.last, Arc::new(Waiters))?;
        Ok(Journal { committer, log })
    }

    /// Appends one record, given in parts that are joined, and returns its place. Waits until it is as durable as
    /// configured.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`], [`ErrorKind::DiskFull`] and [`ErrorKind::Closed`]: nothing was written.
    /// [`ErrorKind::Poisoned`]: the journal failed now ("outcome unknown") or earlier; it has to be opened again.
    pub fn append(&self, parts: &[&[u8]]) -> Result<Seq> {
        let mut builder = FrameBuilder::with_capacity(parts.iter().map(|part| part.len()).sum::<usize>() + 4);
        builder.push(parts)?;
        self.commit(builder.finish())
    }

    /// Appends records of which a crash keeps all or none, and returns the last one's place; the others lie before it
    /// without a gap.
    ///
    /// # Errors
    /// As for [`Journal::append`]; [`ErrorKind::Unsupported`] for a batch without records.
    pub fn append_batch<R: AsRef<[u8]>>(&self, records: impl IntoIterator<Item = R>) -> Result<Seq> {
        let mut builder = FrameBuilder::new();
        records.into_iter().try_for_each(|record| builder.push(&[record.as_ref()]))?;
        self.commit(builder.finish())
    }

    /// A reader of what lies after `after`, a batch at a time; a batch that `after` lies within comes whole.
    #[must_use]
    pub fn read_after(&self, after: Seq) -> Reader {
        self.log.read_after(after)
    }

    /// Lets go of files that hold nothing after `up_to`.
    ///
    /// # Errors
    /// As for [`Log::trim`].
    pub fn trim(&self, up_to: Seq) -> Result<()> {
        self.log.trim(up_to)
    }

    /// The file that a frame lies in, for messages to people.
    #[must_use]
    pub fn file_of(&self, location: Location) -> PathBuf {
        self.log.dir.join(segment_name(location.segment))
    }

    /// Makes everything durable that was appended before the call, under [`Durability::Buffered`] too.
    ///
    /// # Errors
    /// [`ErrorKind::Poisoned`] if that failed, now or earlier.
    pub fn sync(&self) -> Result<()> {
        self.committer.sync()
    }

    /// The journal's identity, drawn when it was created.
    #[must_use]
    pub fn id(&self) -> JournalId {
        self.log.id()
    }

    /// What it takes on disk, in bytes.
    #[must_use]
    pub fn bytes_on_disk(&self) -> u64 {
        self.log.bytes_on_disk()
    }

    /// Ends the journal cleanly and lets its directory go. Called again it says the same.
    ///
    /// # Errors
    /// As for [`Committer::close`].
    pub fn close(&self) -> Result<()> {
        self.committer.close()
    }

    fn commit(&self, body: FrameBody) -> Result<Seq> {
        let slot = Arc::new(Slot { answer: OnceLock::new(), waiter: thread::current() });
        let ticket = Ticket(Arc::clone(&slot));
        self.committer.submit_blocking(Submission { body, journaled: true, ticket });
        loop {
            if let Some(answer) = slot.answer.get() {
                return answer.clone();
            }
            thread::park();
        }
    }
}

/// Answers the threads that wait.
struct Waiters;

struct Slot {
    answer: OnceLock<Result<Seq>>,
    waiter: Thread,
}

struct Ticket(Arc<Slot>);

impl Ticket {
    fn answer(&self, answer: Result<Seq>) {
        if self.0.answer.set(answer).is_ok() {
            self.0.waiter.unpark();
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // Only a panic loses a ticket; whoever waits must not wait for ever.
        if self.0.answer.get().is_none() {
            self.answer(Err(Error::new(
                ErrorKind::Poisoned,
                "outcome unknown: the committer was interrupted",
            )));
        }
    }
}

impl Sink for Waiters {
    type Ticket = Ticket;

    fn committed(&self, group: &mut Vec<Committed<Ticket>>) {
        for committed in group.drain(..) {
            committed.ticket.answer(Ok(committed.last()));
        }
    }

    fn refused(&self, ticket: Ticket, error: &Error) {
        ticket.answer(Err(error.clone()));
    }

    // Every caller is told by its own append.
    fn poisoned(&self, _: &Error) {}
}
