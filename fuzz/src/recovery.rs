//! Recovery: any files in a journal's directory open to a journal, or to an error that names a file and changes
//! nothing.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use forebay::disk::{Disk, SimDisk};
use forebay::journal::{Finding, Journal, SalvageOptions, Survey, salvage};
use forebay::{Durability, ErrorKind, JournalOptions, Result, Seq};

/// Files by name.
pub type Image = BTreeMap<String, Vec<u8>>;

const DIR: &str = "/journal";

/// Input: files one after the other. Of each: a byte that says which name it gets, its length as four bytes, its bytes.
/// The checksum of a segment's header is mended if the name's byte asks for it, so that what is behind is reached.
pub fn recovery(data: &[u8]) {
    check(&image(data));
}

/// The files that an input describes.
#[must_use]
pub fn image(data: &[u8]) -> Image {
    let mut files = Image::new();
    let mut rest = data;
    while let Some(([name, length @ ..], left)) = rest.split_first_chunk::<5>() {
        let length = (u32::from_le_bytes(*length) as usize).min(left.len()).min(256 << 10);
        let (content, left) = left.split_at(length);
        rest = left;
        let mut content = content.to_vec();
        if name & 0x40 != 0 && content.len() >= 4096 {
            content[12..16].fill(0);
            let crc = crc32c::crc32c(&content[..4096]);
            content[12..16].copy_from_slice(&crc.to_le_bytes());
        }
        let number = name & 0x07;
        let name = match name >> 3 & 0x07 {
            6 => format!("spare-{number}.seg"),
            7 => format!("spare-{number}.tmp"),
            _ => format!("{number:020}.seg"),
        };
        files.insert(name, content);
    }
    files
}

/// Opens, surveys and salvages these files.
///
/// # Panics
/// If any of them breaks a promise.
pub fn check(files: &Image) {
    let disk = disk_of(files);
    let seen = survey(&disk);
    assert_eq!(&files_of(&disk, DIR), files, "a survey changes nothing");
    match open(&disk) {
        Ok(journal) => {
            let seen = seen.expect("what opens can be surveyed");
            let records = match read(&journal) {
                Ok(records) => records,
                // Checksums that hold over a body that is no list of records: a wrong writer, found at the reading.
                Err(error) => {
                    assert!(error.kind() == ErrorKind::Damaged && seen.damages > 0, "{error}");
                    return;
                }
            };
            assert!(seen.damages == 0, "what opens and can be read is not damaged");
            assert_eq!(seen.records, records, "the survey sees what a reader sees");
            let next = journal.append(&[b"next"]).expect("an opened journal takes writes");
            journal.close().expect("and closes");
            let journal = open(&disk.clone()).expect("and opens again");
            let mut longer = records;
            longer.push((next.get(), b"next".to_vec()));
            assert_eq!(
                read(&journal).expect("it can be read"),
                longer,
                "what was written is there, and all before it"
            );
        }
        Err(error) => {
            let known = matches!(error.kind(), ErrorKind::Damaged | ErrorKind::UnknownFormat);
            assert!(known && format!("{error:#}").contains(".seg"), "{error:?}");
            assert_eq!(&files_of(&disk, DIR), files, "an opening that fails changes nothing");
            match seen {
                Ok(seen) => assert!(seen.damages > 0, "a survey finds what an opening finds: {error}"),
                // A survey looks at all headers first, an opening stops at the first one that is wrong.
                Err(other) => assert_eq!(other.kind(), ErrorKind::UnknownFormat, "{error}, {other}"),
            }
        }
    }
    salvaged(&disk_of(files));
}

/// Checks that the journal which a salvage writes can be opened.
fn salvaged(disk: &SimDisk) {
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let before = files_of(disk, DIR);
    for past_holes in [false, true] {
        let to = format!("/salvaged-{past_holes}");
        let mut options = SalvageOptions::default();
        options.past_holes = past_holes;
        options.journal = small();
        let mut written = 0;
        let done = salvage(&shared, Path::new(DIR), Path::new(&to), &options, &mut |_| true, &mut |told| {
            written += u64::from(told.written);
        });
        assert_eq!(files_of(disk, DIR), before, "a salvage does not change the damaged journal");
        let Ok(done) = done else { continue };
        assert_eq!(done.frames, written);
        let journal =
            Journal::open_on(Arc::clone(&shared), &to, small(), Durability::Sync).expect("it opens");
        assert_eq!(read(&journal).expect("it can be read").len() as u64, done.records);
        assert_eq!(journal.id(), done.id);
    }
}

struct Seen {
    records: Vec<(u64, Vec<u8>)>,
    damages: u32,
}

fn survey(disk: &SimDisk) -> Result<Seen> {
    let mut survey = Survey::open(Arc::new(disk.clone()), Path::new(DIR))?;
    let mut seen = Seen { records: Vec::new(), damages: 0 };
    while let Some(finding) = survey.next_finding()? {
        match finding {
            Finding::Frame(frame) => {
                seen.records.extend((frame.first.get()..).zip(frame.records().map(Into::into)))
            }
            Finding::Damage(_) => seen.damages += 1,
            _ => {}
        }
    }
    Ok(seen)
}

fn read(journal: &Journal) -> Result<Vec<(u64, Vec<u8>)>> {
    let mut reader = journal.read_after(Seq::ZERO);
    let mut records = Vec::new();
    while let Some(frame) = reader.next_frame()? {
        records.extend((frame.first.get()..).zip(frame.records().map(Into::into)));
    }
    Ok(records)
}

fn open(disk: &SimDisk) -> Result<Journal> {
    Journal::open_on(Arc::new(disk.clone()), DIR, small(), Durability::Sync)
}

fn small() -> JournalOptions {
    let mut options = JournalOptions::default();
    options.segment_bytes = 64 << 10;
    options.zero_fill = false;
    options.spares_max = 0;
    options
}

fn disk_of(files: &Image) -> SimDisk {
    let disk = SimDisk::new();
    disk.create_dir_all(Path::new(DIR)).expect("a new disk");
    for (name, content) in files {
        let file = disk.create_new(&Path::new(DIR).join(name)).expect("names are different");
        file.write_all_at(content, 0).and_then(|()| file.sync_data()).expect("there is room");
    }
    disk.sync_dir(Path::new(DIR)).expect("it is there");
    disk
}

fn files_of(disk: &SimDisk, dir: &str) -> Image {
    let names = disk.list(Path::new(dir)).expect("it is there");
    let content = |name: &String| {
        let file = disk.open(&Path::new(dir).join(name)).expect("it was listed");
        let mut bytes = vec![0; usize::try_from(file.len().expect("it has one")).expect("it is small")];
        file.read_at(&mut bytes, 0).expect("it can be read");
        bytes
    };
    names.into_iter().map(|name| (name.clone(), content(&name))).collect()
}
