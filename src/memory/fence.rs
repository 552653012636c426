//! Fences: what makes an older load lose against a newer write or invalidation.
//!
//! A load takes a mark before it looks anywhere. Every write, removal and invalidation moves its key's fence,
//! whether or not the key is in memory. A fill happens only if the mark's fence has not moved, and the check
//! and the fill are one step: both run under the stripe's lock, as does what moves the fence.
//!
//! Stripes bound the memory: two keys may share one, and then a write to one costs the other's load a reload.
//! A bulk invalidation moves one counter instead of all stripes.

use std::sync::PoisonError;

use crate::memory::servable::Generation;
use crate::safeguard::Safeguard;
use crate::seam::sync::atomic::{AtomicU64, Ordering};
use crate::seam::sync::{Mutex, MutexGuard};

/// How many stripes a cache has; a power of two. Few in a simulation, so that some keys collide.
const STRIPES: usize = if cfg!(feature = "simulation") { 8 } else { 1024 };

/// The fences of one cache.
#[derive(Debug)]
pub struct Fences {
    stripes: Box<[Mutex<u64>]>,
    generation: AtomicU64,
}

/// Where the fences stood when a load began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    hash: u64,
    moves: u64,
    generation: Generation,
}

impl Mark {
    /// The generation that a value loaded under this mark belongs to.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.generation
    }
}

impl Default for Fences {
    fn default() -> Self {
        let stripes = (0..STRIPES).map(|_| Mutex::new(0)).collect();
        Fences { stripes, generation: AtomicU64::new(0) }
    }
}

impl Fences {
    /// Marks the fences for a load of the key with this hash.
    #[must_use]
    pub fn mark(&self, hash: u64) -> Mark {
        // The generation first: a bulk invalidation between the two reads then makes the mark too old, never
        // too young.
        let generation = self.generation();
        Mark { hash, moves: *self.stripe(hash), generation }
    }

    /// Moves the fence of the key with this hash and runs `change` before any fill of it can happen.
    pub fn change<R>(&self, hash: u64, change: impl FnOnce() -> R) -> R {
        let mut moves = self.stripe(hash);
        *moves += 1;
        change()
    }

    /// Runs `change`, and moves the fence of the key with this hash if that says that something changed.
    pub fn change_if(&self, hash: u64, change: impl FnOnce() -> bool) -> bool {
        let mut moves = self.stripe(hash);
        // Moved first, and back: a panic must not leave it where it was.
        *moves += 1;
        let changed = change();
        *moves -= u64::from(!changed);
        changed
    }

    /// Runs `fill` if nothing moved since `mark`, and says whether it did.
    pub fn fill(&self, mark: &Mark, fill: impl FnOnce()) -> bool {
        let moves = self.stripe(mark.hash);
        let moved = *moves != mark.moves && Safeguard::FenceOnFill.holds();
        let bumped = self.generation() != mark.generation && Safeguard::GenerationOnFill.holds();
        if moved || bumped {
            return false;
        }
        fill();
        true
    }

    /// Moves every fence at once and makes all that is in memory unservable.
    pub fn change_all(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
    }

    /// The oldest generation that may be served.
    #[must_use]
    #[inline]
    pub fn generation(&self) -> Generation {
        Generation(self.generation.load(Ordering::SeqCst))
    }

    fn stripe(&self, hash: u64) -> MutexGuard<'_, u64> {
        let index = usize::try_from(hash % STRIPES as u64).unwrap_or(0);
        let stripe = self.stripes.get(index).expect("the remainder is below the number of stripes");
        // A poisoned stripe is sound: the count is moved before anything that can panic.
        stripe.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fill_loses_against_any_change_since_its_mark() {
        let fences = Fences::default();
        let mark = fences.mark(7);
        assert!(fences.fill(&mark, || {}));
        fences.change(7, || {});
        assert!(!fences.fill(&mark, || panic!("an older load must not land")));
        let mark = fences.mark(7);
        fences.change_all();
        assert!(!fences.fill(&mark, || panic!("an older load must not land")));
        assert!(fences.fill(&fences.mark(7), || {}));
    }

    #[test]
    fn a_change_of_another_stripe_costs_nothing() {
        let fences = Fences::default();
        let mark = fences.mark(7);
        fences.change(8, || {});
        assert!(fences.fill(&mark, || {}));
    }
}
