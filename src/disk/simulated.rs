//! A disk in memory that can lose power, tear sectors, fail and fill up on command.
//!
//! Guarantees:
//! - It is deterministic: the same calls and seeds give the same image.
//! - It knows of every 512-byte sector and every directory entry whether it is durable.
//! - It is stricter than real file systems where those are merely lenient: syncing a file does not make its name
//!   durable.
//!
//! It models one level of trust: a rename is atomic, changes to one name or one file reach the disk in order, and a
//! write harms no byte that it does not write (SQLite calls that powersafe overwrite). Holes of sparse files count as
//! used space. A directory is durable as soon as it is made, as the contract demands of [`Disk::create_dir_all`].

mod crash;
mod faults;
mod state;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::disk::contract::{Disk, DiskFile};
pub use crate::disk::simulated::crash::CrashPolicy;
pub use crate::disk::simulated::faults::{DiskOp, Fault};
use crate::disk::simulated::state::DiskState;
pub use crate::disk::simulated::state::SECTOR_BYTES;

/// The longest wait of [`SyncGate::wait_for`].
const GATE_WAIT_MAX: Duration = Duration::from_secs(20);

/// A simulated disk. Clones share it.
#[derive(Clone, Default)]
pub struct SimDisk {
    shared: Arc<SharedDisk>,
}

#[derive(Default)]
struct SharedDisk {
    state: Mutex<DiskState>,
    /// Notified when a sync reaches a gate and when a gate opens.
    gate: Condvar,
}

impl SimDisk {
    /// Creates an empty disk without limits.
    #[must_use]
    pub fn new() -> SimDisk {
        SimDisk::default()
    }

    /// Returns the disk as a machine finds it after a crash at this moment.
    ///
    /// The image is a disk of its own, unlocked, without faults, limits or counts. This disk is unchanged, so one run
    /// can be cut at many places.
    #[must_use]
    pub fn crash(&self, policy: CrashPolicy) -> SimDisk {
        SimDisk::of(crash::crash(&self.state(), policy))
    }

    /// Returns the number of sectors whose content is not durable now, and that of directory changes. Each can be lost
    /// by itself with [`CrashPolicy::AllButSector`] and [`CrashPolicy::AllButName`].
    #[must_use]
    pub fn unsynced(&self) -> (usize, usize) {
        crash::unsynced(&self.state())
    }

    /// Calls `observer` before each operation that changes something, with the kind of operation, the name of its file
    /// or directory without the path, and the disk as a killed process would leave it.
    ///
    /// From that image [`SimDisk::crash`] makes what a power cut could leave. There is one observer; a new one
    /// replaces it. All callers of this disk wait meanwhile, so the observer must not use this disk, nor wait for
    /// anybody who does.
    pub fn observe(&self, mut observer: impl FnMut(DiskOp, &str, SimDisk) + Send + 'static) {
        let with_disk = move |op, name: &str, image| observer(op, name, SimDisk::of(image));
        self.state().observer = Some(Box::new(with_disk));
    }

    /// Removes and drops the observer.
    pub fn unobserve(&self) {
        // Dropped without the lock: its destructor is a test's code and may use the disk.
        let observer = self.state().observer.take();
        drop(observer);
    }

    /// Plans a fault. Of several that match an operation, the one planned first fails it.
    pub fn plan(&self, fault: Fault) {
        self.state().faults.plan(fault);
    }

    /// Limits the sum of all files' lengths, or lifts the limit with `None`.
    ///
    /// A write beyond the limit fills the space that is left, then fails with [`io::ErrorKind::StorageFull`].
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state().capacity_bytes = bytes;
    }

    /// Removes all planned faults and the capacity limit. Data that failed syncs lost stays lost.
    pub fn heal(&self) {
        let mut state = self.state();
        state.faults.clear();
        state.capacity_bytes = None;
    }

    /// Returns the number of operations so far, failed ones included.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.state().faults.operations()
    }

    /// Returns the number of operations of one kind so far, failed ones included.
    #[must_use]
    pub fn count(&self, op: DiskOp) -> u64 {
        self.state().faults.count(op)
    }

    /// Returns the number of successful syncs of files whose names started with `prefix` at the time.
    #[must_use]
    pub fn syncs(&self, prefix: &str) -> u64 {
        let state = self.state();
        state.syncs.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(_, count)| count).sum()
    }

    /// Returns the sum of all files' lengths in bytes.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.state().used_bytes()
    }

    /// Returns the names of the files in a directory with their readable content. Counts no operation.
    #[must_use]
    pub fn files(&self, dir: &Path) -> BTreeMap<String, Vec<u8>> {
        self.state().files(dir)
    }

    /// Puts a durable file at `path`, with its directories, in place of one that is there. Counts no operation, and
    /// files that are open keep their content.
    pub fn put_file(&self, path: &Path, content: Vec<u8>) {
        self.state().put_file(path, content);
    }

    /// Removes the file at `path` durably if there is one. Counts no operation.
    pub fn delete_file(&self, path: &Path) {
        self.state().delete_file(path);
    }

    /// Changes bytes of a file on the medium and in the page cache, as bit rot would. Counts no operation.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if there is no such file, [`io::ErrorKind::UnexpectedEof`] if it is shorter.
    pub fn overwrite(&self, path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.state().overwrite(path, offset, bytes)
    }

    /// Holds every sync of a file whose name starts with `prefix` (`""` for all files) until the gate is dropped.
    ///
    /// A held sync makes durable the content that the file had when the sync began.
    pub fn hold_syncs(&self, prefix: &str) -> SyncGate {
        let mut state = self.state();
        state.gates_made += 1;
        let id = state.gates_made;
        state.gates.insert(id, prefix.to_owned());
        drop(state);
        SyncGate { disk: self.clone(), id }
    }

    fn of(state: DiskState) -> SimDisk {
        SimDisk { shared: Arc::new(SharedDisk { state: Mutex::new(state), gate: Condvar::new() }) }
    }

    fn state(&self) -> MutexGuard<'_, DiskState> {
        // A panic in a call leaves the state consistent, and the test that panicked has failed already.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Holds syncs until it is dropped; see [`SimDisk::hold_syncs`].
#[must_use = "dropping the gate opens it"]
pub struct SyncGate {
    disk: SimDisk,
    id: u64,
}

impl SyncGate {
    /// Waits until at least `count` syncs are held, at this or another gate. False if that takes longer than 20
    /// seconds.
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

    /// Opens the gate, as dropping it does.
    pub fn open(self) {}
}

impl Drop for SyncGate {
    fn drop(&mut self) {
        // Before the wake-up, because a waiter looks at the gates again and would sleep on.
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

    /// Takes the lock. It is no file, so [`Disk::list`] does not show it.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
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
        let outcome = state.begin(DiskOp::Sync, &name);
        let held_by_some =
            |state: &DiskState| state.gates.values().any(|prefix| name.starts_with(prefix.as_str()));
        // Without a gate the sync begins and ends in one step.
        if !held_by_some(&state) {
            return state.finish_sync(self.inode, &name, None, outcome);
        }
        // With one, writes may come in between, and this sync does not cover them.
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

impl Drop for SimLock {
    fn drop(&mut self) {
        self.disk.state().locks.remove(&self.path);
    }
}
