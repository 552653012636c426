//! Recovery: from a directory to an open log.
//!
//! Guarantees that what is served was durable before it was read, that nothing on the disk changes before everything
//! has been found sound, that damage is told with file, offset and what is at stake, and that recovering again
//! comes to the same end. It streams through the segments once, several of them at a time, and keeps no record in
//! memory.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::disk::contract::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{JournalId, Seq};
use crate::journal::log::Log;
use crate::journal::options::JournalOptions;
use crate::journal::pool::Pool;
use crate::journal::scan::{LOCK_NAME, Listing};
use crate::journal::segment::{Seal, Segment, SegmentHeader, cannot, damage, segment_name};
use crate::journal::shares::{self, Hearer, Share};
use crate::journal::writer::Writer;
use crate::safeguard::Safeguard;
use crate::seam::random;

/// A journal that was opened.
#[derive(Debug)]
pub struct Opened {
    /// What readers and whoever trims share.
    pub log: Arc<Log>,
    /// The one appender.
    pub writer: Writer,
    /// The journal's identity.
    pub id: JournalId,
    /// Whether there was no journal before.
    pub created: bool,
    /// The last journaled sequence number before the oldest retained frame; zero if nothing was ever trimmed.
    pub first_prev: Seq,
    /// The last journaled sequence number; zero if there never was one.
    pub last: Seq,
    /// How many bytes of an interrupted write were cut off the end: a number for people, it may include what the
    /// file held in an earlier use.
    pub torn_bytes: u64,
}

impl Log {
    /// Opens the journal in `dir`, or creates one if the directory holds no segment. Blocking; reads the whole
    /// backlog once to verify it, a large one with up to eight threads, as many as there are processors.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`]; [`ErrorKind::Locked`] if somebody has it open; [`ErrorKind::UnknownFormat`]
    /// and [`ErrorKind::Damaged`], and then nothing was changed on the disk; [`ErrorKind::DiskFull`] or
    /// [`ErrorKind::Io`] from the file system, or where no thread can be started; [`ErrorKind::Poisoned`] if the check
    /// panicked, and then nothing was changed either.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path, options: &JournalOptions) -> Result<Opened> {
        Ok(Log::open_heard(disk, dir, options, |_| ())?.0)
    }

    /// As [`Log::open`], and somebody hears of each frame with records while it is checked. A large journal is checked
    /// in shares beside each other: `hearer` makes somebody for each, and is told how many bytes of segments come
    /// before it. They are returned in the journal's order. Nothing of what they have heard may be served before this
    /// has returned `Ok`: what comes behind, or before, may be damaged.
    pub(crate) fn open_heard<H: Hearer>(
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: &JournalOptions,
        hearer: impl Fn(u64) -> H,
    ) -> Result<(Opened, Vec<H>)> {
        options.validate()?;
        disk.create_dir_all(dir).map_err(|error| cannot("create", dir, error))?;
        let lock = disk.lock(&dir.join(LOCK_NAME)).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => {
                let context =
                    format!("the journal in {} is open already, here or in another process", dir.display());
                Error::with_source(ErrorKind::Locked, context, error)
            }
            _ => cannot("lock", dir, error),
        })?;
        // What is listed from here on stays, whatever happens next.
        disk.sync_dir(dir).map_err(|error| cannot("sync", dir, error))?;
        let listing = Listing::read(&*disk, dir)?;
        let headers = read_headers(&*disk, dir, &listing.segments)?;
        let shares = shares::check(&*disk, dir, &headers, hearer)?;
        let (recovered, hearers) = join(&headers, shares)?;

        // Everything is sound: from here on the disk may change.
        for name in &listing.unfinished {
            let path = dir.join(name);
            disk.remove(&path).map_err(|error| cannot("remove", &path, error))?;
        }
        let pool = Pool::adopt(Arc::clone(&disk), dir.to_owned(), options.clone(), &listing.spares)?;
        let Some(recovered) = recovered else {
            let id = draw_id()?;
            let made = pool.make_segment(id, 1, options.segment_bytes, Seal::default())?;
            let segment = Arc::new(made.0);
            let segments = BTreeMap::from([(1, Arc::clone(&segment))]);
            let log = Arc::new(Log::new(disk, dir.to_owned(), options.clone(), pool, id, segments, lock)?);
            let writer = Writer::created(Arc::clone(&log), segment, made.1);
            let (first_prev, last) = (Seq::ZERO, Seq::ZERO);
            let opened = Opened { log, writer, id, created: true, first_prev, last, torn_bytes: 0 };
            return Ok((opened, hearers));
        };
        let Recovered { id, segments, before_tail, tail, first_prev, torn_bytes } = recovered;
        let log = Arc::new(Log::new(disk, dir.to_owned(), options.clone(), pool, id, segments, lock)?);
        let writer = Writer::recovered(Arc::clone(&log), tail, before_tail);
        let opened = Opened { log, writer, id, created: false, first_prev, last: tail.last, torn_bytes };
        Ok((opened, hearers))
    }
}

/// Reads and checks every header before any frame: an unknown format must be met before anything else is done.
fn read_headers(disk: &dyn Disk, dir: &Path, numbers: &[u64]) -> Result<Vec<SegmentHeader>> {
    let mut headers: Vec<SegmentHeader> = Vec::with_capacity(numbers.len());
    for &number in numbers {
        let path = dir.join(segment_name(number));
        let file = disk.open(&path).map_err(|error| cannot("open", &path, error))?;
        let header = SegmentHeader::read(&*file, &path, number)?;
        if let Some(before) = headers.last() {
            check_neighbours(dir, before, &header)?;
        }
        headers.push(header);
    }
    Ok(headers)
}

pub(crate) fn check_neighbours(dir: &Path, before: &SegmentHeader, header: &SegmentHeader) -> Result<()> {
    let path = dir.join(segment_name(header.number));
    let stake = format!("records after {} cannot be trusted", before.predecessor.last);
    if header.journal != before.journal {
        let why = format!("it belongs to journal {}, its neighbour to {}", header.journal, before.journal);
        return Err(damage(&path, 0, &why, &stake));
    }
    let expected = before.number.saturating_add(1);
    if header.number != expected {
        let missing = dir.join(segment_name(expected));
        let stake = format!("the records up to {} that it held are lost", header.predecessor.last);
        return Err(damage(&missing, 0, "the file is missing between two others", &stake));
    }
    if header.predecessor.number != before.number {
        let why = format!("it names segment {} as its predecessor", header.predecessor.number);
        return Err(damage(&path, 0, &why, &stake));
    }
    Ok(())
}

struct Recovered {
    id: JournalId,
    segments: BTreeMap<u64, Arc<Segment>>,
    before_tail: Seal,
    tail: Seal,
    first_prev: Seq,
    torn_bytes: u64,
}

/// What sound shares are together; here the end of the last segment is written again.
fn join<H>(headers: &[SegmentHeader], shares: Vec<Share<H>>) -> Result<(Option<Recovered>, Vec<H>)> {
    let (mut sealed, mut last, mut hearers) = (Vec::new(), None, Vec::new());
    for share in shares {
        sealed.extend(share.sealed);
        last = share.last;
        hearers.push(share.hearer);
    }
    let (Some(first), Some(header), Some((mut scan, torn_bytes))) = (headers.first(), headers.last(), last)
    else {
        return Ok((None, hearers));
    };
    if Safeguard::TailWrittenAgain.holds() {
        scan.write_tail_again()?;
    }
    let tail = scan.found;
    sealed.push(Segment::new(*header, scan.path, tail.end, tail.last));
    let segments = sealed.into_iter().map(|segment| (segment.header.number, Arc::new(segment))).collect();
    let (id, before_tail, first_prev) = (header.journal, header.predecessor, first.predecessor.last);
    Ok((Some(Recovered { id, segments, before_tail, tail, first_prev, torn_bytes }), hearers))
}

fn draw_id() -> Result<JournalId> {
    let mut id = [0; 16];
    random::fill(&mut id)
        .map_err(|error| Error::new(ErrorKind::Io, format!("cannot draw the journal's identity: {error}")))?;
    Ok(JournalId(id))
}
