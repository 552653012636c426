//! P1 and P3 for the embedded stores under `kill -9`: after each death the store holds every batch that was
//! acknowledged, and it holds exactly the batches that its watermark says, each of them whole. And P12: a disk that is
//! full, or fails a sync, ends the store with an error that says so, and nothing that was acknowledged is lost.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use bytes::Bytes;
use forebay::ErrorKind;
use forebay::store::{Claim, Op, Store, StoreError};
use forebay::{Key, NamespaceName, Seq};

use crate::support::child::child_arguments;
use crate::support::stores::Kind;

const PATH_VARIABLE: &str = "FOREBAY_TEST_STORE";
const KIND_VARIABLE: &str = "FOREBAY_TEST_STORE_KIND";
const ACKNOWLEDGED: &str = "acknowledged ";
const FAILED: &str = "failed ";
const KEYS: u64 = 40;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().unwrap()
}

fn keys() -> Vec<Key> {
    let name = NamespaceName::parse("crash").unwrap();
    (0..KEYS).map(|place| Key::new(&name, &place.to_be_bytes()).unwrap()).collect()
}

/// Applies batches that write every key, until one fails. One value in each batch is large.
async fn apply_until_it_fails(store: &dyn Store) -> StoreError {
    let mut standing = Claim::new(None).unwrap().of(store).await.unwrap();
    let mut last = standing.progress.applied;
    loop {
        let ops: Vec<Op> = (1..)
            .zip(keys())
            .map(|(place, key)| {
                let seq = last.plus(place);
                let size = if seq.get().is_multiple_of(41) { 100_000 } else { 500 };
                Op { seq, key, value: Some(Bytes::from(vec![seq.get() as u8; size])) }
            })
            .collect();
        last = last.plus(KEYS);
        let batch = standing.next_batch(last, ops);
        if let Err(error) = store.apply(&batch).await {
            return error;
        }
        standing = standing.after(&batch);
        say(&format!("{ACKNOWLEDGED}{last}"));
    }
}

fn say(what: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("\n{what}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

fn child_store() -> Box<dyn Store> {
    let path = std::env::var(PATH_VARIABLE).expect("called by a test of this module");
    Kind::named(&std::env::var(KIND_VARIABLE).unwrap()).open(path).unwrap()
}

#[test]
#[ignore = "runs only as a child of a test below, which kills it"]
fn child_applies_until_killed() {
    let failed = runtime().block_on(apply_until_it_fails(&*child_store()));
    panic!("nobody killed this process: {failed:?}");
}

/// The disk fails once and works again; the store does not.
#[test]
#[ignore = "runs only as a child of a test below, whose disk fails"]
fn child_applies_until_it_fails() {
    let store = child_store();
    runtime().block_on(async {
        let StoreError::Fatal(error) = apply_until_it_fails(&*store).await else { panic!("it may pass?") };
        say(&format!("{FAILED}{:?}", error.kind()));
        let again = [store.claim(&Claim::new(None).unwrap()).await.err(), store.load(&keys()[0]).await.err()];
        assert!(again.iter().all(|error| matches!(error, Some(StoreError::Fatal(_)))), "{again:?}");
    });
}

/// Lets a child acknowledge `batches` batches, kills it in whatever it does next, and returns the last
/// sequence number that it acknowledged.
fn run_and_kill(kind: Kind, path: &Path, batches: usize) -> Seq {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(child_arguments(module_path!(), "child_applies_until_killed"))
        .env(PATH_VARIABLE, path)
        .env(KIND_VARIABLE, kind.name())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || {
        let line = lines.find_map(|line| line.unwrap().strip_prefix(ACKNOWLEDGED).map(str::to_owned));
        line.map(|seq| Seq::new(seq.parse().unwrap()))
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

fn holds_what_its_watermark_says(kind: Kind, path: &Path, acknowledged: Seq, death: &str) {
    runtime().block_on(async {
        let store = kind.open(path).unwrap();
        let watermark = store.standing().await.unwrap().progress.applied;
        assert!(watermark >= acknowledged, "{death}: {acknowledged} was lost, at {watermark}");
        let found = store.load_many(&keys()).await.unwrap();
        let versions: Vec<u64> = found.iter().flatten().map(|value| value.version.get()).collect();
        let expected: Vec<u64> = (watermark.get().saturating_sub(KEYS) + 1..=watermark.get()).collect();
        assert_eq!(versions, expected, "{death}: the data is not what watermark {watermark} says");
        for value in found.into_iter().flatten() {
            assert!(value.value.iter().all(|byte| *byte == value.version.get() as u8), "{death}");
        }
    });
}

fn kill_often(kind: Kind, rounds: usize) {
    let directory = tempfile::tempdir().unwrap();
    for round in 0..rounds {
        let acknowledged = run_and_kill(kind, directory.path(), 1 + round % 9);
        holds_what_its_watermark_says(kind, directory.path(), acknowledged, &format!("round {round}"));
    }
}

/// Runs a child in whose calls to the database strace injects something. Returns what it said, and the last sequence
/// number that it acknowledged.
fn run_injected(kind: Kind, store: &Path, child: &str, call: &str, injected: &str) -> (String, Seq) {
    let output = Command::new("strace")
        .args(["-f", "-o", "/dev/null", "-e", &format!("trace={call}"), "-P"])
        .arg(store.join(kind.database()))
        .args(["-e", &format!("inject={call}:{injected}")])
        .arg(std::env::current_exe().unwrap())
        .args(child_arguments(module_path!(), child))
        .env(PATH_VARIABLE, store)
        .env(KIND_VARIABLE, kind.name())
        .output()
        .expect("this test needs strace; install it (apt-get install strace)");
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let last = told.lines().filter_map(|line| line.strip_prefix(ACKNOWLEDGED)).next_back();
    let acknowledged = Seq::new(last.map_or(0, |seq| seq.parse().unwrap()));
    (told, acknowledged)
}

/// A death at a random moment seldom falls between two writes, so strace kills the child *in* one: when a
/// thread of it begins its n-th write to the database, for every n up to a bound.
fn kill_in_writes(kind: Kind, writes: usize) {
    let mut died = 0;
    for write in 1..=writes {
        let directory = tempfile::tempdir().unwrap();
        let store = directory.path().canonicalize().unwrap().join("store");
        let injected = format!("signal=KILL:when={write}");
        let (_, acknowledged) =
            run_injected(kind, &store, "child_applies_until_killed", kind.write_call(), &injected);
        holds_what_its_watermark_says(kind, &store, acknowledged, &format!("write {write}"));
        died += usize::from(acknowledged > Seq::ZERO);
    }
    assert!(died >= 10, "only {died} of {writes} children came as far as an acknowledgement");
}

/// The n-th call of a thread on the database fails, once.
fn fail_calls(kind: Kind, call: &str, errno: &str, expected: ErrorKind, nths: &[usize]) {
    for nth in nths {
        let directory = tempfile::tempdir().unwrap();
        let store = directory.path().canonicalize().unwrap().join("store");
        // It exists before anything fails.
        drop(kind.open(&store).unwrap());
        let injected = format!("error={errno}:when={nth}");
        let (told, acknowledged) =
            run_injected(kind, &store, "child_applies_until_it_fails", call, &injected);
        assert!(told.contains(&format!("{FAILED}{expected:?}")), "{call} {nth} fails with {errno}: {told}");
        assert!(told.contains("test result: ok"), "{call} {nth} fails with {errno}: {told}");
        holds_what_its_watermark_says(kind, &store, acknowledged, &format!("{call} {nth} failed"));
    }
}

#[test]
fn a_killed_process_leaves_whole_batches_in_sled() {
    kill_often(Kind::Sled, 25);
}

#[test]
fn a_killed_process_leaves_whole_batches_in_redb() {
    kill_often(Kind::Redb, 10);
    kill_often(Kind::RedbQuick, 5);
}

#[test]
fn a_killed_process_leaves_whole_batches_in_fjall() {
    kill_often(Kind::Fjall, 12);
}

#[cfg(target_os = "linux")]
#[test]
fn a_death_in_any_write_leaves_whole_batches_in_sled() {
    kill_in_writes(Kind::Sled, 40);
}

#[cfg(target_os = "linux")]
#[test]
fn a_death_in_any_write_leaves_whole_batches_in_redb() {
    kill_in_writes(Kind::Redb, 30);
}

#[cfg(target_os = "linux")]
#[test]
fn a_death_in_any_write_leaves_whole_batches_in_fjall() {
    kill_in_writes(Kind::Fjall, 20);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_and_a_failed_sync_end_a_store_and_lose_nothing() {
    for (kind, writes, syncs) in
        [(Kind::Sled, [8, 15], [4, 9]), (Kind::Redb, [30, 90], [5, 12]), (Kind::Fjall, [20, 40], [4, 9])]
    {
        fail_calls(kind, kind.write_call(), "ENOSPC", ErrorKind::DiskFull, &writes);
        fail_calls(kind, "fdatasync", "EIO", ErrorKind::Io, &syncs);
    }
}
