//! The world of a run, which outlives its layers: the disk, the store, the faults, and the record of all that happened.
//!
//! Every access of a layer to its disk and its store passes a *point*, where the order of the threads may change and
//! the tenure may end: then its disk image is taken, and from there on the layer's own disk and store do nothing any
//! more.
//! The locks here are std's, held over no point.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use forebay::disk::{CrashPolicy, Disk, DiskFile, SimDisk};
use forebay::seam::simulated;
use forebay::store::{Batch, BoxFuture, Claim, Op, Standing, Store, StoreError, Tenure, Versioned};
use forebay::{Error, ErrorKind, Key, MemoryStore, Seq};

use crate::harness::history::History;
use crate::harness::plan::{Draw, Weather};

/// The state of a tenure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Lives,
    /// Neither disk nor store answer any more.
    Dead,
    /// The disk does not answer, and the store does.
    Zombie,
}

/// A cut that is planned: at the n-th point.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    pub at: u64,
    pub policy: CrashPolicy,
    pub leaves: State,
}

/// A batch that changed the store.
#[derive(Clone, Debug)]
pub struct Applied {
    pub watermark: Seq,
    pub content: BTreeMap<Key, Versioned>,
    /// The changes of the batch.
    pub ops: Vec<Op>,
    /// The time by the simulated clock.
    pub at: Duration,
}

pub struct Inner {
    pub disk: SimDisk,
    pub store: MemoryStore,
    /// The state of each tenure; the last is the present one.
    pub states: Vec<State>,
    pub cut: Option<Cut>,
    pub points: u64,
    pub weather: Weather,
    pub rejections_left: u32,
    pub rejected: Option<Key>,
    pub draw: Draw,
    /// The newest tenure that anybody was given.
    pub owner: Tenure,
    pub applied: Vec<Applied>,
    /// Every change that took effect.
    pub changes: BTreeSet<(Seq, Key)>,
    /// Changes that a tenure's store shows before they are durable.
    pub shown: Option<(usize, BTreeMap<Key, Option<Versioned>>)>,
    /// Values of the store that somebody else writes.
    pub external: BTreeMap<Key, Versioned>,
    pub history: History,
    /// True if writes are acknowledged before they are synced.
    pub buffered: bool,
    /// True if a power cut may have taken back what was acknowledged so.
    pub lossy: bool,
    pub cuts_made: u64,
    pub faults_met: u64,
}

/// Shared by the threads of a run.
#[derive(Clone)]
pub struct World(Arc<Mutex<Inner>>);

impl World {
    pub fn new(order: u64) -> World {
        World(Arc::new(Mutex::new(Inner {
            disk: SimDisk::new(),
            store: MemoryStore::new(),
            states: Vec::new(),
            cut: None,
            points: 0,
            weather: Weather::default(),
            rejections_left: 0,
            rejected: None,
            draw: Draw(order),
            owner: Tenure::default(),
            applied: Vec::new(),
            changes: BTreeSet::new(),
            shown: None,
            external: BTreeMap::new(),
            history: History::default(),
            buffered: false,
            lossy: false,
            cuts_made: 0,
            faults_met: 0,
        })))
    }

    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic under the lock has failed the run already.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub fn state(&self, tenure: usize) -> State {
        self.lock().states[tenure]
    }

    /// A place where threads may change and a tenure may be cut; says how the tenure is.
    pub fn point(&self, tenure: usize) -> State {
        shuttle::thread::sleep(Duration::ZERO);
        self.lock().step(tenure)
    }

    pub fn disk(&self, tenure: usize) -> Arc<dyn Disk> {
        let disk = self.lock().disk.clone();
        Arc::new(CutDisk { world: self.clone(), tenure, disk })
    }

    pub fn store(&self, tenure: usize) -> CutStore {
        let store = self.lock().store.clone();
        CutStore { world: self.clone(), tenure, store }
    }
}

impl Inner {
    fn step(&mut self, tenure: usize) -> State {
        if tenure + 1 == self.states.len() && self.states[tenure] == State::Lives {
            self.points += 1;
            if let Some(cut) = self.cut.filter(|cut| cut.at <= self.points) {
                self.cut(cut);
            }
        }
        self.states[tenure]
    }

    /// Ends the present tenure.
    pub fn cut(&mut self, cut: Cut) {
        self.cut = None;
        self.cuts_made += 1;
        self.lossy |= self.buffered && cut.policy != CrashPolicy::ProcessKilled;
        self.disk = self.disk.crash(cut.policy);
        *self.states.last_mut().unwrap() = cut.leaves;
    }

    fn hit(&mut self, percent: u64) -> bool {
        let hit = self.draw.below(100) < percent;
        self.faults_met += u64::from(hit);
        hit
    }

    fn delay(&mut self) -> Option<Duration> {
        let longest = self.weather.slow?;
        Some(longest.mul_f64(self.draw.below(1000) as f64 / 1000.0))
    }

    /// Returns the record for which the store rejects this batch now.
    fn rejects(&mut self, batch: &Batch) -> Option<Seq> {
        let rejected = self.rejected.as_ref()?;
        let found = batch.ops.iter().find(|op| op.key == *rejected)?.seq;
        if self.rejections_left == 0 {
            return None;
        }
        self.rejections_left -= 1;
        self.faults_met += 1;
        Some(found)
    }

    /// Checks an apply by itself: P3 and P9. P2 is checked in the end, when more is known.
    fn applied(&mut self, batch: &Batch, before: &(Standing, BTreeMap<Key, Versioned>)) {
        let (standing, content) = (standing_of(&self.store), self.store.snapshot());
        let (was, had) = before;
        if *was == standing && *had == content {
            return;
        }
        if batch.tenure != self.owner {
            self.history
                .violated("P9", format!("{} changed the store after {} began", batch.tenure, self.owner));
        }
        if standing.progress.applied < was.progress.applied {
            let what =
                format!("the watermark went from {} to {}", was.progress.applied, standing.progress.applied);
            self.history.violated("P3", what);
        }
        for (key, now) in &content {
            if had.get(key) == Some(now) {
                continue;
            }
            if had.get(key).is_some_and(|had| had.version > now.version) {
                self.history.violated("P3", format!("{key:?} went back to {}", now.version));
            }
            if !self.changes.insert((now.version, key.clone())) {
                self.history.violated("P3", format!("record {} of {key:?} took effect twice", now.version));
            }
        }
        let (watermark, ops, at) = (standing.progress.applied, batch.ops.clone(), simulated::elapsed());
        self.applied.push(Applied { watermark, content, ops, at });
    }
}

/// Returns the point at which the store stands. Its future is ready at once.
pub fn standing_of(store: &MemoryStore) -> Standing {
    ready(store.standing()).expect("the store in memory does not fail")
}

/// Takes the outcome of a future that does not wait.
pub fn ready<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match future.as_mut().poll(&mut context) {
        std::task::Poll::Ready(output) => output,
        std::task::Poll::Pending => panic!("the store in memory does not wait"),
    }
}

/// A tenure's view of the disk.
struct CutDisk {
    world: World,
    tenure: usize,
    disk: SimDisk,
}

fn gone() -> io::Error {
    io::Error::other("the disk is gone")
}

impl CutDisk {
    fn file(&self, file: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        Box::new(CutFile { world: self.world.clone(), tenure: self.tenure, file })
    }

    fn pass(&self) -> io::Result<()> {
        pass(&self.world, self.tenure)
    }
}

fn pass(world: &World, tenure: usize) -> io::Result<()> {
    if world.point(tenure) == State::Lives { Ok(()) } else { Err(gone()) }
}

impl Disk for CutDisk {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.pass()?;
        self.disk.create_dir_all(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.pass()?;
        self.disk.list(path)
    }

    fn create_new(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.pass()?;
        Ok(self.file(self.disk.create_new(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.pass()?;
        Ok(self.file(self.disk.open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.pass()?;
        self.disk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.pass()?;
        self.disk.remove(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.pass()?;
        self.disk.sync_dir(path)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        self.pass()?;
        self.disk.lock(path)
    }
}

struct CutFile {
    world: World,
    tenure: usize,
    file: Box<dyn DiskFile>,
}

impl DiskFile for CutFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        pass(&self.world, self.tenure)?;
        self.file.read_at(buf, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        pass(&self.world, self.tenure)?;
        self.file.write_all_at(buf, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        pass(&self.world, self.tenure)?;
        self.file.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        pass(&self.world, self.tenure)?;
        self.file.len()
    }
}

/// A tenure's view of the store, with the faults of the weather.
pub struct CutStore {
    world: World,
    tenure: usize,
    store: MemoryStore,
}

impl CutStore {
    /// A point at which a store may also be slow.
    async fn pass(&self) -> Result<(), StoreError> {
        let delay = self.world.lock().delay();
        match delay {
            Some(delay) => simulated::sleep(delay).await,
            None => shuttle::future::yield_now().await,
        }
        match self.world.lock().step(self.tenure) {
            State::Dead => Err(StoreError::Fatal(Error::new(ErrorKind::StoreFailed, "the store is gone"))),
            State::Lives | State::Zombie => Ok(()),
        }
    }

    fn transient(what: &str) -> StoreError {
        StoreError::Transient(Error::new(ErrorKind::Transient, what))
    }

    async fn apply_here(&self, batch: &Batch) -> Result<(), StoreError> {
        self.pass().await?;
        self.show(batch).await?;
        {
            let mut world = self.world.lock();
            if let Some(seq) = world.rejects(batch) {
                let error = Error::new(ErrorKind::Rejected, "the simulation rejects this key");
                return Err(StoreError::Rejected { seq, error });
            }
            let percent = world.weather.lost_percent;
            if world.hit(percent) {
                return Err(Self::transient("the simulation loses this apply"));
            }
            let before = (standing_of(&self.store), self.store.snapshot());
            let outcome = ready(self.store.apply(batch));
            world.applied(batch, &before);
            outcome?;
        }
        self.pass().await?;
        let mut world = self.world.lock();
        let percent = world.weather.ambiguous_percent;
        if world.hit(percent) { Err(Self::transient("the simulation hides this apply")) } else { Ok(()) }
    }

    /// Shows, now and then, what an apply will make true before it is durable: a cut takes it back.
    async fn show(&self, batch: &Batch) -> Result<(), StoreError> {
        let _shown = {
            let mut world = self.world.lock();
            if !world.draw.one_in(3) || batch.tenure != world.owner {
                return Ok(());
            }
            let stored = standing_of(&self.store).unapplied(batch).map(|op| {
                let version = op.seq;
                (op.key.clone(), op.value.clone().map(|value| Versioned { value, version }))
            });
            world.shown = Some((self.tenure, stored.collect()));
            Shown(&self.world)
        };
        self.pass().await?;
        self.pass().await
    }

    async fn load_here(&self, keys: &[Key]) -> Result<Vec<Option<Versioned>>, StoreError> {
        self.pass().await?;
        let loaded = {
            let mut world = self.world.lock();
            let percent = world.weather.load_percent;
            if world.hit(percent) {
                return Err(Self::transient("the simulation fails this load"));
            }
            let mut loaded = ready(self.store.load_many(keys))?;
            for (key, loaded) in keys.iter().zip(&mut loaded) {
                if let Some((_, shown)) = world.shown.as_ref().filter(|(tenure, _)| *tenure == self.tenure)
                    && let Some(shown) = shown.get(key)
                {
                    loaded.clone_from(shown);
                }
                if let Some(external) = world.external.get(key) {
                    *loaded = Some(external.clone());
                }
            }
            loaded
        };
        self.pass().await?;
        Ok(loaded)
    }
}

/// Hides what is shown, however the apply ends.
struct Shown<'a>(&'a World);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        self.0.lock().shown = None;
    }
}

impl Store for CutStore {
    fn standing(&self) -> BoxFuture<'_, Result<Standing, StoreError>> {
        Box::pin(async {
            self.pass().await?;
            self.store.standing().await
        })
    }

    fn claim<'a>(&'a self, claim: &'a Claim) -> BoxFuture<'a, Result<Standing, StoreError>> {
        Box::pin(async move {
            self.pass().await?;
            let before = ready(self.store.claim(claim))?;
            self.world.lock().owner = before.claimed(claim)?.tenure;
            self.pass().await?;
            Ok(before)
        })
    }

    fn load<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Versioned>, StoreError>> {
        Box::pin(async {
            let loaded = self.load_here(std::slice::from_ref(key)).await?;
            Ok(loaded.into_iter().next().flatten())
        })
    }

    fn load_many<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<Vec<Option<Versioned>>, StoreError>> {
        Box::pin(self.load_here(keys))
    }

    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(self.apply_here(batch))
    }
}
