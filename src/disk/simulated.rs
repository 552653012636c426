//! A disk in memory that can lose power, tear sectors, fail and fill up on command.
//!
//! Guarantees: it is deterministic (the same calls and seeds give the same image); it knows of every 512-byte
//! sector and every directory entry whether it is durable; and it is stricter than real file systems where
//! those are merely kind: syncing a file does not make its name durable.
//!
//! It models one level of trust: a rename is atomic, changes to one name or one file reach the disk in order, and
//! a write harms no byte that it does not write (what SQLite calls powersafe overwrite). Holes of sparse files count
//! as used space. Directories are durable as soon as they are made, as the contract demands of
//! [`Disk::create_dir_all`].

mod faults;
mod images;
mod state;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::disk::contract::{Disk, DiskFile, DiskLock};
pub use crate::disk::simulated::faults::{FailedSync, Fault, Op};
pub use crate::disk::simulated::images::{CrashPolicy, Unsynced};
use crate::disk::simulated::state::State;

/// The unit in which a simulated disk writes, in bytes.
pub const SECTOR_BYTES: usize = 512;

/// How long [`SyncGate::wait_for`] waits before it says that nobody came.
const GATE_WAIT_MAX: Duration = Duration::from_secs(20);

/// An operation as an observer is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Operation {
    /// How many operations came before it.
    pub number: u64,
    /// What it is.
    pub op: Op,
    /// The name of its file or directory, without the path.
    pub name: String,
}

type Observer = Box<dyn FnMut(&Operation, SimDisk) + Send>;

/// A simulated disk. Clones share it.
#[derive(Clone, Default)]
pub struct SimDisk {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Tells of every sync that arrives at a gate, and of every gate that opens.
    gate: Condvar,
}

impl SimDisk {
    /// An empty disk without limits.
    #[must_use]
    pub fn new() -> SimDisk {
        SimDisk::default()
    }

    /// What a machine finds after a crash at this moment: a disk of its own, unlocked, without faults, limits or
    /// counts. This one goes on as if nothing had happened, so that one run can be cut at many places.
    #[must_use]
    pub fn crash(&self, policy: CrashPolicy) -> SimDisk {
        SimDisk::of(self.state().crash(policy))
    }

    /// Counts what is not durable now, so that each of it can be lost by itself ([`CrashPolicy::AllButSector`],
    /// [`CrashPolicy::AllButName`]).
    #[must_use]
    pub fn unsynced(&self) -> Unsynced {
        self.state().unsynced()
    }

    /// Shows `observer` each operation that changes something, before it happens, with the disk as a killed process
    /// would leave it then: from that, [`SimDisk::crash`] makes what a power cut could leave. Replaces the one before.
    ///
    /// The observer holds everybody up. It must not use this disk, nor wait for anybody who does.
    pub fn observe(&self, observer: impl FnMut(&Operation, SimDisk) + Send + 'static) {
        self.state().observer = Some(Box::new(observer));
    }

    /// Ends what [`SimDisk::observe`] began, and drops the observer.
    pub fn unobserve(&self) {
        let observer = self.state().observer.take();
        drop(observer);
    }

    /// Adds a fault. Several may be planned; the first that matches an operation fails it.
    pub fn plan(&self, fault: Fault) {
        self.state().faults.plan(fault);
    }

    /// Limits the sum of all files' lengths; `None` for no limit. A write beyond fills what is left, then fails
    /// with [`io::ErrorKind::StorageFull`].
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state().capacity_bytes = bytes;
    }

    /// Takes all faults and the capacity's limit away. What failed syncs lost stays lost.
    pub fn heal(&self) {
        let mut state = self.state();
        state.faults.clear();
        state.capacity_bytes = None;
    }

    /// How many operations were asked for, failed ones included.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.state().faults.operations()
    }

    /// How many operations of this kind were asked for, failed ones included.
    #[must_use]
    pub fn count(&self, op: Op) -> u64 {
        self.state().faults.count(op)
    }

    /// How many syncs of files whose names start with `prefix` have succeeded. A name counts as it was at the time.
    #[must_use]
    pub fn syncs(&self, prefix: &str) -> u64 {
        let state = self.state();
        state.syncs.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(_, count)| count).sum()
    }

    /// The sum of all files' lengths in bytes.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.state().used_bytes()
    }

    /// Changes bytes behind everybody's back, on the medium and in the page cache, as rot would.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if there is no such file, [`io::ErrorKind::UnexpectedEof`] if it is shorter.
    pub fn overwrite(&self, path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.state().overwrite(path, offset, bytes)
    }

    /// Holds every sync of a file whose name starts with `prefix` (all files: `""`) until the gate is dropped.
    /// What a held sync makes durable is what was written when it began.
    pub fn hold_syncs(&self, prefix: &str) -> SyncGate {
        let mut state = self.state();
        state.gates_made += 1;
        let id = state.gates_made;
        state.gates.insert(id, prefix.to_owned());
        drop(state);
        SyncGate { disk: self.clone(), id }
    }

    fn of(state: State) -> SimDisk {
        SimDisk { shared: Arc::new(Shared { state: Mutex::new(state), gate: Condvar::new() }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state is consistent between calls, and a test that panicked has failed already.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Syncs wait while it lives.
#[must_use = "dropping the gate opens it"]
pub struct SyncGate {
    disk: SimDisk,
    id: u64,
}

impl SyncGate {
    /// Waits until at least `count` syncs stand at a gate. False if they did not come within 20 seconds.
    #[must_use]
    pub fn wait_for(&self, count: usize) -> bool {
        let until = Instant::now() + GATE_WAIT_MAX;
        let mut state = self.disk.state();
        while state.held < count {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.disk.shared.gate.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Lets everybody through, now and later. Dropping does the same.
    pub fn open(self) {}
}

impl Drop for SyncGate {
    fn drop(&mut self) {
        self.disk.state().gates.remove(&self.id);
        self.disk.shared.gate.notify_all();
    }
}

impl Disk for SimDisk {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.state().create_dir_all(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.state().list(path)
    }

    fn create_new(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let inode = self.state().create_new(path)?;
        Ok(Box::new(SimFile { disk: self.clone(), inode }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let inode = self.state().open(path)?;
        Ok(Box::new(SimFile { disk: self.clone(), inode }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.state().rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.state().remove(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.state().sync_dir(path)
    }

    /// A simulated lock is no file: it is not listed.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn DiskLock>> {
        let mut state = self.state();
        state.lock(path)?;
        drop(state);
        Ok(Box::new(SimLock { disk: self.clone(), path: path.to_owned() }))
    }
}

struct SimFile {
    disk: SimDisk,
    inode: u64,
}

impl DiskFile for SimFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.disk.state().read_at(self.inode, buf, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.disk.state().write_all_at(self.inode, buf, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        let name = state.name_of(self.inode);
        let outcome = state.begin(Op::Sync, &name);
        let held_by_some =
            |state: &State| state.gates.values().any(|prefix| name.starts_with(prefix.as_str()));
        if !held_by_some(&state) {
            return state.finish_sync(self.inode, &name, None, outcome);
        }
        let begun = state.begin_sync(self.inode);
        state.held += 1;
        self.disk.shared.gate.notify_all();
        while held_by_some(&state) {
            state = self.disk.shared.gate.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.held -= 1;
        state.finish_sync(self.inode, &name, Some(begun), outcome)
    }

    fn len(&self) -> io::Result<u64> {
        self.disk.state().len(self.inode)
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        self.disk.state().close(self.inode);
    }
}

struct SimLock {
    disk: SimDisk,
    path: PathBuf,
}

impl DiskLock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.disk.state().locks.remove(&self.path);
    }
}
