//! The consistency monitor, with followers whose answers are scripted. Time is the runtime's and passes at once where
//! everybody waits, so a minute is over when its last answer is.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use forebay::monitor::{Monitor, MonitorReport, Observation, Observer, Reason, Served, Share, Trouble};
use forebay::store::BoxFuture;
use forebay::testkit::faulty_bus::{BusFaults, FaultyBus};
use forebay::{
    Cache, ChangeOutcome, Error, ErrorKind, Follow, Forebay, Key, LocalBus, MemoryStore, NamespaceName,
    Publish, Result, Seq,
};
use metrics::{Counter, Gauge, Histogram, KeyName, Metadata, Recorder, SharedString, Unit};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

const MINUTE: Duration = Duration::from_secs(60);

/// The behaviour of a follower.
#[derive(Clone, Copy, Debug)]
enum Script {
    /// Serves what was written.
    Prompt,
    /// Serves what was written so long ago.
    Lags(Duration),
    /// Serves what was written and then, after so long, something older.
    FallsBack(Duration),
    /// Serves what it had before, for ever, and does not know why.
    NeverHeals,
    /// Has nothing in memory, because it misses events.
    ReadsTheStore,
    /// Has it in memory that there is no value, since some time.
    KnowsOfNone,
    /// Answers with an error.
    Fails,
    /// Does not answer.
    Hangs,
    /// Panics.
    Panics,
}

struct Follower {
    name: String,
    script: Script,
    writes: Arc<Mutex<BTreeMap<Key, (Seq, Instant)>>>,
    asked: Mutex<Vec<Duration>>,
}

impl Observer for Follower {
    fn name(&self) -> &str {
        &self.name
    }

    fn observe<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Observation>> {
        Box::pin(async move {
            let (seq, written) = self.writes.lock().unwrap()[key];
            self.asked.lock().unwrap().push(written.elapsed());
            let (current, old) = (Some(seq), Some(Seq::new(seq.get().saturating_sub(2))));
            let (version, state, heard_until, trouble) = match self.script {
                Script::Prompt => (current, Served::Fresh, current, None),
                Script::Lags(by) if written.elapsed() < by => (old, Served::Fresh, old, None),
                Script::Lags(_) => (current, Served::Fresh, current, None),
                Script::FallsBack(after) if written.elapsed() < after => {
                    (current, Served::Fresh, current, None)
                }
                Script::FallsBack(_) => (old, Served::Fresh, current, Some(Trouble::Gap)),
                Script::NeverHeals => (old, Served::Fresh, current, None),
                Script::ReadsTheStore => (None, Served::Store, old, Some(Trouble::Gap)),
                Script::KnowsOfNone => (None, Served::Absent, current, None),
                Script::Fails => {
                    return Err(Error::new(ErrorKind::Transient, "asking eu-3: it refused the connection"));
                }
                Script::Hangs => pending().await,
                Script::Panics => panic!("the test's observer panics"),
            };
            Ok(Observation { version, state, heard_until, trouble })
        })
    }
}

/// Followers of one layer, and a monitor that asks them.
struct World {
    monitor: Monitor,
    writes: Arc<Mutex<BTreeMap<Key, (Seq, Instant)>>>,
    followers: Vec<Arc<Follower>>,
}

impl World {
    fn new(monitor: Monitor, followers: &[(&str, Script)]) -> World {
        let writes = Arc::default();
        let follower = |(name, script): &(&str, Script)| {
            let (name, writes, asked) = ((*name).to_owned(), Arc::clone(&writes), Mutex::default());
            Arc::new(Follower { name, script: *script, writes, asked })
        };
        let followers = followers.iter().map(follower).collect();
        World { monitor, writes, followers }
    }

    fn run(&self) -> JoinHandle<Result<()>> {
        let monitor = self.monitor.clone();
        let observers =
            self.followers.iter().map(|follower| Arc::clone(follower) as Arc<dyn Observer>).collect();
        tokio::spawn(async move { monitor.run(observers).await })
    }

    fn write(&self, seqs: std::ops::RangeInclusive<u64>) {
        for seq in seqs {
            self.writes.lock().unwrap().insert(key(seq), (Seq::new(seq), Instant::now()));
            self.monitor.committed(&key(seq), Seq::new(seq));
        }
    }

    /// Asks all followers for so many writes, to the end.
    async fn measure(&self, writes: u64) -> MonitorReport {
        let running = self.run();
        self.write(11..=10 + writes);
        self.monitor.close();
        running.await.unwrap().unwrap();
        self.monitor.report()
    }
}

fn key(number: u64) -> Key {
    Key::new(&NamespaceName::parse("products").unwrap(), format!("k{number}").as_bytes()).unwrap()
}

fn all() -> Monitor {
    Monitor::builder().share(1.0).build().unwrap()
}

fn consistent(shares: &[Share]) -> Vec<u64> {
    shares.iter().map(|share| share.consistent).collect()
}

#[tokio::test(start_paused = true)]
async fn the_share_within_each_delay_is_told_of_each_follower_and_of_all() {
    let lags = Script::Lags(Duration::from_secs(5));
    let world =
        World::new(all(), &[("prompt", Script::Prompt), ("late", lags), ("bare", Script::ReadsTheStore)]);
    let began = Instant::now();
    let report = world.measure(8).await;
    assert_eq!(began.elapsed(), MINUTE, "the last answer is that after a minute");
    assert_eq!((report.writes, report.sampled, report.skipped, report.in_flight), (8, 8, 0, 0));
    assert_eq!((report.abandoned, report.late_max), (0, Duration::ZERO));
    let delays: Vec<Duration> = report.overall.iter().map(|share| share.delay).collect();
    assert_eq!(delays, [0, 1, 10, 60].map(Duration::from_secs));
    let names: Vec<&str> = report.followers.iter().map(|follower| follower.name.as_str()).collect();
    assert_eq!(names, ["prompt", "late", "bare"]);
    assert_eq!(consistent(&report.followers[0].shares), [8, 8, 8, 8]);
    assert_eq!(consistent(&report.followers[1].shares), [0, 0, 8, 8]);
    assert_eq!(consistent(&report.followers[2].shares), [8, 8, 8, 8], "the store is never too old");
    assert_eq!(consistent(&report.overall), [0, 0, 8, 8], "a write is consistent where all followers are");
    assert!(report.overall.iter().all(|share| share.asked == 8 && share.unreachable == 0));
    assert_eq!(report.overall[1].ratio(), Some(0.0));
    assert_eq!(report.followers[1].reasons, [(Reason::Lag, 16)]);
    assert_eq!(report.offenders.len(), 8);
    let first = &report.offenders[0];
    assert_eq!((first.delay, first.healed), (Duration::from_secs(1), Some(Duration::from_secs(10))));
    assert_eq!(
        (first.served, first.lag, first.reason),
        (Some(Seq::new(first.seq.get() - 2)), 2, Reason::Lag)
    );
    for follower in &world.followers {
        let mut asked = follower.asked.lock().unwrap().clone();
        asked.sort();
        asked.dedup();
        assert_eq!(asked, delays, "each is asked after each delay, and at no other time");
    }
}

#[tokio::test(start_paused = true)]
async fn what_never_heals_is_the_worst_and_is_not_explained_away() {
    let monitor = Monitor::builder().share(1.0).offenders_max(3).build().unwrap();
    let lags = Script::Lags(Duration::from_secs(5));
    let falls_back = Script::FallsBack(Duration::from_secs(30));
    let followers =
        [("late", lags), ("fallen", falls_back), ("broken", Script::NeverHeals), ("gone", Script::Fails)];
    let world = World::new(monitor, &followers);
    let report = world.measure(2).await;
    assert_eq!(consistent(&report.followers[1].shares), [2, 2, 2, 0], "what was right may become wrong");
    assert_eq!(report.followers[1].reasons, [(Reason::Gap, 2)]);
    assert_eq!(consistent(&report.followers[2].shares), [0, 0, 0, 0]);
    assert_eq!(report.followers[2].reasons, [(Reason::Unexplained, 8)]);
    assert_eq!(report.followers[3].reasons, [(Reason::Unreachable, 8)]);
    assert!(report.followers[3].shares.iter().all(|share| share.unreachable == 2 && share.consistent == 0));
    assert_eq!(consistent(&report.overall), [0, 0, 0, 0]);
    assert_eq!(report.offenders.len(), 3, "as many as were to be kept");
    for offender in &report.offenders {
        assert!(["broken", "fallen"].contains(&offender.follower.as_str()), "{offender:?}");
        assert_eq!((offender.delay, offender.healed), (MINUTE, None));
    }
}

/// A follower that does not answer is not asked later than the others, nor are they.
#[tokio::test(start_paused = true)]
async fn who_does_not_answer_holds_nobody_up() {
    let world = World::new(all(), &[("hangs", Script::Hangs), ("prompt", Script::Prompt)]);
    let began = Instant::now();
    let report = world.measure(3).await;
    assert_eq!(began.elapsed(), MINUTE + Duration::from_secs(5), "the patience with the last answer");
    assert_eq!(report.late_max, Duration::ZERO);
    assert_eq!(report.followers[0].reasons, [(Reason::Unreachable, 12)]);
    assert_eq!(consistent(&report.followers[1].shares), [3, 3, 3, 3]);
    let error = report.offenders[0].error.as_deref().unwrap();
    assert_eq!(error, "asking \"hangs\" what it serves: no answer within 5s");
}

#[tokio::test(start_paused = true)]
async fn what_nobody_can_tell_is_part_of_no_share() {
    let followers = [("absent", Script::KnowsOfNone), ("late", Script::Lags(Duration::from_secs(5)))];
    let world = World::new(all(), &followers);
    let report = world.measure(3).await;
    let absent = &report.followers[0];
    assert!(absent.shares.iter().all(|share| (share.asked, share.unknown, share.ratio()) == (0, 3, None)));
    assert!(absent.reasons.is_empty() && report.offenders.iter().all(|offender| offender.follower == "late"));
    let overall: Vec<(u64, u64)> = report.overall.iter().map(|share| (share.asked, share.unknown)).collect();
    assert_eq!(
        overall,
        [(3, 0), (3, 0), (0, 3), (0, 3)],
        "what is wrong at one of them is known to be wrong"
    );
    assert!(report.to_string().contains("unknown 12"));
}

#[tokio::test(start_paused = true)]
async fn no_more_are_in_flight_than_was_said_and_the_others_are_counted() {
    let monitor = Monitor::builder().share(1.0).in_flight_max(3).build().unwrap();
    let world = World::new(monitor, &[("prompt", Script::Prompt)]);
    world.write(11..=15);
    let report = world.monitor.report();
    assert_eq!((report.writes, report.sampled, report.skipped, report.in_flight), (5, 3, 2, 3));
    let running = world.run();
    sleep(MINUTE + Duration::from_secs(1)).await;
    assert_eq!(world.monitor.in_flight(), 0, "their places are free again");
    world.write(16..=17);
    world.monitor.close();
    world.write(18..=19);
    running.await.unwrap().unwrap();
    let report = world.monitor.report();
    assert_eq!((report.writes, report.sampled, report.skipped, report.in_flight), (7, 5, 2, 0));
    assert_eq!(consistent(&report.overall), [5; 4]);
}

/// A question that waited for its turn is asked late, and the report says so.
#[tokio::test(start_paused = true)]
async fn being_asked_late_shows() {
    let world = World::new(all(), &[("prompt", Script::Prompt)]);
    world.write(11..=11);
    sleep(Duration::from_secs(3)).await;
    world.monitor.close();
    world.run().await.unwrap().unwrap();
    assert_eq!(world.monitor.report().late_max, Duration::from_secs(3));
}

#[tokio::test(start_paused = true)]
async fn a_run_that_is_dropped_and_an_observer_that_panics_leave_a_count() {
    let world = World::new(all(), &[("prompt", Script::Prompt)]);
    let running = world.run();
    world.write(11..=14);
    sleep(Duration::from_secs(2)).await;
    running.abort();
    assert!(running.await.unwrap_err().is_cancelled());
    // The tasks end when the runtime turns to them.
    while world.monitor.in_flight() > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.monitor.report().abandoned, 4);

    // Another run goes on with the figures.
    let followers = [("prompt", Script::Prompt), ("panics", Script::Panics)];
    let again = World::new(world.monitor.clone(), &followers);
    let running = again.run();
    again.write(15..=15);
    again.monitor.close();
    running.await.unwrap().unwrap();
    let report = again.monitor.report();
    assert_eq!((report.abandoned, report.in_flight), (5, 0));
    assert_eq!(consistent(&report.followers[0].shares), [5, 5, 1, 1]);
    assert_eq!(report.overall[0].asked, 4, "no round of the fifth one is whole");
}

#[test]
fn the_drawn_share_is_about_what_was_wanted() {
    for (share, expected) in [(0.01, 500..1_500), (0.25, 23_000..27_000), (1.0, 100_000..100_001)] {
        let monitor = Monitor::builder().share(share).in_flight_max(1).build().unwrap();
        let key = key(1);
        (1..=100_000).for_each(|seq| monitor.committed(&key, Seq::new(seq)));
        let report = monitor.report();
        assert_eq!((report.writes, report.sampled), (100_000, 1));
        assert!(expected.contains(&(report.sampled + report.skipped)), "{share}: {}", report.skipped);
    }
}

#[tokio::test(start_paused = true)]
async fn bad_options_and_names_are_told() {
    let refused = |builder: forebay::monitor::MonitorBuilder| {
        let error = builder.build().expect_err("a bad option");
        assert_eq!(error.kind(), ErrorKind::InvalidOption);
        format!("{error:#}")
    };
    let builder = Monitor::builder;
    assert!(refused(builder().share(0.0)).starts_with("share is 0; allowed is"));
    assert!(refused(builder().share(f64::NAN)).starts_with("share is NaN"));
    assert!(refused(builder().share(1.1)).starts_with("share is 1.1"));
    assert!(refused(builder().delays([])).starts_with("delays has 0"));
    assert!(refused(builder().delays([MINUTE; 17])).starts_with("delays has 17"));
    assert!(refused(builder().delays([MINUTE, MINUTE])).contains("allowed are rising ones"));
    assert!(refused(builder().delays([2_000 * MINUTE])).starts_with("delays is 120000s"));
    assert!(refused(builder().offenders_max(1_001)).starts_with("offenders_max is 1001"));
    assert!(refused(builder().in_flight_max(0)).starts_with("in_flight_max is 0"));
    assert!(refused(builder().patience(Duration::ZERO)).starts_with("patience is 0ns"));
    for names in [&[][..], &[""], &["a", "b", "a"], &[&"n".repeat(65)]] {
        let followers: Vec<(&str, Script)> = names.iter().map(|name| (*name, Script::Prompt)).collect();
        let error = World::new(all(), &followers).run().await.unwrap().expect_err("a bad name");
        assert_eq!(error.kind(), ErrorKind::InvalidOption, "{names:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_report_is_a_table() {
    let monitor = Monitor::builder().share(1.0).offenders_max(2);
    let monitor = monitor.delays([Duration::ZERO, Duration::from_secs(1)]).build().unwrap();
    let lags = Script::Lags(Duration::from_millis(300));
    let world = World::new(monitor, &[("eu-1", lags), ("eu-2", Script::Prompt), ("eu-3", Script::Fails)]);
    let shown = world.measure(1).await.to_string();
    let expected = "\
1 of 1 writes looked at, 0 in flight, 0 skipped, 0 abandoned; asked up to 0.000 s late
consistent after  0 s         1 s
eu-1              0.0000 %    100.0000 %  lag 1
eu-2              100.0000 %  100.0000 %
eu-3              0.0000 %    0.0000 %    unreachable 2
(every follower)  0.0000 %    0.0000 %

inconsistent  key           version  served  after  healed  why
eu-1          products/k11  11       9       0 s    1 s     lag, 2 behind
eu-3          products/k11  11       -       1 s    no      unreachable: asking eu-3: it refused the connection
";
    assert_eq!(shown, expected);
}

/// Keeps what it is told, by name and labels.
#[derive(Default)]
struct Told(Mutex<BTreeMap<String, Arc<AtomicU64>>>);

impl Told {
    fn figure(&self, key: &metrics::Key) -> Arc<AtomicU64> {
        let labels: Vec<String> =
            key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        let name = format!("{}{{{}}}", key.name(), labels.join(","));
        Arc::clone(self.0.lock().unwrap().entry(name).or_default())
    }
}

impl Recorder for Told {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &metrics::Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.figure(key))
    }

    fn register_gauge(&self, key: &metrics::Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.figure(key))
    }

    fn register_histogram(&self, _: &metrics::Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

#[tokio::test(start_paused = true)]
async fn the_metrics_facade_is_told_all_of_it_and_the_manual_names_it() {
    const PAGE: &str = include_str!("../../src/manual/monitor.md");
    let world =
        World::new(all(), &[("eu-1", Script::Lags(Duration::from_secs(5))), ("eu-2", Script::Prompt)]);
    world.measure(3).await;
    let told = Told::default();
    // Totals: telling them twice changes nothing.
    metrics::with_local_recorder(&told, || world.monitor.record_metrics());
    metrics::with_local_recorder(&told, || world.monitor.record_metrics());
    let figures = told.0.into_inner().unwrap();
    for (name, expected) in [
        ("forebay_monitor_writes_total{}", 3),
        ("forebay_monitor_sampled_total{}", 3),
        ("forebay_monitor_skipped_total{}", 0),
        ("forebay_monitor_abandoned_total{}", 0),
        ("forebay_monitor_in_flight{}", 0),
        ("forebay_monitor_writes_asked_total{delay_seconds=60}", 3),
        ("forebay_monitor_writes_consistent_total{delay_seconds=1}", 0),
        ("forebay_monitor_writes_consistent_total{delay_seconds=10}", 3),
        ("forebay_monitor_asked_total{delay_seconds=0,follower=eu-1}", 3),
        ("forebay_monitor_consistent_total{delay_seconds=0,follower=eu-1}", 0),
        ("forebay_monitor_consistent_total{delay_seconds=0,follower=eu-2}", 3),
        ("forebay_monitor_inconsistent_total{follower=eu-1,reason=lag}", 6),
    ] {
        let value = figures.get(name).unwrap_or_else(|| panic!("{name} was not told: {:?}", figures.keys()));
        assert_eq!(value.load(SeqCst), expected, "{name}");
    }
    for name in figures.keys() {
        let name = name.split('{').next().unwrap();
        assert!(PAGE.contains(&format!("`{name}`")), "the manual does not name {name}");
    }
}

/// Feeds the monitor from a layer's change stream; a follower that is fed from the same stream is
/// consistent at once, and one that nobody feeds never is.
#[tokio::test]
async fn the_change_stream_of_a_layer_feeds_it() {
    const WRITES: u64 = 20;
    let directory = tempfile::tempdir().unwrap();
    let builder = Forebay::builder(MemoryStore::new()).journal(directory.path()).changes(true);
    let bay = builder.open().await.unwrap();
    let cache: Cache<u64, u64> = bay.cache("products").open().unwrap();
    let delays = [Duration::ZERO, Duration::from_millis(50)];
    let monitor = Monitor::builder().share(1.0).delays(delays).build().unwrap();
    let world = World::new(monitor, &[("fed", Script::Prompt), ("forgotten", Script::NeverHeals)]);
    let running = world.run();
    let mut changes = bay.changes("monitor").await.unwrap();
    for number in 1..=WRITES {
        cache.put(&number, number).await.unwrap();
    }
    for _ in 0..WRITES {
        let ChangeOutcome::Change(change) = changes.next().await.unwrap() else { panic!("nothing was lost") };
        world.writes.lock().unwrap().insert(change.key.clone(), (change.seq, Instant::now()));
        world.monitor.committed(&change.key, change.seq);
    }
    world.monitor.close();
    running.await.unwrap().unwrap();
    let report = world.monitor.report();
    assert_eq!(consistent(&report.followers[0].shares), [WRITES; 2]);
    assert_eq!(consistent(&report.followers[1].shares), [0; 2]);
    bay.close().await.unwrap();
}

/// A layer that follows another process, and what it would serve of one cache.
struct Following {
    name: &'static str,
    layer: Forebay,
    cache: Cache<u64, u64>,
}

impl Observer for Following {
    fn name(&self) -> &str {
        self.name
    }

    fn observe<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Observation>> {
        let entry = self.cache.peek(&u64::from_le_bytes(key.key().try_into().unwrap()));
        let state = if entry.is_some() { Served::Fresh } else { Served::Store };
        let (version, heard_until) = (entry.and_then(|entry| entry.version), Some(self.layer.watermark()));
        Box::pin(async move { Ok(Observation { version, state, heard_until, trouble: None }) })
    }
}

/// Two real followers, one of which hears nothing of what the owner publishes: the monitor tells them apart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_hears_nothing_is_found() {
    const KEYS: u64 = 20;
    let directory = tempfile::tempdir().unwrap();
    let (store, bus) = (MemoryStore::new(), LocalBus::default());
    let builder = Forebay::builder(store.clone()).journal(directory.path()).changes(true);
    let owner = builder.open().await.unwrap();
    let products: Cache<u64, u64> = owner.cache("products").open().unwrap();
    let _publication = owner.publish(bus.clone(), Publish::to("products")).await.unwrap();
    for key in 0..KEYS {
        products.put(&key, 1).await.unwrap();
    }
    let warm = owner.flush().await.unwrap();

    let nothing = FaultyBus::new(bus.clone(), 1);
    nothing.set(BusFaults { drop_percent: 100, ..BusFaults::default() });
    let follow = |follow: Follow| Forebay::builder(store.clone()).follow(follow.lag_max(MINUTE)).open();
    let hears = follow(Follow::new(bus, "products")).await.unwrap();
    let deaf = follow(Follow::new(nothing, "products")).await.unwrap();
    let mut observers: Vec<Arc<dyn Observer>> = Vec::new();
    for (name, layer) in [("hears", &hears), ("deaf", &deaf)] {
        // It empties its memory when it begins to listen.
        while !layer.following().unwrap().listening {
            tokio::task::yield_now().await;
        }
        let cache: Cache<u64, u64> = layer.cache("products").open().unwrap();
        for key in 0..KEYS {
            assert_eq!(cache.get(&key).await.unwrap(), Some(1));
        }
        observers.push(Arc::new(Following { name, layer: layer.clone(), cache }));
    }

    let mut changes = owner.changes(warm).await.unwrap();
    for key in 0..KEYS {
        products.put(&key, 2).await.unwrap();
    }
    hears.wait_applied(owner.flush().await.unwrap()).await.unwrap();
    let monitor = Monitor::builder().share(1.0).delays([Duration::ZERO]).build().unwrap();
    for _ in 0..KEYS {
        let ChangeOutcome::Change(change) = changes.next().await.unwrap() else { panic!("nothing was lost") };
        monitor.committed(&change.key, change.seq);
    }
    monitor.close();
    monitor.run(observers).await.unwrap();
    let report = monitor.report();
    assert_eq!(consistent(&report.followers[0].shares), [KEYS]);
    assert_eq!(consistent(&report.followers[1].shares), [0]);
    assert_eq!(report.followers[1].reasons, [(Reason::Lag, KEYS)]);
    assert!(report.offenders.iter().all(|offender| offender.follower == "deaf" && offender.lag > 0));
}
