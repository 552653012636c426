//! The conformance rule for the heartbeat of stores that several processes share: [`Store::renew`] and
//! [`Store::owner_status`].
//!
//! It is separate from [`crate::testkit::conformance`] because a store that only one process can have open has no
//! heartbeat.

use crate::ids::{Seq, Tenure, TenureId};
use crate::store::contract::{Claim, OwnerStatus, Store, StoreError};
use crate::testkit::conformance::{Broken, Subject};

const RULE: &str = "an_owners_heartbeat_is_seen";

/// Runs the rule on a fresh subject.
///
/// # Errors
/// The rule, if the store breaks it.
pub async fn run<S: Subject>(subject: &S) -> Result<(), Broken> {
    rule(subject).await.map_err(|why| Broken { rule: RULE, why })
}

async fn rule<S: Subject>(subject: &S) -> Result<(), String> {
    let store = subject.open().await.map_err(|error| format!("it does not open: {error:#}"))?;
    let text = |error: StoreError| format!("{:#}", error.into_error());
    let claim = async || match Claim::new(None) {
        Ok(claim) => claim.of(&store).await.map_err(text),
        Err(error) => Err(format!("{error:#}")),
    };
    let status = async || store.owner_status().await.map_err(text);
    expect("a store that nobody has claimed", status().await?, false)?;
    let first = claim().await?.tenure;
    let claimed = expect("a claim", status().await?, true)?;
    let watermark = store.renew(first, false).await.map_err(text)?;
    // By this number an owner that writes nothing learns that its store went back.
    if watermark != Some(Seq::ZERO) {
        return Err(format!("a renewal returns {watermark:?} as the watermark of an empty store"));
    }
    let lost = Tenure { epoch: first.epoch.next(), id: TenureId([0xAB; 16]) };
    match store.renew(lost, false).await {
        Err(StoreError::WentBack { .. }) => {}
        other => return Err(format!("the renewal of a tenure that it has forgotten is answered {other:?}")),
    }
    let renewed = expect("a renewal", status().await?, true)?;
    // An owner whose renewals do not show looks dead, and is taken over while it writes.
    if renewed == claimed {
        return Err(format!("a renewal is not seen: {claimed:?} before and after"));
    }
    store.renew(first, true).await.map_err(text)?;
    expect("an owner's end", status().await?, false)?;
    let second = claim().await?.tenure;
    let claimed = expect("the next claim", status().await?, true)?;
    // An owner that was followed by another must not end that one's tenure.
    for ends in [false, true] {
        match store.renew(first, ends).await {
            Err(StoreError::Fenced { current }) if current == second.epoch => {}
            other => return Err(format!("an older epoch's renewal (ends: {ends}) is answered {other:?}")),
        }
    }
    let after = status().await?;
    if after != claimed {
        return Err(format!("an older epoch's renewal changes {claimed:?} to {after:?}"));
    }
    Ok(())
}

fn expect(after: &str, status: OwnerStatus, owned: bool) -> Result<OwnerStatus, String> {
    match (status, owned) {
        (OwnerStatus::Owned(_), true) | (OwnerStatus::Free, false) => Ok(status),
        _ => Err(format!("after {after} its status is {status:?}")),
    }
}
