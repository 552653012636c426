//! Scopes: the sets of entries that a bulk invalidation names, and the tick that puts all of a layer's bulk
//! invalidations in one order.
//!
//! A bulk invalidation takes the next tick and makes it the floor of its scope. An entry carries the tick at which its
//! load began or its write took effect, as its generation, and may be served as long as no floor of its scopes is
//! higher. So an invalidation costs the same however many entries there are, and a load that began before it cannot
//! land afterwards.
//!
//! The floors of a cache and of its namespaces are in [`crate::memory::fence`]. Tags are as many as the users
//! like. Their floors are striped, which bounds the memory without a table that could lose one: two tags that share a
//! stripe cost each other's entries a reload.

use std::hash::BuildHasher;

use crate::memory::servable::Generation;
use crate::seam::clock::Moment;
use crate::seam::random::HashBuilder;
use crate::seam::sync::atomic::{AtomicU64, Ordering};

/// The numbers of stripes that bound the memory of fences and floors. Fewer ones make more keys and tags share one,
/// which costs reloads; tests choose few, so that collisions happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StripeCounts {
    /// The fences of each cache; rounded up to a power of two.
    pub fences: usize,
    /// The floors that all tags of a layer share; at least one.
    pub floors: usize,
}

impl Default for StripeCounts {
    fn default() -> Self {
        StripeCounts { fences: 1024, floors: 4096 }
    }
}

/// The tick of a layer, and the floors of its tags.
#[derive(Debug)]
pub struct Scopes {
    tick: AtomicU64,
    /// The newest tick of a tag.
    newest: AtomicU64,
    floors: Box<[AtomicU64]>,
    /// The moment until which a layer that follows another process has received every change, in nanoseconds.
    verified: AtomicU64,
    hasher: HashBuilder,
    stripes: StripeCounts,
}

/// A tag, by the position of its floor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope(u32);

impl Default for Scopes {
    fn default() -> Self {
        Scopes::new(StripeCounts::default())
    }
}

impl Scopes {
    /// Makes scopes of which nothing was invalidated yet.
    #[must_use]
    pub fn new(stripes: StripeCounts) -> Scopes {
        // At least one: a tag is placed by the remainder of its hash.
        let floors = (0..stripes.floors.max(1)).map(|_| AtomicU64::new(0)).collect();
        let (tick, newest, verified) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        Scopes { tick, newest, floors, verified, hasher: HashBuilder::default(), stripes }
    }

    /// Returns the numbers of stripes that it was made with.
    pub(crate) fn stripes(&self) -> StripeCounts {
        self.stripes
    }

    /// Returns the generation of a load that begins now, or of a write that takes effect now.
    #[must_use]
    pub fn now(&self) -> Generation {
        Generation(self.tick.load(Ordering::SeqCst))
    }

    /// Takes the next tick. Later generations are at or above it, earlier ones are below.
    #[must_use]
    pub fn advance(&self) -> Generation {
        // Sequentially consistent, as all ticks and floors: threads compare ticks that others took.
        Generation(self.tick.fetch_add(1, Ordering::SeqCst) + 1)
    }

    /// Notes that every change until this moment has been received.
    pub fn verify(&self, until: Moment) {
        // Proofs may be noted out of order: an older one must not take back what is known.
        self.verified.fetch_max(until.nanos(), Ordering::SeqCst);
    }

    /// Returns the moment until which a layer that follows another process has received every change.
    #[must_use]
    #[inline]
    pub fn verified(&self) -> Moment {
        Moment::of_nanos(self.verified.load(Ordering::SeqCst))
    }

    /// Returns the scope of a tag.
    #[must_use]
    pub fn tag(&self, tag: &str) -> Scope {
        let stripe = self.hasher.hash_one(tag) % self.floors.len() as u64;
        Scope(u32::try_from(stripe).expect("the remainder is below the number of stripes"))
    }

    /// Makes all entries with a tag unservable whose generation is older.
    pub fn invalidate(&self, scope: Scope) {
        // The floor last: a reader who sees it also sees that something was invalidated.
        let floor = self.advance().0;
        self.newest.fetch_max(floor, Ordering::SeqCst);
        self.stripe(scope).fetch_max(floor, Ordering::SeqCst);
    }

    /// Returns the tick of the last invalidation of any tag.
    #[must_use]
    pub fn newest(&self) -> Generation {
        Generation(self.newest.load(Ordering::SeqCst))
    }

    /// Returns the oldest generation that may be served with a tag.
    #[must_use]
    pub fn floor(&self, scope: Scope) -> Generation {
        Generation(self.stripe(scope).load(Ordering::SeqCst))
    }

    fn stripe(&self, scope: Scope) -> &AtomicU64 {
        self.floors.get(scope.0 as usize).expect("a scope is below the number of stripes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_that_share_a_floor_are_invalidated_together() {
        let scopes = Scopes::new(StripeCounts { floors: 1, ..StripeCounts::default() });
        scopes.invalidate(scopes.tag("red"));
        assert_eq!(scopes.floor(scopes.tag("n:blue")), scopes.newest());
    }

    #[test]
    fn an_invalidated_scope_admits_later_generations_only() {
        let scopes = Scopes::default();
        let red = scopes.tag("red");
        let others = (0..1000).map(|other| scopes.tag(&format!("tag {other}")));
        let blue = others.into_iter().find(|other| *other != red).expect("another stripe");
        let before = scopes.now();
        scopes.invalidate(red);
        assert!(scopes.floor(red) > before && scopes.now() >= scopes.floor(red));
        assert!(scopes.floor(blue) <= before);
    }
}
