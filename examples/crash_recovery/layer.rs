//! Where this example touches the crate: opening the layer, and looking at what the store holds.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use forebay::store::{StoreError, Versioned};
use forebay::testkit::FlakyStore;
use forebay::{
    Bincode, Cache, Codec as _, Durability, Forebay, JournalOptions, Key, NamespaceName, SledStore, Store,
    WritePolicy,
};

use crate::history::{Entry, Id, Place, Side};
use crate::ledger::{Image, Shown};
use crate::served::ServedStore;

/// The prefix of a stored value: its codec and its schema version.
const VALUE_PREFIX_BYTES: usize = 2;

/// The time for which the store of [`Settings::stalls`] stands still, and then works.
const STALL: Duration = Duration::from_millis(150);

/// The options of the layer; the same in every child and in the parent, except for the failures.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) store: StoreAt,
    pub(crate) journal: PathBuf,
    pub(crate) durability: Durability,
    /// The store stands still at every other moment, so that the journal grows meanwhile.
    pub(crate) stalls: bool,
    /// Makes the store fail at random, before and after it has applied.
    pub(crate) flaky_seed: Option<u64>,
    /// The flusher's wait for a batch to fill: the longer, the more a kill leaves to the journal.
    pub(crate) batch_linger: Duration,
}

/// Where the store is.
#[derive(Clone, Debug)]
pub(crate) enum StoreAt {
    /// In this directory.
    Directory(PathBuf),
    /// Behind this socket.
    Socket(PathBuf),
}

/// Opens the layer with bounds so small that segments fill and are recycled, values are left to the journal,
/// and writers meet a full queue, all within milliseconds.
pub(crate) fn open(settings: &Settings) -> Result<Forebay> {
    match &settings.store {
        StoreAt::Directory(path) => open_on(SledStore::open(path)?, settings),
        StoreAt::Socket(path) => open_on(ServedStore::new(path.clone()), settings),
    }
}

fn open_on(store: impl Store + Clone, settings: &Settings) -> Result<Forebay> {
    let flaky = FlakyStore::new(store);
    if let Some(seed) = settings.flaky_seed {
        flaky.randomly(seed, 20);
    }
    if settings.stalls {
        let shared = flaky.clone();
        thread::spawn(move || {
            loop {
                shared.stall();
                thread::sleep(STALL);
                shared.release();
                thread::sleep(STALL);
            }
        });
    }
    let plain = settings.flaky_seed.is_none() && !settings.stalls;
    let builder = if plain { Forebay::builder(flaky.inner().clone()) } else { Forebay::builder(flaky) };
    let mut journal = JournalOptions::default();
    journal.segment_bytes = 128 * 1024;
    // Segments that are used again need no room.
    journal.recycle = !settings.stalls;
    let bay = builder
        .journal(&settings.journal)
        .journal_options(journal)
        .durability(settings.durability)
        .pending_memory_bytes_max(32 * 1024)
        .queue_records_max(2_000)
        .queue_bytes_max(1024 * 1024)
        .batch_records_max(200)
        .batch_linger(settings.batch_linger)
        .retry_backoff(Duration::from_millis(1), Duration::from_millis(20))
        .open_blocking()?;
    Ok(bay)
}

/// One of the two caches. It holds a part of the keys in memory, so that reads come from every level.
pub(crate) fn open_cache(bay: &Forebay, side: Side) -> Result<Cache<u64, Entry>> {
    Ok(bay.cache(side.namespace()).capacity(64).write_policy(WritePolicy::Behind).open()?)
}

/// Reads every key through the layer.
pub(crate) fn read_all(bay: &Forebay, seed: u64) -> Result<BTreeMap<Place, Option<Id>>> {
    let mut seen = BTreeMap::new();
    for side in Side::BOTH {
        let cache = open_cache(bay, side)?.blocking();
        for place in Place::all().filter(|place| place.side == side) {
            let entry = cache.get(&place.key)?;
            let genuine = entry.as_ref().is_none_or(|entry| entry.place == place && entry.is_genuine(seed));
            ensure!(genuine, "{place:?} read a value that nobody wrote there");
            seen.insert(place, entry.map(|entry| entry.id));
        }
    }
    Ok(seen)
}

/// Reads every key from the store, with no layer in front of it.
pub(crate) fn store_image(store: &Path, seed: u64) -> Result<Image> {
    let store = SledStore::open(store)?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let failed = |error: StoreError| anyhow!(error.into_error()).context("looking at the store alone");
    runtime.block_on(async {
        let tenure = store.standing().await.map_err(failed)?;
        let mut image = Image { watermark: tenure.progress.applied.get(), shown: BTreeMap::new() };
        for place in Place::all() {
            if let Some(stored) = store.load(&stored_key(place)?).await.map_err(failed)? {
                image.shown.insert(place, shown(seed, place, &stored));
            }
        }
        Ok(image)
    })
}

fn stored_key(place: Place) -> Result<Key> {
    let mut encoded = Vec::new();
    Bincode::encode(&place.key, 64, &mut encoded).map_err(|why| anyhow!(why))?;
    Key::new(&NamespaceName::parse(place.side.namespace())?, &encoded).context("the stored key")
}

fn shown(seed: u64, place: Place, stored: &Versioned) -> Shown {
    let body = stored.value.get(VALUE_PREFIX_BYTES..).unwrap_or(&[]);
    let entry = Bincode::decode::<Entry>(body).ok();
    let genuine = entry.filter(|entry| entry.place == place && entry.is_genuine(seed));
    Shown { id: genuine.map(|entry| entry.id), version: stored.version.get() }
}
