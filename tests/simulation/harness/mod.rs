//! The simulator: one seed fixes a run of the whole layer, with its threads, its clock, its disk and its store.
//!
//! [`run`] is one run; [`search`] runs many seeds; [`shrink`](shrink::shrink) makes a failing one small. What a run
//! does is the business of its [`Simulated`] outcome: [`Outcome`] is that of one layer after the other.

pub mod client;
pub mod history;
pub mod hunt;
pub mod linear;
pub mod order;
pub mod plan;
pub mod run;
pub mod shrink;
pub mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use shuttle::{Config, FailurePersistence, MaxSteps, Runner};

use crate::harness::history::Violation;
use crate::harness::order::Drawn;
use crate::harness::plan::{Plan, Seed};

const STACK_BYTES: usize = 1 << 20;

/// The outcome of a run, and the way to it.
pub trait Simulated: Sized + Send + 'static {
    /// More steps than any run takes that ends at all.
    const STEPS_MAX: usize;

    /// Runs a seed, in the present shuttle execution.
    fn of(seed: &Seed) -> Self;

    /// Makes the outcome of a run that broke off.
    fn broken_off(seed: Seed, violation: Violation) -> Self;

    /// Returns the seed of the run.
    fn seed(&self) -> &Seed;

    fn violations(&self) -> &[Violation];

    /// Returns the number of atoms of the whole plan of a seed.
    fn atoms(plan: u64) -> usize;

    /// Returns the plan of a seed as text.
    fn plan(seed: &Seed) -> String;
}

/// The outcome of a run of one layer after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub seed: Seed,
    pub violations: Vec<Violation>,
    /// The number of calls that clients made.
    pub operations: u64,
    /// The number of layers that were cut off at some point.
    pub cuts: u64,
    /// The number of failures of the store.
    pub faults: u64,
    /// The number of thread switches.
    pub steps: u64,
}

impl Simulated for Outcome {
    const STEPS_MAX: usize = 500_000;

    fn of(seed: &Seed) -> Outcome {
        let world = run::run(&Plan::draw(seed.plan).with(&seed.kept), seed.order);
        let steps = shuttle::current::context_switches() as u64;
        let mut inner = world.lock();
        let violations = std::mem::take(&mut inner.history.violations);
        let operations = inner.history.operations;
        let (cuts, faults) = (inner.cuts_made, inner.faults_met);
        Outcome { seed: seed.clone(), violations, operations, cuts, faults, steps }
    }

    fn broken_off(seed: Seed, violation: Violation) -> Outcome {
        Outcome { seed, violations: vec![violation], operations: 0, cuts: 0, faults: 0, steps: 0 }
    }

    fn seed(&self) -> &Seed {
        &self.seed
    }

    fn violations(&self) -> &[Violation] {
        &self.violations
    }

    fn atoms(plan: u64) -> usize {
        Plan::draw(plan).atoms()
    }

    fn plan(seed: &Seed) -> String {
        format!("{:#?}", Plan::draw(seed.plan).with(&seed.kept))
    }
}

/// A search under way.
struct Search<T> {
    seeds: Box<dyn Iterator<Item = Seed> + Send>,
    each: Box<dyn FnMut(T) -> bool + Send>,
    present: Option<Seed>,
    over: bool,
}

impl<T> Search<T> {
    fn end(&mut self, outcome: T) {
        self.present = None;
        self.over |= !(self.each)(outcome);
    }
}

/// Runs one seed.
pub fn run<T: Simulated>(seed: &Seed) -> T {
    let (sender, outcome) = std::sync::mpsc::channel();
    search(std::iter::once(seed.clone()), move |outcome: T| sender.send(outcome).is_ok());
    outcome.recv().expect("one seed has one outcome")
}

/// Runs seeds until there are no more or `each` has seen enough.
pub fn search<T: Simulated>(
    seeds: impl Iterator<Item = Seed> + Send + 'static,
    each: impl FnMut(T) -> bool + Send + 'static,
) {
    let (seeds, each) = (Box::new(seeds), Box::new(each));
    let search = Arc::new(Mutex::new(Search { seeds, each, present: None, over: false }));
    // A run that panics ends its runner; the next one goes on.
    loop {
        let ran = catch_unwind(AssertUnwindSafe(|| run_on(&search)));
        let mut search = search.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Err(panic) = ran else { return };
        let Some(seed) = search.present.clone() else { std::panic::resume_unwind(panic) };
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        search.end(T::broken_off(seed, Violation { promise: "panic", what: text }));
    }
}

fn run_on<T: Simulated>(search: &Arc<Mutex<Search<T>>>) {
    let mut config = Config::new();
    config.stack_size = STACK_BYTES;
    config.failure_persistence = FailurePersistence::None;
    config.silence_warnings = true;
    config.max_steps = MaxSteps::FailAfter(T::STEPS_MAX);
    let taken = Arc::clone(search);
    let orders = Box::new(move || {
        let mut search = taken.lock().expect("the search is not poisoned");
        if search.over {
            return None;
        }
        search.present = search.seeds.next();
        search.present.as_ref().map(|seed| seed.order)
    });
    let search = Arc::clone(search);
    Runner::new(Drawn::new(orders), config).run(move || {
        let seed = search.lock().expect("the search is not poisoned").present.clone();
        let outcome = T::of(&seed.expect("a run has a seed"));
        search.lock().expect("the search is not poisoned").end(outcome);
    });
}
