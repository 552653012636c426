//! A layer whose store and whose readers' loaders others change past it, and hold back.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use forebay::disk::{Disk, SimDisk};
use forebay::options::LayerSizes;
use forebay::store::{Batch, BoxFuture, Claim, Standing, Store, StoreError, Versioned};
use forebay::{Bincode, Cache, Codec, Forebay, JournalOptions, Key, MemoryStore, Seq};
use shuttle::future::yield_now;
use tokio::sync::watch;

use crate::harness::run::key_of;
use crate::harness::world::ready;

/// The versions of what others write.
pub const OLD_VERSION: Seq = Seq::new(1);
pub const NEW_VERSION: Seq = Seq::new(2);
/// A key that nobody changes.
pub const OTHER: u32 = 0;
pub const OTHER_VALUE: u64 = 7;
/// The group of every key.
pub const GROUP: &str = "all";
/// The tag of every value that the layer did not write.
pub const TAG: &str = "t";

/// An open layer with two caches, which remember absences and do not.
pub struct Bay {
    pub truth: Truth,
    pub bay: Forebay,
    pub remembering: Cache<u32, u64>,
    pub forgetting: Cache<u32, u64>,
}

impl Bay {
    pub fn open() -> Bay {
        let (truth, disk): (_, Arc<dyn Disk>) = (Truth::default(), Arc::new(SimDisk::new()));
        let mut journal = JournalOptions::default();
        (journal.segment_bytes, journal.zero_fill, journal.spares_max) = (64 << 10, false, 0);
        let bay = Forebay::builder(truth.clone())
            .journal(PathBuf::from("/journal"))
            .journal_options(journal)
            .sizes(LayerSizes::COLLIDING)
            .disk(disk)
            .batch_linger(Duration::ZERO)
            .open_blocking()
            .unwrap();
        let remembering =
            bay.cache("remembering").negative_time_to_live(Duration::from_secs(3600)).group_by(in_group);
        let remembering = remembering.open().unwrap();
        let forgetting = bay.cache("forgetting").group_by(in_group).open().unwrap();
        for cache in [&remembering, &forgetting] {
            truth.store(Cache::<u32, u64>::namespace(cache), OTHER, Some(OTHER_VALUE), OLD_VERSION);
        }
        Bay { truth, bay, remembering, forgetting }
    }
}

fn in_group(_: &u32) -> Option<String> {
    Some(GROUP.to_owned())
}

/// The system of record, and what loaders load from. A load takes its answer, and gives it some time later.
#[derive(Clone, Default)]
pub struct Truth {
    store: MemoryStore,
    /// The lock is std's, held over no point where threads change.
    others: Arc<Mutex<Others>>,
}

#[derive(Default)]
struct Others {
    /// Changes that others made to the store.
    stored: BTreeMap<Key, Option<Versioned>>,
    source: BTreeMap<u32, u64>,
    hold: Option<Held>,
}

/// The load that is held back.
struct Held {
    key: Place,
    taken: watch::Sender<bool>,
    over: watch::Receiver<()>,
}

#[derive(Clone, PartialEq, Eq)]
enum Place {
    Store(Key),
    Source(u32),
}

/// Holds a load back until it is dropped.
pub struct Hold {
    taken: watch::Receiver<bool>,
    _over: watch::Sender<()>,
}

impl Hold {
    /// Waits until a load has its answer.
    pub async fn wait_until_taken(&self) {
        self.taken.clone().wait_for(|taken| *taken).await.expect("the load is held");
    }
}

impl Truth {
    fn others(&self) -> MutexGuard<'_, Others> {
        self.others.lock().unwrap()
    }

    /// Others write the store.
    pub fn store(&self, namespace: &str, key: u32, value: Option<u64>, version: Seq) {
        let value = value.map(|value| {
            // As in the manual: codec, schema with the bit that says tags, how many, and each with its length.
            let mut encoded = vec![Bincode::ID, 1 | 1 << 7, 1, TAG.len() as u8];
            encoded.extend_from_slice(TAG.as_bytes());
            Bincode::encode(&value, 1 << 10, &mut encoded).unwrap();
            Versioned { value: encoded.into(), version }
        });
        self.others().stored.insert(key_of(namespace, key), value);
    }

    /// Others write what loaders load from.
    pub fn source(&self, key: u32, value: Option<u64>) {
        let source = &mut self.others().source;
        match value {
            Some(value) => drop(source.insert(key, value)),
            None => drop(source.remove(&key)),
        }
    }

    /// Holds back the next load of a key, between its answer and its end.
    pub fn hold(&self, namespace: &str, key: u32, in_source: bool) -> Hold {
        let key = if in_source { Place::Source(key) } else { Place::Store(key_of(namespace, key)) };
        let (taken, taking) = watch::channel(false);
        let (ends, over) = watch::channel(());
        self.others().hold = Some(Held { key, taken, over });
        Hold { taken: taking, _over: ends }
    }

    /// Loads as a cache's loader does.
    pub async fn load(&self, keys: &[u32]) -> Vec<Option<u64>> {
        self.answer(keys.iter().map(|key| Place::Source(*key)).collect(), |others| {
            keys.iter().map(|key| others.source.get(key).copied()).collect()
        })
        .await
    }

    async fn answer<T>(&self, places: Vec<Place>, take: impl FnOnce(&Others) -> T) -> T {
        yield_now().await;
        let (answer, hold) = {
            let mut others = self.others();
            let answer = take(&others);
            (answer, others.hold.take_if(|hold| places.contains(&hold.key)))
        };
        if let Some(mut hold) = hold {
            hold.taken.send_replace(true);
            // The hold says nothing; it goes away.
            hold.over.changed().await.expect_err("nothing is sent");
        }
        yield_now().await;
        answer
    }
}

impl Store for Truth {
    fn standing(&self) -> BoxFuture<'_, Result<Standing, StoreError>> {
        self.store.standing()
    }

    fn claim<'a>(&'a self, claim: &'a Claim) -> BoxFuture<'a, Result<Standing, StoreError>> {
        self.store.claim(claim)
    }

    fn load<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Versioned>, StoreError>> {
        Box::pin(async { Ok(self.load_many(std::slice::from_ref(key)).await?.remove(0)) })
    }

    fn load_many<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<Vec<Option<Versioned>>, StoreError>> {
        Box::pin(self.answer(keys.iter().cloned().map(Place::Store).collect(), |others| {
            let mut loaded = ready(self.store.load_many(keys))?;
            for (key, loaded) in keys.iter().zip(&mut loaded) {
                if let Some(others) = others.stored.get(key) {
                    loaded.clone_from(others);
                }
            }
            Ok(loaded)
        }))
    }

    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async {
            yield_now().await;
            {
                let mut others = self.others();
                ready(self.store.apply(batch))?;
                for op in &batch.ops {
                    others.stored.remove(&op.key);
                }
            }
            yield_now().await;
            Ok(())
        })
    }
}
