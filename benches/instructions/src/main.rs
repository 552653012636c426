//! Instructions and allocations per call of the put and get paths, counted by valgrind's callgrind: repeatable on a
//! busy machine, where times are not. Compared with what `recorded.json` records.
//!
//! Allocations are calls of the C library's `malloc`, `calloc` and `realloc`; one of a put is its caller's, for the
//! value. They are counted by themselves, and what is executed in them is not: how long the allocator looks for memory
//! depends on what was there before, down to the length of a path.
//!
//! The crate is counted as a user has it, so this does not build with the flags of this repository's cargo
//! configuration:
//!
//! ```text
//! RUSTFLAGS= cargo run --release --manifest-path benches/instructions/Cargo.toml
//! ```
//!
//! Only what the calling thread executes in user space is counted. Under `Buffered`, and with nobody else writing, that
//! is all of a put but the drain: encoding, queueing, framing, and the memory's part.

#![allow(clippy::print_stdout, reason = "a benchmark speaks on the terminal")]

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::hint::black_box;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use clap::{Parser, ValueEnum};
use comfy_table::Table;
use forebay::{Cache, Durability, Forebay, MemoryStore};
use tokio::runtime::Runtime;

const _: () =
    assert!(!cfg!(forebay_mutation), "counts are of the crate as a user has it: build this with RUSTFLAGS=");

/// So many calls are counted.
const CALLS: u64 = 5_000;
const KEYS: u64 = 1_000;
const VALUE_BYTES: usize = 100;
/// The largest difference of a count from the recorded one, in per cent of it.
const MARGIN_PERCENT: f64 = 5.0;
/// The C library's functions that give memory and take it back.
const ALLOCATOR: [&str; 4] = ["malloc", "calloc", "realloc", "free"];
const RECORD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/recorded.json");

/// Instructions per call, beside the recorded ones.
#[derive(Parser, Debug)]
struct Arguments {
    /// Writes the counts down instead of comparing them.
    #[arg(long)]
    record: bool,
    /// Makes the calls of one path, to be counted.
    #[arg(long, hide = true)]
    call: Option<Call>,
    /// So often.
    #[arg(long, hide = true, default_value_t = 1)]
    rounds: u64,
}

/// The call that is counted.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Call {
    Put,
    Remove,
    GetHit,
    /// The same through the blocking face.
    GetHitBlocking,
    /// The same of quick_cache alone, for comparison.
    GetHitBare,
    GetPending,
    GetAbsent,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Some(call) = arguments.call {
        return make_calls(call, arguments.rounds);
    }
    let mut counted: BTreeMap<String, u64> = BTreeMap::new();
    for call in Call::value_variants() {
        let (instructions, allocations) = count(*call)?;
        counted.insert(name_of(*call)?, instructions);
        counted.insert(format!("{}: allocations", name_of(*call)?), allocations);
    }
    if arguments.record {
        let text = serde_json::to_string_pretty(&counted)? + "\n";
        return fs::write(RECORD, text).with_context(|| format!("writing {RECORD}"));
    }
    let text = fs::read_to_string(RECORD).with_context(|| format!("reading {RECORD}"))?;
    let recorded: BTreeMap<String, u64> = serde_json::from_str(&text).with_context(|| RECORD.to_owned())?;
    compare(&counted, &recorded)
}

fn compare(counted: &BTreeMap<String, u64>, recorded: &BTreeMap<String, u64>) -> Result<()> {
    let mut table = Table::new();
    table.set_header(["call", "count", "recorded", "change"]);
    let mut far = Vec::new();
    for (call, count) in counted {
        let before = *recorded.get(call).ok_or_else(|| anyhow!("{RECORD} lacks {call}"))?;
        let change = if *count == before { 0.0 } else { (*count as f64 / before as f64 - 1.0) * 100.0 };
        table.add_row([call.clone(), count.to_string(), before.to_string(), format!("{change:+.1} %")]);
        if change.abs() > MARGIN_PERCENT {
            far.push(call.as_str());
        }
    }
    println!("{table}");
    ensure!(
        far.is_empty(),
        "more than {MARGIN_PERCENT} % from what is recorded: {}; if that is meant, or the compiler is another one, \
         write it down with `--record`",
        far.join(", ")
    );
    Ok(())
}

/// Instructions and allocations of a call.
fn count(call: Call) -> Result<(u64, u64)> {
    let (once, twice) = (profile(call, 1)?, profile(call, 2)?);
    let total =
        once.lines().find_map(|line| line.strip_prefix("totals: ")).context("callgrind wrote no totals")?;
    let total: u64 = total.trim().parse().context("callgrind's totals")?;
    let allocator = Allocator::of(&once)?;
    let instructions =
        total.checked_sub(allocator.instructions).context("callgrind's totals are too small")?;
    ensure!(
        instructions > CALLS,
        "{call:?}: {instructions} instructions, so callgrind did not see the calls"
    );
    // How often a function was called is counted at all times, so what a second round adds is looked at.
    let allocated = Allocator::of(&twice)?.allocations.saturating_sub(allocator.allocations);
    // What grows now and then is below one in a call.
    Ok((instructions / CALLS, (allocated + CALLS / 2) / CALLS))
}

/// Runs this program under callgrind, with so many rounds of calls to be counted.
fn profile(call: Call, rounds: u64) -> Result<String> {
    let directory = tempfile::tempdir()?;
    let out = directory.path().join("callgrind.out");
    let child = Command::new("valgrind")
        .args(["--tool=callgrind", "--collect-atstart=no", "--toggle-collect=*counted_calls*"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(std::env::current_exe()?)
        .args(["--call", &name_of(call)?, "--rounds", &rounds.to_string()])
        .output()
        .context(
            "valgrind cannot be started; it counts the instructions (Debian: apt-get install valgrind)",
        )?;
    ensure!(child.status.success(), "{call:?}: {}", String::from_utf8_lossy(&child.stderr));
    fs::read_to_string(&out).with_context(|| format!("reading {}", out.display()))
}

/// The calls of the C library's allocator, and the instructions that they took.
#[derive(Default)]
struct Allocator {
    allocations: u64,
    instructions: u64,
}

impl Allocator {
    /// By callgrind's list of who called whom how often, and what was executed until the return.
    fn of(profile: &str) -> Result<Self> {
        let mut names = HashMap::new();
        let (mut caller, mut callee) = ("", "");
        let mut allocator = Self::default();
        let mut lines = profile.lines();
        while let Some(line) = lines.next() {
            if let Some((kind, rest)) = line.split_once("fn=(").filter(|(kind, _)| ["", "c"].contains(kind)) {
                // A name is written out where its number comes first.
                let (number, name) = rest.split_once(')').context("callgrind's names")?;
                if let Some(name) = name.strip_prefix(' ') {
                    names.insert(number, name);
                }
                let name = names.get(number).copied().context("a name that callgrind has not told")?;
                *(if kind == "c" { &mut callee } else { &mut caller }) = name;
            } else if let Some(calls) = line.strip_prefix("calls=")
                && ALLOCATOR.contains(&callee)
                && !ALLOCATOR.contains(&caller)
            {
                let calls = calls.split(' ').next().unwrap_or(calls);
                if callee != "free" {
                    allocator.allocations += calls.parse::<u64>().context("callgrind's calls")?;
                }
                // Its next line: where the call is, and what was executed in it.
                let cost = lines.next().and_then(|line| line.split(' ').nth(1));
                let cost = cost.context("callgrind told no cost of a call")?;
                allocator.instructions += cost.parse::<u64>().context("callgrind's cost of a call")?;
            }
        }
        Ok(allocator)
    }
}

fn name_of(call: Call) -> Result<String> {
    Ok(call.to_possible_value().context("every call has a name")?.get_name().to_owned())
}

fn make_calls(call: Call, rounds: u64) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let opening = Forebay::builder(MemoryStore::new())
        .journal(directory.path().join("journal"))
        .durability(Durability::Buffered { sync_interval: Duration::from_secs(1) })
        // The flusher stays out of the way, and nothing is spilled.
        .batch_linger(Duration::from_secs(60))
        .batch_records_max(1_000_000)
        .open();
    let bay = runtime.block_on(opening)?;
    let cache: Cache<u64, Vec<u8>> = bay.cache("counted").capacity(100_000).open()?;
    // Until nothing grows any more.
    calls(&runtime, &cache, Call::Put)?;
    if !matches!(call, Call::GetPending) {
        calls(&runtime, &cache, call)?;
    }
    if matches!(call, Call::GetPending) {
        (0..KEYS).for_each(|key| cache.evict(&key));
    }
    if matches!(call, Call::GetHitBare) {
        let bare = quick_cache::sync::Cache::new(100_000);
        (0..KEYS).for_each(|key| bare.insert(key, vec![1; VALUE_BYTES]));
        (0..rounds).for_each(|_| runtime.block_on(async { bare_counted_calls(&bare) }));
        return Ok(());
    }
    (0..rounds).try_for_each(|_| counted_calls(&runtime, &cache, call))
}

#[inline(never)]
fn bare_counted_calls(bare: &quick_cache::sync::Cache<u64, Vec<u8>>) {
    (0..CALLS).for_each(|number| drop(black_box(bare.get(&(number % KEYS)))));
}

/// The function whose calls callgrind counts.
#[inline(never)]
fn counted_calls(runtime: &Runtime, cache: &Cache<u64, Vec<u8>>, call: Call) -> Result<()> {
    black_box(calls(runtime, cache, call))
}

fn calls(runtime: &Runtime, cache: &Cache<u64, Vec<u8>>, call: Call) -> Result<()> {
    let blocking = cache.blocking();
    runtime.block_on(async {
        for number in 0..CALLS {
            let key = number % KEYS;
            match call {
                Call::Put => drop(black_box(cache.put(&key, vec![1; VALUE_BYTES]).await?)),
                Call::Remove => drop(black_box(cache.remove(&key).await?)),
                Call::GetHit | Call::GetHitBare => drop(black_box(cache.get(&key).await?)),
                Call::GetHitBlocking => drop(black_box(blocking.get(&key)?)),
                Call::GetPending => {
                    drop(black_box(cache.get(&key).await?));
                    cache.evict(&key);
                }
                Call::GetAbsent => drop(black_box(cache.get(&(KEYS + key)).await?)),
            }
        }
        Ok(())
    })
}
