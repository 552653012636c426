//! Power cuts at every disk operation: what a crash could leave is built, reopened, checked, and cut again while it
//! recovers.
//!
//! The oracle: what is recovered is a contiguous prefix of what was issued, batches whole; it contains all that was
//! acknowledged at the moment of the crash as far as the durability promises, and all that anybody has seen under
//! `Sync`; nothing that was recovered once is ever lost; and the store holds each sequence number once.
//!
//! `FOREBAY_BUDGET` raises the time, `FOREBAY_SEED` says with which seed to begin.

mod journal;
mod layer;

use std::time::{Duration, Instant};

use forebay::disk::{CrashPolicy, SimDisk};

use crate::support::budget::{self, say};

/// The count of what was tried.
#[derive(Default)]
struct Tally {
    operations: u64,
    images: u64,
    recoveries: u64,
    images_of_recoveries: u64,
    renames: u64,
}

impl Tally {
    fn print(&self, what: &str, seeds: std::ops::Range<u64>, began: Instant) {
        assert!(self.renames >= 4, "segments rotate: {} renames", self.renames);
        say(format_args!(
            "{what}: seeds {seeds:?}, {} operations cut, {} images reopened, {} recoveries cut at each operation, {} \
             images of those reopened, in {:.1?}",
            self.operations,
            self.images,
            self.recoveries,
            self.images_of_recoveries,
            began.elapsed()
        ));
    }
}

/// The seed to begin with.
fn first_seed() -> u64 {
    std::env::var("FOREBAY_SEED").map_or(0, |text| text.parse().expect("FOREBAY_SEED is a number"))
}

fn budget(share_percent: u32, seconds: u64) -> Duration {
    budget::budget(share_percent, Duration::from_secs(seconds))
}

/// The crashes that every operation gets: the extremes, and some that are drawn.
fn policies(seed: u64) -> Vec<CrashPolicy> {
    let drawn = seed << 8;
    vec![
        CrashPolicy::ProcessKilled,
        CrashPolicy::OnlySynced,
        CrashPolicy::Everything,
        CrashPolicy::NamesLost,
        CrashPolicy::ContentLost,
        CrashPolicy::Random { seed: drawn },
        CrashPolicy::Torn { seed: drawn + 1 },
        CrashPolicy::Garbled { seed: drawn + 2 },
    ]
}

/// The crashes that every operation of a recovery gets.
fn policies_of_recovery(seed: u64) -> [CrashPolicy; 5] {
    [
        CrashPolicy::ProcessKilled,
        CrashPolicy::OnlySynced,
        CrashPolicy::Everything,
        CrashPolicy::Random { seed },
        CrashPolicy::Garbled { seed },
    ]
}

/// Those that lose one thing, for everything that can be lost; of the sectors at most `sectors_max`, evenly, and others
/// for another seed.
fn single_losses(disk: &SimDisk, sectors_max: usize, seed: u64) -> Vec<CrashPolicy> {
    let (sectors, names) = disk.unsynced();
    let step = sectors.div_ceil(sectors_max).max(1);
    let first = usize::try_from(seed).unwrap_or(0) % step;
    let sectors = (first..sectors).step_by(step).map(|nth| CrashPolicy::AllButSector { nth });
    sectors.chain((0..names).map(|nth| CrashPolicy::AllButName { nth })).collect()
}
