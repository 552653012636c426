//! The system calls of a put, counted by `strace`, with one thread and with many.
//!
//! The program starts itself again under `strace`, lets one of them put, and reads the trace. Whoever is said to be
//! synced and asks for no sync is an error.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::load::put_counted;
use crate::subject::{Class, Entry, KEY_BYTES};
use crate::trace::{BEGIN, END, PAGE_BYTES, SYNCS, Trace};

/// The writes, and all that can make something durable. `sync_file_range` cannot.
const TRACED: &str = "write,writev,pwrite64,pwritev,pwritev2,fsync,fdatasync,sync_file_range,msync,syncfs,sync,\
                      openat,io_uring_enter";
const MANY: usize = 64;
const VALUE_BYTES: usize = 100;

/// The calls of one peer per put.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Calls {
    pub(crate) what: String,
    pub(crate) durability: String,
    /// With one writer: calls per put, by name.
    pub(crate) per_put: BTreeMap<String, f64>,
    /// A file of it is open so that each write is a sync.
    pub(crate) opened_synced: bool,
    /// With 64 writers, slowed down by the trace: puts per sync. None for who is not synced.
    pub(crate) puts_per_sync_of_64: Option<f64>,
    pub(crate) amplification: Amplification,
    pub(crate) amplification_of_64: Amplification,
}

/// Bytes that are written for each byte of keys and values that is acknowledged.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Amplification {
    /// As they are handed to the system.
    pub(crate) written: f64,
    /// As the disk gets them: whole pages, again with each sync.
    pub(crate) in_pages: f64,
}

impl Amplification {
    fn of(trace: &Trace, puts: u64) -> Amplification {
        let acknowledged = puts as f64 * (KEY_BYTES + VALUE_BYTES) as f64;
        Amplification {
            written: rounded(trace.bytes as f64 / acknowledged),
            in_pages: rounded((trace.pages * PAGE_BYTES) as f64 / acknowledged),
        }
    }
}

impl Calls {
    pub(crate) fn same(&self, other: &Calls) -> bool {
        self.what == other.what && self.durability == other.durability
    }

    /// Syncs per put of a single writer.
    pub(crate) fn syncs_per_put(&self) -> f64 {
        SYNCS.iter().filter_map(|name| self.per_put.get(*name)).sum()
    }

    /// Writes per put of a single writer.
    pub(crate) fn writes_per_put(&self) -> f64 {
        self.per_put.iter().filter(|(name, _)| name.contains("write")).map(|(_, count)| count).sum()
    }

    /// For the table: what is called at least once in twenty puts.
    pub(crate) fn sentence(&self) -> String {
        let mut each: Vec<_> = self.per_put.iter().filter(|(_, count)| **count >= 0.05).collect();
        each.sort_by_key(|(name, _)| !SYNCS.contains(&name.as_str()));
        let mut said: Vec<String> = each.iter().map(|(name, count)| format!("{count:.2} {name}")).collect();
        if self.opened_synced {
            said.push("O_DSYNC".to_owned());
        }
        if said.is_empty() { "none".to_owned() } else { said.join(", ") }
    }
}

/// The child's work: puts between two marks, which are files that are not there.
///
/// # Errors
/// The first put that failed.
pub(crate) fn put_traced(entry: &Entry, class: Class, directory: &Path, writers: usize) -> Result<()> {
    let subject = (entry.open)(directory, class)?;
    put_counted(subject.as_ref(), writers, 1, VALUE_BYTES)?;
    mark(directory, BEGIN)?;
    put_counted(subject.as_ref(), writers, puts_of_each(writers), VALUE_BYTES)?;
    mark(directory, END)?;
    subject.close()
}

/// So many that the page which a trace ends in the middle of does not count for much.
fn puts_of_each(writers: usize) -> u64 {
    if writers == 1 { 100 } else { 20 }
}

fn mark(directory: &Path, what: &str) -> Result<()> {
    ensure!(File::open(directory.join(what)).is_err(), "{what} is there");
    Ok(())
}

/// Looks at what one of them calls.
///
/// # Errors
/// `strace` is missing or failed; it is said to be synced, and is not.
pub(crate) fn trace(entry: &Entry, class: Class, directory: &Path) -> Result<Calls> {
    let one = traced(entry, class, directory, 1)?;
    let many = traced(entry, class, directory, MANY)?;
    let (puts, puts_of_many) = (puts_of_each(1), puts_of_each(MANY) * MANY as u64);
    let syncs_of_many: u64 = SYNCS.iter().filter_map(|name| many.counts.get(*name)).sum();
    let per_put = |(name, count): (&String, &u64)| (name.clone(), rounded(*count as f64 / puts as f64));
    let calls = Calls {
        what: entry.name.to_owned(),
        durability: class.name().to_owned(),
        per_put: one.counts.iter().map(per_put).collect(),
        opened_synced: one.opened_synced,
        puts_per_sync_of_64: (class == Class::Synced && syncs_of_many > 0)
            .then(|| rounded(puts_of_many as f64 / syncs_of_many as f64)),
        amplification: Amplification::of(&one, puts),
        amplification_of_64: Amplification::of(&many, puts_of_many),
    };
    let syncs = calls.syncs_per_put();
    ensure!(
        class == Class::Unsynced || syncs >= 0.99 || calls.opened_synced,
        "{} is said to be durable on return, but made {syncs} syncs per put: {}",
        entry.name,
        calls.sentence()
    );
    Ok(calls)
}

fn rounded(figure: f64) -> f64 {
    (figure * 100.0).round() / 100.0
}

fn traced(entry: &Entry, class: Class, directory: &Path, writers: usize) -> Result<Trace> {
    // strace tells the paths as the kernel knows them.
    let directory = directory.canonicalize()?.join(format!("{}-{}-trace", entry.name, class.name()));
    fs::create_dir(&directory).with_context(|| format!("making {}", directory.display()))?;
    let file = directory.with_extension("strace");
    let mut command = Command::new("strace");
    command.args(["-f", "-y", "-qq", "-s", "0", "-e", "signal=none", "-e"]).arg(format!("trace={TRACED}"));
    command.arg("-o").arg(&file).arg(std::env::current_exe()?);
    command.args(["--traced", entry.name, "--durability", class.name()]);
    command.args(["--writers", &writers.to_string(), "--directory"]).arg(&directory);
    let ended = command.stdin(Stdio::null()).status().with_context(
        || "strace does not start; benches/peers/install installs it, and `--no-trace` does without it",
    )?;
    ensure!(ended.success(), "{} under strace: {ended}", entry.name);
    let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    let trace = Trace::read(&text, &directory).with_context(|| format!("the trace of {}", entry.name))?;
    fs::remove_dir_all(&directory).with_context(|| format!("removing {}", directory.display()))?;
    Ok(trace)
}
