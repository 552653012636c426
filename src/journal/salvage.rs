//! Salvage: copies the sound frames of a damaged journal to a new journal of the same identity.
//!
//! Guarantees:
//! - The damaged directory is only read. Its lock is held meanwhile, so that no process writes what is being copied.
//! - Sound frames are written with their own sequence numbers, in order, none twice.
//! - Everything that is not written is reported.
//!
//! By default it stops at the first hole, so that a store that is fed from the new journal still holds a prefix of the
//! history. Until [`salvage`] returns, the new directory is not complete.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::disk::contract::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{JournalId, Seq, TenureId};
use crate::journal::errors::cannot;
use crate::journal::frame::Frame;
use crate::journal::log::Log;
use crate::journal::options::JournalOptions;
use crate::journal::pool::SparePool;
use crate::journal::scan::{JournalFiles, LOCK_NAME};
use crate::journal::segment::Seal;
use crate::journal::survey::{Finding, Hole, Survey};
use crate::journal::writer::{GroupFrame, Writer};

/// Options of a salvage.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct SalvageOptions {
    /// The store's watermark, or zero if it is not known. A hole that ends at or before it is no loss, and the salvage
    /// goes on behind it.
    pub watermark: Seq,
    /// Goes on after the first hole that is a loss. The numbers in it then look like those of write-throughs, and a
    /// store that is fed from the new journal does not hold a prefix of the history.
    pub past_holes: bool,
    /// The layout of the new journal's files.
    pub journal: JournalOptions,
}

/// The result of a salvage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Salvaged {
    /// The identity of both journals.
    pub id: JournalId,
    /// The number of frames that were written.
    pub frames: u64,
    /// The number of records in them.
    pub records: u64,
    /// The last number before them.
    pub first_prev: Seq,
    /// The last number of the new journal.
    pub last: Seq,
    /// True if there was no damage.
    pub sound: bool,
}

/// One step of a salvage: a finding, and whether it was written.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct SalvageStep<'a> {
    /// The finding.
    pub finding: &'a Finding,
    /// True if it is a frame that was written to the new journal.
    pub written: bool,
    /// The number of bytes read so far, and of all bytes to read.
    pub progress: (u64, u64),
}

/// Writes the sound frames of the journal in `from` to a new journal in `to`, which must be empty or not exist.
/// Blocking.
///
/// `keep` chooses among the frames that could be written. `report` is called for every finding, in order.
///
/// # Errors
/// [`ErrorKind::Locked`] if the journal is open; [`ErrorKind::InvalidOption`] if `to` holds anything;
/// [`ErrorKind::UnknownFormat`]; [`ErrorKind::Damaged`] if no segment's header is sound, so that not even the
/// identity is known; [`ErrorKind::Io`] and [`ErrorKind::DiskFull`].
pub fn salvage(
    disk: &Arc<dyn Disk>,
    from: &Path,
    to: &Path,
    options: &SalvageOptions,
    keep: &mut dyn FnMut(&Frame) -> bool,
    report: &mut dyn FnMut(&SalvageStep<'_>),
) -> Result<Salvaged> {
    options.journal.validate()?;
    // Without a lock file no process can have the journal open, and taking the lock would create the file.
    let locked = JournalFiles::read(&**disk, from)?.lock;
    let _lock = if locked { Some(lock(&**disk, from)?) } else { None };
    let mut survey = Survey::open(Arc::clone(disk), from)?;
    let id = survey.id().ok_or_else(|| {
        let context =
            format!("{}: no segment has a sound header, so nothing can be salvaged", from.display());
        Error::new(ErrorKind::Damaged, context)
    })?;
    // The numbering goes on, so that the locations in messages still name the segment that an operator sees.
    let number = survey.segments().first().map_or(1, |first| first.number);
    let mut base = survey.segments().first().and_then(|first| first.after);
    let mut writer = None;
    let mut done =
        Salvaged { id, frames: 0, records: 0, first_prev: Seq::ZERO, last: Seq::ZERO, sound: true };
    let mut stopped = false;
    while let Some(finding) = survey.next_finding()? {
        let mut written = false;
        match &finding {
            // After damage a survey may find frames of older numbers again; they were written already.
            Finding::Frame(frame) if !stopped && frame.first > done.last && keep(frame) => {
                let segments = survey.segments();
                let segment = segments.iter().find(|segment| segment.number == frame.location.segment);
                let tenure = segment.and_then(|segment| segment.tenure).unwrap_or_default();
                let writer = match &mut writer {
                    Some(writer) => writer,
                    None => {
                        let base = *base.get_or_insert(Seq::ZERO);
                        writer.insert(create(disk, to, (id, tenure), number, base, options)?)
                    }
                };
                writer.begin_tenure(tenure)?;
                append(writer, frame)?;
                done.frames += 1;
                done.records += u64::from(frame.count);
                done.last = frame.last();
                written = true;
            }
            Finding::Hole(Hole { until, .. }) => {
                let held = until.filter(|until| *until <= options.watermark);
                // Beyond a hole that is a loss, the store would no longer hold a prefix of the history.
                stopped |= held.is_none() && !options.past_holes;
                // The new journal's first header has to name the number before it; a hole with a known end gives
                // it.
                if base.is_none() {
                    base = Some(held.unwrap_or(Seq::ZERO));
                }
            }
            Finding::Damage(_) => done.sound = false,
            Finding::Frame(_) | Finding::Tail(_) => {}
        }
        report(&SalvageStep { finding: &finding, written, progress: survey.progress() });
    }
    done.first_prev = base.unwrap_or(Seq::ZERO);
    done.last = done.last.max(done.first_prev);
    // A journal without a sound frame still gets its identity, so that a store that it fed accepts it.
    let mut writer = match writer {
        Some(writer) => writer,
        None => {
            let tenure = survey.segments().last().and_then(|last| last.tenure).unwrap_or_default();
            create(disk, to, (id, tenure), number, done.first_prev, options)?
        }
    };
    // A clean end writes the synced offset, so that a later damage of the copy is told from a torn tail.
    writer.close()?;
    Ok(done)
}

fn lock(disk: &dyn Disk, dir: &Path) -> Result<Box<dyn Send + Sync>> {
    disk.lock(&dir.join(LOCK_NAME)).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => {
            let context = format!("the journal in {} is open, here or in another process", dir.display());
            Error::with_source(ErrorKind::Locked, context, error)
        }
        _ => cannot("lock", dir, error),
    })
}

/// Creates a journal whose first record comes after `base`.
fn create(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    (id, tenure): (JournalId, TenureId),
    number: u64,
    base: Seq,
    options: &SalvageOptions,
) -> Result<Writer> {
    disk.create_dir_all(dir).map_err(|error| cannot("create", dir, error))?;
    // Among foreign segments the result would be neither of the two journals.
    if !disk.list(dir).map_err(|error| cannot("list", dir, error))?.is_empty() {
        let context =
            format!("{} is not empty; a salvaged journal needs a directory of its own", dir.display());
        return Err(Error::new(ErrorKind::InvalidOption, context));
    }
    let lock = lock(&**disk, dir)?;
    // No spares: the copy is written once and closed.
    let journal = JournalOptions { spares_max: 0, ..options.journal.clone() };
    let pool = SparePool::adopt(Arc::clone(disk), dir.to_owned(), journal.clone(), &[])?;
    let before = Seal { number: number.saturating_sub(1), last: base, end: 0, chain: 0 };
    let (segment, file) = pool.make_segment((id, tenure), number, journal.segment_bytes, before)?;
    let segment = Arc::new(segment);
    let segments = BTreeMap::from([(number, Arc::clone(&segment))]);
    let log = Log::new(Arc::clone(disk), dir.to_owned(), journal, pool, id, segments, lock)?;
    Ok(Writer::created(Arc::new(log), segment, file))
}

fn append(writer: &mut Writer, frame: &Frame) -> Result<()> {
    writer.append(&[GroupFrame { first: frame.first, body: frame.to_body() }], &mut Vec::new())
}
