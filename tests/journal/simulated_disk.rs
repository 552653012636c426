//! The simulated disk loses, keeps, tears and fails exactly what it says.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;

use forebay::disk::{CrashPolicy, Disk, DiskFile, DiskOp, Fault, SECTOR_BYTES, SimDisk};

const DIR: &str = "/d";

fn disk() -> SimDisk {
    let disk = SimDisk::new();
    disk.create_dir_all(Path::new(DIR)).unwrap();
    disk
}

/// A file of this many sectors of `a`, durable with its name.
fn durable_file(disk: &SimDisk, name: &str, sectors: usize) -> Box<dyn DiskFile> {
    let file = disk.create_new(&Path::new(DIR).join(name)).unwrap();
    file.write_all_at(&vec![b'a'; sectors * SECTOR_BYTES], 0).unwrap();
    file.sync_data().unwrap();
    disk.sync_dir(Path::new(DIR)).unwrap();
    file
}

fn read(disk: &SimDisk, name: &str) -> Vec<u8> {
    let file = disk.open(&Path::new(DIR).join(name)).unwrap();
    let mut all = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
    file.read_at(&mut all, 0).unwrap();
    all
}

/// The first byte of each sector.
fn sectors(disk: &SimDisk, name: &str) -> String {
    read(disk, name).chunks(SECTOR_BYTES).map(|sector| char::from(sector[0])).collect()
}

#[test]
fn only_what_was_synced_survives_a_power_cut() {
    let disk = disk();
    let file = durable_file(&disk, "f", 3);
    file.write_all_at(b"b", SECTOR_BYTES as u64).unwrap();
    let unnamed = disk.create_new(&Path::new(DIR).join("g")).unwrap();
    unnamed.write_all_at(b"lost with its name", 0).unwrap();
    unnamed.sync_data().unwrap();

    let cut = disk.crash(CrashPolicy::OnlySynced);
    assert_eq!(cut.list(Path::new(DIR)).unwrap(), ["f"]);
    assert_eq!(sectors(&cut, "f"), "aaa");
    let lucky = disk.crash(CrashPolicy::Everything);
    assert_eq!(lucky.list(Path::new(DIR)).unwrap(), ["f", "g"]);
    assert_eq!(sectors(&lucky, "f"), "aba");
    // What arrived is durable in the image.
    assert_eq!(sectors(&lucky.crash(CrashPolicy::OnlySynced), "f"), "aba");

    // A killed process leaves the page cache, which the next power cut takes.
    let killed = disk.crash(CrashPolicy::ProcessKilled);
    assert_eq!(sectors(&killed, "f"), "aba");
    assert_eq!(killed.list(Path::new(DIR)).unwrap(), ["f", "g"]);
    assert_eq!(sectors(&killed.crash(CrashPolicy::OnlySynced), "f"), "aaa");
    assert_eq!(killed.crash(CrashPolicy::OnlySynced).list(Path::new(DIR)).unwrap(), ["f"]);
    let reopened = killed.open(&Path::new(DIR).join("f")).unwrap();
    reopened.sync_data().unwrap();
    assert_eq!(sectors(&killed.crash(CrashPolicy::OnlySynced), "f"), "aba");
    // The disk that crashed goes on untouched.
    file.sync_data().unwrap();
    assert_eq!(sectors(&disk.crash(CrashPolicy::OnlySynced), "f"), "aba");
}

#[test]
fn a_random_crash_keeps_any_subset_of_sectors_and_the_same_one_for_a_seed() {
    let disk = disk();
    let file = durable_file(&disk, "f", 4);
    file.write_all_at(&[b'b'; 2 * SECTOR_BYTES], 0).unwrap();
    let images: Vec<String> =
        (0..200).map(|seed| sectors(&disk.crash(CrashPolicy::Random { seed }), "f")).collect();
    let seen: BTreeSet<&str> = images.iter().map(String::as_str).collect();
    assert_eq!(seen, BTreeSet::from(["aaaa", "abaa", "baaa", "bbaa"]));
    assert_eq!(images[7], sectors(&disk.crash(CrashPolicy::Random { seed: 7 }), "f"));
}

#[test]
fn a_torn_crash_cuts_inside_a_sector() {
    let disk = disk();
    let file = durable_file(&disk, "f", 1);
    file.write_all_at(&[b'b'; SECTOR_BYTES], 0).unwrap();
    let torn = (0..100).map(|seed| read(&disk.crash(CrashPolicy::Torn { seed }), "f")).any(|content| {
        let new = content.iter().take_while(|byte| **byte == b'b').count();
        content.len() == SECTOR_BYTES
            && new > 0
            && content[new..].iter().all(|byte| *byte == b'a')
            && new < SECTOR_BYTES
    });
    assert!(torn);
}

#[test]
fn a_rename_is_atomic_and_later_changes_of_a_name_never_overtake_earlier_ones() {
    let disk = disk();
    durable_file(&disk, "old", 1);
    let dir = Path::new(DIR);
    disk.rename(&dir.join("old"), &dir.join("mid")).unwrap();
    disk.rename(&dir.join("mid"), &dir.join("new")).unwrap();
    let mut seen = BTreeSet::new();
    for seed in 0..100 {
        seen.insert(disk.crash(CrashPolicy::Random { seed }).list(dir).unwrap());
    }
    let one = |name: &str| vec![name.to_owned()];
    assert_eq!(seen, BTreeSet::from([one("old"), one("mid"), one("new")]));
    disk.sync_dir(dir).unwrap();
    assert_eq!(disk.crash(CrashPolicy::OnlySynced).list(dir).unwrap(), ["new"]);
}

#[test]
fn a_failed_sync_loses_the_pages_for_good_and_the_next_one_lies() {
    let fault = Fault::on(DiskOp::Sync);
    for (fault, readable) in [(fault.clone(), "b"), (fault.pages_reverted(), "a")] {
        let disk = disk();
        let file = durable_file(&disk, "f", 1);
        file.write_all_at(&[b'b'; SECTOR_BYTES], 0).unwrap();
        disk.plan(fault);
        assert_eq!(file.sync_data().unwrap_err().raw_os_error(), Some(5));
        assert_eq!(sectors(&disk, "f"), readable);
        file.sync_data().unwrap();
        assert_eq!(sectors(&disk.crash(CrashPolicy::Everything), "f"), "a");
    }
}

#[test]
fn faults_hit_the_operation_they_were_planned_for() {
    let disk = disk();
    let (f, g) = (durable_file(&disk, "f", 1), durable_file(&disk, "g", 1));
    disk.plan(Fault::on(DiskOp::Write).named("f").after(1).kind(ErrorKind::StorageFull).written(2));
    g.write_all_at(b"bbbb", 0).unwrap();
    f.write_all_at(b"bbbb", 0).unwrap();
    g.write_all_at(b"cccc", 0).unwrap();
    assert_eq!(f.write_all_at(b"cccc", 0).unwrap_err().kind(), ErrorKind::StorageFull);
    assert_eq!(&read(&disk, "f")[..4], b"ccbb");
    f.write_all_at(b"dddd", 0).unwrap();

    let before = disk.operations();
    disk.plan(Fault::on_any().until_healed().errno(28));
    assert_eq!(f.sync_data().unwrap_err().kind(), ErrorKind::StorageFull);
    assert!(disk.list(Path::new(DIR)).is_err() && f.len().is_err());
    disk.heal();
    f.sync_data().unwrap();
    assert_eq!(disk.operations(), before + 4);
    assert_eq!((disk.count(DiskOp::Write), disk.syncs("f"), disk.syncs("")), (7, 2, 3));
}

#[test]
fn a_full_disk_takes_what_fits_and_has_room_again_after_a_removal() {
    let disk = disk();
    durable_file(&disk, "f", 1);
    let g = disk.create_new(&Path::new(DIR).join("g")).unwrap();
    disk.set_capacity(Some(SECTOR_BYTES as u64 + 3));
    assert_eq!(g.write_all_at(b"12345", 0).unwrap_err().kind(), ErrorKind::StorageFull);
    assert_eq!(read(&disk, "g"), b"123");
    g.write_all_at(b"321", 0).unwrap();
    disk.remove(&Path::new(DIR).join("f")).unwrap();
    g.write_all_at(b"12345", 0).unwrap();
    assert_eq!(disk.used_bytes(), 5);
}

#[test]
fn a_held_sync_covers_what_was_written_before_it_began_and_nothing_else() {
    let disk = disk();
    let file = durable_file(&disk, "f", 3);
    let other = durable_file(&disk, "g", 1);
    file.write_all_at(b"b", 0).unwrap();
    let gate = disk.hold_syncs("f");
    thread::scope(|scope| {
        let syncing = scope.spawn(|| file.sync_data());
        assert!(gate.wait_for(1));
        other.sync_data().unwrap();
        file.write_all_at(b"c", SECTOR_BYTES as u64).unwrap();
        file.write_all_at(b"c", 0).unwrap();
        assert_eq!(sectors(&disk.crash(CrashPolicy::OnlySynced), "f"), "aaa");
        gate.open();
        syncing.join().unwrap().unwrap();
    });
    assert_eq!(sectors(&disk.crash(CrashPolicy::OnlySynced), "f"), "baa");
    assert_eq!(sectors(&disk.crash(CrashPolicy::Everything), "f"), "cca");
    file.sync_data().unwrap();
    assert_eq!(sectors(&disk.crash(CrashPolicy::OnlySynced), "f"), "cca");
}

#[test]
fn a_crash_lets_go_of_locks_and_rot_reaches_the_medium() {
    let disk = disk();
    let path = Path::new(DIR).join("lock");
    let _held = disk.lock(&path).unwrap();
    let image = disk.crash(CrashPolicy::ProcessKilled);
    drop(image.lock(&path).unwrap());
    assert!(disk.lock(&path).is_err());

    durable_file(&disk, "f", 1);
    disk.overwrite(&Path::new(DIR).join("f"), 0, b"z").unwrap();
    assert_eq!(sectors(&disk, "f"), "z");
    assert_eq!(sectors(&disk.crash(CrashPolicy::OnlySynced), "f"), "z");
    let beyond = disk.overwrite(&Path::new(DIR).join("f"), SECTOR_BYTES as u64, b"z");
    assert_eq!(beyond.unwrap_err().kind(), ErrorKind::UnexpectedEof);
}

#[test]
fn everything_that_can_be_lost_is_lost_by_itself_once() {
    let disk = disk();
    let file = durable_file(&disk, "f", 4);
    // Written, but as it was: no loss of it shows.
    file.write_all_at(&[b'a'; SECTOR_BYTES], 0).unwrap();
    file.write_all_at(&[b'b'; 2 * SECTOR_BYTES], SECTOR_BYTES as u64).unwrap();
    disk.rename(&Path::new(DIR).join("f"), &Path::new(DIR).join("g")).unwrap();
    assert_eq!(disk.unsynced(), (2, 1));
    let without: Vec<String> =
        (0..3).map(|nth| sectors(&disk.crash(CrashPolicy::AllButSector { nth }), "g")).collect();
    assert_eq!(without, ["aaba", "abaa", "abba"]);
    assert_eq!(sectors(&disk.crash(CrashPolicy::AllButName { nth: 0 }), "f"), "abba");
    assert_eq!(sectors(&disk.crash(CrashPolicy::NamesLost), "f"), "abba");
    assert_eq!(sectors(&disk.crash(CrashPolicy::ContentLost), "g"), "aaaa");
}

#[test]
fn a_garbled_sector_keeps_the_bytes_that_nobody_wrote() {
    let disk = disk();
    let file = durable_file(&disk, "f", 1);
    file.write_all_at(&[b'b'; 100], 200).unwrap();
    let mut garbled = 0;
    for seed in 0..50 {
        let content = read(&disk.crash(CrashPolicy::Garbled { seed }), "f");
        assert!(content[..200].iter().chain(&content[300..]).all(|byte| *byte == b'a'));
        garbled += usize::from(content[200..300].iter().any(|byte| !b"ab".contains(byte)));
    }
    assert!(garbled > 5, "{garbled} of 50");
}

#[test]
fn an_observer_sees_the_disk_before_each_change_and_nothing_else() {
    let disk = disk();
    let file = durable_file(&disk, "f", 1);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let notes = Arc::clone(&seen);
    disk.observe(move |op, name, image| {
        let live = sectors(&image, "f");
        let durable = sectors(&image.crash(CrashPolicy::OnlySynced), "f");
        notes.lock().unwrap().push((op, name.to_owned(), live, durable));
    });
    file.write_all_at(b"b", 0).unwrap();
    file.len().unwrap();
    disk.plan(Fault::on(DiskOp::Sync));
    file.sync_data().unwrap_err();
    disk.sync_dir(Path::new(DIR)).unwrap();
    disk.unobserve();
    file.write_all_at(b"c", 0).unwrap();
    let row = |op: DiskOp, name: &str, live: &str| (op, name.to_owned(), live.to_owned(), "a".to_owned());
    let expected =
        [row(DiskOp::Write, "f", "a"), row(DiskOp::Sync, "f", "b"), row(DiskOp::SyncDir, "d", "b")];
    assert_eq!(*seen.lock().unwrap(), expected);
}
