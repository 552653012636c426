//! A scheduler for shuttle that draws the order of the threads, and takes the next plan when a run ends.
//!
//! Some runs change threads at every step, some stay with one for long, and some follow priorities that change a few
//! times (Burckhardt et al., "A Randomized Scheduler with Probabilistic Guarantees of Finding Bugs", ASPLOS 2010).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use forebay::seam::simulated;
use shuttle::scheduler::{Schedule, Scheduler, Task, TaskId};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner, thread};
use tokio::sync::oneshot;

use crate::harness::plan::Draw;

/// The first thread of a run drives the clock.
const CLOCK: usize = 0;

/// Runs `body` in the orders from 1 on, in one after the other for as long as it `goes_on` and the time is not up, or
/// in the one alone that `FOREBAY_SEED` says. It is told the order's number; no wait of it ends before everything else
/// has been done.
pub fn in_orders(
    name: &str,
    time: Option<Duration>,
    goes_on: impl Fn() -> bool + 'static,
    body: impl Fn(u64) + Send + Sync + Clone + 'static,
) {
    let mut config = Config::new();
    config.stack_size = 1 << 20;
    config.max_steps = MaxSteps::FailAfter(1_000_000);
    config.silence_warnings = true;
    config.failure_persistence = FailurePersistence::None;
    config.max_time = time;
    let first = std::env::var("FOREBAY_SEED").ok().map(|seed| seed.parse::<u64>().expect("a number"));
    let tried = Arc::new(AtomicU64::new(first.unwrap_or(1) - 1));
    let (next, present) = (Arc::clone(&tried), Arc::clone(&tried));
    let last = first.unwrap_or(u64::MAX);
    let orders = Box::new(move || {
        let is_next = next.load(SeqCst) < last && goes_on();
        is_next.then(|| next.fetch_add(1, SeqCst) + 1)
    });
    let runner = Runner::new(Drawn::patient(orders), config);
    let ran = catch_unwind(AssertUnwindSafe(|| {
        runner.run(move || {
            simulated::begin(1);
            let (body, order, (done, ended)) = (body.clone(), present.load(SeqCst), oneshot::channel());
            let thread = thread::spawn(move || {
                body(order);
                done.send(()).expect("the clock's thread waits");
            });
            let ended = simulated::drive(ended);
            thread.join().expect("shuttle fails the test itself");
            ended.expect("the body has ended");
        })
    }));
    match ran {
        Ok(orders) => crate::support::budget::say(format_args!("{name}: {orders} orders")),
        Err(panic) => {
            println!("{name} fails in the order of FOREBAY_SEED={}", tried.load(SeqCst));
            resume_unwind(panic);
        }
    }
}

/// The threads that have run since the trace began, in order. A thread is known by when it ran first.
#[derive(Default)]
struct Trace {
    known: Vec<usize>,
    hasher: DefaultHasher,
}

thread_local! {
    /// All simulated threads run on one thread of the process.
    static TRACE: RefCell<Trace> = RefCell::default();
}

/// Begins the trace anew.
pub fn begin_trace() {
    TRACE.take();
}

/// A number that differs between any two traces, as far as a hash does.
pub fn trace() -> u64 {
    TRACE.with_borrow(|trace| trace.hasher.finish())
}

impl Trace {
    fn runs(&mut self, thread: usize) {
        let at = self.known.iter().position(|known| *known == thread).unwrap_or_else(|| {
            self.known.push(thread);
            self.known.len() - 1
        });
        at.hash(&mut self.hasher);
    }
}

#[derive(Clone, Copy, Debug)]
enum Style {
    /// Stays with a thread with this chance, in 16ths.
    Staying(u64),
    Priorities,
}

/// Says which order the next run takes; `None` if there is none.
pub type Orders = Box<dyn FnMut() -> Option<u64>>;

pub struct Drawn {
    orders: Orders,
    draw: Draw,
    style: Style,
    /// Time passes at one step in so many; `None`: only when there is nothing else to do.
    clock_in: Option<u64>,
    patient: bool,
    priorities: BTreeMap<usize, u64>,
}

impl Drawn {
    pub fn new(orders: Orders) -> Drawn {
        let style = Style::Priorities;
        Drawn { orders, draw: Draw(0), style, clock_in: None, patient: false, priorities: BTreeMap::new() }
    }

    /// No wait ends before everything else has been done.
    pub fn patient(orders: Orders) -> Drawn {
        Drawn { patient: true, ..Drawn::new(orders) }
    }

    fn choose(&mut self, among: &[usize], current: Option<usize>, yields: bool) -> usize {
        let current = current.filter(|current| among.contains(current));
        let others: Vec<usize> = among.iter().copied().filter(|one| Some(*one) != current).collect();
        match self.style {
            Style::Staying(chance) => match current {
                Some(current) if others.is_empty() || !yields && self.draw.below(16) < chance => current,
                _ => self.draw.of(&others),
            },
            Style::Priorities => {
                for one in among {
                    if !self.priorities.contains_key(one) {
                        self.priorities.insert(*one, (1 << 32) + self.draw.below(1 << 32));
                    }
                }
                if let Some(current) = current
                    && (yields || self.draw.one_in(300))
                {
                    let lowest = self.priorities.values().min().map_or(0, |lowest| lowest.saturating_sub(1));
                    self.priorities.insert(current, lowest);
                }
                among.iter().copied().max_by_key(|one| self.priorities[one]).unwrap()
            }
        }
    }
}

impl Scheduler for Drawn {
    fn new_execution(&mut self) -> Option<Schedule> {
        let order = (self.orders)()?;
        self.draw = Draw(order);
        self.style =
            self.draw.of(&[Style::Staying(0), Style::Staying(8), Style::Staying(14), Style::Priorities]);
        let clock_in = self.draw.of(&[20, 100, 400]);
        self.clock_in = (!self.patient).then_some(clock_in);
        self.priorities.clear();
        Some(Schedule::new(order))
    }

    fn next_task(&mut self, runnable: &[&Task], current: Option<TaskId>, yields: bool) -> Option<TaskId> {
        let id = |task: TaskId| usize::from(task);
        let mut among: Vec<usize> = runnable.iter().map(|task| id(task.id())).collect();
        // Time passes seldom while there is something to do.
        if among.len() > 1 && among.contains(&CLOCK) {
            if self.clock_in.is_some_and(|steps| self.draw.one_in(steps)) {
                TRACE.with_borrow_mut(|trace| trace.runs(CLOCK));
                return Some(TaskId::from(CLOCK));
            }
            among.retain(|one| *one != CLOCK);
        }
        let chosen = self.choose(&among, current.map(id), yields);
        TRACE.with_borrow_mut(|trace| trace.runs(chosen));
        Some(TaskId::from(chosen))
    }

    fn next_u64(&mut self) -> u64 {
        self.draw.next()
    }
}
