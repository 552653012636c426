//! Locks of keys: one writer of a key at a time where a write depends on the value it replaces.
//!
//! A rule is given the value that a write replaces, so nobody may write the key between the look at that value and the
//! write's effect. The locks are striped, so memory is bounded: keys that share a stripe wait for each other. Whoever
//! locks several keys takes the stripes in ascending order, so no two writers can deadlock.

use std::collections::BTreeSet;
use std::hash::BuildHasher;
use std::sync::Arc;

use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::ids::Key;
use crate::safeguard::Safeguard;
use crate::seam::random::HashBuilder;

/// The locks of a layer's keys.
pub(crate) struct KeyLocks {
    stripes: Box<[Arc<Mutex<()>>]>,
    hasher: HashBuilder,
}

/// The locks of some keys, released when this is dropped.
#[derive(Default)]
pub(crate) struct KeyGuard {
    _stripes: Vec<OwnedMutexGuard<()>>,
}

impl KeyLocks {
    /// Makes so many stripes, at least one.
    pub(crate) fn new(stripes: usize) -> KeyLocks {
        let stripes = (0..stripes.max(1)).map(|_| Arc::default()).collect();
        KeyLocks { stripes, hasher: HashBuilder::default() }
    }

    /// Waits for the locks of these keys. Dropping the future releases those it has.
    pub(crate) async fn lock(&self, keys: impl Iterator<Item = &Key>) -> KeyGuard {
        let stripe = |key: &Key| self.hasher.hash_one(key) % self.stripes.len() as u64;
        // A set: sorted, against deadlocks, and each stripe once, since a second lock of it would wait for the first.
        let wanted: BTreeSet<u64> =
            keys.filter(|_| Safeguard::WritersTakeTurns.holds()).map(stripe).collect();
        let mut locked = Vec::with_capacity(wanted.len());
        for stripe in wanted {
            let index = usize::try_from(stripe).unwrap_or(0);
            let stripe = self.stripes.get(index).expect("the remainder is below the number of stripes");
            locked.push(Arc::clone(stripe).lock_owned().await);
        }
        KeyGuard { _stripes: locked }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::ids::NamespaceName;

    fn key(number: u64) -> Key {
        Key::new(&NamespaceName::parse("n").unwrap(), &number.to_le_bytes()).unwrap()
    }

    fn poll_once<T>(future: impl Future<Output = T>) -> Poll<T> {
        pin!(future).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_key_is_locked_until_its_guard_is_dropped_however_many_stripes_there_are() {
        for stripes in [0, 1, 8, 256] {
            let locks = KeyLocks::new(stripes);
            // All of them twice: a batch may write a key several times, and several keys of a stripe.
            let keys: Vec<Key> = (0..50).chain(0..50).map(key).collect();
            let Poll::Ready(guard) = poll_once(locks.lock(keys.iter())) else { panic!("all are free") };
            assert!(poll_once(locks.lock([&key(7)].into_iter())).is_pending());
            drop(guard);
            assert!(poll_once(locks.lock([&key(7)].into_iter())).is_ready());
        }
    }
}
