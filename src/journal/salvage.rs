//! Salvage: what can be proven good of a damaged journal, as a new journal of the same identity.
//!
//! Guarantees: the damaged directory is only read (its lock is held meanwhile, so that nobody goes on writing what is
//! being copied); what is written are sound frames with their own sequence numbers, in order, none twice; everything
//! that is not written is told. By default it stops at the first hole, so that a store that is fed from the new
//! journal is still a prefix of the history. Until [`salvage`] returns, the new directory is not complete.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::disk::contract::{Disk, DiskLock};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{JournalId, Seq};
use crate::journal::frame::Frame;
use crate::journal::log::Log;
use crate::journal::options::JournalOptions;
use crate::journal::pool::Pool;
use crate::journal::scan::{LOCK_NAME, Listing};
use crate::journal::segment::{Seal, cannot};
use crate::journal::survey::{Finding, Hole, Survey};
use crate::journal::writer::{GroupFrame, Writer};

/// How to salvage.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct SalvageOptions {
    /// What the store holds already: a hole that ends at or before this is no loss, and is passed over. Zero if it
    /// is not known.
    pub watermark: Seq,
    /// Whether to go on behind the first hole that is a loss. The numbers in it then look like those of
    /// write-throughs, and a store that is fed from the new journal is no prefix of the history.
    pub past_holes: bool,
    /// How the new journal lays out its files.
    pub journal: JournalOptions,
}

/// What was salvaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Salvaged {
    /// The identity of both journals.
    pub id: JournalId,
    /// How many frames were written.
    pub frames: u64,
    /// How many records they hold.
    pub records: u64,
    /// The last number before them.
    pub first_prev: Seq,
    /// The last number of the new journal.
    pub last: Seq,
    /// Whether there was no damage.
    pub sound: bool,
}

/// A finding, and what the salvage made of it.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Told<'a> {
    /// The finding.
    pub finding: &'a Finding,
    /// Whether it is in the new journal, which only a frame can be.
    pub written: bool,
    /// How many bytes have been read, and how many there are to read.
    pub progress: (u64, u64),
}

/// Writes what is sound of the journal in `from` to a new one in `to`, which must be empty or not exist. Blocking.
///
/// `keep` says of each frame that could be written whether it is wanted. `tell` hears of every finding, in order.
///
/// # Errors
/// [`ErrorKind::Locked`] if somebody has the journal open; [`ErrorKind::InvalidOption`] if `to` holds anything;
/// [`ErrorKind::UnknownFormat`]; [`ErrorKind::Damaged`] if no segment's header is sound, so that not even the
/// identity is known; [`ErrorKind::Io`] and [`ErrorKind::DiskFull`].
pub fn salvage(
    disk: &Arc<dyn Disk>,
    from: &Path,
    to: &Path,
    options: &SalvageOptions,
    keep: &mut dyn FnMut(&Frame) -> bool,
    tell: &mut dyn FnMut(&Told<'_>),
) -> Result<Salvaged> {
    options.journal.validate()?;
    // A journal without a lock file is one that nobody has open.
    let locked = Listing::read(&**disk, from)?.lock;
    let _lock = if locked { Some(lock(&**disk, from)?) } else { None };
    let mut survey = Survey::open(Arc::clone(disk), from)?;
    let id = survey.id().ok_or_else(|| {
        let context =
            format!("{}: no segment has a sound header, so nothing can be salvaged", from.display());
        Error::new(ErrorKind::Damaged, context)
    })?;
    let number = survey.segments().first().map_or(1, |first| first.number);
    let mut base = survey.segments().first().and_then(|first| first.after);
    let mut writer = None;
    let mut done =
        Salvaged { id, frames: 0, records: 0, first_prev: Seq::ZERO, last: Seq::ZERO, sound: true };
    let mut stopped = false;
    while let Some(finding) = survey.next_finding()? {
        let mut written = false;
        match &finding {
            Finding::Frame(frame) if !stopped && frame.first > done.last && keep(frame) => {
                let writer = match &mut writer {
                    Some(writer) => writer,
                    None => {
                        writer.insert(create(disk, to, id, number, *base.get_or_insert(Seq::ZERO), options)?)
                    }
                };
                append(writer, frame)?;
                done.frames += 1;
                done.records += u64::from(frame.count);
                done.last = frame.last();
                written = true;
            }
            Finding::Hole(Hole { until, .. }) => {
                let held = until.filter(|until| *until <= options.watermark);
                stopped |= held.is_none() && !options.past_holes;
                if base.is_none() {
                    base = Some(held.unwrap_or(Seq::ZERO));
                }
            }
            Finding::Damage(_) => done.sound = false,
            Finding::Frame(_) | Finding::Tail(_) => {}
        }
        tell(&Told { finding: &finding, written, progress: survey.progress() });
    }
    done.first_prev = base.unwrap_or(Seq::ZERO);
    done.last = done.last.max(done.first_prev);
    let mut writer = match writer {
        Some(writer) => writer,
        None => create(disk, to, id, number, done.first_prev, options)?,
    };
    writer.close()?;
    Ok(done)
}

fn lock(disk: &dyn Disk, dir: &Path) -> Result<Box<dyn DiskLock>> {
    disk.lock(&dir.join(LOCK_NAME)).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => {
            let context = format!("the journal in {} is open, here or in another process", dir.display());
            Error::with_source(ErrorKind::Locked, context, error)
        }
        _ => cannot("lock", dir, error),
    })
}

/// A new journal whose first record comes after `base`.
fn create(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    id: JournalId,
    number: u64,
    base: Seq,
    options: &SalvageOptions,
) -> Result<Writer> {
    disk.create_dir_all(dir).map_err(|error| cannot("create", dir, error))?;
    if !disk.list(dir).map_err(|error| cannot("list", dir, error))?.is_empty() {
        let context =
            format!("{} is not empty; a salvaged journal needs a directory of its own", dir.display());
        return Err(Error::new(ErrorKind::InvalidOption, context));
    }
    let lock = lock(&**disk, dir)?;
    let journal = JournalOptions { spares_max: 0, ..options.journal.clone() };
    let pool = Pool::adopt(Arc::clone(disk), dir.to_owned(), journal.clone(), &[])?;
    let before = Seal { number: number.saturating_sub(1), last: base, end: 0, chain: 0 };
    let (segment, file) = pool.make_segment(id, number, journal.segment_bytes, before)?;
    let segment = Arc::new(segment);
    let segments = BTreeMap::from([(number, Arc::clone(&segment))]);
    let log = Log::new(Arc::clone(disk), dir.to_owned(), journal, pool, id, segments, lock)?;
    Ok(Writer::created(Arc::new(log), segment, file))
}

fn append(writer: &mut Writer, frame: &Frame) -> Result<()> {
    writer.append(&[GroupFrame { first: frame.first, body: frame.to_body() }], &mut Vec::new())
}
