//! Which operation of a simulated disk fails, when, and how. Counts operations; knows nothing of files.

use std::collections::BTreeMap;
use std::io;

/// A kind of operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Op {
    /// `create_dir_all`.
    CreateDir,
    /// `list`.
    List,
    /// `create_new`.
    Create,
    /// `open`.
    Open,
    /// `rename`.
    Rename,
    /// `remove`.
    Remove,
    /// `sync_dir`.
    SyncDir,
    /// `lock`.
    Lock,
    /// `read_at`.
    Read,
    /// `write_all_at`.
    Write,
    /// `sync_data`.
    Sync,
    /// `len`.
    Len,
}

impl Op {
    /// Whether it changes what a crash may leave behind.
    #[must_use]
    pub fn changes(self) -> bool {
        !matches!(self, Op::List | Op::Open | Op::Lock | Op::Read | Op::Len)
    }
}

/// What a failed sync does to the pages of a file that it could not write. Both are clean afterwards, so the next sync
/// says that all is well (Rebello et al., "Can Applications Recover from fsync Failures?", ATC 2020).
///
/// Directories are no pages of this kind: ext4, XFS and Btrfs stop writing when they cannot write their metadata, and
/// forget no part of it in between. After a failed sync of a directory its changes are on their way as before, or
/// undone altogether ([`FailedSync::PagesReverted`], which stands for the restart of a file system that had stopped).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FailedSync {
    /// They stay readable until memory is short or the machine restarts (ext4, XFS).
    #[default]
    PagesKept,
    /// They show again what the disk holds (Btrfs).
    PagesReverted,
}

/// A planned failure.
#[derive(Clone, Debug)]
#[must_use = "a fault does nothing until it is planned"]
pub struct Fault {
    on: Option<Op>,
    prefix: String,
    passing: u64,
    lasting: bool,
    cause: Cause,
    failed_sync: FailedSync,
    written_bytes: usize,
}

#[derive(Clone, Copy, Debug)]
enum Cause {
    Kind(io::ErrorKind),
    Errno(i32),
}

/// What a failing operation still does, and says.
pub(super) struct Failure {
    pub(super) error: io::Error,
    pub(super) failed_sync: FailedSync,
    pub(super) written_bytes: usize,
}

impl Fault {
    /// The next operation of this kind fails, once, as an input/output error that leaves nothing behind.
    pub fn on(op: Op) -> Fault {
        Fault { on: Some(op), ..Fault::on_any() }
    }

    /// The next operation of any kind fails, as with [`Fault::on`].
    pub fn on_any() -> Fault {
        Fault {
            on: None,
            prefix: String::new(),
            passing: 0,
            lasting: false,
            // `io::ErrorKind` has no name for it.
            cause: Cause::Errno(EIO),
            failed_sync: FailedSync::default(),
            written_bytes: 0,
        }
    }

    /// Only operations on files whose names start with `prefix` count.
    pub fn named(mut self, prefix: &str) -> Fault {
        prefix.clone_into(&mut self.prefix);
        self
    }

    /// Lets this many matching operations pass first.
    pub fn after(mut self, operations: u64) -> Fault {
        self.passing = operations;
        self
    }

    /// Every matching operation from then on fails, until the disk is healed.
    pub fn until_healed(mut self) -> Fault {
        self.lasting = true;
        self
    }

    /// Fails with this kind of error.
    pub fn kind(mut self, kind: io::ErrorKind) -> Fault {
        self.cause = Cause::Kind(kind);
        self
    }

    /// Fails with this error number of the operating system.
    pub fn errno(mut self, errno: i32) -> Fault {
        self.cause = Cause::Errno(errno);
        self
    }

    /// What a failing sync does to the pages.
    pub fn failed_sync(mut self, effect: FailedSync) -> Fault {
        self.failed_sync = effect;
        self
    }

    /// How many bytes a failing write still writes.
    pub fn written(mut self, bytes: usize) -> Fault {
        self.written_bytes = bytes;
        self
    }
}

/// Input/output error, the same number on every Unix.
const EIO: i32 = 5;

/// The plan and the counts.
#[derive(Default)]
pub(super) struct Faults {
    planned: Vec<Fault>,
    counts: BTreeMap<Op, u64>,
}

impl Faults {
    pub(super) fn plan(&mut self, fault: Fault) {
        self.planned.push(fault);
    }

    pub(super) fn clear(&mut self) {
        self.planned.clear();
    }

    pub(super) fn operations(&self) -> u64 {
        self.counts.values().sum()
    }

    pub(super) fn count(&self, op: Op) -> u64 {
        self.counts.get(&op).copied().unwrap_or(0)
    }

    /// Counts the operation, and says whether it is one to fail.
    pub(super) fn check(&mut self, op: Op, name: &str) -> Result<(), Failure> {
        *self.counts.entry(op).or_default() += 1;
        let mut hit = None;
        for (at, fault) in self.planned.iter_mut().enumerate() {
            if fault.on.is_some_and(|on| on != op) || !name.starts_with(fault.prefix.as_str()) {
                continue;
            }
            if fault.passing > 0 {
                fault.passing -= 1;
            } else {
                hit = hit.or(Some((at, fault.clone())));
            }
        }
        let Some((at, fault)) = hit else { return Ok(()) };
        if !fault.lasting {
            drop(self.planned.remove(at));
        }
        let error = match fault.cause {
            Cause::Kind(kind) => kind.into(),
            Cause::Errno(errno) => io::Error::from_raw_os_error(errno),
        };
        Err(Failure { error, failed_sync: fault.failed_sync, written_bytes: fault.written_bytes })
    }
}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> io::Error {
        failure.error
    }
}
