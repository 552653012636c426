//! A client of a layer: does what its plan says, and notes what it was told, for as long as its layer lives.
//!
//! Answers of a layer that was cut off count for nothing: a dead process answers no caller.

use std::future::Future;
use std::time::Duration;

use forebay::seam::simulated;
use forebay::store::Versioned;
use forebay::{Bincode, Codec, ErrorKind, Receipt, Result, Seq, WritePolicy};
use shuttle::future::block_on;

use crate::harness::history::Fate;
use crate::harness::plan::{KEYS, Op, Place};
use crate::harness::run::{Content, EXTERNAL, Open, is_filler, key_of, polled};
use crate::harness::world::{State, World, standing_of};

/// A value that fills a segment after a few writes.
const LARGE_BYTES: usize = 12 << 10;

pub struct Client {
    pub world: World,
    pub open: Open,
    pub number: usize,
}

impl Client {
    pub fn work(&self, ops: &[Op]) {
        for op in ops {
            if self.world.point(self.number) != State::Lives {
                return;
            }
            self.take(op);
        }
    }

    fn take(&self, op: &Op) {
        match op {
            Op::Write { at, puts, through, large } => {
                let policy = if *through { WritePolicy::Through } else { WritePolicy::Behind };
                let id = self.world.lock().history.begin_write(&[(*at, *puts)]);
                let written = block_on(self.write(id, *at, policy, *large));
                self.written(id, written);
            }
            Op::Cancelled { at, through, polls } => {
                let policy = if *through { WritePolicy::Through } else { WritePolicy::Behind };
                let id = self.world.lock().history.begin_write(&[(*at, true)]);
                match block_on(polled(*polls, self.write(id, *at, policy, false))) {
                    Some(written) => self.written(id, written),
                    None => self.end_write(id, Fate::Doubtful),
                }
            }
            Op::Batch { changes, through } => self.batch(changes, *through),
            Op::Get(at) => {
                let from = self.begin();
                let found = block_on(self.open.caches[at.0].get(&at.1));
                self.read(*at, from, found.ok());
            }
            Op::GetMany(cache) => {
                let from = self.begin();
                let keys: Vec<u32> = (0..KEYS).collect();
                let Ok(found) = block_on(self.open.caches[*cache].get_many(&keys)) else { return };
                for (key, found) in keys.into_iter().zip(found) {
                    self.read((*cache, key), from, Some(found));
                }
            }
            Op::Flush => self.flush(),
            Op::Evict(at) => self.open.caches[at.0].evict(&at.1),
            Op::Invalidate(at) => self.open.caches[at.0].invalidate(&at.1),
            Op::InvalidateAll(cache) => self.open.caches[*cache].invalidate_all(),
            Op::External { key, all } => self.external(*key, *all),
            Op::GetExternal(key) => {
                let from = self.begin();
                let found = block_on(self.open.external.get(key));
                let mut world = self.world.lock();
                if let Ok(found) = found
                    && world.states[self.number] == State::Lives
                {
                    world.history.end_external_read(*key, from, found.map(|(number, _)| number));
                }
            }
            Op::Sleep(wait) => self.sleep(*wait),
        }
    }

    fn begin(&self) -> u64 {
        let history = &mut self.world.lock().history;
        history.operations += 1;
        history.now()
    }

    fn content(number: u64, large: bool) -> Content {
        let length = if large { LARGE_BYTES } else { (number % 5) as usize };
        (number, vec![number.to_le_bytes()[0]; length])
    }

    fn write(
        &self,
        id: usize,
        at: Place,
        policy: WritePolicy,
        large: bool,
    ) -> impl Future<Output = Result<Receipt>> + '_ {
        let (_, value) = self.world.lock().history.write(id).changes[0];
        let cache = &self.open.caches[at.0];
        async move {
            match value {
                Some(number) => cache.put_with(&at.1, Self::content(number, large), policy).await,
                None => cache.remove_with(&at.1, policy).await,
            }
        }
    }

    fn batch(&self, changes: &[(Place, bool)], through: bool) {
        let (id, changes) = {
            let mut world = self.world.lock();
            let id = world.history.begin_write(changes);
            (id, world.history.write(id).changes.clone())
        };
        let mut batch = self.open.bay.batch();
        for (at, value) in &changes {
            let cache = &self.open.caches[at.0];
            let added = match value {
                Some(number) => batch.put(cache, &at.1, Self::content(*number, false)).map(drop),
                None => batch.remove(cache, &at.1).map(drop),
            };
            added.expect("a small batch of one layer's caches");
        }
        if through {
            batch.write_policy(WritePolicy::Through);
        }
        let written = block_on(batch.commit());
        self.written(id, written);
    }

    fn written(&self, id: usize, written: Result<Receipt>) {
        let fate = match written {
            Ok(receipt) => Fate::Acknowledged(receipt.seq()),
            Err(error) => match error.kind() {
                ErrorKind::QueueFull
                | ErrorKind::TooLarge
                | ErrorKind::DiskFull
                | ErrorKind::Rejected
                | ErrorKind::Parked
                | ErrorKind::Halted
                | ErrorKind::Fenced
                | ErrorKind::Closed => Fate::Refused,
                _ => Fate::Doubtful,
            },
        };
        self.end_write(id, fate);
    }

    fn end_write(&self, id: usize, fate: Fate) {
        let mut world = self.world.lock();
        if world.states[self.number] == State::Lives {
            world.history.end_write(id, fate);
        }
    }

    fn read(&self, at: Place, from: u64, found: Option<Option<Content>>) {
        let mut world = self.world.lock();
        let Some(found) = found.filter(|_| world.states[self.number] == State::Lives) else { return };
        if let Some((number, filler)) = &found
            && !is_filler(*number, filler)
        {
            world.history.violated("P4", format!("{number} was read with a content that was not written"));
        }
        world.history.end_read(at, from, found.map(|(number, _)| number));
    }

    fn flush(&self) {
        let acknowledged = {
            let history = &mut self.world.lock().history;
            history.operations += 1;
            history.last_acknowledged()
        };
        let flushed = block_on(self.open.bay.flush());
        let mut world = self.world.lock();
        let Ok(reached) = flushed else { return };
        if world.states[self.number] != State::Lives {
            return;
        }
        let watermark: Seq = standing_of(&world.store).progress.applied;
        if reached < acknowledged || watermark < reached {
            let what =
                format!("{acknowledged} was acknowledged, flushed to {reached}, the store is at {watermark}");
            world.history.violated("P1", what);
        }
        world.history.raise_floor(reached);
    }

    /// Changes the store past the layer, and tells it.
    fn external(&self, key: u32, all: bool) {
        let number = {
            let mut world = self.world.lock();
            let number = world.history.begin_external(key);
            let mut value = vec![Bincode::ID, 1];
            Bincode::encode(&Self::content(number, false), 1 << 10, &mut value).expect("a small value");
            let held = Versioned { value: value.into(), version: Seq::ZERO };
            world.external.insert(key_of(EXTERNAL, key), held);
            number
        };
        if self.world.point(self.number) != State::Lives {
            return;
        }
        if all {
            self.open.external.invalidate_all();
        } else {
            self.open.external.invalidate(&key);
        }
        let mut world = self.world.lock();
        if world.states[self.number] == State::Lives {
            world.history.end_external(number);
        }
    }

    fn sleep(&self, wait: Duration) {
        block_on(simulated::sleep(wait));
    }
}
