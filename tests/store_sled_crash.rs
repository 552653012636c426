//! P1 and P3 for the embedded store under `kill -9`: after each death the store holds every batch that was
//! acknowledged, and it holds exactly the batches that its watermark says, each of them whole.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "helpers of tests")]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use bytes::Bytes;
use forebay::ids::{Key, NamespaceName, Seq};
use forebay::store::contract::{Batch, Op, Progress, Store};
use forebay::store::sled::SledStore;

const PATH_VARIABLE: &str = "FOREBAY_TEST_STORE";
const ACKNOWLEDGED: &str = "acknowledged ";
const KEYS: u64 = 40;
const ROUNDS: usize = 25;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().unwrap()
}

fn keys() -> Vec<Key> {
    let name = NamespaceName::parse("crash").unwrap();
    (0..KEYS).map(|place| Key::new(&name, &place.to_be_bytes()).unwrap()).collect()
}

/// The child: every batch writes every key, until it is killed. One value in each batch is large.
#[test]
#[ignore = "runs only as a child of the test below, which kills it"]
fn child_applies_until_killed() {
    let path = std::env::var(PATH_VARIABLE).expect("called by the test of this file");
    runtime().block_on(async {
        let store = SledStore::open(path).unwrap();
        let tenure = store.claim(None).await.unwrap();
        let mut last = tenure.progress.applied;
        loop {
            let ops: Vec<Op> = (1..)
                .zip(keys())
                .map(|(place, key)| {
                    let seq = last.plus(place);
                    let size = if seq.0.is_multiple_of(41) { 100_000 } else { 500 };
                    Op { seq, key, value: Some(Bytes::from(vec![seq.0 as u8; size])) }
                })
                .collect();
            last = last.plus(KEYS);
            let progress = Progress { applied: last, journaled: last };
            store.apply(&Batch { epoch: tenure.epoch, ops, progress }).await.unwrap();
            let mut out = std::io::stdout().lock();
            out.write_all(format!("\n{ACKNOWLEDGED}{last}\n").as_bytes()).unwrap();
            out.flush().unwrap();
        }
    });
}

/// Lets a child acknowledge `batches` batches, kills it in whatever it does next, and returns the last
/// sequence number that it acknowledged.
fn run_and_kill(path: &Path, batches: usize) -> Seq {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_applies_until_killed", "--ignored", "--nocapture"])
        .env(PATH_VARIABLE, path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || {
        let line = lines.find_map(|line| line.unwrap().strip_prefix(ACKNOWLEDGED).map(str::to_owned));
        line.map(|seq| Seq(seq.parse().unwrap()))
    };
    let mut last =
        (0..batches).map(|_| next().expect("the child applies until it is killed")).last().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    while let Some(seq) = next() {
        last = seq;
    }
    last
}

fn holds_what_its_watermark_says(path: &Path, acknowledged: Seq, death: &str) {
    runtime().block_on(async {
        let store = SledStore::open(path).unwrap();
        let watermark = store.tenure().await.unwrap().progress.applied;
        assert!(watermark >= acknowledged, "{death}: {acknowledged} was lost, at {watermark}");
        let found = store.load_many(&keys()).await.unwrap();
        let versions: Vec<u64> = found.iter().flatten().map(|value| value.version.0).collect();
        let expected: Vec<u64> = (watermark.0.saturating_sub(KEYS) + 1..=watermark.0).collect();
        assert_eq!(versions, expected, "{death}: the data is not what watermark {watermark} says");
        for value in found.into_iter().flatten() {
            assert!(value.value.iter().all(|byte| *byte == value.version.0 as u8), "{death}");
        }
    });
}

#[test]
fn a_killed_process_leaves_whole_batches_and_their_watermark() {
    let directory = tempfile::tempdir().unwrap();
    for round in 0..ROUNDS {
        let acknowledged = run_and_kill(directory.path(), 1 + round % 9);
        holds_what_its_watermark_says(directory.path(), acknowledged, &format!("round {round}"));
    }
}

/// A death at a random moment seldom falls between two writes, so strace kills the child *in* one: when a
/// thread of it begins its n-th write to a file at an offset, for every n up to a bound.
#[cfg(target_os = "linux")]
#[test]
fn a_death_in_any_write_leaves_whole_batches_and_their_watermark() {
    const WRITES: usize = 40;
    let mut died = 0;
    for write in 1..=WRITES {
        let directory = tempfile::tempdir().unwrap();
        let output = Command::new("strace")
            .args(["-f", "-o", "/dev/null", "-e", "trace=pwrite64"])
            .args(["-e", &format!("inject=pwrite64:signal=KILL:when={write}")])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "child_applies_until_killed", "--ignored", "--nocapture"])
            .env(PATH_VARIABLE, directory.path().join("store"))
            .output()
            .expect("this test needs strace; install it (apt-get install strace)");
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        let last = told.lines().filter_map(|line| line.strip_prefix(ACKNOWLEDGED)).next_back();
        let acknowledged = Seq(last.map_or(0, |seq| seq.parse().unwrap()));
        holds_what_its_watermark_says(
            directory.path().join("store").as_path(),
            acknowledged,
            &format!("write {write}"),
        );
        died += usize::from(acknowledged > Seq::ZERO);
    }
    assert!(died > WRITES / 2, "only {died} of {WRITES} children came as far as an acknowledgement");
}
