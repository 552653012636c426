//! Which system calls a put really makes: counted by `strace`, with one thread and with many.
//!
//! The program starts itself again under `strace`, lets one of them put, and reads the trace: only calls on files
//! in that one's directory, and only between two marks. Whoever is said to be synced and asks for no sync is an
//! error.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::load::put_counted;
use crate::subject::{Class, Entry};

/// The writes, and all that can make something durable. `sync_file_range` cannot.
const TRACED: &str = "write,writev,pwrite64,pwritev,pwritev2,fsync,fdatasync,sync_file_range,msync,syncfs,sync,\
                      openat,io_uring_enter";
const SYNCS: [&str; 5] = ["fsync", "fdatasync", "msync", "syncfs", "sync"];
const BEGIN: &str = "puts-begin";
const END: &str = "puts-end";
const MANY: usize = 64;
const VALUE_BYTES: usize = 100;

/// What one of them calls per put.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Calls {
    pub(crate) what: String,
    pub(crate) durability: String,
    /// With one writer: calls per put, by name.
    pub(crate) per_put: BTreeMap<String, f64>,
    /// With one writer: bytes written per put, of which the key and the value are 108.
    pub(crate) bytes_per_put: f64,
    /// A file of it is open so that each write is a sync.
    pub(crate) opened_synced: bool,
    /// With 64 writers, slowed down by the trace: puts per sync.
    pub(crate) puts_per_sync_of_64: Option<f64>,
}

impl Calls {
    pub(crate) fn same(&self, other: &Calls) -> bool {
        self.what == other.what && self.durability == other.durability
    }

    /// How often a put of the only writer makes something durable.
    pub(crate) fn syncs_per_put(&self) -> f64 {
        SYNCS.iter().filter_map(|name| self.per_put.get(*name)).sum()
    }

    /// How often a put of the only writer writes.
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

fn puts_of_each(writers: usize) -> u64 {
    if writers == 1 { 100 } else { 10 }
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
    let mut calls = Calls {
        what: entry.name.to_owned(),
        durability: class.name().to_owned(),
        per_put: one
            .counts
            .iter()
            .map(|(name, count)| (name.clone(), rounded(*count as f64 / one.puts)))
            .collect(),
        bytes_per_put: rounded(one.bytes as f64 / one.puts),
        opened_synced: one.opened_synced,
        puts_per_sync_of_64: None,
    };
    if class == Class::Synced {
        let syncs = calls.syncs_per_put();
        ensure!(
            syncs >= 0.99 || calls.opened_synced,
            "{} is said to be durable on return, but made {syncs} syncs per put: {}",
            entry.name,
            calls.sentence()
        );
        let many = traced(entry, class, directory, MANY)?;
        let syncs: u64 = SYNCS.iter().filter_map(|name| many.counts.get(*name)).sum();
        calls.puts_per_sync_of_64 = Some(rounded(many.puts / syncs as f64));
    }
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
    let puts = writers as f64 * puts_of_each(writers) as f64;
    let trace =
        Trace::read(&text, &directory, puts).with_context(|| format!("the trace of {}", entry.name))?;
    fs::remove_dir_all(&directory).with_context(|| format!("removing {}", directory.display()))?;
    Ok(trace)
}

/// What a trace holds between its marks.
struct Trace {
    puts: f64,
    counts: BTreeMap<String, u64>,
    bytes: u64,
    opened_synced: bool,
}

impl Trace {
    /// # Errors
    /// A mark is missing: then the trace is not one of this program.
    fn read(text: &str, directory: &Path, puts: f64) -> Result<Trace> {
        let directory = directory.to_str().context("a path that is not UTF-8")?;
        let (begin, end) = (format!("{directory}/{BEGIN}"), format!("{directory}/{END}"));
        let mut trace = Trace { puts, counts: BTreeMap::new(), bytes: 0, opened_synced: false };
        // What each thread has begun and strace has not told the end of.
        let mut unfinished: HashMap<&str, bool> = HashMap::new();
        let (mut begun, mut ended) = (false, false);
        for line in text.lines() {
            let (thread, call) = line.split_once(' ').unwrap_or((line, ""));
            let call = call.trim_start();
            // A file that is prepared ahead, in whichever put's time, is used again and again.
            let in_directory = call.contains(directory) && !call.contains("/spare-");
            if call.starts_with("openat(") && in_directory {
                begun |= call.contains(&begin);
                ended |= call.contains(&end);
                trace.opened_synced |= call.contains("O_DSYNC") || call.contains("O_SYNC");
                continue;
            }
            let result = call.rsplit_once(" = ").and_then(|(_, result)| result.parse::<u64>().ok());
            if call.starts_with("<... ") {
                let counted = unfinished.remove(thread).unwrap_or(false);
                if counted && call.contains("write") {
                    trace.bytes += result.unwrap_or(0);
                }
                continue;
            }
            let Some((name, _)) = call.split_once('(') else { continue };
            // These have no file to tell them by.
            let counted = begun && !ended && (in_directory || name == "msync" || name == "sync");
            if call.ends_with("<unfinished ...>") {
                unfinished.insert(thread, counted);
            }
            if counted {
                *trace.counts.entry(name.to_owned()).or_default() += 1;
                if name.contains("write") {
                    trace.bytes += result.unwrap_or(0);
                }
            }
        }
        if !(begun && ended) {
            bail!("a mark is missing");
        }
        Ok(trace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sync that strace tells in two parts was counted twice, and a log's lines were taken for the data's.
    #[test]
    fn only_the_calls_between_the_marks_and_on_its_own_files_count() {
        let text = "\
7 write(3</d/log>, \"\"..., 50) = 50
7 openat(AT_FDCWD</>, \"/d/puts-begin\", O_RDONLY) = -1 ENOENT
7 write(3</d/log>, \"\"..., 108) = 108
8 pwrite64(4</d/log>, \"\"..., 16, 0 <unfinished ...>
7 fdatasync(3</d/log> <unfinished ...>
8 <... pwrite64 resumed>) = 16
7 <... fdatasync resumed>) = 0
7 write(1<pipe:[3]>, \"\"..., 9) = 9
7 openat(AT_FDCWD</>, \"/d/puts-end\", O_RDONLY) = -1 ENOENT
7 fdatasync(3</d/log>) = 0
";
        let trace = Trace::read(text, Path::new("/d"), 1.0).unwrap();
        let counts: Vec<_> = trace.counts.iter().map(|(name, count)| (name.as_str(), *count)).collect();
        assert_eq!(counts, [("fdatasync", 1), ("pwrite64", 1), ("write", 1)]);
        assert_eq!(trace.bytes, 124);
        assert!(!trace.opened_synced);
        assert!(Trace::read("", Path::new("/d"), 1.0).is_err(), "without the marks it is no trace of ours");
    }
}
