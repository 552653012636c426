//! What a store must do that several processes share, so that one can wait for another's end: see
//! [`Store::renew`] and [`Store::owner_status`]. Apart from [`crate::testkit::conformance`], because a store that only one
//! process can have open need not.

use crate::store::contract::{OwnerStatus, Store, StoreError};
use crate::testkit::conformance::{Broken, Subject};

const RULE: &str = "an_owners_pulse_is_seen";

/// Runs the rule on a fresh subject.
///
/// # Errors
/// What the store does instead.
pub async fn run<S: Subject>(subject: &S) -> Result<(), Broken> {
    rule(subject).await.map_err(|why| Broken { rule: RULE, why })
}

async fn rule<S: Subject>(subject: &S) -> Result<(), String> {
    let store = subject.open().await.map_err(|error| format!("it does not open: {error}"))?;
    let said = |error: StoreError| error.into_error().to_string();
    let pulse = async || store.owner_status().await.map_err(said);
    expect("a store that nobody has claimed", pulse().await?, false)?;
    let first = store.claim(None).await.map_err(said)?.epoch;
    let claimed = expect("a claim", pulse().await?, true)?;
    store.renew(first, false).await.map_err(said)?;
    let renewed = expect("a renewal", pulse().await?, true)?;
    if renewed == claimed {
        return Err(format!("a renewal is not seen: {claimed:?} before and after"));
    }
    store.renew(first, true).await.map_err(said)?;
    expect("an owner's end", pulse().await?, false)?;
    let second = store.claim(None).await.map_err(said)?.epoch;
    let claimed = expect("the next claim", pulse().await?, true)?;
    // An owner that was followed by another must not end that one's tenure.
    for ends in [false, true] {
        match store.renew(first, ends).await {
            Err(StoreError::Fenced { current }) if current == second => {}
            other => return Err(format!("an older epoch's renewal (ends: {ends}) is answered {other:?}")),
        }
    }
    let after = pulse().await?;
    if after != claimed {
        return Err(format!("an older epoch's renewal changes {claimed:?} to {after:?}"));
    }
    Ok(())
}

fn expect(after: &str, pulse: OwnerStatus, owned: bool) -> Result<OwnerStatus, String> {
    match (pulse, owned) {
        (OwnerStatus::Owned(_), true) | (OwnerStatus::Free, false) => Ok(pulse),
        _ => Err(format!("after {after} its pulse is {pulse:?}")),
    }
}
