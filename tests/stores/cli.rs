//! The operator's binary, run as an operator runs it: what it prints, its exit status, that looking changes nothing.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use forebay::journal::{Finding, Survey};
use forebay::store::{Batch, Store, StoreError};
use forebay::testkit::FlakyStore;
use forebay::testkit::flaky::Fault;
use forebay::{
    BlockingCache, Error, ErrorKind, Forebay, JournalOptions, Key, OnRejected, Seq, SledStore, WritePolicy,
};
use tempfile::TempDir;

use crate::support::refusing::Refusing;
use crate::support::stores::Kind;

/// In every value, so in nothing that is printed.
const SECRET: &str = "sesame-open-the-vault";
const SEGMENT: u64 = 64 << 10;

/// A finished run of the binary.
struct Run {
    status: i32,
    out: String,
    err: String,
}

fn forebay(arguments: &[&str]) -> Run {
    let Output { status, stdout, stderr } =
        Command::new(env!("CARGO_BIN_EXE_forebay")).args(arguments).output().unwrap();
    let (out, err) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
    assert!(!out.contains(SECRET) && !err.contains(SECRET), "a value was printed: {arguments:?}\n{out}{err}");
    Run { status: status.code().unwrap(), out, err }
}

impl Run {
    #[track_caller]
    fn expect(self, status: i32, parts: &[&str]) -> Run {
        let all = format!("{}{}", self.out, self.err);
        assert_eq!(self.status, status, "{all}");
        for part in parts {
            assert!(all.contains(part), "it does not say {part:?}:\n{all}");
        }
        self
    }
}

/// Every file under a directory with its content and its time.
fn image(dir: &Path) -> BTreeMap<PathBuf, (Vec<u8>, SystemTime)> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.insert(path.clone(), (Vec::new(), path.metadata().unwrap().modified().unwrap()));
            files.extend(image(&path));
        } else {
            let changed = path.metadata().unwrap().modified().unwrap();
            files.insert(path.clone(), (fs::read(&path).unwrap(), changed));
        }
    }
    files
}

/// Takes nothing for now, and rejects what a key's bytes hold.
fn refuse(batch: &Batch, applies: bool, rejects: Option<&[u8]>) -> Result<(), StoreError> {
    let refused = |key: &Key| rejects.is_some_and(|part| key.key().windows(part.len()).any(|w| w == part));
    match batch.ops.iter().find(|op| refused(&op.key)) {
        Some(op) => {
            let error = Error::new(ErrorKind::Rejected, "no such shelf");
            Err(StoreError::Rejected { seq: op.seq, error })
        }
        None if applies => Ok(()),
        None => Err(StoreError::Transient(Error::new(ErrorKind::Transient, "not now"))),
    }
}

/// A layer's directories.
struct Files {
    top: TempDir,
}

impl Files {
    fn new() -> Files {
        Files { top: tempfile::tempdir().unwrap() }
    }
    fn path(&self, name: &str) -> String {
        self.top.path().join(name).to_str().unwrap().to_owned()
    }
    fn journal(&self) -> String {
        self.path("journal")
    }
    fn store(&self) -> String {
        format!("sled:{}", self.path("store"))
    }

    fn open(
        &self,
        applies: bool,
        rejects: Option<&'static [u8]>,
    ) -> (Forebay, BlockingCache<String, String>) {
        self.open_on(Refusing::new(self.sled(), move |batch: &Batch| refuse(batch, applies, rejects)))
    }

    fn sled(&self) -> SledStore {
        SledStore::open(self.path("store")).unwrap()
    }

    fn open_on(&self, store: impl Store) -> (Forebay, BlockingCache<String, String>) {
        let mut options = JournalOptions::default();
        options.segment_bytes = SEGMENT;
        options.spares_max = 0;
        let builder = Forebay::builder(store).journal(self.journal()).journal_options(options);
        let bay = builder.on_rejected(OnRejected::Park).open_blocking().unwrap();
        let shelf = bay.cache("shelf").open().unwrap();
        (bay, shelf.blocking())
    }

    /// 60 records of about 3 KiB that the store lacks, in several segments; closed.
    fn with_backlog() -> Files {
        let files = Files::new();
        let (bay, shelf) = files.open(false, None);
        for number in 0..60 {
            put(&shelf, number);
        }
        bay.blocking().close_within(Duration::ZERO).unwrap();
        files
    }

    fn segments(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.journal()).unwrap().map(|entry| entry.unwrap().path());
        let mut found: Vec<PathBuf> =
            entries.filter(|path| path.extension().is_some_and(|e| e == "seg")).collect();
        found.sort();
        found
    }

    /// Changes one byte of a segment.
    fn flip(&self, segment: usize, at: usize) -> PathBuf {
        let path = self.segments()[segment].clone();
        let mut content = fs::read(&path).unwrap();
        content[at] ^= 1;
        fs::write(&path, content).unwrap();
        path
    }

    /// The values in the store, by number, past any layer.
    fn stored(&self) -> Vec<u32> {
        let (bay, shelf) = self.open(true, None);
        let found = (0..60).filter(|number| shelf.get(&key(*number)).unwrap().is_some()).collect();
        bay.blocking().close().unwrap();
        found
    }
}

fn key(number: u32) -> String {
    format!("item-{number}\u{1b}[31m")
}

fn put(shelf: &BlockingCache<String, String>, number: u32) {
    shelf.put(&key(number), format!("{number} {}", SECRET.repeat(150))).unwrap();
}

#[test]
fn a_sound_journal_is_verified_inspected_and_printed_without_being_changed() {
    let files = Files::with_backlog();
    let before = image(files.top.path());
    let journal = files.journal();
    forebay(&["verify", &journal]).expect(0, &["60 records, 1 to 60", "dead letters: 0", "sound"]);
    forebay(&["inspect", &journal])
        .expect(0, &["segment", "flusher       not known", "oldest", "dead letters  0"]);
    let told = forebay(&["inspect", &journal, "--json"]).expect(0, &[]);
    let told: serde_json::Value = serde_json::from_str(&told.out).unwrap();
    assert_eq!((&told["sound"], &told["last"]), (&true.into(), &60.into()), "{told:#}");
    assert_eq!(told["segments"].as_array().unwrap().len(), files.segments().len());
    assert_eq!(told["pending_records"], serde_json::Value::Null);
    let lines = forebay(&["tail", &journal]).expect(0, &["put     shelf"]);
    assert_eq!(lines.out.lines().count(), 60, "{}", lines.out);
    assert!(!lines.out.contains('\u{1b}') && lines.out.contains("item-59\\x1b[31m"), "{}", lines.out);
    let lines = forebay(&["tail", &journal, "--from", "51"]).expect(0, &[]);
    let numbers: Vec<u64> =
        lines.out.lines().map(|line| line.split_whitespace().next().unwrap().parse().unwrap()).collect();
    assert_eq!(numbers, (51..=60).collect::<Vec<u64>>());
    forebay(&["dead-letters", &journal, "list"]).expect(0, &["0 dead letters"]);
    assert!(image(files.top.path()) == before, "looking changed something");

    // The store's cursor is in the store, so this opens it; the journal is left as it is all the same.
    let told = forebay(&["inspect", &journal, "--json", "--store", &files.store()]).expect(0, &[]);
    let told: serde_json::Value = serde_json::from_str(&told.out).unwrap();
    assert_eq!((&told["pending_records"], &told["cursors"]["flusher"]), (&60.into(), &0.into()), "{told:#}");
    assert!(
        image(Path::new(&journal))
            == before
                .into_iter()
                .filter(|(path, _)| path.starts_with(&journal) && path != Path::new(&journal))
                .collect()
    );
}

#[test]
fn damage_is_named_with_file_and_offset_and_looking_does_not_change_it() {
    let files = Files::with_backlog();
    let path = files.flip(0, 4096 + 60);
    let name = path.file_name().unwrap().to_str().unwrap().to_owned();
    let damaged = format!("{name}: damaged at byte 4096");
    let before = image(files.top.path());
    let journal = files.journal();
    forebay(&["verify", &journal])
        .expect(1, &[&damaged, "lost: records 1 to 1", "59 records, 2 to 60", "DAMAGED"]);
    forebay(&["inspect", &journal]).expect(1, &[&damaged]);
    let told = forebay(&["inspect", &journal, "--json"]).expect(1, &[&damaged]);
    let told: serde_json::Value = serde_json::from_str(&told.out).unwrap();
    assert_eq!(told["sound"], false);
    forebay(&["tail", &journal]).expect(1, &[&damaged]);
    assert!(image(files.top.path()) == before, "looking changed something");
    forebay(&["drain", &journal, "--store", &files.store()]).expect(1, &[&damaged]);
}

#[test]
fn a_wrong_call_and_a_missing_file_are_status_2() {
    let files = Files::new();
    let nowhere = files.path("nowhere");
    forebay(&["verify"]).expect(2, &["DIR"]);
    forebay(&["verify", &nowhere]).expect(2, &["cannot list", "nowhere"]);
    fs::create_dir(&nowhere).unwrap();
    for command in ["verify", "inspect", "tail"] {
        forebay(&[command, &nowhere]).expect(2, &["there is no journal in"]);
    }
    forebay(&["drain", &nowhere, "--store", "nothing:x"]).expect(2, &["sled:PATH"]);
    forebay(&["drain", &nowhere, "--store", &files.store()]).expect(2, &["there is no journal"]);
    assert_eq!(fs::read_dir(&nowhere).unwrap().count(), 0, "something was made there");

    let files = Files::with_backlog();
    let missing = format!("sled:{}", files.path("other"));
    forebay(&["drain", &files.journal(), "--store", &missing]).expect(2, &["there is no sled store"]);
    assert!(!Path::new(&files.path("other")).exists());
    let mut content = fs::read(&files.segments()[0]).unwrap();
    content[8] = 9;
    fs::write(&files.segments()[0], content).unwrap();
    forebay(&["verify", &files.journal()]).expect(2, &["format version 9"]);
}

/// Beside a layer that writes and trims, what only looks finds nothing wrong, and what opens is refused.
#[test]
fn what_only_looks_works_beside_a_running_layer() {
    let files = Files::new();
    let (bay, shelf) = files.open(true, None);
    put(&shelf, 0);
    let (mut looks, writes) = (0, AtomicU32::new(0));
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            // Some looks, and some writes between them, however fast either is.
            while looks < 15 || writes.load(Ordering::SeqCst) < 60 {
                forebay(&["verify", &files.journal()]).expect(0, &["sound"]);
                forebay(&["inspect", &files.journal(), "--json"]).expect(0, &["\"sound\": true"]);
                forebay(&["tail", &files.journal()]).expect(0, &[]);
                looks += 3;
            }
            forebay(&["drain", &files.journal(), "--store", &files.store()]).expect(2, &["open already"]);
            let out = files.path("out");
            forebay(&["salvage", &files.journal(), "--out", &out]).expect(2, &["is open"]);
            assert!(!Path::new(&out).exists());
        });
        while !looking.is_finished() {
            put(&shelf, writes.fetch_add(1, Ordering::SeqCst) % 60);
        }
    });
    bay.blocking().close().unwrap();
}

#[test]
fn a_torn_tail_is_no_damage() {
    let files = Files::with_backlog();
    let disk = std::sync::Arc::new(forebay::disk::OsDisk);
    let mut survey = Survey::open(disk, Path::new(&files.journal())).unwrap();
    let mut end = None;
    while let Some(finding) = survey.next_finding().unwrap() {
        if let Finding::Frame(frame) = finding {
            end = Some(frame.location.offset + frame.len_on_disk());
        }
    }
    // The last frame loses its end, and the promise of the clean close behind it is gone.
    let path = files.segments().pop().unwrap();
    let mut content = fs::read(&path).unwrap();
    content[end.unwrap() as usize - 16..].fill(0);
    fs::write(&path, content).unwrap();
    forebay(&["verify", &files.journal()])
        .expect(0, &["59 records", "of a write that was interrupted", "sound"]);
}

#[test]
fn drain_carries_everything_to_the_store() {
    let files = Files::with_backlog();
    forebay(&["drain", &files.journal(), "--store", &files.store()])
        .expect(0, &["the store holds everything up to 60"]);
    let told = forebay(&["inspect", &files.journal(), "--json", "--store", &files.store()]).expect(0, &[]);
    let told: serde_json::Value = serde_json::from_str(&told.out).unwrap();
    assert_eq!(told["pending_records"], 0);
    assert_eq!(files.stored(), (0..60).collect::<Vec<u32>>());
}

/// A layer whose store takes nothing, closed with twenty records in the journal.
async fn leave_a_backlog(kind: Kind, store: &Path, journal: &Path) {
    let store = FlakyStore::new(kind.open(store).unwrap());
    store.script(std::iter::repeat_n(Some(Fault::TransientBefore), 10_000));
    let bay = Forebay::builder(store).journal(journal).open().await.unwrap();
    let shelf = bay.cache::<u64, String>("shelf").write_policy(WritePolicy::Behind).open().unwrap();
    for number in 0..20 {
        shelf.put(&number, format!("{number}")).await.unwrap();
    }
    let closed = bay.close_within(Duration::ZERO).await.unwrap();
    assert!(closed.queued > 0, "nothing is left to drain");
}

#[tokio::test]
async fn drain_carries_everything_to_the_store_of_the_kind_that_is_named() {
    for (kind, name) in [(Kind::Redb, "redb"), (Kind::Fjall, "fjall")] {
        let top = tempfile::tempdir().unwrap();
        let (store, journal) = (top.path().join("store"), top.path().join("journal"));
        leave_a_backlog(kind, &store, &journal).await;
        let journal = journal.to_str().unwrap();
        let elsewhere = format!("{name}:{}", top.path().join("elsewhere").display());
        forebay(&["drain", journal, "--store", &elsewhere])
            .expect(2, &[&format!("there is no {name} store in")]);
        assert!(!top.path().join("elsewhere").exists(), "something was made there");
        forebay(&["drain", journal, "--store", &format!("{name}:{}", store.display())])
            .expect(0, &["the store holds everything up to 20"]);
        assert_eq!(
            kind.open(&store).unwrap().standing().await.unwrap().progress.applied,
            Seq::new(20),
            "{name}"
        );
    }
}

#[test]
fn a_damaged_journal_is_salvaged_up_to_the_hole_and_drained() {
    let files = Files::with_backlog();
    let (journal, out) = (files.journal(), files.path("out"));
    // In the second segment, so records before and behind it are sound.
    let path = files.flip(1, 4096 + 60);
    let name = path.file_name().unwrap().to_str().unwrap().to_owned();
    let before = image(Path::new(&journal));
    let told = forebay(&["salvage", &journal, "--out", &out]).expect(
        1,
        &[&format!("{name}: damaged at byte 4096"), "sound, but not written: records", "written: "],
    );
    assert!(image(Path::new(&journal)) == before, "the damaged journal was changed");
    let lost = told.out.lines().find(|line| line.starts_with("lost: records ")).unwrap();
    let lost: u64 = lost.split_whitespace().nth(2).unwrap().parse().unwrap();
    assert!(lost > 10 && lost < 50, "{}", told.out);
    assert!(told.out.contains(&format!("not written: records {} to 60", lost + 1)), "{}", told.out);
    forebay(&["salvage", &journal, "--out", &out]).expect(2, &["exists"]);
    forebay(&["verify", &out]).expect(0, &[&format!("1 to {}", lost - 1), "sound"]);
    fs::rename(&journal, files.path("damaged")).unwrap();
    fs::rename(&out, &journal).unwrap();
    forebay(&["drain", &journal, "--store", &files.store()])
        .expect(0, &[&format!("everything up to {}", lost - 1)]);
    assert_eq!(files.stored(), (0..lost as u32 - 1).collect::<Vec<u32>>(), "a prefix of the history");
}

#[test]
fn a_salvage_past_the_hole_keeps_what_is_behind_it() {
    let files = Files::with_backlog();
    let (journal, out) = (files.journal(), files.path("out"));
    files.flip(0, 4096 + 60);
    forebay(&["salvage", &journal, "--out", &out, "--past-holes"])
        .expect(1, &["lost: records 1 to 1", "written: 59 records"]);
    fs::remove_dir_all(&journal).unwrap();
    fs::rename(&out, &journal).unwrap();
    forebay(&["drain", &journal, "--store", &files.store()]).expect(0, &["everything up to 60"]);
    assert_eq!(files.stored(), (1..60).collect::<Vec<u32>>());
}

/// By the watermark of a store that has nothing to do with the journal, a real hole was "held by the store".
#[test]
fn the_watermark_of_another_store_is_not_believed() {
    let (files, other) = (Files::new(), Files::new());
    for files in [&files, &other] {
        let (bay, shelf) = files.open(true, None);
        (0..10).for_each(|number| put(&shelf, number));
        bay.blocking().flush().unwrap();
        bay.blocking().close().unwrap();
    }
    let (journal, out) = (files.journal(), files.path("out"));
    let other = other.store();
    forebay(&["inspect", &journal, "--store", &other])
        .expect(2, &["was fed from journal", "that belongs to it"]);
    forebay(&["salvage", &journal, "--out", &out, "--store", &other]).expect(2, &["was fed from journal"]);
    assert!(!Path::new(&out).exists());
    forebay(&["inspect", &journal, "--json", "--store", &files.store()]).expect(0, &["\"tenure\": \""]);
}

/// The store holds 1 to 40, and the damage lies below: nothing is lost, and the rest can be drained.
#[test]
fn a_hole_that_the_store_holds_already_is_passed_over() {
    let files = Files::new();
    let (bay, shelf) = files.open(true, None);
    let first = (0..5).map(|number| put(&shelf, number)).count();
    bay.blocking().flush().unwrap();
    bay.blocking().close().unwrap();
    let (bay, shelf) = files.open(false, None);
    (5..10).for_each(|number| put(&shelf, number));
    bay.blocking().close_within(Duration::ZERO).unwrap();
    assert_eq!(first, 5);
    let segment = files.segments().len() - 2;
    files.flip(segment, 4096 + 60);
    let (journal, out) = (files.journal(), files.path("out"));
    let without = files.path("without");
    forebay(&["salvage", &journal, "--out", &without]).expect(1, &["sound, but not written"]);
    let told = forebay(&["salvage", &journal, "--out", &out, "--store", &files.store()])
        .expect(0, &["lost: records", "the store holds them", "nothing was lost"]);
    assert!(!told.out.contains("not written"), "{}", told.out);
    fs::remove_dir_all(&journal).unwrap();
    fs::rename(&out, &journal).unwrap();
    forebay(&["drain", &journal, "--store", &files.store()]).expect(0, &["everything up to 10"]);
    assert_eq!(files.stored(), (0..10).collect::<Vec<u32>>());
}

/// A layer with two letters of one key, of which the first was rejected, and one write beside them.
fn with_letters() -> Files {
    let files = Files::new();
    let (bay, shelf) = files.open(true, Some(b"item-7"));
    put(&shelf, 7);
    put(&shelf, 7);
    put(&shelf, 8);
    bay.blocking().flush().unwrap();
    bay.blocking().close().unwrap();
    files
}

#[test]
fn dead_letters_are_listed_replayed_and_discarded() {
    let files = with_letters();
    let (journal, store) = (files.journal(), files.store());
    let before = image(files.top.path());
    forebay(&["dead-letters", &journal, "list"])
        .expect(0, &["         1  put     shelf", "no such shelf", "2 dead letters"]);
    let told = forebay(&["dead-letters", &journal, "list", "--json"]).expect(0, &[]);
    let told: serde_json::Value = serde_json::from_str(&told.out).unwrap();
    assert_eq!((&told["letters"][0]["seq"], told["letters"].as_array().unwrap().len()), (&1.into(), 2));
    forebay(&["verify", &journal]).expect(0, &["dead letters: 2"]);
    assert!(image(files.top.path()) == before, "looking changed something");

    let replay = ["dead-letters", &journal, "replay", "--store", &store];
    forebay(&replay).expect(2, &["--seq"]);
    forebay(&[&replay[..], &["--seq", "3"]].concat()).expect(2, &["no dead letter with the number 3"]);
    forebay(&[&replay[..], &["--seq", "1"]].concat())
        .expect(0, &["replayed          1", "replayed          2", "0 dead letters are left"]);
    assert_eq!(files.stored(), [7, 8]);

    let files = with_letters();
    let (journal, store) = (files.journal(), files.store());
    forebay(&["dead-letters", &journal, "discard", "--store", &store, "--all"])
        .expect(0, &["discarded          1", "0 dead letters are left"]);
    assert_eq!(files.stored(), [8]);
}

#[test]
fn the_cursors_of_the_change_stream_are_shown_and_their_damage_is_told() {
    let files = Files::new();
    let bay = Forebay::builder(files.sled()).journal(files.journal()).changes(true).open_blocking().unwrap();
    put(&bay.cache("shelf").open().unwrap().blocking(), 1);
    bay.blocking().flush().unwrap();
    let mut changes = bay.blocking().changes("search/index").unwrap();
    let seq = changes.next().unwrap().unwrap().seq();
    changes.acknowledge(seq).unwrap();
    drop(changes);
    bay.blocking().close().unwrap();
    let journal = files.journal();
    forebay(&["inspect", &journal]).expect(0, &["subscriber    search/index at 1"]);
    forebay(&["verify", &journal]).expect(0, &["subscribers of the change stream: 1", "sound"]);
    let told = forebay(&["inspect", &journal, "--json"]).expect(0, &[]);
    let told: serde_json::Value = serde_json::from_str(&told.out).unwrap();
    assert_eq!(told["cursors"]["subscribers"]["search/index"], 1);
    let path = Path::new(&journal).join("cursors");
    let mut content = fs::read(&path).unwrap();
    content[25] ^= 1;
    fs::write(&path, content).unwrap();
    forebay(&["inspect", &journal]).expect(1, &["cursors: damaged at byte"]);
    forebay(&["verify", &journal]).expect(1, &["cursors: damaged at byte", "DAMAGED"]);
}

#[test]
fn a_damaged_dead_letter_list_is_told_and_salvaged_with_the_journal() {
    let files = with_letters();
    let list = Path::new(&files.journal()).join("dead-letters");
    let segment = fs::read_dir(&list)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|e| e == "seg"))
        .unwrap();
    let sound = files.path("sound");
    forebay(&["salvage", &files.journal(), "--out", &sound])
        .expect(0, &["written: 2 records of the dead-letter list", "nothing was lost"]);
    forebay(&["dead-letters", &sound, "list"]).expect(0, &["2 dead letters"]);
    let mut content = fs::read(&segment).unwrap();
    content[4096 + 60] ^= 1;
    fs::write(&segment, content).unwrap();
    let damaged = "dead-letters/00000000000000000001.seg: damaged at byte 4096";
    forebay(&["verify", &files.journal()]).expect(1, &[damaged, "dead letters: 1", "DAMAGED"]);
    forebay(&["dead-letters", &files.journal(), "list"]).expect(1, &[damaged, "1 dead letters"]);
    let out = files.path("out");
    forebay(&["salvage", &files.journal(), "--out", &out, "--past-holes"])
        .expect(1, &[damaged, "written: 1 records of the dead-letter list"]);
}

/// A replay was begun, so the list says that its letters are settled once the store has reached the order's number; and
/// then the order is lost. If the new list still said so, the next write with that number would make the letters vanish
/// though nobody has sent them anywhere.
#[test]
fn a_letter_whose_replay_is_lost_is_in_the_salvaged_list_again() {
    let files = with_letters();
    let (sender, refused) = mpsc::channel();
    let store = Refusing::new(files.sled(), move |batch: &Batch| {
        // Whoever listened has heard enough.
        sender.send(()).ok();
        refuse(batch, false, None)
    });
    let (bay, shelf) = files.open_on(store);
    let letter = bay.dead_letters().list().unwrap()[0].key.clone();
    std::thread::scope(|scope| {
        let replay = scope.spawn(|| bay.blocking().replay_dead_letters(&[letter]));
        refused.recv().unwrap();
        bay.blocking().close_within(Duration::ZERO).unwrap();
        assert!(replay.join().unwrap().is_err());
    });
    drop((bay, shelf));
    let (journal, out) = (files.journal(), files.path("out"));
    forebay(&["dead-letters", &journal, "list"])
        .expect(0, &["settled, if the store has reached 4", "2 dead letters"]);
    // The order is the last segment's only frame.
    files.flip(files.segments().len() - 1, 4096 + 60);
    forebay(&["salvage", &journal, "--out", &out, "--store", &files.store()]).expect(
        1,
        &[
            "lost: records 4 to 4",
            "not written: dead letters: records",
            "written: 2 records of the dead-letter",
        ],
    );
    fs::remove_dir_all(&journal).unwrap();
    fs::rename(&out, &journal).unwrap();
    let (bay, shelf) = files.open(true, None);
    put(&shelf, 9);
    bay.blocking().flush().unwrap();
    bay.blocking().close().unwrap();
    drop((bay, shelf));
    let listed = forebay(&["dead-letters", &journal, "list"]).expect(0, &["2 dead letters"]);
    assert!(!listed.out.contains("settled"), "{}", listed.out);
    forebay(&["dead-letters", &journal, "replay", "--store", &files.store(), "--all"])
        .expect(0, &["0 dead letters"]);
    assert_eq!(files.stored(), [7, 8, 9]);
}
