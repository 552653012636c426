//! The race that leaves old values in caches, run against moka's `get_with` and against `get_or_load`, and counted.
//!
//! ```sh
//! cargo run --release -p forebay-services --bin cache_aside_race
//! ```
//!
//! A reader misses and loads version 1 of a key from a source. Before its load ends, a writer changes the source to
//! version 2 and tells the cache, in one of several ways. Then, in every other round, a second reader comes; the load
//! ends, and a third reader comes. *Kept* counts the rounds in which the cache had version 1 in the end, *returned*
//! those in which the second or the third reader, who both began after the change, was given version 1.
//!
//! Every step waits for the one before it: nothing here is left to chance, or to time. Exits with 1 if Forebay's cache
//! kept or returned version 1 once.

#![allow(clippy::print_stdout, reason = "it is a program that prints")]

use std::future::{Future, ready};
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use forebay::{Cache, Durability, Forebay, MemoryStore, Seq, WritePolicy};
use tokio::sync::oneshot;

#[derive(Parser)]
struct Options {
    /// Rounds of each change on each cache.
    #[arg(long, default_value_t = 1_000)]
    rounds: u64,
}

/// The call by which the writer notifies a cache.
#[derive(Clone, Copy, Debug)]
enum Change {
    Put,
    PutThrough,
    PutAround,
    Batch,
    Remove,
    Invalidate,
    InvalidateVersion,
    InvalidateAll,
}

const CHANGES: [Change; 8] = [
    Change::Put,
    Change::PutThrough,
    Change::PutAround,
    Change::Batch,
    Change::Remove,
    Change::Invalidate,
    Change::InvalidateVersion,
    Change::InvalidateAll,
];

/// A cache beside a source.
trait Aside: Clone + Send + Sync + 'static {
    /// Returns the cached version, or else the one that `load` brings.
    fn read(
        &self,
        key: u64,
        load: impl Future<Output = u64> + Send + 'static,
    ) -> impl Future<Output = Result<u64>> + Send;

    /// Returns the cached version.
    fn kept(&self, key: u64) -> impl Future<Output = Result<Option<u64>>> + Send;

    /// Tells the cache that the source has version 2 of a key; says whether it can be told so.
    fn tell(&self, change: Change, key: u64) -> impl Future<Output = Result<bool>> + Send;
}

impl Aside for moka::future::Cache<u64, u64> {
    async fn read(&self, key: u64, load: impl Future<Output = u64> + Send + 'static) -> Result<u64> {
        Ok(self.get_with(key, load).await)
    }

    async fn kept(&self, key: u64) -> Result<Option<u64>> {
        Ok(self.get(&key).await)
    }

    async fn tell(&self, change: Change, key: u64) -> Result<bool> {
        match change {
            Change::Put => self.insert(key, 2).await,
            Change::Remove => drop(self.remove(&key).await),
            Change::Invalidate => self.invalidate(&key).await,
            Change::InvalidateAll => self.invalidate_all(),
            Change::PutThrough | Change::PutAround | Change::Batch | Change::InvalidateVersion => {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// A cache of Forebay with its layer.
#[derive(Clone)]
struct Ours {
    bay: Forebay,
    cache: Cache<u64, u64>,
}

impl Aside for Ours {
    async fn read(&self, key: u64, load: impl Future<Output = u64> + Send + 'static) -> Result<u64> {
        let load = async { Ok::<_, String>(Some(load.await)) };
        self.cache.get_or_load(&key, |_| load).await?.context("the source has every key")
    }

    async fn kept(&self, key: u64) -> Result<Option<u64>> {
        Ok(self.cache.get(&key).await?)
    }

    async fn tell(&self, change: Change, key: u64) -> Result<bool> {
        let cache = &self.cache;
        match change {
            Change::Put => drop(cache.put(&key, 2).await?),
            Change::PutThrough => drop(cache.put_with(&key, 2, WritePolicy::Through).await?),
            Change::PutAround => drop(cache.put_with(&key, 2, WritePolicy::Around).await?),
            Change::Batch => {
                let mut batch = self.bay.batch();
                batch.put(cache, &key, 2)?;
                batch.commit().await?;
            }
            Change::Remove => drop(cache.remove(&key).await?),
            Change::Invalidate => cache.invalidate(&key),
            Change::InvalidateVersion => drop(cache.invalidate_version(&key, Seq::new(2))),
            Change::InvalidateAll => cache.invalidate_all(),
        }
        Ok(true)
    }
}

/// The counts of one change over all its rounds.
#[derive(Default)]
struct Tally {
    kept: u64,
    returned: u64,
}

/// One round, with two readers or three; says whether version 1 was kept, and whether it was returned to who came
/// later.
async fn race(cache: &impl Aside, change: Change, key: u64, three: bool) -> Result<Option<(bool, bool)>> {
    let source = Arc::new(AtomicU64::new(1));
    let now = || {
        let source = Arc::clone(&source);
        async move { source.load(SeqCst) }
    };
    let (has_read, read) = oneshot::channel();
    let (let_go, may_end) = oneshot::channel::<()>();
    let first = tokio::spawn({
        let (cache, load) = (cache.clone(), now());
        let load = async move {
            let version = load.await;
            // That nobody waits any more is the main program's failure, which it tells itself.
            has_read.send(()).ok();
            // It is let go by being dropped.
            may_end.await.ok();
            version
        };
        async move { cache.read(key, load).await }
    });
    read.await.context("the first reader loads")?;
    source.store(2, SeqCst);
    let told = cache.tell(change, key).await?;
    let mut second = pin!(async { if three { cache.read(key, now()).await } else { Ok(2) } });
    // It begins before the load ends, and may have to wait for that.
    let early = tokio::select! {
        biased;
        version = &mut second => Some(version),
        () = ready(()) => None,
    };
    drop(let_go);
    first.await.context("the first reader ends")??;
    let second = match early {
        Some(version) => version?,
        None => second.await?,
    };
    let kept = cache.kept(key).await? == Some(1);
    let third = cache.read(key, now()).await?;
    Ok(told.then_some((kept, second == 1 || third == 1)))
}

/// All rounds of one change; nothing if this cache cannot be told so.
async fn races(cache: &impl Aside, change: Change, keys: std::ops::Range<u64>) -> Result<Option<Tally>> {
    let mut tally = Tally::default();
    for key in keys {
        let Some((kept, returned)) = race(cache, change, key, key.is_multiple_of(2)).await? else {
            return Ok(None);
        };
        tally.kept += u64::from(kept);
        tally.returned += u64::from(returned);
    }
    Ok(Some(tally))
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let Options { rounds } = Options::parse();
    let directory = tempfile::tempdir()?;
    let bay = Forebay::builder(MemoryStore::new())
        .journal(directory.path())
        .durability(Durability::Buffered { sync_interval: Duration::from_secs(1) })
        .open()
        .await?;
    let ours = Ours { cache: bay.cache("prices").open()?, bay };
    let moka = moka::future::Cache::new(10_000);
    println!("{rounds} rounds of each change; in how many of them version 1 came back:\n");
    println!("{:<18} {:^19}   {:^19}", "", "moka's get_with", "get_or_load");
    println!("{:<18} {:>8} {:>10}   {:>8} {:>10}", "change", "kept", "returned", "kept", "returned");
    let mut old = 0;
    for (change, from) in CHANGES.into_iter().zip((0..).step_by(usize::try_from(rounds)?)) {
        let keys = from..from + rounds;
        let theirs = races(&moka, change, keys.clone()).await?;
        let ours = races(&ours, change, keys).await?;
        old += ours.as_ref().map_or(0, |tally| tally.kept + tally.returned);
        let shown = |tally: Option<Tally>| match tally {
            Some(Tally { kept, returned }) => format!("{kept:>8} {returned:>10}"),
            None => format!("{:>8} {:>10}", "-", "-"),
        };
        println!("{:<18} {}   {}", format!("{change:?}"), shown(theirs), shown(ours));
    }
    ours.bay.close().await?;
    Ok(if old == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
