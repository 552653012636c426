//! The simulated system. One thread of the process runs one world, and a scheduler decides every step in it.
//!
//! The threads and the locks are shuttle's. The clock and the randomness are this file's, one world of them for each
//! thread of the process: shuttle runs all simulated threads on one. Time stands still until [`drive`] ends the next
//! wait; when it does so is the scheduler's choice. It also passes a little whenever it is looked at, so that a loop
//! that waits for it to pass ends.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::convert::Infallible;
use std::future::poll_fn;
use std::hash::BuildHasherDefault;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, LockResult, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use shuttle::sync::MutexGuard;
use tokio::sync::oneshot;

/// The time that passes with each look at the clock.
const LOOK: Duration = Duration::from_micros(10);

/// A hasher without a random key, so that every run hashes alike.
pub(crate) type HashBuilder = BuildHasherDefault<DefaultHasher>;

/// The end of a wait; the number distinguishes waits that end at the same time.
type Due = (Duration, u64);

/// A wait, with the waker that ends it.
struct Wait {
    waker: Waker,
    /// Woken again and again until it is removed: a notification before the thread waits is lost.
    stays: bool,
}

struct World {
    began: Instant,
    elapsed: Duration,
    random: u64,
    waits: BTreeMap<Due, Wait>,
    waits_made: u64,
    /// The thread that drives the clock, while there is no wait to end.
    driver: Option<Waker>,
}

thread_local! {
    static WORLD: RefCell<World> = RefCell::new(World::new(0));
}

impl World {
    fn new(seed: u64) -> World {
        World {
            began: Instant::now(),
            elapsed: Duration::ZERO,
            random: seed,
            waits: BTreeMap::new(),
            waits_made: 0,
            driver: None,
        }
    }

    /// SplitMix64 (Steele, Lea, Flood 2014).
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

fn world<T>(change: impl FnOnce(&mut World) -> T) -> T {
    WORLD.with_borrow_mut(change)
}

/// Begins a new world. Called first in every run.
pub fn begin(seed: u64) {
    world(|world| *world = World::new(seed));
}

/// Returns the time that has passed in this world.
#[must_use]
pub fn elapsed() -> Duration {
    world(|world| world.elapsed)
}

/// Moves time until `until` is ready: whenever the calling thread is scheduled, the next wait ends.
pub fn drive<T>(until: impl Future<Output = T>) -> T {
    let mut until = pin!(until);
    shuttle::future::block_on(poll_fn(|context| {
        if let Poll::Ready(output) = until.as_mut().poll(context) {
            return Poll::Ready(output);
        }
        let next = world(|world| {
            let Some(next) = world.waits.first_entry() else {
                world.driver = Some(context.waker().clone());
                return None;
            };
            // Never back: looks at the clock may have passed the end of this wait.
            world.elapsed = world.elapsed.max(next.key().0);
            // A condition variable's wait stays until its thread, once scheduled, removes it.
            Some(if next.get().stays { next.get().waker.clone() } else { next.remove().waker })
        });
        if let Some(waiting) = next {
            waiting.wake();
            context.waker().wake_by_ref();
        }
        Poll::Pending
    }))
}

/// Returns the simulated time.
pub(crate) fn now() -> Instant {
    world(|world| {
        // A loop that waits for time to pass would otherwise never end.
        world.elapsed += LOOK;
        world.began + world.elapsed
    })
}

fn wait_until(at: Duration, wait: Wait) -> Due {
    // The driver may have found no wait to end, and sleeps until there is one.
    let (due, driver) = world(|world| {
        world.waits_made += 1;
        let due = (at, world.waits_made);
        world.waits.insert(due, wait);
        (due, world.driver.take())
    });
    // Woken after the borrow: a waker may look at this world again, and the `RefCell` would panic.
    if let Some(driver) = driver {
        driver.wake();
    }
    due
}

fn remove_wait(due: Due) {
    world(|world| drop(world.waits.remove(&due)));
}

/// Returns a future that waits at least this long.
#[must_use]
pub fn sleep(wait: Duration) -> Sleep {
    Sleep { at: world(|world| world.elapsed.saturating_add(wait)), due: None }
}

/// The future of [`sleep`].
pub struct Sleep {
    at: Duration,
    due: Option<Due>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        // The waker may be another one than at the last poll.
        if let Some(due) = self.due.take() {
            remove_wait(due);
        }
        if elapsed() >= self.at {
            return Poll::Ready(());
        }
        self.due = Some(wait_until(self.at, Wait { waker: context.waker().clone(), stays: false }));
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(due) = self.due.take() {
            remove_wait(due);
        }
    }
}

/// shuttle's condition variable, which knows no time, with waits that end.
#[derive(Debug)]
pub(crate) struct Condvar(Arc<Notified>);

#[derive(Debug)]
struct Notified(shuttle::sync::Condvar);

impl Wake for Notified {
    fn wake(self: Arc<Self>) {
        self.0.notify_all();
    }
}

impl Condvar {
    pub(crate) fn new() -> Condvar {
        Condvar(Arc::new(Notified(shuttle::sync::Condvar::new())))
    }

    pub(crate) fn notify_one(&self) {
        self.0.0.notify_one();
    }

    pub(crate) fn notify_all(&self) {
        self.0.0.notify_all();
    }

    pub(crate) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> LockResult<MutexGuard<'a, T>> {
        self.0.0.wait(guard)
    }

    /// As std's, without saying whether the time is up.
    pub(crate) fn wait_timeout<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        wait: Duration,
    ) -> LockResult<(MutexGuard<'a, T>, ())> {
        let wait_for = Wait { waker: Waker::from(Arc::clone(&self.0)), stays: true };
        let due = wait_until(elapsed().saturating_add(wait), wait_for);
        // The end of the time looks like a notification: callers look at the clock themselves.
        let waited = self.0.0.wait(guard);
        remove_wait(due);
        waited.map(|guard| (guard, ())).map_err(|poisoned| PoisonError::new((poisoned.into_inner(), ())))
    }
}

/// Stands for tokio's runtime. Work for threads of its own runs on simulated threads.
pub(crate) struct Runtime(Handle);

#[derive(Clone)]
pub(crate) struct Handle;

/// A guard of an entered runtime, which means nothing here.
pub(crate) struct Entered;

pub(crate) fn runtime() -> io::Result<Runtime> {
    Ok(Runtime(Handle))
}

impl Runtime {
    pub(crate) fn handle(&self) -> &Handle {
        &self.0
    }

    pub(crate) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        block_on(Some(&self.0), future)
    }

    #[allow(clippy::unused_self, reason = "the runtime ends here")]
    pub(crate) fn shutdown_background(self) {}
}

impl Handle {
    #[allow(clippy::unused_self, reason = "as tokio's")]
    pub(crate) fn enter(&self) -> Entered {
        Entered
    }

    #[allow(clippy::unused_self, reason = "as tokio's")]
    pub(crate) fn spawn(
        &self,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> shuttle::future::JoinHandle<()> {
        shuttle::future::spawn(task)
    }

    #[allow(clippy::unused_self, reason = "as tokio's")]
    pub(crate) fn spawn_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> oneshot::Receiver<T> {
        let (sender, done) = oneshot::channel();
        // Nobody waiting any more is no error: the work is done all the same.
        drop(shuttle::thread::spawn(move || drop(sender.send(work()))));
        done
    }
}

shuttle::thread_local! {
    static BLOCKED: Cell<bool> = const { Cell::new(false) };
}

/// True if this simulated thread is in a call that blocks it.
pub(crate) fn may_block() -> bool {
    BLOCKED.with(Cell::get)
}

/// Drives a future on this simulated thread.
pub(crate) fn block_on<T>(_: Option<&Handle>, future: impl Future<Output = T>) -> T {
    let before = BLOCKED.with(|blocked| blocked.replace(true));
    let output = shuttle::future::block_on(future);
    // After a panic nothing more happens in this run.
    BLOCKED.with(|blocked| blocked.set(before));
    output
}

pub(crate) fn fill(bytes: &mut [u8]) -> Result<(), Infallible> {
    bytes.iter_mut().for_each(|byte| *byte = world(World::draw).to_le_bytes()[0]);
    Ok(())
}

#[allow(clippy::unnecessary_wraps, reason = "as getrandom's")]
pub(crate) fn u32() -> Result<u32, Infallible> {
    let [a, b, c, d, ..] = world(World::draw).to_le_bytes();
    Ok(u32::from_le_bytes([a, b, c, d]))
}
