//! What a crash leaves of a simulated disk. Deterministic: the same disk, policy and seed give the same image.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::disk::simulated::SECTOR_BYTES;
use crate::disk::simulated::state::{Change, Dir, Inode, State, grow, put, sector_of};

/// What a crash leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CrashPolicy {
    /// The process dies and the machine lives: everything written is there, and what was not durable still is not.
    ProcessKilled,
    /// Power is cut, and nothing survives but what was synced.
    OnlySynced,
    /// Power is cut, and all that was on its way arrived.
    Everything,
    /// Power is cut, and all that was on its way arrived, but the changes of directories did not.
    NamesLost,
    /// Power is cut; the changes of directories and the files' lengths arrived, and no content did.
    ContentLost,
    /// Power is cut, and all that was on its way arrived but one sector.
    AllButSector {
        /// Which one of [`Unsynced::sectors`], from zero.
        nth: usize,
    },
    /// Power is cut, and all that was on its way arrived but one change of a directory and those that follow from it.
    AllButName {
        /// Which one of [`Unsynced::names`], from zero.
        nth: usize,
    },
    /// Power is cut; of what was not durable, each sector and each change of a directory arrived or did not.
    Random {
        /// What the choice is drawn from.
        seed: u64,
    },
    /// Like `Random`, and a sector may also have arrived up to some byte only.
    Torn {
        /// What the choice is drawn from.
        seed: u64,
    },
    /// Like `Random`, and of a sector what was being written may have become anything.
    Garbled {
        /// What the choice is drawn from.
        seed: u64,
    },
}

/// How much a power cut can take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unsynced {
    /// Sectors that differ from what is durable.
    pub sectors: usize,
    /// Changes of directories.
    pub names: usize,
}

impl State {
    /// The disk as a killed process leaves it.
    pub(super) fn killed(&self) -> State {
        let mut image = State { inodes_made: self.inodes_made, ..State::default() };
        image.dirs = self.dirs.clone();
        image.inodes = self.inodes.clone();
        image.inodes.values_mut().for_each(|file| file.handles = 0);
        image.forget_all();
        image
    }

    pub(super) fn crash(&self, policy: CrashPolicy) -> State {
        if policy == CrashPolicy::ProcessKilled {
            return self.killed();
        }
        self.after(&mut Fate::new(policy))
    }

    pub(super) fn unsynced(&self) -> Unsynced {
        let mut fate = Fate::new(CrashPolicy::Everything);
        self.after(&mut fate);
        fate.met
    }

    fn after(&self, fate: &mut Fate) -> State {
        let mut image = State { inodes_made: self.inodes_made, ..State::default() };
        for (path, dir) in &self.dirs {
            let entries = dir.after(fate);
            for inode in entries.values() {
                if let Some(file) = self.inodes.get(inode) {
                    image.inodes.entry(*inode).or_insert_with(|| file.after(fate));
                }
            }
            let dir = Dir { live: entries.clone(), durable: entries, changes: Vec::new() };
            image.dirs.insert(path.clone(), dir);
        }
        image
    }
}

impl Dir {
    /// The entries that a crash leaves. A change is lost if an earlier one of the same name or file is.
    fn after(&self, fate: &mut Fate) -> BTreeMap<String, u64> {
        let mut entries = self.durable.clone();
        let mut lost: Vec<&Change> = Vec::new();
        for change in &self.changes {
            let follows = |earlier: &&Change| {
                earlier.inode == change.inode
                    || earlier.names().any(|name| change.names().any(|own| own == name))
            };
            if !fate.name_arrives() || lost.iter().any(follows) {
                lost.push(change);
            } else {
                change.apply(&mut entries);
            }
        }
        entries
    }
}

impl Inode {
    /// The content that a crash leaves.
    fn after(&self, fate: &mut Fate) -> Inode {
        if self.dirty.is_empty() && self.live.len() <= self.durable.len() {
            let durable = Arc::clone(&self.durable);
            return Inode { live: Arc::clone(&durable), durable, ..Inode::default() };
        }
        let mut content = Vec::clone(&self.durable);
        // The length is metadata with a fate of its own.
        if self.live.len() > content.len() && fate.length_arrives() {
            grow(&mut content, self.live.len());
        }
        for (&sector, written) in &self.dirty {
            let at = sector * SECTOR_BYTES;
            let new = sector_of(&self.live, sector);
            if sector_of(&content, sector) == new {
                continue;
            }
            match fate.of_sector(new.len()) {
                Arrival::Lost => {}
                Arrival::Until(end) => put(&mut content, at, new.get(..end).unwrap_or(new)),
                Arrival::Garbled => {
                    let garbage: Vec<u8> = written.clone().map(|_| fate.draw().to_le_bytes()[0]).collect();
                    put(&mut content, written.start, &garbage);
                }
            }
        }
        let durable = Arc::new(content);
        Inode { live: Arc::clone(&durable), durable, ..Inode::default() }
    }
}

/// How much of a sector arrives.
enum Arrival {
    Lost,
    Until(usize),
    Garbled,
}

/// What becomes of each thing that was on its way.
struct Fate {
    policy: CrashPolicy,
    random: u64,
    /// What it has decided on so far.
    met: Unsynced,
}

impl Fate {
    fn new(policy: CrashPolicy) -> Fate {
        let random = match policy {
            CrashPolicy::Random { seed } | CrashPolicy::Torn { seed } | CrashPolicy::Garbled { seed } => seed,
            _ => 0,
        };
        Fate { policy, random, met: Unsynced::default() }
    }

    fn name_arrives(&mut self) -> bool {
        let number = self.met.names;
        self.met.names += 1;
        match self.policy {
            CrashPolicy::OnlySynced | CrashPolicy::NamesLost => false,
            CrashPolicy::AllButName { nth } => number != nth,
            _ => self.toss(),
        }
    }

    fn length_arrives(&mut self) -> bool {
        self.policy != CrashPolicy::OnlySynced && self.toss()
    }

    fn of_sector(&mut self, len: usize) -> Arrival {
        let number = self.met.sectors;
        self.met.sectors += 1;
        let arrives = match self.policy {
            CrashPolicy::OnlySynced | CrashPolicy::ContentLost => false,
            CrashPolicy::AllButSector { nth } => number != nth,
            _ => self.toss(),
        };
        let partly = match self.policy {
            CrashPolicy::Torn { .. } => arrives && self.toss(),
            CrashPolicy::Garbled { .. } => !arrives && self.toss(),
            _ => false,
        };
        match (arrives, partly) {
            (true, true) => {
                let at = self.draw() % (len as u64).max(1);
                Arrival::Until(usize::try_from(at).unwrap_or(len))
            }
            (true, false) => Arrival::Until(len),
            (false, true) => Arrival::Garbled,
            (false, false) => Arrival::Lost,
        }
    }

    /// A coin for those policies that are drawn; heads for the others.
    fn toss(&mut self) -> bool {
        match self.policy {
            CrashPolicy::Random { .. } | CrashPolicy::Torn { .. } | CrashPolicy::Garbled { .. } => {
                self.draw() & 1 == 0
            }
            _ => true,
        }
    }

    /// SplitMix64 (Steele, Lea, Flood 2014): small, and good enough from any seed.
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
