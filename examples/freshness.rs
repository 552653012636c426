//! Each way to serve what may be stale, in front of a source that is slow and sometimes down, as a printed time line.
//!
//! ```sh
//! cargo run --release --example freshness
//! ```
//!
//! The time is a clock of the example's own, so that it passes quickly; the source needs 2 s of it for an answer.
//! A row is one read: when it began, what it got, how old that was, where it came from, and how long it took.

#![allow(clippy::print_stdout, reason = "it is a program that prints")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use anyhow::Result;
use forebay::testkit::ManualClock;
use forebay::{Cache, CacheBuilder, Clock, Entry, Forebay, Loaded, MemoryStore, ReadOptions, WritePolicy};

const SLOW: Duration = Duration::from_secs(2);

/// Somebody else's service: each answer is a new version, and takes two seconds.
#[derive(Clone)]
struct Service {
    clock: ManualClock,
    answers: Arc<AtomicU64>,
    down: Arc<AtomicBool>,
}

impl Service {
    async fn price(self) -> Result<Option<u64>, String> {
        self.clock.advance(SLOW);
        if self.down.load(SeqCst) {
            return Err("the service is down".into());
        }
        Ok(Some(self.answers.fetch_add(1, SeqCst) + 1))
    }
}

/// A clock, a source, and a layer on them.
struct Line {
    clock: ManualClock,
    service: Service,
    bay: Forebay,
    began: Duration,
}

impl Line {
    async fn begin(title: &str) -> Result<Line> {
        println!("\n{title}");
        println!("{:>8}  {:<22} {:>6}  {:<8} {:>6}  remark", "time", "read", "age", "from", "took");
        let clock = ManualClock::new();
        let service = Service { clock: clock.clone(), answers: Arc::default(), down: Arc::default() };
        let bay = Forebay::builder(MemoryStore::new()).clock(clock.clone()).open().await?;
        Ok(Line { began: clock.now(), clock, service, bay })
    }

    fn cache(&self) -> CacheBuilder<u32, u64> {
        self.bay.cache("prices")
    }

    fn wait(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }

    fn break_down(&self, down: bool) {
        self.service.down.store(down, SeqCst);
        println!(
            "{:>7}s  -- the source is {} --",
            self.now().as_secs(),
            if down { "down" } else { "up again" }
        );
    }

    fn now(&self) -> Duration {
        self.clock.now().saturating_sub(self.began)
    }

    async fn read(&self, cache: &Cache<u32, u64>, options: &ReadOptions) {
        let (began, service) = (self.now(), self.service.clone());
        let read = cache.get_or_load_with(&1, options, |_| service.price()).await;
        let took = self.now().saturating_sub(began);
        let row = |what: &str, age: &str, from: &str, remark: &str| {
            println!(
                "{:>7}s  {what:<22} {age:>6}  {from:<8} {:>5}s  {remark}",
                began.as_secs(),
                took.as_secs()
            );
        };
        match read {
            Ok(Entry { value, age, source, stale, error, .. }) => {
                let what = value.map_or("nothing".into(), |version| format!("version {version}"));
                let stale = stale.map_or(String::new(), |excuse| format!("stale: {excuse:?}"));
                let error = error.map_or(String::new(), |error| format!("; {error:#}"));
                row(&what, &format!("{}s", age.as_secs()), &format!("{source:?}"), &(stale + &error));
            }
            Err(error) => row("an error", "", "", &format!("{error:#}")),
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let (as_offered, minute) = (ReadOptions::new(), Duration::from_secs(60));

    let line = Line::begin("Time to live of 60 s: every minute somebody waits for the source.").await?;
    let cache = line.cache().time_to_live(minute).open()?;
    for wait in [0, 30, 28, 1, 59] {
        line.wait(wait);
        line.read(&cache, &as_offered).await;
    }
    println!("          -- from now on 10 s, for what is there, too --");
    cache.set_time_to_live(Some(Duration::from_secs(10)))?;
    line.wait(8);
    line.read(&cache, &as_offered).await;

    let line =
        Line::begin("... and a reader who accepts 20 s, one who accepts nothing, of the same cache.").await?;
    let cache = line.cache().time_to_live(minute).open()?;
    line.read(&cache, &as_offered).await;
    line.wait(25);
    line.read(&cache, &as_offered).await;
    line.read(&cache, &ReadOptions::new().max_staleness(Duration::from_secs(20))).await;
    line.read(&cache, &ReadOptions::new().max_staleness(Duration::ZERO)).await;

    let line = Line::begin("... with 30 s of stale-while-revalidate: nobody waits.").await?;
    let cache = line.cache().time_to_live(minute).stale_while_revalidate(minute / 2).open()?;
    line.read(&cache, &as_offered).await;
    line.wait(70);
    line.read(&cache, &as_offered).await;
    // Somebody with less patience for old values joins the load in the background.
    line.read(&cache, &ReadOptions::new().max_staleness(Duration::from_secs(5))).await;
    line.read(&cache, &as_offered).await;

    let line =
        Line::begin("... with an hour of stale-if-error: a source that is down is asked once in 10 s.")
            .await?;
    let cache =
        line.cache().time_to_live(minute).stale_if_error(60 * minute).load_throttle(minute / 6).open()?;
    line.read(&cache, &as_offered).await;
    line.wait(70);
    line.break_down(true);
    for wait in [0, 3, 3, 10] {
        line.wait(wait);
        line.read(&cache, &as_offered).await;
    }
    line.break_down(false);
    line.wait(10);
    line.read(&cache, &as_offered).await;
    println!("          loads that failed: {}", cache.stats().failed_loads);

    let line =
        Line::begin("Early refresh (XFetch, beta 8): some read in the last seconds reloads before the end.")
            .await?;
    let cache = line.cache().time_to_live(minute).early_refresh(8.0).open()?;
    line.read(&cache, &as_offered).await;
    for wait in [30, 10, 5, 5, 5] {
        line.wait(wait);
        line.read(&cache, &as_offered).await;
        tokio::task::yield_now().await;
    }
    println!("          loads in the background: {}", cache.stats().background_loads);

    let line = Line::begin("An absence is remembered for 5 s.").await?;
    let cache = line.cache().negative_time_to_live(Duration::from_secs(5)).open()?;
    for wait in [0, 3, 2] {
        line.wait(wait);
        let clock = line.clock.clone();
        let asks = move |_| async move {
            clock.advance(SLOW);
            Ok::<_, String>(Loaded::<u64>::absent())
        };
        let began = line.now();
        let entry = cache.get_or_load_with(&1, &as_offered, asks).await?;
        let took = line.now().saturating_sub(began).as_secs();
        println!(
            "{:>7}s  {:<22} {:>5}s  {:<8} {took:>5}s",
            began.as_secs(),
            "nothing",
            entry.age.as_secs(),
            format!("{:?}", entry.source)
        );
    }

    let line = Line::begin("Written around memory: the next reader asks the store.").await?;
    let cache = line.cache().write_policy(WritePolicy::Around).open()?;
    cache.put(&1, 1).await?;
    line.read(&cache, &as_offered).await;
    line.read(&cache, &as_offered).await;
    Ok(())
}
