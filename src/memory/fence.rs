//! Fences: they make an older load lose against a newer write or invalidation.
//!
//! A load takes a mark before it looks anywhere. Every write, removal and invalidation moves its key's fence, whether
//! or not the key is in memory. A fill happens only if nothing has moved since the mark, and the check and the fill are
//! one step: both run under the stripe's lock, as does every move of the fence.
//!
//! A load that reads past memory also moves the fence when it starts, so that no later reader joins an older load. But
//! it may still fail. So the older loads lose only when it lands, or when a load that started later lands.
//!
//! The fences are striped, which bounds the memory: two keys may share a stripe, and then a write to one costs the
//! other's load a reload. A bulk invalidation raises one floor instead of moving all stripes.

use std::sync::{Arc, PoisonError};

use crate::memory::scope::Scopes;
use crate::memory::servable::Generation;
use crate::safeguard::Safeguard;
use crate::seam::sync::atomic::{AtomicU64, Ordering};
use crate::seam::sync::{Mutex, MutexGuard};

/// The fences of one cache, and the floors of all its entries.
#[derive(Debug)]
pub struct Fences {
    /// A power of two of them.
    stripes: Box<[FenceStripe]>,
    /// The oldest generation of the cache that may be served.
    floor: AtomicU64,
    /// The oldest generation that may be served of the cache's namespace and those above it.
    namespace_floor: AtomicU64,
    scopes: Arc<Scopes>,
}

/// The fence of the keys that share a stripe.
#[derive(Debug, Default)]
struct FenceStripe {
    /// Loads that were marked before this move lose. All changes happen under this lock.
    oldest: Mutex<u64>,
    /// The number of moves so far. May be read without the lock.
    moves: AtomicU64,
}

/// The position of the fences when a load began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FenceMark {
    hash: u64,
    moves: u64,
    floor: Generation,
}

impl Fences {
    /// Makes fences that nothing has moved, as many as `scopes` says.
    #[must_use]
    pub fn new(scopes: Arc<Scopes>) -> Fences {
        let stripes =
            (0..scopes.stripes().fences.next_power_of_two()).map(|_| FenceStripe::default()).collect();
        let (floor, namespace_floor) = (AtomicU64::new(0), AtomicU64::new(0));
        Fences { stripes, floor, namespace_floor, scopes }
    }

    /// Returns the order of the layer's bulk invalidations.
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
        // Under the lock, so that no mark falls into the middle of a change.
        let _locked = stripe.lock();
        FenceMark { hash, moves: stripe.moves(), floor }
    }

    /// As [`Fences::mark`], for a load that reads past memory: later readers do not join the loads that are under way,
    /// and these lose when this one lands.
    #[must_use]
    pub fn mark_past_memory(&self, hash: u64) -> FenceMark {
        let floor = self.highest_floor();
        let stripe = self.stripe(hash);
        let _locked = stripe.lock();
        // `oldest` stays where it is: this load may fail, and then an older one may still land.
        stripe.moves.fetch_add(u64::from(Safeguard::RefreshBarsOlderLoads.holds()), Ordering::SeqCst);
        FenceMark { hash, moves: stripe.moves(), floor }
    }

    /// True if anything has moved since `mark`. Takes no lock.
    #[must_use]
    pub fn has_moved(&self, mark: &FenceMark) -> bool {
        // No lock: a hit on a derived value compares each of its reads, and must not wait for writers.
        self.stripe(mark.hash).moves() != mark.moves || self.highest_floor() != mark.floor
    }

    /// Moves the fence of the key with this hash, and runs `change` before any fill of it can happen.
    pub fn change<R>(&self, hash: u64, change: impl FnOnce() -> R) -> R {
        let stripe = self.stripe(hash);
        let mut oldest = stripe.lock();
        // Marks taken before this move lose, marks that already see it win.
        *oldest = stripe.moves.fetch_add(1, Ordering::SeqCst) + 1;
        change()
    }

    /// Runs `fill` if nothing has changed since `mark` and no load with a later mark has landed. Returns true if it
    /// ran.
    pub fn fill(&self, mark: &FenceMark, fill: impl FnOnce()) -> bool {
        let stripe = self.stripe(mark.hash);
        let mut oldest = stripe.lock();
        // The floor is checked under the lock, too: an invalidation that comes later hides the entry by its generation.
        let moved = mark.moves < *oldest && Safeguard::FenceOnFill.holds();
        let bumped = self.highest_floor() != mark.floor && Safeguard::GenerationOnFill.holds();
        if moved || bumped {
            return false;
        }
        // Loads with an older mark may have read an older value, so they lose from now on.
        *oldest = mark.moves.max(*oldest);
        fill();
        true
    }

    /// Moves every fence at once and makes all entries unservable.
    pub fn change_all(&self) {
        // The maximum: of two calls at once, the one with the older tick must not lower the floor.
        self.floor.fetch_max(self.scopes.advance().0, Ordering::SeqCst);
    }

    /// As [`Fences::change_all`], for the invalidation of a namespace that the cache is or is below of.
    pub fn change_namespace(&self, floor: Generation) {
        // A floor of its own, so that a miss can tell the reason; as above, it never falls.
        self.namespace_floor.fetch_max(floor.0, Ordering::SeqCst);
    }

    /// Returns the oldest generation of the cache that may be served.
    #[must_use]
    #[inline]
    pub fn floor(&self) -> Generation {
        Generation(self.floor.load(Ordering::SeqCst))
    }

    /// Returns the oldest generation that may be served of the cache's namespaces.
    #[must_use]
    #[inline]
    pub fn namespace_floor(&self) -> Generation {
        Generation(self.namespace_floor.load(Ordering::SeqCst))
    }

    fn highest_floor(&self) -> Generation {
        self.floor().max(self.namespace_floor())
    }

    fn stripe(&self, hash: u64) -> &FenceStripe {
        self.stripes.get(self.stripe_of(hash)).expect("the mask keeps the index below the number of stripes")
    }

    pub(crate) fn stripe_of(&self, hash: u64) -> usize {
        // Their number is a power of two, so that a mask does; a 32-bit system needs only the lower bits.
        hash as usize & (self.stripes.len() - 1)
    }
}

impl FenceMark {
    #[cfg(test)]
    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }
}

impl FenceStripe {
    fn lock(&self) -> MutexGuard<'_, u64> {
        // A poisoned stripe is sound: the number of moves changes before anything that can panic.
        self.oldest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn moves(&self) -> u64 {
        self.moves.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::scope::StripeCounts;

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
    fn a_load_past_memory_makes_older_ones_lose_when_it_lands() {
        let fences = Fences::new(Arc::default());
        let older = fences.mark(7);
        let (past_memory, other) = (fences.mark_past_memory(7), fences.mark_past_memory(7));
        let later = fences.mark(7);
        assert!(older != later, "a later load does not join the older one");
        assert!(fences.fill(&older, || {}), "nothing has landed, and nothing may");
        assert!(fences.fill(&past_memory, || {}));
        assert!(!fences.fill(&older, || panic!("an older load must not land")));
        assert!(fences.fill(&other, || {}) && fences.fill(&later, || {}));
        assert!(!fences.fill(&past_memory, || panic!("it is the older one now")));
        fences.change(7, || {});
        assert!(!fences.fill(&later, || panic!("an older load must not land")));
    }

    #[test]
    fn a_change_of_another_stripe_costs_nothing_and_of_the_same_one_a_reload() {
        for stripes in [StripeCounts::default(), StripeCounts { fences: 8, ..StripeCounts::default() }] {
            let fences = Fences::new(Arc::new(Scopes::new(stripes)));
            let mark = fences.mark(7);
            fences.change(8, || {});
            assert!(fences.fill(&mark, || {}));
            fences.change(7 + stripes.fences as u64, || {});
            assert!(!fences.fill(&mark, || panic!("{stripes:?}: the keys share a stripe")));
        }
    }
}
