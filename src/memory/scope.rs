//! Scopes: what a bulk invalidation names, and the tick that puts all of a layer's bulk invalidations in one order.
//!
//! Each of them takes the next tick and makes it the floor of what it names. An entry carries the tick at which its
//! load began or its write took effect, and may be served as long as no floor above it is higher. So an invalidation
//! costs the same whatever is in memory, and a load that began before it cannot slip in afterwards.
//!
//! A cache's own floor and its namespace's are in [`crate::memory::fence`]. Groups and tags may be as many as the users
//! like, so their floors are striped, and the memory is bounded: two that share a stripe cost each other's entries a
//! reload. There is no table that could forget one.

use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

use crate::memory::fence::{FenceMark, Fences};
use crate::memory::servable::Generation;
use crate::safeguard::Safeguard;
use crate::seam::clock::Moment;
use crate::seam::random::HashBuilder;
use crate::seam::sync::atomic::{AtomicU64, Ordering};

/// How many floors groups and tags share. Few in a simulation, so that some of them collide.
const STRIPES: usize = if cfg!(feature = "simulation") { 8 } else { 4096 };

/// From how many keys a derived value may be read and still be kept.
pub const READS_MAX: usize = 256;

/// The tick of a layer, and the floors of its groups and tags.
#[derive(Debug)]
pub struct Scopes {
    tick: AtomicU64,
    /// The newest tick of a group or a tag.
    newest: AtomicU64,
    floors: Box<[AtomicU64]>,
    /// Until when a layer that follows another process has heard of every change, as a [`Moment`] of its clock.
    verified: AtomicU64,
    hasher: HashBuilder,
}

/// A group, or a tag: where its floor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope(u32);

impl Default for Scopes {
    fn default() -> Self {
        let floors = (0..STRIPES).map(|_| AtomicU64::new(0)).collect();
        let (tick, newest, verified) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        Scopes { tick, newest, floors, verified, hasher: HashBuilder::default() }
    }
}

impl Scopes {
    /// What a load that begins now, or a write that takes effect now, is stamped with.
    #[must_use]
    pub fn now(&self) -> Generation {
        Generation(self.tick.load(Ordering::SeqCst))
    }

    /// The next tick: what is stamped from now on is at or above it, what was stamped before is below.
    #[must_use]
    pub fn advance(&self) -> Generation {
        Generation(self.tick.fetch_add(1, Ordering::SeqCst) + 1)
    }

    /// Notes that everything has been heard of that had happened by then.
    pub fn verify(&self, until: Moment) {
        self.verified.fetch_max(until.nanos(), Ordering::SeqCst);
    }

    /// Until when a layer that follows another process has heard of every change.
    #[must_use]
    #[inline]
    pub fn verified(&self) -> Moment {
        Moment::of_nanos(self.verified.load(Ordering::SeqCst))
    }

    /// The scope of a group of a namespace.
    #[must_use]
    pub fn group(&self, namespace: &str, group: &str) -> Scope {
        self.scope(&(true, namespace, group))
    }

    /// The scope of a tag.
    #[must_use]
    pub fn tag(&self, tag: &str) -> Scope {
        self.scope(&(false, tag))
    }

    fn scope(&self, name: &impl Hash) -> Scope {
        let stripe = self.hasher.hash_one(name) % STRIPES as u64;
        Scope(u32::try_from(stripe).expect("the remainder is below the number of stripes"))
    }

    /// Makes everything in a group, or with a tag, unservable that was stamped before.
    pub fn invalidate(&self, scope: Scope) {
        let floor = self.advance().0;
        self.newest.fetch_max(floor, Ordering::SeqCst);
        self.stripe(scope).fetch_max(floor, Ordering::SeqCst);
    }

    /// When any group or tag was invalidated last.
    #[must_use]
    pub fn newest(&self) -> Generation {
        Generation(self.newest.load(Ordering::SeqCst))
    }

    /// The oldest generation that may be served of a group, or with a tag.
    #[must_use]
    pub fn floor(&self, scope: Scope) -> Generation {
        Generation(self.stripe(scope).load(Ordering::SeqCst))
    }

    fn stripe(&self, scope: Scope) -> &AtomicU64 {
        self.floors.get(scope.0 as usize).expect("a scope is below the number of stripes")
    }
}

/// What a value hangs on beside its own key and cache.
#[derive(Clone, Debug, Default)]
pub struct Dependencies {
    group: Option<Scope>,
    tags: Vec<Scope>,
    read: ReadSet,
}

impl Dependencies {
    /// These; nothing if there are none.
    #[must_use]
    pub fn new(group: Option<Scope>, tags: Vec<Scope>, read: ReadSet) -> Option<Arc<Dependencies>> {
        let some = group.is_some() || !tags.is_empty() || !read.is_empty();
        some.then(|| Arc::new(Dependencies { group, tags, read }))
    }

    /// The oldest generation that its group admits.
    #[must_use]
    pub fn group_floor(&self, scopes: &Scopes) -> Generation {
        match self.group {
            Some(group) if Safeguard::GroupFloor.holds() => scopes.floor(group),
            _ => Generation::default(),
        }
    }

    /// The oldest generation that all of its tags admit.
    #[must_use]
    pub fn tag_floor(&self, scopes: &Scopes) -> Generation {
        let tags = self.tags.iter().filter(|_| Safeguard::TagFloor.holds());
        tags.map(|tag| scopes.floor(*tag)).max().unwrap_or_default()
    }

    /// Whether it was read from other keys.
    #[must_use]
    pub fn is_derived(&self) -> bool {
        !self.read.is_empty()
    }

    /// Whether something that a value of this generation was read from has changed since.
    #[must_use]
    pub fn is_outdated(&self, scopes: &Scopes, generation: Generation) -> bool {
        self.read.has_changed(scopes, generation) && Safeguard::ReadSetChecked.holds()
    }

    /// Whether a value of this generation has been invalidated by any of these.
    #[must_use]
    pub fn have_changed(&self, scopes: &Scopes, generation: Generation) -> bool {
        self.group_floor(scopes).max(self.tag_floor(scopes)) > generation
            || self.is_outdated(scopes, generation)
    }
}

/// What a loader read, each with where the fences stood before: a dependency of what it brings.
///
/// The idea is that of MuCache (Zhang, Kallas, Vasilakis, NSDI 2024): a value is derived from what was read while it
/// was made. Within one process nobody has to be told of a change: who looks at the derived value compares the fences.
#[derive(Clone, Debug, Default)]
pub struct ReadSet {
    reads: Vec<Read>,
    /// The groups and tags of what was read.
    scopes: Vec<Scope>,
    /// It was too much to remember, or something read was stale already.
    spoilt: bool,
}

#[derive(Clone, Debug)]
struct Read {
    fences: Arc<Fences>,
    mark: FenceMark,
}

impl ReadSet {
    /// Adds a key that was read after `mark` was taken from its fences, and what its value hangs on in turn.
    pub fn add(&mut self, fences: &Arc<Fences>, mark: FenceMark, dependencies: Option<&Dependencies>) {
        self.add_read(Read { fences: Arc::clone(fences), mark });
        let Some(Dependencies { group, tags, read }) = dependencies else { return };
        for scope in group.iter().chain(tags).chain(&read.scopes) {
            if !self.scopes.contains(scope) {
                self.scopes.push(*scope);
            }
        }
        read.reads.iter().for_each(|read| self.add_read(read.clone()));
        self.spoilt |= read.spoilt || self.scopes.len() > READS_MAX;
    }

    fn add_read(&mut self, read: Read) {
        let same = |known: &&Read| Arc::ptr_eq(&known.fences, &read.fences) && known.mark == read.mark;
        if self.reads.iter().any(|known| same(&known)) {
            return;
        }
        self.spoilt |= self.reads.len() >= READS_MAX;
        if !self.spoilt {
            self.reads.push(read);
        }
    }

    /// Says that what it brings is not to be kept.
    pub fn spoil(&mut self) {
        self.spoilt = true;
    }

    /// Whether nothing hangs on it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.reads.is_empty() && !self.spoilt
    }

    fn has_changed(&self, scopes: &Scopes, generation: Generation) -> bool {
        self.spoilt
            || self.reads.iter().any(|Read { fences, mark }| fences.has_moved(mark))
            || self.scopes.iter().any(|scope| scopes.floor(*scope) > generation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fences() -> Arc<Fences> {
        Arc::new(Fences::new(Arc::default()))
    }

    #[test]
    fn an_invalidated_scope_admits_only_what_is_stamped_afterwards() {
        let scopes = Scopes::default();
        let red = scopes.tag("red");
        let others = (0..1000).map(|other| scopes.tag(&format!("tag {other}")));
        let blue = others.into_iter().find(|other| *other != red).expect("another stripe");
        let before = scopes.now();
        scopes.invalidate(red);
        assert!(scopes.floor(red) > before && scopes.now() >= scopes.floor(red));
        assert!(scopes.floor(blue) <= before);
    }

    #[test]
    fn what_was_read_is_passed_on_to_what_is_derived_from_it() {
        let (scopes, inner, outer) = (Scopes::default(), fences(), fences());
        let mut first = ReadSet::default();
        first.add(&inner, inner.mark(7), None);
        let dependencies = Dependencies::new(None, vec![scopes.tag("red")], first).unwrap();
        let mut second = ReadSet::default();
        second.add(&outer, outer.mark(8), Some(&dependencies));
        let derived = Dependencies::new(None, Vec::new(), second).unwrap();
        let facts = scopes.now();
        assert!(!derived.have_changed(&scopes, facts));
        let tagged = derived.clone();
        inner.change(7, || {});
        assert!(derived.have_changed(&scopes, facts));
        scopes.invalidate(scopes.tag("red"));
        assert!(tagged.read.has_changed(&scopes, facts));
    }

    #[test]
    fn who_reads_more_than_is_remembered_is_not_kept() {
        let (scopes, fences, mut reads) = (Scopes::default(), fences(), ReadSet::default());
        (0..READS_MAX as u64).for_each(|key| reads.add(&fences, fences.mark(key), None));
        assert!(!reads.has_changed(&scopes, scopes.now()));
        reads.add(&fences, fences.mark(READS_MAX as u64), None);
        assert!(reads.has_changed(&scopes, scopes.now()));
    }
}
