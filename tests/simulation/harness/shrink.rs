//! Makes a failing run small: takes atoms of its plan away for as long as it still fails (delta debugging, Zeller and
//! Hildebrandt, 2002).

use std::time::{Duration, Instant};

use crate::harness::plan::{Kept, Seed};
use crate::harness::{Simulated, run};

/// In how many orders a smaller plan is tried before it counts as sound.
const ORDERS: u64 = 40;
/// After so long the smallest so far has to do.
const TIME_MAX: Duration = Duration::from_secs(60);

/// The smallest failing run found; `failed` says whether an outcome is the failure that is looked for.
pub fn shrink<T: Simulated>(first: T, failed: impl Fn(&T) -> bool) -> T {
    let mut best = first;
    let mut kept: Vec<usize> = match &best.seed().kept.0 {
        Some(kept) => kept.clone(),
        None => (0..T::atoms(best.seed().plan)).collect(),
    };
    let mut chunk = kept.len().div_ceil(2);
    let until = Instant::now() + TIME_MAX;
    while chunk > 0 {
        let mut at = 0;
        let mut smaller = false;
        while at < kept.len() {
            if Instant::now() > until {
                return best;
            }
            let mut less = kept.clone();
            less.drain(at..(at + chunk).min(kept.len()));
            match attempt(best.seed(), &less, until, &failed) {
                Some(outcome) => {
                    (best, kept, smaller) = (outcome, less, true);
                }
                None => at += chunk,
            }
        }
        if !smaller || chunk > kept.len() {
            chunk /= 2;
        }
    }
    best
}

fn attempt<T: Simulated>(
    seed: &Seed,
    kept: &[usize],
    until: Instant,
    failed: impl Fn(&T) -> bool,
) -> Option<T> {
    let orders = std::iter::once(seed.order).chain(1..ORDERS).take_while(|_| Instant::now() < until);
    let seeds = orders.map(|order| Seed { plan: seed.plan, order, kept: Kept(Some(kept.to_vec())) });
    seeds.map(|seed| run(&seed)).find(|outcome| failed(outcome))
}
