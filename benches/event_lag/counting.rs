//! The instructions of all threads per directive, counted by valgrind's callgrind: repeatable on a busy
//! machine, where times are not. Each task is done so often and twice as often, and the difference is divided by what
//! it was more.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;

use crate::hearing::{EVENT_DIRECTIVES, perform};

/// Events of each task, in the first run.
const EVENTS: u64 = 20;

/// The task that is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Task {
    /// Decoding alone.
    Decode,
    /// All that the follower does, with keys that it has not got in memory.
    Absent,
    /// The same with keys of a namespace of which no cache is open.
    Elsewhere,
}

/// Of each task its name and how many instructions it takes for a directive.
pub(crate) fn count() -> Result<Vec<(String, u64)>> {
    let tasks = Task::value_variants().iter();
    let each = tasks.map(|task| {
        let name = task.to_possible_value().context("every task has a name")?.get_name().to_owned();
        let (once, twice) = (total(&name, EVENTS)?, total(&name, 2 * EVENTS)?);
        ensure!(twice > once, "{name}: {once} instructions, and {twice} for twice as much");
        Ok((name, (twice - once) / (EVENTS * EVENT_DIRECTIVES as u64)))
    });
    each.collect()
}

/// Does a task with so many events.
pub(crate) async fn run(task: Task, events: u64) -> Result<()> {
    perform(task, usize::try_from(events)?).await
}

/// Runs this program under callgrind.
fn total(task: &str, events: u64) -> Result<u64> {
    let directory = tempfile::tempdir()?;
    let out = directory.path().join("callgrind.out");
    let child = Command::new("valgrind")
        .arg("--tool=callgrind")
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(std::env::current_exe()?)
        .args(["--task", task, "--events", &events.to_string()])
        .output()
        .context(
            "valgrind cannot be started; it counts the instructions (Debian: apt-get install valgrind)",
        )?;
    ensure!(child.status.success(), "{task}: {}", String::from_utf8_lossy(&child.stderr));
    let text = fs::read_to_string(&out).with_context(|| format!("reading {}", out.display()))?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
    total.context("callgrind wrote no totals")?.trim().parse().context("callgrind's totals")
}
