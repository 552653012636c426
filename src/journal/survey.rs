//! The survey: reads a journal's directory and says what is there, what is damaged, and what is missing.
//!
//! Guarantees: it takes no lock, opens files for reading only and changes nothing, so it works beside the layer that
//! has the journal open, and on a read-only file system. What that layer writes or trims meanwhile is never taken
//! for damage: a doubt is settled by looking again, after what raised it was seen. It goes on behind damage, so that
//! all of it is told, and hands out only frames that are sound in themselves: the checksums of header and body hold,
//! the nonce is their segment's, and their numbers come after everything before them.
//!
//! It is no recovery: what it reads need not be durable.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::contract::{Disk, DiskFile};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{JournalId, Seq};
use crate::journal::frame::{Frame, FrameHeader, Location};
use crate::journal::recovery::check_neighbours;
use crate::journal::scan::{End, Listing, Scan, Stop};
use crate::journal::segment::{SEGMENT_HEADER_BYTES, Seal, SegmentHeader, cannot, damage, segment_name};

/// What a survey comes upon, in the journal's order.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Finding {
    /// A frame that is sound in itself.
    Frame(Frame),
    /// Bytes that are not what was written. An opening would stop here.
    Damage(Damage),
    /// Records that are missing, because of damage that was told before.
    Hole(Hole),
    /// The end of the journal, if it is not damaged.
    Tail(Tail),
}

/// Bytes that are not what was written.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Damage {
    /// The file.
    pub path: PathBuf,
    /// Where in it the damage begins.
    pub offset: u64,
    /// What an opening would say of it.
    pub error: Error,
}

/// Numbers of which nothing sound is left. Those of write-throughs, which were never journaled, may be among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Hole {
    /// The last number before the hole. Zero at the journal's beginning, where older numbers may have been trimmed.
    pub after: Seq,
    /// The last number in the hole; `None` if the journal's end is lost, and nobody knows how far it went.
    pub until: Option<Seq>,
}

/// Where the journal ends.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tail {
    /// The last segment's file.
    pub path: PathBuf,
    /// Behind its last frame.
    pub offset: u64,
    /// How far beyond a write was begun, in bytes: it was torn by a crash, or is going on right now.
    pub torn_bytes: u64,
}

/// One segment, as its header and its successor's tell of it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SegmentSummary {
    /// Its number.
    pub number: u64,
    /// Its file.
    pub path: PathBuf,
    /// The file's length in bytes.
    pub bytes: u64,
    /// The last number before its records; `None` if its header is not sound.
    pub after: Option<Seq>,
    /// The last number in it; `None` for the last segment, and where the successor's header is not sound.
    pub last: Option<Seq>,
}

/// A look at a journal's directory. Made by [`Survey::open`], read with [`Survey::next_finding`].
pub struct Survey {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    id: Option<JournalId>,
    summaries: Vec<SegmentSummary>,
    places: Vec<Place>,
    next: usize,
    walk: Option<Walk>,
    ready: VecDeque<Finding>,
    /// The last number so far; `None` at the beginning and where segments were trimmed meanwhile.
    last: Option<Seq>,
    /// How the journal ends is not known.
    open_end: bool,
    bytes_done: u64,
}

/// A segment in its turn.
enum Place {
    Sound(SegmentHeader),
    Damaged(Damage),
}

struct Walk {
    scan: Scan,
    header: SegmentHeader,
    seal: Option<Seal>,
    is_last: bool,
    limit: u64,
}

impl Survey {
    /// Looks at the directory `dir` and reads the headers of its segments. Blocking.
    ///
    /// # Errors
    /// [`ErrorKind::UnknownFormat`] if any segment is of a version that is not known; [`ErrorKind::Io`], which a
    /// directory that does not exist is, too. Damage is no error here but a [`Finding`].
    pub fn open(disk: Arc<dyn Disk>, dir: &Path) -> Result<Survey> {
        let listing = list_settled(&*disk, dir)?;
        let mut seen = Vec::new();
        for &number in &listing.segments {
            let path = dir.join(segment_name(number));
            // One that was trimmed meanwhile takes those before it along.
            let Some((file, header)) = look_at(&*disk, &path, number)? else {
                seen.clear();
                continue;
            };
            let bytes = file.len().map_err(|error| cannot("read", &path, error))?;
            let place = match header {
                Ok(header) => Place::Sound(header),
                Err(error) if error.kind() == ErrorKind::Damaged => damaged(&path, 0, error),
                Err(error) => return Err(error),
            };
            seen.push((number, path, bytes, place));
        }
        let id = most_frequent(seen.iter().filter_map(|(.., place)| place.header()));
        let mut places: Vec<Place> = Vec::with_capacity(seen.len());
        let mut summaries = Vec::with_capacity(seen.len());
        let mut before: Option<u64> = None;
        for (number, path, bytes, place) in seen {
            if let Some(missing) = before.map(|before| before + 1).filter(|missing| *missing != number) {
                let path = dir.join(segment_name(missing));
                let stake = format!("segments {missing} to {} are lost", number - 1);
                let error = damage(&path, 0, "the file is missing between two others", &stake);
                places.push(damaged(&path, 0, error));
            }
            let neighbour = places.last().and_then(Place::header);
            let place = checked(dir, id, neighbour, &path, place);
            before = Some(number);
            let after = place.header().map(|header| header.predecessor.last);
            summaries.push(SegmentSummary { number, path, bytes, after, last: None });
            places.push(place);
        }
        let mut following: Option<(u64, Seq)> = None;
        for summary in summaries.iter_mut().rev() {
            summary.last = following.filter(|(next, _)| *next == summary.number + 1).map(|(_, last)| last);
            following = summary.after.map(|after| (summary.number, after));
        }
        Ok(Survey {
            disk,
            dir: dir.to_owned(),
            id,
            summaries,
            places,
            next: 0,
            walk: None,
            ready: VecDeque::new(),
            last: None,
            open_end: false,
            bytes_done: 0,
        })
    }

    /// Leaves out the segments that hold nothing after `after`. To be called before anything is read.
    #[must_use]
    pub fn starting_after(mut self, after: Seq) -> Survey {
        let holds_older =
            |place: &Place| place.header().is_some_and(|header| header.predecessor.last <= after);
        self.next = self.places.iter().rposition(holds_older).unwrap_or(0);
        self
    }

    /// The journal's identity; `None` if there is no segment with a sound header.
    #[must_use]
    pub fn id(&self) -> Option<JournalId> {
        self.id
    }

    /// The segments, oldest first, as they were listed at the beginning.
    #[must_use]
    pub fn segments(&self) -> &[SegmentSummary] {
        &self.summaries
    }

    /// How many bytes there are to read, and how many of them have been.
    #[must_use]
    pub fn progress(&self) -> (u64, u64) {
        let total = self.summaries.iter().map(|summary| summary.bytes).sum();
        let here = self.walk.as_ref().map_or(0, |walk| walk.scan.found.end);
        (self.bytes_done.saturating_add(here).min(total), total)
    }

    /// The next finding, or nothing at the end. Blocking.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if a file cannot be read: a disk that fails is to be copied first, with a tool for that.
    pub fn next_finding(&mut self) -> Result<Option<Finding>> {
        loop {
            if let Some(finding) = self.ready.pop_front() {
                return Ok(Some(finding));
            }
            if let Some(walk) = self.walk.take() {
                self.walk_on(walk)?;
            } else if self.next < self.places.len() {
                self.begin_next()?;
            } else if std::mem::take(&mut self.open_end) {
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
        let is_last = self.next == self.places.len();
        let header = match self.places.get(at) {
            Some(Place::Sound(header)) => *header,
            Some(Place::Damaged(damage)) => {
                self.ready.push_back(Finding::Damage(damage.clone()));
                self.last.get_or_insert(Seq::ZERO);
                self.open_end = is_last;
                return Ok(());
            }
            None => return Ok(()),
        };
        let path = self.dir.join(segment_name(header.number));
        let Some((file, now)) = look_at(&*self.disk, &path, header.number)? else {
            self.last = None;
            return Ok(());
        };
        // The last segment, as long as it is empty, may be replaced by one that takes its number.
        let header = match now {
            Ok(now) if now.journal == header.journal => now,
            _ => header,
        };
        let prev = header.predecessor.last;
        self.pass_to(prev);
        let seal = match self.places.get(self.next) {
            Some(Place::Sound(next)) if next.number == header.number.saturating_add(1) => {
                Some(next.predecessor)
            }
            _ => None,
        };
        let mut scan = Scan::over_any(file, path, &header)?;
        if let Some(why) = scan.cut_short(&header) {
            let stake = format!("records after {prev} cannot be trusted");
            self.tell(&scan.path, scan.len(), damage(&scan.path, scan.len(), &why, &stake));
        }
        let limit = seal.map_or(scan.len(), |seal| seal.end);
        // The chain comes first: sound frames in a segment that is not the one its successor knew are no records.
        let other = match seal {
            Some(seal) if scan.walk(seal.end, &mut |_| Ok(()))?.is_none() => {
                scan.differs(&seal).map(|why| (why, seal.last))
            }
            _ => None,
        };
        scan.rewind(&header);
        let walk = Walk { scan, header, seal, is_last, limit };
        match other {
            Some((why, last)) if self.still_there(&walk)? => {
                let path = &walk.scan.path;
                let error = damage(path, SEGMENT_HEADER_BYTES, &why, "none of its records can be trusted");
                self.tell(path, SEGMENT_HEADER_BYTES, error);
                self.bytes_done = self.bytes_done.saturating_add(walk.scan.len());
                self.pass_to(last);
            }
            Some(_) => {}
            None => self.walk = Some(walk),
        }
        Ok(())
    }

    /// One frame further, or to the segment's end.
    fn walk_on(&mut self, mut walk: Walk) -> Result<()> {
        if walk.scan.found.end >= walk.limit {
            self.finish(&walk, true);
            return Ok(());
        }
        let stop = match walk.scan.step(walk.limit, &mut |_| Ok(()))? {
            Ok(header) => return self.take_frame(walk, &header),
            Err(stop) => stop,
        };
        let why = if walk.seal.is_some() {
            match stop {
                Stop::Unsound(why) | Stop::Broken(why) => why,
            }
        } else {
            match walk.scan.end(stop)? {
                End::Torn(bytes) => {
                    if walk.is_last {
                        self.ready.push_back(Finding::Tail(walk.tail(bytes)));
                    }
                    self.finish(&walk, false);
                    return Ok(());
                }
                End::Damaged(why, _) => {
                    // What promised that this was synced was written after it. So whoever is writing right now had
                    // written this before, and now it can be seen.
                    walk.scan.look_again()?;
                    walk.limit = walk.scan.len();
                    match walk.scan.step(walk.limit, &mut |_| Ok(()))? {
                        Ok(header) => return self.take_frame(walk, &header),
                        Err(_) => why,
                    }
                }
            }
        };
        if !self.still_there(&walk)? {
            return Ok(());
        }
        let from = walk.scan.found.end;
        let stake = format!("records after {} cannot be trusted", walk.scan.found.last);
        let error = damage(&walk.scan.path, from, &why, &stake);
        self.tell(&walk.scan.path.clone(), from, error);
        if !walk.scan.resume(from, walk.limit)? {
            self.open_end = walk.is_last;
            self.finish(&walk, false);
            return Ok(());
        }
        self.pass_to(walk.scan.found.last);
        self.walk = Some(walk);
        Ok(())
    }

    /// Hands out the frame over which the walk has just moved.
    fn take_frame(&mut self, mut walk: Walk, header: &FrameHeader) -> Result<()> {
        let offset = walk.scan.found.end - header.bytes_on_disk();
        if header.count > 0 {
            let body = walk.scan.body(offset, header)?;
            let location = Location { segment: walk.header.number, offset };
            match Frame::verified(header, location, body) {
                Ok(frame) => self.ready.push_back(Finding::Frame(frame)),
                // Somebody wrote into it between two looks, or the writer was wrong.
                Err(why) if self.still_there(&walk)? => {
                    let stake = format!("records {} to {} cannot be read", header.first, header.last());
                    let error = damage(&walk.scan.path, offset, why, &stake);
                    self.tell(&walk.scan.path, offset, error);
                    self.pass_to(header.last());
                }
                Err(_) => return Ok(()),
            }
            self.last = Some(header.last());
        }
        self.walk = Some(walk);
        Ok(())
    }

    fn finish(&mut self, walk: &Walk, whole: bool) {
        self.bytes_done = self.bytes_done.saturating_add(walk.scan.len());
        if walk.is_last && whole {
            self.ready.push_back(Finding::Tail(walk.tail(0)));
        }
    }

    /// Whether the file is the segment still. If it is not, it was trimmed, and what was read of it means nothing.
    fn still_there(&mut self, walk: &Walk) -> Result<bool> {
        let there = match look_at(&*self.disk, &walk.scan.path, walk.header.number)? {
            Some((_, Ok(header))) => header == walk.header,
            Some((_, Err(error))) if error.kind() == ErrorKind::Damaged => true,
            Some((_, Err(error))) => return Err(error),
            None => false,
        };
        if !there {
            self.last = None;
        }
        Ok(there)
    }

    /// Says that something is missing if what comes next follows `prev`.
    fn pass_to(&mut self, prev: Seq) {
        if let Some(after) = self.last.filter(|last| *last < prev) {
            self.ready.push_back(Finding::Hole(Hole { after, until: Some(prev) }));
        }
        self.last = Some(prev);
    }

    fn tell(&mut self, path: &Path, offset: u64, error: Error) {
        self.ready.push_back(Finding::Damage(Damage { path: path.to_owned(), offset, error }));
    }
}

impl Walk {
    fn tail(&self, torn_bytes: u64) -> Tail {
        Tail { path: self.scan.path.clone(), offset: self.scan.found.end, torn_bytes }
    }
}

impl Place {
    fn header(&self) -> Option<&SegmentHeader> {
        match self {
            Place::Sound(header) => Some(header),
            Place::Damaged(_) => None,
        }
    }
}

impl std::fmt::Debug for Survey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Survey").field("dir", &self.dir).field("id", &self.id).finish_non_exhaustive()
    }
}

fn damaged(path: &Path, offset: u64, error: Error) -> Place {
    Place::Damaged(Damage { path: path.to_owned(), offset, error })
}

/// A segment whose header is sound, but not this journal's or not in its place, is damage.
fn checked(
    dir: &Path,
    id: Option<JournalId>,
    before: Option<&SegmentHeader>,
    path: &Path,
    place: Place,
) -> Place {
    let Place::Sound(header) = &place else { return place };
    if let Some(id) = id.filter(|id| *id != header.journal) {
        let why = format!("it belongs to journal {}, the others to {id}", header.journal);
        return damaged(path, 0, damage(path, 0, &why, "what it took the place of is lost"));
    }
    match before.map(|before| check_neighbours(dir, before, header)) {
        Some(Err(error)) => damaged(path, 0, error),
        _ => place,
    }
}

/// A listing is no snapshot: names that come and go while it is read can make it look as if one were missing. So a
/// gap counts only if a second listing shows it as well.
fn list_settled(disk: &dyn Disk, dir: &Path) -> Result<Listing> {
    let mut listing = Listing::read(disk, dir)?;
    while listing.segments.windows(2).any(|pair| matches!(pair, [a, b] if a + 1 != *b)) {
        let again = Listing::read(disk, dir)?;
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

/// The segment at `path` with its header; nothing if it was trimmed, before or after it was opened. What was trimmed
/// may be written anew at any moment, so a header that is not sound counts only if the name is still there after it was
/// read. A name is never given twice, but to the successor of an empty segment.
#[allow(clippy::type_complexity, reason = "a file, and a header or what is wrong with it")]
fn look_at(
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

/// The identity that most segments have, the older one of two that are equally frequent.
fn most_frequent<'a>(headers: impl Iterator<Item = &'a SegmentHeader>) -> Option<JournalId> {
    let mut counts: HashMap<JournalId, (usize, std::cmp::Reverse<u64>)> = HashMap::new();
    for header in headers {
        counts.entry(header.journal).or_insert((0, std::cmp::Reverse(header.number))).0 += 1;
    }
    counts.into_iter().max_by_key(|(_, rank)| *rank).map(|(id, _)| id)
}
