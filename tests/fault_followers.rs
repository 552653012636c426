//! An owner and three followers, simulated: what their threads do in which order, what the buses between them do, when
//! an owner goes and who comes after it is drawn from a seed. What may be drawn, and what is checked, stands in the
//! manual.

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
#[path = "support/followers/mod.rs"]
mod followers;
#[path = "support/simulation/mod.rs"]
mod simulation;

use std::time::Duration;

use budget::budget;
use followers::Outcome;
use simulation::hunt::Hunter;
use simulation::plan::Seed;
use simulation::run;

/// Runs the seeds, from 1 on, or the one that `FOREBAY_SEED` says.
#[test]
fn fault_followers_serve_nothing_beyond_their_bounds() {
    const HUNTER: Hunter =
        Hunter { file: "fault_followers", test: "fault_followers_serve_nothing_beyond_their_bounds" };
    let mut sum = Sum::default();
    if let Some(took) = HUNTER.hunt(budget(20, Duration::from_secs(8)), |outcome| sum.add(outcome)) {
        sum.say(took);
    }
}

/// What the runs did, all in all.
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
        budget::say(format_args!(
            "{} seeds, {}, {} steps in {took:.1?} ({per_minute:.0} writes a minute); no violation",
            self.seeds,
            counts.join(", "),
            self.steps
        ));
    }
}

/// A seed is good for a replay only if nothing but the seed decides.
#[test]
fn fault_followers_repeat_themselves() {
    for seed in 1..20 {
        let (one, other): (Outcome, Outcome) = (run(&Seed::of(seed)), run(&Seed::of(seed)));
        assert_eq!(one, other, "seed {seed}");
    }
}
