//! The check of all segments, in shares that threads take beside each other.
//!
//! A segment's header and its successor's say how it begins and ends, so it can be checked without those before it.
//! Guarantees that the error told is that of the first unsound place in the journal's order, and changes nothing on the
//! disk: what of the last segment is to be written again is left to the caller.

use std::ops::Range;
use std::path::Path;

use crate::disk::contract::Disk;
use crate::error::{Error, Result};
use crate::journal::frame::SoundFrame;
use crate::journal::guard::guarded;
use crate::journal::scan::Scan;
use crate::journal::segment::{Segment, SegmentHeader, cannot, segment_name};
use crate::seam::parallel::{parallel_map, processors};

/// A thread is taken for so many bytes: to check them takes one or two milliseconds, and to start it some 40 us. In the
/// crate's tests there is always enough, so that what is rare elsewhere is tried all the time.
const THREAD_BYTES_MIN: u64 = if cfg!(test) { 1 } else { 4 << 20 };
/// However many processors there are: an opening is not to take a large machine for itself.
const THREADS_MAX: usize = 8;
/// So many shares a thread, so that one that gets less of its processor has less to do.
const SHARES_PER_THREAD: usize = 4;

/// Who hears of each frame with records, in order, when it has been found sound. What they refuse is damage.
pub(crate) trait Hearer: Send {
    fn hear(&mut self, frame: &SoundFrame<'_>) -> Result<()>;
}

/// Whoever does not want to know.
impl Hearer for () {
    fn hear(&mut self, _: &SoundFrame<'_>) -> Result<()> {
        Ok(())
    }
}

/// Segments that follow each other, checked.
pub(crate) struct Share<H> {
    /// All of them but the journal's last one.
    pub(crate) sealed: Vec<Segment>,
    /// The journal's last segment, walked to its end, and how many bytes a torn write left behind that.
    pub(crate) last: Option<(Scan, u64)>,
    /// Who has heard of their frames, and of no others.
    pub(crate) hearer: H,
}

/// Checks every frame of every segment; `hearer` makes somebody to hear for each share, and is told how many bytes of
/// segments come before it.
pub(crate) fn check<H: Hearer>(
    disk: &dyn Disk,
    dir: &Path,
    headers: &[SegmentHeader],
    hearer: impl Fn(u64) -> H,
) -> Result<Vec<Share<H>>> {
    let sizes = sizes(headers);
    let bytes = sizes.iter().fold(0_u64, |sum, size| sum.saturating_add(*size));
    let threads = threads_for(bytes / THREAD_BYTES_MIN, || if cfg!(test) { 3 } else { processors() });
    let ranges = divide(&sizes, bytes, if threads == 1 { 1 } else { threads * SHARES_PER_THREAD });
    let threads = threads.min(ranges.len()).max(1);
    let before = |at: usize| sizes.iter().take(at).fold(0_u64, |sum, size| sum.saturating_add(*size));
    let jobs = ranges.iter().map(|range| (range.clone(), hearer(before(range.start)))).collect();
    let check_one =
        |(range, hearer)| guarded("checking the journal", || check_share(disk, dir, headers, range, hearer));
    let checked = parallel_map(threads, jobs, check_one)
        .map_err(|error| Error::io("starting a thread that checks the journal", error))?;
    // The first error counts, since the shares are in order.
    checked.into_iter().collect()
}

/// How many threads to take where so many would have enough to do. The system is asked only if it may be several.
fn threads_for(worth: u64, processors: impl FnOnce() -> usize) -> usize {
    let worth = usize::try_from(worth).unwrap_or(usize::MAX).min(THREADS_MAX);
    if worth < 2 { 1 } else { worth.min(processors()) }
}

/// How much there is to check in each segment, about: the last one has no successor that tells.
fn sizes(headers: &[SegmentHeader]) -> Vec<u64> {
    let ends = headers.iter().skip(1).map(|successor| successor.predecessor.end);
    ends.chain(headers.last().map(|last| last.prepared)).collect()
}

/// Divides segments of these sizes into at most so many shares that are about alike; none is without a segment.
fn divide(sizes: &[u64], bytes: u64, shares: usize) -> Vec<Range<usize>> {
    let per_share = bytes.div_ceil(shares as u64).max(1);
    let mut ranges = Vec::new();
    let (mut begin, mut before) = (0, 0_u64);
    for (at, size) in sizes.iter().enumerate() {
        before = before.saturating_add(*size);
        let is_full = before / per_share > ranges.len() as u64 && ranges.len() + 1 < shares;
        if is_full || at + 1 == sizes.len() {
            ranges.push(begin..at + 1);
            begin = at + 1;
        }
    }
    ranges
}

/// Checks the segments in a range, one after the other.
fn check_share<H: Hearer>(
    disk: &dyn Disk,
    dir: &Path,
    headers: &[SegmentHeader],
    range: Range<usize>,
    mut hearer: H,
) -> Result<Share<H>> {
    let (mut sealed, mut last) = (Vec::with_capacity(range.len()), None);
    let successors = headers.iter().skip(1).map(Some).chain([None]);
    for (header, successor) in headers.iter().zip(successors).skip(range.start).take(range.len()) {
        let path = dir.join(segment_name(header.number));
        let file = disk.open(&path).map_err(|error| cannot("open", &path, error))?;
        let mut scan = Scan::over(file, path, header)?;
        let mut hear = |frame: &SoundFrame<'_>| hearer.hear(frame);
        match successor {
            Some(successor) => {
                scan.sealed(&successor.predecessor, &mut hear)?;
                sealed.push(Segment::new(*header, scan.path, scan.found.end, scan.found.last));
            }
            None => {
                let torn_bytes = scan.last_segment(&mut hear)?;
                last = Some((scan, torn_bytes));
            }
        }
    }
    Ok(Share { sealed, last, hearer })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_taken_where_there_is_enough_for_it_and_a_processor() {
        for worth in [0, 1] {
            assert_eq!(threads_for(worth, || panic!("nobody asks")), 1);
        }
        for (worth, processors, threads) in [(2, 64, 2), (1_000, 64, 8), (1_000, 3, 3), (u64::MAX, 1, 1)] {
            assert_eq!(threads_for(worth, || processors), threads);
        }
    }

    #[test]
    fn shares_are_whole_and_about_alike() {
        let sizes: Vec<u64> = (0..100).map(|at| 1_000 + at % 7 * 100).collect();
        let bytes = sizes.iter().sum();
        for shares in [1, 2, 8, 32, 100, 1_000] {
            let ranges = divide(&sizes, bytes, shares);
            assert!(ranges.len() == shares.min(ranges.len()) && ranges.len() >= shares.min(100) * 9 / 10);
            let together: Vec<usize> = ranges.iter().cloned().flatten().collect();
            assert_eq!(together, (0..100).collect::<Vec<_>>());
            for range in &ranges {
                let share: u64 = sizes[range.clone()].iter().sum();
                assert!(share <= bytes / shares as u64 + 2 * 1_600, "{share} of {bytes} in {shares}");
            }
        }
        // Whatever headers say.
        assert_eq!(divide(&[u64::MAX, u64::MAX, 0], u64::MAX, 2).len(), 2);
        assert_eq!(divide(&[0, 0], 0, 1).first(), Some(&(0..2)));
        assert!(divide(&[], 0, 1).is_empty());
    }
}
