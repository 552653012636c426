//! Segments that are checked in parallel give the result of checking them one after the other.
//!
//! The tests' options take three threads, however small the journal is.

use super::damage::image_of;
use super::*;
use crate::journal::frame::SoundFrame;
use crate::journal::scan::FrameVisitor;

/// Twenty segments of six frames each, closed cleanly.
fn long_journal() -> SimDisk {
    let disk = SimDisk::new();
    let mut opened = open(&disk, &growing()).unwrap();
    (1..=120).for_each(|seq| drop(append(&mut opened.writer, &[large(seq, 10_000)])));
    opened.writer.close().unwrap();
    assert_eq!(disk.names().iter().filter(|name| name.ends_with(".seg")).count(), 20);
    disk
}

/// Notes the visited frames and the bytes before its part of the journal; may panic at one frame.
#[derive(Clone, Default)]
struct Notes {
    before: u64,
    visited: Vec<Location>,
    panics_at: Option<Location>,
}

impl FrameVisitor for Notes {
    fn visit(&mut self, frame: &SoundFrame<'_>) -> Result<()> {
        assert_ne!(Some(frame.location), self.panics_at, "a planned panic");
        self.visited.push(frame.location);
        Ok(())
    }
}

fn open_visiting(disk: &SimDisk, panics_at: Option<Location>) -> Result<Vec<Notes>> {
    open_checked(disk, &growing(), &CheckOptions::eager(), panics_at)
}

fn open_checked(
    disk: &SimDisk,
    options: &JournalOptions,
    check: &CheckOptions,
    panics_at: Option<Location>,
) -> Result<Vec<Notes>> {
    let notes = |before| Notes { before, panics_at, ..Notes::default() };
    Ok(recovery::open_visiting(
        Arc::new(disk.clone()),
        Path::new(DIR),
        options,
        crate::ids::TenureId::default(),
        check,
        notes,
    )?
    .1)
}

fn locations(disk: &SimDisk) -> Vec<Location> {
    let opened = open(disk, &growing()).unwrap();
    let mut reader = opened.log.read_after(Seq::ZERO);
    std::iter::from_fn(|| reader.next_frame().unwrap()).map(|frame| frame.location).collect()
}

/// Makes a byte of a frame's body another one.
fn spoil(files: &mut Files, at: Location) {
    files.get_mut(&segment_name(at.segment)).unwrap()[at.offset as usize + 100] ^= 1;
}

#[test]
fn the_parts_together_visit_every_frame_in_order() {
    let disk = long_journal();
    let expected = locations(&disk);
    let parts = open_visiting(&disk, None).unwrap();
    assert!(parts.len() > 3, "{} parts, fewer than one for each thread", parts.len());
    let visited: Vec<Location> = parts.iter().flat_map(|notes| &notes.visited).copied().collect();
    assert_eq!(visited, expected);
    for pair in parts.windows(2) {
        let (one, next) = (&pair[0], &pair[1]);
        assert!(one.visited.last().unwrap().segment < next.visited[0].segment, "a segment is in one part");
        let offsets = one.visited.chunk_by(|a, b| a.segment == b.segment).map(|of_one| of_one[5].offset);
        assert!(next.before >= one.before + offsets.sum::<u64>(), "offsets go on behind the part before");
    }
}

/// Wherever two places are damaged, and whichever thread is the first to find one, the error is that of the first.
#[test]
fn of_two_damaged_places_the_first_is_reported_and_nothing_changes() {
    let disk = long_journal();
    let (files, frames) = (disk.image(), locations(&disk));
    for first in (0..120).step_by(7) {
        for second in (first + 1..120).step_by(17) {
            let mut spoilt = files.clone();
            spoil(&mut spoilt, frames[first]);
            let alone = format!("{:#}", error_of(open(&image_of(&spoilt), &growing())));
            let at =
                format!("{}: damaged at byte {}", segment_name(frames[first].segment), frames[first].offset);
            assert!(alone.contains(&at), "{alone}");
            spoil(&mut spoilt, frames[second]);
            let disk = image_of(&spoilt);
            assert_eq!(format!("{:#}", error_of(open(&disk, &growing()))), alone, "{first} and {second}");
            assert_eq!(disk.image(), spoilt);
        }
    }
}

/// The end of the last segment is to be written again, once everything is sound: an earlier segment is not.
#[test]
fn damage_keeps_the_end_of_the_last_segment_from_being_written_again() {
    let disk = SimDisk::new();
    let mut opened = open(&disk, &growing()).unwrap();
    let written: Vec<_> =
        (1..=40).flat_map(|seq| append(&mut opened.writer, &[large(seq, 10_000)])).collect();
    // Not closed, so no promise covers the last frames.
    let mut files = disk.crash(CrashPolicy::Everything).image();
    let sound = image_of(&files);
    open(&sound, &growing()).unwrap();
    assert!(sound.count(DiskOp::Write) > 0, "there is something to write");
    spoil(&mut files, written[0]);
    let disk = image_of(&files);
    let changes = disk.record_changes();
    open(&disk, &growing()).unwrap_err();
    let mut changes = std::mem::take(&mut *changes.lock().unwrap());
    // Both only make durable what is there.
    changes.retain(|operation| !operation.starts_with("SyncDir") && !operation.starts_with("CreateDir"));
    assert!(changes.is_empty(), "{changes:?}");
}

/// The values that users get: a journal that is worth two threads, and one that is not.
#[test]
fn with_the_shipped_sizes_a_large_journal_is_checked_in_parts_and_a_small_one_is_not() {
    let shipped = CheckOptions { processors: || 2, ..CheckOptions::default() };
    assert_eq!(shipped.thread_bytes_min, 4 << 20);
    let options = JournalOptions { segment_bytes: 1 << 20, ..growing() };
    for (count, parallel) in [(5, false), (12, true)] {
        let disk = SimDisk::new();
        let mut opened = open(&disk, &options).unwrap();
        (1..=count).for_each(|seq| drop(append(&mut opened.writer, &[large(seq, 1_000_000)])));
        opened.writer.close().unwrap();
        drop(opened);
        let parts = open_checked(&disk, &options, &shipped, None).unwrap();
        assert_eq!(parts.len() > 1, parallel, "{} parts of {count} MB", parts.len());
        assert_eq!(parts.iter().map(|notes| notes.visited.len()).sum::<usize>(), count as usize);
    }
}

#[test]
fn an_unreadable_segment_hides_no_damage_before_it_and_is_reported_before_damage_behind_it() {
    let disk = long_journal();
    let (files, frames) = (disk.image(), locations(&disk));
    for (damaged, unreadable) in [(3, 50), (3, 119), (40, 60), (50, 3), (119, 3), (60, 40)] {
        let mut spoilt = files.clone();
        spoil(&mut spoilt, frames[damaged]);
        let name = segment_name(frames[unreadable].segment);
        let disk = image_of(&spoilt);
        // Its header, which is read first, can still be read.
        disk.plan(Fault::on(DiskOp::Read).named(&name).after(1).until_healed());
        let error = error_of(open_visiting(&disk, None));
        let (kind, place) = match damaged < unreadable {
            true => (ErrorKind::Damaged, segment_name(frames[damaged].segment)),
            false => (ErrorKind::Io, name),
        };
        assert_eq!(error.kind(), kind, "{error}");
        assert!(format!("{error:#}").contains(&place), "{error}");
    }
}

#[test]
fn a_panic_of_any_thread_is_an_error() {
    let disk = long_journal();
    let frames = locations(&disk);
    for at in [0, 30, 60, 119] {
        let error = error_of(open_visiting(&disk, Some(frames[at])));
        assert_eq!(error.kind(), ErrorKind::Poisoned);
        assert!(format!("{error:#}").contains("a planned panic"), "{error}");
        let mut spoilt = disk.image();
        spoil(&mut spoilt, frames[20]);
        let error = error_of(open_visiting(&image_of(&spoilt), Some(frames[at])));
        assert_eq!(error.kind() == ErrorKind::Damaged, at > 20, "the first in the journal's order: {error}");
    }
}
