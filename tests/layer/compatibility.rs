//! Files of older versions open with their content; files of a later version are refused and left as they are.
//!
//! `tests/fixtures/README.md` says what each fixture holds and how to make them anew.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use forebay::journal::Journal;
use forebay::store::{Batch, Store, StoreError};
use forebay::{
    BlockingCache, Durability, Epoch, Error, ErrorKind, Forebay, JournalOptions, Key, OnRejected, Seq,
    SledStore,
};
use tempfile::TempDir;

use crate::support::refusing::Refusing;

/// Values above 40 KiB lie in the sled store in chunks. Zeros, so that the fixture stays small.
const LARGE_BYTES: usize = 45_000;
const LIST: &str = "dead-letters";

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// The files of a directory and of those in it, by their names from there.
fn image(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            files.extend(image(&path).into_iter().map(|(inner, bytes)| (format!("{name}/{inner}"), bytes)));
        } else {
            files.insert(name, fs::read(&path).unwrap());
        }
    }
    files
}

fn put_image(dir: &Path, files: &BTreeMap<String, Vec<u8>>) {
    for (name, bytes) in files {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

/// The files are megabytes of zeros, so the fixture has only what is not: of each file its name, its length, and
/// blocks with their places.
fn pack(files: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    const BLOCK: usize = 512;
    let mut packed = Vec::new();
    for (name, bytes) in files {
        packed.extend_from_slice(&u32::try_from(name.len()).unwrap().to_le_bytes());
        packed.extend_from_slice(name.as_bytes());
        packed.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        let blocks = bytes.chunks(BLOCK).enumerate();
        let blocks: Vec<_> = blocks.filter(|(_, block)| block.iter().any(|byte| *byte != 0)).collect();
        packed.extend_from_slice(&u32::try_from(blocks.len()).unwrap().to_le_bytes());
        for (at, block) in blocks {
            packed.extend_from_slice(&((at * BLOCK) as u64).to_le_bytes());
            packed.extend_from_slice(&u32::try_from(block.len()).unwrap().to_le_bytes());
            packed.extend_from_slice(block);
        }
    }
    packed
}

fn unpack(mut packed: &[u8]) -> BTreeMap<String, Vec<u8>> {
    fn take<'a>(from: &mut &'a [u8], len: usize) -> &'a [u8] {
        from.split_off(..len).unwrap()
    }
    fn long(from: &mut &[u8]) -> usize {
        usize::try_from(u64::from_le_bytes(take(from, 8).try_into().unwrap())).unwrap()
    }
    fn short(from: &mut &[u8]) -> usize {
        u32::from_le_bytes(take(from, 4).try_into().unwrap()) as usize
    }
    let mut files = BTreeMap::new();
    while !packed.is_empty() {
        let length = short(&mut packed);
        let name = String::from_utf8(take(&mut packed, length).to_vec()).unwrap();
        let mut bytes = vec![0; long(&mut packed)];
        for _ in 0..short(&mut packed) {
            let (at, length) = (long(&mut packed), short(&mut packed));
            bytes[at..at + length].copy_from_slice(take(&mut packed, length));
        }
        files.insert(name, bytes);
    }
    files
}

/// Rejects one key, and takes nothing unless it is told to.
fn refuse(batch: &Batch, applies: bool) -> Result<(), StoreError> {
    match batch.ops.iter().find(|op| op.key.key() == 13_u64.to_le_bytes()) {
        Some(op) => {
            let error = Error::new(ErrorKind::Rejected, "thirteen is not taken");
            Err(StoreError::Rejected { seq: op.seq, error })
        }
        None if applies => Ok(()),
        None => Err(StoreError::Transient(Error::new(ErrorKind::Transient, "not now"))),
    }
}

/// Opens a layer over `top/journal` and `top/store`.
fn open(top: &Path, applies: Option<bool>) -> forebay::Result<(Forebay, BlockingCache<u64, Vec<u8>>)> {
    let store = SledStore::open(top.join("store"))?;
    let builder = match applies {
        Some(applies) => Forebay::builder(Refusing::new(store, move |batch: &Batch| refuse(batch, applies))),
        None => Forebay::builder(store),
    };
    let mut options = JournalOptions::default();
    options.segment_bytes = 64 << 10;
    options.zero_fill = false;
    options.spares_max = 0;
    let builder = builder.journal(top.join("journal")).journal_options(options);
    let bay = builder.on_rejected(OnRejected::Park).open_blocking()?;
    let cache = bay.cache("shelf").open()?.blocking();
    Ok((bay, cache))
}

/// Makes the layer's fixture: applied writes, one of them in chunks, two dead letters of one key, and three
/// pending records.
fn write_layer(top: &Path) {
    let (bay, shelf) = open(top, Some(true)).unwrap();
    shelf.put(&1, b"one".to_vec()).unwrap();
    shelf.put(&2, vec![0; LARGE_BYTES]).unwrap();
    bay.blocking().flush().unwrap();
    for value in [b"rejected".as_slice(), b"behind it"] {
        shelf.put(&13, value.to_vec()).unwrap();
        bay.blocking().flush().unwrap();
    }
    bay.blocking().close().unwrap();
    drop((bay, shelf));
    let (bay, shelf) = open(top, Some(false)).unwrap();
    shelf.put(&1, b"one, pending".to_vec()).unwrap();
    shelf.put(&3, b"three, pending".to_vec()).unwrap();
    shelf.remove(&2).unwrap();
    bay.blocking().close_within(Duration::ZERO).unwrap();
}

/// A copy of the layer's fixture.
fn layer_v2() -> TempDir {
    let top = tempfile::tempdir().unwrap();
    put_image(top.path(), &unpack(&fs::read(fixture("layer-v2.packed")).unwrap()));
    top
}

#[test]
fn a_queue_of_journal_format_2_opens_with_its_records_and_goes_on() {
    let top = tempfile::tempdir().unwrap();
    put_image(top.path(), &image(&fixture("journal-v2")));
    let journal = Journal::open(top.path(), JournalOptions::default(), Durability::Sync).unwrap();
    let mut reader = journal.read_after(Seq::ZERO);
    let mut next = 1;
    while let Some(frame) = reader.next_frame().unwrap() {
        for record in frame.records() {
            let expected = format!("record {next};").repeat(1 + (next * 7) % 23);
            assert_eq!(record, expected, "record {next}");
            next += 1;
        }
    }
    assert_eq!(next, 13);
    assert_eq!(journal.append(&[b"and one more"]).unwrap(), Seq::new(13));
}

#[test]
fn a_layer_of_format_2_opens_with_its_values_its_pending_records_and_its_dead_letters() {
    let top = layer_v2();
    {
        // What the store held, before anything is drained.
        let store = SledStore::open(top.path().join("store")).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let tenure = runtime.block_on(store.standing()).unwrap();
        assert_eq!(
            (tenure.tenure.epoch, tenure.progress.applied, tenure.progress.journaled),
            (Epoch::new(2), Seq::new(4), Seq::new(4))
        );
        let name = forebay::NamespaceName::parse("shelf").unwrap();
        let found =
            runtime.block_on(store.load(&Key::new(&name, &2_u64.to_le_bytes()).unwrap())).unwrap().unwrap();
        assert_eq!((found.version, found.value.len()), (Seq::new(2), 2 + 8 + LARGE_BYTES));
    }
    let (bay, shelf) = open(top.path(), None).unwrap();
    let letters = bay.dead_letters().list().unwrap();
    let told: Vec<_> = letters.iter().map(|one| (one.seq.get(), one.removes, one.reason.as_str())).collect();
    assert_eq!(
        told,
        [
            (3, false, "the store rejected record 3: thirteen is not taken"),
            (4, false, "an earlier record of its key was rejected"),
        ]
    );
    let expected = |shelf: &BlockingCache<u64, Vec<u8>>| {
        assert_eq!(shelf.get(&1).unwrap().unwrap(), b"one, pending");
        assert_eq!(shelf.get(&2).unwrap(), None);
        assert_eq!(shelf.get(&3).unwrap().unwrap(), b"three, pending");
        assert_eq!(shelf.get(&13).unwrap().unwrap(), b"behind it");
    };
    expected(&shelf);
    bay.blocking().flush().unwrap();
    assert_eq!(bay.watermark(), Seq::new(7));
    bay.blocking().replay_dead_letters(&[letters[0].key.clone()]).unwrap();
    assert!(bay.dead_letters().list().unwrap().is_empty());
    let receipt = shelf.put(&4, b"four".to_vec()).unwrap();
    assert_eq!(receipt.seq(), Seq::new(9));
    bay.blocking().close().unwrap();
    drop((bay, shelf));
    let (_bay, shelf) = open(top.path(), None).unwrap();
    expected(&shelf);
    assert_eq!(shelf.get(&4).unwrap().unwrap(), b"four");
}

/// A segment without what is drawn at random, the witnesses, which depend on when the store took what, and the
/// checksums over all that.
fn normalized(segment: &[u8]) -> Vec<u8> {
    let mut bytes = segment.to_vec();
    for drawn in [12..48, 56..64, 104..108] {
        bytes[drawn].fill(0);
    }
    let mut at = 4096;
    while at + 56 <= bytes.len() && bytes[at..at + 56].iter().any(|byte| *byte != 0) {
        let length = u32::from_le_bytes(bytes[at + 4..at + 8].try_into().unwrap()) as usize;
        bytes[at..at + 4].fill(0);
        bytes[at + 32..at + 40].fill(0);
        bytes[at + 48..at + 56].fill(0);
        at += 56 + length.next_multiple_of(8);
    }
    assert!(bytes[at..].iter().all(|byte| *byte == 0), "behind the frames there are zeros");
    bytes
}

/// If this fails, what is written now is not what version 2 wrote: the format needs a new number, and a fixture.
#[test]
fn what_is_written_today_is_byte_for_byte_what_the_fixture_holds() {
    let top = tempfile::tempdir().unwrap();
    write_layer(top.path());
    let segments = |files: BTreeMap<String, Vec<u8>>| {
        let files = files.into_iter().filter(|(name, _)| name.ends_with(".seg"));
        files.map(|(name, bytes)| (name, normalized(&bytes))).collect::<BTreeMap<_, _>>()
    };
    let today = segments(image(top.path()));
    let then = segments(unpack(&fs::read(fixture("layer-v2.packed")).unwrap()));
    assert_eq!(today.keys().collect::<Vec<_>>(), then.keys().collect::<Vec<_>>());
    assert!(today.keys().any(|name| name.contains(LIST)), "the dead-letter list is among them");
    for (name, bytes) in &today {
        let differs = bytes.iter().zip(&then[name]).position(|(a, b)| a != b);
        assert!(bytes == &then[name], "{name} differs from byte {differs:?} on");
    }
}

#[test]
fn a_journal_of_an_unknown_version_is_refused_and_left_untouched() {
    // In the last segment, so that everything before has been looked at; and in the list beside the journal.
    let files = ["journal/00000000000000000002.seg", "journal/dead-letters/00000000000000000001.seg"];
    // The one before, which no release wrote, and one to come.
    for (file, version) in files.into_iter().flat_map(|file| [(file, 1), (file, 3)]) {
        let top = layer_v2();
        // Whoever had the journal open left this.
        fs::write(top.path().join("journal/lock"), []).unwrap();
        fs::write(top.path().join("journal/dead-letters/lock"), []).unwrap();
        let mut bytes = fs::read(top.path().join(file)).unwrap();
        assert_eq!(bytes[8..12], 2_u32.to_le_bytes());
        bytes[8] = version;
        fs::write(top.path().join(file), bytes).unwrap();
        let before = image(&top.path().join("journal"));
        let error = open(top.path(), None).expect_err("it has to be refused");
        assert_eq!(error.kind(), ErrorKind::UnknownFormat, "{error}");
        let told = format!("{error:#}");
        assert!(told.contains(file) && told.contains(&format!("format version {version}")), "{told}");
        assert!(image(&top.path().join("journal")) == before, "{file}: something was changed");
    }
}

/// Opens the database past the store, and waits until it is let go: sled's own threads hold its lock for a moment
/// longer than its handle.
fn past_the_store<T>(path: &Path, with: impl FnOnce(&sled::Db) -> T) -> T {
    let db = sled::Config::new().path(path).segment_size(4 << 20).flush_every_ms(None).open().unwrap();
    let done = with(&db);
    drop(db);
    let file = fs::File::open(path.join("db")).unwrap();
    file.lock().unwrap();
    file.unlock().unwrap();
    done
}

/// The store is sled's to open, and sled writes to its own files when it is: what the tree holds is compared.
#[test]
fn a_store_of_an_unknown_layout_is_refused_and_left_untouched() {
    for (format, what) in [
        (Some(1_u8), "has format 1, and this version of the crate knows 3"),
        (Some(9), "has format 9, and this version of the crate knows 3"),
        (None, "is not one of this crate"),
    ] {
        let top = layer_v2();
        let path = top.path().join("store");
        past_the_store(&path, |db| {
            let mut meta = db.remove(b"m").unwrap().unwrap().to_vec();
            if let Some(format) = format {
                meta[0] = format;
                let end = meta.len() - 4;
                let checksum = crc32c::crc32c(&meta[..end]);
                meta[end..].copy_from_slice(&checksum.to_le_bytes());
                db.insert(b"m", meta).unwrap();
            }
            db.flush().unwrap();
        });
        let content = || past_the_store(&path, |db| db.iter().map(Result::unwrap).collect::<Vec<_>>());
        let before = content();
        let journal = image(&top.path().join("journal"));
        let error = open(top.path(), None).expect_err("it has to be refused");
        assert_eq!(error.kind(), ErrorKind::UnknownFormat, "{error}");
        assert!(format!("{error:#}").contains(what), "{error}");
        assert!(content() == before && before.len() > 2, "the store was changed");
        assert!(image(&top.path().join("journal")) == journal, "the journal was changed");
    }
}

/// `FOREBAY_FIXTURES_DIR=tests/fixtures cargo test --test layer -- --ignored write_fixtures`; see the README there.
#[test]
#[ignore = "writes fixtures"]
fn write_fixtures() {
    let to =
        PathBuf::from(std::env::var_os("FOREBAY_FIXTURES_DIR").expect("FOREBAY_FIXTURES_DIR says where to"));
    let top = tempfile::tempdir().unwrap();
    write_layer(top.path());
    let mut files = image(top.path());
    files.retain(|name, _| !name.ends_with("lock"));
    let packed = pack(&files);
    assert!(unpack(&packed) == files);
    fs::write(to.join("layer-v2.packed"), packed).unwrap();
}
