//! One layer that one kind of fault is done to, over and over, and what it has to look like afterwards.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use clap::ValueEnum as _;

use crate::history::Random;
use crate::layer::{self, Settings, StoreAt};
use crate::ledger::{self, Findings, Ledger};
use crate::running::Said;
use crate::{Arguments, settings};

/// A backlog of these bounds that is not drained by then is stuck.
const DRAINED_WITHIN: Duration = Duration::from_secs(60);

/// The counts over all rounds.
#[derive(Default)]
pub(crate) struct Totals {
    pub(crate) rounds: u64,
    pub(crate) acknowledged: u64,
    pub(crate) recovered: u64,
    pub(crate) slowest_recovery: Duration,
    pub(crate) findings: Findings,
    /// Other events, by name.
    pub(crate) counts: BTreeMap<&'static str, u64>,
}

impl Totals {
    pub(crate) fn count(&mut self, what: &'static str, times: impl Into<u64>) {
        *self.counts.entry(what).or_default() += times.into();
    }
}

/// A layer, its files and its history.
pub(crate) struct Arena<'a> {
    pub(crate) arguments: &'a Arguments,
    pub(crate) seed: u64,
    /// Where files that go with the layer can be put.
    pub(crate) directory: PathBuf,
    pub(crate) store: PathBuf,
    pub(crate) journal: PathBuf,
    pub(crate) ledger: Ledger,
    pub(crate) random: Random,
    pub(crate) totals: Totals,
}

impl<'a> Arena<'a> {
    pub(crate) fn new(arguments: &'a Arguments, seed: u64, directory: &Path, random: Random) -> Result<Self> {
        std::fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
        Ok(Arena {
            arguments,
            seed,
            directory: directory.to_owned(),
            store: directory.join("store"),
            journal: directory.join("journal"),
            ledger: Ledger::new(seed, usize::try_from(arguments.threads)?),
            random,
            totals: Totals::default(),
        })
    }

    /// A random time of at least `from` and less than `to`.
    pub(crate) fn time(&mut self, from: Duration, to: Duration) -> Duration {
        let span = u64::try_from(to.saturating_sub(from).as_micros()).unwrap_or(u64::MAX).max(1);
        from + Duration::from_micros(self.random.below(span))
    }

    /// The command of a child that goes on with the history. `limits` is a shell's `ulimit`, by its arguments.
    pub(crate) fn child(&self, settings: &Settings, limits: Option<&str>) -> Result<Command> {
        let program = std::env::current_exe()?;
        let mut command = match limits {
            None => Command::new(program),
            Some(limits) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", &format!("ulimit {limits} && exec \"$0\" \"$@\"")]).arg(program);
                shell
            }
        };
        let next: Vec<String> = self.ledger.next().iter().map(u64::to_string).collect();
        let durability =
            self.arguments.durability.to_possible_value().ok_or_else(|| anyhow!("a nameless durability"))?;
        command.arg("--child").arg(&settings.journal);
        match &settings.store {
            StoreAt::Directory(path) => command.arg("--store").arg(path),
            StoreAt::Socket(path) => command.arg("--socket").arg(path),
        };
        command.args(["--seed", &self.seed.to_string(), "--next", &next.join(",")]);
        command.args(["--durability", durability.get_name()]);
        command.args(self.arguments.flaky_store.then_some("--flaky-store"));
        command.args(settings.stalls.then_some("--stalls"));
        Ok(command)
    }

    /// The settings of a layer on this arena's files.
    pub(crate) fn settings(&self) -> Settings {
        settings(self.arguments, self.seed, StoreAt::Directory(self.store.clone()), self.journal.clone())
    }

    /// Enters into the ledger what a child said before it died.
    pub(crate) fn died(&mut self, said: Said) -> Result<()> {
        for (id, seq) in said.acknowledged {
            self.ledger
                .acknowledge(id, seq)
                .map_err(|why| anyhow!("an impossible acknowledgement: {why}"))?;
        }
        self.ledger.killed();
        Ok(())
    }

    /// Looks at the store alone, lets a layer recover, reads through it, drains it, looks again, and opens once more.
    pub(crate) fn check(&mut self) -> Result<()> {
        let settings = Settings { flaky_seed: None, batch_linger: Duration::ZERO, ..self.settings() };
        let Arena { store, seed, ledger, totals, .. } = self;
        totals.rounds += 1;
        totals.acknowledged += ledger.acknowledged();
        let alone = layer::store_image(store, *seed)?;
        totals.findings.merge(ledger.check_prefix(&alone));

        let started = Instant::now();
        let bay = layer::open(&settings).context("recovering")?;
        totals.slowest_recovery = totals.slowest_recovery.max(started.elapsed());
        let seen = layer::read_all(&bay, *seed)?;
        close(&bay)?;
        drop(bay);
        let drained = layer::store_image(store, *seed)?;
        totals.findings.merge(ledger.check_whole(&drained));
        totals.findings.merge(ledger::check_reads(&seen, &drained));
        if totals.findings.lost == 0 {
            totals.recovered += ledger.beyond(alone.watermark);
        }

        let bay = layer::open(&settings).context("opening once more")?;
        close(&bay)?;
        drop(bay);
        let idle = layer::store_image(store, *seed)?;
        totals.findings.merge(ledger::check_same("an opening with nothing to replay", &drained, &idle));
        ledger.adopt(&idle);
        Ok(())
    }
}

fn close(bay: &forebay::Forebay) -> Result<()> {
    let closed = bay.blocking().close_within(DRAINED_WITHIN)?;
    ensure!(closed.queued == 0, "{} records are not drained: {:?}", closed.queued, closed.reason);
    Ok(())
}
