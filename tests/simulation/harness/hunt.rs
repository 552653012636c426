//! Looks for a seed that breaks a promise, and tells of it.

use std::fmt::Debug;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::harness::plan::Seed;
use crate::harness::{Simulated, run, search, shrink};

/// The test that looks, by module and name.
pub struct Hunter {
    pub test: &'static str,
}

impl Hunter {
    /// Runs the seeds, from 1 on, for so long, and hands what came of each to `each`; returns how long that took. Or
    /// runs the one that `FOREBAY_SEED` says, and shows its plan. The first that breaks a promise fails the test.
    pub fn hunt<T: Simulated + Debug>(
        &self,
        allowed: Duration,
        mut each: impl FnMut(&T),
    ) -> Option<Duration> {
        if let Ok(seed) = std::env::var("FOREBAY_SEED") {
            let seed = Seed::parse(&seed);
            println!("{}", T::plan(&seed));
            let outcome: T = run(&seed);
            println!("{outcome:#?}");
            assert!(outcome.violations().is_empty(), "seed {seed} breaks {:#?}", outcome.violations());
            return None;
        }
        let began = Instant::now();
        let until = began + allowed;
        let (sender, outcomes) = mpsc::channel();
        search((1..).map(Seed::of), move |outcome: T| {
            let sound = outcome.violations().is_empty();
            sender.send(outcome).is_ok() && sound && Instant::now() < until
        });
        for outcome in outcomes {
            if !outcome.violations().is_empty() {
                self.tell(outcome);
            }
            each(&outcome);
        }
        Some(began.elapsed())
    }

    /// Fails, with the smallest run that fails alike and the command that repeats it.
    fn tell<T: Simulated>(&self, found: T) -> ! {
        let (first, promise) = (found.seed().clone(), found.violations()[0].promise);
        println!(
            "seed {first} breaks {promise}: {:#?}\nlooking for its smallest part that does",
            found.violations()
        );
        let outcome = shrink::shrink(found, |outcome: &T| {
            outcome.violations().iter().any(|violation| violation.promise == promise)
        });
        let profile = if cfg!(debug_assertions) { "" } else { " --release" };
        panic!(
            "seed {first} breaks a promise; its smallest part that does:\n{:#?}\n\nrepeat it with\n\nFOREBAY_SEED={} \
             RUSTFLAGS='--cfg forebay_mutation --cfg forebay_simulation' \
             cargo test{profile} --target-dir target/simulation --test simulation -- --exact {} --nocapture\n",
            outcome.violations(),
            outcome.seed(),
            self.test
        );
    }
}
