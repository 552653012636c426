//! The n-th disk operation fails, for every n until the work completes untouched; then the disk heals.
//!
//! Either a write was refused with a clear error, or it is there after reopening. After a failed sync nothing is
//! written any more and everybody is told (P12), whether the kernel keeps the pages that it could not write or
//! reverts them. What was recovered after such a failure survives the next power cut like anything else. Nothing
//! hangs.
//!
//! `FOREBAY_BUDGET` raises the time, `FOREBAY_SEED` says with which seed to begin.

use std::io::ErrorKind as Io;
use std::time::{Duration, Instant};

use forebay::disk::{CrashPolicy, Fault, SimDisk};
use forebay::journal::frame::FrameBuilder;
use forebay::journal::writer::GroupFrame;
use forebay::{Durability, Error, ErrorKind, HealthState, Seq, WritePolicy};

use crate::history_store::HistoryStore;
use crate::journal_run::{self, Acknowledge, Draw, Run, Shared, layout};
use crate::layer_run::{DISCARDED, Kind, PLAIN, REPLAYED, Run as LayerRun, Shared as LayerShared, key_of};
use crate::support::budget::{budget, say};
use crate::support::watchdog::within;

/// The way in which an operation fails.
#[derive(Clone, Copy, Debug)]
struct Way {
    full: bool,
    /// The bytes that a failing write still writes.
    written: usize,
    reverts_pages: bool,
    lasting: bool,
}

const WAYS: [Way; 6] = [
    Way { full: false, written: 0, reverts_pages: false, lasting: false },
    Way { full: false, written: 300, reverts_pages: true, lasting: false },
    Way { full: true, written: 0, reverts_pages: false, lasting: false },
    Way { full: true, written: 300, reverts_pages: true, lasting: false },
    Way { full: true, written: 5_000, reverts_pages: false, lasting: true },
    Way { full: false, written: 0, reverts_pages: true, lasting: true },
];

impl Way {
    fn fault(self, after: u64) -> Fault {
        let fault = Fault::on_any().after(after).written(self.written);
        let fault = if self.reverts_pages { fault.pages_reverted() } else { fault };
        let fault = if self.full { fault.kind(Io::StorageFull) } else { fault };
        if self.lasting { fault.until_healed() } else { fault }
    }
}

#[derive(Default)]
struct Tally {
    faults: u64,
    refused: u64,
    poisoned: u64,
    images: u64,
}

/// A seed to repeat, in every way.
fn given_seed() -> Option<u64> {
    std::env::var("FOREBAY_SEED").ok().map(|text| text.parse().expect("FOREBAY_SEED is a number"))
}

/// An error that names what failed, and is of a kind that a failing disk explains.
fn check_clear(error: &Error) -> Result<(), String> {
    let known = [ErrorKind::Io, ErrorKind::DiskFull, ErrorKind::Poisoned, ErrorKind::InDoubt];
    if known.contains(&error.kind()) && format!("{error:#}").contains("/journal") {
        return Ok(());
    }
    Err(format!("not a clear error: {error:?}"))
}

/// Power cuts that a machine has to survive after the failure, too.
const CUTS: [CrashPolicy; 4] = [
    CrashPolicy::ProcessKilled,
    CrashPolicy::OnlySynced,
    CrashPolicy::Random { seed: 5 },
    CrashPolicy::Garbled { seed: 6 },
];

/// Counts down to one failure, and deals with what the caller is told of it.
struct Countdown {
    after: u64,
    disk: SimDisk,
    tally: Tally,
    hits: u32,
}

impl Countdown {
    fn new(way: Way, after: u64) -> Countdown {
        let disk = SimDisk::new();
        disk.plan(way.fault(after));
        Countdown { after, disk, tally: Tally::default(), hits: 0 }
    }

    /// The disk heals once somebody was told. A failure is told by one call, and by one more that cleans up at the
    /// most.
    fn told(&mut self, error: &Error) -> Result<(), String> {
        self.disk.heal();
        self.hits += 1;
        if self.hits > 2 {
            return Err(format!("told again, though the disk is well: {error:?}"));
        }
        check_clear(error)
    }

    fn is_over(&self) -> bool {
        self.disk.operations() <= self.after
    }
}

/// After a failed sync nothing is written any more, and it says so.
fn check_poisoned(mut run: Run) -> Result<(), String> {
    let mut frame = FrameBuilder::new();
    frame.push(&[b"refused"]).unwrap();
    let frame = GroupFrame { first: run.opened.writer.last().plus(1000), body: frame.finish() };
    let appended = run.opened.writer.append(&[frame], &mut Vec::new()).err();
    let synced = run.opened.writer.sync().err();
    let trimmed = run.opened.log.trim(Seq::new(u64::MAX)).err();
    let closed = run.opened.writer.close().err();
    for (what, error) in [("append", appended), ("sync", synced), ("trim", trimmed), ("close", closed)] {
        // Where there is nothing to trim, nothing is refused.
        let quiet = what == "trim" && error.is_none();
        if !quiet && error.as_ref().is_none_or(|error| error.kind() != ErrorKind::Poisoned) {
            return Err(format!("poisoned, and {what} says {error:?}"));
        }
    }
    Ok(())
}

/// The journal with one failing operation. `None` once the work is over before that.
fn journal(
    (way, after): (Way, u64),
    (acknowledge, zero_fill): (Acknowledge, bool),
    seed: u64,
) -> Result<Option<Tally>, String> {
    let (mut fault, history, mut draw) = (Countdown::new(way, after), Shared::default(), Draw(seed));
    let disk = fault.disk.clone();
    let options = layout(!zero_fill, zero_fill, if zero_fill { 0 } else { 2 });
    let reopen = |fault: &mut Countdown| loop {
        match journal_run::open(&disk, &options) {
            Ok(opened) => match Run::start(opened, acknowledge, &history, false) {
                // What is read back to be checked may be what fails, too.
                Err(what)
                    if (what.starts_with("reading: Io") || what.starts_with("reading: DiskFull"))
                        && fault.hits == 0 =>
                {
                    fault.hits += 1;
                    disk.heal();
                }
                started => return started,
            },
            // An opening that failed has changed nothing that the next one minds.
            Err(error) => fault.told(&error)?,
        }
    };
    // A failed sync may take what was written and not synced.
    let forgive = || {
        let mut history = history.lock();
        history.promised.power_cut();
    };
    for _ in 0..2 {
        let mut run = reopen(&mut fault)?;
        for _ in 0..9 {
            let Err(error) = run.step(&mut draw) else { continue };
            fault.told(&error)?;
            if error.kind() != ErrorKind::Poisoned {
                fault.tally.refused += 1;
                continue;
            }
            fault.tally.poisoned += 1;
            check_poisoned(run)?;
            forgive();
            run = reopen(&mut fault)?;
        }
        if let Err(error) = run.close() {
            fault.told(&error)?;
            forgive();
        }
    }
    if fault.is_over() {
        return Ok(None);
    }
    disk.heal();
    // What was recovered, and what was written behind it, survives a power cut.
    let mut run = reopen(&mut fault)?;
    let went_on = run.append(&[vec![50], vec![2_000]]);
    went_on.map_err(|error| format!("going on: {error:?}"))?;
    for cut in CUTS {
        fault.tally.images += 1;
        let opened = journal_run::open(&disk.crash(cut), &options);
        let opened = opened.map_err(|error| format!("{cut:?} afterwards: opening: {error:?}"))?;
        let verified = history.now().verify(&opened, cut != CrashPolicy::ProcessKilled);
        verified.map_err(|what| format!("{cut:?} afterwards: {what}"))?;
    }
    fault.tally.faults += 1;
    Ok(Some(fault.tally))
}

/// The layer with one failing operation. `None` once the work is over before that.
fn layer((way, after): (Way, u64), kind: &Kind, seed: u64) -> Result<Option<Tally>, String> {
    let (mut fault, history, mut draw) = (Countdown::new(way, after), LayerShared::default(), Draw(seed));
    let (disk, store) = (fault.disk.clone(), HistoryStore::default());
    store.reject([key_of(REPLAYED), key_of(DISCARDED)]);
    let reopen = |fault: &mut Countdown| loop {
        match LayerRun::open(&disk, &store, kind, &history) {
            Ok(run) => return Ok::<LayerRun, String>(run),
            Err(error) => fault.told(&error)?,
        }
    };
    for _ in 0..2 {
        let mut run = reopen(&mut fault)?;
        for _ in 0..8 {
            let before = history.now();
            let Err(error) = run.step(&mut draw) else { continue };
            store.reject([key_of(REPLAYED), key_of(DISCARDED)]);
            fault.told(&error)?;
            if error.kind() == ErrorKind::DiskFull && run.bay.health().state == HealthState::Healthy {
                // Refused: it does not come back. And there is room now.
                fault.tally.refused += 1;
                history.lock().issued = before.issued;
                continue;
            }
            fault.tally.poisoned += 1;
            check_failed(&run, &error)?;
            drop(run);
            run = recovered(reopen(&mut fault)?)?;
        }
        if let Err(error) = run.close() {
            fault.told(&error)?;
            forgive(&history);
            recovered(reopen(&mut fault)?)?;
        }
    }
    if fault.is_over() {
        return Ok(None);
    }
    disk.heal();
    let run = recovered(reopen(&mut fault)?)?;
    let went_on = run.write(vec![((PLAIN, 0), Some(u64::MAX))], 5_000, WritePolicy::Behind);
    // So that nothing moves while store and disk are copied, one after the other.
    went_on.and_then(|()| run.flush()).map_err(|error| format!("going on: {error:?}"))?;
    let (now, held) = (history.now(), store.copy());
    for cut in CUTS {
        fault.tally.images += 1;
        let history = LayerShared::new(now.clone());
        let again = LayerRun::open(&disk.crash(cut), &held.copy(), kind, &history);
        let again = again.map_err(|error| format!("{cut:?} afterwards: opening: {error:?}"))?;
        let verified = again.verify(cut != CrashPolicy::ProcessKilled);
        verified.map_err(|what| format!("{cut:?} afterwards: {what}"))?;
    }
    fault.tally.faults += 1;
    Ok(Some(fault.tally))
}

/// The layer says that it failed, refuses writes for that reason, and shows nothing that is not there afterwards.
fn check_failed(run: &LayerRun, error: &Error) -> Result<(), String> {
    let health = run.bay.health();
    if health.state != HealthState::Failed || health.error.is_none() {
        return Err(format!("told {error:?}, and its health is {health:?}"));
    }
    let refused = run.caches[PLAIN].blocking().put(&0, Vec::new()).err();
    if let Some(refused) = &refused {
        check_clear(refused)?;
    } else {
        return Err(format!("failed ({:?}), and takes a write", health.error));
    }
    for key in 0..3 {
        // A key whose write-through is in doubt is not shown at all, and it says so.
        if let Err(what) = run.look((PLAIN, key))
            && !what.starts_with("reading: InDoubt")
        {
            return Err(what);
        }
    }
    forgive(&run.history);
    Ok(())
}

/// A failed sync may take what was written and not synced.
fn forgive(history: &LayerShared) {
    let mut history = history.lock();
    history.promised.power_cut();
}

fn recovered(run: LayerRun) -> Result<LayerRun, String> {
    run.verify(false)?;
    Ok(run)
}

/// Counts down from every operation in every way, for as many seeds as there is time for.
/// `first` are the ways of the first seed; the others get all.
fn search(
    what: &str,
    time: Duration,
    first: &[usize],
    run: impl Fn((Way, u64), u64) -> Result<Option<Tally>, String> + Clone + Send + 'static,
) {
    let (began, mut tally, first_seed) = (Instant::now(), Tally::default(), given_seed().unwrap_or(0));
    let mut seed = first_seed;
    while seed == first_seed || began.elapsed() < time {
        let all = seed > first_seed || given_seed().is_some();
        for way in (0..WAYS.len()).filter(|way| all || first.contains(way)) {
            let way = WAYS[way];
            for after in 0.. {
                let place = format!("FOREBAY_SEED={seed}, operation {after}, {way:?}");
                let run = run.clone();
                let tried = within(&place, move || run((way, after), seed));
                let Some(tried) = tried.unwrap_or_else(|what| panic!("{place}: {what}")) else { break };
                tally.faults += tried.faults;
                tally.refused += tried.refused;
                tally.poisoned += tried.poisoned;
                tally.images += tried.images;
            }
        }
        seed += 1;
    }
    say(format_args!(
        "{what}: seeds {:?}, {} operations failed, {} calls refused, {} ends of writing, {} images reopened \
         afterwards, \
         in {:.1?}",
        first_seed..seed,
        tally.faults,
        tally.refused,
        tally.poisoned,
        tally.images,
        began.elapsed()
    ));
}

#[test]
fn a_failure_of_each_operation_of_the_journal() {
    let kinds = [(Acknowledge::Synced, false), (Acknowledge::Written, true)];
    for kind in kinds {
        search(
            &format!("journal, {kind:?}"),
            budget(2, Duration::ZERO),
            &[0, 1, 2, 3, 4, 5],
            move |fault, seed| journal(fault, kind, seed),
        );
    }
}

#[test]
fn a_failure_of_each_operation_of_the_layer() {
    let buffered = Durability::Buffered { sync_interval: Duration::from_secs(3600) };
    for (durability, first) in [(Durability::Sync, [0, 3]), (buffered, [1, 4])] {
        let kind = Kind { durability, recycle: true, zero_fill: false, spares_max: 1 };
        search(&format!("layer, {durability:?}"), budget(3, Duration::ZERO), &first, move |fault, seed| {
            layer(fault, &kind, seed)
        });
    }
}
