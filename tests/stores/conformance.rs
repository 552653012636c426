//! Every store keeps the contract, and the suite notices a store that does not.

use std::sync::atomic::{AtomicU64, Ordering};

use forebay::Result;
use forebay::store::{Batch, BoxFuture, Claim, MemoryStore, Op, Standing, Store, StoreError, Versioned};
use forebay::testkit::conformance::{self, Subject};
use forebay::testkit::flaky::{self, FlakyStore};
use forebay::{Epoch, Key, Seq};

use crate::support::stores::Kind;

struct InMemory(MemoryStore);

impl Subject for InMemory {
    type Store = MemoryStore;
    fn open(&self) -> BoxFuture<'_, Result<MemoryStore>> {
        Box::pin(async { Ok(self.0.clone()) })
    }

    fn has_heartbeat(&self) -> bool {
        true
    }
}

/// An embedded store, opened for the contract's sake only.
struct OnDisk(Kind, tempfile::TempDir);

impl OnDisk {
    fn of(kind: Kind) -> impl Fn() -> OnDisk {
        move || OnDisk(kind, tempfile::tempdir().unwrap())
    }
}

impl Subject for OnDisk {
    type Store = Box<dyn Store>;
    fn open(&self) -> BoxFuture<'_, Result<Box<dyn Store>>> {
        Box::pin(async { self.0.open(self.1.path().join("store")) })
    }
}

#[tokio::test]
async fn the_memory_store_conforms() {
    conformance::run(|| InMemory(MemoryStore::new())).await.unwrap();
    conformance::run_huge(|| InMemory(MemoryStore::new())).await.unwrap();
}

#[tokio::test]
async fn the_sled_store_conforms() {
    conformance::run(OnDisk::of(Kind::Sled)).await.unwrap();
}

#[tokio::test]
async fn the_sled_store_keeps_the_largest_value() {
    conformance::run_huge(OnDisk::of(Kind::Sled)).await.unwrap();
}

#[tokio::test]
async fn the_redb_store_conforms() {
    conformance::run(OnDisk::of(Kind::Redb)).await.unwrap();
    conformance::run(OnDisk::of(Kind::RedbQuick)).await.unwrap();
}

#[tokio::test]
async fn the_redb_store_keeps_the_largest_value() {
    conformance::run_huge(OnDisk::of(Kind::Redb)).await.unwrap();
}

#[tokio::test]
async fn the_fjall_store_conforms() {
    conformance::run(OnDisk::of(Kind::Fjall)).await.unwrap();
}

#[tokio::test]
async fn the_fjall_store_keeps_the_largest_value() {
    conformance::run_huge(OnDisk::of(Kind::Fjall)).await.unwrap();
}

/// The defect of a faulty double.
#[derive(Clone, Copy, Debug)]
enum Fault {
    NoFence,
    WatermarkForgotten,
    ProgressLost,
    ReplaysSkippedOps,
    FirstWins,
    KeepsRemoved,
    VersionOfBatch,
    Unordered,
    EmptyIgnored,
    HalfApplied,
    JournalForgotten,
    ClaimReturnsOldProgress,
    EpochStands,
    /// Compares numbers alone.
    NumbersAlone,
    TakesWhatLiesBehindAHole,
    AnyRepetition,
    /// Takes a batch of a tenure that it has forgotten for one of its own.
    LostClaimTaken,
    /// Takes a batch of another tenure of its own epoch for one of its own.
    EpochsAlone,
    /// Tells an owner whose claim it has lost that another one followed it.
    LostClaimFenced,
    /// Grants a claim whatever tenure it is instead of.
    ClaimsInsteadOfAnybody,
    /// Gives the epoch of a claim that it has lost once more.
    LostEpochAgain,
}

/// A store in memory with one fault.
#[derive(Clone)]
struct Faulty {
    inner: MemoryStore,
    fault: Fault,
    sent: std::sync::Arc<AtomicU64>,
}

impl Faulty {
    fn bend(&self, batch: &Batch, standing: Standing) -> Option<Batch> {
        let mut bent = batch.clone();
        let watermark = standing.progress.applied;
        let is_owner = batch.tenure == standing.tenure;
        match self.fault {
            Fault::NoFence if batch.tenure.epoch < standing.tenure.epoch => bent.tenure = standing.tenure,
            Fault::WatermarkForgotten if batch.until <= watermark && is_owner => {
                // As if the batch were new: its data once more, in front of a progress that moves.
                bent.until = watermark.next();
                bent.ops.iter_mut().for_each(|op| op.seq = watermark.next());
            }
            Fault::ProgressLost => bent.journaled = bent.until,
            Fault::ReplaysSkippedOps => {
                bent.ops
                    .iter_mut()
                    .for_each(|op| op.seq = Seq::new(op.seq.get().max(watermark.next().get())));
            }
            Fault::FirstWins => bent.ops.reverse(),
            Fault::KeepsRemoved => bent.ops.retain(|op| op.value.is_some()),
            Fault::VersionOfBatch => {
                let all = bent.until;
                bent.ops.iter_mut().filter(|op| op.seq > watermark).for_each(|op| op.seq = all);
            }
            Fault::EmptyIgnored if batch.ops.is_empty() && is_owner => return None,
            Fault::NumbersAlone if batch.tenure.epoch >= standing.tenure.epoch => {
                if batch.until <= watermark {
                    return None;
                }
                (bent.tenure, bent.after) = (standing.tenure, watermark);
            }
            Fault::LostClaimTaken if batch.tenure.epoch > standing.tenure.epoch => {
                bent.tenure = standing.tenure;
            }
            Fault::EpochsAlone if batch.tenure.epoch == standing.tenure.epoch => {
                bent.tenure = standing.tenure;
            }
            Fault::TakesWhatLiesBehindAHole => bent.after = bent.after.min(watermark),
            Fault::AnyRepetition if batch.until <= watermark && is_owner => return None,
            Fault::HalfApplied if bent.ops.len() == 2 => drop(bent.ops.pop()),
            _ => {}
        }
        Some(bent)
    }
}

impl Store for Faulty {
    fn standing(&self) -> BoxFuture<'_, Result<Standing, StoreError>> {
        self.inner.standing()
    }

    fn claim<'a>(&'a self, claim: &'a Claim) -> BoxFuture<'a, Result<Standing, StoreError>> {
        Box::pin(async move {
            let before = self.inner.standing().await?;
            let mut bent = *claim;
            match self.fault {
                Fault::JournalForgotten => bent.journal = None,
                Fault::EpochStands if before.tenure.epoch > Epoch::new(0) => return Ok(before),
                Fault::ClaimsInsteadOfAnybody if before.claimed(claim).is_err() => bent.instead_of = None,
                Fault::LostEpochAgain if before.claimed(claim).is_ok() => bent.instead_of = None,
                _ => {}
            }
            let mut before = self.inner.claim(&bent).await?;
            if matches!(self.fault, Fault::ClaimReturnsOldProgress) {
                before.progress.applied = Seq::new(before.progress.applied.get().saturating_sub(1));
            }
            Ok(before)
        })
    }

    fn load<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Versioned>, StoreError>> {
        self.inner.load(key)
    }

    fn load_many<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<Vec<Option<Versioned>>, StoreError>> {
        Box::pin(async move {
            let mut sorted = keys.to_vec();
            if matches!(self.fault, Fault::Unordered) {
                sorted.sort();
            }
            self.inner.load_many(&sorted).await
        })
    }

    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            self.sent.fetch_add(1, Ordering::Relaxed);
            let standing = self.inner.standing().await?;
            let Some(bent) = self.bend(batch, standing) else { return Ok(()) };
            let answer = self.inner.apply(&bent).await;
            match self.fault {
                Fault::LostClaimFenced if batch.tenure.epoch > standing.tenure.epoch => {
                    Err(StoreError::Fenced { current: standing.tenure.epoch })
                }
                _ => answer,
            }
        })
    }
}

struct FaultySubject(Faulty);

impl Subject for FaultySubject {
    type Store = Faulty;
    fn open(&self) -> BoxFuture<'_, Result<Faulty>> {
        Box::pin(async { Ok(self.0.clone()) })
    }
}

#[tokio::test]
async fn the_suite_names_the_rule_that_a_faulty_store_breaks() {
    let cases = [
        (Fault::NoFence, "an_older_epoch_is_refused_and_changes_nothing"),
        (Fault::WatermarkForgotten, "the_last_batch_may_come_again_and_no_other_of_its_numbers"),
        (Fault::ProgressLost, "data_and_progress_are_kept_together"),
        (Fault::ReplaysSkippedOps, "ops_at_or_below_the_watermark_are_skipped"),
        (Fault::FirstWins, "the_last_change_of_a_key_wins"),
        (Fault::KeepsRemoved, "the_last_change_of_a_key_wins"),
        (Fault::VersionOfBatch, "data_and_progress_are_kept_together"),
        (Fault::Unordered, "load_many_answers_in_the_order_of_its_keys"),
        (Fault::EmptyIgnored, "an_empty_batch_moves_the_progress"),
        (Fault::HalfApplied, "a_removed_key_is_absent"),
        (Fault::JournalForgotten, "the_journal_is_the_newest_owners"),
        (Fault::ClaimReturnsOldProgress, "a_claim_starts_a_newer_epoch_for_good"),
        (Fault::EpochStands, "a_claim_starts_a_newer_epoch_for_good"),
        (Fault::NumbersAlone, "the_last_batch_may_come_again_and_no_other_of_its_numbers"),
        (Fault::TakesWhatLiesBehindAHole, "a_batch_behind_a_hole_is_refused"),
        (Fault::AnyRepetition, "the_last_batch_may_come_again_and_no_other_of_its_numbers"),
        (Fault::LostClaimTaken, "an_owner_whose_claim_was_lost_is_told"),
        (Fault::EpochsAlone, "an_owner_whose_claim_was_lost_is_told"),
        (Fault::LostClaimFenced, "an_owner_whose_claim_was_lost_is_told"),
        (Fault::ClaimsInsteadOfAnybody, "a_claim_instead_of_a_lost_one_ends_no_newer_tenure"),
        (Fault::LostEpochAgain, "a_claim_instead_of_a_lost_one_ends_no_newer_tenure"),
    ];
    for (fault, rule) in cases {
        let make =
            || FaultySubject(Faulty { inner: MemoryStore::new(), fault, sent: std::sync::Arc::default() });
        let broken = conformance::run(make).await.expect_err("the suite must notice");
        assert_eq!(broken.rule, rule, "{fault:?}: {broken}");
    }
}

/// The wrapper adds nothing of its own while no fault is told.
struct Wrapped(FlakyStore<MemoryStore>);

impl Subject for Wrapped {
    type Store = FlakyStore<MemoryStore>;
    fn open(&self) -> BoxFuture<'_, Result<FlakyStore<MemoryStore>>> {
        Box::pin(async { Ok(self.0.clone()) })
    }

    fn has_heartbeat(&self) -> bool {
        true
    }
}

#[tokio::test]
async fn a_flaky_store_without_faults_conforms() {
    conformance::run(|| Wrapped(FlakyStore::new(MemoryStore::new()))).await.unwrap();
}

/// P3: however often a batch is sent again after a doubtful answer, each op takes effect once, in order.
#[tokio::test]
async fn random_doubt_applies_each_op_once() {
    let store = FlakyStore::new(MemoryStore::new());
    let mut standing = Claim::new(None).unwrap().of(&store).await.unwrap();
    store.randomly(0xF0EB, 60);
    let name = forebay::NamespaceName::parse("n").unwrap();
    let mut pending: Vec<Op> = Vec::new();
    for seq in 1..=200 {
        let key = Key::new(&name, &[(seq % 7) as u8]).unwrap();
        pending.push(Op { seq: Seq::new(seq), key, value: Some(seq.to_string().into()) });
        // Longer than the last one, and another batch, if that one is in doubt.
        let batch = Batch { number: seq, ..standing.next_batch(Seq::new(seq), pending.clone()) };
        if store.apply(&batch).await.is_ok() {
            pending.clear();
            standing = standing.after(&batch);
        }
    }
    let applied: Vec<u64> = store.ops_applied().iter().map(|op| op.seq.get()).collect();
    let done = store.inner().standing().await.unwrap().progress.applied.get();
    assert_eq!(applied, (1..=done).collect::<Vec<_>>());
    let count = |fault| store.faults().into_iter().filter(|other| *other == fault).count();
    let (hidden, shown) = (count(Some(flaky::Fault::TransientAfter)), count(None));
    assert!(hidden > 0, "some applies took effect and were answered with an error");
    assert_eq!(store.inner().applies(), hidden + shown);
}
