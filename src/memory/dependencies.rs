//! The dependencies of an entry beside its own key and cache: its tags, and the keys that it was read from.
//!
//! An entry is stale as soon as one of them has been invalidated or, of a key, changed since the entry's load began.

use std::sync::Arc;

use crate::memory::fence::{FenceMark, Fences};
use crate::memory::scope::{Scope, Scopes};
use crate::memory::servable::Generation;
use crate::safeguard::Safeguard;

/// The most keys that a derived value may be read from and still be kept.
pub const READS_MAX: usize = 256;

/// The dependencies of an entry.
#[derive(Clone, Debug, Default)]
pub struct Dependencies {
    tags: Vec<Scope>,
    read: ReadSet,
}

impl Dependencies {
    /// Joins them; `None` if there are none.
    #[must_use]
    pub fn new(tags: Vec<Scope>, read: ReadSet) -> Option<Arc<Dependencies>> {
        // Most entries have none, and need no allocation for them.
        let some = !tags.is_empty() || !read.is_empty();
        some.then(|| Arc::new(Dependencies { tags, read }))
    }

    /// Returns the oldest generation that all of its tags admit.
    #[must_use]
    pub fn tag_floor(&self, scopes: &Scopes) -> Generation {
        let tags = self.tags.iter().filter(|_| Safeguard::TagFloor.holds());
        tags.map(|tag| scopes.floor(*tag)).max().unwrap_or_default()
    }

    /// True if the value was read from other keys.
    #[must_use]
    pub fn is_derived(&self) -> bool {
        !self.read.is_empty()
    }

    /// True if a key that a value of this generation was read from has changed since.
    #[must_use]
    pub fn is_outdated(&self, scopes: &Scopes, generation: Generation) -> bool {
        self.read.has_changed(scopes, generation) && Safeguard::ReadSetChecked.holds()
    }

    /// True if any of them makes a value of this generation stale.
    #[must_use]
    pub fn have_changed(&self, scopes: &Scopes, generation: Generation) -> bool {
        self.tag_floor(scopes) > generation || self.is_outdated(scopes, generation)
    }
}

/// The keys that a loader read, each with the position of its fences before the read.
///
/// The idea is that of MuCache (Zhang, Kallas, Vasilakis, NSDI 2024): a value is derived from what was read while it
/// was made. Within one process no message is needed: a look-up of the derived value compares the fences.
#[derive(Clone, Debug, Default)]
pub struct ReadSet {
    reads: Vec<KeyRead>,
    /// The tags of the values that were read.
    scopes: Vec<Scope>,
    /// True if there was too much to remember, or if a value was stale already when it was read.
    spoilt: bool,
}

#[derive(Clone, Debug)]
struct KeyRead {
    fences: Arc<Fences>,
    mark: FenceMark,
}

impl ReadSet {
    /// Adds a key that was read after `mark` was taken from its fences, and the dependencies of its value in turn.
    pub fn add(&mut self, fences: &Arc<Fences>, mark: FenceMark, dependencies: Option<&Dependencies>) {
        self.add_read(KeyRead { fences: Arc::clone(fences), mark });
        let Some(Dependencies { tags, read }) = dependencies else { return };
        for scope in tags.iter().chain(&read.scopes) {
            // A linear search: there are few, and READS_MAX bounds them.
            if !self.scopes.contains(scope) {
                self.scopes.push(*scope);
            }
        }
        // What the value was read from in turn: nobody looks at that value again before this one is served.
        read.reads.iter().for_each(|read| self.add_read(read.clone()));
        // Spoilt, not cut: a set that lacks one read would serve a value whose source has changed.
        self.spoilt |= read.spoilt || self.scopes.len() > READS_MAX;
    }

    fn add_read(&mut self, read: KeyRead) {
        let same = |known: &&KeyRead| Arc::ptr_eq(&known.fences, &read.fences) && known.mark == read.mark;
        // A key that was read at two marks is kept twice, so that the older mark counts.
        if self.reads.iter().any(|known| same(&known)) {
            return;
        }
        // A look-up compares every read, so their number bounds its cost.
        self.spoilt |= self.reads.len() >= READS_MAX;
        if !self.spoilt {
            self.reads.push(read);
        }
    }

    /// Marks the value that is read from these keys as one that must not be kept.
    pub fn spoil(&mut self) {
        self.spoilt = true;
    }

    /// True if nothing was read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.reads.is_empty() && !self.spoilt
    }

    fn has_changed(&self, scopes: &Scopes, generation: Generation) -> bool {
        // The fences show changes of keys, the floors those of tags.
        self.spoilt
            || self.reads.iter().any(|KeyRead { fences, mark }| fences.has_moved(mark))
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
    fn what_was_read_is_passed_on_to_what_is_derived_from_it() {
        let (scopes, inner, outer) = (Scopes::default(), fences(), fences());
        let mut first = ReadSet::default();
        first.add(&inner, inner.mark(7), None);
        let dependencies = Dependencies::new(vec![scopes.tag("red")], first).unwrap();
        let mut second = ReadSet::default();
        second.add(&outer, outer.mark(8), Some(&dependencies));
        let derived = Dependencies::new(Vec::new(), second).unwrap();
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
