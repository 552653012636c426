//! Fences: what makes an older load lose against a newer write or invalidation.
//!
//! A load takes a mark before it looks anywhere. Every write, removal and invalidation moves its key's fence,
//! whether or not the key is in memory. A fill happens only if nothing has changed since the mark, and the check
//! and the fill are one step: both run under the stripe's lock, as does what moves the fence.
//!
//! A load that reads anew also moves the fence when it starts, so that nobody who starts later joins an older load. But
//! it may still fail, so those lose only when it lands, or a load that started later does.
//!
//! Stripes bound the memory: two keys may share one, and then a write to one costs the other's load a reload.
//! A bulk invalidation raises one floor instead of moving all stripes.

use std::sync::{Arc, PoisonError};

use crate::memory::scope::Scopes;
use crate::memory::servable::Generation;
use crate::safeguard::Safeguard;
use crate::seam::sync::atomic::{AtomicU64, Ordering};
use crate::seam::sync::{Mutex, MutexGuard};

/// How many stripes a cache has; a power of two. Few in a simulation, so that some keys collide.
const STRIPES: usize = if cfg!(feature = "simulation") { 8 } else { 1024 };

/// The fences of one cache, and the floors of all that is in it.
#[derive(Debug)]
pub struct Fences {
    stripes: Box<[Stripe]>,
    /// The oldest generation that may be served of the cache.
    floor: AtomicU64,
    /// ... of the namespaces that the cache is, or is below of.
    namespace_floor: AtomicU64,
    scopes: Arc<Scopes>,
}

/// The fence of some keys.
#[derive(Debug, Default)]
struct Stripe {
    /// A load that was marked before this move loses. All changes happen under this lock.
    oldest: Mutex<u64>,
    /// How often it has moved; may be looked at without the lock.
    moves: AtomicU64,
}

/// Where the fences stood when a load began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FenceMark {
    hash: u64,
    moves: u64,
    floor: Generation,
}

impl FenceMark {
    #[cfg(test)]
    pub(crate) fn stripe(&self) -> u64 {
        self.hash % STRIPES as u64
    }
}

impl Fences {
    /// Fences that nothing has moved.
    #[must_use]
    pub fn new(scopes: Arc<Scopes>) -> Fences {
        let stripes = (0..STRIPES).map(|_| Stripe::default()).collect();
        let (floor, namespace_floor) = (AtomicU64::new(0), AtomicU64::new(0));
        Fences { stripes, floor, namespace_floor, scopes }
    }

    /// What orders the bulk invalidations of the layer.
    #[must_use]
    pub fn scopes(&self) -> &Scopes {
        &self.scopes
    }

    /// Marks the fences for a load of the key with this hash.
    #[must_use]
    pub fn mark(&self, hash: u64) -> FenceMark {
        // The floor first: a bulk invalidation between the two reads then makes the mark too old, never too young.
        let floor = self.highest_floor();
        let stripe = self.stripe(hash);
        let _held = stripe.lock();
        FenceMark { hash, moves: stripe.moves(), floor }
    }

    /// As [`Fences::mark`], for a load that no older one may outlive: who starts later does not join those that are
    /// under way, and they lose when this one lands.
    #[must_use]
    pub fn mark_anew(&self, hash: u64) -> FenceMark {
        let floor = self.highest_floor();
        let stripe = self.stripe(hash);
        let _held = stripe.lock();
        stripe.moves.fetch_add(u64::from(Safeguard::RefreshBarsOlderLoads.holds()), Ordering::SeqCst);
        FenceMark { hash, moves: stripe.moves(), floor }
    }

    /// Whether anything has moved since `mark`. Without the lock.
    #[must_use]
    pub fn has_moved(&self, mark: &FenceMark) -> bool {
        self.stripe(mark.hash).moves() != mark.moves || self.highest_floor() != mark.floor
    }

    /// Moves the fence of the key with this hash and runs `change` before any fill of it can happen.
    pub fn change<R>(&self, hash: u64, change: impl FnOnce() -> R) -> R {
        let stripe = self.stripe(hash);
        let mut oldest = stripe.lock();
        *oldest = stripe.moves.fetch_add(1, Ordering::SeqCst) + 1;
        change()
    }

    /// Runs `fill` if nothing has changed since `mark` and no load has landed that has a later one; says whether it
    /// did.
    pub fn fill(&self, mark: &FenceMark, fill: impl FnOnce()) -> bool {
        let stripe = self.stripe(mark.hash);
        let mut oldest = stripe.lock();
        let moved = mark.moves < *oldest && Safeguard::FenceOnFill.holds();
        let bumped = self.highest_floor() != mark.floor && Safeguard::GenerationOnFill.holds();
        if moved || bumped {
            return false;
        }
        *oldest = mark.moves.max(*oldest);
        fill();
        true
    }

    /// Moves every fence at once and makes all that is in memory unservable.
    pub fn change_all(&self) {
        self.floor.fetch_max(self.scopes.advance().0, Ordering::SeqCst);
    }

    /// The same, because everything below a namespace was invalidated.
    pub fn change_namespace(&self, floor: Generation) {
        self.namespace_floor.fetch_max(floor.0, Ordering::SeqCst);
    }

    /// The oldest generation that may be served of the cache.
    #[must_use]
    #[inline]
    pub fn floor(&self) -> Generation {
        Generation(self.floor.load(Ordering::SeqCst))
    }

    /// The oldest generation that may be served below the cache's namespaces.
    #[must_use]
    #[inline]
    pub fn namespace_floor(&self) -> Generation {
        Generation(self.namespace_floor.load(Ordering::SeqCst))
    }

    fn highest_floor(&self) -> Generation {
        self.floor().max(self.namespace_floor())
    }

    fn stripe(&self, hash: u64) -> &Stripe {
        let index = usize::try_from(hash % STRIPES as u64).unwrap_or(0);
        self.stripes.get(index).expect("the remainder is below the number of stripes")
    }
}

impl Stripe {
    fn lock(&self) -> MutexGuard<'_, u64> {
        // A poisoned stripe is sound: the count is moved before anything that can panic.
        self.oldest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn moves(&self) -> u64 {
        self.moves.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fill_loses_against_any_change_since_its_mark() {
        let fences = Fences::new(Arc::default());
        let mark = fences.mark(7);
        assert!(fences.fill(&mark, || {}));
        fences.change(7, || {});
        assert!(!fences.fill(&mark, || panic!("an older load must not land")));
        let mark = fences.mark(7);
        fences.change_all();
        assert!(!fences.fill(&mark, || panic!("an older load must not land")));
        assert!(fences.fill(&fences.mark(7), || {}));
        let mark = fences.mark(7);
        assert!(!fences.has_moved(&mark));
        fences.change_namespace(fences.scopes().advance());
        assert!(fences.has_moved(&mark));
        assert!(!fences.fill(&mark, || panic!("an older load must not land")));
    }

    #[test]
    fn a_load_that_was_marked_anew_makes_older_ones_lose_when_it_lands() {
        let fences = Fences::new(Arc::default());
        let older = fences.mark(7);
        let (anew, other) = (fences.mark_anew(7), fences.mark_anew(7));
        let later = fences.mark(7);
        assert!(older != later, "who starts later does not join the older one");
        assert!(fences.fill(&older, || {}), "nothing has landed, and nothing may");
        assert!(fences.fill(&anew, || {}));
        assert!(!fences.fill(&older, || panic!("an older load must not land")));
        assert!(fences.fill(&other, || {}) && fences.fill(&later, || {}));
        assert!(!fences.fill(&anew, || panic!("it is the older one now")));
        fences.change(7, || {});
        assert!(!fences.fill(&later, || panic!("an older load must not land")));
    }

    #[test]
    fn a_change_of_another_stripe_costs_nothing() {
        let fences = Fences::new(Arc::default());
        let mark = fences.mark(7);
        fences.change(8, || {});
        assert!(fences.fill(&mark, || {}));
    }
}
