//! The whole layer, simulated: what its threads do in which order, how long anything takes, what the disk and the store
//! do and when everything stops is drawn from a seed. What may be drawn, and what is checked, stands in the manual.

#![allow(
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "these are tests"
)]

#[allow(unreachable_pub, reason = "other tests include it, too")]
#[path = "support/budget.rs"]
mod budget;
#[path = "support/simulation/mod.rs"]
mod simulation;

use std::time::Duration;

use budget::budget;
use simulation::hunt::Hunter;
use simulation::plan::Seed;
use simulation::{Outcome, run};

/// Runs the seeds, from 1 on, or the one that `FOREBAY_SEED` says.
#[test]
fn fault_simulation_of_the_whole_layer() {
    const HUNTER: Hunter = Hunter { file: "fault_simulation", test: "fault_simulation_of_the_whole_layer" };
    let (mut seeds, mut operations, mut cuts, mut faults, mut steps) = (0_u64, 0, 0, 0, 0);
    let took = HUNTER.hunt(budget(40, Duration::from_secs(15)), |outcome: &Outcome| {
        seeds += 1;
        operations += outcome.operations;
        cuts += outcome.cuts;
        faults += outcome.faults;
        steps += outcome.steps;
    });
    let Some(took) = took else { return };
    let hourly = operations as f64 * 3600.0 / took.as_secs_f64();
    budget::say(format_args!(
        "{seeds} seeds, {operations} operations ({:.1} million an hour), {cuts} cuts, {faults} faults of the store, \
         {steps} steps in {took:.1?}; no violation",
        hourly / 1e6
    ));
}

/// A seed is good for a replay only if nothing but the seed decides.
#[test]
fn fault_simulation_repeats_itself() {
    for seed in 1..40 {
        let (one, other): (Outcome, Outcome) = (run(&Seed::of(seed)), run(&Seed::of(seed)));
        assert_eq!(one, other, "seed {seed}");
    }
}
