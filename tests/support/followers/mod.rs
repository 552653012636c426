//! The simulator, extended to an owner and three followers over buses that drop, double, delay and reorder: one seed
//! fixes a run of all of them, with their threads, their clock, the disk, the store and what lies in between.

#![allow(dead_code, unreachable_pub, reason = "a part of one test")]
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "these are tests"
)]

pub mod bus;
pub mod client;
pub mod follower;
pub mod ledger;
pub mod plan;
pub mod run;
pub mod stores;

use crate::followers::plan::Plan;
use crate::followers::run::Tally;
use crate::simulation::Simulated;
use crate::simulation::history::Violation;
use crate::simulation::plan::Seed;

/// What came of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub seed: Seed,
    pub tally: Tally,
    /// How often the threads changed.
    pub steps: u64,
}

impl Simulated for Outcome {
    const STEPS_MAX: usize = 3_000_000;

    fn of(seed: &Seed) -> Outcome {
        let tally = run::run(&Plan::draw(seed.plan).with(&seed.kept), seed.order);
        Outcome { seed: seed.clone(), tally, steps: shuttle::current::context_switches() as u64 }
    }

    fn broken_off(seed: Seed, violation: Violation) -> Outcome {
        Outcome { seed, tally: Tally { violations: vec![violation], ..Tally::default() }, steps: 0 }
    }

    fn seed(&self) -> &Seed {
        &self.seed
    }

    fn violations(&self) -> &[Violation] {
        &self.tally.violations
    }

    fn atoms(plan: u64) -> usize {
        Plan::draw(plan).atoms()
    }

    fn plan(seed: &Seed) -> String {
        format!("{:#?}", Plan::draw(seed.plan).with(&seed.kept))
    }
}
