//! Where this example touches the crate: opening the layer, and looking at what the store holds.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use forebay::store::contract::{Store as _, StoreError, Versioned};
use forebay::testkit::FlakyStore;
use forebay::{
    Bincode, Cache, Codec as _, Durability, Forebay, JournalOptions, Key, NamespaceName, SledStore,
    WritePolicy,
};

use crate::history::{Entry, Id, Place, Side};
use crate::ledger::{Image, Shown};

/// The prefix of a stored value: its codec and its schema version.
const VALUE_PREFIX_BYTES: usize = 2;

/// How the layer is opened; the same in every child and in the parent, except for the failures.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) durability: Durability,
    /// Makes the store fail at random, before and after it has applied.
    pub(crate) flaky_seed: Option<u64>,
    /// How long the flusher waits for a batch to fill: the longer, the more a kill leaves to the journal.
    pub(crate) batch_linger: Duration,
}

/// Opens the layer with bounds so small that segments fill and are recycled, values are left to the journal,
/// and writers meet a full queue, all within milliseconds.
pub(crate) fn open(directory: &Path, settings: Settings) -> Result<Forebay> {
    let store = SledStore::open(directory.join("store"))?;
    let builder = match settings.flaky_seed {
        Some(seed) => {
            let flaky = FlakyStore::new(store);
            flaky.randomly(seed, 20);
            Forebay::builder(flaky)
        }
        None => Forebay::builder(store),
    };
    let mut journal = JournalOptions::default();
    journal.segment_bytes = 128 * 1024;
    let bay = builder
        .journal(directory.join("journal"))
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

/// What readers of the layer see.
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

/// What the store holds, read from it directly, with no layer in front of it.
pub(crate) fn store_image(directory: &Path, seed: u64) -> Result<Image> {
    let store = SledStore::open(directory.join("store"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let failed = |error: StoreError| anyhow!(error.into_error()).context("looking at the store alone");
    runtime.block_on(async {
        let tenure = store.tenure().await.map_err(failed)?;
        let mut image = Image { watermark: tenure.progress.applied.0, shown: BTreeMap::new() };
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
    Shown { id: genuine.map(|entry| entry.id), version: stored.version.0 }
}
