//! The named cursors: the durable position of each consumer of the journal.
//!
//! All cursors are stored in one small file in the journal's directory, named `cursors`. It is replaced as a whole:
//! written as `cursors.tmp`, synced, renamed, and the directory synced. Only then does a new position count, and only
//! then may the journal be trimmed for it. Without a file there are no cursors. A damaged file is an error of the
//! opening, because a lost position would be a missed change.
//!
//! A cursor holds back the trimming of the journal, up to a bound in bytes for all of them. Records that are trimmed
//! beyond that bound are reported to the consumer as lost, by whoever reads the journal for it.
//!
//! # The file
//! All integers are unsigned, fixed-width, little-endian.
//!
//! | bytes | field |
//! | --- | --- |
//! | 1 | format version, 1 |
//! | 16 | identity of the journal; positions of another journal mean nothing in this one |
//! | 4 | number of cursors |
//! | 1, then that many, then 8 | for each cursor: its name's length, its name, its position |
//! | 4 | CRC-32C of all bytes before |

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use bytes::{Buf, BufMut};

use crate::disk::contract::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{JournalId, NamespaceName, Seq};
use crate::journal::errors::cannot;
use crate::journal::log::Log;
use crate::safeguard::Safeguard;
use crate::seam::sync::atomic::{AtomicU64, Ordering};
use crate::seam::sync::{Mutex, MutexGuard};

/// The most cursors that a layer may have.
pub const CURSORS_MAX: usize = 64;

const CURSORS_FILE: &str = "cursors";
const UNFINISHED_FILE: &str = "cursors.tmp";
const FORMAT: u8 = 1;
const FILE_BYTES_MAX: u64 = 64 << 10;

/// A named cursor, as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CursorSummary {
    /// Its name.
    pub name: String,
    /// The last number that its consumer has acknowledged, with all numbers before it.
    pub acknowledged: Seq,
}

/// The acknowledged number of each cursor.
type Positions = BTreeMap<NamespaceName, Seq>;

#[derive(Default)]
struct CursorsState {
    /// The positions that are durable.
    positions: Positions,
    /// The names of the cursors that have a subscriber.
    open: Vec<NamespaceName>,
}

/// The one subscription of a cursor. Dropping it frees the cursor, whose position stays.
pub(crate) struct CursorSubscription {
    pub(crate) cursors: Arc<Cursors>,
    pub(crate) name: NamespaceName,
}

impl Drop for CursorSubscription {
    fn drop(&mut self) {
        self.cursors.state().open.retain(|open| *open != self.name);
    }
}

/// The cursors of an open layer.
pub(crate) struct Cursors {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    journal: JournalId,
    bytes_max: u64,
    /// Held while the file is written. True once it may not be written any more.
    closed: Mutex<bool>,
    state: Mutex<CursorsState>,
    /// The last number that the store does not need from the journal any more.
    passed: AtomicU64,
}

impl Cursors {
    /// Reads the cursors of the journal in `dir`, of which the store needs no record up to `passed`. Blocking.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`], [`ErrorKind::UnknownFormat`], or the file system's; each names the file.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        journal: JournalId,
        passed: Seq,
        bytes_max: u64,
    ) -> Result<Cursors> {
        let positions = match read(&*disk, dir)? {
            None => Positions::new(),
            Some((of, positions)) if of == journal => positions,
            // The journal was replaced. From zero, each subscriber is told that it has lost its position.
            Some((_, positions)) => positions.into_keys().map(|name| (name, Seq::ZERO)).collect(),
        };
        let state = Mutex::new(CursorsState { positions, open: Vec::new() });
        let (closed, passed) = (Mutex::new(false), AtomicU64::new(passed.0));
        Ok(Cursors { disk, dir: dir.to_owned(), journal, bytes_max, closed, state, passed })
    }

    /// Subscribes to the cursor `name`, which is created if there is none. Returns its position too. Blocking.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`] if it has a subscriber; [`ErrorKind::InvalidOption`] if there are too many; the file
    /// system's; [`ErrorKind::Closed`].
    pub(crate) fn subscribe(self: &Arc<Self>, name: &NamespaceName) -> Result<(CursorSubscription, Seq)> {
        // Held to the end, so that two changes of the file cannot overtake each other.
        let file = self.file()?;
        let position = {
            let mut state = self.state();
            if state.open.contains(name) {
                let context = format!("cursor \"{name}\" has a subscriber already");
                return Err(Error::new(ErrorKind::Locked, context));
            }
            let position = state.positions.get(name).copied();
            if position.is_none() && state.positions.len() >= CURSORS_MAX {
                let context =
                    format!("there are {CURSORS_MAX} cursors, which is the limit; forget one first");
                return Err(Error::new(ErrorKind::InvalidOption, context));
            }
            // Before the write, which runs without this lock. If it fails, dropping the subscription frees the name.
            state.open.push(name.clone());
            position
        };
        let subscription = CursorSubscription { cursors: Arc::clone(self), name: name.clone() };
        if position.is_none() {
            self.change(&file, |positions| positions.extend([(name.clone(), Seq::ZERO)]))?;
        }
        Ok((subscription, position.unwrap_or(Seq::ZERO)))
    }

    /// Moves a cursor to `seq`, durably. Does nothing if it is there or further. Blocking, with two syncs.
    ///
    /// # Errors
    /// The file system's, and the cursor has not moved then; [`ErrorKind::Closed`].
    pub(crate) fn acknowledge(&self, name: &NamespaceName, seq: Seq) -> Result<()> {
        let file = self.file()?;
        // A cursor that was removed meanwhile must not come back.
        if self.state().positions.get(name).is_none_or(|position| *position >= seq) {
            return Ok(());
        }
        self.change(&file, |positions| positions.extend([(name.clone(), seq)]))
    }

    /// Removes a cursor durably. Returns false if there was none. Blocking, with two syncs.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`] if it has a subscriber; the file system's; [`ErrorKind::Closed`].
    pub(crate) fn remove(&self, name: &NamespaceName) -> Result<bool> {
        let file = self.file()?;
        {
            let state = self.state();
            // Its subscriber would go on acknowledging a position that no longer holds the journal.
            if state.open.contains(name) {
                let context = format!("cursor \"{name}\" has a subscriber, which has to end first");
                return Err(Error::new(ErrorKind::Locked, context));
            }
            if !state.positions.contains_key(name) {
                return Ok(false);
            }
        }
        self.change(&file, |positions| positions.retain(|other, _| other != name))?;
        Ok(true)
    }

    /// Lists the cursors; true for those that have a subscriber.
    pub(crate) fn list(&self) -> Vec<(CursorSummary, bool)> {
        let state = self.state();
        let summary = |(name, position): (&NamespaceName, &Seq)| {
            let summary = CursorSummary { name: name.as_str().to_owned(), acknowledged: *position };
            (summary, state.open.contains(name))
        };
        state.positions.iter().map(summary).collect()
    }

    /// Trims the journal as far as the cursors allow. The store needs no record up to `passed`.
    ///
    /// # Errors
    /// As for [`Log::trim`].
    pub(crate) fn trim(&self, log: &Log, passed: Seq) -> Result<()> {
        // `fetch_max`, because the flusher and a retry can arrive in either order, and trimming must never go
        // back.
        self.passed.fetch_max(passed.0, Ordering::SeqCst);
        self.trim_again(log)
    }

    /// Trims the journal again after a cursor has moved. Does nothing if the layer has stopped.
    ///
    /// # Errors
    /// As for [`Log::trim`].
    pub(crate) fn trim_for_cursor(&self, log: &Log) -> Result<()> {
        // Holding the file keeps the layer from stopping. After that another process may own the directory.
        let Ok(_file) = self.file() else { return Ok(()) };
        self.trim_again(log)
    }

    fn trim_again(&self, log: &Log) -> Result<()> {
        let passed = Seq(self.passed.load(Ordering::SeqCst));
        let slowest = self.state().positions.values().min().copied();
        log.trim(match slowest {
            Some(slowest) if Safeguard::CursorHoldsJournal.holds() => {
                // A cursor further back than the bound is passed over, so that one dead consumer cannot fill the disk.
                passed.min(slowest.max(log.beyond_bytes(passed, self.bytes_max)))
            }
            _ => passed,
        })
    }

    /// Refuses all later writes, and waits for one that is under way.
    pub(crate) fn shutdown(&self) {
        *self.closed.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }

    /// Takes the right to write the file.
    fn file(&self) -> Result<MutexGuard<'_, bool>> {
        let shut = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        if *shut { Err(Error::layer_closed()) } else { Ok(shut) }
    }

    /// Changes the positions on the disk and then in memory. The caller holds the right to write the file.
    fn change(&self, _file: &MutexGuard<'_, bool>, change: impl FnOnce(&mut Positions)) -> Result<()> {
        let mut positions = self.state().positions.clone();
        change(&mut positions);
        // The disk first: a position that only memory has moved would let `trim` remove records that a restart
        // asks for.
        self.write(&encode(self.journal, &positions))?;
        self.state().positions = positions;
        Ok(())
    }

    fn write(&self, bytes: &[u8]) -> Result<()> {
        let (path, made) = (self.dir.join(CURSORS_FILE), self.dir.join(UNFINISHED_FILE));
        // An earlier attempt may have failed between creating and renaming.
        match self.disk.remove(&made) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(cannot("remove", &made, error));
            }
            _ => {}
        }
        let file = self.disk.create_new(&made).map_err(|error| cannot("create", &made, error))?;
        file.write_all_at(bytes, 0).map_err(|error| cannot("write", &made, error))?;
        // Without this sync, a power cut could leave the new name with no content, which is damage.
        if Safeguard::CursorSync.holds() {
            file.sync_data().map_err(|error| cannot("sync", &made, error))?;
        }
        // By a rename, so that a crash leaves the old list or the new one and never a mixture.
        self.disk.rename(&made, &path).map_err(|error| cannot("rename", &made, error))?;
        self.disk.sync_dir(&self.dir).map_err(|error| cannot("sync", &self.dir, error))
    }

    fn state(&self) -> MutexGuard<'_, CursorsState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the cursors of the journal in `dir`; none if there is no file. Blocking. Takes no lock and changes nothing.
///
/// # Errors
/// As for [`Cursors::open`].
pub(crate) fn summaries(disk: &dyn Disk, dir: &Path) -> Result<Vec<CursorSummary>> {
    let positions = read(disk, dir)?.map_or_else(Positions::new, |(_, positions)| positions);
    let summary = |(name, acknowledged): (NamespaceName, Seq)| CursorSummary {
        name: name.as_str().to_owned(),
        acknowledged,
    };
    Ok(positions.into_iter().map(summary).collect())
}

fn read(disk: &dyn Disk, dir: &Path) -> Result<Option<(JournalId, Positions)>> {
    let path = dir.join(CURSORS_FILE);
    let unread = |error| cannot("read", &path, error);
    let file = match disk.open_read_only(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unread(error)),
    };
    let length = file.len().map_err(unread)?;
    // A larger file is no list of cursors. Cut to the bound, it fails its checksum.
    let mut bytes = vec![0; usize::try_from(length.min(FILE_BYTES_MAX)).unwrap_or(0)];
    let read = file.read_at(&mut bytes, 0).map_err(unread)?;
    bytes.truncate(read);
    let damaged = |at: usize, why: &str| {
        let context = format!(
            "{}: damaged at byte {at}: {why}; the positions of the change stream's subscribers are not known. \
             Without this file they begin anew, and are told that they have lost their positions",
            path.display()
        );
        Error::new(ErrorKind::Damaged, context)
    };
    match bytes.first() {
        // The version before the checksum, which a later version may place or compute differently.
        Some(&FORMAT) => {}
        Some(format) => {
            let context = format!(
                "{}: format version {format}; this version of the crate knows {FORMAT}",
                path.display()
            );
            return Err(Error::new(ErrorKind::UnknownFormat, context));
        }
        None => return Err(damaged(0, "it is empty")),
    }
    let Some((content, checksum)) = bytes.split_last_chunk::<4>() else {
        return Err(damaged(bytes.len(), "it is cut short"));
    };
    if crc32c::crc32c(content) != u32::from_le_bytes(*checksum) {
        return Err(damaged(content.len(), "its checksum fails"));
    }
    decode(content).map(Some).ok_or_else(|| damaged(0, "its checksum holds, and it is no list of cursors"))
}

fn encode(journal: JournalId, positions: &Positions) -> Vec<u8> {
    let mut bytes = vec![FORMAT];
    bytes.put_slice(&journal.0);
    bytes.put_u32_le(u32::try_from(positions.len()).expect("there are at most CURSORS_MAX"));
    for (name, position) in positions {
        let name = name.as_str().as_bytes();
        bytes.put_u8(u8::try_from(name.len()).expect("a name has at most 255 bytes"));
        bytes.put_slice(name);
        bytes.put_u64_le(position.0);
    }
    let checksum = crc32c::crc32c(&bytes);
    bytes.put_u32_le(checksum);
    bytes
}

fn decode(mut rest: &[u8]) -> Option<(JournalId, Positions)> {
    rest.try_get_u8().ok()?;
    let mut journal = [0; 16];
    rest.try_copy_to_slice(&mut journal).ok()?;
    let count = usize::try_from(rest.try_get_u32_le().ok()?).ok()?;
    // A count that the writer cannot have written. It also bounds the loop for a file that is no list.
    if count > CURSORS_MAX {
        return None;
    }
    let mut positions = Positions::new();
    for _ in 0..count {
        let length = usize::from(rest.try_get_u8().ok()?);
        let (name, after) = rest.split_at_checked(length)?;
        rest = after;
        let name = NamespaceName::parse(std::str::from_utf8(name).ok()?).ok()?;
        positions.insert(name, Seq(rest.try_get_u64_le().ok()?));
    }
    // Bytes that are left over, or a name that came twice, are damage that the checksum did not see.
    (rest.is_empty() && positions.len() == count).then_some((JournalId(journal), positions))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_has_the_documented_bytes_and_every_flip_is_noticed() {
        let name = NamespaceName::parse("ab").unwrap();
        let positions = Positions::from([(name, Seq(0x0102))]);
        let bytes = encode(JournalId([9; 16]), &positions);
        let mut expected = vec![1];
        expected.extend([9; 16]);
        expected.extend([1, 0, 0, 0, 2, b'a', b'b', 2, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[..bytes.len() - 4], expected);
        assert_eq!(decode(&expected), Some((JournalId([9; 16]), positions)));
        for at in 0..expected.len() {
            assert_eq!(decode(&expected[..at]), None, "cut at {at}");
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            let (content, checksum) = flipped.split_last_chunk::<4>().unwrap();
            assert_ne!(crc32c::crc32c(content), u32::from_le_bytes(*checksum), "a flip at {at}");
        }
    }
}
