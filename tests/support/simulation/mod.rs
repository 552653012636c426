//! The simulator: one seed fixes a run of the whole layer, with its threads, its clock, its disk and its store.
//!
//! [`run`] is one run; [`search`] runs many seeds; [`shrink`](shrink::shrink) makes a failing one small.

#![allow(dead_code, unreachable_pub, reason = "each test uses a part of it")]
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    reason = "these are tests"
)]

pub mod client;
pub mod history;
pub mod linear;
pub mod order;
pub mod plan;
pub mod run;
pub mod shrink;
pub mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use shuttle::{Config, FailurePersistence, MaxSteps, Runner};

use crate::simulation::history::Violation;
use crate::simulation::order::Drawn;
use crate::simulation::plan::{Plan, Seed};

/// More steps than any run takes that ends at all.
const STEPS_MAX: usize = 500_000;
const STACK_BYTES: usize = 1 << 20;

/// What came of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub seed: Seed,
    pub violations: Vec<Violation>,
    /// What the clients asked for.
    pub operations: u64,
    /// How many layers were cut off at some point.
    pub cuts: u64,
    /// How often the store failed.
    pub faults: u64,
    /// How often the threads changed.
    pub steps: u64,
}

/// What is on its way.
struct Search {
    seeds: Box<dyn Iterator<Item = Seed> + Send>,
    each: Box<dyn FnMut(Outcome) -> bool + Send>,
    present: Option<Seed>,
    over: bool,
}

impl Search {
    fn end(&mut self, outcome: Outcome) {
        self.present = None;
        self.over |= !(self.each)(outcome);
    }
}

/// Runs one seed.
pub fn run(seed: &Seed) -> Outcome {
    let (sender, outcome) = std::sync::mpsc::channel();
    search(std::iter::once(seed.clone()), move |outcome| sender.send(outcome).is_ok());
    outcome.recv().expect("one seed has one outcome")
}

/// Runs seeds until there are no more or `each` has seen enough.
pub fn search(
    seeds: impl Iterator<Item = Seed> + Send + 'static,
    each: impl FnMut(Outcome) -> bool + Send + 'static,
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
        let violations = vec![Violation { promise: "panic", what: text }];
        search.end(Outcome { seed, violations, operations: 0, cuts: 0, faults: 0, steps: 0 });
    }
}

fn run_on(search: &Arc<Mutex<Search>>) {
    let mut config = Config::new();
    config.stack_size = STACK_BYTES;
    config.failure_persistence = FailurePersistence::None;
    config.silence_warnings = true;
    config.max_steps = MaxSteps::FailAfter(STEPS_MAX);
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
        let seed = seed.expect("a run has a seed");
        let world = run::run(&Plan::draw(seed.plan).with(&seed.kept), seed.order);
        let steps = shuttle::current::context_switches() as u64;
        let outcome = {
            let mut inner = world.lock();
            let violations = std::mem::take(&mut inner.history.violations);
            let operations = inner.history.operations;
            Outcome { seed, violations, operations, cuts: inner.cuts_made, faults: inner.faults_met, steps }
        };
        drop(world);
        search.lock().expect("the search is not poisoned").end(outcome);
    });
}
