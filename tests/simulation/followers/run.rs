//! One run: owners that follow each other on one store, three followers of theirs, and what lies between them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use forebay::disk::{DiskOp, Fault};
use forebay::options::LayerSizes;
use forebay::seam::simulated;
use forebay::testkit::faulty_bus::{BusFaultCounts, BusFaults, FaultyBus};
use forebay::{
    ErrorKind, Forebay, LocalBus, OnUnverified, Publication, Publish, PublishStatus, ReadOptions, Seq,
};
use shuttle::future::block_on;
use shuttle::thread;
use tokio::sync::oneshot;

use crate::followers::bus::{CHANNEL, Record, Tap, now};
use crate::followers::client::{Open, Reader, Writer};
use crate::followers::follower::{Follower, Notes};
use crate::followers::ledger::Ledger;
use crate::followers::plan::{BUSES, Ending, FOLLOWERS, Party, Plan, Tenure, Upset};
use crate::followers::stores::{Claims, OwnerStore, Terms};
use crate::harness::history::Violation;
use crate::harness::plan::{Draw, End, Setting, Weather};
use crate::harness::run::{NAMES, cut_of, number_of, options, places, stored_key};
use crate::harness::world::{Cut, State, World, standing_of};

/// The time for everything to come to rest in good weather: longer than any wait that a failure leaves behind.
const REST_MAX: Duration = Duration::from_secs(20);
const REST_LOOK: Duration = Duration::from_millis(10);

/// The outcome of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub violations: Vec<Violation>,
    pub writes: u64,
    pub reads: u64,
    pub cuts: u64,
    pub takeovers: u64,
    /// Of the owner's store, and of the followers'.
    pub store_faults: u64,
    pub bus: BusFaultCounts,
    pub published: u64,
    pub delivered: u64,
    pub outdated: u64,
    pub gaps: u64,
    pub places_lost: u64,
    pub refused_owner: u64,
    pub unverified: u64,
    pub publisher_places_lost: u64,
    /// Reads that returned an older version than an earlier one.
    pub went_back: u64,
}

/// Everything that outlives the layers of a run.
#[derive(Clone)]
pub struct Bench {
    pub world: World,
    pub notes: Notes,
    record: Record,
    taps: Vec<Tap>,
    followers: Vec<Arc<Follower>>,
    claims: Claims,
}

/// An owner, with what it publishes with.
struct Owner {
    open: Open,
    publications: Vec<Publication>,
}

/// Runs a plan in the present shuttle execution, whose first thread this is.
pub fn run(plan: &Plan, order: u64) -> Tally {
    simulated::begin(order);
    let bench = Bench::new(plan, order);
    let (done, ended) = oneshot::channel();
    let director = thread::spawn({
        let (plan, bench) = (plan.clone(), bench.clone());
        move || {
            let tally = Director::new(bench, plan.buses, plan.values, plan.heartbeat).direct(&plan);
            done.send(()).expect("the clock's thread waits");
            tally
        }
    });
    simulated::drive(ended).expect("the director says when it is done");
    director.join().expect("the director does not panic")
}

impl Bench {
    fn new(plan: &Plan, order: u64) -> Bench {
        let (world, record, notes) = (World::new(order), Record::default(), Notes::default());
        let store = world.lock().store.clone();
        let tap = |number| {
            let (inner, store, record) = (LocalBus::default(), store.clone(), record.clone());
            Tap { number, inner, store, record }
        };
        let taps: Vec<Tap> = (0..BUSES).map(tap).collect();
        let mut draw = Draw(order ^ 0x666f_6c6c_6f77);
        let followers = plan.followers.iter().enumerate().map(|(number, setting)| {
            let network = taps.iter().map(|tap| FaultyBus::new(tap.clone(), draw.next()));
            let network: Vec<_> = network.collect();
            network.iter().for_each(|bus| bus.set(setting.faults));
            Arc::new(Follower {
                number,
                setting: setting.clone(),
                terms: Terms::new(draw.next(), setting.load_percent, setting.slow),
                store: store.clone(),
                network,
                record: record.clone(),
                notes: notes.clone(),
                state: Mutex::default(),
            })
        });
        let followers = followers.collect();
        Bench { world, notes, record, taps, followers, claims: Claims::default() }
    }
}

struct Director {
    bench: Bench,
    buses: usize,
    values: bool,
    heartbeat: Duration,
    /// The present journal.
    journal: usize,
    /// Owners that have lost the store and may not know yet.
    former: Vec<Owner>,
    networks: Vec<FaultyBus<Tap>>,
    takeovers: u64,
    went_back: u64,
}

impl Director {
    fn new(bench: Bench, buses: usize, values: bool, heartbeat: Duration) -> Director {
        let (former, networks) = (Vec::new(), Vec::new());
        Director { bench, buses, values, heartbeat, journal: 0, former, networks, takeovers: 0, went_back: 0 }
    }

    fn direct(mut self, plan: &Plan) -> Tally {
        self.bench.world.lock().buffered = plan.tenures.first().is_some_and(|tenure| tenure.setting.buffered);
        for tenure in &plan.tenures {
            self.tenure(tenure);
        }
        self.finish(plan);
        self.tally()
    }

    fn tenure(&mut self, tenure: &Tenure) {
        let number = self.begin(tenure);
        let network = self.network(tenure.faults);
        let readers: Vec<_> = tenure
            .readers
            .iter()
            .map(|(of, reads)| {
                let (follower, notes, reads) =
                    (Arc::clone(&self.bench.followers[*of]), self.bench.notes.clone(), reads.clone());
                thread::spawn(move || Reader { follower, notes }.work(&reads))
            })
            .collect();
        let upsets = {
            let (bench, network, upsets) = (self.bench.clone(), network.clone(), tenure.upsets.clone());
            thread::spawn(move || bench.upset(&network, &upsets))
        };
        let former = std::mem::take(&mut self.former);
        if let Some(owner) = self.open(number, &tenure.setting, tenure.changes_bytes_max, network) {
            self.work(number, tenure, &owner.open);
            self.end(number, tenure.ending, owner);
        }
        readers.into_iter().for_each(|reader| reader.join().expect("a reader does not panic"));
        upsets.join().expect("nobody panics");
        former.into_iter().for_each(|owner| self.let_go(owner));
        if let Ending::Of(end) = tenure.ending
            && self.bench.world.state(number) == State::Lives
        {
            self.cut_now(end);
        }
        self.bench.world.lock().disk.heal();
    }

    fn network(&mut self, faults: BusFaults) -> Vec<FaultyBus<Tap>> {
        let seed = self.bench.world.lock().draw.next();
        let network = self.bench.taps.iter().zip(seed..).map(|(tap, seed)| FaultyBus::new(tap.clone(), seed));
        let network: Vec<_> = network.take(self.buses).collect();
        network.iter().for_each(|bus| bus.set(faults));
        self.networks.extend(network.iter().cloned());
        network
    }

    /// Makes the weather of a tenure, and plans its end.
    fn begin(&mut self, tenure: &Tenure) -> usize {
        let mut world = self.bench.world.lock();
        let world = &mut *world;
        world.states.push(State::Lives);
        world.points = 0;
        world.weather = tenure.weather.clone();
        let ops: usize = tenure.clients.iter().map(Vec::len).sum();
        // Early or late, about as often.
        let longest = 1 << world.draw.below(2 + u64::from((1 + ops as u64 * 32).ilog2()));
        let at = 1 + world.draw.below(longest * 2);
        let seed = world.draw.next();
        world.cut = match tenure.ending {
            Ending::Of(end) => cut_of(end, seed).map(|cut| Cut { at, ..cut }),
            Ending::TakenOver => None,
        };
        if tenure.weather.disk_fault {
            let kinds = [DiskOp::Sync, DiskOp::Write, DiskOp::SyncDir, DiskOp::Create, DiskOp::Rename];
            let on = world.draw.of(&kinds);
            world.disk.plan(Fault::on(on).after(world.draw.below(12)));
        }
        world.states.len() - 1
    }

    fn open(
        &self,
        number: usize,
        setting: &Setting,
        changes_bytes_max: u64,
        network: Vec<FaultyBus<Tap>>,
    ) -> Option<Owner> {
        let Bench { world, claims, .. } = &self.bench;
        claims.use_journal(self.journal);
        let (inner, memory) = (world.store(number), world.lock().store.clone());
        let store =
            OwnerStore { world: world.clone(), tenure: number, inner, store: memory, claims: claims.clone() };
        let builder = options(Forebay::builder(store).disk(world.disk(number)), setting)
            .journal(format!("/journal-{}", self.journal))
            .sizes(LayerSizes::COLLIDING)
            .replace_journal(self.journal > 0)
            .changes_bytes_max(changes_bytes_max)
            .renew_interval(Duration::from_millis(100));
        let opened = builder.open_blocking().and_then(|bay| {
            let cache = |name| bay.cache(name).capacity(setting.capacity).coalesce(setting.coalesce).open();
            let open = Open { caches: [cache(NAMES[0])?, cache(NAMES[1])?], bay };
            let publications = self.publish(&open.bay, &network)?;
            Ok(Owner { open, publications })
        });
        match opened {
            Ok(owner) => Some(owner),
            Err(error) => {
                let weather = world.lock().weather.clone();
                // A journal that takes another's place says so in the store, once.
                let faulty = weather.disk_fault && error.kind() != ErrorKind::Damaged
                    || self.journal > 0 && error.kind() == ErrorKind::Transient;
                if world.state(number) == State::Lives && !faulty {
                    self.bench.record.violated("P1", format!("the owner does not open: {error}"));
                }
                None
            }
        }
    }

    fn publish(&self, bay: &Forebay, network: &[FaultyBus<Tap>]) -> forebay::Result<Vec<Publication>> {
        let publish = |(bus, number): (&FaultyBus<Tap>, usize)| {
            let publish = Publish::to(CHANNEL)
                .cursor(&format!("bus-{number}"))
                .heartbeat(self.heartbeat)
                .values(self.values);
            block_on(bay.publish(bus.clone(), publish))
        };
        network.iter().zip(0..).map(publish).collect()
    }

    fn work(&self, number: usize, tenure: &Tenure, open: &Open) {
        let clients = tenure.clients.iter().map(|writes| {
            let (world, notes, open, writes) =
                (self.bench.world.clone(), self.bench.notes.clone(), open.clone(), writes.clone());
            thread::spawn(move || Writer { world, notes, open, number }.work(&writes))
        });
        let clients: Vec<_> = clients.collect();
        clients.into_iter().for_each(|client| client.join().expect("a client does not panic"));
    }

    fn end(&mut self, number: usize, ending: Ending, owner: Owner) {
        let world = &self.bench.world;
        match ending {
            Ending::TakenOver => {
                self.takeovers += 1;
                self.journal += 1;
                return self.former.push(owner);
            }
            Ending::Of(end) if world.state(number) == State::Lives && cut_of(end, 0).is_some() => {
                self.cut_now(end);
            }
            Ending::Of(End::Close) => {
                if let Err(error) = block_on(owner.open.bay.close())
                    && !world.lock().weather.disk_fault
                {
                    self.bench.record.violated("P12", format!("closing failed: {error}"));
                }
            }
            Ending::Of(_) => {}
        }
        match self.bench.world.state(number) {
            State::Zombie => self.former.push(owner),
            State::Lives | State::Dead => self.let_go(owner),
        }
    }

    /// Drops an owner.
    fn let_go(&self, owner: Owner) {
        let lost = owner.publications.iter().map(|publication| publication.status().places_lost).sum::<u64>();
        self.bench.notes.lock().publisher_places_lost += lost;
        drop(owner);
    }

    fn cut_now(&self, end: End) {
        let mut world = self.bench.world.lock();
        let seed = world.draw.next();
        if let Some(cut) = cut_of(end, seed) {
            world.cut(cut);
        }
    }

    /// Opens an owner in good weather, mends the network, and waits until everything has been heard of everywhere.
    fn finish(&mut self, plan: &Plan) {
        let buffered = self.bench.world.lock().buffered;
        let setting = Setting { buffered, changes: true, ..Setting::plain() };
        let last = Tenure {
            setting: setting.clone(),
            changes_bytes_max: 1 << 30,
            weather: Weather::default(),
            faults: BusFaults::default(),
            ending: Ending::Of(End::Close),
            clients: Vec::new(),
            readers: Vec::new(),
            upsets: Vec::new(),
        };
        let number = self.begin(&last);
        let network = self.network(BusFaults::default());
        for bus in self.networks.iter().chain(self.bench.followers.iter().flat_map(|one| &one.network)) {
            bus.set(BusFaults::default());
            bus.mend();
        }
        let followers = self.bench.followers.clone();
        followers.iter().for_each(|follower| follower.terms.make_good());
        let Some(owner) = self.open(number, &setting, 1 << 30, network) else { return };
        if let Err(error) = block_on(owner.open.bay.flush()) {
            self.bench.record.violated("P12", format!("the owner does not drain: {error}"));
        }
        std::mem::take(&mut self.former).into_iter().for_each(|owner| self.let_go(owner));
        let end = standing_of(&self.bench.world.lock().store).progress.applied;
        self.wait_for_rest(&owner, end);
        for follower in &followers {
            self.compare(follower);
            follower.close(true);
        }
        let statuses: Vec<PublishStatus> = owner.publications.iter().map(Publication::status).collect();
        for status in statuses.iter().filter(|status| status.published != end) {
            self.bench
                .record
                .violated("P8", format!("the store is at {end}, and the publisher at {status:?}"));
        }
        if let Err(error) = block_on(owner.open.bay.close()) {
            self.bench.record.violated("P12", format!("closing failed: {error}"));
        }
        self.let_go(owner);
        self.check(plan.buses, end);
    }

    fn wait_for_rest(&self, owner: &Owner, end: Seq) {
        let until = now() + REST_MAX;
        loop {
            let published = owner.publications.iter().all(|one| one.status().published == end);
            let behind = self.bench.followers.iter().find_map(|follower| {
                let (open, _) = follower.open()?;
                let status = open.bay.following()?;
                (status.position != end).then_some((follower.number, status))
            });
            if published && behind.is_none() {
                return;
            }
            if now() > until {
                let what = format!("all is quiet, the store is at {end}, and not everybody is: {behind:?}");
                return self.bench.record.violated("P8", what);
            }
            block_on(simulated::sleep(REST_LOOK));
        }
    }

    /// Compares what a follower that has every event says of every key.
    fn compare(&self, follower: &Follower) {
        let Some((open, _)) = follower.open() else { return };
        let content = self.bench.world.lock().store.snapshot();
        let options = match follower.setting.on_unverified {
            OnUnverified::Fail => ReadOptions::new().on_unverified(OnUnverified::Revalidate),
            _ => ReadOptions::new(),
        };
        for at in places() {
            let stored = content.get(&stored_key(at)).map(|held| number_of(&held.value));
            // Too long ago for a proof is no failure here.
            let read = block_on(open.caches[at.0].get_with(&at.1, &options));
            let read = read.map(|value| value.map(|(number, _)| number));
            if read.as_ref().ok() != Some(&stored) {
                let what = format!(
                    "follower {} has heard of everything, and reads {read:?} of {at:?}; the store has {stored:?}",
                    follower.number
                );
                self.bench.record.violated("P8", what);
            }
        }
    }

    fn check(&mut self, buses: usize, end: Seq) {
        let keys: BTreeMap<_, _> = places().map(|at| (stored_key(at), at)).collect();
        let applied = std::mem::take(&mut self.bench.world.lock().applied);
        let mut ledger = Ledger::new(&applied, keys);
        let published = self.bench.record.lock().published.clone();
        debug_assert!(published.iter().all(|published| published.bus < buses), "nobody publishes elsewhere");
        ledger.add_published(&published);
        ledger.check_published(&published, &self.bench.claims.journals(), end);
        let mut notes = self.bench.notes.lock();
        let answers = std::mem::take(&mut notes.answers);
        ledger.check_answers(&answers);
        self.went_back = ledger.went_back(&answers);
        drop(notes);
        self.bench.record.lock().violations.append(&mut ledger.violations);
    }

    fn tally(self) -> Tally {
        let (world, record, notes) =
            (self.bench.world.lock(), self.bench.record.lock(), self.bench.notes.lock());
        let of_followers = self.bench.followers.iter().flat_map(|one| &one.network);
        let mut bus = BusFaultCounts::default();
        for counts in self.networks.iter().chain(of_followers).map(FaultyBus::counts) {
            bus.dropped += counts.dropped;
            bus.doubled += counts.doubled;
            bus.delayed += counts.delayed;
            bus.reordered += counts.reordered;
            bus.failed_before += counts.failed_before;
            bus.failed_after += counts.failed_after;
            bus.lost += counts.lost;
            bus.refused += counts.refused;
        }
        let of_terms: u64 = self.bench.followers.iter().map(|one| one.terms.failures()).sum();
        Tally {
            violations: world.history.violations.iter().chain(&record.violations).cloned().collect(),
            writes: notes.writes,
            reads: notes.reads,
            cuts: world.cuts_made,
            takeovers: self.takeovers,
            store_faults: world.faults_met + of_terms,
            bus,
            published: record.published.len() as u64,
            delivered: record.delivered,
            outdated: record.outdated,
            gaps: notes.gaps,
            places_lost: notes.places_lost,
            refused_owner: notes.refused_owner,
            unverified: notes.unverified,
            publisher_places_lost: notes.publisher_places_lost,
            went_back: self.went_back,
        }
    }
}

impl Bench {
    /// Does what goes wrong around the layers.
    fn upset(&self, owner: &[FaultyBus<Tap>], upsets: &[Upset]) {
        let network = |party: Party| match party {
            Party::Owner => owner.to_vec(),
            Party::Follower(number) => self.followers[number].network.clone(),
        };
        for upset in upsets {
            shuttle::thread::yield_now();
            match upset {
                Upset::Cut(party) => network(*party).iter().for_each(FaultyBus::cut),
                Upset::Mend(party) => network(*party).iter().for_each(FaultyBus::mend),
                Upset::Mute(follower, mute) => self.followers[*follower].terms.mute(*mute),
                Upset::Trim(bus) => {
                    let channel = forebay::Channel::parse(CHANNEL).expect("a good name");
                    self.taps[*bus].inner.trim(&channel);
                }
                Upset::Sleep(wait) => block_on(simulated::sleep(*wait)),
            }
        }
    }
}

const _: () = assert!(FOLLOWERS == 3, "as the manual says");
