//! From the commit of a write to the store that holds it, and on to the follower that has carried out what it says.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use bytes::Bytes;
use forebay::store::{Batch, BoxFuture, Claim, OwnerStatus, Standing, Store, StoreError, Tenure, Versioned};
use forebay::{Cache, Durability, Follow, Forebay, Key, Publish, Seq, WritePolicy};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::buses::{CHANNEL, Ground, Over};
use crate::load::{KEYS, Paced, Ranks};

const NAMESPACE: &str = "lag";
/// The time until the first write is due, by when all writers have started.
const HEAD_START: Duration = Duration::from_millis(100);
/// The time within which a follower has to receive the last write.
const PATIENCE: Duration = Duration::from_secs(120);

/// The numbers that were reached, and when.
type Marks = Vec<(Seq, Instant)>;

/// A store that notes when it held what. A layer that is asked for its watermark hurries, which is not to be measured.
struct Noting {
    store: Box<dyn Store>,
    applied: Arc<Mutex<Marks>>,
}

impl Store for Noting {
    fn has_change_feed(&self) -> bool {
        self.store.has_change_feed()
    }

    fn standing(&self) -> BoxFuture<'_, Result<Standing, StoreError>> {
        self.store.standing()
    }

    fn claim<'a>(&'a self, claim: &'a Claim) -> BoxFuture<'a, Result<Standing, StoreError>> {
        self.store.claim(claim)
    }

    fn renew(&self, tenure: Tenure, ends: bool) -> BoxFuture<'_, Result<Option<Seq>, StoreError>> {
        self.store.renew(tenure, ends)
    }

    fn owner_status(&self) -> BoxFuture<'_, Result<OwnerStatus, StoreError>> {
        self.store.owner_status()
    }

    fn load<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Versioned>, StoreError>> {
        self.store.load(key)
    }

    fn load_many<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<Vec<Option<Versioned>>, StoreError>> {
        self.store.load_many(keys)
    }

    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            self.store.apply(batch).await?;
            let mark = (batch.until, Instant::now());
            self.applied.lock().unwrap_or_else(PoisonError::into_inner).push(mark);
            Ok(())
        })
    }
}

/// The result for one bus.
pub(crate) struct Lag {
    pub(crate) over: Over,
    pub(crate) writes: u64,
    pub(crate) writes_per_s: f64,
    pub(crate) put: Ranks,
    pub(crate) commit_to_store: Ranks,
    pub(crate) store_to_follower: Ranks,
    pub(crate) commit_to_follower: Ranks,
    pub(crate) events: u64,
    pub(crate) directives: u64,
    /// Gaps, and gaps that could not be filled: with any of them the lag is not that of events alone.
    pub(crate) gaps: u64,
    pub(crate) places_lost: u64,
}

/// Lets writers write at a rate, and a follower hear of it. The first `warm_up` writes do not count.
pub(crate) async fn measure(
    over: Over,
    load: Paced,
    warm_up: u64,
    linger: Duration,
    directory: &Path,
) -> Result<Lag> {
    let ground = Ground::new(over).await?;
    let applied = Arc::new(Mutex::new(Marks::new()));
    let store = Noting { store: ground.owner_store, applied: Arc::clone(&applied) };
    let journal = directory.join(over.name());
    let owner = Forebay::builder(store)
        .journal(journal)
        .durability(Durability::Sync)
        .batch_linger(linger)
        .changes(ground.owner_bus.is_some())
        .open()
        .await?;
    let cache: Cache<u64, Bytes> = owner
        .cache(NAMESPACE)
        .capacity(usize::try_from(2 * KEYS)?)
        .write_policy(WritePolicy::Behind)
        .open()?;
    let publication = match ground.owner_bus {
        Some(bus) => Some(owner.publish(bus, Publish::to(CHANNEL)).await?),
        None => None,
    };
    let follow = Follow::new(ground.follower_bus, CHANNEL);
    let follower = Forebay::builder(ground.follower_store).follow(follow).open().await?;
    let _followed: Cache<u64, Bytes> = follower.cache(NAMESPACE).open()?;

    // The follower listens once it knows of this one, over the bus or because it has asked the store when it began to.
    let first = cache.put(&0, Bytes::new()).await?.seq();
    owner.flush().await?;
    within("the first event", follower.wait_applied(first)).await??;

    let (last, ended) = watch::channel(None);
    let hearing = tokio::spawn(hear(follower.clone(), first, ended));
    let start = Instant::now() + HEAD_START;
    let writes = load.write(&cache, start).await?;
    let newest = writes.last().context("there is at least one write")?.seq;
    last.send_replace(Some(newest));
    let heard = within("the last event", hearing).await???;
    let figures = follower.following().context("it follows")?;

    drop(publication);
    drop(follower);
    let closed = owner.close().await?;
    ensure!(closed.queued == 0, "{} records are queued though the follower has heard of all", closed.queued);

    let applied = std::mem::take(&mut *applied.lock().unwrap_or_else(PoisonError::into_inner));
    let (mut put, mut to_store, mut to_follower, mut from_store) = (vec![], vec![], vec![], vec![]);
    let counted = || writes.iter().filter(|write| write.number >= warm_up);
    for write in counted() {
        let at_store = reached(&applied, write.seq)?;
        let at_follower = reached(&heard, write.seq)?;
        put.push(write.took);
        // The store may hold a write before its writer gets to look at the clock.
        to_store.push(at_store.saturating_duration_since(write.committed));
        to_follower.push(at_follower.saturating_duration_since(write.committed));
        from_store.push(at_follower.saturating_duration_since(at_store));
    }
    let due = start + Duration::from_millis(warm_up * 1_000 / load.rate);
    let end = counted().map(|write| write.committed).max().context("some writes count")?;
    Ok(Lag {
        over,
        writes: put.len() as u64,
        writes_per_s: put.len() as f64 / end.duration_since(due).as_secs_f64(),
        put: Ranks::of(put)?,
        commit_to_store: Ranks::of(to_store)?,
        store_to_follower: Ranks::of(from_store)?,
        commit_to_follower: Ranks::of(to_follower)?,
        events: figures.events,
        directives: figures.directives,
        gaps: figures.gaps,
        places_lost: figures.places_lost,
    })
}

async fn within<T>(what: &str, work: impl Future<Output = T>) -> Result<T> {
    timeout(PATIENCE, work).await.map_err(|_| anyhow!("{what} was not heard for {PATIENCE:?}"))
}

/// Notes when the follower had heard everything up to where, until that is the last write.
async fn hear(follower: Forebay, first: Seq, mut last: watch::Receiver<Option<Seq>>) -> Result<Marks> {
    let (mut marks, mut at) = (Marks::new(), first);
    while last.borrow().is_none_or(|last| at < last) {
        tokio::select! {
            biased;
            moved = follower.wait_applied(Seq::new(at.get() + 1)) => {
                moved?;
                at = follower.watermark();
                marks.push((at, Instant::now()));
            }
            ended = last.changed() => ended?,
        }
    }
    Ok(marks)
}

/// Returns the moment at which everything up to this number was reached.
fn reached(marks: &Marks, seq: Seq) -> Result<Instant> {
    let at = marks.partition_point(|(until, _)| *until < seq);
    Ok(marks.get(at).with_context(|| format!("nothing has reached record {seq}"))?.1)
}
