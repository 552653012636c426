//! Kills a writing process at random moments, again and again, and checks that nothing acknowledged was lost,
//! reordered or applied twice.
//!
//! ```text
//! cargo run --release --example crash_recovery -- --rounds 50
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
//! A kill loses nothing that the operating system has. What a power cut takes is the simulated disk's part,
//! in the tests.

mod child;
mod history;
mod layer;
mod ledger;

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use clap::{Parser, ValueEnum};
use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use forebay::Durability;
use indicatif::{ProgressBar, ProgressStyle};

use crate::history::{Id, Random};
use crate::layer::Settings;
use crate::ledger::{Findings, Ledger};

/// How long a child writes at the most before it is killed, in milliseconds.
const WRITING_MS_MAX: u64 = 400;
/// How long the first child takes to be ready, until one has shown it, in microseconds.
const READY_MICROS_FIRST: u64 = 10_000;
/// A child that is not ready by then hangs.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// A backlog of these bounds that is not drained by then is stuck.
const DRAINED_WITHIN: Duration = Duration::from_secs(60);

/// Kills a writing process again and again, and checks that nothing was lost, reordered or applied twice.
#[derive(Parser, Debug)]
struct Arguments {
    /// How many times to kill, recover and check.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// How many threads of the child write.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=256))]
    threads: u64,
    /// Where the random choices come from; printed at the start, so that a run can be repeated. The moments
    /// of the kills depend on the machine too.
    #[arg(long)]
    seed: Option<u64>,
    /// Make the child's store fail at random, before and after it has applied.
    #[arg(long)]
    flaky_store: bool,
    /// What an acknowledgement waits for.
    #[arg(long, value_enum, default_value_t = DurabilityArgument::Sync)]
    durability: DurabilityArgument,
    /// Used by the program itself: be the child, in this directory.
    #[arg(long, hide = true, value_name = "DIRECTORY")]
    child: Option<PathBuf>,
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
        Some(directory) => {
            let seed = arguments.seed.unwrap_or_default();
            child::run(directory, settings(&arguments, seed), seed, &arguments.next).map(|()| true)
        }
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

fn settings(arguments: &Arguments, seed: u64) -> Settings {
    let durability = match arguments.durability {
        DurabilityArgument::Sync => Durability::Sync,
        DurabilityArgument::Buffered => Durability::Buffered { sync_interval: Duration::from_millis(20) },
    };
    // Each child fails at other moments, and leaves another backlog.
    let mut random = Random::new(seed, Id { thread: 0, counter: arguments.next.iter().sum() });
    let flaky_seed = arguments.flaky_store.then(|| random.next());
    let batch_linger = Duration::from_millis(20 * random.below(3));
    Settings { durability, flaky_seed, batch_linger }
}

#[derive(Default)]
struct Totals {
    acknowledged: u64,
    recovered: u64,
    kills: u64,
    kills_before_ready: u64,
    slowest_recovery: Duration,
    findings: Findings,
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
    let directory = tempfile::tempdir().context("making a directory for the layer")?;
    report(&format!("seed {seed}, in {}", directory.path().display()));
    let template = "{bar:32} round {pos}/{len}, {elapsed} passed, about {eta} left. {msg}";
    let progress = ProgressBar::new(arguments.rounds).with_style(ProgressStyle::with_template(template)?);

    let mut supervisor = Supervisor {
        arguments,
        seed,
        directory: directory.path(),
        ledger: Ledger::new(seed, usize::try_from(arguments.threads)?),
        random: Random::new(seed, Id { thread: usize::MAX, counter: 0 }),
        ready_micros: READY_MICROS_FIRST,
        totals: Totals::default(),
    };
    let mut rounds = 0;
    while rounds < arguments.rounds && supervisor.totals.findings.is_clean() {
        if let Err(error) = supervisor.round() {
            progress.abandon();
            // The files are the evidence: a layer that does not open again has lost all of it.
            let kept = directory.keep();
            return Err(error.context(format!(
                "round {}; the layer's files are kept in {}",
                rounds + 1,
                kept.display()
            )));
        }
        rounds += 1;
        progress.set_message(format!("{} acknowledged", supervisor.totals.acknowledged));
        progress.inc(1);
    }
    progress.finish();

    let totals = supervisor.totals;
    print_table(rounds, &totals);
    totals.findings.sentences.iter().for_each(|sentence| report(sentence));
    let clean = totals.findings.is_clean();
    if !clean {
        let kept = directory.keep();
        report(&format!(
            "stopped at the first broken promise; the layer's files are kept in {}",
            kept.display()
        ));
    }
    // A run in which nothing was ever acknowledged has shown nothing.
    ensure!(totals.acknowledged > 0, "no write was acknowledged in {rounds} rounds, so nothing was checked");
    Ok(clean)
}

struct Supervisor<'a> {
    arguments: &'a Arguments,
    seed: u64,
    directory: &'a Path,
    ledger: Ledger,
    random: Random,
    /// How long the last child took from its start until it was ready: where to aim for a kill in recovery.
    ready_micros: u64,
    totals: Totals,
}

impl Supervisor<'_> {
    /// One or more children that die, then the checks.
    fn round(&mut self) -> Result<()> {
        loop {
            self.start_and_kill()?;
            if self.random.below(2) == 0 {
                break;
            }
        }
        let Supervisor { directory, seed, ledger, totals, .. } = self;
        totals.acknowledged += ledger.acknowledged();
        let alone = layer::store_image(directory, *seed)?;
        totals.findings.merge(ledger.check_prefix(&alone));

        let settings =
            Settings { flaky_seed: None, batch_linger: Duration::ZERO, ..settings(self.arguments, *seed) };
        let started = Instant::now();
        let bay = layer::open(directory, settings).context("recovering")?;
        totals.slowest_recovery = totals.slowest_recovery.max(started.elapsed());
        let seen = layer::read_all(&bay, *seed)?;
        close(&bay)?;
        drop(bay);
        let drained = layer::store_image(directory, *seed)?;
        totals.findings.merge(ledger.check_whole(&drained));
        totals.findings.merge(ledger::check_reads(&seen, &drained));
        if totals.findings.lost == 0 {
            totals.recovered += ledger.beyond(alone.watermark);
        }

        let bay = layer::open(directory, settings).context("opening once more")?;
        close(&bay)?;
        drop(bay);
        let idle = layer::store_image(directory, *seed)?;
        totals.findings.merge(ledger::check_same("an opening with nothing to replay", &drained, &idle));
        ledger.adopt(&idle);
        Ok(())
    }

    /// Starts a child, kills it at a random moment, and enters what it said into the ledger.
    fn start_and_kill(&mut self) -> Result<()> {
        let before_ready = self.random.below(3) == 0;
        let mut running = Running::start(self.arguments, self.seed, self.directory, self.ledger.next())?;
        if before_ready {
            running.let_live(Duration::from_micros(self.random.below(self.ready_micros)))?;
        } else {
            let started = Instant::now();
            running.wait_ready()?;
            self.ready_micros = u64::try_from(started.elapsed().as_micros())?.max(1);
            let micros = 5_000 + self.random.below((WRITING_MS_MAX - 5) * 1000);
            running.let_live(Duration::from_micros(micros))?;
        }
        let said = running.kill()?;
        self.totals.kills += 1;
        self.totals.kills_before_ready += u64::from(!said.ready);
        for (id, seq) in said.acknowledged {
            self.ledger
                .acknowledge(id, seq)
                .map_err(|why| anyhow!("an impossible acknowledgement: {why}"))?;
        }
        self.ledger.killed();
        Ok(())
    }
}

fn close(bay: &forebay::Forebay) -> Result<()> {
    let closed = bay.blocking().close_within(DRAINED_WITHIN)?;
    ensure!(closed.queued == 0, "{} records are not drained: {:?}", closed.queued, closed.reason);
    Ok(())
}

/// What a child said before it died.
#[derive(Default)]
struct Said {
    ready: bool,
    acknowledged: Vec<(Id, u64)>,
}

/// A child that is alive, or was a moment ago.
struct Running {
    child: Child,
    reader: JoinHandle<Result<Said>>,
    ready: Receiver<()>,
}

impl Running {
    fn start(arguments: &Arguments, seed: u64, directory: &Path, next: &[u64]) -> Result<Running> {
        let next: Vec<String> = next.iter().map(u64::to_string).collect();
        let durability =
            arguments.durability.to_possible_value().ok_or_else(|| anyhow!("a nameless durability"))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--child").arg(directory).args(["--seed", &seed.to_string(), "--next", &next.join(",")]);
        command.args(["--durability", durability.get_name()]);
        command.args(arguments.flaky_store.then_some("--flaky-store"));
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("starting the child")?;
        let out = child.stdout.take().context("the child has no pipe")?;
        let (tell_ready, ready) = channel();
        let reader = thread::spawn(move || listen(out, &tell_ready));
        Ok(Running { child, reader, ready })
    }

    fn wait_ready(&mut self) -> Result<()> {
        match self.ready.recv_timeout(READY_WITHIN) {
            Ok(()) => Ok(()),
            Err(RecvTimeoutError::Timeout) => {
                self.child.kill()?;
                self.child.wait()?;
                bail!("the child was not ready within {READY_WITHIN:?}")
            }
            Err(RecvTimeoutError::Disconnected) => {
                let status = self.child.wait()?;
                bail!("the child ended before it was ready: {status}")
            }
        }
    }

    /// Lets the child live for so long: the moment of the kill is what is random here.
    fn let_live(&mut self, time: Duration) -> Result<()> {
        thread::sleep(time);
        match self.child.try_wait()? {
            Some(status) => bail!("the child ended by itself: {status}"),
            None => Ok(()),
        }
    }

    fn kill(mut self) -> Result<Said> {
        // SIGKILL on Unix: nothing of the child runs any more.
        self.child.kill().context("killing the child")?;
        self.child.wait()?;
        self.reader.join().map_err(|_| anyhow!("the child's reader panicked"))?
    }
}

/// Reads what a child says until it is dead.
fn listen(out: ChildStdout, ready: &Sender<()>) -> Result<Said> {
    let mut said = Said::default();
    let mut lines = BufReader::new(out);
    let mut line = String::new();
    loop {
        line.clear();
        if lines.read_line(&mut line).context("reading from the child")? == 0 {
            return Ok(said);
        }
        let Some(text) = line.strip_suffix('\n') else { bail!("the child said half a line: {line:?}") };
        if text == "ready" {
            said.ready = true;
            ready.send(()).context("nobody waits for the child any more")?;
            continue;
        }
        let mut fields = text.split(' ').map(str::parse::<u64>);
        match (fields.next(), fields.next(), fields.next(), fields.next()) {
            (Some(Ok(thread)), Some(Ok(counter)), Some(Ok(seq)), None) => {
                said.acknowledged.push((Id { thread: usize::try_from(thread)?, counter }, seq));
            }
            _ => bail!("the child said {text:?}"),
        }
    }
}

#[allow(clippy::print_stdout, reason = "a program's result")]
fn print_table(rounds: u64, totals: &Totals) {
    let Totals { acknowledged, recovered, findings, slowest_recovery, kills, kills_before_ready } = totals;
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header([
        "rounds",
        "acknowledged",
        "recovered",
        "lost",
        "reordered",
        "applied twice",
        "slowest recovery",
    ]);
    table.add_row([
        rounds.to_string(),
        acknowledged.to_string(),
        recovered.to_string(),
        findings.lost.to_string(),
        findings.reordered.to_string(),
        findings.applied_twice.to_string(),
        format!("{:.1} ms", slowest_recovery.as_secs_f64() * 1000.0),
    ]);
    println!("{table}");
    println!("{kills} kills, {kills_before_ready} of them before the child had finished to open its layer.");
    println!("recovered: acknowledged writes that the store did not hold yet when the process died.");
}

#[allow(clippy::print_stderr, reason = "a program's messages")]
fn report(message: &str) {
    eprintln!("{message}");
}
