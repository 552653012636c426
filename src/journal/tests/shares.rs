//! Segments that are checked beside each other tell what they would tell one after the other.
//!
//! In the crate's tests there are three threads for that, however small the journal is.

use std::io;

use super::damage::image_of;
use super::*;
use crate::disk::contract::{Disk, DiskFile, DiskLock};
use crate::journal::frame::SoundFrame;
use crate::journal::shares::Hearer;

/// Twenty segments of six frames each, closed cleanly.
fn long_journal() -> MemDisk {
    let disk = MemDisk::default();
    let mut opened = open(&disk, &growing()).unwrap();
    (1..=120).for_each(|seq| drop(append(&mut opened.writer, &[large(seq, 10_000)])));
    opened.writer.close().unwrap();
    assert_eq!(disk.names().iter().filter(|name| name.ends_with(".seg")).count(), 20);
    disk
}

/// Notes where frames are, and how much is told to come before; may panic at one.
#[derive(Clone, Default)]
struct Notes {
    before: u64,
    heard: Vec<Location>,
    panics_at: Option<Location>,
}

impl Hearer for Notes {
    fn hear(&mut self, frame: &SoundFrame<'_>) -> Result<()> {
        assert_ne!(Some(frame.location), self.panics_at, "as it was told to");
        self.heard.push(frame.location);
        Ok(())
    }
}

fn open_heard(disk: Arc<dyn Disk>, panics_at: Option<Location>) -> Result<Vec<Notes>> {
    let notes = |before| Notes { before, panics_at, ..Notes::default() };
    Ok(Log::open_heard(disk, Path::new("journal"), &growing(), notes)?.1)
}

fn locations(disk: &MemDisk) -> Vec<Location> {
    let opened = open(disk, &growing()).unwrap();
    let mut reader = opened.log.read_after(Seq::ZERO);
    std::iter::from_fn(|| reader.next_frame().unwrap()).map(|frame| frame.location).collect()
}

/// Makes a byte of a frame's body another one.
fn spoil(files: &mut std::collections::BTreeMap<String, Vec<u8>>, at: Location) {
    files.get_mut(&segment_name(at.segment)).unwrap()[at.offset as usize + 100] ^= 1;
}

#[test]
fn shares_together_hear_of_every_frame_in_order() {
    let disk = long_journal();
    let expected = locations(&disk);
    let shares = open_heard(Arc::new(disk), None).unwrap();
    assert!(shares.len() > 3, "{} shares, fewer than one for each thread", shares.len());
    let heard: Vec<Location> = shares.iter().flat_map(|notes| &notes.heard).copied().collect();
    assert_eq!(heard, expected);
    for pair in shares.windows(2) {
        let (one, next) = (&pair[0], &pair[1]);
        assert!(one.heard.last().unwrap().segment < next.heard[0].segment, "a segment is in one share");
        let offsets = one.heard.chunk_by(|a, b| a.segment == b.segment).map(|of_one| of_one[5].offset);
        assert!(next.before >= one.before + offsets.sum::<u64>(), "places go on behind the share before");
    }
}

/// Wherever two places are damaged, and whichever thread is the first to find one, the error is that of the first.
#[test]
fn of_two_damaged_places_the_first_is_told_and_nothing_changes() {
    let disk = long_journal();
    let (files, frames) = (disk.image(), locations(&disk));
    for first in (0..120).step_by(7) {
        for second in (first + 1..120).step_by(17) {
            let mut spoilt = files.clone();
            spoil(&mut spoilt, frames[first]);
            let alone = error_of(open(&image_of(&spoilt), &growing())).to_string();
            let at =
                format!("{}: damaged at byte {}", segment_name(frames[first].segment), frames[first].offset);
            assert!(alone.contains(&at), "{alone}");
            spoil(&mut spoilt, frames[second]);
            let disk = image_of(&spoilt);
            assert_eq!(error_of(open(&disk, &growing())).to_string(), alone, "{first} and {second}");
            assert_eq!(disk.image(), spoilt);
        }
    }
}

/// The end of the last segment is to be written again, once everything is sound: an earlier segment is not.
#[test]
fn damage_keeps_the_end_of_the_last_segment_from_being_written_again() {
    let disk = MemDisk::default();
    let mut opened = open(&disk, &growing()).unwrap();
    let written: Vec<_> =
        (1..=40).flat_map(|seq| append(&mut opened.writer, &[large(seq, 10_000)])).collect();
    // Not closed, so no promise covers the last frames.
    let mut files = disk.crash(Keep::Everything).image();
    let sound = image_of(&files);
    open(&sound, &growing()).unwrap();
    assert!(
        sound.log().iter().any(|operation| operation.starts_with("write")),
        "there is something to write"
    );
    spoil(&mut files, written[0]);
    let disk = image_of(&files);
    open(&disk, &growing()).unwrap_err();
    let changes: Vec<String> =
        disk.log().into_iter().filter(|operation| !operation.starts_with("sync_dir")).collect();
    assert!(changes.is_empty(), "{changes:?}");
}

#[test]
fn what_cannot_be_read_hides_no_damage_before_it_and_is_told_before_damage_behind_it() {
    let disk = long_journal();
    let (files, frames) = (disk.image(), locations(&disk));
    for (damaged, unreadable) in [(3, 50), (3, 119), (40, 60), (50, 3), (119, 3), (60, 40)] {
        let mut spoilt = files.clone();
        spoil(&mut spoilt, frames[damaged]);
        let name = segment_name(frames[unreadable].segment);
        let disk = ReadsFail { disk: image_of(&spoilt), name: name.clone() };
        let error = error_of(open_heard(Arc::new(disk), None));
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
        let error = error_of(open_heard(Arc::new(disk.clone()), Some(frames[at])));
        assert_eq!(error.kind(), ErrorKind::Poisoned);
        assert!(format!("{error:#}").contains("as it was told to"), "{error}");
        let mut spoilt = disk.image();
        spoil(&mut spoilt, frames[20]);
        let error = error_of(open_heard(Arc::new(image_of(&spoilt)), Some(frames[at])));
        assert_eq!(error.kind() == ErrorKind::Damaged, at > 20, "the first in the journal's order: {error}");
    }
}

/// What lies behind a segment's header cannot be read.
struct ReadsFail {
    disk: MemDisk,
    name: String,
}

struct UnreadableFile(Box<dyn DiskFile>);

impl Disk for ReadsFail {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.disk.create_dir_all(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.disk.list(path)
    }

    fn create_new(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.disk.create_new(path)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = self.disk.open(path)?;
        Ok(if path.ends_with(&self.name) { Box::new(UnreadableFile(file)) } else { file })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.sync_dir(path)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn DiskLock>> {
        self.disk.lock(path)
    }
}

impl DiskFile for UnreadableFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        if offset > 0 { Err(io::Error::other("the medium is bad")) } else { self.0.read_at(buf, offset) }
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(buf, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
}
