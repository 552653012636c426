//! The benchmark's arguments.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use clap::Parser;

use crate::peers::registry::ENTRIES;
use crate::subject::{Class, Entry};

/// A measurement that is shorter says nothing: that is some hundred synced puts of one writer.
const MEASURE_MIN: Duration = Duration::from_millis(40);

/// Forebay and its peers on the same work, in turn, in one process.
#[derive(Parser, Debug)]
pub(crate) struct Arguments {
    /// Only see that it runs: one short round.
    #[arg(long)]
    pub(crate) smoke: bool,
    /// The number of rounds.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// For how many seconds puts are made in all, so that each measurement takes its share, of which a fifth is its
    /// warm-up. Opening, draining and the trace come on top.
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Measure only these numbers of writers (comma-separated). More than 256 are async tasks only.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 4, 16, 64, 256, 1024])]
    pub(crate) writers: Vec<usize>,
    /// Measure only values of these sizes, in bytes (comma-separated); what is not synced with the first of them alone.
    #[arg(long, value_delimiter = ',', default_values_t = [100, 1024, 4096])]
    pub(crate) value_bytes: Vec<usize>,
    /// Measure only this durability (comma-separated).
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = Class::ALL)]
    pub(crate) durability: Vec<Class>,
    /// Measure only these (comma-separated) [default: all that are built in].
    #[arg(long, value_delimiter = ',')]
    what: Vec<String>,
    /// Leave these out (comma-separated).
    #[arg(long, value_delimiter = ',')]
    without: Vec<String>,
    /// Keep the rows of the last run that this one does not measure again.
    #[arg(long)]
    pub(crate) add: bool,
    /// Do not look at the system calls; saves the time that it takes, and the need for strace.
    #[arg(long)]
    pub(crate) no_trace: bool,
    /// Measure nothing: write the reports again from the last run's figures.
    #[arg(long)]
    pub(crate) report: bool,
    /// For the trace of system calls, which starts this program again: only let this one put, in this directory.
    #[arg(long, hide = true, requires = "directory")]
    pub(crate) traced: Option<String>,
    #[arg(long, hide = true)]
    pub(crate) directory: Option<PathBuf>,
}

impl std::fmt::Display for Class {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl Arguments {
    pub(crate) fn rounds(&self) -> u64 {
        if self.smoke { 1 } else { self.rounds }
    }

    /// The time that each of `measurements` in each round may take after its warm-up, which takes a quarter of that.
    ///
    /// # Errors
    /// There are none; they are too many for the time that there is.
    pub(crate) fn measure(&self, measurements: usize) -> Result<Duration> {
        ensure!(measurements > 0, "nothing is left to measure");
        if self.smoke {
            return Ok(MEASURE_MIN);
        }
        let each =
            Duration::from_secs(self.seconds) / u32::try_from(self.rounds)? / u32::try_from(measurements)?;
        let measure = each * 4 / 5;
        ensure!(
            measure >= MEASURE_MIN,
            "{measurements} measurements in each of {} rounds leave {measure:?} for each, less than \
             {MEASURE_MIN:?}; allow more `--seconds`",
            self.rounds
        );
        Ok(measure)
    }

    /// The measurements to make.
    ///
    /// # Errors
    /// A name that is not known; nothing is left.
    pub(crate) fn entries(&self) -> Result<Vec<Entry>> {
        self.what.iter().chain(&self.without).try_for_each(|name| entry(name).map(drop))?;
        let chosen = |entry: &&Entry| {
            let is = |name: &String| name == entry.name;
            (self.what.is_empty() || self.what.iter().any(is)) && !self.without.iter().any(is)
        };
        let entries: Vec<Entry> = ENTRIES.iter().filter(chosen).copied().collect();
        ensure!(!entries.is_empty(), "nothing is left to measure");
        Ok(entries)
    }
}

/// The entry of a name.
///
/// # Errors
/// There is none, or it is not built in.
pub(crate) fn entry(name: &str) -> Result<Entry> {
    ENTRIES.iter().find(|entry| entry.name == name).copied().ok_or_else(|| {
        let names: Vec<_> = ENTRIES.iter().map(|entry| entry.name).collect();
        anyhow!("{name} is not among what is built in: {}", names.join(", "))
    })
}
