//! The race of a load with a change: a loader reads v1, a writer commits v2, the loader ends.
//!
//! For every way to change a key or to tell the layer that it has changed, every kind of load, and many orders of the
//! threads: v1 does not stay in memory, and is not returned to a read that began after the change had returned.
//!
//! A way is a row of [`WAYS`]. A failing test prints the number of its order; `FOREBAY_SEED` set to it repeats it.

mod bay;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use forebay::{Cache, Loaded, ReadOptions, WritePolicy};
use shuttle::future::block_on;
use shuttle::thread;

use self::bay::{Bay, GROUP, NEW_VERSION, OLD_VERSION, OTHER, OTHER_VALUE, TAG};
use crate::harness::order::{begin_trace, in_orders, trace};
use crate::support::budget::{budget, say};

/// The number of interleavings of each way, unless `FOREBAY_BUDGET` says how long.
const INTERLEAVINGS: usize = 10_000;
/// Races of one order, on one layer: to open it costs more than a race.
const RACES_OF_AN_ORDER: u64 = 25;
/// As many steps as others need to load in between.
const LATE_BY: u32 = 40;

/// The effect of a way on the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    /// The layer writes the new value.
    Puts,
    /// The layer removes the key; what a loader has from then on is new, too.
    Removes,
    /// Others have changed the store, or what a loader has, and tell the layer.
    Tells,
    /// So they do of what has a tag.
    TellsOfATag,
}

impl Effect {
    fn tells(self) -> bool {
        matches!(self, Effect::Tells | Effect::TellsOfATag)
    }
}

/// A way to change.
struct Way {
    name: &'static str,
    effect: Effect,
    change: fn(&Race),
}

const WAYS: &[Way] = &[
    Way { name: "put behind", effect: Effect::Puts, change: |race| race.put(WritePolicy::Behind) },
    Way { name: "put through", effect: Effect::Puts, change: |race| race.put(WritePolicy::Through) },
    Way { name: "put around", effect: Effect::Puts, change: |race| race.put(WritePolicy::Around) },
    Way { name: "a batch", effect: Effect::Puts, change: Race::put_in_a_batch },
    Way { name: "remove", effect: Effect::Removes, change: |race| race.remove(WritePolicy::Behind) },
    Way { name: "remove through", effect: Effect::Removes, change: |race| race.remove(WritePolicy::Through) },
    Way { name: "remove around", effect: Effect::Removes, change: |race| race.remove(WritePolicy::Around) },
    Way { name: "invalidate", effect: Effect::Tells, change: |race| race.cache().invalidate(&race.key) },
    Way {
        name: "invalidate_version",
        effect: Effect::Tells,
        // It says whether memory had something older, which hangs on the order.
        change: |race| {
            race.cache().invalidate_version(&race.key, NEW_VERSION);
        },
    },
    Way { name: "invalidate_all", effect: Effect::Tells, change: |race| race.cache().invalidate_all() },
    Way { name: "refresh", effect: Effect::Tells, change: Race::refresh },
    Way { name: "namespace", effect: Effect::Tells, change: Race::invalidate_namespace },
    Way { name: "group", effect: Effect::Tells, change: Race::invalidate_group },
    Way {
        name: "tag",
        effect: Effect::TellsOfATag,
        change: |race| race.bay.bay.invalidate_tag(TAG).unwrap(),
    },
];

/// The way in which a key is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Read {
    Get,
    GetMany,
    GetOrLoad,
    GetManyOrLoad,
}

const READS: [Read; 4] = [Read::Get, Read::GetMany, Read::GetOrLoad, Read::GetManyOrLoad];

impl Read {
    fn asks_a_loader(self) -> bool {
        matches!(self, Read::GetOrLoad | Read::GetManyOrLoad)
    }

    /// The other one that has, or has no, loader.
    fn sibling(self) -> Read {
        match self {
            Read::Get => Read::GetMany,
            Read::GetMany => Read::Get,
            Read::GetOrLoad => Read::GetManyOrLoad,
            Read::GetManyOrLoad => Read::GetOrLoad,
        }
    }

    /// The one that differs in having a loader.
    fn counterpart(self) -> Read {
        match self {
            Read::Get => Read::GetOrLoad,
            Read::GetMany => Read::GetManyOrLoad,
            Read::GetOrLoad => Read::Get,
            Read::GetManyOrLoad => Read::GetMany,
        }
    }
}

/// Where the layer has the old value; one that only a loader knows is nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    InMemory,
    InStore,
    Nowhere,
}

/// The course of one race.
#[derive(Clone, Copy, Debug)]
struct Plan {
    /// The read that may begin before the change.
    load: Read,
    before: Before,
    /// Others have removed the value, instead of changing it.
    gone: bool,
    /// The cache remembers that a key has no value.
    negative: bool,
    /// The load ends after the change, rather than at any time.
    held: bool,
    /// Nobody else reads before the load has ended.
    alone: bool,
    /// The key is evicted after the change.
    evicts: bool,
    /// The layer is told some time after others have made the change.
    late: bool,
}

impl Plan {
    /// All that make sense for a way.
    fn all(effect: Effect) -> Vec<Plan> {
        let mut plans = Vec::new();
        for load in READS {
            for before in [Before::InMemory, Before::InStore, Before::Nowhere] {
                for bits in 0..64_u8 {
                    let bit = |at: u8| bits & (1 << at) != 0;
                    let (gone, negative, held, alone, evicts) = (bit(0), bit(1), bit(2), bit(3), bit(4));
                    plans.push(Plan { load, before, gone, negative, held, alone, evicts, late: bit(5) });
                }
            }
        }
        plans.retain(|plan| plan.makes_sense(effect));
        plans
    }

    fn makes_sense(&self, effect: Effect) -> bool {
        let loads = self.before != Before::InMemory || self.load != Read::GetManyOrLoad;
        self.old_version() != self.new_version(effect)
            && (effect.tells() || !self.gone && !self.late)
            // What is not there has no tag.
            && (effect != Effect::TellsOfATag || self.old_version().is_some())
            && (loads || !self.held)
            && (self.held || !self.alone)
            && !(self.alone && self.evicts)
    }

    /// The version that a reader finds before the change.
    fn old_version(&self) -> Option<u64> {
        (self.before != Before::Nowhere || self.load.asks_a_loader()).then_some(1)
    }

    /// The version that a reader finds after the change.
    fn new_version(&self, effect: Effect) -> Option<u64> {
        let exists = match effect {
            Effect::Puts => true,
            Effect::Removes => self.load.asks_a_loader(),
            Effect::Tells | Effect::TellsOfATag => !self.gone,
        };
        exists.then_some(2)
    }

    /// Returns the way in which others read.
    fn other_load(&self, effect: Effect) -> Read {
        // With a loader or without one they find the same only if the store has it.
        let alike =
            self.before != Before::Nowhere && self.new_version(effect).is_some() && effect != Effect::Removes;
        if alike && self.evicts { self.load.counterpart() } else { self.load.sibling() }
    }
}

/// One race.
#[derive(Clone)]
struct Race {
    bay: Arc<Bay>,
    way: &'static Way,
    plan: Plan,
    key: u32,
    /// The change has returned.
    told: Arc<AtomicBool>,
}

impl Race {
    fn cache(&self) -> &Cache<u32, u64> {
        if self.plan.negative { &self.bay.remembering } else { &self.bay.forgetting }
    }

    fn run(&self) {
        let Plan { load, before, held, alone, evicts, .. } = self.plan;
        self.prepare();
        begin_trace();
        let in_source = before == Before::Nowhere && load.asks_a_loader();
        let hold = held.then(|| self.bay.truth.hold(self.cache().namespace(), self.key, in_source));
        let older = self.reader(load, before == Before::InMemory && load != Read::GetManyOrLoad, 1);
        let others = (!alone).then(|| self.reader(self.plan.other_load(self.way.effect), false, 2));
        if let Some(hold) = &hold {
            block_on(hold.wait_until_taken());
        }
        self.change();
        self.told.store(true, SeqCst);
        let count = self.cache().resident_count();
        drop(hold);
        if evicts {
            self.cache().evict(&self.key);
        }
        if !alone {
            self.read(load.sibling(), false);
        }
        older.join().unwrap();
        others.into_iter().for_each(|others| others.join().unwrap());
        if alone {
            assert!(self.cache().resident_count() <= count, "{self}: what was loaded before was kept");
        }
        self.read(load, false);
        self.cache().evict(&self.key);
        self.read(load, false);
    }

    /// Makes the old version true.
    fn prepare(&self) {
        let (truth, namespace) = (&self.bay.truth, self.cache().namespace());
        let old = self.value(self.plan.old_version());
        match self.plan.before {
            Before::InMemory | Before::InStore => truth.store(namespace, self.key, old, OLD_VERSION),
            Before::Nowhere => truth.source(self.key, old),
        }
        self.cache().evict(&OTHER);
        if self.plan.alone {
            // Then nothing but the key can come into memory.
            assert_eq!(block_on(self.cache().get(&OTHER)).unwrap(), Some(OTHER_VALUE));
        }
        if self.plan.before == Before::InMemory {
            assert_eq!(block_on(self.cache().get(&self.key)).unwrap(), old);
        }
    }

    fn change(&self) {
        let (truth, namespace) = (&self.bay.truth, self.cache().namespace());
        let new = self.value(self.plan.new_version(self.way.effect));
        match (self.way.effect, self.plan.before) {
            (Effect::Puts, _) => {}
            (Effect::Removes, _) => truth.source(self.key, new),
            (_, Before::Nowhere) if self.plan.load.asks_a_loader() => truth.source(self.key, new),
            _ => truth.store(namespace, self.key, new, NEW_VERSION),
        }
        let steps = if self.plan.late { LATE_BY } else { 0 };
        (0..steps).for_each(|_| thread::yield_now());
        (self.way.change)(self);
    }

    /// The value of a version of this key.
    fn value(&self, version: Option<u64>) -> Option<u64> {
        version.map(|version| u64::from(self.key) * 10 + version)
    }

    fn reader(&self, load: Read, exact: bool, reads: u32) -> thread::JoinHandle<()> {
        let race = self.clone();
        thread::spawn(move || (0..reads).for_each(|_| race.read(load, exact)))
    }

    /// Reads once; `exact` is past memory.
    fn read(&self, load: Read, exact: bool) {
        let after = self.told.load(SeqCst);
        let (cache, key) = (self.cache(), self.key);
        let bound = ReadOptions::new().max_staleness(Duration::ZERO);
        let options = if exact { bound } else { ReadOptions::new() };
        let keys = [key, OTHER];
        let source = self.bay.truth.clone();
        let load_one = move |key| async move { Ok::<_, String>(tagged(source.load(&[key]).await[0])) };
        let source = self.bay.truth.clone();
        let load_many = move |keys: Vec<u32>| async move {
            Ok::<_, String>(source.load(&keys).await.into_iter().map(tagged).collect())
        };
        let many = match load {
            Read::Get => vec![block_on(cache.get_with(&key, &options)).unwrap()],
            Read::GetMany => block_on(cache.get_many_with(&keys, &options)).unwrap(),
            Read::GetOrLoad => {
                vec![block_on(cache.get_or_load_with(&key, &options, load_one)).unwrap().value]
            }
            Read::GetManyOrLoad => block_on(cache.get_many_or_load(&keys, load_many)).unwrap(),
        };
        assert!(many.get(1).is_none_or(|other| *other == Some(OTHER_VALUE)), "{self}: {many:?}");
        let (old, new) =
            (self.value(self.plan.old_version()), self.value(self.plan.new_version(self.way.effect)));
        let fits = many[0] == new || !after && many[0] == old;
        assert!(fits, "{self}: {load:?} found {:?}, began after: {after}", many[0]);
    }

    fn put(&self, policy: WritePolicy) {
        block_on(self.cache().put_with(&self.key, self.value(Some(2)).unwrap(), policy)).unwrap();
    }

    fn put_in_a_batch(&self) {
        let mut batch = self.bay.bay.batch();
        batch.put(self.cache(), &self.key, self.value(Some(2)).unwrap()).unwrap();
        block_on(batch.commit()).unwrap();
    }

    fn remove(&self, policy: WritePolicy) {
        block_on(self.cache().remove_with(&self.key, policy)).unwrap();
    }

    fn invalidate_namespace(&self) {
        block_on(self.bay.bay.invalidate_namespace(self.cache().namespace())).unwrap();
    }

    fn invalidate_group(&self) {
        block_on(self.cache().invalidate_group(GROUP)).unwrap();
    }

    /// Of what the store lacks only a loader can say something new.
    fn refresh(&self) {
        let load = if self.plan.load.asks_a_loader() { Read::GetOrLoad } else { Read::Get };
        self.read(load, true);
    }
}

fn tagged(loaded: Option<u64>) -> Loaded<u64> {
    Loaded::from(loaded).tags([TAG])
}

impl std::fmt::Display for Race {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of key {}, {:?}", self.way.name, self.key, self.plan)
    }
}

/// The races of a way.
#[derive(Default)]
struct Tried {
    races: u64,
    /// The plan, and in which order the threads ran.
    interleavings: BTreeSet<(usize, u64)>,
}

/// Runs the races of one order, all of one way.
fn races(order: u64, plans: &[Vec<Plan>], tried: &Mutex<Vec<Tried>>) {
    let turn = order - 1;
    let (at, round) = ((turn % WAYS.len() as u64) as usize, turn / WAYS.len() as u64);
    let (way, plans) = (&WAYS[at], &plans[at]);
    let enough = tried.lock().unwrap()[at].interleavings.len() >= INTERLEAVINGS;
    if enough && !is_raised() {
        return;
    }
    let bay = Arc::new(Bay::open());
    for race in 0..RACES_OF_AN_ORDER {
        let plan = (round * RACES_OF_AN_ORDER + race) as usize % plans.len();
        let key = OTHER + 1 + race as u32;
        Race { bay: Arc::clone(&bay), way, plan: plans[plan], key, told: Arc::default() }.run();
        let tried = &mut tried.lock().unwrap()[at];
        tried.races += 1;
        tried.interleavings.insert((plan, trace()));
    }
}

/// True if the races end with the time, rather than with their number.
fn is_raised() -> bool {
    std::env::var_os("FOREBAY_BUDGET").is_some()
}

#[test]
fn no_older_value_is_left() {
    let plans: Vec<Vec<Plan>> = WAYS.iter().map(|way| Plan::all(way.effect)).collect();
    let tried: Arc<Mutex<Vec<Tried>>> = Arc::new(Mutex::new(WAYS.iter().map(|_| Tried::default()).collect()));
    let (so_far, counting) = (Arc::clone(&tried), Arc::clone(&tried));
    let lacks = move || so_far.lock().unwrap().iter().any(|way| way.interleavings.len() < INTERLEAVINGS);
    let time = is_raised().then(|| budget(5, Duration::ZERO));
    in_orders("races", time, move || is_raised() || lacks(), move |order| races(order, &plans, &counting));
    say(format_args!("{:>20} {:>8} {:>14}", "way to change", "races", "interleavings"));
    for (way, Tried { races, interleavings }) in WAYS.iter().zip(&*tried.lock().unwrap()) {
        say(format_args!("{:>20} {races:>8} {:>14}", way.name, interleavings.len()));
    }
}
