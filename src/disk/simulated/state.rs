//! The files and directories of a simulated disk, each with its readable and its durable state.
//!
//! Never locks and never waits; the disk around it does both. Contents are shared with crash images until either side
//! changes them, so an image is cheap.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::simulated::faults::{DiskOp, Faults, InjectedFailure, WrittenPart};

/// The unit in which a simulated disk writes, in bytes.
pub const SECTOR_BYTES: usize = 512;

/// Called before each change, with the operation's kind and name and the disk as a killed process would leave it.
pub(super) type StateObserver = Box<dyn FnMut(DiskOp, &str, DiskState) + Send>;

#[derive(Default)]
pub(super) struct DiskState {
    pub(super) dirs: BTreeMap<PathBuf, SimDirectory>,
    pub(super) inodes: BTreeMap<u64, Inode>,
    inodes_made: u64,
    pub(super) locks: BTreeSet<PathBuf>,
    pub(super) faults: Faults,
    pub(super) capacity_bytes: Option<u64>,
    /// Counts of successful syncs by file name.
    pub(super) syncs: BTreeMap<String, u64>,
    /// The name prefixes of the gates that hold syncs.
    pub(super) gates: BTreeMap<u64, String>,
    pub(super) gates_made: u64,
    /// The number of syncs that wait at a gate.
    pub(super) held: usize,
    pub(super) observer: Option<StateObserver>,
}

#[derive(Clone, Default)]
pub(super) struct SimDirectory {
    pub(super) live: BTreeMap<String, u64>,
    pub(super) durable: BTreeMap<String, u64>,
    /// The changes that lead from `durable` to `live`, in order.
    pub(super) changes: Vec<DirChange>,
}

/// One atomic change of a directory.
#[derive(Clone)]
pub(super) struct DirChange {
    inode: u64,
    gone: Option<String>,
    made: Option<String>,
}

impl DirChange {
    pub(super) fn apply(&self, entries: &mut BTreeMap<String, u64>) {
        if let Some(gone) = &self.gone {
            entries.remove(gone);
        }
        if let Some(made) = &self.made {
            entries.insert(made.clone(), self.inode);
        }
    }

    /// True if both concern one file or one name.
    pub(super) fn depends_on(&self, earlier: &DirChange) -> bool {
        earlier.inode == self.inode || earlier.names().any(|name| self.names().any(|own| own == name))
    }

    fn names(&self) -> impl Iterator<Item = &String> {
        self.gone.iter().chain(&self.made)
    }
}

#[derive(Clone, Default)]
pub(super) struct Inode {
    pub(super) live: Arc<Vec<u8>>,
    pub(super) durable: Arc<Vec<u8>>,
    /// The sectors of `live` that are not durable, each with the range of bytes that was written to it.
    pub(super) dirty: BTreeMap<usize, Range<usize>>,
    pub(super) handles: usize,
}

/// The content that a file had when a sync of it began.
pub(super) struct BegunSync {
    sectors: Vec<(usize, Vec<u8>)>,
    len: usize,
}

impl DiskState {
    /// Begins an operation: shows the disk to the observer if the operation changes something, and counts it.
    ///
    /// # Errors
    /// The planned fault that this operation meets.
    pub(super) fn begin(&mut self, op: DiskOp, name: &str) -> Result<(), InjectedFailure> {
        // Taken out meanwhile, so that the observer and the image can be borrowed at the same time.
        if let Some(mut observer) = self.observer.take_if(|_| op.changes()) {
            observer(op, name, self.killed());
            self.observer = Some(observer);
        }
        self.faults.check(op, name)
    }

    /// Returns a disk without files that numbers new files as this one does.
    pub(super) fn empty_image(&self) -> DiskState {
        DiskState { inodes_made: self.inodes_made, ..DiskState::default() }
    }

    /// Returns the disk as a killed process leaves it: without open files, locks, faults or counts.
    pub(super) fn killed(&self) -> DiskState {
        let mut image = self.empty_image();
        image.dirs = self.dirs.clone();
        image.inodes = self.inodes.clone();
        image.inodes.values_mut().for_each(|file| file.handles = 0);
        image.free_unused_files();
        image
    }

    pub(super) fn create_dir_all(&mut self, path: &Path) -> io::Result<()> {
        self.begin(DiskOp::CreateDir, &name_in(path))?;
        self.make_dirs(path);
        Ok(())
    }

    pub(super) fn list(&mut self, path: &Path) -> io::Result<Vec<String>> {
        self.begin(DiskOp::List, &name_in(path))?;
        Ok(self.dir(path)?.live.keys().cloned().collect())
    }

    pub(super) fn create_new(&mut self, path: &Path) -> io::Result<u64> {
        let name = name_in(path);
        // Counted before the name is checked, so that plans of faults do not depend on the outcome.
        self.begin(DiskOp::Create, &name)?;
        let inode = self.inodes_made + 1;
        let dir = self.dir(parent_of(path))?;
        if dir.live.contains_key(&name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        dir.change(DirChange { inode, gone: None, made: Some(name) });
        self.inodes_made = inode;
        self.inodes.insert(inode, Inode { handles: 1, ..Inode::default() });
        Ok(inode)
    }

    pub(super) fn open(&mut self, path: &Path) -> io::Result<u64> {
        self.begin(DiskOp::Open, &name_in(path))?;
        let inode = self.find(path)?;
        self.inode(inode)?.handles += 1;
        Ok(inode)
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        self.begin(DiskOp::Rename, &name_in(from))?;
        if parent_of(from) != parent_of(to) {
            // Nothing in the crate does so, and half of such a rename may be lost.
            return Err(io::ErrorKind::CrossesDevices.into());
        }
        let inode = self.find(from)?;
        // The replaced file lives on while a handle or a durable entry refers to it.
        let replaced = self.find(to).ok();
        if replaced != Some(inode) {
            let (gone, made) = (Some(name_in(from)), Some(name_in(to)));
            self.dir(parent_of(to))?.change(DirChange { inode, gone, made });
            replaced.into_iter().for_each(|replaced| self.free_if_unused(replaced));
        }
        Ok(())
    }

    pub(super) fn remove(&mut self, path: &Path) -> io::Result<()> {
        let name = name_in(path);
        self.begin(DiskOp::Remove, &name)?;
        let inode = self.find(path)?;
        self.dir(parent_of(path))?.change(DirChange { inode, gone: Some(name), made: None });
        self.free_if_unused(inode);
        Ok(())
    }

    pub(super) fn sync_dir(&mut self, path: &Path) -> io::Result<()> {
        let outcome = self.begin(DiskOp::SyncDir, &name_in(path));
        let dir = self.dir(path)?;
        if let Err(failure) = outcome {
            // A file system that stopped comes back with the durable entries only.
            if failure.reverts_pages {
                // Names that were made since the last sync are gone, and with them files that nobody else holds.
                dir.live = dir.durable.clone();
                dir.changes.clear();
                self.free_unused_files();
            }
            return Err(failure.error);
        }
        // In order: a later change may undo an earlier one of the same name.
        for change in dir.changes.drain(..) {
            change.apply(&mut dir.durable);
        }
        self.free_unused_files();
        Ok(())
    }

    pub(super) fn lock(&mut self, path: &Path) -> io::Result<()> {
        self.begin(DiskOp::Lock, &name_in(path))?;
        self.dir(parent_of(path))?;
        // A second lock is refused in the same process too, as the operating system's disk does.
        if !self.locks.insert(path.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(())
    }

    pub(super) fn read_at(&mut self, inode: u64, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let name = self.name_of(inode);
        self.begin(DiskOp::Read, &name)?;
        let file = self.inode(inode)?;
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(file.live.len());
        let there = file.live.get(from..).unwrap_or_default();
        let n = there.len().min(buf.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..n), there.get(..n)) {
            to.copy_from_slice(from);
        }
        Ok(n)
    }

    pub(super) fn write_all_at(&mut self, inode: u64, buf: &[u8], offset: u64) -> io::Result<()> {
        let name = self.name_of(inode);
        let mut outcome = self.begin(DiskOp::Write, &name);
        let mut buf = buf;
        // A failing write may still have an effect, as on a real disk.
        if let Err(failure) = &outcome {
            buf = failure.written.of(buf);
        }
        let offset = usize::try_from(offset).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let room = self.room(inode, offset)?;
        // What fits is written all the same: a full disk takes a prefix.
        if buf.len() > room {
            buf = buf.get(..room).unwrap_or(buf);
            outcome = outcome.and(Err(InjectedFailure {
                error: io::ErrorKind::StorageFull.into(),
                reverts_pages: false,
                written: WrittenPart::Bytes(room),
            }));
        }
        self.inode(inode)?.write(buf, offset);
        Ok(outcome?)
    }

    pub(super) fn len(&mut self, inode: u64) -> io::Result<u64> {
        let name = self.name_of(inode);
        self.begin(DiskOp::Len, &name)?;
        Ok(self.inode(inode)?.live.len() as u64)
    }

    pub(super) fn close(&mut self, inode: u64) {
        if let Some(file) = self.inodes.get_mut(&inode) {
            file.handles = file.handles.saturating_sub(1);
        }
        self.free_if_unused(inode);
    }

    /// Notes the content that a sync beginning now makes durable.
    pub(super) fn begin_sync(&self, inode: u64) -> BegunSync {
        let Some(file) = self.inodes.get(&inode) else { return BegunSync { sectors: Vec::new(), len: 0 } };
        let sectors = file.dirty.keys().map(|&sector| (sector, sector_of(&file.live, sector).to_vec()));
        BegunSync { sectors: sectors.collect(), len: file.live.len() }
    }

    /// Ends a sync that began earlier, or now if `begun` is `None`.
    pub(super) fn finish_sync(
        &mut self,
        inode: u64,
        name: &str,
        begun: Option<BegunSync>,
        outcome: Result<(), InjectedFailure>,
    ) -> io::Result<()> {
        // Without a gate the sync covers what is there now; with one, what was there when it began.
        let begun = begun.unwrap_or_else(|| self.begin_sync(inode));
        let file = self.inode(inode)?;
        if let Err(failure) = outcome {
            if failure.reverts_pages {
                file.live = Arc::clone(&file.durable);
            }
            // Clean pages, though they are not on the disk: a second sync reports success (`Fault::pages_reverted`).
            file.dirty.clear();
            return Err(failure.error);
        }
        // Lengths never shrink: the crate truncates no file.
        let len = begun.len.max(file.durable.len());
        let durable = Arc::make_mut(&mut file.durable);
        grow(durable, len);
        for (sector, content) in begun.sectors {
            put(durable, sector * SECTOR_BYTES, &content);
            // A sector that was written again while the sync waited at a gate is not clean.
            if sector_of(&file.live, sector) == content.as_slice() {
                file.dirty.remove(&sector);
            }
        }
        // Only successes count: tests derive from it how many syncs an operation costs.
        *self.syncs.entry(name.to_owned()).or_default() += 1;
        Ok(())
    }

    pub(super) fn used_bytes(&self) -> u64 {
        let named: BTreeSet<&u64> = self.dirs.values().flat_map(|dir| dir.live.values()).collect();
        // A removed file takes space until its last handle is closed, as on a real disk.
        let used = self.inodes.iter().filter(|(inode, file)| file.handles > 0 || named.contains(inode));
        used.map(|(_, file)| file.live.len() as u64).sum()
    }

    pub(super) fn overwrite(&mut self, path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let inode = self.find(path)?;
        let file = self.inode(inode)?;
        let from = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        if from.saturating_add(bytes.len()) > file.live.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        put(Arc::<Vec<u8>>::make_mut(&mut file.live), from, bytes);
        put(Arc::<Vec<u8>>::make_mut(&mut file.durable), from, bytes);
        Ok(())
    }

    /// Puts a durable file under `path`, in place of one of that name, without counting an operation.
    pub(super) fn put_file(&mut self, path: &Path, content: Vec<u8>) {
        self.make_dirs(parent_of(path));
        // A new file and not new content: handles that are open keep the old one.
        let inode = self.inodes_made + 1;
        self.inodes_made = inode;
        self.inodes.insert(inode, Inode::durable(Arc::new(content)));
        self.set_durable_entry(path, Some(inode));
    }

    /// Removes a file durably, without counting an operation.
    pub(super) fn delete_file(&mut self, path: &Path) {
        self.set_durable_entry(path, None);
    }

    fn set_durable_entry(&mut self, path: &Path, inode: Option<u64>) {
        let name = name_in(path);
        if let Some(dir) = self.dirs.get_mut(parent_of(path)) {
            // A change that is still pending would take the new entry back in a crash.
            dir.changes.retain(|change| !change.names().any(|changed| *changed == name));
            for entries in [&mut dir.live, &mut dir.durable] {
                match inode {
                    Some(inode) => _ = entries.insert(name.clone(), inode),
                    None => _ = entries.remove(&name),
                }
            }
        }
        self.free_unused_files();
    }

    /// Returns the readable content of every file in a directory.
    pub(super) fn files(&self, dir: &Path) -> BTreeMap<String, Vec<u8>> {
        let names = self.dirs.get(dir).into_iter().flat_map(|dir| &dir.live);
        let content =
            |inode: &u64| self.inodes.get(inode).map(|file| Vec::clone(&file.live)).unwrap_or_default();
        names.map(|(name, inode)| (name.clone(), content(inode))).collect()
    }

    /// Returns a file's present name, which faults, gates and counts are matched by; empty if it has none.
    pub(super) fn name_of(&self, inode: u64) -> String {
        let entries = self.dirs.values().flat_map(|dir| &dir.live);
        entries.filter(|(_, found)| **found == inode).map(|(name, _)| name.clone()).next().unwrap_or_default()
    }

    fn make_dirs(&mut self, path: &Path) {
        for ancestor in path.ancestors() {
            if !self.dirs.contains_key(ancestor) {
                self.dirs.insert(ancestor.to_owned(), SimDirectory::default());
            }
        }
    }

    fn dir(&mut self, path: &Path) -> io::Result<&mut SimDirectory> {
        self.dirs.get_mut(path).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn inode(&mut self, inode: u64) -> io::Result<&mut Inode> {
        self.inodes.get_mut(&inode).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn find(&mut self, path: &Path) -> io::Result<u64> {
        let found = self.dir(parent_of(path))?.live.get(&name_in(path)).copied();
        found.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Returns the number of bytes that may be written from `offset` on.
    fn room(&mut self, inode: u64, offset: usize) -> io::Result<usize> {
        let Some(capacity) = self.capacity_bytes else { return Ok(usize::MAX) };
        let free = usize::try_from(capacity.saturating_sub(self.used_bytes())).unwrap_or(usize::MAX);
        let len = self.inode(inode)?.live.len();
        Ok(len.saturating_add(free).saturating_sub(offset))
    }

    /// Frees a file that has no handle and no name, be it live, durable or between the two.
    fn free_if_unused(&mut self, inode: u64) {
        let named = self.dirs.values().any(|dir| dir.names(inode));
        if !named && self.inodes.get(&inode).is_some_and(|file| file.handles == 0) {
            self.inodes.remove(&inode);
        }
    }

    fn free_unused_files(&mut self) {
        let inodes: Vec<u64> = self.inodes.keys().copied().collect();
        inodes.into_iter().for_each(|inode| self.free_if_unused(inode));
    }
}

impl SimDirectory {
    /// Returns a directory whose entries are all durable.
    pub(super) fn durable(entries: BTreeMap<String, u64>) -> SimDirectory {
        SimDirectory { live: entries.clone(), durable: entries, changes: Vec::new() }
    }

    fn change(&mut self, change: DirChange) {
        change.apply(&mut self.live);
        self.changes.push(change);
    }

    fn names(&self, inode: u64) -> bool {
        let entries = self.live.values().chain(self.durable.values());
        entries.chain(self.changes.iter().map(|change| &change.inode)).any(|found| *found == inode)
    }
}

impl Inode {
    /// Returns a file whose content is all durable.
    pub(super) fn durable(content: Arc<Vec<u8>>) -> Inode {
        Inode { live: Arc::clone(&content), durable: content, ..Inode::default() }
    }

    fn write(&mut self, buf: &[u8], offset: usize) {
        let end = offset + buf.len();
        if buf.is_empty() {
            return;
        }
        let live = Arc::make_mut(&mut self.live);
        grow(live, end);
        put(live, offset, buf);
        for sector in offset / SECTOR_BYTES..=(end - 1) / SECTOR_BYTES {
            let start = sector * SECTOR_BYTES;
            // A crash may garble the bytes that were being written, and no others of the sector.
            let written = offset.max(start)..end.min(start + SECTOR_BYTES);
            let whole = self.dirty.entry(sector).or_insert_with(|| written.clone());
            *whole = whole.start.min(written.start)..whole.end.max(written.end);
        }
    }
}

pub(super) fn sector_of(content: &[u8], sector: usize) -> &[u8] {
    let from = (sector * SECTOR_BYTES).min(content.len());
    let to = (from + SECTOR_BYTES).min(content.len());
    content.get(from..to).unwrap_or_default()
}

/// Fills `content` up with zeros to at least `len` bytes.
pub(super) fn grow(content: &mut Vec<u8>, len: usize) {
    // One copy is a good deal faster than `resize` in an unoptimised build, and tests do this all the time.
    let zeros = vec![0; len.saturating_sub(content.len())];
    content.extend_from_slice(&zeros);
}

/// Copies as much of `bytes` to `offset` as fits within `content`.
pub(super) fn put(content: &mut [u8], offset: usize, bytes: &[u8]) {
    let Some(to) = content.get_mut(offset..) else { return };
    let n = to.len().min(bytes.len());
    if let (Some(to), Some(from)) = (to.get_mut(..n), bytes.get(..n)) {
        to.copy_from_slice(from);
    }
}

fn parent_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

fn name_in(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
