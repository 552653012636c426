//! The time to live that a cache advises, and what it then gives: learned from traffic whose source others write, and
//! tried on the same traffic.
//!
//! ```text
//! cargo run --release --example ttl_advice
//! cargo run --release --example ttl_advice -- --trace ../shared/traces/cloudphysics_io.csv
//! ```
//!
//! With a block trace (`version,time,op,size,lbn`, times in seconds) its reads are reads through the cache, and its
//! writes are made by others, past the cache. Without one the traffic is drawn: the keys that are read most are
//! written most. No time passes but on a clock that is moved by hand.

#![allow(clippy::print_stdout, reason = "an example speaks on the terminal")]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use comfy_table::Table;
use forebay::testkit::ManualClock;
use forebay::{Cache, Forebay, MemoryStore, ReadOptions, Source, TtlAdvice};

/// The time to live while the cache learns, in seconds.
const FIRST_LIFE_S: u64 = 300;
const WANTED: [f64; 4] = [0.005, 0.02, 0.05, 0.1];

/// Advice on the time to live, from traffic.
#[derive(Parser, Debug)]
struct Arguments {
    /// The block trace.
    #[arg(long)]
    trace: Option<PathBuf>,
}

/// Something that happens to a key.
struct Event {
    at_s: f64,
    key: u64,
    is_read: bool,
}

/// The result of a replay.
struct Replay {
    served: u64,
    stale: u64,
    advice: Vec<TtlAdvice>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let events = match &arguments.trace {
        Some(path) => from_trace(path)?,
        None => drawn(),
    };
    let reads = events.iter().filter(|event| event.is_read).count();
    println!("{reads} reads, and {} writes by others.", events.len() - reads);
    let first = replay(&events, Duration::from_secs(FIRST_LIFE_S)).await?;
    let Some(advice) = first.advice.first() else { return Ok(()) };
    println!(
        "With a time to live of {FIRST_LIFE_S} s: {} reloads, of which {} found a change; {} of what memory served was \
         stale, and the reloads say {}.",
        advice.reloads,
        advice.changed,
        percent(first.share()),
        advice.share_now.map_or("nothing".into(), percent)
    );
    let mut table = Table::new();
    table.set_header(["wanted", "advised", "gives", "served from memory"]);
    for advice in &first.advice {
        let Some(life) = advice.time_to_live else {
            println!("There were too few reloads for advice.");
            return Ok(());
        };
        let again = replay(&events, life.max(Duration::from_millis(1))).await?;
        let least = if advice.is_longest_seen { "at least " } else { "" };
        table.add_row([
            percent(advice.wanted_share),
            format!("{least}{:.1} s", life.as_secs_f64()),
            percent(again.share()),
            percent(again.served as f64 / reads as f64),
        ]);
    }
    println!("{table}");
    Ok(())
}

impl Replay {
    fn share(&self) -> f64 {
        self.stale as f64 / self.served.max(1) as f64
    }
}

/// Replays the events through a fresh cache.
async fn replay(events: &[Event], time_to_live: Duration) -> Result<Replay> {
    let clock = ManualClock::new();
    let bay = Forebay::builder(MemoryStore::new()).clock(clock.clone()).open().await?;
    // Jitter, so that copies are reloaded at younger ages as well: without it nothing is known of those.
    let cache: Cache<u64, u64> =
        bay.cache("blocks").capacity(1_000_000).time_to_live(time_to_live).time_to_live_jitter(0.9).open()?;
    let (mut truth, mut now_s) = (HashMap::<u64, u64>::new(), 0.0);
    let (mut served, mut stale) = (0, 0);
    for event in events {
        clock.advance(Duration::from_secs_f64(f64::max(event.at_s - now_s, 0.0)));
        now_s = event.at_s.max(now_s);
        let value = truth.entry(event.key).or_insert(0);
        if !event.is_read {
            *value += 1;
            continue;
        }
        let current = *value;
        let load = move |_| async move { Ok::<_, std::io::Error>(Some(current)) };
        let entry = cache.get_or_load_with(&event.key, &ReadOptions::new(), load).await?;
        if entry.source == Source::Memory {
            served += 1;
            stale += u64::from(entry.value != Some(current));
        }
    }
    let advice = WANTED.iter().map(|wanted| cache.ttl_advice(*wanted)).collect::<Result<_, _>>()?;
    Ok(Replay { served, stale, advice })
}

fn from_trace(path: &Path) -> Result<Vec<Event>> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let (mut events, mut first_s) = (Vec::new(), None);
    for (line, number) in text.lines().zip(1_u64..).skip(1) {
        let place = || format!("{}:{number}", path.display());
        let fields: Vec<&str> = line.split(',').collect();
        let &[_, time, op, _, block] = fields.as_slice() else {
            anyhow::bail!("{}: {} fields instead of 5", place(), fields.len());
        };
        let at_s: f64 = time.parse().with_context(place)?;
        let first_s = *first_s.get_or_insert(at_s);
        let key = block.parse().with_context(place)?;
        events.push(Event { at_s: at_s - first_s, key, is_read: op == "28" });
    }
    ensure!(!events.is_empty(), "{}: holds no operation", path.display());
    Ok(events)
}

/// Two hours of 500 keys: the k-th is read every 2 + k/10 seconds on average, and written once in 400 reads.
fn drawn() -> Vec<Event> {
    // SplitMix64 (Steele, Lea, Flood 2014).
    let mut state = 7_u64;
    let mut wait = |mean_s: f64| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let share = ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64;
        -(1.0 - share).ln() * mean_s
    };
    let mut events = Vec::new();
    for key in 0..500_u32 {
        let read_s = 2.0 + f64::from(key) / 10.0;
        for (is_read, mean_s) in [(true, read_s), (false, read_s * 400.0)] {
            let mut at_s = wait(mean_s);
            while at_s < 7200.0 {
                events.push(Event { at_s, key: u64::from(key), is_read });
                at_s += wait(mean_s);
            }
        }
    }
    events.sort_by(|one, other| one.at_s.total_cmp(&other.at_s));
    events
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}
