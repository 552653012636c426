//! What the benchmark can be told.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use clap::Parser;

use crate::peers::registry::ENTRIES;
use crate::subject::{Class, Entry};

/// Forebay and its peers on the same work, in turn, in one process.
#[derive(Parser, Debug)]
pub(crate) struct Arguments {
    /// Only see that it runs: one short round.
    #[arg(long)]
    pub(crate) smoke: bool,
    /// How many rounds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// How long each measurement of a round takes, in milliseconds, after a quarter of that to warm up.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..))]
    measure_ms: u64,
    /// Measure only these numbers of writers (comma-separated). More than 256 are async tasks only.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 4, 16, 64, 256, 1024])]
    pub(crate) writers: Vec<usize>,
    /// Measure only values of these sizes, in bytes (comma-separated).
    #[arg(long, value_delimiter = ',', default_values_t = [100])]
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

    pub(crate) fn measure(&self) -> Duration {
        Duration::from_millis(if self.smoke { 40 } else { self.measure_ms })
    }

    /// What is to be measured.
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
