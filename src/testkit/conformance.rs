//! What every store has to pass. A rule that is broken panics with its sentence.
//!
//! ```
//! use forebay::MemoryStore;
//! use forebay::testkit::conformance::{Subject, run};
//!
//! struct InMemory;
//!
//! impl Subject for InMemory {
//!     type Store = MemoryStore;
//!     fn create(&mut self) -> MemoryStore {
//!         MemoryStore::new()
//!     }
//!     // What is in memory cannot be closed and opened again; it goes on as it is.
//!     fn reopen(&mut self, store: MemoryStore) -> MemoryStore {
//!         store
//!     }
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(async {
//! run(&mut InMemory).await;
//! # });
//! ```

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::ids::{Epoch, JournalId, Key, NamespaceName, Seq};
use crate::store::contract::{Batch, Op, Progress, Store, StoreError, Tenure};

/// How the suite gets at the store it tests.
pub trait Subject {
    /// The store.
    type Store: Store;
    /// A new, empty store.
    fn create(&mut self) -> Self::Store;
    /// Closes the store and opens it again with what it holds. The last handle is the one given here.
    fn reopen(&mut self, store: Self::Store) -> Self::Store;
}

/// Runs every rule, each on a store of its own.
///
/// # Panics
/// If a rule is broken, with the rule's sentence.
pub async fn run(subject: &mut impl Subject) {
    a_new_store_has_no_owner_and_no_progress(subject).await;
    a_claim_starts_an_epoch_and_keeps_the_progress(subject).await;
    a_batch_is_applied_in_order_with_versions(subject).await;
    a_batch_at_or_below_the_watermark_changes_nothing(subject).await;
    a_longer_batch_after_a_doubtful_one_applies_the_rest(subject).await;
    an_older_epoch_changes_nothing(subject).await;
    an_empty_batch_moves_the_progress(subject).await;
    everything_applied_survives_a_reopening(subject).await;
    values_and_keys_may_hold_any_bytes(subject).await;
    many_are_loaded_in_the_order_of_their_keys(subject).await;
    a_dropped_apply_happens_wholly_or_not_at_all(subject).await;
}

async fn a_new_store_has_no_owner_and_no_progress(subject: &mut impl Subject) {
    let store = subject.create();
    let tenure = good(store.tenure().await);
    assert_eq!(tenure, Tenure::default(), "a new store has no owner and no progress");
    let found = good(store.load(&key(b"k")).await);
    assert_eq!(found, None, "a new store holds nothing");
}

async fn a_claim_starts_an_epoch_and_keeps_the_progress(subject: &mut impl Subject) {
    let store = subject.create();
    let first = good(store.claim(Some(JournalId([1; 16]))).await);
    assert!(first.epoch > Epoch(0), "a claim starts an epoch above zero");
    assert_eq!(first.journal, Some(JournalId([1; 16])), "a claim records the journal");
    good(store.apply(&batch(first.epoch, &[(5, b"k", Some(b"v"))], 7, 5)).await);
    let second = good(store.claim(None).await);
    assert!(second.epoch > first.epoch, "each claim starts a newer epoch");
    assert_eq!(second.journal, None, "a claim without a journal records that there is none");
    let progress = Progress { applied: Seq(7), journaled: Seq(5) };
    assert_eq!(second.progress, progress, "a claim keeps the progress");
    assert_eq!(good(store.tenure().await), second, "the tenure is what the claim returned");
}

async fn a_batch_is_applied_in_order_with_versions(subject: &mut impl Subject) {
    let store = subject.create();
    let epoch = good(store.claim(None).await).epoch;
    let ops: &[Change] =
        &[(1, b"a", Some(b"1")), (2, b"b", Some(b"2")), (3, b"a", Some(b"3")), (4, b"b", None)];
    good(store.apply(&batch(epoch, ops, 4, 4)).await);
    assert_eq!(
        value(&store, b"a").await,
        Some((3, b"3".to_vec())),
        "the last op of a key wins, with its version"
    );
    assert_eq!(value(&store, b"b").await, None, "a removal after a write removes");
    good(store.apply(&batch(epoch, &[(5, b"b", Some(b"5"))], 5, 5)).await);
    assert_eq!(value(&store, b"b").await, Some((5, b"5".to_vec())), "a removed key can be written again");
}

async fn a_batch_at_or_below_the_watermark_changes_nothing(subject: &mut impl Subject) {
    let store = subject.create();
    let epoch = good(store.claim(None).await).epoch;
    good(store.apply(&batch(epoch, &[(5, b"k", Some(b"new"))], 5, 5)).await);
    for applied in [3, 5] {
        good(store.apply(&batch(epoch, &[(applied, b"k", Some(b"old"))], applied, applied)).await);
        let held = value(&store, b"k").await;
        assert_eq!(held, Some((5, b"new".to_vec())), "a batch at or below the watermark changes nothing");
    }
    assert_eq!(good(store.tenure().await).progress.applied, Seq(5), "the watermark never goes back");
}

async fn a_longer_batch_after_a_doubtful_one_applies_the_rest(subject: &mut impl Subject) {
    let store = subject.create();
    let epoch = good(store.claim(None).await).epoch;
    good(store.apply(&batch(epoch, &[(1, b"a", Some(b"1")), (2, b"b", Some(b"2"))], 2, 2)).await);
    good(store.apply(&batch(epoch, &[(3, b"a", None)], 3, 3)).await);
    let longer: &[Change] =
        &[(1, b"a", Some(b"1")), (2, b"b", Some(b"2")), (3, b"a", None), (4, b"c", Some(b"4"))];
    good(store.apply(&batch(epoch, longer, 4, 4)).await);
    assert_eq!(value(&store, b"a").await, None, "ops at or below the watermark are skipped");
    assert_eq!(value(&store, b"c").await, Some((4, b"4".to_vec())), "ops above the watermark are applied");
}

async fn an_older_epoch_changes_nothing(subject: &mut impl Subject) {
    let store = subject.create();
    let old = good(store.claim(None).await).epoch;
    let new = good(store.claim(None).await).epoch;
    let refused = store.apply(&batch(old, &[(1, b"k", Some(b"zombie"))], 1, 1)).await;
    let told = matches!(refused, Err(StoreError::Fenced { current }) if current == new);
    assert!(told, "an older epoch is told that it is fenced, and by which: {refused:?}");
    assert_eq!(value(&store, b"k").await, None, "an older epoch changes nothing");
    assert_eq!(good(store.tenure().await).progress, Progress::default(), "nor does it move the watermark");
    good(store.apply(&batch(new, &[(1, b"k", Some(b"owner"))], 1, 1)).await);
    let store = subject.reopen(store);
    let refused = store.apply(&batch(old, &[(2, b"k", Some(b"zombie"))], 2, 2)).await;
    assert!(matches!(refused, Err(StoreError::Fenced { .. })), "an epoch outlives a reopening: {refused:?}");
    assert_eq!(value(&store, b"k").await, Some((1, b"owner".to_vec())), "an older epoch changes nothing");
}

async fn an_empty_batch_moves_the_progress(subject: &mut impl Subject) {
    let store = subject.create();
    let epoch = good(store.claim(None).await).epoch;
    good(store.apply(&batch(epoch, &[], 9, 4)).await);
    let store = subject.reopen(store);
    let progress = Progress { applied: Seq(9), journaled: Seq(4) };
    assert_eq!(good(store.tenure().await).progress, progress, "an empty batch moves the progress, durably");
}

async fn everything_applied_survives_a_reopening(subject: &mut impl Subject) {
    let mut store = subject.create();
    let mut claimed = good(store.claim(Some(JournalId([2; 16]))).await);
    let large = vec![7_u8; 1 << 20];
    for round in 1..=3_u64 {
        good(
            store
                .apply(&batch(claimed.epoch, &[(round, &round.to_le_bytes(), Some(&large))], round, round))
                .await,
        );
        store = subject.reopen(store);
        claimed.progress = Progress { applied: Seq(round), journaled: Seq(round) };
        assert_eq!(good(store.tenure().await), claimed, "data and progress survive together");
        for written in 1..=round {
            let held = value(&store, &written.to_le_bytes()).await;
            assert!(held == Some((written, large.clone())), "a value of 1 MiB survives a reopening");
        }
    }
}

async fn values_and_keys_may_hold_any_bytes(subject: &mut impl Subject) {
    let store = subject.create();
    let epoch = good(store.claim(None).await).epoch;
    let all: Vec<u8> = (0..=u8::MAX).collect();
    let odd: [&[u8]; 5] = [b"", b"\0", b"\0\0", b"\xff\xff", &all];
    let ops: Vec<Change> = odd.iter().zip(1..).map(|(bytes, seq)| (seq, *bytes, Some(*bytes))).collect();
    good(store.apply(&batch(epoch, &ops, 5, 5)).await);
    for (seq, bytes, _) in ops {
        let held = value(&store, bytes).await;
        assert_eq!(held, Some((seq, bytes.to_vec())), "keys and values may hold any bytes, also none");
    }
}

async fn many_are_loaded_in_the_order_of_their_keys(subject: &mut impl Subject) {
    let store = subject.create();
    let epoch = good(store.claim(None).await).epoch;
    good(store.apply(&batch(epoch, &[(1, b"a", Some(b"1")), (2, b"b", Some(b"2"))], 2, 2)).await);
    let found = good(store.load_many(&[key(b"b"), key(b"absent"), key(b"a"), key(b"b")]).await);
    let versions: Vec<Option<u64>> =
        found.iter().map(|found| found.as_ref().map(|found| found.version.0)).collect();
    assert_eq!(
        versions,
        [Some(2), None, Some(1), Some(2)],
        "loading many keeps the order, absent and doubled keys too"
    );
    assert_eq!(good(store.load_many(&[]).await), [], "loading none is fine");
}

async fn a_dropped_apply_happens_wholly_or_not_at_all(subject: &mut impl Subject) {
    let store = subject.create();
    let epoch = good(store.claim(None).await).epoch;
    for seq in (1..40).step_by(2) {
        let sent = batch(epoch, &[(seq, b"a", Some(b"x")), (seq + 1, b"b", Some(b"x"))], seq + 1, seq + 1);
        let mut apply = store.apply(&sent);
        // One poll starts it; dropping it then is the caller's right.
        std::future::poll_fn(|context| {
            drop(apply.as_mut().poll(context));
            std::task::Poll::Ready(())
        })
        .await;
        drop(apply);
        good(store.apply(&sent).await);
        let held = (value(&store, b"a").await, value(&store, b"b").await);
        let whole = (Some((seq, b"x".to_vec())), Some((seq + 1, b"x".to_vec())));
        assert_eq!(held, whole, "a dropped apply happens wholly or not at all, and can be repeated");
    }
}

/// Sequence number, key, value.
type Change<'a> = (u64, &'a [u8], Option<&'a [u8]>);

fn batch(epoch: Epoch, changes: &[Change], applied: u64, journaled: u64) -> Batch {
    let ops = changes.iter().map(|(seq, bytes, value)| Op {
        seq: Seq(*seq),
        key: key(bytes),
        value: value.map(Bytes::copy_from_slice),
    });
    let progress = Progress { applied: Seq(applied), journaled: Seq(journaled) };
    Batch { epoch, ops: ops.collect(), progress }
}

fn key(bytes: &[u8]) -> Key {
    let made: Result<Key, Error> =
        NamespaceName::parse("conformance").and_then(|name| Key::new(&name, bytes));
    made.expect("the suite's names and keys are valid")
}

async fn value(store: &impl Store, bytes: &[u8]) -> Option<(u64, Vec<u8>)> {
    let found = good(store.load(&key(bytes)).await)?;
    Some((found.version.0, found.value.to_vec()))
}

#[track_caller]
fn good<T>(result: Result<T, StoreError>) -> T {
    result.expect("the store has no reason to fail")
}
