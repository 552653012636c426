//! The whole layer, cut at every operation of its disk and around every apply of its store.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use forebay::Durability;
use forebay::disk::{CrashPolicy, DiskOp, SimDisk};

use super::{Tally, budget, first_seed, policies, policies_of_recovery, single_losses};
use crate::history_store::HistoryStore;
use crate::journal_run::Draw;
use crate::layer_run::{DISCARDED, History, Kind, REPLAYED, Run, Shared, key_of};
use crate::support::watchdog::within;

/// Disk and store at one moment, and what was known then.
#[derive(Clone)]
struct Moment {
    before: String,
    disk: SimDisk,
    store: HistoryStore,
    history: History,
}

type Moments = Arc<Mutex<Vec<Moment>>>;

/// Acknowledgements are read before the store, and what was issued after it, because neither stands still.
fn moment(before: String, disk: SimDisk, store: &HistoryStore, shared: &Shared) -> Moment {
    let mut history = shared.now();
    let store = store.copy();
    history.issued = shared.now().issued;
    Moment { before, disk, store, history }
}

fn watch(disk: &SimDisk, store: &HistoryStore, history: &Shared) -> Moments {
    let moments = Moments::default();
    let (seen, known, of) = (Arc::clone(&moments), history.clone(), store.clone());
    disk.observe(move |op, name, disk| {
        let moment = moment(format!("{op:?} of {name}"), disk, &of, &known);
        seen.lock().unwrap().push(moment);
    });
    let (seen, known) = (Arc::clone(&moments), history.clone());
    let (disk, of) = (disk.clone(), store.clone());
    store.watch(move || {
        let mut known_before = known.now();
        let image = disk.crash(CrashPolicy::ProcessKilled);
        known_before.issued = known.now().issued;
        let moment = Moment {
            before: "an apply or its answer".into(),
            disk: image,
            store: of.copy(),
            history: known_before,
        };
        seen.lock().unwrap().push(moment);
    });
    moments
}

/// Everything that was seen, and the end.
fn moments_of(disk: &SimDisk, store: &HistoryStore, history: &Shared, seen: &Moments) -> Vec<Moment> {
    disk.unobserve();
    store.unwatch();
    let mut moments = std::mem::take(&mut *seen.lock().unwrap());
    moments.push(moment("the end".into(), disk.crash(CrashPolicy::ProcessKilled), store, history));
    moments
}

fn check(kind: &Kind, moment: &Moment, policy: CrashPolicy) -> Result<(), String> {
    let (image, store) = (moment.disk.crash(policy), moment.store.copy());
    let history = Shared::new(moment.history.clone());
    let run = Run::open(&image, &store, kind, &history).map_err(|error| format!("opening: {error:?}"))?;
    run.verify(policy != CrashPolicy::ProcessKilled)
}

/// Recovers an image, goes on with it, and cuts that at every operation, too.
fn recover(
    kind: &Kind,
    moment: &Moment,
    policy: CrashPolicy,
    seed: u64,
    tally: &mut Tally,
) -> Result<(), String> {
    let (image, store) = (moment.disk.crash(policy), moment.store.copy());
    let mut history = moment.history.clone();
    let power_cut = policy != CrashPolicy::ProcessKilled;
    if power_cut {
        history.promised.power_cut();
    }
    let history = Shared::new(history);
    let seen = watch(&image, &store, &history);
    let run = Run::open(&image, &store, kind, &history).map_err(|error| format!("opening: {error:?}"))?;
    run.verify(power_cut)?;
    let mut draw = Draw(seed);
    for _ in 0..4 {
        run.step(&mut draw).map_err(|error| format!("going on: {error:?}"))?;
    }
    match seed % 2 {
        0 => run.close().map_err(|error| format!("closing: {error:?}"))?,
        _ => drop(run),
    }
    tally.recoveries += 1;
    for moment in moments_of(&image, &store, &history, &seen) {
        for policy in policies_of_recovery(seed) {
            tally.images_of_recoveries += 1;
            let result = check(kind, &moment, policy);
            result.map_err(|what| format!("then {policy:?} before {}: {what}", moment.before))?;
        }
    }
    Ok(())
}

/// Works for a while, with somebody looking on; returns every moment of it, and how often files were renamed.
fn work(kind: &Kind, seed: u64) -> Result<(Vec<Moment>, u64), String> {
    let (disk, store, history) = (SimDisk::new(), HistoryStore::default(), Shared::default());
    store.reject([key_of(REPLAYED), key_of(DISCARDED)]);
    let seen = watch(&disk, &store, &history);
    let mut draw = Draw(seed);
    for tenure in 0..2 {
        let run = Run::open(&disk, &store, kind, &history).map_err(|error| format!("opening: {error:?}"))?;
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let onlooker = scope.spawn(|| {
                let mut draw = Draw(seed + tenure);
                while !over.load(Ordering::Acquire) {
                    run.look((draw.below(2) as usize, draw.below(3) as u32))?;
                    std::thread::yield_now();
                }
                Ok::<(), String>(())
            });
            let worked = (0..9).try_for_each(|_| run.step(&mut draw));
            over.store(true, Ordering::Release);
            onlooker.join().unwrap()?;
            worked.map_err(|error| format!("working: {error:?}"))
        })?;
        if draw.below(3) > 0 {
            run.close().map_err(|error| format!("closing: {error:?}"))?;
        }
    }
    Ok((moments_of(&disk, &store, &history, &seen), disk.count(DiskOp::Rename)))
}

fn run(kind: &Kind, seed: u64, again_every: u64, tally: &mut Tally) -> Result<(), String> {
    let (moments, renames) = {
        let kind = kind.clone();
        within("working", move || work(&kind, seed))?
    };
    tally.renames += renames;
    for (at, moment) in (0..).zip(&moments) {
        tally.operations += 1;
        let drawn = seed.wrapping_mul(1_000_003).wrapping_add(at);
        let crashes = policies(drawn).into_iter().chain(single_losses(&moment.disk, 2, seed));
        for policy in crashes {
            tally.images += 1;
            let place = format!("{policy:?} before {}", moment.before);
            let (kind, moment) = (kind.clone(), moment.clone());
            if tally.images.is_multiple_of(again_every) {
                let (again, tried) = within(&place, move || {
                    let mut tried = Tally::default();
                    let again = recover(&kind, &moment, policy, drawn, &mut tried);
                    (again, tried)
                });
                tally.recoveries += tried.recoveries;
                tally.images_of_recoveries += tried.images_of_recoveries;
                again.map_err(|what| format!("{place}, recovering: {what}"))?;
            } else {
                let checked = within(&place, move || check(&kind, &moment, policy));
                checked.map_err(|what| format!("{place}: {what}"))?;
            }
        }
    }
    Ok(())
}

#[test]
fn power_cuts_at_every_operation_of_the_layer() {
    let buffered = Durability::Buffered { sync_interval: Duration::from_millis(2) };
    let kinds = [
        Kind { durability: Durability::Sync, recycle: true, zero_fill: false, spares_max: 2 },
        Kind { durability: buffered, recycle: true, zero_fill: true, spares_max: 2 },
    ];
    let (began, time) = (Instant::now(), budget(13, 12));
    let mut tally = Tally::default();
    let mut seed = first_seed();
    while seed == first_seed() || began.elapsed() < time {
        for kind in &kinds {
            // A recovery that is cut everywhere takes two hundred images.
            let again_every = if seed == first_seed() { 500 } else { 60 };
            run(kind, seed, again_every, &mut tally)
                .unwrap_or_else(|what| panic!("FOREBAY_SEED={seed}, {kind:?}: {what}"));
        }
        seed += 1;
    }
    tally.print("layer", first_seed()..seed, began);
}
