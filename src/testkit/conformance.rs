//! The conformance suite of [`Store`], for any implementation.
//!
//! Each rule runs on a new, empty store, and a failure names the rule. The suite cannot cut the power: reopening shows
//! that data, progress and epoch were kept together, but not that they were synced; a store must test that itself. The
//! suite needs no runtime unless the store does, and uses nothing but the contract.
//!
//! ```
//! use forebay::Result;
//! use forebay::store::{BoxFuture, MemoryStore};
//! use forebay::testkit::conformance::{self, Subject};
//!
//! struct InMemory(MemoryStore);
//!
//! impl Subject for InMemory {
//!     type Store = MemoryStore;
//!     fn open(&self) -> BoxFuture<'_, Result<MemoryStore>> {
//!         Box::pin(async { Ok(self.0.clone()) })
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), conformance::Broken> {
//! conformance::run(|| InMemory(MemoryStore::new())).await
//! # }
//! ```

use std::fmt;
use std::future::poll_fn;
use std::task::Poll;

use bytes::Bytes;

use crate::error::Result;
use crate::ids::{
    Epoch, JournalId, KEY_BYTES_MAX, Key, NamespaceName, Seq, Tenure, TenureId, VALUE_BYTES_MAX,
};
use crate::store::contract::{
    Batch, BoxFuture, Claim, Op, OwnerStatus, Progress, Standing, Store, StoreError, Versioned,
};

/// The place where a store keeps its data: a directory, a database, or shared memory.
pub trait Subject: Send + Sync + 'static {
    /// The store under test.
    type Store: Store;

    /// Opens the store. The first call on a subject must return an empty store that nobody has claimed. A later call,
    /// after the earlier store was dropped, must find its data.
    ///
    /// # Errors
    /// Any failure to open. It ends the suite.
    fn open(&self) -> BoxFuture<'_, Result<Self::Store>>;

    /// Returns true if the store has a heartbeat ([`Store::renew`], [`Store::owner_status`]), which is checked then.
    /// False (the default) suits a store that only one process can have open.
    fn has_heartbeat(&self) -> bool {
        false
    }
}

/// A rule that a store broke.
#[derive(Debug)]
pub struct Broken {
    /// The name of the rule.
    pub rule: &'static str,
    /// The observation.
    pub why: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the store breaks the rule \"{}\": {}", self.rule.replace('_', " "), self.why)
    }
}

impl std::error::Error for Broken {}

type Verdict = Result<(), String>;

/// Returns from the rule with an error unless the condition holds.
macro_rules! hold {
    ($condition:expr, $($why:tt)+) => {
        if !$condition {
            return Err(format!($($why)+));
        }
    };
}

/// Runs each rule on a subject of its own.
macro_rules! rules {
    ($make:expr; $($rule:ident)+) => {
        $(rule_on(&$make(), |subject| Box::pin($rule(subject)))
            .await
            .map_err(|why| Broken { rule: stringify!($rule), why })?;)+
    };
}

/// Runs all rules, each on a new subject from `make`. Uses values of up to a few MiB.
///
/// # Errors
/// The first rule that the store breaks.
pub async fn run<F: Fn() -> S, S: Subject>(make: F) -> Result<(), Broken> {
    rules!(make;
        a_fresh_store_knows_nothing
        a_claim_starts_a_newer_epoch_for_good
        the_journal_is_the_newest_owners
        an_older_epoch_is_refused_and_changes_nothing
        a_claim_stops_what_is_under_way
        data_and_progress_are_kept_together
        the_last_change_of_a_key_wins
        a_removed_key_is_absent
        the_last_batch_may_come_again_and_no_other_of_its_numbers
        a_batch_behind_a_hole_is_refused
        an_owner_whose_claim_was_lost_is_told
        a_claim_instead_of_a_lost_one_ends_no_newer_tenure
        ops_at_or_below_the_watermark_are_skipped
        a_longer_batch_may_follow_a_doubtful_one
        a_value_carries_the_number_that_wrote_it
        load_many_answers_in_the_order_of_its_keys
        large_values_come_back_whole
        an_empty_batch_moves_the_progress
        a_dropped_apply_leaves_all_or_nothing
        keys_are_any_bytes
        a_batch_of_many_ops_is_one
        an_owners_heartbeat_is_seen
    );
    Ok(())
}

/// Runs the slow rule that [`run`] leaves out: a value of [`VALUE_BYTES_MAX`].
///
/// # Errors
/// The first rule that the store breaks.
pub async fn run_huge<F: Fn() -> S, S: Subject>(make: F) -> Result<(), Broken> {
    rules!(make; the_largest_value_comes_back_whole);
    Ok(())
}

async fn rule_on<S: Subject>(
    subject: &S,
    rule: impl for<'a> FnOnce(&'a S) -> std::pin::Pin<Box<dyn Future<Output = Verdict> + 'a>>,
) -> Verdict {
    rule(subject).await
}

async fn a_fresh_store_knows_nothing(subject: &impl Subject) -> Verdict {
    let store = opened(subject).await?;
    let tenure = store.standing().await.map_err(seen)?;
    hold!(tenure == Standing::default(), "its tenure is {tenure:?}");
    expect(&store, "a", None).await
}

async fn a_claim_starts_a_newer_epoch_for_good(subject: &impl Subject) -> Verdict {
    let store = opened(subject).await?;
    let first = claimed(&store, None).await?;
    hold!(first.tenure.epoch > Epoch::default(), "the first claim started epoch {}", first.tenure.epoch);
    store.apply(&batch(first, [put(1, "a", "1")])).await.map_err(seen)?;
    let second = claimed(&store, None).await?;
    hold!(
        second.tenure.epoch > first.tenure.epoch,
        "epoch {} after {}",
        second.tenure.epoch,
        first.tenure.epoch
    );
    hold!(second.progress == progress(1), "a claim returned {:?} after watermark 1", second.progress);
    let seen_now = store.standing().await.map_err(seen)?;
    hold!(seen_now == second, "the claim returned {second:?}, and the tenure is {seen_now:?}");
    // Up to here a tenure that lives in memory only would pass.
    drop(store);
    let store = opened(subject).await?;
    let kept = store.standing().await.map_err(seen)?;
    hold!(kept == second, "after a reopen the tenure is {kept:?}, not {second:?}");
    let third = claimed(&store, None).await?;
    hold!(
        third.tenure.epoch > second.tenure.epoch,
        "epoch {} after {} and a reopen",
        third.tenure.epoch,
        second.tenure.epoch
    );
    Ok(())
}

async fn the_journal_is_the_newest_owners(subject: &impl Subject) -> Verdict {
    let (one, two) = (JournalId([1; 16]), JournalId([0xFE; 16]));
    let store = opened(subject).await?;
    let tenure = claimed(&store, Some(one)).await?;
    hold!(tenure.journal == Some(one), "a claim for {one} returned {:?}", tenure.journal);
    store.apply(&batch(tenure, [put(1, "a", "1")])).await.map_err(seen)?;
    drop(store);
    let store = opened(subject).await?;
    let kept = store.standing().await.map_err(seen)?.journal;
    hold!(kept == Some(one), "after an apply and a reopen the journal is {kept:?}, not {one}");
    for next in [Some(two), None] {
        claimed(&store, next).await?;
        let journal = store.standing().await.map_err(seen)?.journal;
        hold!(journal == next, "after a claim for {next:?} the journal is {journal:?}");
    }
    Ok(())
}

async fn an_older_epoch_is_refused_and_changes_nothing(subject: &impl Subject) -> Verdict {
    let store = opened(subject).await?;
    let old = claimed(&store, None).await?;
    store.apply(&batch(old, [put(1, "a", "old")])).await.map_err(seen)?;
    let new = claimed(&store, None).await?;
    // A batch with a new op, one with an applied op, and one without ops.
    for stale in [batch(old, [put(2, "a", "zombie")]), batch(old, [put(1, "a", "old")]), empty(old, 9)] {
        let watermark = stale.until;
        match store.apply(&stale).await {
            Err(StoreError::Fenced { current }) if current == new.tenure.epoch => {}
            other => {
                return Err(format!(
                    "to a batch of epoch {} with watermark {watermark} it said {other:?}, in epoch {}",
                    old.tenure.epoch, new.tenure.epoch
                ));
            }
        }
    }
    let tenure = store.standing().await.map_err(seen)?;
    hold!(tenure == new, "refused batches moved the tenure from {new:?} to {tenure:?}");
    expect(&store, "a", Some((1, "old"))).await?;
    store.apply(&batch(new, [put(2, "a", "new")])).await.map_err(seen)?;
    expect(&store, "a", Some((2, "new"))).await
}

async fn a_claim_stops_what_is_under_way(subject: &impl Subject) -> Verdict {
    const ROUNDS: u64 = 16;
    const BATCHES: u64 = 8;
    let store = opened(subject).await?;
    let mut last = Seq::ZERO;
    for round in 0..ROUNDS {
        let old = claimed(&store, None).await?;
        let zombie = async {
            for seq in (1..=BATCHES).map(|step| last.plus(step)) {
                match store.apply(&batch(old, [put(seq.0, "a", &seq.to_string())])).await {
                    Ok(()) => {}
                    Err(StoreError::Fenced { .. }) => return Ok(()),
                    Err(error) => return Err(seen(error)),
                }
                tokio::task::yield_now().await;
            }
            Ok(())
        };
        let claim = async {
            // At another moment in each round, so that the claim meets an apply in different states.
            for _ in 0..round % BATCHES {
                tokio::task::yield_now().await;
            }
            claimed(&store, None).await
        };
        let (zombie, claimed) = tokio::join!(zombie, claim);
        zombie?;
        let claimed = claimed?;
        let tenure = store.standing().await.map_err(seen)?;
        hold!(tenure == claimed, "a claim returned {claimed:?}; then an older epoch made it {tenure:?}");
        last = claimed.progress.applied;
        let value = last.to_string();
        expect(&store, "a", (last > Seq::ZERO).then_some((last.0, value.as_str()))).await?;
    }
    Ok(())
}

async fn data_and_progress_are_kept_together(subject: &impl Subject) -> Verdict {
    let store = opened(subject).await?;
    let tenure = claimed(&store, None).await?;
    let mut sent = batch(tenure, [put(1, "a", "1"), put(2, "b", "2"), put(3, "c", "3")]);
    // Other than the watermark, so that a store that keeps one number for both is found.
    sent.journaled = Seq(2);
    let sent_progress = Progress { applied: sent.until, journaled: sent.journaled };
    store.apply(&sent).await.map_err(seen)?;
    let before = store.standing().await.map_err(seen)?.progress;
    hold!(before == sent_progress, "after {sent_progress:?} the progress is {before:?}");
    drop(store);
    let store = opened(subject).await?;
    let after = store.standing().await.map_err(seen)?.progress;
    hold!(after == sent_progress, "after a reopen the progress is {after:?}, not {sent_progress:?}");
    for (seq, name, value) in [(1, "a", "1"), (2, "b", "2"), (3, "c", "3")] {
        expect(&store, name, Some((seq, value))).await?;
    }
    Ok(())
}

async fn the_last_batch_may_come_again_and_no_other_of_its_numbers(subject: &impl Subject) -> Verdict {
    let store = opened(subject).await?;
    let standing = claimed(&store, None).await?;
    let last = batch(standing, [put(4, "a", "4"), put(5, "a", "5")]);
    store.apply(&last).await.map_err(seen)?;
    let held = store.standing().await.map_err(seen)?;
    store.apply(&last).await.map_err(seen)?;
    // As from a copy of the owner: another batch that accounts for the same numbers, and some that end before them.
    for (number, until) in [(6, 5), (4, 5), (4, 4), (1, 1)] {
        let mut other = batch(standing, [put(until, "a", "other"), put(until, "b", "other")]);
        other.number = number;
        let answer = store.apply(&other).await;
        let fenced = matches!(answer, Err(StoreError::Fenced { .. }));
        hold!(
            fenced,
            "to batch {number} up to record {until}, behind batch {}, it said {answer:?}",
            last.number
        );
    }
    drop(store);
    let store = opened(subject).await?;
    // The answer may have been lost with the process of the store.
    store.apply(&last).await.map_err(seen)?;
    let now = store.standing().await.map_err(seen)?;
    hold!(now == held, "repetitions moved the standing from {held:?} to {now:?}");
    expect(&store, "a", Some((5, "5"))).await?;
    expect(&store, "b", None).await
}

async fn a_batch_behind_a_hole_is_refused(subject: &impl Subject) -> Verdict {
    let store = opened(subject).await?;
    let standing = claimed(&store, None).await?;
    store.apply(&batch(standing, [put(5, "a", "5")])).await.map_err(seen)?;
    let held = store.standing().await.map_err(seen)?;
    // The store is an older copy of the one that holds the records in between.
    for after in [6, 7] {
        let mut later = batch(standing, [put(8, "a", "8")]);
        later.after = Seq(after);
        went_back(&store, &later, held).await?;
    }
    let mut next = batch(standing, [put(8, "a", "8")]);
    next.after = Seq(5);
    store.apply(&next).await.map_err(seen)?;
    expect(&store, "a", Some((8, "8"))).await
}

async fn an_owner_whose_claim_was_lost_is_told(subject: &impl Subject) -> Verdict {
    let store = opened(subject).await?;
    let standing = claimed(&store, None).await?;
    store.apply(&batch(standing, [put(5, "a", "5")])).await.map_err(seen)?;
    let held = store.standing().await.map_err(seen)?;
    // A claim that the store has no trace of: it went back behind it. The numbers would fit.
    let lost = Tenure { epoch: held.tenure.epoch.next(), id: TenureId([0xAB; 16]) };
    let forgotten = batch(Standing { tenure: lost, ..standing }, [put(6, "a", "6")]);
    went_back(&store, &forgotten, held).await?;
    // It was claimed by somebody else after that, who got the same epoch.
    let twin = Tenure { id: TenureId([0xAB; 16]), ..held.tenure };
    for seq in [5, 6] {
        let answer =
            store.apply(&batch(Standing { tenure: twin, ..standing }, [put(seq, "a", "twin")])).await;
        let fenced = matches!(answer, Err(StoreError::Fenced { .. }));
        hold!(fenced, "to record {seq} of another tenure of its own epoch it said {answer:?}");
    }
    let now = store.standing().await.map_err(seen)?;
    hold!(now == held, "refused batches moved the standing from {held:?} to {now:?}");
    expect(&store, "a", Some((5, "5"))).await
}

async fn a_claim_instead_of_a_lost_one_ends_no_newer_tenure(subject: &impl Subject) -> Verdict {
    let store = opened(subject).await?;
    let claim = |instead_of| async move {
        Claim::new(None)
            .map(|claim| Claim { instead_of: Some(instead_of), ..claim })
            .map_err(|e| format!("{e:#}"))
    };
    let first = claimed(&store, None).await?;
    // Over its own tenure, as when the store lacks what was applied in it.
    let again = claim(first.tenure).await?;
    let second = again.of(&store).await.map_err(seen)?;
    hold!(
        second.tenure.epoch > first.tenure.epoch,
        "epoch {} after {}",
        second.tenure.epoch,
        first.tenure.epoch
    );
    // Over one of a lower epoch, as when the store has forgotten the claim. The lost epoch is not given again.
    let lost = Tenure { epoch: Epoch(second.tenure.epoch.0 + 5), id: TenureId([0xAB; 16]) };
    let third = claim(lost).await?.of(&store).await.map_err(seen)?;
    hold!(third.tenure.epoch > lost.epoch, "epoch {} instead of {}", third.tenure.epoch, lost.epoch);
    // Not over a newer one, nor over another one of the same epoch.
    let twin = Tenure { id: TenureId([0xCD; 16]), ..third.tenure };
    for old in [first.tenure, lost, twin] {
        let refused = claim(old).await?.of(&store).await;
        let fenced = matches!(refused, Err(StoreError::Fenced { .. }));
        hold!(fenced, "a claim instead of {old} was answered {refused:?} in {}", third.tenure);
    }
    let now = store.standing().await.map_err(seen)?;
    hold!(now == third, "refused claims moved the standing from {third:?} to {now:?}");
    Ok(())
}

async fn ops_at_or_below_the_watermark_are_skipped(subject: &impl Subject) -> Verdict {
    let store = opened(subject).await?;
    let tenure = claimed(&store, None).await?;
    let first = [put(1, "a", "1"), put(2, "b", "2"), remove(3, "a")];
    store.apply(&batch(tenure, first)).await.map_err(seen)?;
    // The values differ from the applied ones, which shows whether an op takes effect a second time.
    let longer = [put(1, "a", "twice"), put(2, "b", "twice"), put(4, "c", "4")];
    store.apply(&batch(tenure, longer)).await.map_err(seen)?;
    expect(&store, "a", None).await?;
    expect(&store, "b", Some((2, "2"))).await?;
    expect(&store, "c", Some((4, "4"))).await
}

async fn a_longer_batch_may_follow_a_doubtful_one(subject: &impl Subject) -> Verdict {
    let store = opened(subject).await?;
    let tenure = claimed(&store, None).await?;
    let mut all = Vec::new();
    for round in 1..=8u64 {
        all.push(put(2 * round - 1, "a", &format!("a{round}")));
        all.push(put(2 * round, "b", &format!("b{round}")));
        let doubtful = batch(tenure, all.clone());
        let mut future = store.apply(&doubtful);
        // Dropped after one poll, so it is unknown whether it was applied.
        poll_once(&mut future).await;
        drop(future);
    }
    all.push(remove(17, "b"));
    store.apply(&batch(tenure, all)).await.map_err(seen)?;
    expect(&store, "a", Some((15, "a8"))).await?;
    expect(&store, "b", None).await?;
    let now = store.standing().await.map_err(seen)?.progress;
    hold!(now == progress(17), "the progress is {now:?} after watermark 17");
    Ok(())
}

async fn the_last_change_of_a_key_wins(subject: &impl Subject) -> Verdict {
    let store = opened(subject).await?;
    let tenure = claimed(&store, None).await?;
    // Put, remove and put again in one batch, whose order a store that sorts by key may lose.
    let ops = [put(1, "a", "1"), put(2, "b", "2"), remove(3, "a"), put(4, "a", "4"), remove(5, "b")];
    store.apply(&batch(tenure, ops)).await.map_err(seen)?;
    expect(&store, "a", Some((4, "4"))).await?;
    expect(&store, "b", None).await
}

async fn a_removed_key_is_absent(subject: &impl Subject) -> Verdict {
    let store = opened(subject).await?;
    let tenure = claimed(&store, None).await?;
    store.apply(&batch(tenure, [put(1, "a", "1"), put(2, "b", "2")])).await.map_err(seen)?;
    // Removing what is not there is no error: coalescing may leave nothing but the removal.
    store.apply(&batch(tenure, [remove(3, "a"), remove(4, "never there")])).await.map_err(seen)?;
    expect(&store, "a", None).await?;
    drop(store);
    let store = opened(subject).await?;
    expect(&store, "a", None).await?;
    expect(&store, "b", Some((2, "2"))).await
}

async fn a_value_carries_the_number_that_wrote_it(subject: &impl Subject) -> Verdict {
    let store = opened(subject).await?;
    let tenure = claimed(&store, None).await?;
    // Around the sizes of integers at which a store may cut the number or take it for a negative one.
    let seqs = [1, 2, 0xFF, 0x100, u64::from(u32::MAX), u64::from(u32::MAX) + 1, u64::MAX - 1];
    for seq in seqs {
        store.apply(&batch(tenure, [put(seq, "a", "same")])).await.map_err(seen)?;
        expect(&store, "a", Some((seq, "same"))).await?;
    }
    Ok(())
}

async fn load_many_answers_in_the_order_of_its_keys(subject: &impl Subject) -> Verdict {
    let store = opened(subject).await?;
    let tenure = claimed(&store, None).await?;
    store.apply(&batch(tenure, [put(1, "a", "1"), put(2, "b", "2"), put(3, "c", "")])).await.map_err(seen)?;
    // Twice, missing and out of order.
    let keys = ["c", "none", "a", "b", "a", "nor this"].map(|name| key(name.as_bytes()));
    let found = store.load_many(&keys).await.map_err(seen)?;
    let expected = [Some((3, "")), None, Some((1, "1")), Some((2, "2")), Some((1, "1")), None];
    let expected: Vec<_> = expected.iter().map(|value| value.map(versioned)).collect();
    hold!(found == expected, "for {keys:?} it returned {found:?}");
    let none = store.load_many(&[]).await.map_err(seen)?;
    hold!(none.is_empty(), "for no keys it returned {none:?}");
    Ok(())
}

async fn large_values_come_back_whole(subject: &impl Subject) -> Verdict {
    let store = opened(subject).await?;
    let mut tenure = claimed(&store, None).await?;
    // Around the sizes at which stores change their representation, growing and shrinking in place.
    let sizes = [1 << 20, 100, (1 << 20) + 1, 3 << 20, 65_536, 65_535, 32_768, 40_961, 0, 1 << 20];
    for (seq, size) in (1..).zip(sizes) {
        let value = pattern(size, seq);
        let other = pattern(size / 2, seq + 1000);
        let ops = [put_bytes(2 * seq - 1, "a", &other), put_bytes(2 * seq, "a", &value)];
        store.apply(&batch(tenure, ops)).await.map_err(seen)?;
        expect_bytes(&store, "a", Some((2 * seq, &value))).await?;
    }
    drop(store);
    let store = opened(subject).await?;
    expect_bytes(&store, "a", Some((20, &pattern(1 << 20, 10)))).await?;
    tenure = claimed(&store, None).await?;
    store.apply(&batch(tenure, [remove(21, "a")])).await.map_err(seen)?;
    expect(&store, "a", None).await
}

async fn the_largest_value_comes_back_whole(subject: &impl Subject) -> Verdict {
    let store = opened(subject).await?;
    let tenure = claimed(&store, None).await?;
    let value = pattern(VALUE_BYTES_MAX, 1);
    store.apply(&batch(tenure, [put_bytes(1, "a", &value)])).await.map_err(seen)?;
    drop(store);
    let store = opened(subject).await?;
    expect_bytes(&store, "a", Some((1, &value))).await
}

async fn an_empty_batch_moves_the_progress(subject: &impl Subject) -> Verdict {
    let store = opened(subject).await?;
    let tenure = claimed(&store, None).await?;
    store.apply(&batch(tenure, [put(1, "a", "1")])).await.map_err(seen)?;
    store.apply(&empty(tenure, 7)).await.map_err(seen)?;
    drop(store);
    let store = opened(subject).await?;
    let now = store.standing().await.map_err(seen)?.progress;
    hold!(now == progress(7), "after an empty batch with watermark 7 the progress is {now:?}");
    expect(&store, "a", Some((1, "1"))).await
}

async fn a_dropped_apply_leaves_all_or_nothing(subject: &impl Subject) -> Verdict {
    const ROUNDS: u64 = 24;
    let store = opened(subject).await?;
    let mut tenure = claimed(&store, None).await?;
    for round in 1..=ROUNDS {
        let (one, two) = (tenure.progress.applied.next(), tenure.progress.applied.plus(2));
        let value = format!("round {round}");
        let sent = batch(tenure, [put(one.0, "a", &value), put(two.0, "b", &value)]);
        let before = (loaded(&store, "a").await?, loaded(&store, "b").await?);
        let mut future = store.apply(&sent);
        // Dropped after none, one or two polls: before the apply began, within it, or after its end.
        for _ in 0..round % 3 {
            if poll_once(&mut future).await {
                break;
            }
        }
        drop(future);
        // After a claim no batch of an older epoch can be applied.
        tenure = claimed(&store, None).await?;
        let after = (loaded(&store, "a").await?, loaded(&store, "b").await?);
        let text = value.as_str();
        let done = (Some(versioned((one.0, text))), Some(versioned((two.0, text))));
        let expected = if tenure.progress.applied == two { done } else { before };
        hold!(after == expected, "at watermark {} it holds {after:?}", tenure.progress.applied);
    }
    Ok(())
}

async fn keys_are_any_bytes(subject: &impl Subject) -> Verdict {
    let store = opened(subject).await?;
    let tenure = claimed(&store, None).await?;
    let longest = KEY_BYTES_MAX - NAMESPACE.len() - 1;
    let mut keys: Vec<Key> = (0..=u8::MAX).map(|byte| key(&[byte])).collect();
    // Bytes that a store may take for its own separators, quotes, prefixes or wildcards.
    keys.extend(
        [&b""[..], b"\0\0", b"\0a", b"a\0", b"\xFF\xFF", b"\xC3\x28", b"k\0", b"meta", b"%_'\";--"].map(key),
    );
    keys.push(key(&vec![0xFF; longest]));
    keys.push(key(&vec![0; longest]));
    // The same key in other namespaces, one of which is longer by bytes that could be part of a key.
    for name in ["conformance/inner", "conformanc", "conformance2"] {
        keys.push(Key::new(&namespace(name), b"a").map_err(|error| format!("{error:#}"))?);
    }
    let ops: Vec<Op> = (1..).zip(&keys).map(|(seq, key)| put_key(seq, key, &seq.to_string())).collect();
    store.apply(&batch(tenure, ops)).await.map_err(seen)?;
    drop(store);
    let store = opened(subject).await?;
    let found = store.load_many(&keys).await.map_err(seen)?;
    hold!(found.len() == keys.len(), "{} answers to {} keys", found.len(), keys.len());
    for ((seq, key), found) in (1..).zip(&keys).zip(found) {
        let expected = Some(versioned((seq, &seq.to_string())));
        hold!(found == expected, "the key {key} was written by {seq}, and it returned {found:?}");
    }
    Ok(())
}

async fn a_batch_of_many_ops_is_one(subject: &impl Subject) -> Verdict {
    const OPS: u64 = 2000;
    let store = opened(subject).await?;
    let tenure = claimed(&store, None).await?;
    // Three times the same keys, so that replacing many at once is checked too.
    for round in 0..3 {
        let ops = (1..=OPS).map(|place| put(round * OPS + place, &format!("k{place}"), &format!("{round}")));
        store.apply(&batch(tenure, ops)).await.map_err(seen)?;
    }
    drop(store);
    let store = opened(subject).await?;
    let keys: Vec<Key> = (1..=OPS).map(|place| key(format!("k{place}").as_bytes())).collect();
    let found = store.load_many(&keys).await.map_err(seen)?;
    for (place, found) in (1..=OPS).zip(found) {
        let expected = Some(versioned((2 * OPS + place, "2")));
        hold!(found == expected, "key {place} of {OPS} is {found:?} after three batches");
    }
    Ok(())
}

async fn an_owners_heartbeat_is_seen(subject: &impl Subject) -> Verdict {
    if !subject.has_heartbeat() {
        return Ok(());
    }
    let store = opened(subject).await?;
    expect_status(&store, "a store that nobody has claimed", false).await?;
    let first = claimed(&store, None).await?.tenure;
    let claimed_status = expect_status(&store, "a claim", true).await?;
    let watermark = store.renew(first, false).await.map_err(seen)?;
    // By this number an owner that writes nothing learns that its store went back.
    hold!(watermark == Some(Seq::ZERO), "a renewal returns {watermark:?} as the watermark of an empty store");
    let lost = Tenure { epoch: first.epoch.next(), id: TenureId([0xAB; 16]) };
    match store.renew(lost, false).await {
        Err(StoreError::WentBack { .. }) => {}
        other => return Err(format!("the renewal of a tenure that it has forgotten is answered {other:?}")),
    }
    let renewed = expect_status(&store, "a renewal", true).await?;
    // An owner whose renewals do not show looks dead, and is taken over while it writes.
    hold!(renewed != claimed_status, "a renewal is not seen: {renewed:?} before and after");
    store.renew(first, true).await.map_err(seen)?;
    expect_status(&store, "an owner's end", false).await?;
    let second = claimed(&store, None).await?.tenure.epoch;
    let claimed_status = expect_status(&store, "the next claim", true).await?;
    // An owner that was followed by another must not end that one's tenure.
    for ends in [false, true] {
        match store.renew(first, ends).await {
            Err(StoreError::Fenced { current }) if current == second => {}
            other => return Err(format!("an older epoch's renewal (ends: {ends}) is answered {other:?}")),
        }
    }
    let after = store.owner_status().await.map_err(seen)?;
    hold!(after == claimed_status, "an older epoch's renewal changes {claimed_status:?} to {after:?}");
    Ok(())
}

async fn expect_status(store: &impl Store, after: &str, owned: bool) -> Result<OwnerStatus, String> {
    let status = store.owner_status().await.map_err(seen)?;
    let fits = if owned { matches!(status, OwnerStatus::Owned(_)) } else { status == OwnerStatus::Free };
    hold!(fits, "after {after} its status is {status:?}");
    Ok(status)
}

const NAMESPACE: &str = "conformance";

async fn opened<S: Subject>(subject: &S) -> Result<S::Store, String> {
    subject.open().await.map_err(|error| format!("it does not open: {error:#}"))
}

fn seen(error: StoreError) -> String {
    format!("a call that must work failed: {:#}", error.into_error())
}

/// Polls once. Returns true if the future is done and must not be polled again.
async fn poll_once<T>(future: &mut BoxFuture<'_, T>) -> bool {
    poll_fn(|context| Poll::Ready(future.as_mut().poll(context).is_ready())).await
}

fn namespace(name: &str) -> NamespaceName {
    NamespaceName::parse(name).expect("the suite's names are good")
}

fn key(bytes: &[u8]) -> Key {
    Key::new(&namespace(NAMESPACE), bytes).expect("the suite's keys are within the limit")
}

fn progress(watermark: u64) -> Progress {
    Progress { applied: Seq(watermark), journaled: Seq(watermark) }
}

/// Makes a batch that accounts for everything up to its last change.
fn batch(standing: Standing, ops: impl IntoIterator<Item = Op>) -> Batch {
    let ops: Vec<Op> = ops.into_iter().collect();
    let watermark = ops.last().map_or(0, |op| op.seq.0);
    Batch { ops, ..empty(standing, watermark) }
}

fn empty(standing: Standing, watermark: u64) -> Batch {
    let (tenure, until) = (standing.tenure, Seq(watermark));
    Batch { tenure, number: watermark, after: Seq::ZERO, until, journaled: until, ops: Vec::new() }
}

/// Claims the store, and returns the point at which it stands then.
async fn claimed(store: &impl Store, journal: Option<JournalId>) -> Result<Standing, String> {
    let claim = Claim::new(journal).map_err(|error| format!("{error:#}"))?;
    claim.of(store).await.map_err(seen)
}

/// Sends a batch that a store at `held` has to answer with that point of its history.
async fn went_back(store: &impl Store, batch: &Batch, held: Standing) -> Verdict {
    match store.apply(batch).await {
        Err(StoreError::WentBack { tenure, watermark })
            if tenure == held.tenure && watermark == held.progress.applied =>
        {
            Ok(())
        }
        other => Err(format!(
            "at record {} of tenure {} it answered {other:?} to a batch after record {} of tenure {}",
            held.progress.applied, held.tenure, batch.after, batch.tenure
        )),
    }
}

fn put_key(seq: u64, key: &Key, value: &str) -> Op {
    Op { seq: Seq(seq), key: key.clone(), value: Some(Bytes::copy_from_slice(value.as_bytes())) }
}

fn put(seq: u64, name: &str, value: &str) -> Op {
    put_key(seq, &key(name.as_bytes()), value)
}

fn put_bytes(seq: u64, name: &str, value: &Bytes) -> Op {
    Op { seq: Seq(seq), key: key(name.as_bytes()), value: Some(value.clone()) }
}

fn remove(seq: u64, name: &str) -> Op {
    Op { seq: Seq(seq), key: key(name.as_bytes()), value: None }
}

fn versioned((seq, value): (u64, &str)) -> Versioned {
    Versioned { value: Bytes::copy_from_slice(value.as_bytes()), version: Seq(seq) }
}

/// Returns bytes without repetitions, so that a swapped or missing part is noticed.
fn pattern(bytes: usize, seed: u64) -> Bytes {
    let words =
        (0..bytes.div_ceil(8) as u64).map(|word| (word ^ (seed << 40)).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let mut all: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
    all.truncate(bytes);
    Bytes::from(all)
}

async fn loaded(store: &impl Store, name: &str) -> Result<Option<Versioned>, String> {
    store.load(&key(name.as_bytes())).await.map_err(seen)
}

async fn expect(store: &impl Store, name: &str, value: Option<(u64, &str)>) -> Verdict {
    let expected = value.map(versioned);
    let found = loaded(store, name).await?;
    hold!(found == expected, "\"{name}\" is {found:?}, not {expected:?}");
    Ok(())
}

/// Does the same as [`expect`] without printing a large value.
async fn expect_bytes(store: &impl Store, name: &str, value: Option<(u64, &Bytes)>) -> Verdict {
    let found = loaded(store, name).await?;
    let seen_now = found.as_ref().map(|found| (found.version.0, found.value.len()));
    let expected = value.map(|(seq, value)| (seq, value.len()));
    hold!(seen_now == expected, "\"{name}\" has version and length {seen_now:?}, not {expected:?}");
    let same = found.map(|found| found.value) == value.map(|(_, value)| value.clone());
    hold!(same, "\"{name}\" has other bytes than were written, at version and length {seen_now:?}");
    Ok(())
}
