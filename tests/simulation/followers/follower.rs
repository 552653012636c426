//! One follower of a run: opened, closed and opened again by whoever reads through it; and what all of a run note.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use forebay::options::LayerSizes;
use forebay::testkit::faulty_bus::FaultyBus;
use forebay::{ErrorKind, Follow, FollowStatus, Forebay, MemoryStore, Seq};
use shuttle::future::block_on;

use crate::followers::bus::{Barred, CHANNEL, Ear, Record, Slot, Tap};
use crate::followers::client::Open;
use crate::followers::ledger::Answer;
use crate::followers::plan::{BUSES, FollowerSetting};
use crate::followers::stores::{FollowerStore, Terms};
use crate::harness::run::NAMES;

/// Notes of what was done and what came of it. The lock is std's, held over no point.
#[derive(Clone, Default)]
pub struct Notes(Arc<Mutex<NotesInner>>);

#[derive(Default)]
pub struct NotesInner {
    pub answers: Vec<Answer>,
    /// The last acknowledged record.
    pub receipt: Option<Seq>,
    pub writes: u64,
    pub reads: u64,
    /// The number of reads and writes that began or ended.
    pub events: u64,
    pub gaps: u64,
    pub places_lost: u64,
    pub refused_owner: u64,
    /// Answers that said that they could not be verified.
    pub unverified: u64,
    pub publisher_places_lost: u64,
}

impl Notes {
    pub fn lock(&self) -> MutexGuard<'_, NotesInner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl NotesInner {
    pub fn event(&mut self) -> u64 {
        self.events += 1;
        self.events
    }

    fn add_follower(&mut self, status: &FollowStatus) {
        self.gaps += status.gaps;
        self.places_lost += status.places_lost;
        self.refused_owner += status.refused_owner;
    }
}

/// A follower, whether it is open or not.
pub struct Follower {
    pub number: usize,
    pub setting: FollowerSetting,
    pub terms: Terms,
    pub store: MemoryStore,
    pub network: Vec<FaultyBus<Tap>>,
    pub record: Record,
    pub notes: Notes,
    pub state: Mutex<FollowerState>,
}

/// Its present state.
#[derive(Default)]
pub struct FollowerState {
    open: Option<(Open, Slot)>,
    lives: u64,
}

impl Follower {
    fn state(&self) -> MutexGuard<'_, FollowerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The follower as it is open, and which of its lives that is; opens it if it is not.
    pub fn open(&self) -> Option<(Open, u64)> {
        {
            let state = self.state();
            if let Some((open, _)) = &state.open {
                return Some((open.clone(), state.lives));
            }
        }
        let (slot, barred) = (Slot::default(), Barred::default());
        let opened = self.open_anew(&slot, &barred);
        let open = match opened {
            Ok(open) => open,
            Err(error) if error.kind() == ErrorKind::Transient => return None,
            Err(error) => {
                let what = format!("follower {} does not open: {error}", self.number);
                self.record.violated("P12", what);
                return None;
            }
        };
        *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(open.bay.clone());
        let (old, lives) = {
            let mut state = self.state();
            state.lives += 1;
            (state.open.replace((open.clone(), slot)), state.lives)
        };
        // Another reader was as quick.
        self.end(old, false);
        Some((open, lives))
    }

    fn open_anew(&self, slot: &Slot, barred: &Barred) -> forebay::Result<Open> {
        let ear = |number: usize| Ear {
            bus: self.network[number].clone(),
            slot: Arc::clone(slot),
            barred: barred.clone(),
            record: self.record.clone(),
        };
        let mut heard = (0..BUSES).filter(|bus| self.setting.listens[*bus]).map(ear);
        let first = heard.next().expect("a follower listens to some bus");
        let follow = Follow::new(first, CHANNEL)
            .name(format!("follower-{}", self.number))
            .lag_max(self.setting.lag_max)
            .on_unverified(self.setting.on_unverified)
            .probe_interval(self.setting.probe_interval);
        let follow = heard.fold(follow, |follow, ear| follow.and(ear, CHANNEL));
        let store = FollowerStore { store: self.store.clone(), terms: self.terms.clone() };
        let (barred, record) = (barred.clone(), self.record.clone());
        let bay = Forebay::builder(store)
            .sizes(LayerSizes::COLLIDING)
            .through_timeout(Duration::from_millis(200))
            .follow_with(follow, move |directive, _| barred.carried_out(directive, &record))
            .open_blocking()?;
        let absence = self.setting.remembers_absence.then_some(Duration::from_secs(3600));
        let cache = |name| {
            let cache = bay.cache(name).capacity(self.setting.capacity);
            match absence {
                Some(most) => cache.negative_time_to_live(most).open(),
                None => cache.open(),
            }
        };
        Ok(Open { caches: [cache(NAMES[0])?, cache(NAMES[1])?], bay })
    }

    /// Closes it, or drops it.
    pub fn close(&self, closes: bool) {
        let open = self.state().open.take();
        self.end(open, closes);
    }

    fn end(&self, open: Option<(Open, Slot)>, closes: bool) {
        let Some((open, slot)) = open else { return };
        if let Some(status) = open.bay.following() {
            self.notes.lock().add_follower(&status);
        }
        let held = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(held);
        if closes && let Err(error) = block_on(open.bay.close()) {
            self.record.violated("P12", format!("closing follower {} failed: {error}", self.number));
        }
    }
}
