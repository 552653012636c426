//! Kills a writing process at random moments, again and again, and checks that nothing acknowledged was lost,
//! reordered or applied twice.
//!
//! ```text
//! cargo run --example crash_recovery -- --rounds 50
//! ```
//!
//! Each round this program starts itself as a child that writes from several threads (behind, through,
//! removals, and atomic batches over two caches), reads from a pipe what the child says was acknowledged, and
//! kills it with SIGKILL: some milliseconds after it began to write, or before it had finished to recover. In
//! half of the rounds another child is started on what the first one left, and killed in turn, often in the
//! middle of its recovery. Then this process looks at the store alone, which has to be a prefix of the
//! history, lets a layer recover, reads through it, drains it, looks at the store again, and opens it once
//! more to see that nothing is replayed that was applied. What exactly is checked stands at the head of
//! `ledger.rs`.
//!
//! A kill loses nothing that the operating system has. What a power cut takes is the tests' part.
//!
//! With `--minutes`, or with `--faults`, it is a soak of more than kills (Linux only; see `faults.rs`):
//!
//! - `kill`: as above.
//! - `freeze`: an owner is stopped with SIGSTOP, a second one opens a copy of its journal on the same store, and the
//!   first is thawed: it must be refused, say so, and have changed nothing. sled lets one process in, so the store is
//!   served to both over a socket by this process.
//! - `disk-full`: the journal's small file system fills up. Writers are told, and go on by themselves when there is
//!   room again, or are killed meanwhile. It is mounted in a user namespace; where the kernel refuses that, the rounds
//!   are said not to have been run.
//! - `store-full`: the same of the store's. sled takes no more until it is opened again, so the layer ends, and says
//!   why.
//! - `memory`, `descriptors`: `ulimit -v` and `ulimit -n` with random bounds. The child may die or refuse.
//!
//! Each kind has a layer of its own, and the same checks after every round.

mod arena;
mod child;
mod faults;
mod history;
mod layer;
mod ledger;
#[path = "../../tests/support/order.rs"]
mod order;
mod running;
mod served;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use forebay::Durability;
use indicatif::{ProgressBar, ProgressStyle};

use crate::arena::{Arena, Totals};
use crate::faults::{Fault, SmallDisk};
use crate::history::{Id, Random};
use crate::layer::{Settings, StoreAt};

/// The assumed time until a child is ready, before one has shown it.
const READY_FIRST: Duration = Duration::from_millis(10);

/// Does harm to a writing process again and again, and checks that nothing was lost, reordered or applied twice.
#[derive(Parser, Debug)]
struct Arguments {
    /// The number of rounds: harm, recover, check.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// Instead of a number of rounds, how long to go on, with kinds of fault chosen at random.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..), conflicts_with = "rounds")]
    minutes: Option<u64>,
    /// Kinds of fault; by default `kill`, and all of them with `--minutes`. Rounds take them in turn.
    #[arg(long, value_enum, value_delimiter = ',')]
    faults: Vec<Fault>,
    /// Writing threads of the child.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=256))]
    threads: u64,
    /// Where the random choices come from; printed at the start, so that a run can be repeated. The moments
    /// of the kills depend on the machine too.
    #[arg(long)]
    seed: Option<u64>,
    /// Make the child's store fail at random, before and after it has applied.
    #[arg(long)]
    flaky_store: bool,
    /// The durability of an acknowledged write.
    #[arg(long, value_enum, default_value_t = DurabilityArgument::Sync)]
    durability: DurabilityArgument,
    /// Used by the program itself: be the child, with this journal.
    #[arg(long, hide = true, value_name = "JOURNAL")]
    child: Option<PathBuf>,
    /// Used by the program itself: the child's store.
    #[arg(long, hide = true, value_name = "DIRECTORY")]
    store: Option<PathBuf>,
    /// Used by the program itself: where the child's store is served.
    #[arg(long, hide = true, conflicts_with = "store")]
    socket: Option<PathBuf>,
    /// Used by the program itself: the child's store stands still at every other moment.
    #[arg(long, hide = true)]
    stalls: bool,
    /// Used by the program itself: each thread's first counter.
    #[arg(long, hide = true, value_delimiter = ',')]
    next: Vec<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DurabilityArgument {
    /// The disk's: survives a power cut.
    Sync,
    /// The operating system's: survives a kill.
    Buffered,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match &arguments.child {
        Some(journal) => run_child(&arguments, journal).map(|()| true),
        None => supervise(&arguments),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            report(&format!("crash_recovery: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run_child(arguments: &Arguments, journal: &Path) -> Result<()> {
    let seed = arguments.seed.unwrap_or_default();
    let store = match (&arguments.store, &arguments.socket) {
        (Some(path), None) => StoreAt::Directory(path.clone()),
        (None, Some(path)) => StoreAt::Socket(path.clone()),
        _ => bail!("a child has a store or a socket"),
    };
    let settings = settings(arguments, seed, store, journal.to_owned());
    child::run(&settings, seed, &arguments.next)
}

fn settings(arguments: &Arguments, seed: u64, store: StoreAt, journal: PathBuf) -> Settings {
    let durability = match arguments.durability {
        DurabilityArgument::Sync => Durability::Sync,
        DurabilityArgument::Buffered => Durability::Buffered { sync_interval: Duration::from_millis(20) },
    };
    // Each child fails at other moments, and leaves another backlog.
    let mut random = Random::new(seed, Id { thread: 0, counter: arguments.next.iter().sum() });
    let flaky_seed = arguments.flaky_store.then(|| random.next());
    let batch_linger = Duration::from_millis(20 * random.below(3));
    Settings { store, journal, durability, stalls: arguments.stalls, flaky_seed, batch_linger }
}

/// Runs all rounds. `false`: a promise was broken.
fn supervise(arguments: &Arguments) -> Result<bool> {
    let seed = match arguments.seed {
        Some(seed) => seed,
        None => {
            let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
            u64::from(clock.subsec_nanos()) ^ clock.as_secs().rotate_left(32)
        }
    };
    let directory = tempfile::tempdir().context("making a directory for the layers")?;
    report(&format!("seed {seed}, in {}", directory.path().display()));
    let mut soak = Soak::new(arguments, seed, directory.path())?;
    let outcome = soak.run();
    if let Err(error) = outcome {
        // The files are the evidence: a layer that does not open again has lost all of it.
        soak.keep_small_disks();
        let kept = directory.keep();
        return Err(error.context(format!("the layers' files are kept in {}", kept.display())));
    }
    soak.print();
    let clean = soak.arenas.values().all(|arena| arena.totals.findings.is_clean());
    if !clean {
        soak.keep_small_disks();
        let kept = directory.keep();
        report(&format!(
            "stopped at the first broken promise; the layers' files are kept in {}",
            kept.display()
        ));
    }
    // A run in which nothing was ever acknowledged has shown nothing.
    let acknowledged: u64 = soak.arenas.values().map(|arena| arena.totals.acknowledged).sum();
    ensure!(acknowledged > 0, "no write was acknowledged, so nothing was checked");
    Ok(clean)
}

/// All kinds of fault, each with a layer of its own.
struct Soak<'a> {
    arguments: &'a Arguments,
    seed: u64,
    directory: PathBuf,
    random: Random,
    faults: Vec<Fault>,
    arenas: BTreeMap<Fault, Arena<'a>>,
    small_disks: BTreeMap<Fault, SmallDisk>,
    /// Kinds of fault that cannot be run here, with the reasons.
    not_run: BTreeMap<Fault, String>,
    /// The time that the last child took to be ready: a kill in recovery is aimed at it.
    ready: Duration,
}

impl<'a> Soak<'a> {
    fn new(arguments: &'a Arguments, seed: u64, directory: &Path) -> Result<Soak<'a>> {
        let mut faults = arguments.faults.clone();
        if faults.is_empty() {
            faults = if arguments.minutes.is_some() {
                Fault::value_variants().to_vec()
            } else {
                vec![Fault::Kill]
            };
        }
        let mut soak = Soak {
            arguments,
            seed,
            directory: directory.to_owned(),
            random: Random::new(seed, Id { thread: usize::MAX, counter: 0 }),
            faults: Vec::new(),
            arenas: BTreeMap::new(),
            small_disks: BTreeMap::new(),
            not_run: BTreeMap::new(),
            ready: READY_FIRST,
        };
        for fault in faults {
            soak.prepare(fault)?;
        }
        ensure!(!soak.faults.is_empty(), "nothing could be run here: {:?}", soak.not_run);
        Ok(soak)
    }

    fn prepare(&mut self, fault: Fault) -> Result<()> {
        let directory = self.directory.join(format!("{fault:?}").to_lowercase());
        let random = Random::new(self.random.next(), Id { thread: 0, counter: 0 });
        let mut arena = Arena::new(self.arguments, self.seed, &directory, random)?;
        if matches!(fault, Fault::DiskFull | Fault::StoreFull) {
            match SmallDisk::mount(&directory.join("small")) {
                Ok(disk) => {
                    let small = if fault == Fault::DiskFull { &mut arena.journal } else { &mut arena.store };
                    *small = disk.path.join("layer");
                    self.small_disks.insert(fault, disk);
                }
                Err(error) => {
                    let name = name(fault);
                    report(&format!("NOT RUN: {name}, for want of a file system of our own: {error:#}"));
                    self.not_run.insert(fault, format!("{error:#}"));
                    return Ok(());
                }
            }
        }
        self.faults.push(fault);
        self.arenas.insert(fault, arena);
        Ok(())
    }

    fn run(&mut self) -> Result<()> {
        let until = self.arguments.minutes.map(|minutes| Instant::now() + Duration::from_secs(60 * minutes));
        let progress = match self.arguments.minutes {
            Some(minutes) => ProgressBar::new(60 * minutes)
                .with_style(ProgressStyle::with_template("{bar:32} {elapsed} of {len} s. {msg}")?),
            None => ProgressBar::new(self.arguments.rounds).with_style(ProgressStyle::with_template(
                "{bar:32} round {pos}/{len}, {elapsed} passed, about {eta} left. {msg}",
            )?),
        };
        let (mut rounds, started) = (0, Instant::now());
        loop {
            let choices = self.faults.len() as u64;
            let choice = if until.is_some() { self.random.below(choices) } else { rounds % choices };
            let fault =
                self.faults.get(usize::try_from(choice)?).copied().context("a choice among the faults")?;
            if let Err(error) = self.round(fault) {
                progress.abandon();
                return Err(error.context(format!("round {} ({fault:?})", rounds + 1)));
            }
            rounds += 1;
            let acknowledged: u64 = self.arenas.values().map(|arena| arena.totals.acknowledged).sum();
            progress.set_message(format!("{acknowledged} acknowledged"));
            progress.set_position(until.map_or(rounds, |_| started.elapsed().as_secs()));
            let over = until.map_or(rounds >= self.arguments.rounds, |until| Instant::now() >= until);
            if over || !self.arenas.values().all(|arena| arena.totals.findings.is_clean()) {
                progress.finish();
                return Ok(());
            }
        }
    }

    /// One round of faults, then the checks.
    fn round(&mut self, fault: Fault) -> Result<()> {
        let arena = self.arenas.get_mut(&fault).context("every fault has its layer")?;
        match fault {
            Fault::Kill => faults::kill(arena, &mut self.ready)?,
            Fault::Freeze => faults::freeze(arena)?,
            Fault::DiskFull | Fault::StoreFull => {
                let disk = self.small_disks.get(&fault).context("a small disk")?;
                let harm = if fault == Fault::DiskFull { faults::disk_full } else { faults::store_full };
                harm(arena, disk)?;
            }
            Fault::Memory | Fault::Descriptors => faults::limited(arena, fault)?,
        }
        arena.check()
    }

    /// The small file systems end with this process; what is on them goes where the other evidence is.
    fn keep_small_disks(&self) {
        for (fault, disk) in &self.small_disks {
            let kept = self.directory.join(format!("{}-small", name(*fault)));
            if let Err(error) = faults::copy_dir(&disk.path.join("layer"), &kept) {
                report(&format!("what was on the small disk could not be kept: {error:#}"));
            }
        }
    }

    #[allow(clippy::print_stdout, reason = "a program's result")]
    fn print(&self) {
        let kills_alone = self.faults == [Fault::Kill] && self.not_run.is_empty();
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED);
        let columns = ["fault", "rounds", "acknowledged", "recovered", "lost", "reordered", "applied twice"];
        let columns = columns.into_iter().chain(["slowest recovery"]);
        table.set_header(columns.skip(usize::from(kills_alone)));
        for (fault, arena) in &self.arenas {
            let row = row(*fault, &arena.totals);
            table.add_row(row.into_iter().skip(usize::from(kills_alone)));
        }
        for fault in self.not_run.keys() {
            table.add_row([name(*fault), "NOT RUN".to_owned()]);
        }
        println!("{table}");
        for (fault, arena) in &self.arenas {
            let counts: Vec<String> =
                arena.totals.counts.iter().map(|(what, times)| format!("{times} {what}")).collect();
            println!("{}: {}.", name(*fault), counts.join(", "));
            arena.totals.findings.sentences.iter().for_each(|sentence| report(sentence));
        }
        for (fault, why) in &self.not_run {
            println!("{}: NOT RUN: {why}", name(*fault));
        }
        println!("recovered: acknowledged writes that the store did not hold yet when the process died.");
    }
}

fn name(fault: Fault) -> String {
    fault.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

fn row(fault: Fault, totals: &Totals) -> Vec<String> {
    let Totals { rounds, acknowledged, recovered, findings, slowest_recovery, .. } = totals;
    vec![
        name(fault),
        rounds.to_string(),
        acknowledged.to_string(),
        recovered.to_string(),
        findings.lost.to_string(),
        findings.reordered.to_string(),
        findings.applied_twice.to_string(),
        format!("{:.1} ms", slowest_recovery.as_secs_f64() * 1000.0),
    ]
}

#[allow(clippy::print_stderr, reason = "a program's messages")]
fn report(message: &str) {
    eprintln!("{message}");
}
