//! P1, P2 and P3 of the embedded stores under power cuts, rebuilt from their system calls.
//!
//! A child applies known batches to a store under `strace`: small ones, ones that make sled reuse its segments and
//! fjall write and merge tables, ones with values of many segments, with clean and unclean ends and reopenings in
//! between. From the trace come images of what a power cut at any moment could have left (see
//! `traced_disk.rs`: `sync_file_range` counts for nothing, names need their directory's sync). Each image is
//! opened: it has to hold everything that was acknowledged, and exactly the batches that its watermark says, and go on
//! from there.
//!
//! It found when it was new:
//! - While it opens, sled renames its new snapshot into place and then zeroes the segments that the snapshot does not
//!   need, without syncing the directory. With the zeros and without the name, sled's recovery took a store of thirty
//!   acknowledged batches for empty, for one of twenty-five, or for corrupt.
//! - sled writes the configuration of a new database in two parts and does not sync it. With half of it the store did
//!   not open any more, though nothing was lost yet.
//! - fjall never syncs the directory in which its keyspaces have theirs. Without them it passes over its journal
//!   without a word, and the store was empty.
//! - fjall does not open with a last batch of which the end is there and something before it is not.

mod strace;
mod traced_disk;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use bytes::Bytes;
use forebay::store::{Claim, Op, Store};
use forebay::{Key, NamespaceName, Seq};

use self::strace::{Action, Call};
use self::traced_disk::{Disk, SURVIVORS, Survivors};
use crate::support::budget::{self, budget};
use crate::support::child::child_arguments;
use crate::support::stores::Kind;

const PATH_VARIABLE: &str = "FOREBAY_TEST_STORE";
const KIND_VARIABLE: &str = "FOREBAY_TEST_STORE_KIND";
const PHASE_VARIABLE: &str = "FOREBAY_TEST_PHASE";
/// sled's segments begin at multiples of this.
const SEGMENT_BYTES: usize = 4 << 20;
const SEED: u64 = 20;
/// About how many moments of a run a pass looks at, those between syncs not counted.
const POINTS_PER_PASS: usize = 40;

/// One batch: per change the key and the value's size; `None` removes.
type Plan = Vec<(u64, Option<usize>)>;

/// The work of one process.
struct Phase {
    batches: Vec<Plan>,
    /// True if it closes the store and does not just end.
    closes: bool,
}

fn phase(closes: bool, batches: impl IntoIterator<Item = Plan>) -> Phase {
    Phase { batches: batches.into_iter().collect(), closes }
}

/// Many small batches, lone changes and many openings.
fn small() -> Vec<Phase> {
    let batch = |round: u64| -> Plan {
        (0..12)
            .map(|place| {
                (place * 3 % 20, (place != round % 7).then_some(50 + (place * round) as usize % 900))
            })
            .collect()
    };
    vec![
        phase(false, []),
        phase(true, (0..4).map(batch)),
        phase(false, (4..12).map(batch)),
        phase(false, (12..14).map(batch)),
        phase(true, (14..20).map(batch)),
        phase(false, (0..9).map(|round| vec![(round % 4, (round % 3 != 2).then_some(100))])),
        phase(true, [vec![(90, Some(200_000))], vec![(90, Some(70_000)), (1, None)], vec![(90, None)]]),
        phase(false, (20..22).map(batch)),
    ]
}

/// The same keys over and over, so that sled frees segments and uses them again, and the others merge and free.
fn reusing() -> Vec<Phase> {
    let batch =
        |round: u64| -> Plan { (0..20).map(|place| ((place * 7 + round) % 30, Some(36_000))).collect() };
    vec![
        phase(false, (0..24).map(batch)),
        phase(true, (24..30).map(batch)),
        phase(false, (30..36).map(batch)),
    ]
}

/// Batches and values of several segments, among small ones.
fn large() -> Vec<Phase> {
    let small = |round: u64| -> Plan { (0..10).map(|place| (place, Some(300 + round as usize))).collect() };
    let records: Plan = (20..370).map(|place| (place, Some(38_000))).collect();
    let value = |size: usize| -> Plan { vec![(1, Some(10)), (700, Some(size)), (2, None)] };
    vec![phase(false, [small(1), value(13 << 20), small(2)]), phase(false, [records, small(3), value(20)])]
}

fn workload(name: &str) -> Vec<Phase> {
    match name {
        "small" => small(),
        "reusing" => reusing(),
        "large" => large(),
        other => panic!("no workload {other}"),
    }
}

fn key(place: u64) -> Key {
    Key::new(&NamespaceName::parse("power").unwrap(), &place.to_be_bytes()).unwrap()
}

/// A value that names its sequence number in every sector. Text, which `strace` shows byte for byte.
fn value(seq: u64, size: usize) -> Bytes {
    let mut text = format!("{seq:07}|").repeat(size / 8 + 1);
    text.truncate(size);
    Bytes::from(text)
}

/// The store's content after a number of batches.
#[derive(Clone, Default)]
struct Model {
    watermark: u64,
    shown: BTreeMap<u64, (u64, usize)>,
}

/// The store after each batch; the first is the empty one.
fn models(phases: &[Phase]) -> Vec<Model> {
    let mut models = vec![Model::default()];
    for plan in phases.iter().flat_map(|phase| &phase.batches) {
        let mut model = models.last().unwrap().clone();
        for (key, size) in plan {
            model.watermark += 1;
            match size {
                Some(size) => model.shown.insert(*key, (model.watermark, *size)),
                None => model.shown.remove(key),
            };
        }
        models.push(model);
    }
    models
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().unwrap()
}

fn say(what: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("\n{what}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

/// The child: one phase of a workload.
#[test]
#[ignore = "runs only as a child of the other tests, which trace it"]
fn child_works() {
    let path = std::env::var(PATH_VARIABLE).expect("called by a test of this module");
    let kind = Kind::named(&std::env::var(KIND_VARIABLE).unwrap());
    let named = std::env::var(PHASE_VARIABLE).unwrap();
    let (name, nth) = named.split_once(' ').unwrap();
    let (phases, nth) = (workload(name), nth.parse::<usize>().unwrap());
    let mut watermark = models(&phases[..nth]).last().unwrap().watermark;
    let store = runtime().block_on(async {
        let store = kind.open(path).unwrap();
        say("claim begins");
        let mut standing = Claim::new(None).unwrap().of(&*store).await.unwrap();
        say("claim returned");
        assert_eq!(standing.progress.applied, Seq::new(watermark));
        for plan in &phases[nth].batches {
            let ops = (watermark + 1..).zip(plan).map(|(seq, (place, size))| Op {
                seq: Seq::new(seq),
                key: key(*place),
                value: size.map(|size| value(seq, size)),
            });
            let ops: Vec<Op> = ops.collect();
            watermark += ops.len() as u64;
            let batch = standing.next_batch(Seq::new(watermark), ops);
            say("apply begins");
            store.apply(&batch).await.unwrap();
            say("apply returned");
            standing = standing.after(&batch);
        }
        store
    });
    if !phases[nth].closes {
        // Nothing is dropped: as a killed process, but at a moment when the trace is whole.
        std::process::exit(0);
    }
    drop(store);
}

/// Runs all phases of a workload under `strace`, one process after the other.
fn record(kind: Kind, name: &str, directory: &Path) -> Vec<Call> {
    let mut calls = Vec::new();
    let mut first = 0;
    for nth in 0..workload(name).len() {
        let log = directory.join("trace");
        let output = Command::new("strace")
            .args(strace::STRACE)
            .arg("-o")
            .arg(&log)
            .arg(std::env::current_exe().unwrap())
            .args(child_arguments(module_path!(), "child_works"))
            .env(PATH_VARIABLE, directory.join("top/store"))
            .env(KIND_VARIABLE, kind.name())
            .env(PHASE_VARIABLE, format!("{name} {nth}"))
            .output()
            .expect("this test needs strace; install it (apt-get install strace)");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "the traced child failed, or strace may not trace here: {told}");
        let (traced, next) = strace::parse(&std::fs::read_to_string(log).unwrap(), first);
        calls.extend(traced);
        first = next;
    }
    strace::resolve_appends(&mut calls);
    calls
}

/// The numbers of the children's calls that had begun and returned.
struct Told {
    claims: (u64, u64),
    applies: (usize, usize),
}

impl Told {
    fn by(disk: &Disk<'_>) -> Told {
        let count = |what: &str| disk.said.iter().filter(|said| **said == what).count();
        Told {
            claims: (count("claim begins") as u64, count("claim returned") as u64),
            applies: (count("apply begins"), count("apply returned")),
        }
    }
}

/// Opens an image and compares it with the models. `Err` says what a power cut would have destroyed.
async fn check(kind: Kind, image: &Path, models: &[Model], told: &Told) -> Result<(), String> {
    let store = kind.open(image).map_err(|error| format!("does not open: {error}"))?;
    let watermark = holds(&*store, models, told).await?;
    // A recovery that left something behind would show in what comes next.
    let claim = Claim::new(None).map_err(|error| error.to_string())?;
    let standing = claim.of(&*store).await.map_err(|error| format!("claiming: {error:?}"))?;
    let next = Seq::new(watermark + 1);
    let op = Op { seq: next, key: key(9_999), value: Some(value(next.get(), 3_000)) };
    let batch = standing.next_batch(next, vec![op]);
    store.apply(&batch).await.map_err(|error| format!("applying: {error:?}"))?;
    drop(store);
    let store = kind.open(image).map_err(|error| format!("does not open a second time: {error}"))?;
    let mut last = models.iter().find(|model| model.watermark == watermark).unwrap().clone();
    last.watermark = next.get();
    last.shown.insert(9_999, (next.get(), 3_000));
    let told = Told { claims: (u64::MAX, standing.tenure.epoch.get()), applies: (0, 0) };
    holds(&*store, &[last], &told).await.map_err(|what| format!("after one more batch: {what}"))?;
    Ok(())
}

/// Checks that the store is what one of `models` says, and not too old. Returns its watermark.
async fn holds(store: &dyn Store, models: &[Model], told: &Told) -> Result<u64, String> {
    let standing = store.standing().await.map_err(|error| format!("reading the tenure: {error:?}"))?;
    let watermark = standing.progress.applied.get();
    let Some(at) = models.iter().position(|model| model.watermark == watermark) else {
        return Err(format!("its watermark {watermark} is no batch's end"));
    };
    let (begun, returned) = told.applies;
    if at < returned {
        return Err(format!("{returned} batches were acknowledged, and it holds {at}"));
    }
    if at > begun.max(models.len() - 1) {
        return Err(format!("{begun} batches were begun, and it holds {at}"));
    }
    let epoch = standing.tenure.epoch.get();
    if epoch < told.claims.1 || epoch > told.claims.0 {
        return Err(format!("its epoch is {epoch}, with claims {:?}", told.claims));
    }
    let places: std::collections::BTreeSet<u64> =
        models.iter().flat_map(|model| model.shown.keys().copied()).collect();
    let keys: Vec<Key> = places.iter().map(|place| key(*place)).collect();
    let found = store.load_many(&keys).await.map_err(|error| format!("loading: {error:?}"))?;
    for (place, found) in places.into_iter().zip(found) {
        let expected = models[at].shown.get(&place).copied();
        let is = found.as_ref().map(|found| (found.version.get(), found.value.len()));
        if is != expected {
            return Err(format!("at watermark {watermark} key {place} is {is:?} instead of {expected:?}"));
        }
        if let (Some(found), Some((seq, size))) = (found, expected)
            && found.value != value(seq, size)
        {
            return Err(format!("at watermark {watermark} the value of key {place} has other bytes"));
        }
    }
    Ok(watermark)
}

/// SplitMix64, as a source of numbers below a limit.
fn randomness(mut state: u64) -> impl FnMut(usize) -> usize {
    move |limit| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % limit as u64) as usize
    }
}

/// In memory where there is such a place: every opened image is synced.
fn scratch() -> tempfile::TempDir {
    let memory = PathBuf::from("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

fn cut_the_power(kind: Kind, name: &str, share_percent: u32, default: Duration) {
    let directory = scratch();
    let top = directory.path().canonicalize().unwrap().join("top");
    std::fs::create_dir(&top).unwrap();
    let calls = record(kind, name, directory.path());
    drop(std::fs::remove_file(directory.path().join("trace")));
    let events = traced_disk::events(&calls);
    let models = models(&workload(name));
    let written: usize = calls
        .iter()
        .map(|call| match &call.action {
            Action::Write { data, .. } => data.len(),
            _ => 0,
        })
        .sum();

    if kind == Kind::Sled {
        assert_opened_in_order(&calls, &top.join("store"));
    }

    let until = Instant::now() + budget(share_percent, default);
    // Every pass looks at the whole run, however little time there is: its end is where the most can be lost.
    let syncs = events.iter().filter(|event| is_sync_end(&calls, **event)).count();
    let one_in = syncs.div_ceil(POINTS_PER_PASS).max(1);
    let mut tried = Tried::default();
    while tried.passes == 0 || Instant::now() < until {
        let mut random = randomness(SEED + tried.passes);
        let mut disk = Disk::new(&calls, &top);
        for (place, event) in events.iter().enumerate() {
            // Just before a sync returns, the most is in doubt.
            let is_point = random(if is_sync_end(&calls, *event) { one_in } else { 8 * one_in }) == 0;
            let spent = Instant::now() > until;
            if disk.is_in_doubt() && is_point && !(spent && tried.passes > 0) {
                // Where much is in doubt, one image says little.
                let much = disk.bytes_in_doubt() > SEGMENT_BYTES;
                let kinds = if much && !spent { 2 * SURVIVORS.len() } else { 1 };
                let first = random(SURVIVORS.len());
                for survivors in SURVIVORS.iter().cycle().skip(first).take(kinds) {
                    let target = directory.path().join("image");
                    std::fs::create_dir(&target).unwrap();
                    disk.image(&target, *survivors, SEGMENT_BYTES, &mut random);
                    let checked =
                        runtime().block_on(check(kind, &target.join("store"), &models, &Told::by(&disk)));
                    std::fs::remove_dir_all(&target).unwrap();
                    let at = format!("pass {}, event {place} ({})", tried.passes, calls[event.0]);
                    tried.count(*survivors, checked, at);
                }
            }
            disk.step(*event);
        }
        tried.passes += 1;
    }
    budget::say(format_args!("{kind:?}, {name}: {} calls that wrote {written} bytes; {tried}", calls.len()));
    assert!(tried.images > 10, "only {} images were tried", tried.images);
    assert!(tried.broken.is_empty(), "{} broken:\n{}", tried.broken.len(), tried.broken.join("\n"));
}

fn is_sync_end(calls: &[Call], (at, ends): (usize, bool)) -> bool {
    ends && matches!(calls[at].action, Action::Sync { .. })
}

/// The stories above, without luck: from the renaming of a snapshot until the directory is synced nothing is written to
/// the database, and the configuration is never written where it lies.
fn assert_opened_in_order(calls: &[Call], store: &Path) {
    let mut renamed = None;
    let mut renames = 0;
    for call in calls {
        match &call.action {
            Action::Rename { to, .. } if to.starts_with(store) => {
                let name = to.file_name().unwrap().to_str().unwrap();
                if to.parent() == Some(store) && name.starts_with("snap.") {
                    renamed = Some(call);
                    renames += 1;
                }
            }
            Action::Sync { path } if path == store => renamed = None,
            Action::Write { path, .. } if *path == store.join("db") => {
                assert!(renamed.is_none(), "{call}, and nothing has made durable: {}", renamed.unwrap());
            }
            Action::Write { path, .. } => {
                assert!(*path != store.join("conf"), "half of it may survive: {call}");
            }
            _ => {}
        }
    }
    assert!(renames > 0, "sled wrote no snapshot, so nothing was checked");
}

/// The count of what was tried, by outcome.
#[derive(Default)]
struct Tried {
    passes: u64,
    images: usize,
    by_survivors: BTreeMap<String, usize>,
    broken: Vec<String>,
}

impl Tried {
    fn count(&mut self, survivors: Survivors, outcome: Result<(), String>, at: String) {
        self.images += 1;
        *self.by_survivors.entry(format!("{survivors:?}")).or_default() += 1;
        if let Err(what) = outcome {
            self.broken.push(format!("{at}, {survivors:?}: {what}"));
        }
    }
}

impl std::fmt::Display for Tried {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Tried { passes, images, by_survivors, broken } = self;
        write!(f, "{images} images in {passes} passes, {} of them broken {by_survivors:?}", broken.len())
    }
}

#[test]
fn small_batches_in_sled_survive_power_cuts() {
    cut_the_power(Kind::Sled, "small", 3, Duration::from_secs(2));
}

#[test]
fn reused_segments_in_sled_survive_power_cuts() {
    cut_the_power(Kind::Sled, "reusing", 4, Duration::from_secs(3));
}

#[test]
fn batches_of_several_segments_in_sled_survive_power_cuts() {
    cut_the_power(Kind::Sled, "large", 3, Duration::from_secs(2));
}

#[test]
fn batches_in_redb_survive_power_cuts() {
    cut_the_power(Kind::Redb, "small", 2, Duration::from_secs(1));
    cut_the_power(Kind::Redb, "reusing", 2, Duration::from_secs(1));
    cut_the_power(Kind::RedbQuick, "small", 2, Duration::from_secs(1));
}

#[test]
fn large_batches_in_redb_survive_power_cuts() {
    cut_the_power(Kind::Redb, "large", 2, Duration::from_secs(2));
}

#[cfg(feature = "fjall")]
#[test]
fn batches_in_fjall_survive_power_cuts() {
    cut_the_power(Kind::Fjall, "small", 2, Duration::from_secs(2));
    cut_the_power(Kind::Fjall, "reusing", 3, Duration::from_secs(2));
}

#[cfg(feature = "fjall")]
#[test]
fn large_batches_in_fjall_survive_power_cuts() {
    cut_the_power(Kind::Fjall, "large", 2, Duration::from_secs(2));
}
