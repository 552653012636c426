//! The places where threads meet, each on its own, in many orders: the commit hand-off, the pending view against the
//! flusher, fences against fills, closing against writers, the full gate.
//!
//! A failing test prints the number of its order; `FOREBAY_SEED` set to that number repeats it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use forebay::disk::{Disk, SimDisk};
use forebay::journal::committer::{Committed, Committer, Sink, Submission};
use forebay::journal::frame::FrameBuilder;
use forebay::journal::recovery;
use forebay::memory::dependencies::{Dependencies, ReadSet};
use forebay::memory::entry::{EntryOverrides, LoadResult};
use forebay::memory::freshness::Freshness;
use forebay::memory::resident::{Capacity, Resident};
use forebay::memory::scope::Scopes;
use forebay::memory::servable::ReadConstraints;
use forebay::options::LayerSizes;
use forebay::store::TenureId;
use forebay::{
    Backpressure, Builder, Cache, Durability, Error, ErrorKind, Forebay, JournalOptions, MemoryStore, Moment,
    Seq, Ticker, WritePolicy,
};
use shuttle::future::block_on;
use shuttle::sync::{Condvar, Mutex, mpsc};
use shuttle::thread;

use crate::harness::order::in_orders;
use crate::support::budget::budget;

const TESTS: u32 = 9;
const BUFFERED: Durability = Durability::Buffered { sync_interval: Duration::from_millis(10) };

/// Runs `body` in one order after the other until its part of the time is up, or in the one that `FOREBAY_SEED` says.
fn in_many_orders(name: &str, body: impl Fn() + Send + Sync + Clone + 'static) {
    in_orders(name, Some(budget(5, Duration::from_secs(6)) / TESTS), || true, move |_| body());
}

/// The reports to a sink, by submitter and number.
#[derive(Default)]
struct Told {
    committed: Mutex<Vec<(Seq, Ticket)>>,
    refused: Mutex<Vec<(Ticket, ErrorKind)>>,
    answers: Mutex<usize>,
    answered: Condvar,
}

impl Told {
    fn answer(&self, count: usize) {
        *self.answers.lock().unwrap() += count;
        self.answered.notify_all();
    }

    fn wait_for(&self, count: usize) {
        let answers = self.answers.lock().unwrap();
        drop(self.answered.wait_while(answers, |answers| *answers < count).unwrap());
    }
}

type Ticket = (usize, u32);

impl Sink for Told {
    type Ticket = Ticket;

    fn committed(&self, group: &mut Vec<Committed<Ticket>>) {
        let group = group.drain(..).map(|committed| (committed.frame.first, committed.ticket));
        let count = group.len();
        self.committed.lock().unwrap().extend(group);
        self.answer(count);
    }

    fn refused(&self, ticket: Ticket, error: &Error) {
        self.refused.lock().unwrap().push((ticket, error.kind()));
        self.answer(1);
    }

    fn poisoned(&self, error: &Error) {
        panic!("nothing fails here: {error}");
    }
}

/// Every submission is answered once, in the order of its submitter, and numbers are dense; what is refused is refused
/// because of the close, and nothing that came later is committed. Without a close (unless it is `early`) everything is
/// committed.
fn hand_off(durability: Option<Durability>, early: bool) {
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::new());
    let opened = durability
        .map(|_| recovery::open(disk, Path::new("/journal"), &small(), TenureId::default()).unwrap());
    let journal = opened.map(|opened| (opened.log, opened.writer));
    let told = Arc::new(Told::default());
    let journaled = journal.is_some();
    let durability = durability.unwrap_or(Durability::Sync);
    let committer = Arc::new(Committer::start(journal, durability, Seq::ZERO, Arc::clone(&told)).unwrap());
    let submitters: Vec<_> = (0..3)
        .map(|submitter| {
            let committer = Arc::clone(&committer);
            thread::spawn(move || {
                for number in 0..2 {
                    let mut body = FrameBuilder::new();
                    body.push(&[b"record"]).unwrap();
                    let ticket = (submitter, number);
                    let submission = Submission { body: body.finish(), journaled, ticket };
                    match submitter {
                        0 => committer.submit_blocking(submission),
                        _ => committer.submit(submission),
                    }
                }
            })
        })
        .collect();
    let syncer = {
        let committer = Arc::clone(&committer);
        thread::spawn(move || committer.sync())
    };
    if !early {
        told.wait_for(6);
    }
    committer.close().unwrap();
    submitters.into_iter().for_each(|submitter| submitter.join().unwrap());
    syncer.join().unwrap().unwrap();
    let (committed, refused) = (told.committed.lock().unwrap(), told.refused.lock().unwrap());
    let mut latest = BTreeMap::new();
    for ((seq, (submitter, number)), expected) in committed.iter().zip(1..) {
        assert_eq!(seq.get(), expected, "numbers are dense and in order");
        assert!(latest.insert(*submitter, *number) < Some(*number), "a submitter's order is kept");
    }
    for ((submitter, number), kind) in refused.iter() {
        assert_eq!(*kind, ErrorKind::Closed);
        assert!(latest.get(submitter) < Some(number), "what follows a refused one is refused");
    }
    assert_eq!(committed.len() + refused.len(), 6, "every submission is answered once");
    assert!(early || refused.is_empty(), "nothing is refused before the close");
}

#[test]
fn commit_hand_off() {
    in_many_orders("commit hand-off", || {
        for early in [false, true] {
            hand_off(Some(Durability::Sync), early);
            hand_off(Some(BUFFERED), early);
            hand_off(None, early);
        }
    });
}

fn small() -> JournalOptions {
    let mut options = JournalOptions::default();
    (options.segment_bytes, options.zero_fill, options.spares_max) = (64 << 10, false, 0);
    options
}

fn layer(disk: &SimDisk, store: &MemoryStore) -> Builder {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    Forebay::builder(store.clone())
        .journal("/journal")
        .journal_options(small())
        .sizes(LayerSizes::COLLIDING)
        .disk(disk)
        .batch_records_max(2)
}

/// Whoever reads while values are written, spilled and applied sees them in their order, and what was acknowledged
/// before it read or something newer.
#[test]
fn pending_against_the_flusher() {
    for memory in [0, 1 << 20] {
        in_many_orders(&format!("pending against the flusher, {memory} bytes in memory"), move || {
            let bay = layer(&SimDisk::new(), &MemoryStore::new());
            let bay =
                bay.pending_memory_bytes_max(memory).batch_linger(Duration::ZERO).open_blocking().unwrap();
            let cache: Cache<u32, u64> = bay.cache("n").capacity(1).open().unwrap();
            let acknowledged = Arc::new(Mutex::new(0));
            let reader = {
                let (cache, acknowledged) = (cache.clone(), Arc::clone(&acknowledged));
                thread::spawn(move || {
                    let mut before = 0;
                    for _ in 0..3 {
                        let least = before.max(*acknowledged.lock().unwrap());
                        before = block_on(cache.get(&1)).unwrap().unwrap_or(0);
                        assert!(before >= least, "{before} was read after {least}");
                        cache.evict(&1);
                    }
                })
            };
            for value in 1..=4 {
                let policy = if value == 3 { WritePolicy::Through } else { WritePolicy::Behind };
                block_on(cache.put_with(&1, value, policy)).unwrap();
                *acknowledged.lock().unwrap() = value;
                cache.evict(&1);
                assert_eq!(block_on(cache.get(&1)).unwrap(), Some(value), "a write is read by its writer");
            }
            reader.join().unwrap();
            block_on(bay.flush()).unwrap();
            assert_eq!(bay.pending(), 0);
            assert_eq!(block_on(cache.get(&1)).unwrap(), Some(4));
        });
    }
}

/// Of a write-through and a write-behind of one key, memory shows in the end what comes later in the order, as the
/// store does.
#[test]
fn write_through_against_write_behind() {
    in_many_orders("write-through against write-behind", || {
        let store = MemoryStore::new();
        let bay = layer(&SimDisk::new(), &store).batch_linger(Duration::ZERO).open_blocking().unwrap();
        let cache: Cache<u32, u64> = bay.cache("n").open().unwrap();
        let through = {
            let cache = cache.clone();
            thread::spawn(move || block_on(cache.put_with(&1, 1, WritePolicy::Through)).unwrap())
        };
        let behind = block_on(cache.put_with(&1, 2, WritePolicy::Behind)).unwrap();
        let through = through.join().unwrap();
        let later = if through > behind { Some(1) } else { Some(2) };
        assert_eq!(block_on(cache.get(&1)).unwrap(), later);
        block_on(bay.flush()).unwrap();
        assert_eq!(block_on(cache.get(&1)).unwrap(), later);
        cache.evict(&1);
        assert_eq!(block_on(cache.get(&1)).unwrap(), later, "the store's");
    });
}

fn seen(memory: &Resident<u32, u64>) -> Option<u64> {
    memory.lookup(&1, &ReadConstraints::default()).ok().and_then(|held| held.value)
}

/// A load that began before a change never leaves the older value in memory.
#[test]
fn fences_against_fills() {
    in_many_orders("fences against fills", || {
        let memory: Arc<Resident<u32, u64>> =
            Arc::new(Resident::new(Capacity::Entries(10), Freshness::default(), Ticker::default()).unwrap());
        let store = Arc::new(Mutex::new(0_u64));
        let loaders: Vec<_> = (0..2)
            .map(|_| {
                let (memory, store) = (Arc::clone(&memory), Arc::clone(&store));
                thread::spawn(move || {
                    let start = memory.start(&1);
                    let loaded = *store.lock().unwrap();
                    let (value, version) = (Some(&loaded), Seq::new(loaded));
                    let load_result =
                        LoadResult { value, version, of_loader: false, overrides: EntryOverrides::default() };
                    memory.fill(&1, &load_result, &start).unwrap();
                })
            })
            .collect();
        *store.lock().unwrap() = 1;
        memory.invalidate(&1).unwrap();
        assert!(seen(&memory).is_none_or(|value| value == 1), "older than the invalidation of the key");
        *store.lock().unwrap() = 2;
        memory.invalidate_all();
        assert!(seen(&memory).is_none_or(|value| value == 2), "older than the invalidation of all");
        *store.lock().unwrap() = 3;
        memory.apply_write(1, Some(3), Seq::new(3), Moment::default(), EntryOverrides::default()).unwrap();
        loaders.into_iter().for_each(|loader| loader.join().unwrap());
        assert_eq!(seen(&memory), Some(3));
    });
}

/// A value that hangs on a namespace, a group, a tag and another key is never seen from before a change of any of them.
#[test]
fn bulk_invalidations_against_fills() {
    in_many_orders("bulk invalidations against fills", || {
        let scopes: Arc<Scopes> = Arc::default();
        let memory = || -> Arc<Resident<u32, u64>> {
            let memory =
                Resident::new(Capacity::Entries(10), Freshness::default(), Ticker::default()).unwrap();
            Arc::new(memory.with_scopes(Arc::clone(&scopes)))
        };
        let (derived, other) = (memory(), memory());
        let (group, tag) = (scopes.tag("n:group"), scopes.tag("tag"));
        let source = Arc::new(Mutex::new(0_u64));
        let loaders: Vec<_> = (0..2)
            .map(|_| {
                let (derived, other, source) =
                    (Arc::clone(&derived), Arc::clone(&other), Arc::clone(&source));
                thread::spawn(move || {
                    let (start, mut read) = (derived.start(&1), ReadSet::default());
                    read.add(other.fences(), other.start(&2).mark, None);
                    let overrides = EntryOverrides {
                        dependencies: Dependencies::new(vec![group, tag], read),
                        ..EntryOverrides::default()
                    };
                    let loaded = *source.lock().unwrap();
                    let (value, version) = (Some(&loaded), Seq::ZERO);
                    derived
                        .fill(&1, &LoadResult { value, version, of_loader: true, overrides }, &start)
                        .unwrap();
                })
            })
            .collect();
        for change in 1..=4 {
            *source.lock().unwrap() = change;
            match change {
                1 => derived.fences().change_namespace(scopes.advance()),
                2 => scopes.invalidate(group),
                3 => scopes.invalidate(tag),
                _ => other.invalidate(&2).unwrap(),
            }
            assert!(seen(&derived).is_none_or(|value| value == change), "older than change {change}");
        }
        loaders.into_iter().for_each(|loader| loader.join().unwrap());
        assert!(seen(&derived).is_none_or(|value| value == 4));
    });
}

/// A write that meets a close is acknowledged and kept, or refused and gone.
#[test]
fn close_against_writers() {
    in_many_orders("close against writers", || {
        let (disk, store) = (SimDisk::new(), MemoryStore::new());
        let bay = layer(&disk, &store).open_blocking().unwrap();
        let cache: Cache<u32, u64> = bay.cache("n").open().unwrap();
        let (sender, outcomes) = mpsc::channel();
        for key in 0..3 {
            let (cache, sender) = (cache.clone(), sender.clone());
            thread::spawn(move || {
                let policy = if key == 0 { WritePolicy::Through } else { WritePolicy::Behind };
                sender.send((key, block_on(cache.put_with(&key, 7, policy)))).unwrap();
            });
        }
        let closed = block_on(bay.close()).unwrap();
        let outcomes: BTreeMap<u32, _> = (0..3).map(|_| outcomes.recv().unwrap()).collect();
        drop((cache, bay));
        let bay = layer(&disk, &store).open_blocking().unwrap();
        assert_eq!(bay.pending(), closed.queued);
        let cache: Cache<u32, u64> = bay.cache("n").open().unwrap();
        for (key, outcome) in outcomes {
            let found = block_on(cache.get(&key)).unwrap();
            match outcome {
                Ok(_) => assert_eq!(found, Some(7), "{key} was acknowledged"),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
                    assert_eq!(found, None, "{key} was refused: {error}");
                }
            }
        }
    });
}

/// Writers at a full gate get in as soon as there is room, all of them, and the queue never holds more than it may.
#[test]
fn full_gate() {
    in_many_orders("full gate", || {
        let bay = layer(&SimDisk::new(), &MemoryStore::new()).queue_records_max(2);
        let bay = bay.backpressure(Backpressure::Wait).open_blocking().unwrap();
        let cache: Cache<u32, u64> = bay.cache("n").open().unwrap();
        let writers: Vec<_> = (0..3)
            .map(|key| {
                let (bay, cache) = (bay.clone(), cache.clone());
                thread::spawn(move || {
                    for value in 0..2 {
                        block_on(cache.put(&key, value)).unwrap();
                        assert!(bay.pending() <= 2, "the queue is bounded");
                    }
                })
            })
            .collect();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        block_on(bay.flush()).unwrap();
        assert_eq!(bay.pending(), 0);
    });
}
