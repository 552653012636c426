//! Everything that rot, a bad copy or a careless hand can do to a journal's files, tried place by place.
//!
//! The result is all records that may still be believed, or an error that names file and offset; never a panic, a
//! hang, an allocation from a damaged length, or records that are missing in silence. What may be cut in silence is a
//! torn tail: what lies in the last segment behind the damage, above every offset that an undamaged frame promises as
//! synced.
//!
//! The layout is read here as the manual of the journal has it, by code of its own. `FOREBAY_BUDGET` raises the time.

mod dead_letters;
mod forged;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use forebay::disk::{CrashPolicy, Disk, SimDisk};
use forebay::{Error, ErrorKind, JournalOptions};

use crate::ALLOCATOR;
use crate::journal_run::{self, Acknowledge, DIR, Draw, History, Run, Shared, layout};
use crate::support::budget::{budget, say};
use crate::support::child::alone;
use crate::support::watchdog::within;

/// An opening needs a window of a megabyte and little else. A damaged length that were believed would ask for up to
/// 4 GiB.
const OPENING_BYTES_MAX: usize = 96 << 20;

type Files = BTreeMap<String, Vec<u8>>;

fn files_of(disk: &SimDisk) -> Files {
    let dir = Path::new(DIR);
    let read = |name: String| {
        let file = disk.open(&dir.join(&name)).unwrap();
        let mut content = vec![0; file.len().unwrap() as usize];
        file.read_at(&mut content, 0).unwrap();
        (name, content)
    };
    disk.list(dir).unwrap().into_iter().map(read).collect()
}

fn disk_of(files: &Files) -> SimDisk {
    let (disk, dir) = (SimDisk::new(), Path::new(DIR));
    disk.create_dir_all(dir).unwrap();
    for (name, content) in files {
        let file = disk.create_new(&dir.join(name)).unwrap();
        file.write_all_at(content, 0).unwrap();
        file.sync_data().unwrap();
    }
    disk.sync_dir(dir).unwrap();
    disk
}

/// A frame as the manual has it.
struct Frame {
    bytes: Range<usize>,
    last: u64,
    promised: usize,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn frames_of(file: &[u8]) -> Vec<Frame> {
    let (mut at, mut frames, nonce) = (4096, Vec::new(), u64_at(file, 56));
    while at + 56 <= file.len() && u64_at(file, at + 32) == nonce {
        let end = at + 56 + (u32_at(file, at + 4) as usize).next_multiple_of(8);
        let last = u64_at(file, at + 16) + u64::from(u32_at(file, at + 12)) - 1;
        frames.push(Frame { bytes: at..end.min(file.len()), last, promised: u64_at(file, at + 40) as usize });
        at = end;
    }
    frames
}

/// A journal to do harm to.
struct Sample {
    what: &'static str,
    options: JournalOptions,
    files: Files,
    disk: SimDisk,
    history: History,
    frames: BTreeMap<String, Vec<Frame>>,
}

impl Sample {
    /// Three segments, because each opening begins one; with a clean end or without.
    fn make(what: &'static str, options: JournalOptions, clean: bool, trimmed: bool) -> Sample {
        let (disk, history) = (SimDisk::new(), Shared::default());
        if trimmed {
            // So that the files have been used before.
            for _ in 0..4 {
                let mut run = Run::open(&disk, &options, Acknowledge::Synced, &history, false).unwrap();
                run.append(&[vec![30_000]]).unwrap();
                run.trim(0).unwrap();
            }
        }
        for _ in 0..3 {
            let mut run = Run::open(&disk, &options, Acknowledge::Synced, &history, false).unwrap();
            run.append(&[vec![40], vec![30, 9]]).unwrap();
            run.append(&[vec![200]]).unwrap();
            run.append(&[vec![61], vec![0, 90, 10]]).unwrap();
            run.trim(if trimmed { 22 } else { 1000 }).unwrap();
            if clean {
                run.close().unwrap();
            }
        }
        let (files, history) = (files_of(&disk), history.now());
        let segments = files.iter().filter(|(name, _)| name.starts_with('0'));
        let frames: BTreeMap<_, _> = segments.map(|(name, file)| (name.clone(), frames_of(file))).collect();
        assert!(frames.len() >= 3 && frames.values().all(|frames| !frames.is_empty()), "{what}");
        let disk = disk_of(&files);
        let sample = Sample { what, options, files, disk, history, frames };
        assert_eq!(sample.open(&sample.disk.crash(CrashPolicy::ProcessKilled)).unwrap(), sample.all());
        sample
    }

    fn all(&self) -> u64 {
        self.history.issued.len() as u64
    }

    fn last_name(&self) -> &String {
        self.frames.last_key_value().unwrap().0
    }

    /// The last record, once everything was read and found as issued.
    fn open(&self, disk: &SimDisk) -> Result<u64, Error> {
        let before = files_of(disk);
        ALLOCATOR.reset_peak_usage();
        let start = ALLOCATOR.current_usage();
        let result = journal_run::open(disk, &self.options);
        let needed = ALLOCATOR.peak_usage().saturating_sub(start);
        assert!(needed < OPENING_BYTES_MAX, "{}: opening took {needed} bytes", self.what);
        match result {
            Ok(opened) => {
                // How much has to be there is the caller's to know; here, that it is a prefix of the very records.
                self.history
                    .unpromised()
                    .verify(&opened, true)
                    .unwrap_or_else(|what| panic!("{}: {what}", self.what));
                Ok(opened.last.get())
            }
            Err(error) => {
                assert_eq!(files_of(disk), before, "{}: changed, though it could not be opened", self.what);
                Err(error)
            }
        }
    }

    /// The last record that an opening must find, unless it fails, once these bytes of a file are damaged.
    fn least(&self, name: &str, harmed: &Range<usize>) -> u64 {
        if name != self.last_name() {
            return self.all();
        }
        let frames = &self.frames[name];
        let hit = |frame: &&Frame| frame.bytes.start < harmed.end && harmed.start < frame.bytes.end;
        let Some(first) = frames.iter().position(|frame| hit(&frame)) else { return self.all() };
        let intact = frames.iter().filter(|frame| !hit(frame));
        let promised = intact.map(|frame| frame.promised).max().unwrap_or(0);
        let below =
            frames.iter().enumerate().filter(|(at, frame)| *at < first || frame.bytes.end <= promised);
        let before =
            self.frames.values().rev().nth(1).and_then(|frames| frames.last()).map_or(0, |frame| frame.last);
        below.map(|(_, frame)| frame.last).max().unwrap_or(before)
    }

    /// Opens what was harmed; `names` are those that an error may name.
    fn check(&self, disk: &SimDisk, least: u64, names: &[&str], place: &str, tally: &mut Tally) {
        tally.tried += 1;
        match self.open(disk) {
            Ok(last) if last == self.all() => tally.whole += 1,
            Ok(last) => {
                assert!(last >= least, "{}, {place}: ends at {last} in silence, not at {least}", self.what);
                tally.cut += 1;
            }
            Err(error) => {
                tally.told += 1;
                let text = format!("{error:#}");
                let kind_is_ours = matches!(error.kind(), ErrorKind::Damaged | ErrorKind::UnknownFormat);
                let has_offset = error.kind() == ErrorKind::UnknownFormat
                    || text
                        .split("at byte ")
                        .nth(1)
                        .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
                let has_name = names.iter().any(|name| text.contains(name));
                assert!(kind_is_ours && has_offset && has_name, "{}, {place}: {error:?}", self.what);
            }
        }
    }

    /// A copy with other bytes in one place.
    fn with(&self, name: &str, at: usize, bytes: &[u8], tally: &mut Tally) {
        let old = &self.files[name][at..at + bytes.len()];
        let Some(first) = old.iter().zip(bytes).position(|(old, new)| old != new) else { return };
        let last = old.iter().zip(bytes).rposition(|(old, new)| old != new).unwrap();
        let disk = self.disk.crash(CrashPolicy::ProcessKilled);
        disk.overwrite(&Path::new(DIR).join(name), at as u64, bytes).unwrap();
        let harmed = at + first..at + last + 1;
        let least = self.least(name, &harmed);
        self.check(&disk, least, &[name], &format!("{name} {harmed:?}"), tally);
    }

    /// A copy whose files are these.
    fn with_files(&self, files: &Files, least: u64, names: &[&str], place: &str, tally: &mut Tally) {
        self.check(&disk_of(files), least, names, place, tally);
    }
}

#[derive(Default)]
struct Tally {
    tried: u64,
    whole: u64,
    cut: u64,
    told: u64,
}

impl Tally {
    fn print(&self, what: &str, began: Instant) {
        say(format_args!(
            "{what}: {} mutants: {} opened whole, {} cut a torn tail, {} told as damage, in {:.1?}",
            self.tried,
            self.whole,
            self.cut,
            self.told,
            began.elapsed()
        ));
        assert!(self.told > 0 && self.whole + self.cut + self.told == self.tried);
    }
}

/// Small files that grow, ended cleanly and not; and filled files that were used before.
fn samples() -> Vec<Sample> {
    vec![
        Sample::make("growing, closed", layout(false, false, 0), true, false),
        Sample::make("growing, killed", layout(false, false, 0), false, false),
        Sample::make("filled and recycled, killed", layout(true, true, 2), false, true),
    ]
}

/// Runs a part of the sweep so that a hang fails it.
fn sweep(what: &'static str, part: impl FnOnce(&[Sample], &mut Tally) + Send + 'static) {
    let began = Instant::now();
    let tally = within(what, move || {
        let mut tally = Tally::default();
        part(&samples(), &mut tally);
        tally
    });
    tally.print(what, began);
}

#[test]
fn every_byte_flipped() {
    alone(module_path!(), "every_byte_flipped", || {
        let began = Instant::now();
        let mut tally = Tally::default();
        for sample in samples() {
            let part = std::sync::Arc::new(sample);
            for (name, file) in part.files.clone().into_iter().filter(|(name, _)| name.starts_with('0')) {
                let part = std::sync::Arc::clone(&part);
                let tried = within("flipping", move || {
                    let mut tally = Tally::default();
                    let used = part.frames[&name].last().map_or(4096, |frame| frame.bytes.end + 64);
                    for (at, byte) in file.iter().enumerate().take(used) {
                        part.with(&name, at, &[byte ^ (1 << (at % 8))], &mut tally);
                    }
                    tally
                });
                tally.tried += tried.tried;
                tally.whole += tried.whole;
                tally.cut += tried.cut;
                tally.told += tried.told;
            }
        }
        tally.print("every byte flipped by one bit", began);
        // More patterns at places that are drawn, unused space included, as long as there is time.
        let (began, time, mut draw) =
            (Instant::now(), budget(5, Duration::from_secs(1)), Draw(began.elapsed().as_nanos() as u64));
        sweep("bytes changed at random", move |samples, tally| {
            while began.elapsed() < time.min(Duration::from_secs(50)) {
                for sample in samples {
                    let names: Vec<&String> = sample.frames.keys().collect();
                    let name = names[draw.below(names.len() as u64) as usize];
                    let file = &sample.files[name];
                    let at = draw.below(file.len() as u64) as usize;
                    let bytes: Vec<u8> = (0..=draw.below(12))
                        .map(|_| [0, 0xff, draw.next() as u8][draw.below(3) as usize])
                        .collect();
                    let end = (at + bytes.len()).min(file.len());
                    sample.with(name, at, &bytes[..end - at], tally);
                }
            }
        });
    });
}

#[test]
fn blocks_zeroed_doubled_and_swapped() {
    alone(module_path!(), "blocks_zeroed_doubled_and_swapped", || {
        sweep("blocks zeroed, doubled, swapped", |samples, tally| {
            for sample in samples {
                for size in [512, 4096] {
                    for (name, file) in sample.files.iter().filter(|(name, _)| name.starts_with('0')) {
                        let used = sample.frames[name].last().unwrap().bytes.end;
                        for at in (0..used).step_by(size) {
                            let here = at..(at + size).min(file.len());
                            sample.with(name, at, &vec![0; here.len()], tally);
                            let next = here.end..(here.end + size).min(file.len());
                            let mut both = file[here.clone()].to_vec();
                            both.extend_from_slice(&file[here.clone()][..next.len().min(here.len())]);
                            sample.with(name, at, &both, tally);
                            if next.len() == here.len() {
                                let swapped = [&file[next.clone()], &file[here.clone()]].concat();
                                sample.with(name, at, &swapped, tally);
                            }
                            for (other, theirs) in &sample.files {
                                if other != name && theirs.len() >= here.end {
                                    sample.with(name, at, &theirs[here.clone()], tally);
                                }
                            }
                        }
                    }
                }
            }
        });
    });
}

#[test]
fn files_cut_at_every_length() {
    alone(module_path!(), "files_cut_at_every_length", || {
        // A sealed segment that was cut within a frame was told as an input/output error, "unexpected end of file".
        sweep("files cut short", |samples, tally| {
            for sample in samples {
                for (name, file) in sample.files.iter().filter(|(name, _)| name.starts_with('0')) {
                    let used = sample.frames[name].last().unwrap().bytes.end;
                    let unused = (used..file.len()).step_by(997);
                    // All of the small ones; of the others as many as there is time for.
                    let step =
                        if file.len() > 8192 && std::env::var_os("FOREBAY_BUDGET").is_none() { 9 } else { 1 };
                    for len in (0..used).step_by(step).chain(unused) {
                        let mut files = sample.files.clone();
                        files.get_mut(name).unwrap().truncate(len);
                        // A last segment that grows may end anywhere; what it held there is gone with its promises.
                        let grows = name == sample.last_name() && u64_at(file, 72) <= len as u64;
                        let whole = |frame: &&Frame| frame.bytes.end <= len;
                        let least = match grows {
                            true => sample.frames[name].iter().rfind(whole).map_or(0, |frame| frame.last),
                            false => sample.all(),
                        };
                        sample.with_files(&files, least, &[name], &format!("{name} cut at {len}"), tally);
                    }
                }
            }
        });
    });
}

#[test]
fn segments_missing_doubled_foreign_and_from_the_future() {
    alone(module_path!(), "segments_missing_doubled_foreign_and_from_the_future", || {
        sweep("whole segments", |samples, tally| {
            for (sample, stranger) in samples.iter().zip(self::samples()) {
                let names: Vec<&String> = sample.frames.keys().collect();
                let (first, last) = (names[0], sample.last_name());
                let next = format!("{:020}.seg", last[..20].parse::<u64>().unwrap() + 1);
                for name in &names {
                    let (name, file) = (*name, &sample.files[*name]);
                    let place = |what: &str| format!("{name} {what}");
                    if name != first && name != last {
                        let mut files = sample.files.clone();
                        files.remove(name);
                        sample.with_files(&files, u64::MAX, &[name], &place("missing"), tally);
                    }
                    for other in names.iter().filter(|other| **other != name) {
                        let mut files = sample.files.clone();
                        files.insert((*other).clone(), file.clone());
                        sample.with_files(
                            &files,
                            u64::MAX,
                            &[other, name],
                            &place("doubled over another"),
                            tally,
                        );
                    }
                    let mut files = sample.files.clone();
                    files.insert(next.clone(), file.clone());
                    sample.with_files(&files, u64::MAX, &[&next], &place("doubled behind the last"), tally);
                    for (theirs, content) in
                        stranger.files.iter().filter(|(theirs, _)| theirs.starts_with('0'))
                    {
                        let mut files = sample.files.clone();
                        files.insert(name.clone(), content.clone());
                        let told = [
                            name.as_str(),
                            names.iter().find(|after| **after > name).map_or(name, |after| after),
                        ];
                        sample.with_files(
                            &files,
                            u64::MAX,
                            &told,
                            &place(&format!("is their {theirs}")),
                            tally,
                        );
                    }
                    for version in [0_u32, 1, 3, u32::MAX] {
                        let mut files = sample.files.clone();
                        let content = files.get_mut(name).unwrap();
                        content[8..12].copy_from_slice(&version.to_le_bytes());
                        content[12..4096].fill(0xa5);
                        let error = sample.open(&disk_of(&files)).unwrap_err();
                        assert_eq!(error.kind(), ErrorKind::UnknownFormat, "{error:?}");
                        sample.with_files(&files, u64::MAX, &[name], &place("is from the future"), tally);
                    }
                }
            }
        });
    });
}

/// The journal by itself cannot know that its first or its last file is gone: neither leaves a trace in the others. The
/// layer can, by the store's watermark, unless the last file held nothing that the store has.
#[test]
fn the_first_and_the_last_segment_missing_is_a_shorter_journal() {
    alone(module_path!(), "the_first_and_the_last_segment_missing_is_a_shorter_journal", || {
        for sample in samples() {
            let (mut without_first, mut without_last) = (sample.files.clone(), sample.files.clone());
            let first =
                without_first.remove(sample.frames.first_key_value().unwrap().0).map(|file| frames_of(&file));
            let opened = journal_run::open(&disk_of(&without_first), &sample.options).unwrap();
            assert_eq!(
                opened.first_prev.get(),
                first.unwrap().last().unwrap().last,
                "it says where it begins"
            );
            without_last.remove(sample.last_name());
            let before = sample.frames.values().rev().nth(1).unwrap().last().unwrap().last;
            assert_eq!(sample.open(&disk_of(&without_last)).unwrap(), before, "it says where it ends");
        }
    });
}
