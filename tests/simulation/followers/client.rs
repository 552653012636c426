//! Writers to an owner and readers of a follower: they do what the plan says, and note the answers.

use std::sync::Arc;
use std::time::Duration;

use forebay::seam::simulated;
use forebay::{Cache, Forebay, OnUnverified, ReadOptions, Receipt, Result, Seq, StaleReason, WritePolicy};
use shuttle::future::block_on;

use crate::followers::bus::now;
use crate::followers::follower::{Follower, Notes};
use crate::followers::ledger::{Answer, Proof};
use crate::followers::plan::{Read, Write};
use crate::harness::plan::{CACHES, KEYS, Place};
use crate::harness::run::{Content, NAMES};
use crate::harness::world::{State, World};

/// An open layer with its caches.
#[derive(Clone)]
pub struct Open {
    pub bay: Forebay,
    pub caches: [Cache<u32, Content>; CACHES],
}

/// A client of an owner. What that says after it was cut off is heard by nobody.
pub struct Writer {
    pub world: World,
    pub notes: Notes,
    pub open: Open,
    pub number: usize,
}

impl Writer {
    pub fn work(&self, writes: &[Write]) {
        for write in writes {
            if self.world.point(self.number) != State::Lives {
                return;
            }
            match write {
                Write::One { at, puts, policy } => {
                    self.wrote(1, block_on(self.write(*at, *puts, *policy)));
                }
                Write::Burst(changes) => block_on(self.burst(changes)),
                Write::Batch { changes, through } => self.batch(changes, *through),
                Write::Namespace(cache) => {
                    self.wrote(0, block_on(self.open.bay.invalidate_namespace(NAMES[*cache])));
                }
                Write::Flush => drop(block_on(self.open.bay.flush())),
                Write::Sleep(wait) => block_on(simulated::sleep(*wait)),
            }
        }
    }

    /// A value that nobody else writes.
    fn content(&self) -> Content {
        let number = self.notes.lock().event();
        (number, vec![number.to_le_bytes()[0]; (number % 5) as usize])
    }

    async fn write(&self, (cache, key): Place, puts: bool, policy: WritePolicy) -> Result<Receipt> {
        let cache = &self.open.caches[cache];
        match puts {
            true => cache.put_with(&key, self.content(), policy).await,
            false => cache.remove_with(&key, policy).await,
        }
    }

    async fn burst(&self, changes: &[(Place, bool)]) {
        let write = |(at, puts): &(Place, bool)| Box::pin(self.write(*at, *puts, WritePolicy::Behind));
        let mut under_way: Vec<_> = changes.iter().map(write).collect();
        std::future::poll_fn(|context| {
            under_way.retain_mut(|write| match write.as_mut().poll(context) {
                std::task::Poll::Ready(written) => {
                    self.wrote(1, written);
                    false
                }
                std::task::Poll::Pending => true,
            });
            if under_way.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        })
        .await;
    }

    fn batch(&self, changes: &[(Place, bool)], through: bool) {
        let mut batch = self.open.bay.batch();
        for ((cache, key), puts) in changes {
            let cache = &self.open.caches[*cache];
            let added = match puts {
                true => batch.put(cache, key, self.content()).map(drop),
                false => batch.remove(cache, key).map(drop),
            };
            added.expect("a small batch of one layer's caches");
        }
        if through {
            batch.write_policy(WritePolicy::Through);
        }
        self.wrote(changes.len() as u64, block_on(batch.commit()));
    }

    /// Only what was acknowledged counts.
    fn wrote(&self, writes: u64, written: Result<Receipt>) {
        let Ok(receipt) = written else { return };
        if self.world.state(self.number) == State::Lives {
            let mut notes = self.notes.lock();
            notes.writes += writes;
            notes.receipt = Some(receipt.seq());
        }
    }
}

/// A reader of a follower.
pub struct Reader {
    pub follower: Arc<Follower>,
    pub notes: Notes,
}

/// The state by which a read is judged.
#[derive(Clone, Copy)]
struct Asked {
    most: Option<Duration>,
    wanted: OnUnverified,
    least: Option<Seq>,
    life: u64,
    from: Duration,
    began: u64,
}

impl Reader {
    pub fn work(&self, reads: &[Read]) {
        for read in reads {
            shuttle::thread::yield_now();
            match read {
                Read::Sleep(wait) => block_on(simulated::sleep(*wait)),
                Read::Reopen { closes } => self.follower.close(*closes),
                _ => {
                    // Its store may refuse to say where the owner is.
                    let Some((open, life)) = self.follower.open() else { continue };
                    self.read(&open, life, read);
                }
            }
        }
    }

    fn read(&self, open: &Open, life: u64, read: &Read) {
        let asked = self.begin(life);
        match read {
            Read::Get(at) => {
                let value = block_on(open.caches[at.0].get(&at.1));
                self.end(asked, *at, value, None);
            }
            Read::Entry { at, most, wanted } => {
                let wanted = wanted.unwrap_or(asked.wanted);
                self.read_entry(open, Asked { most: *most, wanted, ..asked }, *at);
            }
            Read::AtLeast(at) => {
                let least = self.notes.lock().receipt;
                self.read_entry(open, Asked { least, ..asked }, *at);
            }
            Read::Many { cache, most } => {
                let (keys, asked) = ((0..KEYS).collect::<Vec<_>>(), Asked { most: *most, ..asked });
                let found = block_on(open.caches[*cache].get_many_with(&keys, &options(&asked)));
                let Ok(found) = found else { return };
                for (key, value) in keys.into_iter().zip(found) {
                    self.end(asked, (*cache, key), Ok(value), None);
                }
            }
            Read::Evict(at) => open.caches[at.0].evict(&at.1),
            Read::Sleep(_) | Read::Reopen { .. } => {}
        }
    }

    fn begin(&self, life: u64) -> Asked {
        let (most, wanted, least) = (None, self.follower.setting.on_unverified, None);
        Asked { most, wanted, least, life, from: now(), began: self.notes.lock().event() }
    }

    fn read_entry(&self, open: &Open, asked: Asked, at: Place) {
        let Ok(entry) = block_on(open.caches[at.0].get_entry_with(&at.1, &options(&asked))) else { return };
        let proof = Proof { version: entry.version, age: entry.age };
        self.end(asked, at, Ok(entry.value), Some((proof, entry.stale)));
    }

    /// Notes an answer; what was refused is none.
    fn end(
        &self,
        asked: Asked,
        at: Place,
        value: Result<Option<Content>>,
        proof: Option<(Proof, Option<StaleReason>)>,
    ) {
        let Ok(value) = value else { return };
        let is_unverified = match proof {
            // Nobody says whether it was.
            None => asked.wanted == OnUnverified::Serve,
            Some((_, excuse)) => excuse == Some(StaleReason::Unverified),
        };
        let lag_max = (!is_unverified).then_some(self.follower.setting.lag_max);
        let mut notes = self.notes.lock();
        notes.reads += 1;
        notes.unverified += u64::from(is_unverified && proof.is_some());
        let answer = Answer {
            follower: self.follower.number,
            life: asked.life,
            at,
            from: asked.from,
            began: asked.began,
            ended: notes.event(),
            value: value.map(|(number, _)| number),
            proof: proof.map(|(proof, _)| proof),
            // What may be older, but not because it is unverified, has the bound all the same.
            bound: asked.most.into_iter().chain(lag_max).min(),
            least: asked.least,
        };
        notes.answers.push(answer);
    }
}

fn options(asked: &Asked) -> ReadOptions {
    let mut options = ReadOptions::new().on_unverified(asked.wanted);
    if let Some(most) = asked.most {
        options = options.max_staleness(most);
    }
    if let Some(least) = asked.least {
        let receipt = serde_json::from_value(serde_json::json!({ "seq": least.get() }));
        options = options.at_least(receipt.expect("a receipt is its number"));
    }
    options
}
