//! A store that takes its time to say how far the owner has come.

use std::sync::Arc;

use forebay::store::{Batch, BoxFuture, Claim, Standing, Store, StoreError, Versioned};
use forebay::{Cache, Key, MemoryStore, Source};
use tokio::sync::watch;

use super::{Bed, before, changed};

/// Its answers about the tenure are taken at once and given when they are let go.
#[derive(Clone)]
struct HeldAnswers {
    store: MemoryStore,
    asked: Arc<watch::Sender<u64>>,
    open: Arc<watch::Sender<bool>>,
}

impl HeldAnswers {
    /// Waits until an answer has been taken that was asked for from now on.
    async fn asked_again(&self) {
        let before = *self.asked.borrow();
        self.asked.subscribe().wait_for(|asked| *asked > before).await.unwrap();
    }
}

impl Store for HeldAnswers {
    fn standing(&self) -> BoxFuture<'_, Result<Standing, StoreError>> {
        Box::pin(async {
            let tenure = self.store.standing().await;
            self.asked.send_modify(|asked| *asked += 1);
            self.open.subscribe().wait_for(|open| *open).await.unwrap();
            tenure
        })
    }

    fn claim<'a>(&'a self, claim: &'a Claim) -> BoxFuture<'a, Result<Standing, StoreError>> {
        self.store.claim(claim)
    }

    fn load<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Versioned>, StoreError>> {
        self.store.load(key)
    }

    fn load_many<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<Vec<Option<Versioned>>, StoreError>> {
        self.store.load_many(keys)
    }

    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<(), StoreError>> {
        self.store.apply(batch)
    }
}

/// A follower asked its store, heard of a write while the answer was on its way, and took the answer, which could not
/// know of that write, for the sign of a store that had been restored from a copy: it emptied its memory.
#[tokio::test]
async fn an_answer_that_was_overtaken_by_an_event_is_no_older_store() {
    let bed = Bed::new().await;
    bed.write(1, 10).await;
    let store = HeldAnswers {
        store: bed.layer.store.clone(),
        asked: Arc::new(watch::Sender::new(0)),
        open: Arc::new(watch::Sender::new(true)),
    };
    let bay = bed.open(store.clone(), bed.follow()).await;
    let prices: Cache<u64, u64> = bay.cache("prices").open().unwrap();
    let seq = bed.write(2, 20).await;
    bed.tell(before(seq), seq, vec![changed(2, seq)]).await;
    assert_eq!(prices.get(&1).await.unwrap(), Some(10));

    store.open.send_replace(false);
    store.asked_again().await;
    let seq = bed.write(2, 21).await;
    bed.tell(before(seq), seq, vec![changed(2, seq)]).await;
    assert_eq!(bay.watermark(), seq);
    store.open.send_replace(true);
    // Whoever asks again has dealt with the answer before.
    store.asked_again().await;

    assert_eq!(bay.following().unwrap().places_lost, 0);
    assert_eq!(bay.watermark(), seq);
    assert_eq!(prices.get_entry(&1).await.unwrap().source, Source::Memory);
}
