//! A disk in memory for the journal's own tests: it counts operations, fails them on command, and can be cut off.
//!
//! What was not synced is kept or lost by the 512-byte sector, and each change of a directory on its own, so it is
//! a harsher disk than those that people buy.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::disk::contract::{Disk, DiskFile, DiskLock};

const SECTOR: usize = 512;

#[derive(Clone, Default)]
pub(crate) struct MemDisk(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    pending: Vec<Change>,
    locked: bool,
    log: Vec<String>,
    fault: Option<Fault>,
    /// Whether the failure just now is the one that may leave half of its work; those behind it leave nothing.
    torn: bool,
}

#[derive(Clone, Default)]
struct Inode {
    live: Vec<u8>,
    durable: Vec<u8>,
    dirty: BTreeSet<usize>,
}

enum Change {
    Set(String, usize),
    Rename(String, String, usize),
    Remove(String),
}

struct Fault {
    /// Operations whose name starts with this...
    operation: &'static str,
    /// ...fail when so many of them have passed.
    after: usize,
    kind: io::ErrorKind,
    /// Once, or all that follow too.
    once: bool,
    hits: usize,
}

/// What a crash keeps of what was not synced.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Keep {
    Nothing,
    Everything,
    /// Each sector and each directory change by the toss of a coin.
    Some(u64),
}

impl MemDisk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Everything fails once `after` more operations have passed: the power is cut.
    pub(crate) fn cut_after(&self, after: usize) {
        self.fail("", after, io::ErrorKind::BrokenPipe, false);
    }

    pub(crate) fn fail(&self, operation: &'static str, after: usize, kind: io::ErrorKind, once: bool) {
        self.state().fault = Some(Fault { operation, after, kind, once, hits: 0 });
    }

    pub(crate) fn heal(&self) {
        self.state().fault = None;
    }

    /// The operations so far that change something, as `name file`.
    pub(crate) fn log(&self) -> Vec<String> {
        self.state().log.clone()
    }

    /// The disk as it is found after a power cut.
    pub(crate) fn crash(&self, keep: Keep) -> MemDisk {
        let state = self.state();
        let mut toss = keep.tosser();
        let mut names = state.durable_names.clone();
        for change in state.pending.iter().filter(|_| toss()) {
            match change {
                Change::Set(name, inode) => _ = names.insert(name.clone(), *inode),
                Change::Remove(name) => _ = names.remove(name),
                Change::Rename(from, to, inode) => {
                    names.remove(from);
                    names.insert(to.clone(), *inode);
                }
            }
        }
        let image = State::default();
        let image = MemDisk(Arc::new(Mutex::new(image)));
        for (name, inode) in names {
            let inode = &state.inodes[inode];
            let mut content = inode.durable.clone();
            for sector in inode.dirty.iter().filter(|_| toss()) {
                let range = sector * SECTOR..((sector + 1) * SECTOR).min(inode.live.len());
                content.resize(content.len().max(range.end), 0);
                content[range.clone()].copy_from_slice(&inode.live[range]);
            }
            image.put(&name, content);
        }
        image
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.state().names.keys().cloned().collect()
    }

    pub(crate) fn content(&self, name: &str) -> Vec<u8> {
        let state = self.state();
        state.inodes[state.names[name]].live.clone()
    }

    /// All names with their content.
    pub(crate) fn image(&self) -> BTreeMap<String, Vec<u8>> {
        self.names().into_iter().map(|name| (name.clone(), self.content(&name))).collect()
    }

    pub(crate) fn put(&self, name: &str, content: Vec<u8>) {
        let mut state = self.state();
        let inode = state.inodes.len();
        state.inodes.push(Inode { live: content.clone(), durable: content, dirty: BTreeSet::new() });
        state.names.insert(name.to_owned(), inode);
        state.durable_names.insert(name.to_owned(), inode);
    }

    pub(crate) fn delete(&self, name: &str) {
        let mut state = self.state();
        state.names.remove(name);
        state.durable_names.remove(name);
    }

    fn file(&self, inode: usize) -> Box<dyn DiskFile> {
        Box::new(MemFile { disk: self.clone(), inode })
    }
}

impl Keep {
    fn tosser(self) -> impl FnMut() -> bool {
        let mut random = match self {
            Keep::Some(seed) => seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            _ => 1,
        };
        move || match self {
            Keep::Nothing => false,
            Keep::Everything => true,
            Keep::Some(_) => {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random & 0x1000 != 0
            }
        }
    }
}

impl State {
    fn operation(&mut self, operation: &str, name: &str) -> io::Result<()> {
        if let Some(fault) = &mut self.fault
            && operation.starts_with(fault.operation)
        {
            if fault.after == 0 {
                let kind = fault.kind;
                fault.hits += 1;
                self.torn = fault.hits == 1;
                if fault.once {
                    self.fault = None;
                }
                return Err(kind.into());
            }
            fault.after -= 1;
        }
        self.log.push(format!("{operation} {name}"));
        Ok(())
    }

    fn find(&self, name: &str) -> io::Result<usize> {
        self.names.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

impl Disk for MemDisk {
    fn create_dir_all(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, _: &Path) -> io::Result<Vec<String>> {
        Ok(self.names())
    }

    fn create_new(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let name = name_of(path);
        let mut state = self.state();
        state.operation("create", &name)?;
        if state.names.contains_key(&name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let inode = state.inodes.len();
        state.inodes.push(Inode::default());
        state.names.insert(name.clone(), inode);
        state.pending.push(Change::Set(name, inode));
        Ok(self.file(inode))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let inode = self.state().find(&name_of(path))?;
        Ok(self.file(inode))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (from, to) = (name_of(from), name_of(to));
        let mut state = self.state();
        state.operation("rename", &to)?;
        let inode = state.find(&from)?;
        state.names.remove(&from);
        state.names.insert(to.clone(), inode);
        state.pending.push(Change::Rename(from, to, inode));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let name = name_of(path);
        let mut state = self.state();
        state.operation("remove", &name)?;
        state.find(&name)?;
        state.names.remove(&name);
        state.pending.push(Change::Remove(name));
        Ok(())
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.operation("sync_dir", "")?;
        state.durable_names = state.names.clone();
        state.pending.clear();
        Ok(())
    }

    fn lock(&self, _: &Path) -> io::Result<Box<dyn DiskLock>> {
        if std::mem::replace(&mut self.state().locked, true) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(MemLock(self.clone())))
    }
}

struct MemLock(MemDisk);

impl DiskLock for MemLock {}

impl Drop for MemLock {
    fn drop(&mut self) {
        self.0.state().locked = false;
    }
}

struct MemFile {
    disk: MemDisk,
    inode: usize,
}

impl MemFile {
    fn name(&self, state: &State) -> String {
        let name = state.names.iter().find(|(_, inode)| **inode == self.inode);
        name.map_or_else(|| "(gone)".to_owned(), |(name, _)| name.clone())
    }
}

impl DiskFile for MemFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = self.disk.state();
        let live = &state.inodes[self.inode].live;
        let from = (offset as usize).min(live.len());
        let len = buf.len().min(live.len() - from);
        buf[..len].copy_from_slice(&live[from..from + len]);
        Ok(len)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        let name = self.name(&state);
        let result = state.operation("write", &name);
        // A write that fails or is cut off may leave any part of itself; half of it is a fair sample.
        let len = match &result {
            Ok(()) => buf.len(),
            Err(_) if state.torn => buf.len() / 2,
            Err(_) => 0,
        };
        let inode = &mut state.inodes[self.inode];
        let range = offset as usize..offset as usize + len;
        if !range.is_empty() {
            inode.live.resize(inode.live.len().max(range.end), 0);
            inode.live[range.clone()].copy_from_slice(&buf[..len]);
            inode.dirty.extend(range.start / SECTOR..=(range.end - 1) / SECTOR);
        }
        result
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        let name = self.name(&state);
        let result = state.operation("sync", &name);
        let inode = &mut state.inodes[self.inode];
        let dirty = std::mem::take(&mut inode.dirty);
        if result.is_ok() {
            for sector in dirty {
                let range = sector * SECTOR..((sector + 1) * SECTOR).min(inode.live.len());
                inode.durable.resize(inode.durable.len().max(range.end), 0);
                inode.durable[range.clone()].copy_from_slice(&inode.live[range]);
            }
        }
        result
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.state().inodes[self.inode].live.len() as u64)
    }
}
