//! The run: opens, lets put in turn, settles, closes, and writes what came out.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::arguments::{Arguments, entry};
use crate::calls;
use crate::fair::{sync_file_system, turns};
use crate::figures::Figures;
use crate::load::{Load, measure_threads};
use crate::machine::Machine;
use crate::report;
use crate::results::{Id, Results, Row};
use crate::subject::{Class, Entry, Face, Measure, Subject};
use crate::table;

/// More writers than this are async tasks only.
const THREADS_MAX: usize = 256;

/// # Errors
/// Returns the error of the first one that failed, with its name.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if let (Some(name), Some(directory)) = (&arguments.traced, &arguments.directory) {
        let class = arguments.durability.first().copied().unwrap_or(Class::Synced);
        return calls::put_traced(
            &entry(name)?,
            class,
            directory,
            arguments.writers.first().copied().unwrap_or(1),
        );
    }
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/forebay");
    fs::create_dir_all(&target).with_context(|| format!("making {}", target.display()))?;
    let json = target.canonicalize()?.join("peers.json");
    let results = if arguments.report {
        Results::read(&json)?
    } else {
        let mut results = measure_all(arguments, &target)?;
        if arguments.add && json.exists() {
            results.keep_from(Results::read(&json)?);
        }
        results.write(&json)?;
        results
    };
    table::print(&results);
    for path in [json.with_extension("html"), json.with_extension("md")] {
        report::write(&results, &path)?;
        eprintln!("Also in {}", path.display());
    }
    eprintln!("The same figures: {}", json.display());
    Ok(())
}

/// One load, measured in turn with each of these.
struct Group {
    class: Class,
    value_bytes: usize,
    writers: usize,
    cells: Vec<(Entry, Face)>,
}

impl Group {
    fn all(arguments: &Arguments, entries: &[Entry]) -> Vec<Group> {
        let mut groups = Vec::new();
        for &class in &arguments.durability {
            let sizes = if class == Class::Synced { arguments.value_bytes.len() } else { 1 };
            for &value_bytes in arguments.value_bytes.iter().take(sizes) {
                for &writers in &arguments.writers {
                    let able = |face: &Face| *face == Face::Tasks || writers <= THREADS_MAX;
                    let cells =
                        entries.iter().copied().filter(|entry| entry.settings(class).is_some()).flat_map(
                            |entry| entry.faces.iter().copied().filter(able).map(move |face| (entry, face)),
                        );
                    groups.push(Group { class, value_bytes, writers, cells: cells.collect() });
                }
            }
        }
        groups
    }
}

fn measure_all(arguments: &Arguments, target: &Path) -> Result<Results> {
    // On the disk that the repository is on: a temporary directory may be memory.
    let directory = tempfile::Builder::new().prefix("peers-").tempdir_in(target)?;
    let entries = arguments.entries()?;
    let groups = Group::all(arguments, &entries);
    let measurements = groups.iter().map(|group| group.cells.len()).sum();
    let measure = arguments.measure(measurements)?;
    let mut progress = Progress { started: Instant::now(), measurements, done: 0 };
    let mut results = Results { machine: Machine::look(directory.path())?, ..Results::default() };
    for &class in &arguments.durability {
        let entries: Vec<Entry> =
            entries.iter().filter(|entry| entry.settings(class).is_some()).copied().collect();
        if !arguments.no_trace {
            progress.say(&format!("{}: the system calls of each", class.sentence()));
            for entry in &entries {
                results.calls.push(calls::trace(entry, class, directory.path())?);
            }
        }
        let opened = open_all(class, &entries, directory.path())?;
        for group in groups.iter().filter(|group| group.class == class) {
            let Group { value_bytes, writers, .. } = group;
            progress.say(&format!("{}, values of {value_bytes} bytes, {writers} writers", class.sentence()));
            results.rows.extend(measure_group(group, arguments.rounds(), measure, &opened)?);
            progress.done += group.cells.len();
        }
        for Opened { entry, subject, directory } in opened {
            subject.close().with_context(|| format!("closing {}", entry.name))?;
            fs::remove_dir_all(&directory).with_context(|| format!("removing {}", directory.display()))?;
        }
    }
    progress.say("done");
    Ok(results)
}

/// Says on the terminal how far it is.
struct Progress {
    started: Instant,
    measurements: usize,
    /// The number of its writers.
    done: usize,
}

impl Progress {
    fn say(&self, what: &str) {
        let done = self.done * 100 / self.measurements.max(1);
        let elapsed = Duration::from_secs(self.started.elapsed().as_secs());
        eprintln!("{done:3} %, after {}: {what}", humantime::format_duration(elapsed));
    }
}

/// One of them, opened once and kept open for all of its durability's rounds.
struct Opened {
    entry: Entry,
    subject: Box<dyn Subject>,
    directory: PathBuf,
}

fn open_all(class: Class, entries: &[Entry], directory: &Path) -> Result<Vec<Opened>> {
    let mut opened = Vec::new();
    for entry in entries {
        let own = directory.join(format!("{}-{}", entry.name, class.name()));
        fs::create_dir(&own).with_context(|| format!("making {}", own.display()))?;
        let subject = (entry.open)(&own, class).with_context(|| format!("opening {}", entry.name))?;
        opened.push(Opened { entry: *entry, subject, directory: own });
    }
    Ok(opened)
}

/// All of them with one load, in turn, round by round.
fn measure_group(group: &Group, rounds: u64, measure: Duration, opened: &[Opened]) -> Result<Vec<Row>> {
    let &Group { class, value_bytes, writers, .. } = group;
    let of = Measure { writers, value_bytes, warm_up: measure / 4, measure };
    let load = Load { of, threads: std::thread::available_parallelism()?.get().min(writers) };
    let mut cells: Vec<(&Opened, Face, Vec<Figures>)> = Vec::new();
    for (entry, face) in &group.cells {
        let one = opened.iter().find(|one| one.entry.name == entry.name);
        cells.push((one.with_context(|| format!("{} is not open", entry.name))?, *face, Vec::new()));
    }
    for round in 0..rounds {
        for turn in turns(cells.len(), round) {
            let (one, face, rounds) = cells.get_mut(turn).context("there are as many turns as cells")?;
            sync_file_system(&one.directory)?;
            let subject = one.subject.as_ref();
            let measured = match face {
                Face::Threads => measure_threads(subject, &of),
                Face::Tasks => subject.measure_tasks(&load),
            };
            let named = || format!("{}, {} {}", one.entry.name, writers, face.name());
            rounds.push(measured.with_context(named)?.figures());
            subject.settle().with_context(named)?;
        }
    }
    let measure_ms = u64::try_from(measure.as_millis())?;
    let row = |(one, face, rounds): &(&Opened, Face, Vec<Figures>)| {
        let id = Id { what: one.entry.name, class, face: *face, writers, value_bytes };
        Row::of(id, measure_ms, rounds)
    };
    let mut rows: Vec<Row> = cells.iter().map(row).collect();
    let place = |row: &Row| opened.iter().position(|one| one.entry.name == row.what);
    rows.sort_by_key(|row| (row.face.clone(), place(row)));
    Ok(rows)
}
