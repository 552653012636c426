//! Mutants: one safeguard at a time is left out, and the tests have to notice.
//!
//! Each mutant runs the tests that are named for it, in processes of their own with `FOREBAY_WITHOUT` set, until one of
//! them fails. One that none of them notices is a missing test. A test that hangs has noticed nothing.
//!
//! A program of its own, so that nothing else runs beside the mutants: a busy machine makes some interleavings rare.
//!
//! `FOREBAY_WITHOUT=Nonce cargo test --test faults images` does the same by hand; `FOREBAY_MUTANT` narrows this test to
//! some of them (comma-separated).

#![cfg(forebay_mutation)]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    unreachable_pub,
    reason = "these are tests; their modules share what is public in them"
)]

#[path = "../support/mod.rs"]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use forebay::safeguard::Safeguard;

use crate::support::budget;
use crate::support::simulated_build::simulated;

/// Longer than any of these tests takes where it passes.
const PATIENCE: Duration = Duration::from_secs(150);

/// The number of mutants that run at once.
const AT_ONCE: usize = 2;

/// A program of tests, the build that it is of, and a part of its tests' paths.
type Test = (&'static str, Build, &'static str);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Build {
    Ordinary,
    /// With simulated threads.
    Simulated,
}

const IMAGES: Test = ("faults", Build::Ordinary, "images::journal");
const LAYER_IMAGES: Test = ("faults", Build::Ordinary, "images::layer");
const COUNTDOWN: Test = ("faults", Build::Ordinary, "countdown::");
const CORRUPTION: Test = ("faults", Build::Ordinary, "corruption::");
const POWER_CUT: Test = ("faults", Build::Ordinary, "power_cut::small");
const RACES: Test = ("simulation", Build::Simulated, "races::");
const FOLLOWERS: Test = ("simulation", Build::Simulated, "followers::followers_serve");
const SIMULATION: Test = ("simulation", Build::Simulated, "whole_layer::");
/// The library's own tests.
const UNIT: Test = ("forebay", Build::Ordinary, "journal::");
const CONFORMANCE: Test = ("stores", Build::Ordinary, "conforms");

const fn cache(filter: &'static str) -> Test {
    ("cache", Build::Ordinary, filter)
}

const fn feed(filter: &'static str) -> Test {
    ("feed", Build::Ordinary, filter)
}

const fn layer(filter: &'static str) -> Test {
    ("layer", Build::Ordinary, filter)
}

/// The tests that have to notice, in the order in which they run.
fn witnesses(safeguard: Safeguard) -> Vec<Test> {
    use Safeguard as S;
    match safeguard {
        S::DirectorySync | S::SegmentSync | S::TrimSync | S::SyncBeforeSuccessor => vec![IMAGES],
        S::Nonce => vec![LAYER_IMAGES, IMAGES],
        S::TailWrittenAgain => vec![COUNTDOWN, LAYER_IMAGES],
        S::NumberInChecksum | S::BodyChecksum | S::SyncedOffset | S::FormatVersion => vec![CORRUPTION],
        S::Continuity | S::Seal => vec![UNIT],
        S::PoisonAfterFailedSync => vec![COUNTDOWN],
        S::AcknowledgeAfterSync => vec![LAYER_IMAGES, SIMULATION],
        S::SyncBeforeApply => vec![LAYER_IMAGES, layer("watermark::a_power_cut_under_buffered")],
        S::TrimBehindWatermark => vec![layer("watermark::what_the_store_lacks")],
        S::NumbersNeverReused | S::RetireByNumber | S::MemoryCatchesUp => vec![SIMULATION],
        S::SpillInOrder => vec![layer("watermark::writes_between_two_spills")],
        S::ThroughUnseenUntilApplied => vec![SIMULATION],
        S::FenceOnFill | S::FenceForAbsentKeys | S::GenerationOnFill | S::JoinNoOlderLoad => vec![RACES],
        S::RefreshBarsOlderLoads => vec![cache("cache_aside::what_a_refresh_found")],
        S::AgeFromLoadStart | S::LoadThrottle => vec![cache("expiration::")],
        S::ZeroToleranceReadsTheStore => vec![cache("staleness_bound::")],
        S::AroundDropsBefore | S::AroundDropsAfter => vec![cache("write_around")],
        S::NamespaceBelow => vec![cache("namespaces::a_namespace_is_invalidated_with")],
        S::TokenIsDurable => vec![cache("token")],
        S::GroupTag => vec![cache("namespaces::a_group")],
        S::SchemaIsCompared => vec![cache("schema")],
        S::TagFloor | S::TagsAreStored => vec![cache("tags_and_rules::")],
        S::ReadSetChecked | S::JoinNoBrokenLoad => vec![cache("read_sets::a_derived_value")],
        S::DirectivesAgain => vec![cache("tags_and_rules::what_was_loaded_while")],
        S::WritersTakeTurns => vec![cache("tags_and_rules::a_rule_is_told_exactly")],
        S::VersionsHeldToTheEnd | S::LateVersionStaysBehind => vec![cache("versions::")],
        S::ChangesBehindWatermark
        | S::CursorHoldsJournal
        | S::LostPlaceIsTold
        | S::ThroughLeavesNotice
        | S::CursorSync => vec![feed("change_stream::")],
        S::GapIsNoticed | S::LostPlaceEmptiesMemory | S::DirectivesBeforePosition | S::OldOwnerRefused => {
            vec![feed("following::events"), FOLLOWERS]
        }
        S::OutsideMayBeMissing => vec![feed("following::events")],
        S::ProofBeforeLook => vec![("forebay", Build::Ordinary, "a_proof_counts"), FOLLOWERS],
        S::SilenceIsStaleness | S::ReceiptReadsPastMemory => vec![feed("following::staleness")],
        S::PublishBeforeAcknowledge => vec![feed("following::publishing")],
        S::DropWhatIsInDoubt | S::UnsettledReads => vec![layer("writes::")],
        S::ParkLaterWrites => vec![LAYER_IMAGES, layer("parked")],
        S::JournalReachesWatermark => vec![layer("watermark::a_journal_that_ends")],
        S::EpochFence => vec![SIMULATION],
        S::ApplyOnce | S::TenureIdentity | S::NoHoleBeforeBatch | S::RepeatByNumber => vec![CONFORMANCE],
        S::BatchIsDense => vec![("forebay", Build::Ordinary, "flush::accounts")],
        S::WitnessIsCompared | S::TailIsRetained => vec![layer("refeeding::")],
        S::WatermarkInTransaction | S::StoreSync => vec![POWER_CUT],
    }
}

/// The outcome of a test.
enum Verdict {
    Passed,
    /// After how many seeds.
    Failed(u64),
    Hung,
}

#[test]
fn every_missing_safeguard_is_noticed() {
    let began = Instant::now();
    let only = std::env::var("FOREBAY_MUTANT").ok();
    let mutants: Vec<_> = Safeguard::ALL
        .iter()
        .filter(|(_, name, _)| only.as_ref().is_none_or(|only| only.split(',').any(|one| one == *name)))
        .collect();
    assert!(!mutants.is_empty(), "FOREBAY_MUTANT names no safeguard");
    let binaries = build(mutants.iter().flat_map(|(safeguard, _, _)| witnesses(*safeguard)).collect());
    let scratch = tempfile::tempdir().unwrap();
    let next = AtomicUsize::new(0);
    let found = Mutex::new(BTreeMap::new());
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some((at, (safeguard, name, _))) =
                    mutants.iter().enumerate().nth(next.fetch_add(1, Relaxed))
                {
                    let noticed = witnesses(*safeguard).into_iter().find_map(|test| {
                        match run(&binaries[&test], test.2, name, &scratch.path().join(name)) {
                            Verdict::Passed => None,
                            Verdict::Failed(seeds) => Some(Ok((format!("{} {}", test.0, test.2), seeds))),
                            Verdict::Hung => Some(Err(format!("{name}: {} {} hangs", test.0, test.2))),
                        }
                    });
                    found.lock().unwrap().insert(at, noticed);
                }
            });
        }
    });
    let mut missed = Vec::new();
    budget::say(format_args!(
        "| without | what it does | noticed by | after seeds |\n| --- | --- | --- | --- |"
    ));
    for ((_, name, what), noticed) in mutants.iter().zip(found.into_inner().unwrap().into_values()) {
        match noticed {
            Some(Ok((test, seeds))) => budget::say(format_args!("| `{name}` |{what} | `{test}` | {seeds} |")),
            Some(Err(hung)) => missed.push(hung),
            None => missed.push(format!("{name}: nobody noticed")),
        }
    }
    budget::say(format_args!("{} mutants in {:.0?}", mutants.len(), began.elapsed()));
    assert!(missed.is_empty(), "{missed:#?}");
}

/// Builds the programs of tests, as far as they are not built, and finds them.
fn build(tests: BTreeSet<Test>) -> BTreeMap<Test, PathBuf> {
    let builds: BTreeSet<Build> = tests.iter().map(|(_, build, _)| *build).collect();
    let mut built: BTreeMap<(Build, String), PathBuf> = BTreeMap::new();
    for build in builds {
        let mut cargo = Command::new(env!("CARGO"));
        // In the development profile whatever this test's is: a release has no safeguard to do without.
        cargo.args(["test", "--no-run", "--message-format=json", "--manifest-path"]);
        cargo.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"));
        match build {
            Build::Simulated => simulated(&mut cargo),
            // With the members' features this is a test of the whole workspace, which has built all of it already.
            Build::Ordinary if cfg!(feature = "nats") => drop(cargo.arg("--workspace")),
            // The tests of the stores are of all stores.
            Build::Ordinary => drop(cargo.args(["--package", "forebay", "--features", "fjall,redb"])),
        }
        let names: BTreeSet<&str> = tests.iter().filter(|test| test.1 == build).map(|test| test.0).collect();
        for name in names {
            if name == UNIT.0 {
                cargo.arg("--lib")
            } else {
                cargo.args(["--test", name])
            };
        }
        let output = cargo.output().expect("cargo can be started");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        for line in output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let message: serde_json::Value = serde_json::from_slice(line).expect("cargo writes JSON");
            let text = |at: &str| message.pointer(at).and_then(serde_json::Value::as_str);
            // The operator's binary comes along, and has the library's name.
            let is_test = message.pointer("/profile/test").and_then(serde_json::Value::as_bool) == Some(true);
            if let (Some(name), Some(path), true) = (text("/target/name"), text("/executable"), is_test) {
                built.insert((build, name.to_owned()), path.into());
            }
        }
    }
    let path = |test: &Test| built.get(&(test.1, test.0.to_owned())).cloned();
    tests
        .into_iter()
        .map(|test| (test, path(&test).unwrap_or_else(|| panic!("cargo built no {}", test.0))))
        .collect()
}

/// Runs the tests of a program whose paths contain `filter`, without a safeguard.
fn run(binary: &Path, filter: &str, without: &str, output: &Path) -> Verdict {
    let file = File::create(output).unwrap();
    let mut child = Command::new(binary)
        .arg(filter)
        .env("FOREBAY_WITHOUT", without)
        // What takes CI's share of time without a safeguard is noticed in it.
        .env_remove("FOREBAY_BUDGET")
        .env("RUST_BACKTRACE", "0")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdout(file.try_clone().unwrap())
        .stderr(file)
        .spawn()
        .unwrap();
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if began.elapsed() > PATIENCE {
            child.kill().unwrap();
            child.wait().unwrap();
            return Verdict::Hung;
        }
        // Std has no wait with a limit; nothing but this loop's end hangs on how long this is.
        thread::sleep(Duration::from_millis(20));
    };
    let said = std::fs::read_to_string(output).unwrap();
    assert!(!said.contains("running 0 tests"), "{filter} names no test of {}", binary.display());
    if status.success() {
        return Verdict::Passed;
    }
    // The first seed is 0, and a failure names its own.
    let seed = said.rsplit("FOREBAY_SEED=").next().filter(|_| said.contains("FOREBAY_SEED="));
    let digits = seed.map(|rest| rest.chars().take_while(char::is_ascii_digit).collect::<String>());
    Verdict::Failed(
        digits.and_then(|digits| digits.parse::<u64>().ok()).map_or(1, |seed| seed.saturating_add(1)),
    )
}
