//! A disk that is rebuilt from the system calls of a traced process, and what a power cut could leave of it.
//!
//! The model is a pessimistic one. A write is safe only once an `fsync` or `fdatasync` of its file that began after
//! the write had returned has itself returned; `sync_file_range` counts for nothing. Until then each 512-byte sector
//! of it may be on the disk or not, whatever the order. A name (create, `mkdir`, `rename`, `unlink`) is safe only once
//! its directory was synced; of those that are not, some first ones are there, since file systems log them in order.
//! Times are lines of the trace.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::strace::{Action, Call, moved_path};

const SECTOR: usize = 512;

/// The target of a directory entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    Directory,
    File(usize),
}

#[derive(Debug)]
enum Name {
    Add { path: PathBuf, node: Node },
    Remove { path: PathBuf },
    Move { from: PathBuf, to: PathBuf, node: Node },
}

/// The bytes of a file. Behind those that are listed come zeros, up to its length.
#[derive(Clone, Default)]
struct Image {
    bytes: Vec<u8>,
    len: usize,
}

#[derive(Default)]
struct Content {
    durable: Image,
    /// Changes that no sync has covered, by call: a write of bytes, or a cut to a length.
    pending: Vec<usize>,
}

/// The choice of survivors among what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survivors {
    Nothing,
    Everything,
    /// All sectors but one.
    AllButOne,
    /// Each sector or not.
    Sectors,
    /// Each write wholly or not at all.
    Writes,
    /// The newest write of each file alone.
    NewestWrite,
    /// The first sector of each write and of each `unit` of the file alone, where logs keep their headers.
    Headers,
    /// Everything but those.
    AllButHeaders,
}

pub const SURVIVORS: [Survivors; 8] = [
    Survivors::Nothing,
    Survivors::Everything,
    Survivors::AllButOne,
    Survivors::Sectors,
    Survivors::Writes,
    Survivors::NewestWrite,
    Survivors::Headers,
    Survivors::AllButHeaders,
];

/// The disk at one moment of the trace. Moments come in order.
pub struct Disk<'a> {
    calls: &'a [Call],
    /// Only what is below this directory is modelled.
    top: PathBuf,
    /// The files as the process sees them.
    live: BTreeMap<PathBuf, Node>,
    durable: BTreeMap<PathBuf, Node>,
    /// Changes of names that no sync has covered.
    names: Vec<(usize, Name)>,
    files: Vec<Content>,
    pub said: Vec<&'a str>,
}

/// The begins and ends of `calls`, in the order of the trace.
pub fn events(calls: &[Call]) -> Vec<(usize, bool)> {
    let mut events: Vec<(usize, bool, usize)> = Vec::with_capacity(2 * calls.len());
    for (at, call) in calls.iter().enumerate() {
        events.push((call.begin, false, at));
        events.push((call.end, true, at));
    }
    events.sort_by_key(|(line, end, at)| (*line, *at, *end));
    events.into_iter().map(|(_, end, at)| (at, end)).collect()
}

impl<'a> Disk<'a> {
    pub fn new(calls: &'a [Call], top: &Path) -> Disk<'a> {
        Disk {
            calls,
            top: top.to_owned(),
            live: BTreeMap::new(),
            durable: BTreeMap::new(),
            names: Vec::new(),
            files: Vec::new(),
            said: Vec::new(),
        }
    }

    /// True if a power cut could leave more than one image now.
    pub fn is_in_doubt(&self) -> bool {
        !self.names.is_empty() || self.files.iter().any(|file| !file.pending.is_empty())
    }

    /// Returns the number of bytes that were written and not synced.
    pub fn bytes_in_doubt(&self) -> usize {
        let changes = self.files.iter().flat_map(|file| &file.pending);
        changes.map(|change| sectors_of(&self.calls[*change].action).count() * SECTOR).sum()
    }

    /// Lets one event of [`events`] happen.
    pub fn step(&mut self, (at, ends): (usize, bool)) {
        match (&self.calls[at].action, ends) {
            (Action::Said { text }, false) => self.said.push(text),
            (Action::Create { path, truncate }, false) if self.covers(path) => match self.live.get(path) {
                Some(Node::File(file)) if *truncate => self.files[*file].pending.push(at),
                Some(_) => {}
                None => {
                    let node = Node::File(self.files.len());
                    self.files.push(Content::default());
                    self.rename(at, Name::Add { path: path.clone(), node });
                }
            },
            (Action::MakeDir { path }, false) if self.covers(path) => {
                self.rename(at, Name::Add { path: path.clone(), node: Node::Directory });
            }
            (Action::Rename { from, to }, false) if self.covers(from) => {
                let node = self.live[from];
                self.rename(at, Name::Move { from: from.clone(), to: to.clone(), node });
            }
            (Action::Unlink { path }, false) if self.covers(path) => {
                self.rename(at, Name::Remove { path: path.clone() });
            }
            (Action::Write { path, .. } | Action::Truncate { path, .. }, false) if self.covers(path) => {
                let Node::File(file) = self.live[path] else { panic!("{path:?} is written and is no file") };
                self.files[file].pending.push(at);
            }
            (Action::Sync { path }, true) if self.covers(path) || *path == self.top => self.sync(path, at),
            _ => {}
        }
    }

    fn covers(&self, path: &Path) -> bool {
        path.starts_with(&self.top) && *path != self.top
    }

    fn rename(&mut self, at: usize, name: Name) {
        apply_name(&mut self.live, &name);
        self.names.push((at, name));
    }

    fn sync(&mut self, path: &Path, at: usize) {
        let begin = self.calls[at].begin;
        let calls = self.calls;
        if let Some(Node::File(file)) = self.live.get(path) {
            let file = &mut self.files[*file];
            let (covered, left) = file.pending.iter().partition(|change| calls[**change].end < begin);
            file.pending = left;
            let covered: Vec<usize> = covered;
            covered.iter().for_each(|change| apply_change(&mut file.durable, &calls[*change].action));
            return;
        }
        for (change, name) in std::mem::take(&mut self.names) {
            let (Name::Add { path: of, .. } | Name::Remove { path: of } | Name::Move { to: of, .. }) = &name;
            if of.parent() == Some(path) && calls[change].end < begin {
                apply_name(&mut self.durable, &name);
            } else {
                self.names.push((change, name));
            }
        }
    }

    /// Writes into the empty directory `target` what a power cut at this moment could leave.
    pub fn image(
        &self,
        target: &Path,
        survivors: Survivors,
        unit: usize,
        random: &mut impl FnMut(usize) -> usize,
    ) {
        let mut names = self.durable.clone();
        let kept = match survivors {
            Survivors::Nothing => 0,
            Survivors::Everything | Survivors::AllButOne | Survivors::Headers => self.names.len(),
            _ => random(self.names.len() + 1),
        };
        for (_, name) in self.names.iter().take(kept) {
            apply_name(&mut names, name);
        }
        for (path, node) in names {
            let path = target.join(path.strip_prefix(&self.top).expect("only what is below is modelled"));
            // A directory whose own name was lost takes its files with it. Maps are sorted, parents first.
            if !path.parent().is_some_and(Path::is_dir) {
                continue;
            }
            match node {
                Node::Directory => std::fs::create_dir(&path).unwrap(),
                Node::File(file) => {
                    let Image { bytes, len } = self.content(&self.files[file], survivors, unit, random);
                    std::fs::write(&path, bytes).unwrap();
                    std::fs::File::options().write(true).open(&path).unwrap().set_len(len as u64).unwrap();
                }
            }
        }
    }

    fn content(
        &self,
        file: &Content,
        survivors: Survivors,
        unit: usize,
        random: &mut impl FnMut(usize) -> usize,
    ) -> Image {
        let mut image = file.durable.clone();
        if file.pending.is_empty() || survivors == Survivors::Nothing {
            return image;
        }
        // What the page cache holds after each change: a sector goes to the disk with all that is in it.
        let mut cached = file.durable.clone();
        let sectors: usize =
            file.pending.iter().map(|change| sectors_of(&self.calls[*change].action).count()).sum();
        // The oldest ones more often: what a log takes for finished.
        let among = if random(2) == 0 { sectors } else { sectors / 4 };
        let missing = random(among.max(1));
        let mut counted = 0;
        for (place, change) in file.pending.iter().enumerate() {
            let action = &self.calls[*change].action;
            apply_change(&mut cached, action);
            let whole = random(2) == 0;
            if !matches!(action, Action::Write { .. }) {
                if whole || survivors == Survivors::Everything {
                    apply_change(&mut image, action);
                }
                continue;
            }
            for (nth, sector) in sectors_of(action).enumerate() {
                let is_header = nth == 0 || (sector * SECTOR).is_multiple_of(unit);
                let kept = match survivors {
                    Survivors::Nothing => false,
                    Survivors::Everything => true,
                    Survivors::AllButOne => counted != missing,
                    Survivors::Sectors => random(2) == 0,
                    Survivors::Writes => whole,
                    Survivors::NewestWrite => place + 1 == file.pending.len(),
                    Survivors::Headers => is_header,
                    Survivors::AllButHeaders => !is_header,
                };
                counted += 1;
                if kept {
                    let (from, to) = (sector * SECTOR, cached.bytes.len().min((sector + 1) * SECTOR));
                    image.write(from, &cached.bytes[from..to]);
                }
            }
        }
        // The new length may be there without the bytes.
        if survivors != Survivors::Everything && random(4) == 0 {
            image.len = image.len.max(cached.len);
        }
        image
    }
}

fn sectors_of(action: &Action) -> std::ops::Range<usize> {
    match action {
        Action::Write { offset, data, .. } => offset / SECTOR..(offset + data.len()).div_ceil(SECTOR),
        _ => 0..0,
    }
}

fn apply_name(names: &mut BTreeMap<PathBuf, Node>, name: &Name) {
    match name {
        Name::Add { path, node } => {
            names.insert(path.clone(), *node);
        }
        Name::Remove { path } => {
            names.remove(path);
        }
        Name::Move { from, to, node } => {
            names.remove(from);
            names.insert(to.clone(), *node);
            // A directory takes along what is durable in it.
            let inside: Vec<PathBuf> = names.keys().filter(|path| path.starts_with(from)).cloned().collect();
            for path in inside {
                let node = names.remove(&path).expect("it was just listed");
                names.insert(moved_path(&path, from, to), node);
            }
        }
    }
}

fn apply_change(content: &mut Image, action: &Action) {
    match action {
        Action::Write { offset, data, .. } => content.write(*offset, data),
        Action::Truncate { len, .. } => {
            content.bytes.truncate(*len);
            content.len = *len;
        }
        Action::Create { .. } => *content = Image::default(),
        other => panic!("no change of a file: {other:?}"),
    }
}

impl Image {
    fn write(&mut self, offset: usize, data: &[u8]) {
        let end = offset + data.len();
        self.bytes.resize(self.bytes.len().max(end), 0);
        self.bytes[offset..end].copy_from_slice(data);
        self.len = self.len.max(end);
    }
}
