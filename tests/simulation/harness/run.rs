//! One run: layers that follow each other on one disk and one store, and the clients that use them.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use forebay::disk::{CrashPolicy, DiskOp, Fault};
use forebay::options::LayerSizes;
use forebay::seam::simulated;
use forebay::{
    Bincode, Builder, Cache, Codec, Durability, ErrorKind, Forebay, HealthState, JournalOptions, Key,
    NamespaceName, OnRejected,
};
use shuttle::future::block_on;
use shuttle::thread;
use tokio::sync::{oneshot, watch};

use crate::harness::client::Client;
use crate::harness::plan::{CACHES, End, KEYS, Place, Plan, Setting, Tenure, Weather};
use crate::harness::world::{Cut, State, World, standing_of};

pub const NAMES: [&str; CACHES] = ["a", "b"];
pub const EXTERNAL: &str = "external";
/// The value's number, and what makes it long.
pub type Content = (u64, Vec<u8>);

/// An open layer with its caches.
#[derive(Clone)]
pub struct Open {
    pub bay: Forebay,
    pub caches: [Cache<u32, Content>; CACHES],
    pub external: Cache<u32, Content>,
}

/// Runs a plan in the present shuttle execution, whose first thread this is.
pub fn run(plan: &Plan, order: u64) -> World {
    simulated::begin(order);
    let world = World::new(order);
    let (done, ended) = oneshot::channel();
    let director = thread::spawn({
        let (plan, world) = (plan.clone(), world.clone());
        move || {
            Director { world, zombies: Vec::new(), parks: false }.direct(&plan);
            done.send(()).expect("the clock's thread waits");
        }
    });
    simulated::drive(ended).expect("the director says when it is done");
    director.join().expect("the director does not panic");
    world
}

struct Director {
    world: World,
    /// Layers that lost their disk and do not know yet.
    zombies: Vec<Open>,
    /// True if records were parked, which then come late.
    parks: bool,
}

impl Director {
    fn direct(&mut self, plan: &Plan) {
        self.world.lock().buffered = plan.tenures.first().is_some_and(|tenure| tenure.setting.buffered);
        for tenure in &plan.tenures {
            self.tenure(tenure);
        }
        self.finish();
    }

    fn tenure(&mut self, tenure: &Tenure) {
        let number = self.begin(tenure);
        let zombies = std::mem::take(&mut self.zombies);
        if let Some(open) = self.open(number, &tenure.setting)
            && self.take_over(number, &open)
        {
            self.work(number, tenure, &open);
            drop(zombies);
            self.end(number, tenure.end, open);
        }
        if self.world.state(number) == State::Lives && cut_of(tenure.end, 0).is_some() {
            self.cut_now(tenure.end);
        }
        self.world.lock().disk.heal();
    }

    /// Makes the weather of a tenure, and plans its end.
    fn begin(&mut self, tenure: &Tenure) -> usize {
        let mut world = self.world.lock();
        let world = &mut *world;
        world.states.push(State::Lives);
        world.points = 0;
        world.weather = tenure.weather.clone();
        let rejects = tenure.weather.rejects;
        world.rejected = rejects.map(|(at, _)| key_of(NAMES[at.0], at.1));
        world.rejections_left = rejects.map_or(0, |(_, times)| times);
        self.parks |= rejects.is_some() && tenure.setting.parks;
        let ops: usize = tenure.clients.iter().map(Vec::len).sum();
        // Early or late, about as often.
        let longest = 1 << world.draw.below(2 + u64::from((1 + ops as u64 * 16).ilog2()));
        let at = 1 + world.draw.below(longest * 2);
        let seed = world.draw.next();
        world.cut = cut_of(tenure.end, seed).map(|cut| Cut { at, ..cut });
        if tenure.weather.disk_fault {
            let kinds = [DiskOp::Sync, DiskOp::Write, DiskOp::SyncDir, DiskOp::Create, DiskOp::Rename];
            let on = world.draw.of(&kinds);
            world.disk.plan(Fault::on(on).after(world.draw.below(12)));
        }
        world.states.len() - 1
    }

    fn open(&mut self, number: usize, setting: &Setting) -> Option<Open> {
        let world = &self.world;
        let builder =
            Forebay::builder(world.store(number)).disk(world.disk(number)).sizes(LayerSizes::COLLIDING);
        let opened = options(builder, setting).open_blocking().and_then(|bay| {
            let open = |name| bay.cache(name).capacity(setting.capacity).coalesce(setting.coalesce).open();
            let caches = [open(NAMES[0])?, open(NAMES[1])?];
            Ok(Open { caches, external: open(EXTERNAL)?, bay })
        });
        match opened {
            Ok(open) => Some(open),
            Err(error) => {
                let faulty = world.lock().weather.disk_fault && error.kind() != ErrorKind::Damaged;
                if world.state(number) == State::Lives && !faulty {
                    world.lock().history.violated("P1", format!("the layer does not open: {error}"));
                }
                None
            }
        }
    }

    /// Looks at what a layer that has just opened holds; says whether it still lives.
    fn take_over(&mut self, number: usize, open: &Open) -> bool {
        let committed = open.bay.health().committed;
        {
            let mut world = self.world.lock();
            let lossy = world.lossy;
            world.history.reopened(committed, lossy);
        }
        if self.world.lock().lossy {
            let mut found = BTreeMap::new();
            for at in places() {
                let Ok(value) = block_on(open.caches[at.0].get(&at.1)) else { return false };
                found.insert(at, value.map(|(number, _)| number));
            }
            if self.world.state(number) != State::Lives {
                return false;
            }
            let mut world = self.world.lock();
            world.lossy = false;
            world.history.restart(found);
        }
        self.world.state(number) == State::Lives
    }

    fn work(&mut self, number: usize, tenure: &Tenure, open: &Open) {
        let (stop, stopped) = watch::channel(false);
        let operator = (tenure.weather.rejects.is_some()).then(|| {
            let (bay, mut stopped) = (open.bay.clone(), stopped);
            thread::spawn(move || {
                while !block_on(stops_within(&mut stopped, Duration::from_millis(10))) {
                    if bay.health().state == HealthState::Halted {
                        bay.resume();
                    }
                }
            })
        });
        let clients = tenure.clients.iter().map(|ops| {
            let (world, open, ops) = (self.world.clone(), open.clone(), ops.clone());
            thread::spawn(move || Client { world, open, number }.work(&ops))
        });
        let clients: Vec<_> = clients.collect();
        clients.into_iter().for_each(|client| client.join().expect("a client does not panic"));
        stop.send_replace(true);
        operator.into_iter().for_each(|operator| operator.join().expect("the operator does not panic"));
    }

    fn end(&mut self, number: usize, end: End, open: Open) {
        if self.world.state(number) == State::Lives && cut_of(end, 0).is_some() {
            self.cut_now(end);
        } else if end == End::Close
            && let Err(error) = block_on(open.bay.close())
            && !self.world.lock().weather.disk_fault
        {
            self.world.lock().history.violated("P12", format!("closing failed: {error}"));
        }
        match self.world.state(number) {
            State::Zombie => self.zombies.push(open),
            State::Lives | State::Dead => drop(open),
        }
    }

    fn cut_now(&mut self, end: End) {
        let mut world = self.world.lock();
        let seed = world.draw.next();
        if let Some(cut) = cut_of(end, seed) {
            world.cut(cut);
        }
    }

    /// Opens in good weather, drains, and compares all that is left.
    fn finish(&mut self) {
        let last = Tenure::last(self.world.lock().buffered);
        let number = self.begin(&last);
        if let Some(open) = self.open(number, &last.setting)
            && self.take_over(number, &open)
        {
            if let Err(error) = self.drain(&open) {
                self.world.lock().history.violated("P12", format!("the layer does not drain: {error}"));
            }
            self.zombies.clear();
            self.compare(&open);
        }
        let mut world = self.world.lock();
        let world = &mut *world;
        if !self.parks {
            let keys = places().map(|at| (stored_key(at), at)).collect();
            world.history.check_prefixes(&world.applied, &keys, number_of);
        }
        world.history.check_reads();
    }

    fn drain(&self, open: &Open) -> forebay::Result<()> {
        if self.parks {
            let keys: Vec<Key> = places().map(stored_key).collect();
            block_on(open.bay.dead_letters().replay(&keys))?;
        }
        let reached = block_on(open.bay.flush())?;
        let watermark = standing_of(&self.world.lock().store).progress.applied;
        if watermark < reached {
            let what = format!("flushed to {reached}, and the store is at {watermark}");
            self.world.lock().history.violated("P1", what);
        }
        let closed = block_on(open.bay.close())?;
        if closed.queued > 0 {
            let what = format!("closing after a flush left {} records", closed.queued);
            self.world.lock().history.violated("P12", what);
        }
        Ok(())
    }

    /// Compares the store's content in the end with what was read last, and reads it once more.
    fn compare(&self, _: &Open) {
        let mut world = self.world.lock();
        let content = world.store.snapshot();
        for at in places() {
            let value = content.get(&stored_key(at)).map(|held| number_of(&held.value));
            let from = world.history.now();
            world.history.end_read(at, from, value);
        }
    }
}

impl Tenure {
    /// The last one: in good weather, and without clients.
    fn last(buffered: bool) -> Tenure {
        let setting = Setting { buffered, ..Setting::plain() };
        Tenure { setting, weather: Weather::default(), end: End::Close, clients: Vec::new() }
    }
}

pub fn options(builder: Builder, setting: &Setting) -> Builder {
    let mut journal = JournalOptions::default();
    journal.segment_bytes = 64 << 10;
    journal.spares_max = setting.spares_max;
    (journal.zero_fill, journal.recycle) = (setting.zero_fill, setting.recycle);
    let sync_interval = Duration::from_millis(10);
    let buffered = Durability::Buffered { sync_interval };
    builder
        .journal("/journal")
        .journal_options(journal)
        .durability(if setting.buffered { buffered } else { Durability::Sync })
        .pending_memory_bytes_max(setting.pending_memory_bytes_max)
        .batch_records_max(setting.batch_records_max)
        .batch_linger(setting.linger)
        .drain_delay_max(setting.drain_delay_max)
        .queue_records_max(setting.queue_records_max)
        .backpressure(setting.backpressure)
        .through_timeout(setting.through_timeout)
        .on_rejected(if setting.parks { OnRejected::Park } else { OnRejected::Halt })
        .changes(setting.changes)
        // Half of the tenures keep what they have applied for longer than they last, as it were.
        .retain_applied_for(Duration::from_millis(if setting.zero_fill { 0 } else { 20 }))
        .retry_backoff(Duration::from_millis(1), Duration::from_millis(20))
        .close_deadline(Duration::from_secs(1))
}

/// The cut that ends a tenure so, if it is ended by one.
pub fn cut_of(end: End, seed: u64) -> Option<Cut> {
    let (policy, leaves) = match end {
        End::Close | End::Drop => return None,
        End::Killed => (CrashPolicy::ProcessKilled, State::Dead),
        End::PowerCut => (CrashPolicy::OnlySynced, State::Dead),
        End::PowerCutRandom => (CrashPolicy::Random { seed }, State::Dead),
        End::PowerCutTorn => (CrashPolicy::Torn { seed }, State::Dead),
        End::Zombie => (CrashPolicy::ProcessKilled, State::Zombie),
    };
    Some(Cut { at: 0, policy, leaves })
}

/// Waits so long, or until it is to stop; says whether it is.
async fn stops_within(stopped: &mut watch::Receiver<bool>, wait: Duration) -> bool {
    tokio::select! {
        biased;
        stopped = stopped.wait_for(|stop| *stop) => stopped.is_ok(),
        () = simulated::sleep(wait) => false,
    }
}

/// Polls a future so often at most; `None` if that was not enough, and it is dropped then.
pub async fn polled<T>(polls: u32, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(move |context| match Pin::new(&mut future).poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending if left == 0 => Poll::Ready(None),
        Poll::Pending => {
            left -= 1;
            Poll::Pending
        }
    })
    .await
}

pub fn places() -> impl Iterator<Item = Place> {
    (0..CACHES).flat_map(|cache| (0..KEYS).map(move |key| (cache, key)))
}

pub fn key_of(namespace: &str, key: u32) -> Key {
    let mut encoded = Vec::new();
    Bincode::encode(&key, 1 << 10, &mut encoded).expect("a number is encoded");
    Key::new(&NamespaceName::parse(namespace).expect("a good name"), &encoded).expect("a short key")
}

pub fn stored_key(at: Place) -> Key {
    key_of(NAMES[at.0], at.1)
}

/// The number of a stored value.
pub fn number_of(stored: &[u8]) -> u64 {
    let (number, filler): Content = Bincode::decode(&stored[2..]).expect("the store holds what was written");
    assert!(is_filler(number, &filler), "the store holds {number} with a content that was not written");
    number
}

pub fn is_filler(number: u64, filler: &[u8]) -> bool {
    filler.iter().all(|byte| *byte == number.to_le_bytes()[0])
}
