//! A survey finds what an opening finds and changes nothing; a salvage keeps sound frames and reports the rest.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::damage::{closed_journal, give_another_sound_body, image_of};
use super::*;
use crate::disk::contract::{Disk, DiskFile};
use crate::journal::salvage::{SalvageOptions, SalvageStep, Salvaged, salvage};
use crate::journal::survey::{Finding, Survey};

/// The findings of a survey, in short.
#[derive(Debug, Default, PartialEq)]
struct SurveyResult {
    records: Vec<u64>,
    damages: Vec<(String, u64)>,
    holes: Vec<(u64, Option<u64>)>,
    torn: Option<u64>,
}

impl SurveyResult {
    fn add(&mut self, finding: &Finding) {
        match finding {
            Finding::Frame(frame) => {
                for (seq, content) in (frame.first.0..).zip(frame.records()) {
                    assert_eq!(content, record(seq), "record {seq}");
                    self.records.push(seq);
                }
            }
            Finding::Damage(damage) => {
                let sentence = format!("{:#}", damage.error);
                let name = damage.path.file_name().unwrap().to_str().unwrap();
                assert!(sentence.contains(name) && sentence.contains(&format!("byte {}", damage.offset)));
                self.damages.push((name.to_owned(), damage.offset));
            }
            Finding::Hole(hole) => self.holes.push((hole.after.0, hole.until.map(|until| until.0))),
            Finding::Tail(tail) => self.torn = Some(tail.torn_bytes),
        }
    }
}

fn survey(disk: &SimDisk) -> Result<SurveyResult> {
    let mut survey = Survey::open(Arc::new(disk.clone()), Path::new("journal"))?;
    let mut seen = SurveyResult::default();
    while let Some(finding) = survey.next_finding()? {
        seen.add(&finding);
    }
    let (done, total) = survey.progress();
    assert!(done <= total);
    Ok(seen)
}

/// Salvages to another directory. Returns a disk that has the new journal alone.
fn salvaged(disk: &SimDisk, options: &SalvageOptions) -> (SimDisk, Salvaged, SurveyResult) {
    let before = disk.image();
    let options = &SalvageOptions { journal: growing(), ..options.clone() };
    let mut seen = SurveyResult::default();
    let mut left_out = SurveyResult::default();
    let mut report = |step: &SalvageStep<'_>| match step.finding {
        Finding::Frame(_) if !step.written => left_out.add(step.finding),
        finding => seen.add(finding),
    };
    let both: Arc<dyn Disk> = Arc::new(disk.clone());
    let done = salvage(&both, Path::new(DIR), Path::new("to"), options, &mut |_| true, &mut report);
    assert_eq!(disk.image(), before, "the damaged journal was changed");
    let to = image_of(&disk.files(Path::new("to")));
    // The next salvage of this disk needs an empty directory.
    disk.files(Path::new("to")).keys().for_each(|name| disk.delete_file(&Path::new("to").join(name)));
    (to, done.unwrap(), seen)
}

fn flipped(files: &Files, name: &str, at: usize) -> SimDisk {
    let disk = image_of(files);
    let mut content = files[name].clone();
    content[at] ^= 0x40;
    disk.put(name, content);
    disk
}

#[test]
fn a_survey_says_of_every_flipped_byte_what_an_opening_says() {
    let files = closed_journal().image();
    let untouched = survey(&image_of(&files)).unwrap();
    assert_eq!(untouched.records, (1..=12).collect::<Vec<u64>>());
    assert_eq!((untouched.damages.len(), untouched.holes.len(), untouched.torn), (0, 0, Some(0)));
    let (mut bytes, mut damaged) = (0, 0);
    for name in files.keys() {
        for at in 0..files[name].len() {
            bytes += 1;
            let disk = flipped(&files, name, at);
            let seen = survey(&disk);
            assert_eq!(disk.image(), flipped(&files, name, at).image(), "the survey changed something");
            match (open(&disk, &growing()), seen) {
                (Ok(opened), Ok(seen)) => {
                    assert_eq!(seen.damages, [], "{name} at {at}");
                    assert_eq!(seen.records.last(), Some(&assert_dense(&opened)), "{name} at {at}");
                }
                (Err(error), Ok(seen)) => {
                    damaged += 1;
                    let (file, offset) = seen.damages.first().expect("an opening fails, so there is damage");
                    let same = format!("{error:#}").contains(&format!("{file}: damaged at byte {offset}"));
                    // A foreign segment is told by its neighbour in an opening, by the majority in a survey.
                    assert!(same || format!("{error:#}").contains("belongs to"), "{name} at {at}: {error}");
                    // Nothing is lost without being told.
                    for seq in (1..=12).filter(|seq| !seen.records.contains(seq)) {
                        let told = |(after, until): &(u64, Option<u64>)| {
                            *after < seq && until.is_none_or(|until| seq <= until)
                        };
                        assert!(seen.holes.iter().any(told), "{name} at {at}: {seq} is gone: {seen:?}");
                    }
                }
                (Err(error), Err(other)) => assert_eq!(error.kind(), other.kind(), "{name} at {at}"),
                (Ok(_), Err(error)) => panic!("{name} at {at}: only the survey fails: {error}"),
            }
        }
    }
    println!("{bytes} flipped bytes, {damaged} of them damage to both");
    assert!(damaged > 1000);
}

#[test]
fn records_behind_damage_are_found_and_the_hole_is_exact() {
    let disk = SimDisk::new();
    let mut opened = open(&disk, &filled()).unwrap();
    let mut places = Vec::new();
    for first in [1, 3, 5, 7] {
        places.push(append(&mut opened.writer, &[frame(first, 2)])[0].offset as usize);
        opened.writer.sync().unwrap();
    }
    drop(opened);
    let name = segment_name(1);
    // In the header, and in the body.
    for at in [places[1] + 20, places[1] + 60] {
        let seen = survey(&flipped(&disk.image(), &name, at)).unwrap();
        assert_eq!(seen.damages, [(name.clone(), places[1] as u64)]);
        assert_eq!((seen.records, seen.holes), (vec![1, 2, 5, 6, 7, 8], vec![(2, Some(4))]));
    }
    // The last synced frame, which nothing promises yet, is a torn tail to everybody.
    let seen = survey(&flipped(&disk.image(), &name, places[3] + 60)).unwrap();
    assert_eq!((seen.damages, seen.holes), (vec![], vec![]));
    assert!(seen.torn > Some(0));
}

/// A sealed segment that lost its end, in the middle of a frame's body, was reported as a file that cannot be read,
/// without an offset: the body's length was compared with where the segment had ended, not with where the file ends.
#[test]
fn a_sealed_segment_cut_within_a_body_is_damage_with_file_and_offset() {
    let files = closed_journal().image();
    let name = segment_name(1);
    for short in 1..files[&name].len() - 4096 {
        let disk = image_of(&files);
        let mut content = files[&name].clone();
        content.truncate(content.len() - short);
        disk.put(&name, content);
        let error = error_of(open(&disk, &growing()));
        assert_eq!(error.kind(), ErrorKind::Damaged, "{short} bytes short: {error}");
        assert!(format!("{error:#}").contains(&format!("{name}: damaged at byte")), "{error}");
        let seen = survey(&disk).unwrap();
        assert_eq!(seen.holes.len(), 1, "{short} bytes short: {seen:?}");
        assert_eq!(seen.records.len() as u64 + seen.holes[0].1.unwrap() - seen.holes[0].0, 12);
    }
}

#[test]
fn a_missing_segment_and_a_lost_end_are_holes() {
    let files = closed_journal().image();
    let missing = image_of(&files);
    missing.delete(&segment_name(2));
    let seen = survey(&missing).unwrap();
    assert_eq!((seen.damages, seen.holes), (vec![(segment_name(2), 0)], vec![(6, Some(9))]));
    assert_eq!(seen.records, [1, 2, 3, 4, 5, 6, 10, 11, 12]);

    let headless = flipped(&files, &segment_name(3), 100);
    let seen = survey(&headless).unwrap();
    assert_eq!((seen.holes, seen.torn), (vec![(9, None)], None));

    let first = flipped(&files, &segment_name(1), 100);
    let seen = survey(&first).unwrap();
    assert_eq!((seen.damages, seen.holes), (vec![(segment_name(1), 0)], vec![(0, Some(6))]));
    assert_eq!(seen.records, (7..=12).collect::<Vec<u64>>());
}

/// Beside a writer that appends, syncs, rotates and trims, a survey never sees damage or a hole, and what it sees is
/// dense.
#[test]
fn a_journal_that_is_being_written_and_trimmed_is_never_damaged() {
    for options in [growing(), filled()] {
        let disk = SimDisk::new();
        let opened = open(&disk, &options).unwrap();
        let (log, mut writer) = (opened.log, opened.writer);
        let mut looks = 0_u64;
        let mut records = 0;
        let (looked, has_looked) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let writing = scope.spawn(move || {
                for first in 1..=3000 {
                    // On a busy machine everything might be written before the first look.
                    if first == 1500 {
                        has_looked.recv().unwrap();
                    }
                    append(&mut writer, &[large(first, 300 + (first as usize * 37) % 900)]);
                    writer.sync().unwrap();
                    if first % 90 == 0 {
                        log.trim(Seq(first - 60)).unwrap();
                    }
                }
            });
            let mut ended = false;
            while !ended {
                ended = writing.is_finished();
                let mut survey = Survey::open(Arc::new(disk.clone()), Path::new("journal")).unwrap();
                let mut last = None;
                while let Some(finding) = survey.next_finding().unwrap() {
                    match finding {
                        Finding::Frame(frame) => {
                            assert!(last.is_none_or(|last| last < frame.first), "{last:?} {frame:?}");
                            last = Some(frame.last());
                            records += 1;
                        }
                        Finding::Tail(_) => {}
                        other => panic!("after {looks} looks: {other:?}"),
                    }
                }
                looks += 1;
                if looks == 1 {
                    looked.send(()).unwrap();
                }
                assert!(!ended || last == Some(Seq(3000)));
            }
        });
        println!("{looks} looks, {records} records seen");
        assert!(looks > 1);
    }
}

#[test]
fn a_salvage_stops_at_the_first_hole_unless_it_is_told_otherwise_or_the_store_has_it() {
    let files = closed_journal().image();
    let broken = flipped(&files, &segment_name(1), 4096 + 600);
    let found = survey(&broken).unwrap();
    assert_eq!(found.holes.len(), 1, "{found:?}");
    let (after, until) = (found.holes[0].0, found.holes[0].1.unwrap());
    assert!(after >= 1 && until < 12, "{found:?}");

    let (to, done, seen) = salvaged(&broken, &SalvageOptions::default());
    assert_eq!((done.last, done.sound, done.records), (Seq(after), false, after));
    assert_eq!((&seen.damages, &seen.holes), (&found.damages, &found.holes));
    let mut opened = open(&to, &growing()).unwrap();
    assert_eq!((opened.id, assert_dense(&opened)), (done.id, after));
    append(&mut opened.writer, &[frame(after + 1, 1)]);

    for options in [
        SalvageOptions { past_holes: true, ..SalvageOptions::default() },
        SalvageOptions { watermark: Seq(until), ..SalvageOptions::default() },
    ] {
        let (to, done, _) = salvaged(&broken, &options);
        assert_eq!(done.last, Seq(12));
        let opened = open(&to, &growing()).unwrap();
        let numbers: Vec<u64> = read_all(&opened.log, 0).unwrap().into_iter().map(|(seq, _)| seq).collect();
        assert_eq!(numbers, (1..=after).chain(until + 1..=12).collect::<Vec<u64>>());
        assert_eq!(opened.id, open(&image_of(&files), &growing()).unwrap().id, "it is the same journal");
    }
    let short = SalvageOptions { watermark: Seq(until - 1), ..SalvageOptions::default() };
    assert_eq!(salvaged(&broken, &short).1.last, Seq(after), "a part of the hole is a loss");
}

#[test]
fn a_salvage_of_any_damage_opens_and_is_a_prefix_and_of_none_is_everything() {
    let files = closed_journal().image();
    let (to, done, _) = salvaged(&image_of(&files), &SalvageOptions::default());
    assert_eq!((done.last, done.records, done.sound), (Seq(12), 12, true));
    assert_eq!(assert_dense(&open(&to, &growing()).unwrap()), 12);
    let mut tried = 0;
    for name in files.keys() {
        for at in (12..files[name].len()).step_by(13) {
            let (to, done, seen) = salvaged(&flipped(&files, name, at), &SalvageOptions::default());
            let last = assert_dense(&open(&to, &growing()).unwrap());
            assert_eq!(last, done.last.0);
            assert_eq!(last < 12, !seen.holes.is_empty(), "{name} at {at}: what is missing was told");
            tried += 1;
        }
    }
    println!("{tried} damaged journals salvaged");

    // The first segment is lost, but the store has what it held: nothing is missing.
    let first = flipped(&files, &segment_name(1), 100);
    let options = SalvageOptions { watermark: Seq(6), ..SalvageOptions::default() };
    let (to, done, _) = salvaged(&first, &options);
    assert_eq!((done.first_prev, done.last, done.records), (Seq(6), Seq(12), 6));
    assert_eq!(open(&to, &growing()).unwrap().first_prev, Seq(6));
    // Without that knowledge nothing can be fed to the store in its order.
    assert_eq!(salvaged(&first, &SalvageOptions::default()).1.records, 0);
}

#[test]
fn a_salvage_refuses_a_directory_that_holds_anything_and_a_journal_that_is_open() {
    let disk = closed_journal();
    let to = Path::new("to");
    disk.put_file(&to.join("something"), vec![1]);
    let both: Arc<dyn Disk> = Arc::new(disk.clone());
    let run = || {
        let options = SalvageOptions { journal: growing(), ..SalvageOptions::default() };
        salvage(&both, Path::new(DIR), to, &options, &mut |_| true, &mut |_| {})
    };
    assert_eq!(error_of(run()).kind(), ErrorKind::InvalidOption);
    assert_eq!(disk.files(to).into_keys().collect::<Vec<_>>(), ["something"]);
    // The file by which a salvage knows that a journal can be open: a simulated lock makes none.
    disk.put("lock", Vec::new());
    disk.delete_file(&to.join("something"));
    let opened = open(&disk, &growing()).unwrap();
    assert_eq!(error_of(run()).kind(), ErrorKind::Locked);
    drop(opened);
    assert!(run().is_ok());
}

/// A lost write that left an older, sound frame in place: the successor's chain tells, and none of it is handed out.
#[test]
fn a_segment_that_is_not_the_one_its_successor_recorded_is_a_hole() {
    let disk = closed_journal();
    let name = segment_name(1);
    give_another_sound_body(&disk, &name);
    let seen = survey(&disk).unwrap();
    assert_eq!((seen.damages, seen.holes), (vec![(name, 4096)], vec![(0, Some(6))]));
    assert_eq!(seen.records, (7..=12).collect::<Vec<u64>>());
}

/// A disk that changes under whoever looks: until so many reads, or listings, have passed it is as it was before.
struct ChangingDisk {
    before: SimDisk,
    after: SimDisk,
    /// The files that are read after the change through handles from before it, whose names are gone.
    recycled: SimDisk,
    left: Arc<AtomicUsize>,
}

struct ChangingFile {
    before: Option<Box<dyn DiskFile>>,
    after: Option<Box<dyn DiskFile>>,
    left: Arc<AtomicUsize>,
}

/// True while the change is still to come.
fn is_before(left: &AtomicUsize) -> bool {
    left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
}

impl ChangingFile {
    fn now(&self) -> &dyn DiskFile {
        let (first, other) = match is_before(&self.left) {
            true => (&self.before, &self.after),
            false => (&self.after, &self.before),
        };
        &**first.as_ref().or(other.as_ref()).unwrap()
    }
}

impl DiskFile for ChangingFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.now().read_at(buf, offset)
    }
    fn write_all_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        panic!("a survey writes")
    }
    fn sync_data(&self) -> io::Result<()> {
        panic!("a survey syncs")
    }
    fn len(&self) -> io::Result<u64> {
        self.now().len()
    }
}

impl Disk for ChangingDisk {
    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        if is_before(&self.left) { self.before.list(path) } else { self.after.list(path) }
    }
    fn open_read_only(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let (before, after) = (self.before.open(path), self.after.open(path));
        let gone = if is_before(&self.left) { before.is_err() } else { after.is_err() };
        if gone {
            return Err(io::ErrorKind::NotFound.into());
        }
        let after = after.or_else(|_| self.recycled.open(path));
        Ok(Box::new(ChangingFile { before: before.ok(), after: after.ok(), left: Arc::clone(&self.left) }))
    }
    fn open(&self, _: &Path) -> io::Result<Box<dyn DiskFile>> {
        panic!("a survey opens for writing")
    }
    fn create_dir_all(&self, _: &Path) -> io::Result<()> {
        panic!("a survey makes a directory")
    }
    fn create_new(&self, _: &Path) -> io::Result<Box<dyn DiskFile>> {
        panic!("a survey makes a file")
    }
    fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
        panic!("a survey renames")
    }
    fn remove(&self, _: &Path) -> io::Result<()> {
        panic!("a survey removes")
    }
    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        panic!("a survey syncs a directory")
    }
    fn lock(&self, _: &Path) -> io::Result<Box<dyn Send + Sync>> {
        panic!("a survey locks")
    }
}

/// Surveys while `before` becomes `after`, at every call of the disk in turn: never is there damage or a hole.
fn survey_every_change(before: &SimDisk, after: &SimDisk, recycled: &SimDisk) -> Vec<Vec<u64>> {
    let mut all = Vec::new();
    for calls in 0..40 {
        let left = Arc::new(AtomicUsize::new(calls));
        let (before, after, recycled) = (before.clone(), after.clone(), recycled.clone());
        let disk = ChangingDisk { before, after, recycled, left };
        let mut survey = Survey::open(Arc::new(disk), Path::new("journal")).unwrap();
        let mut seen = SurveyResult::default();
        while let Some(finding) = survey.next_finding().unwrap() {
            seen.add(&finding);
        }
        let in_order = seen.records.windows(2).all(|pair| pair[0] < pair[1]);
        assert!(
            in_order && seen.damages.is_empty() && seen.holes.is_empty(),
            "after {calls} calls: {seen:?}"
        );
        all.push(seen.records);
    }
    all
}

/// Half a frame was read, then the writer finished it, synced, and wrote another that says so: that is no damage.
#[test]
fn what_a_writer_finishes_between_two_looks_is_not_damaged() {
    let disk = SimDisk::new();
    let mut opened = open(&disk, &filled()).unwrap();
    append(&mut opened.writer, &[frame(1, 1)]);
    let at = append(&mut opened.writer, &[frame(2, 1)])[0].offset as usize;
    opened.writer.sync().unwrap();
    append(&mut opened.writer, &[frame(3, 1)]);
    let before = image_of(&disk.image());
    let mut content = before.content(&segment_name(1));
    content[at + 58..].fill(0);
    before.put(&segment_name(1), content);
    let all = survey_every_change(&before, &disk, &SimDisk::new());
    assert!(all.contains(&vec![1]) && all.contains(&vec![1, 2, 3]), "{all:?}");
}

/// Segments are trimmed between the listing and the reading, recycled, and listed with a gap.
#[test]
fn what_is_trimmed_between_two_looks_is_not_missing() {
    let disk = closed_journal();
    for trimmed in 1..=2 {
        let after = image_of(&disk.image());
        (1..=trimmed).for_each(|number| after.delete(&segment_name(number)));
        // Their files are the third segment by now.
        let recycled = SimDisk::new();
        (1..=trimmed).for_each(|number| {
            let mut content = disk.content(&segment_name(3));
            content.resize(disk.content(&segment_name(number)).len(), 0);
            recycled.put(&segment_name(number), content);
        });
        for recycled in [&SimDisk::new(), &recycled] {
            let all = survey_every_change(&disk, &after, recycled);
            assert!(all.iter().all(|records| records.ends_with(&[10, 11, 12])), "{all:?}");
        }
    }
    // A listing that missed the second segment, because it was made, with the third, while the names were read.
    let gap = image_of(&disk.image());
    gap.delete(&segment_name(2));
    let after = image_of(&disk.image());
    let left = Arc::new(AtomicUsize::new(1));
    let changing = ChangingDisk { before: gap, after, recycled: SimDisk::new(), left };
    let mut survey = Survey::open(Arc::new(changing), Path::new("journal")).unwrap();
    let mut seen = SurveyResult::default();
    while let Some(finding) = survey.next_finding().unwrap() {
        seen.add(&finding);
    }
    assert_eq!((seen.records.len(), seen.damages, seen.holes), (12, vec![], vec![]));
    // After the first segment has been begun, it and the second go: what was begun is read, the rest follows.
    let mut survey = Survey::open(Arc::new(disk.clone()), Path::new("journal")).unwrap();
    let mut seen = SurveyResult::default();
    seen.add(&survey.next_finding().unwrap().unwrap());
    (1..=2).for_each(|number| disk.delete(&segment_name(number)));
    while let Some(finding) = survey.next_finding().unwrap() {
        seen.add(&finding);
    }
    assert_eq!(seen.records, [1, 2, 3, 4, 5, 6, 10, 11, 12]);
    assert_eq!((seen.damages, seen.holes), (vec![], vec![]));
}

#[test]
fn a_damaged_end_of_which_nothing_is_left_is_a_hole_without_an_end() {
    let disk = SimDisk::new();
    let mut opened = open(&disk, &filled()).unwrap();
    append(&mut opened.writer, &[frame(1, 1), frame(2, 1)]);
    opened.writer.sync().unwrap();
    let at = append(&mut opened.writer, &[frame(3, 1)])[0].offset as usize;
    let mut content = disk.content(&segment_name(1));
    // The last frame's header promises the second, but its own body is gone too.
    content[at - 8] ^= 1;
    content[at + 60] ^= 1;
    let second = 4096 + frame(1, 1).body.len_on_disk() as usize;
    content[second + 60] ^= 1;
    disk.put(&segment_name(1), content);
    let seen = survey(&disk).unwrap();
    assert_eq!((seen.records, seen.damages.len(), seen.holes), (vec![1], 1, vec![(1, None)]));
}
