//! Recovery: opens a directory as a log.
//!
//! Guarantees:
//! - All that is served is durable.
//! - Nothing on the disk changes before all segments have been found sound.
//! - Damage is reported with file, offset and the records at stake. Of several damaged places it is the first in the
//!   journal's order.
//! - Recovering again, after a crash at any point, comes to the same end.
//!
//! It reads the segments once and keeps no record in memory. A segment's header and its successor's say where it begins
//! and ends, so it can be checked without those before it: a large journal is checked by several threads.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::disk::contract::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{JournalId, Seq, TenureId};
use crate::journal::errors::{cannot, damage, guarded};
use crate::journal::log::Log;
use crate::journal::options::JournalOptions;
use crate::journal::pool::SparePool;
use crate::journal::scan::{FrameVisitor, JournalFiles, LOCK_NAME, Scan};
use crate::journal::segment::{Seal, Segment, SegmentHeader, segment_name};
use crate::journal::writer::Writer;
use crate::safeguard::Safeguard;
use crate::seam::parallel::{parallel_map, processors};
use crate::seam::random;

/// The most threads that check a journal, so that an opening does not take a large machine for itself.
const THREADS_MAX: usize = 8;
/// The number of parts for each thread. With several, a thread that gets less of its processor has less to do.
const PARTS_PER_THREAD: usize = 4;

/// The conditions under which a journal is checked by several threads.
#[derive(Clone, Debug)]
pub(crate) struct CheckOptions {
    /// The number of bytes for which a thread is worth its start. Checking 4 MiB takes one or two milliseconds, and
    /// starting a thread some 40 us.
    pub(crate) thread_bytes_min: u64,
    /// Asked for the number of processors if the journal is large enough for several threads.
    pub(crate) processors: fn() -> usize,
}

impl Default for CheckOptions {
    fn default() -> CheckOptions {
        CheckOptions { thread_bytes_min: 4 << 20, processors }
    }
}

#[cfg(test)]
impl CheckOptions {
    /// Three threads for the smallest journal, so that tests try all the time what is rare elsewhere.
    pub(crate) fn eager() -> CheckOptions {
        CheckOptions { thread_bytes_min: 1, processors: || 3 }
    }
}

/// A journal that was opened.
#[derive(Debug)]
pub struct Opened {
    /// The log, for reading and trimming.
    pub log: Arc<Log>,
    /// The one appender.
    pub writer: Writer,
    /// The journal's identity.
    pub id: JournalId,
    /// The tenures whose segments it still has, oldest first.
    pub tenures: Vec<JournalTenure>,
    /// The store's watermark when the last frame was written; `None` without a frame.
    pub witness: Option<Seq>,
    /// True if there was no journal before.
    pub created: bool,
    /// The last journaled sequence number before the oldest retained frame; zero if nothing was ever trimmed.
    pub first_prev: Seq,
    /// The last journaled sequence number; zero if there never was one.
    pub last: Seq,
    /// The number of bytes of an interrupted write that were cut off the end. For people only: it may include bytes
    /// from an earlier use of the file.
    pub torn_bytes: u64,
}

/// A tenure in a journal: its segments, as far as they were not trimmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalTenure {
    /// Its identity.
    pub id: TenureId,
    /// The last journaled number before its first frame.
    pub after: Seq,
    /// The number of its first record that is still there; `None` if it has none.
    pub first: Option<Seq>,
}

/// Opens the journal in `dir`, or creates one if the directory holds no segment. New frames are of `tenure`.
///
/// Blocking. Reads all segments once to verify them, a large journal with up to eight threads.
///
/// # Errors
/// - [`ErrorKind::InvalidOption`].
/// - [`ErrorKind::Locked`] if the journal is open already, here or in another process.
/// - [`ErrorKind::UnknownFormat`] and [`ErrorKind::Damaged`]; nothing was changed on the disk then.
/// - [`ErrorKind::Poisoned`] if the check panicked; nothing was changed then either.
/// - [`ErrorKind::DiskFull`] or [`ErrorKind::Io`] from the file system, or if no thread can be started.
pub fn open(disk: Arc<dyn Disk>, dir: &Path, options: &JournalOptions, tenure: TenureId) -> Result<Opened> {
    Ok(open_visiting(disk, dir, options, tenure, &CheckOptions::default(), |_| ())?.0)
}

/// Opens a journal as [`open`] does, and shows each frame with records to a visitor while it is checked.
///
/// A large journal is checked in parts, in parallel. `visitor` makes a visitor for each part, and gets the number of
/// bytes of segments before it. The visitors are returned in the journal's order. Nothing that they have seen may be
/// served before this returns `Ok`, because another part may be damaged.
pub(crate) fn open_visiting<V: FrameVisitor>(
    disk: Arc<dyn Disk>,
    dir: &Path,
    options: &JournalOptions,
    tenure: TenureId,
    check: &CheckOptions,
    visitor: impl Fn(u64) -> V,
) -> Result<(Opened, Vec<V>)> {
    options.validate()?;
    disk.create_dir_all(dir).map_err(|error| cannot("create", dir, error))?;
    // The lock comes before everything that reads: a running owner changes the files meanwhile.
    let lock = disk.lock(&dir.join(LOCK_NAME)).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => {
            let context =
                format!("the journal in {} is open already, here or in another process", dir.display());
            Error::with_source(ErrorKind::Locked, context, error)
        }
        _ => cannot("lock", dir, error),
    })?;
    // Without this sync, a power cut could take back a name that was listed and served from.
    disk.sync_dir(dir).map_err(|error| cannot("sync", dir, error))?;
    let files = JournalFiles::read(&*disk, dir)?;
    let headers = read_headers(&*disk, dir, &files.segments)?;
    let parts = check_segments(&*disk, dir, &headers, check, visitor)?;
    let (recovered, visitors) = join(&headers, parts)?;

    // All segments are sound: from here on the disk may change.
    for name in &files.unfinished {
        let path = dir.join(name);
        disk.remove(&path).map_err(|error| cannot("remove", &path, error))?;
    }
    let pool = SparePool::adopt(Arc::clone(&disk), dir.to_owned(), options.clone(), &files.spares)?;
    // A new journal only if there is no segment at all; the store's watermark shows a journal that has lost all of
    // them.
    let Some(recovered) = recovered else {
        let id = JournalId(random::identity("the journal's identity")?);
        // The segment's name is durable before the journal has an identity that a store may record.
        let made = pool.make_segment((id, tenure), 1, options.segment_bytes, Seal::default())?;
        let segment = Arc::new(made.0);
        let segments = BTreeMap::from([(1, Arc::clone(&segment))]);
        let log = Arc::new(Log::new(disk, dir.to_owned(), options.clone(), pool, id, segments, lock)?);
        let writer = Writer::created(Arc::clone(&log), segment, made.1);
        let (first_prev, last) = (Seq::ZERO, Seq::ZERO);
        let (tenures, witness) = (Vec::new(), None);
        let opened =
            Opened { log, writer, id, tenures, witness, created: true, first_prev, last, torn_bytes: 0 };
        return Ok((opened, visitors));
    };
    let Recovered { id, segments, before_tail, tail, first_prev, torn_bytes, witness, firsts } = recovered;
    let log = Arc::new(Log::new(disk, dir.to_owned(), options.clone(), pool, id, segments, lock)?);
    let writer = Writer::recovered(Arc::clone(&log), tenure, tail, before_tail);
    let (tenures, last) = (tenures_of(&headers, &firsts), tail.last);
    let opened = Opened { log, writer, id, tenures, witness, created: false, first_prev, last, torn_bytes };
    Ok((opened, visitors))
}

/// Reads and checks all headers. Comes before any frame is read, so that an unknown format is reported first.
fn read_headers(disk: &dyn Disk, dir: &Path, numbers: &[u64]) -> Result<Vec<SegmentHeader>> {
    let mut headers: Vec<SegmentHeader> = Vec::with_capacity(numbers.len());
    for &number in numbers {
        let path = dir.join(segment_name(number));
        let file = disk.open(&path).map_err(|error| cannot("open", &path, error))?;
        let header = SegmentHeader::read(&*file, &path, number)?;
        // Headers alone show a missing, foreign or swapped segment, before any frame is read.
        if let Some(before) = headers.last() {
            check_neighbours(dir, before, &header)?;
        }
        headers.push(header);
    }
    Ok(headers)
}

/// Checks that `header` is that of the segment after `before`.
pub(crate) fn check_neighbours(dir: &Path, before: &SegmentHeader, header: &SegmentHeader) -> Result<()> {
    let path = dir.join(segment_name(header.number));
    let stake = format!("records after {} cannot be trusted", before.predecessor.last);
    // For instance a segment that was restored from the backup of another journal.
    if header.journal != before.journal {
        let why = format!("it belongs to journal {}, its neighbour to {}", header.journal, before.journal);
        return Err(damage(&path, 0, &why, &stake));
    }
    // Compared by number: a file that is missing in the middle would otherwise let the next one continue as if
    // nothing were lost.
    let expected = before.number.saturating_add(1);
    if header.number != expected {
        let missing = dir.join(segment_name(expected));
        let stake = format!("the records up to {} that it held are lost", header.predecessor.last);
        return Err(damage(&missing, 0, "the file is missing between two others", &stake));
    }
    // Its header was written for another place, as after a file was renamed by hand.
    if header.predecessor.number != before.number {
        let why = format!("it names segment {} as its predecessor", header.predecessor.number);
        return Err(damage(&path, 0, &why, &stake));
    }
    Ok(())
}

/// Returns the tenures of consecutive segments, of which these are the first records.
fn tenures_of(headers: &[SegmentHeader], firsts: &[Option<Seq>]) -> Vec<JournalTenure> {
    let mut tenures: Vec<JournalTenure> = Vec::new();
    for (header, first) in headers.iter().zip(firsts) {
        match tenures.last_mut().filter(|last| last.id == header.tenure) {
            Some(last) => last.first = last.first.or(*first),
            None => {
                let (id, after, first) = (header.tenure, header.predecessor.last, *first);
                tenures.push(JournalTenure { id, after, first });
            }
        }
    }
    tenures
}

/// The state of a journal that was found in a directory.
struct Recovered {
    id: JournalId,
    segments: BTreeMap<u64, Arc<Segment>>,
    before_tail: Seal,
    tail: Seal,
    first_prev: Seq,
    torn_bytes: u64,
    witness: Option<Seq>,
    /// The first record of each segment, if it has one.
    firsts: Vec<Option<Seq>>,
}

/// Consecutive segments that were found sound.
struct CheckedPart<V> {
    /// All of them but the journal's last one.
    sealed: Vec<Segment>,
    /// The journal's last segment, walked to its end, and the number of bytes that a torn write left after that.
    last: Option<(Scan, u64)>,
    /// The witness of their last frame; `None` without a frame.
    witness: Option<Seq>,
    /// The first record of each of them, if it has one.
    firsts: Vec<Option<Seq>>,
    /// The visitor of their frames, and of no others.
    visitor: V,
}

/// Checks every frame of every segment, in parts that threads take in parallel. Changes nothing on the disk.
fn check_segments<V: FrameVisitor>(
    disk: &dyn Disk,
    dir: &Path,
    headers: &[SegmentHeader],
    options: &CheckOptions,
    visitor: impl Fn(u64) -> V,
) -> Result<Vec<CheckedPart<V>>> {
    let sizes = sizes(headers);
    let bytes = sizes.iter().fold(0_u64, |sum, size| sum.saturating_add(*size));
    let threads = threads_for(bytes / options.thread_bytes_min, options.processors);
    let ranges = divide(&sizes, bytes, if threads == 1 { 1 } else { threads * PARTS_PER_THREAD });
    // A journal of few segments has fewer parts than threads.
    let threads = threads.min(ranges.len()).max(1);
    let before = |at: usize| sizes.iter().take(at).fold(0_u64, |sum, size| sum.saturating_add(*size));
    let jobs = ranges.iter().map(|range| (range.clone(), visitor(before(range.start)))).collect();
    let check_one =
        |(range, visitor)| guarded("checking the journal", || check_part(disk, dir, headers, range, visitor));
    let checked = parallel_map(threads, jobs, check_one)
        .map_err(|error| Error::io("starting a thread that checks the journal", error))?;
    // Collecting stops at the first error, which is the first in the journal's order, whichever thread found it first.
    checked.into_iter().collect()
}

/// Returns the number of threads for a journal that has work for `worth` of them.
///
/// Asks for the processors only if there is work for several, because that is a system call.
fn threads_for(worth: u64, processors: impl FnOnce() -> usize) -> usize {
    let worth = usize::try_from(worth).unwrap_or(usize::MAX).min(THREADS_MAX);
    if worth < 2 { 1 } else { worth.min(processors()) }
}

/// Returns the approximate number of bytes to check in each segment.
///
/// For the last one it is the prepared length, because there is no successor that records its end.
fn sizes(headers: &[SegmentHeader]) -> Vec<u64> {
    let ends = headers.iter().skip(1).map(|successor| successor.predecessor.end);
    ends.chain(headers.last().map(|last| last.prepared)).collect()
}

/// Divides segments of these sizes into at most `parts` ranges of about equal size, none of them empty.
fn divide(sizes: &[u64], bytes: u64, parts: usize) -> Vec<Range<usize>> {
    let per_part = bytes.div_ceil(parts as u64).max(1);
    let mut ranges = Vec::new();
    let (mut begin, mut before) = (0, 0_u64);
    for (at, size) in sizes.iter().enumerate() {
        before = before.saturating_add(*size);
        // The last part takes the rest, so that there are never too many.
        let is_full = before / per_part > ranges.len() as u64 && ranges.len() + 1 < parts;
        if is_full || at + 1 == sizes.len() {
            ranges.push(begin..at + 1);
            begin = at + 1;
        }
    }
    ranges
}

/// Checks the segments of a range, one after the other.
fn check_part<V: FrameVisitor>(
    disk: &dyn Disk,
    dir: &Path,
    headers: &[SegmentHeader],
    range: Range<usize>,
    mut visitor: V,
) -> Result<CheckedPart<V>> {
    let (mut sealed, mut last, mut witness) = (Vec::with_capacity(range.len()), None, None);
    let mut firsts = Vec::with_capacity(range.len());
    let successors = headers.iter().skip(1).map(Some).chain([None]);
    for (header, successor) in headers.iter().zip(successors).skip(range.start).take(range.len()) {
        let path = dir.join(segment_name(header.number));
        let file = disk.open(&path).map_err(|error| cannot("open", &path, error))?;
        let mut scan = Scan::over(file, path, header)?;
        match successor {
            Some(successor) => {
                scan.sealed(&successor.predecessor, &mut visitor)?;
                firsts.push(scan.first);
                witness = scan.witness.or(witness);
                sealed.push(Segment::new(*header, scan.path, scan.found.end, scan.found.last));
            }
            None => {
                let torn_bytes = scan.last_segment(&mut visitor)?;
                firsts.push(scan.first);
                witness = scan.witness.or(witness);
                last = Some((scan, torn_bytes));
            }
        }
    }
    Ok(CheckedPart { sealed, last, witness, firsts, visitor })
}

/// Joins sound parts to one journal, and writes the end of the last segment once more.
fn join<V>(headers: &[SegmentHeader], parts: Vec<CheckedPart<V>>) -> Result<(Option<Recovered>, Vec<V>)> {
    let (mut sealed, mut last, mut visitors, mut witness) = (Vec::new(), None, Vec::new(), None);
    let mut firsts = Vec::with_capacity(headers.len());
    for part in parts {
        sealed.extend(part.sealed);
        last = part.last;
        witness = part.witness.or(witness);
        firsts.extend(part.firsts);
        visitors.push(part.visitor);
    }
    let (Some(first), Some(header), Some((mut scan, torn_bytes))) = (headers.first(), headers.last(), last)
    else {
        return Ok((None, visitors));
    };
    // Here and not in the part, because damage in another part must find the disk unchanged.
    if Safeguard::TailWrittenAgain.holds() {
        scan.write_tail_again()?;
    }
    // The writer starts a new segment behind it: an append here could tear frames that were served already.
    let tail = scan.found;
    sealed.push(Segment::new(*header, scan.path, tail.end, tail.last));
    let segments = sealed.into_iter().map(|segment| (segment.header.number, Arc::new(segment))).collect();
    let (id, before_tail, first_prev) = (header.journal, header.predecessor, first.predecessor.last);
    let recovered = Recovered { id, segments, before_tail, tail, first_prev, torn_bytes, witness, firsts };
    Ok((Some(recovered), visitors))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_taken_where_there_is_enough_for_it_and_a_processor() {
        for worth in [0, 1] {
            assert_eq!(threads_for(worth, || panic!("no need to ask")), 1);
        }
        for (worth, processors, threads) in [(2, 64, 2), (1_000, 64, 8), (1_000, 3, 3), (u64::MAX, 1, 1)] {
            assert_eq!(threads_for(worth, || processors), threads);
        }
    }

    #[test]
    fn parts_are_whole_and_about_alike() {
        let sizes: Vec<u64> = (0..100).map(|at| 1_000 + at % 7 * 100).collect();
        let bytes = sizes.iter().sum();
        for parts in [1, 2, 8, 32, 100, 1_000] {
            let ranges = divide(&sizes, bytes, parts);
            assert!(ranges.len() == parts.min(ranges.len()) && ranges.len() >= parts.min(100) * 9 / 10);
            let together: Vec<usize> = ranges.iter().cloned().flatten().collect();
            assert_eq!(together, (0..100).collect::<Vec<_>>());
            for range in &ranges {
                let part: u64 = sizes[range.clone()].iter().sum();
                assert!(part <= bytes / parts as u64 + 2 * 1_600, "{part} of {bytes} in {parts}");
            }
        }
        // Sizes from headers that are sound and senseless.
        assert_eq!(divide(&[u64::MAX, u64::MAX, 0], u64::MAX, 2).len(), 2);
        assert_eq!(divide(&[0, 0], 0, 1).first(), Some(&(0..2)));
        assert!(divide(&[], 0, 1).is_empty());
    }
}
