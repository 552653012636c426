//! Planned faults of a simulated disk: the operation that fails, when it fails, and the damage it does.
//!
//! Counts operations, and knows nothing of files.

use std::collections::BTreeMap;
use std::io;

/// A kind of operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum DiskOp {
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

impl DiskOp {
    /// True if the operation changes the state that a crash can leave behind.
    #[must_use]
    pub fn changes(self) -> bool {
        !matches!(self, DiskOp::List | DiskOp::Open | DiskOp::Lock | DiskOp::Read | DiskOp::Len)
    }
}

/// A planned failure.
#[derive(Clone, Debug)]
#[must_use = "a fault does nothing until it is planned"]
pub struct Fault {
    on: FaultTarget,
    prefix: String,
    passing: u64,
    lasting: bool,
    cause: Cause,
    reverts_pages: bool,
    written: WrittenPart,
}

/// The operations that a fault can meet.
#[derive(Clone, Copy, Debug)]
enum FaultTarget {
    Any,
    AnyChange,
    One(DiskOp),
}

impl FaultTarget {
    fn matches(self, op: DiskOp) -> bool {
        match self {
            FaultTarget::Any => true,
            FaultTarget::AnyChange => op.changes(),
            FaultTarget::One(one) => one == op,
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Cause {
    Kind(io::ErrorKind),
    Errno(i32),
}

/// The part of a failing write that still reaches the file.
#[derive(Clone, Copy, Debug)]
pub(super) enum WrittenPart {
    Bytes(usize),
    Half,
}

impl WrittenPart {
    pub(super) fn of(self, buf: &[u8]) -> &[u8] {
        let bytes = match self {
            WrittenPart::Bytes(bytes) => bytes,
            WrittenPart::Half => buf.len() / 2,
        };
        buf.get(..bytes).unwrap_or(buf)
    }
}

/// The error of a failing operation and its effect on the disk.
pub(super) struct InjectedFailure {
    pub(super) error: io::Error,
    pub(super) reverts_pages: bool,
    pub(super) written: WrittenPart,
}

impl Fault {
    /// Plans that the next operation of this kind fails once, with an input/output error and no effect.
    pub fn on(op: DiskOp) -> Fault {
        Fault { on: FaultTarget::One(op), ..Fault::on_any() }
    }

    /// Plans the same for the next operation that changes the disk, of whatever kind.
    pub fn on_any_change() -> Fault {
        Fault { on: FaultTarget::AnyChange, ..Fault::on_any() }
    }

    /// Plans the same for the next operation of any kind.
    pub fn on_any() -> Fault {
        Fault {
            on: FaultTarget::Any,
            prefix: String::new(),
            passing: 0,
            lasting: false,
            // A plain number, because `io::ErrorKind` has no name for this error.
            cause: Cause::Errno(EIO),
            reverts_pages: false,
            written: WrittenPart::Bytes(0),
        }
    }

    /// Restricts the fault to files whose names start with `prefix`.
    pub fn named(mut self, prefix: &str) -> Fault {
        prefix.clone_into(&mut self.prefix);
        self
    }

    /// Lets this many matching operations succeed first.
    pub fn after(mut self, operations: u64) -> Fault {
        self.passing = operations;
        self
    }

    /// Makes every later matching operation fail as well, until the disk is healed.
    pub fn until_healed(mut self) -> Fault {
        self.lasting = true;
        self
    }

    /// Sets the kind of the error.
    pub fn kind(mut self, kind: io::ErrorKind) -> Fault {
        self.cause = Cause::Kind(kind);
        self
    }

    /// Sets the error number of the operating system.
    pub fn errno(mut self, errno: i32) -> Fault {
        self.cause = Cause::Errno(errno);
        self
    }

    /// Makes the pages that a failing sync could not write show the content of the disk again, as on Btrfs. Without
    /// this they stay readable until memory is short or the machine restarts, as on ext4 and XFS.
    ///
    /// Either way the pages are clean afterwards, so the next sync reports success (Rebello et al., "Can Applications
    /// Recover from fsync Failures?", ATC 2020).
    ///
    /// Directories behave differently: ext4, XFS and Btrfs stop writing when they cannot write their metadata, and lose
    /// no part of it in between. After a failed sync of a directory its changes are still pending; with this all of
    /// them are undone, which stands for the restart of a file system that had stopped.
    pub fn pages_reverted(mut self) -> Fault {
        self.reverts_pages = true;
        self
    }

    /// Sets the number of bytes that a failing write still writes.
    pub fn written(mut self, bytes: usize) -> Fault {
        self.written = WrittenPart::Bytes(bytes);
        self
    }

    /// Lets a failing write still write the first half of its bytes.
    pub fn half_written(mut self) -> Fault {
        self.written = WrittenPart::Half;
        self
    }
}

/// The number of an input/output error, the same on every Unix.
const EIO: i32 = 5;

/// The planned faults, and the counts of operations.
#[derive(Default)]
pub(super) struct Faults {
    planned: Vec<Fault>,
    counts: BTreeMap<DiskOp, u64>,
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

    pub(super) fn count(&self, op: DiskOp) -> u64 {
        self.counts.get(&op).copied().unwrap_or(0)
    }

    /// Counts the operation.
    ///
    /// # Errors
    /// The first planned fault that the operation meets.
    pub(super) fn check(&mut self, op: DiskOp, name: &str) -> Result<(), InjectedFailure> {
        *self.counts.entry(op).or_default() += 1;
        let mut hit = None;
        for (at, fault) in self.planned.iter_mut().enumerate() {
            if !fault.on.matches(op) || !name.starts_with(fault.prefix.as_str()) {
                continue;
            }
            // Every matching fault counts the operation, also when an earlier one fails it: plans do not shift each
            // other.
            if fault.passing > 0 {
                fault.passing -= 1;
            } else {
                hit = hit.or(Some((at, fault.clone())));
            }
        }
        let Some((at, fault)) = hit else { return Ok(()) };
        // A fault that has hit once is spent.
        if !fault.lasting {
            drop(self.planned.remove(at));
        }
        let error = match fault.cause {
            Cause::Kind(kind) => kind.into(),
            Cause::Errno(errno) => io::Error::from_raw_os_error(errno),
        };
        Err(InjectedFailure { error, reverts_pages: fault.reverts_pages, written: fault.written })
    }
}

impl From<InjectedFailure> for io::Error {
    fn from(failure: InjectedFailure) -> io::Error {
        failure.error
    }
}
