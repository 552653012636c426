//! Reads and salvages a layer's files without opening the layer: journal records, dead letters, cursors.
//!
//! For operators' tools. No function here returns a value, only the value's length. The reading functions take no lock
//! and change nothing, as [`Survey`] does.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::contract::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{Key, Seq};
use crate::journal::cursors::{self, CursorSummary};
use crate::journal::frame::Frame;
use crate::journal::salvage::{self, SalvageOptions, SalvageStep, Salvaged};
use crate::journal::survey::{Damage, Finding, Survey};
use crate::queue::dead_letters::{DeadLetter, FOLDER, LetterLog, resolution_at};
use crate::queue::record::{Operation, Record};

/// The operation of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RecordKind {
    /// Writes a value.
    Put,
    /// Removes the key.
    Remove,
    /// Sends the key's dead letters to the store again.
    Replay,
    /// Gives up the key's dead letters.
    Discard,
    /// Notes for the change stream that the key was written through under this number.
    Notice,
}

/// A record without its value.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecordSummary {
    /// Its sequence number.
    pub seq: Seq,
    /// Its operation.
    pub kind: RecordKind,
    /// Its key. Printing it shows a bounded, escaped prefix.
    pub key: Key,
    /// The length of its encoded value, in bytes.
    pub value_bytes: u64,
}

/// A dead letter as read from the list's files.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LetterSummary {
    /// The letter.
    pub letter: DeadLetter,
    /// The number of the order that replays or discards it, if there is one. The letter has left the list once the
    /// store's watermark has reached this number.
    pub resolved_at: Option<Seq>,
}

/// One of the two journals of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Part {
    /// The journal.
    Journal,
    /// The dead-letter list beside it, which is kept in a journal of its own.
    DeadLetters,
}

/// Returns the records of a frame of a layer's journal, in order.
///
/// # Errors
/// [`ErrorKind::Damaged`] if a record is not one that a layer writes.
pub fn records_of(frame: &Frame) -> Result<Vec<RecordSummary>> {
    let numbered = frame.records().zip(0_u64..);
    let summarized = numbered.map(|(bytes, at)| {
        let record = Record::parse(&bytes)?;
        let kind = match record.operation {
            Operation::Put => RecordKind::Put,
            Operation::Remove => RecordKind::Remove,
            Operation::Replay => RecordKind::Replay,
            Operation::Discard => RecordKind::Discard,
            Operation::Notice => RecordKind::Notice,
        };
        let value_bytes = record.value.len() as u64;
        Ok(RecordSummary { seq: frame.first.plus(at), kind, key: record.key, value_bytes })
    });
    summarized.collect()
}

/// Returns the folder of the dead-letter list beside the journal in `journal_dir`.
#[must_use]
pub fn dead_letters_dir(journal_dir: &Path) -> PathBuf {
    journal_dir.join(FOLDER)
}

/// Reads the dead-letter list beside the journal in `journal_dir`, and returns its letters, oldest first.
///
/// Calls `tell` with every finding on the way, damage and holes included. Returns no letters if there is no list.
/// Blocking.
///
/// # Errors
/// As for [`Survey::open`] and [`Survey::next_finding`].
pub fn dead_letters(
    disk: &Arc<dyn Disk>,
    journal_dir: &Path,
    tell: &mut dyn FnMut(&Finding),
) -> Result<Vec<LetterSummary>> {
    let dir = dead_letters_dir(journal_dir);
    if !is_there(&**disk, &dir)? {
        return Ok(Vec::new());
    }
    let mut survey = Survey::open(Arc::clone(disk), &dir)?;
    let mut letter_log = LetterLog::default();
    while let Some(finding) = survey.next_finding()? {
        tell(&finding);
        // A frame can be sound for the journal and no letter: reported as damage, so that the other letters are read.
        if let Finding::Frame(frame) = &finding
            && let Err(error) = letter_log.add_frame(frame)
        {
            let mut segments = survey.segments().iter();
            let held = segments.find(|segment| segment.number == frame.location.segment);
            let path = held.map_or_else(|| dir.clone(), |segment| segment.path.clone());
            let context = format!("{}: damaged at byte {}", path.display(), frame.location.offset);
            let error = error.wrap(ErrorKind::Damaged, context);
            tell(&Finding::Damage(Damage { path, offset: frame.location.offset, error }));
        }
    }
    let letters = letter_log.letters().into_iter();
    Ok(letters.map(|(letter, resolved_at)| LetterSummary { letter, resolved_at }).collect())
}

/// Reads the named cursors of the change stream beside the journal in `journal_dir`. Blocking.
///
/// Returns none if there is no file of cursors.
///
/// # Errors
/// [`ErrorKind::Damaged`], [`ErrorKind::UnknownFormat`], or the file system's; each names the file.
pub fn cursors(disk: &Arc<dyn Disk>, journal_dir: &Path) -> Result<Vec<CursorSummary>> {
    cursors::summaries(&**disk, journal_dir)
}

/// Salvages a layer's journal and the dead-letter list beside it, each as [`salvage::salvage`] does.
///
/// Returns the outcome for the journal and for the list, if there is a list. A letter's resolution is left out of the
/// copy if the journal has lost the order to replay or discard it. Such a letter is in the list again, so look at it
/// before you replay it.
///
/// # Errors
/// As for [`salvage::salvage`].
pub fn salvage_layer(
    disk: &Arc<dyn Disk>,
    from: &Path,
    to: &Path,
    options: &SalvageOptions,
    tell: &mut dyn FnMut(Part, &SalvageStep<'_>),
) -> Result<(Salvaged, Option<Salvaged>)> {
    let mut holes = Vec::new();
    let journal = salvage::salvage(disk, from, to, options, &mut |_| true, &mut |told| {
        if let Finding::Hole(hole) = told.finding {
            holes.push((hole.after, hole.until.unwrap_or(Seq(u64::MAX))));
        }
        tell(Part::Journal, told);
    })?;
    let dir = dead_letters_dir(from);
    if !is_there(&**disk, &dir)? {
        return Ok((journal, None));
    }
    // A resolution counts once the watermark reaches its number. If the order under that number is lost, a later write
    // could get the number, and the letter would leave the list without having been applied.
    let is_kept = |at: Seq| {
        let lost = at > journal.last || holes.iter().any(|(after, until)| *after < at && at <= *until);
        at <= options.watermark || !lost
    };
    let list_options = SalvageOptions { watermark: Seq::ZERO, ..options.clone() };
    let list = salvage::salvage(
        disk,
        &dir,
        &dead_letters_dir(to),
        &list_options,
        // An unreadable frame is kept, so that opening the copy reports the damage instead of hiding it.
        &mut |frame| resolution_at(frame).ok().flatten().is_none_or(is_kept),
        &mut |told| tell(Part::DeadLetters, told),
    )?;
    Ok((journal, Some(list)))
}

fn is_there(disk: &dyn Disk, dir: &Path) -> Result<bool> {
    match disk.list(dir) {
        Ok(names) => Ok(names.iter().any(|name| name.ends_with(".seg"))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io(format!("cannot list {}", dir.display()), error)),
    }
}
