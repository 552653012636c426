//! The journal by itself, cut at every operation.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use forebay::JournalOptions;
use forebay::disk::{CrashPolicy, DiskOp, SimDisk};

use super::{Tally, budget, first_seed, policies, policies_of_recovery, single_losses};
use crate::journal_run::{Acknowledge, Draw, History, Run, Shared, layout, open, work};

/// The disk right before an operation, and what was known then.
struct Moment {
    before: String,
    disk: SimDisk,
    history: History,
}

type Moments = Arc<Mutex<Vec<Moment>>>;

fn watch(disk: &SimDisk, history: &Shared) -> Moments {
    let moments = Moments::default();
    let (seen, history) = (Arc::clone(&moments), history.clone());
    disk.observe(move |op, name, disk| {
        let mut seen = seen.lock().unwrap();
        let before = format!("change {}, {op:?} of {name}", seen.len());
        seen.push(Moment { before, disk, history: history.now() });
    });
    moments
}

/// Everything that was seen, and the end.
fn moments_of(disk: &SimDisk, history: &Shared, seen: &Moments) -> Vec<Moment> {
    disk.unobserve();
    let mut moments = std::mem::take(&mut *seen.lock().unwrap());
    let (before, disk) = ("the end".to_owned(), disk.crash(CrashPolicy::ProcessKilled));
    moments.push(Moment { before, disk, history: history.now() });
    moments
}

struct Kind {
    options: JournalOptions,
    acknowledge: Acknowledge,
}

impl Kind {
    fn check(&self, moment: &Moment, policy: CrashPolicy) -> Result<(), String> {
        let image = moment.disk.crash(policy);
        let opened = open(&image, &self.options).map_err(|error| format!("opening: {error:?}"))?;
        moment.history.verify(&opened, policy != CrashPolicy::ProcessKilled)
    }

    /// Recovers an image, goes on with it, and cuts that at every operation, too.
    fn recover(
        &self,
        moment: &Moment,
        policy: CrashPolicy,
        seed: u64,
        tally: &mut Tally,
    ) -> Result<(), String> {
        let image = moment.disk.crash(policy);
        let power_cut = policy != CrashPolicy::ProcessKilled;
        let mut history = moment.history.clone();
        if power_cut {
            history.promised.power_cut();
        }
        let history = Shared::new(history);
        let seen = watch(&image, &history);
        let mut draw = Draw(seed);
        let mut run = Run::open(&image, &self.options, self.acknowledge, &history, power_cut)?;
        let mut go_on = || {
            run.append(&[vec![100], vec![3000, 10]])?;
            run.trim(2)?;
            run.append(&[vec![40_000]])?;
            run.step(&mut draw)
        };
        go_on().map_err(|error| format!("going on: {error:?}"))?;
        match seed % 2 {
            0 => run.close().map_err(|error| format!("closing: {error:?}"))?,
            _ => drop(run),
        }
        tally.recoveries += 1;
        for moment in moments_of(&image, &history, &seen) {
            for policy in policies_of_recovery(seed) {
                tally.images_of_recoveries += 1;
                let place = || format!("then {policy:?} before {}", moment.before);
                self.check(&moment, policy).map_err(|what| format!("{}: {what}", place()))?;
            }
        }
        Ok(())
    }

    fn run(&self, seed: u64, sectors_max: usize, tally: &mut Tally) -> Result<(), String> {
        let (disk, history) = (SimDisk::new(), Shared::default());
        let seen = watch(&disk, &history);
        work(&disk, &self.options, self.acknowledge, &history, &mut Draw(seed), (2, 13))?;
        tally.renames += disk.count(DiskOp::Rename);
        for (at, moment) in (0..).zip(moments_of(&disk, &history, &seen)) {
            tally.operations += 1;
            let drawn = seed.wrapping_mul(1_000_003).wrapping_add(at);
            let crashes = policies(drawn).into_iter().chain(single_losses(&moment.disk, sectors_max, seed));
            for (nth, policy) in (0..).zip(crashes) {
                tally.images += 1;
                let place = || format!("{policy:?} before {}", moment.before);
                self.check(&moment, policy).map_err(|what| format!("{}: {what}", place()))?;
                if (at + nth + seed).is_multiple_of(128) {
                    let again = self.recover(&moment, policy, drawn, tally);
                    again.map_err(|what| format!("{}, recovering: {what}", place()))?;
                }
            }
        }
        Ok(())
    }
}

#[test]
fn power_cuts_at_every_operation_of_the_journal() {
    let kinds = [
        Kind { options: layout(true, false, 2), acknowledge: Acknowledge::Synced },
        Kind { options: layout(false, true, 0), acknowledge: Acknowledge::Synced },
        Kind { options: layout(true, false, 2), acknowledge: Acknowledge::Written },
        Kind { options: layout(true, true, 2), acknowledge: Acknowledge::Written },
    ];
    let (began, time) = (Instant::now(), budget(12, 8));
    let mut tally = Tally::default();
    let mut seed = first_seed();
    // One round of every kind, and more as long as there is time: those leave out no sector.
    while seed == first_seed() || began.elapsed() < time {
        for kind in &kinds {
            let sectors_max = if seed == first_seed() { 16 } else { usize::MAX };
            let result = kind.run(seed, sectors_max, &mut tally);
            result.unwrap_or_else(|what| {
                panic!("FOREBAY_SEED={seed}, {:?}, {:?}: {what}", kind.acknowledge, kind.options)
            });
        }
        seed += 1;
    }
    tally.print("journal", first_seed()..seed, began);
}
