//! Who may write a key whose change others are derived from: one after the other, until the write has taken effect.
//!
//! A rule is told the value that a write replaces, so nobody may write the key between the look at that value and the
//! write's effect. Striped, so memory is bounded: keys that share a stripe wait for each other. Whoever takes several
//! takes them in the order of the stripes, so nobody waits in a circle.

use std::collections::BTreeSet;
use std::hash::BuildHasher;
use std::sync::Arc;

use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::ids::Key;
use crate::safeguard::Safeguard;
use crate::seam::random::HashBuilder;

const STRIPES: usize = if cfg!(forebay_simulation) { 8 } else { 256 };

/// The turns of a layer's writers.
pub(crate) struct KeyLocks {
    stripes: Box<[Arc<Mutex<()>>]>,
    hasher: HashBuilder,
}

/// The turns of some keys; they end when this is dropped.
#[derive(Default)]
pub(crate) struct KeyGuard {
    _stripes: Vec<OwnedMutexGuard<()>>,
}

impl Default for KeyLocks {
    fn default() -> Self {
        KeyLocks { stripes: (0..STRIPES).map(|_| Arc::default()).collect(), hasher: HashBuilder::default() }
    }
}

impl KeyLocks {
    /// Waits for the turns of these keys.
    pub(crate) async fn lock(&self, keys: impl Iterator<Item = &Key>) -> KeyGuard {
        let stripe = |key: &Key| self.hasher.hash_one(key) % STRIPES as u64;
        let wanted: BTreeSet<u64> =
            keys.filter(|_| Safeguard::WritersTakeTurns.holds()).map(stripe).collect();
        let mut taken = Vec::with_capacity(wanted.len());
        for stripe in wanted {
            let index = usize::try_from(stripe).unwrap_or(0);
            let stripe = self.stripes.get(index).expect("the remainder is below the number of stripes");
            taken.push(Arc::clone(stripe).lock_owned().await);
        }
        KeyGuard { _stripes: taken }
    }
}
