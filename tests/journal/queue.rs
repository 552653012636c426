//! A standalone journal: every acknowledged append survives the crash that its durability names (P1).

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use forebay::Seq;
use forebay::disk::{CrashPolicy, DiskOp, Fault, SimDisk};
use forebay::journal::{Durability, Journal, JournalOptions};
use forebay::{ErrorKind, Result};

const NEVER: Durability = Durability::Buffered { sync_interval: Duration::from_secs(3600) };
const SOON: Durability = Durability::Buffered { sync_interval: Duration::from_millis(1) };

fn open(disk: &SimDisk, durability: Durability) -> Result<Journal> {
    let mut options = JournalOptions::default();
    options.segment_bytes = 64 * 1024;
    options.spares_max = 2;
    Journal::open_on(Arc::new(disk.clone()), "/journal", options, durability)
}

/// Every record with its place, after `after`.
fn records(journal: &Journal, after: Seq) -> Vec<(Seq, Vec<u8>)> {
    let mut reader = journal.read_after(after);
    let mut all = Vec::new();
    while let Some(frame) = reader.next_frame().unwrap() {
        all.extend((frame.first.get()..).map(Seq::new).zip(frame.records().map(|record| record.to_vec())));
    }
    all
}

/// Large enough that a few dozen need another segment.
fn record(n: u64) -> Vec<u8> {
    let mut record = vec![b'.'; 2500];
    record[..8].copy_from_slice(&n.to_le_bytes());
    record
}

/// Cuts the run after every append, and finds all that was acknowledged by then in what the crash left.
fn acknowledged_appends_survive(durability: Durability, policies: impl Fn(u64) -> Vec<CrashPolicy>) {
    let disk = SimDisk::new();
    let journal = open(&disk, durability).unwrap();
    let mut acknowledged = Vec::new();
    for n in 0..60 {
        let seq = journal.append(&[&record(n)]).unwrap();
        acknowledged.push((seq, record(n)));
        for policy in policies(n) {
            let reopened = open(&disk.crash(policy), durability).unwrap();
            assert!(records(&reopened, Seq::ZERO) == acknowledged, "append {n} and {policy:?}");
            // Numbers go on behind it, and it is a journal like any other.
            assert_eq!(reopened.append(&[b"next"]).unwrap(), seq.next());
            reopened.close().unwrap();
        }
    }
}

#[test]
fn an_append_acknowledged_under_sync_survives_a_power_cut() {
    acknowledged_appends_survive(Durability::Sync, |n| {
        vec![
            CrashPolicy::OnlySynced,
            CrashPolicy::Everything,
            CrashPolicy::Random { seed: n },
            CrashPolicy::Torn { seed: n },
            CrashPolicy::ProcessKilled,
        ]
    });
}

#[test]
fn an_append_acknowledged_under_buffered_survives_the_death_of_the_process() {
    acknowledged_appends_survive(NEVER, |_| vec![CrashPolicy::ProcessKilled]);
}

#[test]
fn acknowledged_appends_of_many_writers_survive_a_cut_at_any_moment() {
    let disk = SimDisk::new();
    let journal = open(&disk, Durability::Sync).unwrap();
    let acknowledged = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for writer in 0..4 {
            let (journal, acknowledged) = (&journal, &acknowledged);
            scope.spawn(move || {
                for n in 0..40 {
                    let content = record(writer * 1000 + n);
                    let seq = journal.append(&[&content]).unwrap();
                    acknowledged.lock().unwrap().push((seq, content));
                }
            });
        }
        scope.spawn(|| {
            for seed in 0..60 {
                let before = acknowledged.lock().unwrap().clone();
                let policy = if seed % 2 == 0 { CrashPolicy::OnlySynced } else { CrashPolicy::Torn { seed } };
                let found = records(&open(&disk.crash(policy), Durability::Sync).unwrap(), Seq::ZERO);
                assert!(before.iter().all(|one| found.binary_search(one).is_ok()), "{policy:?}");
            }
        });
    });
    assert_eq!(records(&journal, Seq::ZERO).len(), 160);
}

#[test]
fn a_sync_under_buffered_makes_all_before_it_survive_a_power_cut() {
    let disk = SimDisk::new();
    let journal = open(&disk, NEVER).unwrap();
    for n in 0..60 {
        journal.append(&[&record(n)]).unwrap();
    }
    journal.sync().unwrap();
    let image = open(&disk.crash(CrashPolicy::OnlySynced), NEVER).unwrap();
    assert_eq!(records(&image, Seq::ZERO).len(), 60);
}

#[test]
fn callers_that_write_for_each_other_all_return_with_their_own_place() {
    for durability in [SOON, Durability::Sync] {
        let disk = SimDisk::new();
        let journal = open(&disk, durability).unwrap();
        let places = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for writer in 0..8_u64 {
                let (journal, places) = (&journal, &places);
                scope.spawn(move || {
                    for n in 0..1000_u64 {
                        let content = (writer * 1000 + n).to_le_bytes();
                        let seq = journal.append(&[&content]).unwrap();
                        places.lock().unwrap().push((seq, content.to_vec()));
                    }
                });
            }
        });
        let mut places = places.into_inner().unwrap();
        places.sort();
        assert!(places == records(&journal, Seq::ZERO) && places.len() == 8000);
    }
}

#[test]
fn after_a_failed_sync_no_append_succeeds_until_the_journal_is_opened_again() {
    let disk = SimDisk::new();
    let journal = open(&disk, Durability::Sync).unwrap();
    journal.append(&[b"kept"]).unwrap();
    disk.plan(Fault::on(DiskOp::Sync).named("0"));
    let error = journal.append(&[b"in doubt"]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Poisoned);
    assert!(format!("{error:#}").starts_with("outcome unknown"), "{error}");
    let error = journal.append(&[b"refused"]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Poisoned);
    assert!(format!("{error:#}").contains("os error 5"), "{error}");
    assert!(journal.close().is_err());

    let image = open(&disk.crash(CrashPolicy::Everything), Durability::Sync).unwrap();
    let found: Vec<Vec<u8>> = records(&image, Seq::ZERO).into_iter().map(|(_, record)| record).collect();
    assert_eq!(found, [b"kept"]);
    image.append(&[b"again"]).unwrap();
}

#[test]
fn batches_are_whole_readers_resume_and_trimmed_files_are_gone() {
    let disk = SimDisk::new();
    let journal = open(&disk, Durability::Sync).unwrap();
    assert_eq!(journal.append_batch(["a", "b"]).unwrap(), Seq::new(2));
    assert_eq!(journal.append(&[b"c", b"d"]).unwrap(), Seq::new(3));
    let none: [&[u8]; 0] = [];
    assert_eq!(journal.append_batch(none).unwrap_err().kind(), ErrorKind::Unsupported);
    let expected =
        [(Seq::new(1), b"a".to_vec()), (Seq::new(2), b"b".to_vec()), (Seq::new(3), b"cd".to_vec())];
    assert_eq!(records(&journal, Seq::ZERO), expected);
    assert_eq!(records(&journal, Seq::new(1)), expected);
    assert_eq!(records(&journal, Seq::new(2)), expected[2..]);
    assert_eq!(open(&disk, Durability::Sync).err().unwrap().kind(), ErrorKind::Locked);

    for n in 0..100 {
        journal.append(&[&record(n)]).unwrap();
    }
    journal.trim(Seq::new(90)).unwrap();
    let left = records(&journal, Seq::ZERO);
    assert!(left[0].0 > Seq::new(3) && left[0].0 <= Seq::new(91) && left.last().unwrap().0 == Seq::new(103));
    let id = journal.id();
    journal.close().unwrap();
    let journal = open(&disk, SOON).unwrap();
    assert_eq!((journal.id(), records(&journal, Seq::ZERO)), (id, left));
    assert!(journal.bytes_on_disk() > 0);
}

#[test]
fn a_bad_interval_is_refused_before_anything_is_made() {
    let disk = SimDisk::new();
    let never_at_all = Durability::Buffered { sync_interval: Duration::ZERO };
    assert_eq!(open(&disk, never_at_all).err().unwrap().kind(), ErrorKind::InvalidOption);
    assert_eq!(disk.operations(), 0);
}
