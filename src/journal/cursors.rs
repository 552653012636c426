//! The named cursors of the change stream: how far each subscriber has come, durably.
//!
//! They lie beside the journal in one small file, which is replaced as a whole: written under another name, synced,
//! renamed, the directory synced. A place is believed, and the journal trimmed for it, only when that is done. Without
//! a file there are no cursors; a damaged one stops the opening, because a forgotten place would be a missed change.
//!
//! A cursor keeps the journal from being trimmed, up to a bound in bytes over all of them; what is trimmed all the
//! same is told to its subscriber as lost, by the change stream.
//!
//! | bytes of the file, little-endian | |
//! | --- | --- |
//! | 1 | version of the format, 1 |
//! | 16 | identity of the journal; the places of another one say nothing about this one |
//! | 4 | how many cursors |
//! | 1, then that many, then 8 | of each cursor: its name's length, its name, its place |
//! | 4 | CRC-32C of the above |

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use bytes::{Buf, BufMut};

use crate::disk::contract::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{JournalId, NamespaceName, Seq};
use crate::journal::log::Log;
use crate::safeguard::Safeguard;
use crate::seam::sync::atomic::{AtomicU64, Ordering};
use crate::seam::sync::{Mutex, MutexGuard};

/// How many named cursors a layer may have.
pub const CURSORS_MAX: usize = 64;

const FILE: &str = "cursors";
const FILE_IN_THE_MAKING: &str = "cursors.tmp";
const FORMAT: u8 = 1;
const FILE_BYTES_MAX: u64 = 64 << 10;

/// A named cursor as its file tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CursorSummary {
    /// Its name.
    pub name: String,
    /// What its subscriber has acknowledged: this number and all before it.
    pub acknowledged: Seq,
}

type Places = BTreeMap<NamespaceName, Seq>;

#[derive(Default)]
struct State {
    /// As they are on the disk.
    places: Places,
    /// Those with a subscriber.
    open: Vec<NamespaceName>,
}

/// A cursor's one subscriber. Dropping it lets the cursor go; its place stays.
pub(crate) struct Subscription {
    pub(crate) cursors: Arc<Cursors>,
    pub(crate) name: NamespaceName,
}

impl Drop for Subscription {
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
    /// Held while the file is written, so for as long as that takes; says whether it may be.
    closed: Mutex<bool>,
    state: Mutex<State>,
    /// Up to where the journal may be trimmed as far as the store is concerned.
    passed: AtomicU64,
}

impl Cursors {
    /// Reads the cursors beside the journal in `dir`, of which the store needs nothing up to `passed`. Blocking.
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
        let places = match read(&*disk, dir)? {
            None => Places::new(),
            Some((of, places)) if of == journal => places,
            // They have lost their places, and are told so.
            Some((_, places)) => places.into_keys().map(|name| (name, Seq::ZERO)).collect(),
        };
        let state = Mutex::new(State { places, open: Vec::new() });
        let (closed, passed) = (Mutex::new(false), AtomicU64::new(passed.0));
        Ok(Cursors { disk, dir: dir.to_owned(), journal, bytes_max, closed, state, passed })
    }

    /// Takes the cursor `name` for one subscriber, and makes it if there is none. Returns its place, too. Blocking.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`] if it has a subscriber; [`ErrorKind::InvalidOption`] if there are too many; the file
    /// system's; [`ErrorKind::Closed`].
    pub(crate) fn subscribe(self: &Arc<Self>, name: &NamespaceName) -> Result<(Subscription, Seq)> {
        let file = self.file()?;
        let place = {
            let mut state = self.state();
            if state.open.contains(name) {
                let context = format!("cursor \"{name}\" has a subscriber already");
                return Err(Error::new(ErrorKind::Locked, context));
            }
            let place = state.places.get(name).copied();
            if place.is_none() && state.places.len() >= CURSORS_MAX {
                let context =
                    format!("there are {CURSORS_MAX} cursors, which is the limit; forget one first");
                return Err(Error::new(ErrorKind::InvalidOption, context));
            }
            state.open.push(name.clone());
            place
        };
        let subscription = Subscription { cursors: Arc::clone(self), name: name.clone() };
        if place.is_none() {
            self.change(&file, |places| places.extend([(name.clone(), Seq::ZERO)]))?;
        }
        Ok((subscription, place.unwrap_or(Seq::ZERO)))
    }

    /// Moves a cursor on, durably on return. Blocking, with two syncs.
    ///
    /// # Errors
    /// The file system's; the cursor is where it was then. [`ErrorKind::Closed`].
    pub(crate) fn acknowledge(&self, name: &NamespaceName, seq: Seq) -> Result<()> {
        let file = self.file()?;
        // One that was forgotten meanwhile must not come back.
        if self.state().places.get(name).is_none_or(|place| *place >= seq) {
            return Ok(());
        }
        self.change(&file, |places| places.extend([(name.clone(), seq)]))
    }

    /// Gives a cursor up, durably on return. Says whether there was one. Blocking, with two syncs.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`] if it has a subscriber; the file system's; [`ErrorKind::Closed`].
    pub(crate) fn forget(&self, name: &NamespaceName) -> Result<bool> {
        let file = self.file()?;
        {
            let state = self.state();
            if state.open.contains(name) {
                let context = format!("cursor \"{name}\" has a subscriber, which has to end first");
                return Err(Error::new(ErrorKind::Locked, context));
            }
            if !state.places.contains_key(name) {
                return Ok(false);
            }
        }
        self.change(&file, |places| places.retain(|other, _| other != name))?;
        Ok(true)
    }

    /// The cursors with their places, and whether each has a subscriber.
    pub(crate) fn list(&self) -> Vec<(CursorSummary, bool)> {
        let state = self.state();
        let summary = |(name, place): (&NamespaceName, &Seq)| {
            let summary = CursorSummary { name: name.as_str().to_owned(), acknowledged: *place };
            (summary, state.open.contains(name))
        };
        state.places.iter().map(summary).collect()
    }

    /// Trims the journal, of which the store needs nothing up to `passed`, as far as the cursors allow.
    ///
    /// # Errors
    /// As for [`Log::trim`].
    pub(crate) fn trim(&self, log: &Log, passed: Seq) -> Result<()> {
        self.passed.fetch_max(passed.0, Ordering::SeqCst);
        self.trim_again(log)
    }

    /// As [`Cursors::trim`], because a cursor has moved; does nothing if the layer has stopped.
    ///
    /// # Errors
    /// As for [`Log::trim`].
    pub(crate) fn trim_for_cursor(&self, log: &Log) -> Result<()> {
        // The directory may be somebody else's by then, and is not before the file has been let go.
        let Ok(_file) = self.file() else { return Ok(()) };
        self.trim_again(log)
    }

    fn trim_again(&self, log: &Log) -> Result<()> {
        let passed = Seq(self.passed.load(Ordering::SeqCst));
        let slowest = self.state().places.values().min().copied();
        log.trim(match slowest {
            Some(slowest) if Safeguard::CursorHoldsJournal.holds() => {
                passed.min(slowest.max(log.beyond_bytes(passed, self.bytes_max)))
            }
            _ => passed,
        })
    }

    /// Writes nothing any more, and waits until nothing is being written.
    pub(crate) fn shutdown(&self) {
        *self.closed.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }

    fn file(&self) -> Result<MutexGuard<'_, bool>> {
        let shut = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        if *shut { Err(Error::layer_closed()) } else { Ok(shut) }
    }

    /// Changes the places on the disk and then here. Whoever changes them holds the file.
    fn change(&self, _file: &MutexGuard<'_, bool>, change: impl FnOnce(&mut Places)) -> Result<()> {
        let mut places = self.state().places.clone();
        change(&mut places);
        self.write(&encode(self.journal, &places))?;
        self.state().places = places;
        Ok(())
    }

    fn write(&self, bytes: &[u8]) -> Result<()> {
        let (path, made) = (self.dir.join(FILE), self.dir.join(FILE_IN_THE_MAKING));
        let cannot = |what: &str, path: &Path| {
            let context = format!("cannot {what} {}", path.display());
            move |error| Error::io(context, error)
        };
        // One that an earlier attempt left behind.
        match self.disk.remove(&made) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(cannot("remove", &made)(error));
            }
            _ => {}
        }
        let file = self.disk.create_new(&made).map_err(cannot("create", &made))?;
        file.write_all_at(bytes, 0).map_err(cannot("write", &made))?;
        if Safeguard::CursorSync.holds() {
            file.sync_data().map_err(cannot("sync", &made))?;
        }
        self.disk.rename(&made, &path).map_err(cannot("rename", &made))?;
        self.disk.sync_dir(&self.dir).map_err(cannot("sync", &self.dir))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The cursors beside the journal in `dir`, as their file tells of them; none if there is no file. Blocking; takes no
/// lock and changes nothing.
///
/// # Errors
/// As for [`Cursors::open`].
pub(crate) fn summaries(disk: &dyn Disk, dir: &Path) -> Result<Vec<CursorSummary>> {
    let places = read(disk, dir)?.map_or_else(Places::new, |(_, places)| places);
    let summary = |(name, acknowledged): (NamespaceName, Seq)| CursorSummary {
        name: name.as_str().to_owned(),
        acknowledged,
    };
    Ok(places.into_iter().map(summary).collect())
}

fn read(disk: &dyn Disk, dir: &Path) -> Result<Option<(JournalId, Places)>> {
    let path = dir.join(FILE);
    let cannot = |error| Error::io(format!("cannot read {}", path.display()), error);
    let file = match disk.open_read_only(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(cannot(error)),
    };
    let length = file.len().map_err(cannot)?;
    let mut bytes = vec![0; usize::try_from(length.min(FILE_BYTES_MAX)).unwrap_or(0)];
    let read = file.read_at(&mut bytes, 0).map_err(cannot)?;
    bytes.truncate(read);
    let damaged = |at: usize, why: &str| {
        let context = format!(
            "{}: damaged at byte {at}: {why}; how far the subscribers of the change stream have come is not known. \
             Without this file they begin anew, and are told that they have lost their places",
            path.display()
        );
        Error::new(ErrorKind::Damaged, context)
    };
    match bytes.first() {
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

fn encode(journal: JournalId, places: &Places) -> Vec<u8> {
    let mut bytes = vec![FORMAT];
    bytes.put_slice(&journal.0);
    bytes.put_u32_le(u32::try_from(places.len()).expect("there are at most CURSORS_MAX"));
    for (name, place) in places {
        let name = name.as_str().as_bytes();
        bytes.put_u8(u8::try_from(name.len()).expect("a name has at most 255 bytes"));
        bytes.put_slice(name);
        bytes.put_u64_le(place.0);
    }
    let checksum = crc32c::crc32c(&bytes);
    bytes.put_u32_le(checksum);
    bytes
}

fn decode(mut rest: &[u8]) -> Option<(JournalId, Places)> {
    rest.try_get_u8().ok()?;
    let mut journal = [0; 16];
    rest.try_copy_to_slice(&mut journal).ok()?;
    let count = usize::try_from(rest.try_get_u32_le().ok()?).ok()?;
    if count > CURSORS_MAX {
        return None;
    }
    let mut places = Places::new();
    for _ in 0..count {
        let length = usize::from(rest.try_get_u8().ok()?);
        let (name, behind) = rest.split_at_checked(length)?;
        rest = behind;
        let name = NamespaceName::parse(std::str::from_utf8(name).ok()?).ok()?;
        places.insert(name, Seq(rest.try_get_u64_le().ok()?));
    }
    (rest.is_empty() && places.len() == count).then_some((JournalId(journal), places))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_has_the_documented_bytes_and_every_flip_is_noticed() {
        let name = NamespaceName::parse("ab").unwrap();
        let places = Places::from([(name, Seq(0x0102))]);
        let bytes = encode(JournalId([9; 16]), &places);
        let mut expected = vec![1];
        expected.extend([9; 16]);
        expected.extend([1, 0, 0, 0, 2, b'a', b'b', 2, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[..bytes.len() - 4], expected);
        assert_eq!(decode(&expected), Some((JournalId([9; 16]), places)));
        for at in 0..expected.len() {
            assert_eq!(decode(&expected[..at]), None, "cut at {at}");
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            let (content, checksum) = flipped.split_last_chunk::<4>().unwrap();
            assert_ne!(crc32c::crc32c(content), u32::from_le_bytes(*checksum), "a flip at {at}");
        }
    }
}
