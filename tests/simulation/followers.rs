//! An owner and three followers, simulated: what their threads do in which order, what the buses between them do, when
//! an owner goes and who comes after it is drawn from a seed. What may be drawn, and what is checked, stands in the
//! manual.

pub mod bus;
pub mod client;
pub mod follower;
pub mod ledger;
pub mod plan;
pub mod run;
pub mod stores;

use std::time::Duration;

use crate::followers::plan::Plan;
use crate::followers::run::Tally;
use crate::harness::history::Violation;
use crate::harness::hunt::Hunter;
use crate::harness::plan::Seed;
use crate::harness::{self, Simulated};
use crate::support::budget::{budget, say};

/// The outcome of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub seed: Seed,
    pub tally: Tally,
    /// The number of thread switches.
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

/// Runs the seeds, from 1 on, or the one that `FOREBAY_SEED` says.
#[test]
fn followers_serve_nothing_beyond_their_bounds() {
    const HUNTER: Hunter = Hunter { test: "followers::followers_serve_nothing_beyond_their_bounds" };
    let mut sum = Sum::default();
    if let Some(took) = HUNTER.hunt(budget(20, Duration::from_secs(8)), |outcome| sum.add(outcome)) {
        sum.say(took);
    }
}

/// The sum of what the runs did.
#[derive(Default)]
struct Sum {
    seeds: u64,
    steps: u64,
    counts: Vec<(&'static str, u64)>,
}

impl Sum {
    fn add(&mut self, outcome: &Outcome) {
        self.seeds += 1;
        self.steps += outcome.steps;
        let tally = &outcome.tally;
        let counts = [
            ("writes", tally.writes),
            ("reads", tally.reads),
            ("cuts", tally.cuts),
            ("take-overs", tally.takeovers),
            ("faults of the store", tally.store_faults),
            ("events published", tally.published),
            ("messages heard", tally.delivered),
            ("dropped", tally.bus.dropped),
            ("doubled", tally.bus.doubled),
            ("delayed", tally.bus.delayed),
            ("reordered", tally.bus.reordered),
            ("publishes failed before", tally.bus.failed_before),
            ("after", tally.bus.failed_after),
            ("positions lost", tally.bus.lost),
            ("calls cut off", tally.bus.refused),
            ("gaps", tally.gaps),
            ("places lost", tally.places_lost),
            ("by publishers", tally.publisher_places_lost),
            ("events of owners known to be followed", tally.outdated),
            ("events refused for their owner", tally.refused_owner),
            ("answers told to be unverified", tally.unverified),
            ("reads of an older version than before", tally.went_back),
        ];
        if self.counts.is_empty() {
            self.counts = counts.iter().map(|(name, _)| (*name, 0)).collect();
        }
        self.counts.iter_mut().zip(counts).for_each(|((_, sum), (_, count))| *sum += count);
    }

    fn say(&self, took: Duration) {
        let counts: Vec<String> = self.counts.iter().map(|(name, count)| format!("{count} {name}")).collect();
        let writes = self.counts.first().map_or(0, |(_, writes)| *writes);
        let per_minute = writes as f64 * 60.0 / took.as_secs_f64();
        say(format_args!(
            "{} seeds, {}, {} steps in {took:.1?} ({per_minute:.0} writes a minute); no violation",
            self.seeds,
            counts.join(", "),
            self.steps
        ));
    }
}

/// A seed is good for a replay only if nothing but the seed decides.
#[test]
fn a_seed_repeats_itself() {
    for seed in 1..20 {
        let (one, other): (Outcome, Outcome) = (harness::run(&Seed::of(seed)), harness::run(&Seed::of(seed)));
        assert_eq!(one, other, "seed {seed}");
    }
}
