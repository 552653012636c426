//! A store with faults, on command or drawn from a seed.
//!
//! It wraps another store and forwards all calls that it does not fail, so the wrapped store shows which batches took
//! effect. No clock is involved: a stall lasts until the test releases it. The same seed gives the same faults for the
//! same sequence of applies.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::error::{Error, ErrorKind};
use crate::ids::{Key, Seq, Tenure};
use crate::store::contract::{
    Batch, BoxFuture, Claim, Op, OwnerStatus, Standing, Store, StoreError, Versioned,
};
use crate::testkit::draw::Draw;

/// A fault of one apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// [`StoreError::Transient`], and nothing was applied.
    TransientBefore,
    /// [`StoreError::Transient`], although the batch was applied.
    TransientAfter,
    /// [`StoreError::Fatal`], and nothing was applied.
    Fatal,
}

/// A store with faults. Clones share the script, the log and the wrapped store.
#[derive(Clone, Debug)]
pub struct FlakyStore<S> {
    inner: S,
    shared: Arc<FlakyShared>,
}

#[derive(Debug)]
struct FlakyShared {
    state: Mutex<FlakyState>,
    stalled: watch::Sender<bool>,
    waiting: watch::Sender<usize>,
}

#[derive(Debug, Default)]
struct FlakyState {
    script: VecDeque<Option<Fault>>,
    random: Option<RandomFaults>,
    rejected: BTreeSet<Key>,
    loads_failing: bool,
    standing_failing: bool,
    /// The fault of each apply so far.
    faults: Vec<Option<Fault>>,
    changes: Vec<Op>,
    watermark: Seq,
}

#[derive(Debug)]
struct RandomFaults {
    draw: Draw,
    percent: u8,
}

impl<S: Store> FlakyStore<S> {
    /// Wraps `inner`. There are no faults until one is requested.
    #[must_use]
    pub fn new(inner: S) -> FlakyStore<S> {
        let shared = FlakyShared {
            state: Mutex::default(),
            stalled: watch::Sender::new(false),
            waiting: watch::Sender::new(0),
        };
        FlakyStore { inner, shared: Arc::new(shared) }
    }

    /// Returns the wrapped store.
    #[must_use]
    pub fn inner(&self) -> &S {
        &self.inner
    }

    /// Appends faults to the script: one for each of the next applies. `None` lets an apply through.
    pub fn script(&self, faults: impl IntoIterator<Item = Option<Fault>>) {
        self.state().script.extend(faults);
    }

    /// Once the script is used up, fails about this percentage of applies, half of them after applying. Zero ends it.
    pub fn randomly(&self, seed: u64, percent: u8) {
        self.state().random = (percent > 0).then(|| RandomFaults { draw: Draw::new(seed), percent });
    }

    /// Rejects every batch with one of these keys, and names the first such record, until
    /// [`FlakyStore::accept_all`].
    pub fn reject(&self, keys: impl IntoIterator<Item = Key>) {
        self.state().rejected.extend(keys);
    }

    /// Ends [`FlakyStore::reject`].
    pub fn accept_all(&self) {
        self.state().rejected.clear();
    }

    /// Makes loads fail with [`StoreError::Transient`] from now on, or no longer.
    pub fn fail_loads(&self, failing: bool) {
        self.state().loads_failing = failing;
    }

    /// Makes [`Store::standing`] fail with [`StoreError::Transient`] from now on, or no longer.
    pub fn fail_standing(&self, failing: bool) {
        self.state().standing_failing = failing;
    }

    /// Stalls every apply from now on, before it does anything, until [`FlakyStore::release`].
    pub fn stall(&self) {
        self.shared.stalled.send_replace(true);
    }

    /// Releases the stalled applies, and stalls no further ones.
    pub fn release(&self) {
        self.shared.stalled.send_replace(false);
    }

    /// Waits until at least `count` applies are stalled.
    pub async fn wait_stalled(&self, count: usize) {
        let mut waiting = self.shared.waiting.subscribe();
        let reached = waiting.wait_for(|now| *now >= count).await;
        reached.expect("this store holds the sender");
    }

    /// Returns the fault of each apply so far, in the order of their arrival; after a stall, of their release. `None`
    /// for an apply that was let through or rejected.
    #[must_use]
    pub fn faults(&self) -> Vec<Option<Fault>> {
        self.state().faults.clone()
    }

    /// Returns the number of applies so far.
    #[must_use]
    pub fn applies(&self) -> usize {
        self.state().faults.len()
    }

    /// Returns all ops that took effect, in this order, without those that the store skipped as applied already.
    /// Complete only for batches that went through this wrapper.
    #[must_use]
    pub fn ops_applied(&self) -> Vec<Op> {
        self.state().changes.clone()
    }

    fn state(&self) -> MutexGuard<'_, FlakyState> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn wait_while_stalled(&self) {
        let mut stalled = self.shared.stalled.subscribe();
        if *stalled.borrow_and_update() {
            // A guard, so that a future that is dropped while it stalls is no longer counted.
            let _waiting = StalledApply::new(&self.shared.waiting);
            stalled.wait_for(|now| !now).await.expect("this store holds the sender");
        }
    }

    async fn apply_or_fail(&self, batch: &Batch) -> Result<(), StoreError> {
        self.wait_while_stalled().await;
        let fault = {
            let mut state = self.state();
            // Before the script, because a rejection must not use up a scripted fault.
            if let Some(op) = batch.ops.iter().find(|op| state.rejected.contains(&op.key)) {
                let error = Error::new(ErrorKind::Rejected, "the test rejects this key");
                let rejected = StoreError::Rejected { seq: op.seq, error };
                state.record(batch, None, false);
                return Err(rejected);
            }
            state.next_fault()
        };
        match fault {
            Some(Fault::TransientBefore) => {
                self.state().record(batch, fault, false);
                Err(StoreError::Transient(Error::new(ErrorKind::Transient, "the test fails this apply")))
            }
            Some(Fault::Fatal) => {
                self.state().record(batch, fault, false);
                Err(StoreError::Fatal(Error::new(ErrorKind::StoreFailed, "the test ends the store")))
            }
            Some(Fault::TransientAfter) | None => {
                let result = self.inner.apply(batch).await;
                self.state().record(batch, fault, result.is_ok());
                // Only a success can be hidden; another error of the store is shown as it is.
                if fault.is_some() && result.is_ok() {
                    let why = "the test hides that this apply worked";
                    return Err(StoreError::Transient(Error::new(ErrorKind::Transient, why)));
                }
                result
            }
        }
    }

    fn load_fault(&self) -> Result<(), StoreError> {
        if self.state().loads_failing {
            let error = Error::new(ErrorKind::Transient, "the test fails this load");
            return Err(StoreError::Transient(error));
        }
        Ok(())
    }
}

impl FlakyState {
    fn next_fault(&mut self) -> Option<Fault> {
        // The script comes first, so that a test can fix single applies within random ones.
        if let Some(fault) = self.script.pop_front() {
            return fault;
        }
        let random = self.random.as_mut()?;
        // Both are drawn each time, so that one outcome does not shift all later ones.
        let hit = random.draw.hits(random.percent);
        let after = random.draw.next().is_multiple_of(2);
        hit.then_some(if after { Fault::TransientAfter } else { Fault::TransientBefore })
    }

    fn record(&mut self, batch: &Batch, fault: Option<Fault>, applied: bool) {
        // A repetition is applied by the contract without a change, so it adds none here.
        if applied && batch.until > self.watermark {
            let watermark = self.watermark;
            self.changes.extend(batch.ops.iter().filter(|op| op.seq > watermark).cloned());
            self.watermark = batch.until;
        }
        self.faults.push(fault);
    }
}

/// Counts a stalled apply until it is released or its future is dropped.
struct StalledApply<'a>(&'a watch::Sender<usize>);

impl<'a> StalledApply<'a> {
    fn new(count: &'a watch::Sender<usize>) -> StalledApply<'a> {
        count.send_modify(|count| *count += 1);
        StalledApply(count)
    }
}

impl Drop for StalledApply<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl<S: Store> Store for FlakyStore<S> {
    fn has_change_feed(&self) -> bool {
        self.inner.has_change_feed()
    }

    fn standing(&self) -> BoxFuture<'_, Result<Standing, StoreError>> {
        Box::pin(async move {
            let failing = self.state().standing_failing;
            if failing {
                let error = Error::new(ErrorKind::Transient, "the test fails this question");
                return Err(StoreError::Transient(error));
            }
            self.inner.standing().await
        })
    }

    fn claim<'a>(&'a self, claim: &'a Claim) -> BoxFuture<'a, Result<Standing, StoreError>> {
        Box::pin(async move {
            let before = self.inner.claim(claim).await?;
            // The store may have been filled past this wrapper.
            self.state().watermark = before.progress.applied;
            Ok(before)
        })
    }

    fn renew(&self, tenure: Tenure, ends: bool) -> BoxFuture<'_, Result<Option<Seq>, StoreError>> {
        self.inner.renew(tenure, ends)
    }

    fn owner_status(&self) -> BoxFuture<'_, Result<OwnerStatus, StoreError>> {
        self.inner.owner_status()
    }

    fn load<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Versioned>, StoreError>> {
        Box::pin(async move {
            self.load_fault()?;
            self.inner.load(key).await
        })
    }

    fn load_many<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<Vec<Option<Versioned>>, StoreError>> {
        Box::pin(async move {
            self.load_fault()?;
            self.inner.load_many(keys).await
        })
    }

    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(self.apply_or_fail(batch))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::NamespaceName;
    use crate::store::contract::claimed;
    use crate::store::memory::MemoryStore;
    use bytes::Bytes;

    fn key(name: &str) -> Key {
        Key::new(&NamespaceName::parse("flaky").unwrap(), name.as_bytes()).unwrap()
    }

    fn batch(standing: Standing, seqs: std::ops::RangeInclusive<u64>) -> Batch {
        let (number, until) = (*seqs.end(), Seq(*seqs.end()));
        let after = Seq(*seqs.start()).before();
        let op = |seq| Op { seq: Seq(seq), key: key("k"), value: Some(Bytes::from(seq.to_string())) };
        let ops = seqs.map(op).collect();
        Batch { tenure: standing.tenure, number, after, until, journaled: until, ops }
    }

    #[tokio::test]
    async fn the_script_says_whether_a_failed_apply_took_effect() {
        let store = FlakyStore::new(MemoryStore::new());
        let tenure = claimed(&store, None).await;
        store.script([Some(Fault::TransientBefore), Some(Fault::TransientAfter), None, Some(Fault::Fatal)]);
        let first = batch(tenure, 1..=2);
        assert!(matches!(store.apply(&first).await, Err(StoreError::Transient(_))));
        assert_eq!(store.inner().applies(), 0);
        assert!(matches!(store.apply(&first).await, Err(StoreError::Transient(_))));
        assert_eq!(store.inner().applies(), 1);
        store.apply(&batch(tenure, 1..=3)).await.unwrap();
        assert!(matches!(store.apply(&batch(tenure, 4..=4)).await, Err(StoreError::Fatal(_))));
        let order: Vec<u64> = store.ops_applied().iter().map(|op| op.seq.0).collect();
        assert_eq!(order, [1, 2, 3], "each op took effect once, in order");
        assert_eq!(store.applies(), 4);
    }

    #[tokio::test]
    async fn a_rejected_key_is_named_and_nothing_of_its_batch_applied() {
        let store = FlakyStore::new(MemoryStore::new());
        let tenure = claimed(&store, None).await;
        store.reject([key("k")]);
        let error = store.apply(&batch(tenure, 1..=2)).await.unwrap_err();
        assert!(matches!(error, StoreError::Rejected { seq: Seq(1), .. }), "{error:?}");
        assert!(store.inner().snapshot().is_empty());
        store.accept_all();
        store.apply(&batch(tenure, 1..=2)).await.unwrap();
        assert_eq!(store.inner().applies(), 1);
    }

    #[tokio::test]
    async fn a_stalled_apply_waits_for_its_release() {
        let store = FlakyStore::new(MemoryStore::new());
        let tenure = claimed(&store, None).await;
        store.stall();
        let stalled = tokio::spawn({
            let store = store.clone();
            async move { store.apply(&batch(tenure, 1..=1)).await }
        });
        store.wait_stalled(1).await;
        assert_eq!(store.inner().applies(), 0);
        store.release();
        stalled.await.unwrap().unwrap();
        assert_eq!(store.inner().applies(), 1);
    }

    #[tokio::test]
    async fn the_same_seed_gives_the_same_faults() {
        let mut runs = Vec::new();
        for seed in [1, 1, 2] {
            let store = FlakyStore::new(MemoryStore::new());
            let tenure = claimed(&store, None).await;
            store.randomly(seed, 50);
            for seq in 1..=64 {
                // Whether it failed is in the log.
                drop(store.apply(&batch(tenure, seq..=seq)).await);
            }
            runs.push(store.faults());
        }
        assert_eq!(runs[0], runs[1]);
        assert_ne!(runs[0], runs[2]);
        for fault in [None, Some(Fault::TransientBefore), Some(Fault::TransientAfter)] {
            assert!(runs[0].contains(&fault), "{fault:?} among 64");
        }
    }
}
