//! Computes the content of a simulated disk after a crash.
//!
//! Deterministic: the same disk, policy and seed give the same image. Reads the state and never changes it.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::disk::simulated::state::{
    DirChange, DiskState, Inode, SECTOR_BYTES, SimDirectory, grow, put, sector_of,
};

/// The extent of what a crash destroys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CrashPolicy {
    /// The process dies and the machine lives on: everything written is readable, and unsynced data stays unsynced.
    ProcessKilled,
    /// Power is cut, and only synced data survives.
    OnlySynced,
    /// Power is cut, and all unsynced data had reached the disk by then.
    Everything,
    /// Power is cut: all content had reached the disk, and no directory change had.
    NamesLost,
    /// Power is cut: directory changes and file lengths had reached the disk, and no content had.
    ContentLost,
    /// Power is cut, and everything survives but one sector.
    AllButSector {
        /// The index of the sector among the unsynced ones, from zero.
        nth: usize,
    },
    /// Power is cut, and everything survives but one directory change and those that depend on it.
    AllButName {
        /// The index of the change among those that are not durable, from zero.
        nth: usize,
    },
    /// Power is cut, and each unsynced sector and directory change survives or not, at random.
    Random {
        /// The seed of the random choice.
        seed: u64,
    },
    /// Like `Random`, but a directory change may survive although one that it depends on is lost.
    ///
    /// No file system of today does that. Code that holds here needs no order between directory changes.
    Unordered {
        /// The seed of the random choice.
        seed: u64,
    },
    /// Like `Random`, and of a surviving sector only a prefix may have been written.
    Torn {
        /// The seed of the random choice.
        seed: u64,
    },
    /// Like `Random`, and the bytes that were being written to a lost sector may hold garbage.
    Garbled {
        /// The seed of the random choice.
        seed: u64,
    },
}

/// Returns the disk as a crash leaves it.
pub(super) fn crash(state: &DiskState, policy: CrashPolicy) -> DiskState {
    // A killed process loses nothing that the kernel has: its page cache stays, and so does what was never synced.
    if policy == CrashPolicy::ProcessKilled {
        return state.killed();
    }
    Survival::new(policy).disk(state)
}

/// Counts the sectors and directory changes that a power cut can destroy.
pub(super) fn unsynced(state: &DiskState) -> (usize, usize) {
    let mut survival = Survival::new(CrashPolicy::Everything);
    survival.disk(state);
    (survival.sectors_decided, survival.names_decided)
}

/// The part of a sector that survives.
enum SectorOutcome {
    Lost,
    Prefix(usize),
    Garbled,
}

/// Decides for each unsynced sector, length and directory change whether it survives.
struct Survival {
    policy: CrashPolicy,
    random: u64,
    /// The numbers of sectors and of directory changes that were decided on so far.
    sectors_decided: usize,
    names_decided: usize,
}

impl Survival {
    fn new(policy: CrashPolicy) -> Survival {
        let random = match policy {
            CrashPolicy::Random { seed }
            | CrashPolicy::Unordered { seed }
            | CrashPolicy::Torn { seed }
            | CrashPolicy::Garbled { seed } => seed,
            _ => 0,
        };
        Survival { policy, random, sectors_decided: 0, names_decided: 0 }
    }

    fn disk(&mut self, state: &DiskState) -> DiskState {
        let mut image = state.empty_image();
        for (path, dir) in &state.dirs {
            let entries = self.entries(dir);
            // A file that keeps two names, as an unordered crash of a rename leaves it, has one content.
            for inode in entries.values() {
                if let Some(file) = state.inodes.get(inode) {
                    image.inodes.entry(*inode).or_insert_with(|| self.content(file));
                }
            }
            image.dirs.insert(path.clone(), SimDirectory::durable(entries));
        }
        image
    }

    /// Returns the entries of a directory after the crash.
    fn entries(&mut self, dir: &SimDirectory) -> BTreeMap<String, u64> {
        let in_order = !matches!(self.policy, CrashPolicy::Unordered { .. });
        let mut entries = dir.durable.clone();
        let mut lost: Vec<&DirChange> = Vec::new();
        for change in &dir.changes {
            // A change of a name or file that an earlier, lost change touched would be there without its cause.
            if !self.keeps_name() || (in_order && lost.iter().any(|earlier| change.depends_on(earlier))) {
                lost.push(change);
            } else {
                change.apply(&mut entries);
            }
        }
        entries
    }

    /// Returns a file's content after the crash.
    fn content(&mut self, file: &Inode) -> Inode {
        // Nothing to decide, and sharing the content saves a copy for each image.
        if file.dirty.is_empty() && file.live.len() <= file.durable.len() {
            return Inode::durable(Arc::clone(&file.durable));
        }
        let mut content = Vec::clone(&file.durable);
        // The length is metadata: it can be durable before the content is, and the other way round.
        if file.live.len() > content.len() && self.keeps_length() {
            grow(&mut content, file.live.len());
        }
        for (&sector, written) in &file.dirty {
            let at = sector * SECTOR_BYTES;
            let new = sector_of(&file.live, sector);
            // Rewritten with the same bytes, a sector cannot be lost, and must not count as one that can.
            if sector_of(&content, sector) == new {
                continue;
            }
            match self.decide_sector(new.len()) {
                SectorOutcome::Lost => {}
                SectorOutcome::Prefix(end) => put(&mut content, at, new.get(..end).unwrap_or(new)),
                SectorOutcome::Garbled => {
                    let garbage: Vec<u8> = written.clone().map(|_| self.draw().to_le_bytes()[0]).collect();
                    put(&mut content, written.start, &garbage);
                }
            }
        }
        Inode::durable(Arc::new(content))
    }

    fn keeps_name(&mut self) -> bool {
        let number = self.names_decided;
        self.names_decided += 1;
        match self.policy {
            CrashPolicy::OnlySynced | CrashPolicy::NamesLost => false,
            CrashPolicy::AllButName { nth } => number != nth,
            _ => self.toss(),
        }
    }

    fn keeps_length(&mut self) -> bool {
        self.policy != CrashPolicy::OnlySynced && self.toss()
    }

    fn decide_sector(&mut self, len: usize) -> SectorOutcome {
        let number = self.sectors_decided;
        self.sectors_decided += 1;
        let survives = match self.policy {
            CrashPolicy::OnlySynced | CrashPolicy::ContentLost => false,
            CrashPolicy::AllButSector { nth } => number != nth,
            _ => self.toss(),
        };
        let partly = match self.policy {
            CrashPolicy::Torn { .. } => survives && self.toss(),
            CrashPolicy::Garbled { .. } => !survives && self.toss(),
            _ => false,
        };
        match (survives, partly) {
            (true, true) => {
                let at = self.draw() % (len as u64).max(1);
                SectorOutcome::Prefix(usize::try_from(at).unwrap_or(len))
            }
            (true, false) => SectorOutcome::Prefix(len),
            (false, true) => SectorOutcome::Garbled,
            (false, false) => SectorOutcome::Lost,
        }
    }

    /// Tosses a coin under the random policies; returns true under the others.
    fn toss(&mut self) -> bool {
        match self.policy {
            CrashPolicy::Random { .. }
            | CrashPolicy::Unordered { .. }
            | CrashPolicy::Torn { .. }
            | CrashPolicy::Garbled { .. } => self.draw() & 1 == 0,
            _ => true,
        }
    }

    /// Draws the next number with SplitMix64 (Steele, Lea, Flood 2014), which is good enough from any seed.
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
