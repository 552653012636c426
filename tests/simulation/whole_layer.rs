//! The whole layer, simulated: what its threads do in which order, how long anything takes, what the disk and the store
//! do and when everything stops is drawn from a seed. What may be drawn, and what is checked, stands in the manual.

use std::time::Duration;

use crate::harness::hunt::Hunter;
use crate::harness::plan::Seed;
use crate::harness::{Outcome, run};
use crate::support::budget::{budget, say};

/// Runs the seeds, from 1 on, or the one that `FOREBAY_SEED` says.
#[test]
fn the_layer_keeps_its_promises() {
    const HUNTER: Hunter = Hunter { test: "whole_layer::the_layer_keeps_its_promises" };
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
    say(format_args!(
        "{seeds} seeds, {operations} operations ({:.1} million an hour), {cuts} cuts, {faults} faults of the store, \
         {steps} steps in {took:.1?}; no violation",
        hourly / 1e6
    ));
}

/// A seed is good for a replay only if nothing but the seed decides.
#[test]
fn a_seed_repeats_itself() {
    for seed in 1..40 {
        let (one, other): (Outcome, Outcome) = (run(&Seed::of(seed)), run(&Seed::of(seed)));
        assert_eq!(one, other, "seed {seed}");
    }
}
