//! The survey: reads a journal's directory and reports its frames, its damage and its holes.
//!
//! Guarantees:
//! - It takes no lock, opens files for reading only and changes nothing. So it works while a layer has the journal
//!   open, and on a read-only file system.
//! - Writes and trims of that layer are never reported as damage: a doubt is settled by reading again afterwards.
//! - It continues after damage, so that all damage is reported.
//! - It returns only frames that are sound in themselves: the checksums of header and body hold, the nonce is their
//!   segment's, and their numbers follow all numbers before them.
//!
//! It is no recovery: the frames that it returns need not be durable.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::contract::{Disk, DiskFile};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{JournalId, Seq, TenureId};
use crate::journal::errors::{cannot, damage};
use crate::journal::frame::{Frame, FrameHeader, Location};
use crate::journal::recovery::check_neighbours;
use crate::journal::scan::{JournalFiles, Scan, ScanStop, TailEnd};
use crate::journal::segment::{SEGMENT_HEADER_BYTES, Seal, SegmentHeader, segment_name};

/// A finding of a survey. They come in the journal's order.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Finding {
    /// A frame that is sound in itself.
    Frame(Frame),
    /// Bytes that are not as they were written. An opening would fail here.
    Damage(Damage),
    /// Records that are missing, because of damage that was reported before.
    Hole(Hole),
    /// The end of the journal, if it is not damaged.
    Tail(Tail),
}

/// Bytes that are not as they were written.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Damage {
    /// The file.
    pub path: PathBuf,
    /// The offset at which the damage begins.
    pub offset: u64,
    /// The error that an opening would return.
    pub error: Error,
}

/// A range of numbers without a sound frame. It may include numbers of write-throughs, which were never journaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Hole {
    /// The last number before the hole. Zero at the journal's beginning, where older numbers may have been trimmed.
    pub after: Seq,
    /// The last number in the hole; `None` if the journal's end is lost, so that its last number is unknown.
    pub until: Option<Seq>,
}

/// The end of the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tail {
    /// The last segment's file.
    pub path: PathBuf,
    /// The end of its last frame.
    pub offset: u64,
    /// The number of bytes after it that belong to a write that a crash tore, or that is going on now.
    pub torn_bytes: u64,
}

/// A segment, as its header and its successor's describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SegmentSummary {
    /// Its number.
    pub number: u64,
    /// Its file.
    pub path: PathBuf,
    /// The file's length in bytes.
    pub bytes: u64,
    /// The tenure in which its records were written; `None` if its header is not sound.
    pub tenure: Option<TenureId>,
    /// The last number before its records; `None` if its header is not sound.
    pub after: Option<Seq>,
    /// The last number in it; `None` for the last segment, and where the successor's header is not sound.
    pub last: Option<Seq>,
}

/// A survey of a journal's directory. Made by [`Survey::open`], read with [`Survey::next_finding`].
pub struct Survey {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    id: Option<JournalId>,
    summaries: Vec<SegmentSummary>,
    segments: Vec<SurveyedSegment>,
    next: usize,
    walk: Option<SegmentWalk>,
    ready: VecDeque<Finding>,
    /// The last number so far; `None` at the beginning and after segments that were trimmed meanwhile.
    last: Option<Seq>,
    /// True if the journal's end is damaged, so that its last number is unknown.
    open_end: bool,
    bytes_done: u64,
}

/// A segment, or the reason why it cannot be read.
enum SurveyedSegment {
    Sound(SegmentHeader),
    Damaged(Damage),
}

/// The walk over the segment that is being read.
struct SegmentWalk {
    scan: Scan,
    header: SegmentHeader,
    seal: Option<Seal>,
    is_last: bool,
    limit: u64,
}

impl Survey {
    /// Lists the directory `dir` and reads the headers of its segments. Blocking.
    ///
    /// # Errors
    /// [`ErrorKind::UnknownFormat`] if a segment has an unknown format version; [`ErrorKind::Io`], also for a directory
    /// that does not exist. Damage is no error here but a [`Finding`].
    pub fn open(disk: Arc<dyn Disk>, dir: &Path) -> Result<Survey> {
        let listing = list_settled(&*disk, dir)?;
        let mut seen = Vec::new();
        for &number in &listing.segments {
            let path = dir.join(segment_name(number));
            // Segments are trimmed oldest first: if this one is gone, so are those before it.
            let Some((file, header)) = open_segment(&*disk, &path, number)? else {
                seen.clear();
                continue;
            };
            let bytes = file.len().map_err(|error| cannot("read", &path, error))?;
            let segment = match header {
                Ok(header) => SurveyedSegment::Sound(header),
                // Damage is a finding and no error: the survey exists to go on behind it.
                Err(error) if error.kind() == ErrorKind::Damaged => damaged(&path, 0, error),
                Err(error) => return Err(error),
            };
            seen.push((number, path, bytes, segment));
        }
        let id = most_frequent(seen.iter().filter_map(|(.., segment)| segment.header()));
        let mut segments: Vec<SurveyedSegment> = Vec::with_capacity(seen.len());
        let mut summaries = Vec::with_capacity(seen.len());
        let mut before: Option<u64> = None;
        for (number, path, bytes, segment) in seen {
            // Reported in its place, so that a reader sees the hole between the two files and not at the end.
            if let Some(missing) = before.map(|before| before + 1).filter(|missing| *missing != number) {
                let path = dir.join(segment_name(missing));
                let stake = format!("segments {missing} to {} are lost", number - 1);
                let error = damage(&path, 0, "the file is missing between two others", &stake);
                segments.push(damaged(&path, 0, error));
            }
            let neighbour = segments.last().and_then(SurveyedSegment::header);
            let segment = checked(dir, id, neighbour, &path, segment);
            before = Some(number);
            let (after, tenure) = match segment.header() {
                Some(header) => (Some(header.predecessor.last), Some(header.tenure)),
                None => (None, None),
            };
            summaries.push(SegmentSummary { number, path, bytes, tenure, after, last: None });
            segments.push(segment);
        }
        let mut following: Option<(u64, Seq)> = None;
        for summary in summaries.iter_mut().rev() {
            // Only a direct neighbour knows where this segment ended.
            summary.last = following.filter(|(next, _)| *next == summary.number + 1).map(|(_, last)| last);
            following = summary.after.map(|after| (summary.number, after));
        }
        Ok(Survey {
            disk,
            dir: dir.to_owned(),
            id,
            summaries,
            segments,
            next: 0,
            walk: None,
            ready: VecDeque::new(),
            last: None,
            open_end: false,
            bytes_done: 0,
        })
    }

    /// Skips the segments that hold no record after `after`. Call it before the first finding is read.
    #[must_use]
    pub fn starting_after(mut self, after: Seq) -> Survey {
        let holds_older = |segment: &SurveyedSegment| {
            segment.header().is_some_and(|header| header.predecessor.last <= after)
        };
        // The last segment that begins at or before the start is the first that can hold a number after it.
        self.next = self.segments.iter().rposition(holds_older).unwrap_or(0);
        self
    }

    /// Returns the journal's identity; `None` if there is no segment with a sound header.
    #[must_use]
    pub fn id(&self) -> Option<JournalId> {
        self.id
    }

    /// Returns the segments, oldest first, as they were listed at the beginning.
    #[must_use]
    pub fn segments(&self) -> &[SegmentSummary] {
        &self.summaries
    }

    /// Returns the number of bytes read so far, and of all bytes to read.
    #[must_use]
    pub fn progress(&self) -> (u64, u64) {
        let total = self.summaries.iter().map(|summary| summary.bytes).sum();
        let here = self.walk.as_ref().map_or(0, |walk| walk.scan.found.end);
        (self.bytes_done.saturating_add(here).min(total), total)
    }

    /// Returns the next finding, or `None` at the end. Blocking.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if a file cannot be read. Copy a failing disk first, with a tool made for that.
    pub fn next_finding(&mut self) -> Result<Option<Finding>> {
        loop {
            if let Some(finding) = self.ready.pop_front() {
                return Ok(Some(finding));
            }
            if let Some(walk) = self.walk.take() {
                self.walk_on(walk)?;
            } else if self.next < self.segments.len() {
                self.begin_next()?;
            } else if std::mem::take(&mut self.open_end) {
                // Once only, after everything that could be read.
                let after = self.last.unwrap_or(Seq::ZERO);
                self.ready.push_back(Finding::Hole(Hole { after, until: None }));
            } else {
                return Ok(None);
            }
        }
    }

    /// Begins the next segment.
    fn begin_next(&mut self) -> Result<()> {
        let at = self.next;
        self.next += 1;
        let is_last = self.next == self.segments.len();
        let header = match self.segments.get(at) {
            Some(SurveyedSegment::Sound(header)) => *header,
            Some(SurveyedSegment::Damaged(damage)) => {
                self.ready.push_back(Finding::Damage(damage.clone()));
                // At the journal's beginning the hole starts at zero, because older numbers may have been trimmed.
                self.last.get_or_insert(Seq::ZERO);
                self.open_end = is_last;
                return Ok(());
            }
            None => return Ok(()),
        };
        let path = self.dir.join(segment_name(header.number));
        let Some((file, now)) = open_segment(&*self.disk, &path, header.number)? else {
            // The number before it is unknown now, so no hole may be derived from it.
            self.last = None;
            return Ok(());
        };
        // An empty last segment may have been replaced by one that has its number.
        let header = match now {
            Ok(now) if now.journal == header.journal => now,
            _ => header,
        };
        let prev = header.predecessor.last;
        self.pass_to(prev);
        let seal = match self.segments.get(self.next) {
            Some(SurveyedSegment::Sound(next)) if next.number == header.number.saturating_add(1) => {
                Some(next.predecessor)
            }
            _ => None,
        };
        let mut scan = Scan::over_any(file, path, &header)?;
        if let Some(why) = scan.cut_short(&header) {
            let stake = format!("records after {prev} cannot be trusted");
            self.report_damage(&scan.path, scan.len(), damage(&scan.path, scan.len(), &why, &stake));
        }
        let limit = seal.map_or(scan.len(), |seal| seal.end);
        // The chain is checked before any frame is returned: if the segment is not the one that its successor recorded,
        // its sound frames are not this journal's records.
        let other = match seal {
            Some(seal) if scan.walk(seal.end, &mut ())?.is_none() => {
                scan.differs(&seal).map(|why| (why, seal.last))
            }
            _ => None,
        };
        scan.rewind(&header);
        let walk = SegmentWalk { scan, header, seal, is_last, limit };
        match other {
            // The file may have been recycled between the two reads; then its content is no finding.
            Some((why, last)) if self.still_there(&walk)? => {
                let path = &walk.scan.path;
                let error = damage(path, SEGMENT_HEADER_BYTES, &why, "none of its records can be trusted");
                self.report_damage(path, SEGMENT_HEADER_BYTES, error);
                self.bytes_done = self.bytes_done.saturating_add(walk.scan.len());
                self.pass_to(last);
            }
            Some(_) => {}
            None => self.walk = Some(walk),
        }
        Ok(())
    }

    /// Moves over the next frame, or ends the segment.
    fn walk_on(&mut self, mut walk: SegmentWalk) -> Result<()> {
        if walk.scan.found.end >= walk.limit {
            self.finish(&walk, true);
            return Ok(());
        }
        let stop = match walk.scan.step(walk.limit, &mut ())? {
            Ok(header) => return self.take_frame(walk, &header),
            Err(stop) => stop,
        };
        // Below a seal a torn write is impossible, so every stop is damage.
        let why = if walk.seal.is_some() {
            match stop {
                ScanStop::Unsound(why) | ScanStop::Broken(why) => why,
            }
        } else {
            match walk.scan.end(stop)? {
                TailEnd::Torn(bytes) => {
                    if walk.is_last {
                        self.ready.push_back(Finding::Tail(walk.tail(bytes)));
                    }
                    self.finish(&walk, false);
                    return Ok(());
                }
                TailEnd::Damaged(why, _) => {
                    // The frame that promises this place was written after it. If a writer is at work, its bytes here
                    // are readable by now, so one more look tells damage from a write that was not yet complete.
                    walk.scan.look_again()?;
                    walk.limit = walk.scan.len();
                    match walk.scan.step(walk.limit, &mut ())? {
                        Ok(header) => return self.take_frame(walk, &header),
                        Err(_) => why,
                    }
                }
            }
        };
        // The damage may be an illusion: the file was trimmed and is being written anew.
        if !self.still_there(&walk)? {
            return Ok(());
        }
        let from = walk.scan.found.end;
        let stake = format!("records after {} cannot be trusted", walk.scan.found.last);
        let error = damage(&walk.scan.path, from, &why, &stake);
        self.report_damage(&walk.scan.path.clone(), from, error);
        // Sound frames after the damage are still worth reporting, and they show how far the hole goes.
        if !walk.scan.resume(from, walk.limit)? {
            self.open_end = walk.is_last;
            self.finish(&walk, false);
            return Ok(());
        }
        self.pass_to(walk.scan.found.last);
        self.walk = Some(walk);
        Ok(())
    }

    /// Queues the frame over which the walk has just moved as a finding.
    fn take_frame(&mut self, mut walk: SegmentWalk, header: &FrameHeader) -> Result<()> {
        let offset = walk.scan.found.end - header.bytes_on_disk();
        if header.count > 0 {
            let body = walk.scan.body(offset, header)?;
            let location = Location { segment: walk.header.number, offset };
            match Frame::verified(header, location, body) {
                Ok(frame) => self.ready.push_back(Finding::Frame(frame)),
                // The file was recycled between two reads, or the writer wrote a wrong body.
                Err(why) if self.still_there(&walk)? => {
                    let stake = format!("records {} to {} cannot be read", header.first, header.last());
                    let error = damage(&walk.scan.path, offset, why, &stake);
                    self.report_damage(&walk.scan.path, offset, error);
                    self.pass_to(header.last());
                }
                Err(_) => return Ok(()),
            }
            // Also for a frame that was damaged: the hole before it was reported, and must not be reported again.
            self.last = Some(header.last());
        }
        self.walk = Some(walk);
        Ok(())
    }

    fn finish(&mut self, walk: &SegmentWalk, whole: bool) {
        self.bytes_done = self.bytes_done.saturating_add(walk.scan.len());
        if walk.is_last && whole {
            self.ready.push_back(Finding::Tail(walk.tail(0)));
        }
    }

    /// Returns false if the file is no longer this segment: it was trimmed, and what was read of it means nothing.
    fn still_there(&mut self, walk: &SegmentWalk) -> Result<bool> {
        let there = match open_segment(&*self.disk, &walk.scan.path, walk.header.number)? {
            Some((_, Ok(header))) => header == walk.header,
            // A damaged header under the same name is still this segment; only another sound one shows a new use.
            Some((_, Err(error))) if error.kind() == ErrorKind::Damaged => true,
            Some((_, Err(error))) => return Err(error),
            None => false,
        };
        if !there {
            self.last = None;
        }
        Ok(there)
    }

    /// Queues a hole if the last number so far is before `prev`, and moves on to `prev`.
    fn pass_to(&mut self, prev: Seq) {
        if let Some(after) = self.last.filter(|last| *last < prev) {
            self.ready.push_back(Finding::Hole(Hole { after, until: Some(prev) }));
        }
        self.last = Some(prev);
    }

    fn report_damage(&mut self, path: &Path, offset: u64, error: Error) {
        self.ready.push_back(Finding::Damage(Damage { path: path.to_owned(), offset, error }));
    }
}

impl SegmentWalk {
    fn tail(&self, torn_bytes: u64) -> Tail {
        Tail { path: self.scan.path.clone(), offset: self.scan.found.end, torn_bytes }
    }
}

impl SurveyedSegment {
    fn header(&self) -> Option<&SegmentHeader> {
        match self {
            SurveyedSegment::Sound(header) => Some(header),
            SurveyedSegment::Damaged(_) => None,
        }
    }
}

impl std::fmt::Debug for Survey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Survey").field("dir", &self.dir).field("id", &self.id).finish_non_exhaustive()
    }
}

fn damaged(path: &Path, offset: u64, error: Error) -> SurveyedSegment {
    SurveyedSegment::Damaged(Damage { path: path.to_owned(), offset, error })
}

/// Returns damage for a segment whose header is sound, but belongs to another journal or another place.
fn checked(
    dir: &Path,
    id: Option<JournalId>,
    before: Option<&SegmentHeader>,
    path: &Path,
    segment: SurveyedSegment,
) -> SurveyedSegment {
    let SurveyedSegment::Sound(header) = &segment else { return segment };
    // One foreign segment must not make the others foreign, so the majority decides.
    if let Some(id) = id.filter(|id| *id != header.journal) {
        let why = format!("it belongs to journal {}, the others to {id}", header.journal);
        return damaged(path, 0, damage(path, 0, &why, "what it took the place of is lost"));
    }
    match before.map(|before| check_neighbours(dir, before, header)) {
        Some(Err(error)) => damaged(path, 0, error),
        _ => segment,
    }
}

/// Lists the directory until two listings agree, if there is a gap between its segments.
///
/// A listing is no snapshot: a name that appears while the directory is read may be missed, so a gap counts only if a
/// second listing shows it too.
fn list_settled(disk: &dyn Disk, dir: &Path) -> Result<JournalFiles> {
    let mut listing = JournalFiles::read(disk, dir)?;
    while listing.segments.windows(2).any(|pair| matches!(pair, [a, b] if a + 1 != *b)) {
        let again = JournalFiles::read(disk, dir)?;
        // The gap is real.
        if again.segments == listing.segments {
            break;
        }
        listing = again;
    }
    Ok(listing)
}

fn open_if_there(disk: &dyn Disk, path: &Path) -> Result<Option<Box<dyn DiskFile>>> {
    match disk.open_read_only(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(cannot("open", path, error)),
    }
}

/// Opens the segment at `path` and reads its header; `None` if it was trimmed, before or after it was opened.
///
/// A trimmed file may be overwritten at any moment. So an unsound header counts only if the name is still there after
/// it was read: a name is never used twice, except by the successor of an empty segment.
#[allow(clippy::type_complexity, reason = "a file, and a header or what is wrong with it")]
fn open_segment(
    disk: &dyn Disk,
    path: &Path,
    number: u64,
) -> Result<Option<(Box<dyn DiskFile>, Result<SegmentHeader>)>> {
    let Some(file) = open_if_there(disk, path)? else { return Ok(None) };
    let header = SegmentHeader::read(&*file, path, number);
    let doubtful = matches!(&header, Err(error) if error.kind() == ErrorKind::Damaged);
    if doubtful && open_if_there(disk, path)?.is_none() {
        return Ok(None);
    }
    Ok(Some((file, header)))
}

/// Returns the identity that most segments have; of two equally frequent ones, the older.
fn most_frequent<'a>(headers: impl Iterator<Item = &'a SegmentHeader>) -> Option<JournalId> {
    let mut counts: HashMap<JournalId, (usize, std::cmp::Reverse<u64>)> = HashMap::new();
    for header in headers {
        counts.entry(header.journal).or_insert((0, std::cmp::Reverse(header.number))).0 += 1;
    }
    counts.into_iter().max_by_key(|(_, rank)| *rank).map(|(id, _)| id)
}
