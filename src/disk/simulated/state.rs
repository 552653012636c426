//! The simulated disk's files and directories, live and durable. No locking, no waiting: the face does that.
//!
//! Contents are shared with the images of crashes until either side changes them, so an image costs little.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::simulated::faults::{FailedSync, Failure, Faults, Op};
use crate::disk::simulated::{Observer, Operation, SECTOR_BYTES, SimDisk};

#[derive(Default)]
pub(super) struct State {
    pub(super) dirs: BTreeMap<PathBuf, Dir>,
    pub(super) inodes: BTreeMap<u64, Inode>,
    pub(super) inodes_made: u64,
    pub(super) locks: BTreeSet<PathBuf>,
    pub(super) faults: Faults,
    pub(super) capacity_bytes: Option<u64>,
    /// Successful syncs by file name.
    pub(super) syncs: BTreeMap<String, u64>,
    /// The open gates' name prefixes.
    pub(super) gates: BTreeMap<u64, String>,
    pub(super) gates_made: u64,
    /// How many syncs stand at a gate.
    pub(super) held: usize,
    /// Who is shown the disk before each change.
    pub(super) observer: Option<Observer>,
}

#[derive(Clone, Default)]
pub(super) struct Dir {
    pub(super) live: BTreeMap<String, u64>,
    pub(super) durable: BTreeMap<String, u64>,
    /// What leads from `durable` to `live`, in order.
    pub(super) changes: Vec<Change>,
}

/// One atomic change of a directory.
#[derive(Clone)]
pub(super) struct Change {
    pub(super) inode: u64,
    gone: Option<String>,
    made: Option<String>,
}

impl Change {
    pub(super) fn apply(&self, entries: &mut BTreeMap<String, u64>) {
        if let Some(gone) = &self.gone {
            entries.remove(gone);
        }
        if let Some(made) = &self.made {
            entries.insert(made.clone(), self.inode);
        }
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.gone.iter().chain(&self.made)
    }
}

#[derive(Clone, Default)]
pub(super) struct Inode {
    pub(super) live: Arc<Vec<u8>>,
    pub(super) durable: Arc<Vec<u8>>,
    /// Sectors of `live` that the disk has not been told of, with the bytes of each that were written since.
    pub(super) dirty: BTreeMap<usize, Range<usize>>,
    pub(super) handles: usize,
}

/// What a sync saw when it began.
pub(super) struct BegunSync {
    sectors: Vec<(usize, Vec<u8>)>,
    len: usize,
}

impl State {
    /// Shows the disk to the observer if this operation changes something, counts it, and says whether it fails.
    pub(super) fn begin(&mut self, op: Op, name: &str) -> Result<(), Failure> {
        if let Some(mut observer) = self.observer.take_if(|_| op.changes()) {
            let operation = Operation { number: self.faults.operations(), op, name: name.to_owned() };
            observer(&operation, SimDisk::of(self.killed()));
            self.observer = Some(observer);
        }
        self.faults.check(op, name)
    }

    pub(super) fn create_dir_all(&mut self, path: &Path) -> io::Result<()> {
        self.begin(Op::CreateDir, &name_in(path))?;
        for ancestor in path.ancestors() {
            if !self.dirs.contains_key(ancestor) {
                self.dirs.insert(ancestor.to_owned(), Dir::default());
            }
        }
        Ok(())
    }

    pub(super) fn list(&mut self, path: &Path) -> io::Result<Vec<String>> {
        self.begin(Op::List, &name_in(path))?;
        Ok(self.dir(path)?.live.keys().cloned().collect())
    }

    pub(super) fn create_new(&mut self, path: &Path) -> io::Result<u64> {
        let name = name_in(path);
        self.begin(Op::Create, &name)?;
        let inode = self.inodes_made + 1;
        let dir = self.dir(parent_of(path))?;
        if dir.live.contains_key(&name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        dir.change(Change { inode, gone: None, made: Some(name) });
        self.inodes_made = inode;
        self.inodes.insert(inode, Inode { handles: 1, ..Inode::default() });
        Ok(inode)
    }

    pub(super) fn open(&mut self, path: &Path) -> io::Result<u64> {
        self.begin(Op::Open, &name_in(path))?;
        let inode = self.find(path)?;
        self.inode(inode)?.handles += 1;
        Ok(inode)
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        self.begin(Op::Rename, &name_in(from))?;
        if parent_of(from) != parent_of(to) {
            // Nothing in the crate does so, and half of such a rename may be lost.
            return Err(io::ErrorKind::CrossesDevices.into());
        }
        let inode = self.find(from)?;
        let replaced = self.find(to).ok();
        if replaced != Some(inode) {
            let (gone, made) = (Some(name_in(from)), Some(name_in(to)));
            self.dir(parent_of(to))?.change(Change { inode, gone, made });
            replaced.into_iter().for_each(|replaced| self.forget(replaced));
        }
        Ok(())
    }

    pub(super) fn remove(&mut self, path: &Path) -> io::Result<()> {
        let name = name_in(path);
        self.begin(Op::Remove, &name)?;
        let inode = self.find(path)?;
        self.dir(parent_of(path))?.change(Change { inode, gone: Some(name), made: None });
        self.forget(inode);
        Ok(())
    }

    pub(super) fn sync_dir(&mut self, path: &Path) -> io::Result<()> {
        let outcome = self.begin(Op::SyncDir, &name_in(path));
        let dir = self.dir(path)?;
        if let Err(failure) = outcome {
            if failure.failed_sync == FailedSync::PagesReverted {
                dir.live = dir.durable.clone();
                dir.changes.clear();
                self.forget_all();
            }
            return Err(failure.error);
        }
        for change in dir.changes.drain(..) {
            change.apply(&mut dir.durable);
        }
        self.forget_all();
        Ok(())
    }

    pub(super) fn lock(&mut self, path: &Path) -> io::Result<()> {
        self.begin(Op::Lock, &name_in(path))?;
        self.dir(parent_of(path))?;
        if !self.locks.insert(path.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(())
    }

    pub(super) fn read_at(&mut self, inode: u64, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let name = self.name_of(inode);
        self.begin(Op::Read, &name)?;
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
        let mut outcome = self.begin(Op::Write, &name);
        let mut buf = buf;
        if let Err(failure) = &outcome {
            buf = buf.get(..failure.written_bytes).unwrap_or(buf);
        }
        let offset = usize::try_from(offset).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let room = self.room(inode, offset)?;
        if buf.len() > room {
            buf = buf.get(..room).unwrap_or(buf);
            outcome = outcome.and(Err(Failure {
                error: io::ErrorKind::StorageFull.into(),
                failed_sync: FailedSync::default(),
                written_bytes: room,
            }));
        }
        self.inode(inode)?.write(buf, offset);
        Ok(outcome?)
    }

    pub(super) fn len(&mut self, inode: u64) -> io::Result<u64> {
        let name = self.name_of(inode);
        self.begin(Op::Len, &name)?;
        Ok(self.inode(inode)?.live.len() as u64)
    }

    pub(super) fn close(&mut self, inode: u64) {
        if let Some(file) = self.inodes.get_mut(&inode) {
            file.handles = file.handles.saturating_sub(1);
        }
        self.forget(inode);
    }

    /// What a sync that begins now has to bring to the disk.
    pub(super) fn begin_sync(&self, inode: u64) -> BegunSync {
        let Some(file) = self.inodes.get(&inode) else { return BegunSync { sectors: Vec::new(), len: 0 } };
        let sectors = file.dirty.keys().map(|&sector| (sector, sector_of(&file.live, sector).to_vec()));
        BegunSync { sectors: sectors.collect(), len: file.live.len() }
    }

    /// Ends a sync that began now (`None`) or earlier.
    pub(super) fn finish_sync(
        &mut self,
        inode: u64,
        name: &str,
        begun: Option<BegunSync>,
        outcome: Result<(), Failure>,
    ) -> io::Result<()> {
        let begun = begun.unwrap_or_else(|| self.begin_sync(inode));
        let file = self.inode(inode)?;
        if let Err(failure) = outcome {
            if failure.failed_sync == FailedSync::PagesReverted {
                file.live = Arc::clone(&file.durable);
            }
            file.dirty.clear();
            return Err(failure.error);
        }
        let len = begun.len.max(file.durable.len());
        let durable = Arc::make_mut(&mut file.durable);
        grow(durable, len);
        for (sector, content) in begun.sectors {
            put(durable, sector * SECTOR_BYTES, &content);
            if sector_of(&file.live, sector) == content.as_slice() {
                file.dirty.remove(&sector);
            }
        }
        *self.syncs.entry(name.to_owned()).or_default() += 1;
        Ok(())
    }

    pub(super) fn used_bytes(&self) -> u64 {
        let named: BTreeSet<&u64> = self.dirs.values().flat_map(|dir| dir.live.values()).collect();
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

    /// The file's present name, for those who match faults, gates and counts by it.
    pub(super) fn name_of(&self, inode: u64) -> String {
        let entries = self.dirs.values().flat_map(|dir| &dir.live);
        entries.filter(|(_, found)| **found == inode).map(|(name, _)| name.clone()).next().unwrap_or_default()
    }

    fn dir(&mut self, path: &Path) -> io::Result<&mut Dir> {
        self.dirs.get_mut(path).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn inode(&mut self, inode: u64) -> io::Result<&mut Inode> {
        self.inodes.get_mut(&inode).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn find(&mut self, path: &Path) -> io::Result<u64> {
        let found = self.dir(parent_of(path))?.live.get(&name_in(path)).copied();
        found.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// How many bytes from `offset` on may be written.
    fn room(&mut self, inode: u64, offset: usize) -> io::Result<usize> {
        let Some(capacity) = self.capacity_bytes else { return Ok(usize::MAX) };
        let free = usize::try_from(capacity.saturating_sub(self.used_bytes())).unwrap_or(usize::MAX);
        let len = self.inode(inode)?.live.len();
        Ok(len.saturating_add(free).saturating_sub(offset))
    }

    /// Frees a file that has neither a name, live or durable or in between, nor a handle.
    fn forget(&mut self, inode: u64) {
        let named = self.dirs.values().any(|dir| dir.names(inode));
        if !named && self.inodes.get(&inode).is_some_and(|file| file.handles == 0) {
            self.inodes.remove(&inode);
        }
    }

    pub(super) fn forget_all(&mut self) {
        let inodes: Vec<u64> = self.inodes.keys().copied().collect();
        inodes.into_iter().for_each(|inode| self.forget(inode));
    }
}

impl Dir {
    fn change(&mut self, change: Change) {
        change.apply(&mut self.live);
        self.changes.push(change);
    }

    fn names(&self, inode: u64) -> bool {
        let entries = self.live.values().chain(self.durable.values());
        entries.chain(self.changes.iter().map(|change| &change.inode)).any(|found| *found == inode)
    }
}

impl Inode {
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

/// Makes `content` at least so long.
pub(super) fn grow(content: &mut Vec<u8>, len: usize) {
    // One copy is a good deal faster than `resize` where nothing is optimized, and tests do this all the time.
    let zeros = vec![0; len.saturating_sub(content.len())];
    content.extend_from_slice(&zeros);
}

/// Copies as much of `bytes` as fits within `content`.
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
