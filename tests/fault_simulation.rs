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

use std::sync::mpsc;
use std::time::{Duration, Instant};

use budget::budget;
use simulation::plan::{Plan, Seed};
use simulation::{Outcome, run, search};

/// Runs the seeds, from 1 on, or the one that `FOREBAY_SEED` says.
#[test]
fn fault_simulation_of_the_whole_layer() {
    if let Ok(seed) = std::env::var("FOREBAY_SEED") {
        let seed = Seed::parse(&seed);
        println!("{:#?}", Plan::draw(seed.plan).with(&seed.kept));
        let outcome: Outcome = run(&seed);
        println!("{outcome:#?}");
        assert!(outcome.violations.is_empty(), "seed {seed} breaks {:#?}", outcome.violations);
        return;
    }
    let (began, allowed) = (Instant::now(), budget(40, Duration::from_secs(15)));
    let until = began + allowed;
    let (sender, outcomes) = mpsc::channel();
    search((1..).map(Seed::of), move |outcome: Outcome| {
        let sound = outcome.violations.is_empty();
        sender.send(outcome).is_ok() && sound && Instant::now() < until
    });
    let mut seeds = 0_u64;
    let (mut operations, mut cuts, mut faults, mut steps) = (0, 0, 0, 0);
    for outcome in outcomes {
        if !outcome.violations.is_empty() {
            tell(outcome);
        }
        seeds += 1;
        operations += outcome.operations;
        cuts += outcome.cuts;
        faults += outcome.faults;
        steps += outcome.steps;
    }
    let took = began.elapsed();
    let hourly = operations as f64 * 3600.0 / took.as_secs_f64();
    budget::say(format_args!(
        "{seeds} seeds, {operations} operations ({:.1} million an hour), {cuts} cuts, {faults} faults of the store, \
         {steps} steps in {took:.1?}; no violation",
        hourly / 1e6
    ));
}

/// Fails, with the smallest run that fails alike and the command that repeats it.
fn tell(found: Outcome) -> ! {
    let (first, promise) = (found.seed.clone(), found.violations[0].promise);
    println!("seed {first} breaks {promise}; looking for its smallest part that does");
    let outcome = simulation::shrink::shrink(found, |outcome: &Outcome| {
        outcome.violations.iter().any(|violation| violation.promise == promise)
    });
    let profile = if cfg!(debug_assertions) { "" } else { " --release" };
    panic!(
        "seed {first} breaks a promise; its smallest part that does:\n{:#?}\n\nrepeat it with\n\nFOREBAY_SEED={} cargo \
         test{profile} --features simulation --test fault_simulation -- --exact \
         fault_simulation_of_the_whole_layer --nocapture\n",
        outcome.violations, outcome.seed
    );
}

/// A seed is good for a replay only if nothing but the seed decides.
#[test]
fn fault_simulation_repeats_itself() {
    for seed in 1..40 {
        let (one, other): (Outcome, Outcome) = (run(&Seed::of(seed)), run(&Seed::of(seed)));
        assert_eq!(one, other, "seed {seed}");
    }
}
