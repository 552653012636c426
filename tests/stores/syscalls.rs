//! P1 for the embedded stores, seen from the kernel: when an apply has returned, an `fdatasync` of the database
//! file has begun after the last write to it and has succeeded. sled's own flush does neither.
//!
//! The tests run themselves as children under `strace` and read the trace.

use std::io::Write;
use std::path::Path;
use std::process::Command;

use bytes::Bytes;
use forebay::store::{Claim, Op};
use forebay::{Key, NamespaceName, Seq};

use crate::support::child::child_arguments;
use crate::support::stores::Kind;

const PATH_VARIABLE: &str = "FOREBAY_TEST_STORE";
const KIND_VARIABLE: &str = "FOREBAY_TEST_STORE_KIND";
const BYTES_VARIABLE: &str = "FOREBAY_TEST_VALUE_BYTES";
const BEGUN: &str = "apply-begins";
const ACKNOWLEDGED: &str = "apply-acknowledged";
const APPLIES: usize = 5;

/// The child. Ignored, since it does its work only where the tests below call it.
#[test]
#[ignore = "runs only as a child of the other tests, which trace it"]
fn child_applies() {
    let path = std::env::var(PATH_VARIABLE).expect("called by a test of this module");
    let bytes: usize = std::env::var(BYTES_VARIABLE).unwrap().parse().unwrap();
    let kind = Kind::named(&std::env::var(KIND_VARIABLE).unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let store = kind.open(path).unwrap();
        let mut standing = Claim::new(None).unwrap().of(&*store).await.unwrap();
        let name = NamespaceName::parse("trace").unwrap();
        for seq in 1..=APPLIES as u64 {
            let key = Key::new(&name, &seq.to_le_bytes()).unwrap();
            let ops = vec![Op { seq: Seq::new(seq), key, value: Some(Bytes::from(vec![seq as u8; bytes])) }];
            let batch = standing.next_batch(Seq::new(seq), ops);
            mark(BEGUN);
            store.apply(&batch).await.unwrap();
            mark(ACKNOWLEDGED);
            standing = standing.after(&batch);
        }
    });
}

fn mark(what: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("\n{what}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

/// One system call, from its begin to its end in the order of the trace's lines.
#[derive(Debug)]
struct Call {
    text: String,
    begin: usize,
    end: usize,
}

impl Call {
    fn is(&self, name: &str, file: &str) -> bool {
        self.text.starts_with(&format!("{name}(")) && self.text.contains(&format!("{file}>"))
    }

    fn succeeded(&self) -> bool {
        self.text.trim_end().ends_with("= 0")
    }
}

fn trace(kind: Kind, directory: &Path, value_bytes: usize) -> Vec<Call> {
    let log = directory.join("trace");
    let output = Command::new("strace")
        .args([
            "-f",
            "-y",
            "-e",
            "trace=fdatasync,fsync,sync_file_range,pwrite64,openat,write,rename,unlink",
            "-o",
        ])
        .arg(&log)
        .arg(std::env::current_exe().unwrap())
        .args(child_arguments(module_path!(), "child_applies"))
        .env(PATH_VARIABLE, directory.join("store"))
        .env(KIND_VARIABLE, kind.name())
        .env(BYTES_VARIABLE, value_bytes.to_string())
        .output()
        .expect("this test needs strace; install it (apt-get install strace)");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the traced child failed, or strace may not trace here: {told}");
    calls(&std::fs::read_to_string(log).unwrap())
}

/// Joins what strace splits when threads interleave: `call(.. <unfinished ...>` and `<... call resumed>..`.
fn calls(log: &str) -> Vec<Call> {
    let mut calls: Vec<Call> = Vec::new();
    let mut open: std::collections::HashMap<&str, usize> = std::collections::HashMap::new();
    for (line, text) in log.lines().enumerate() {
        let (thread, text) = text.trim_start().split_once(' ').expect("strace -f -o starts with the thread");
        let text = text.trim_start();
        if let Some(begun) = text.strip_suffix("<unfinished ...>") {
            open.insert(thread, calls.len());
            calls.push(Call { text: begun.to_owned(), begin: line, end: usize::MAX });
        } else if text.starts_with("<... ") {
            let (_, rest) = text.split_once("resumed>").expect("strace names what it resumes");
            let call = &mut calls[open.remove(thread).expect("what is resumed has begun")];
            call.text.push_str(rest);
            call.end = line;
        } else {
            calls.push(Call { text: text.to_owned(), begin: line, end: line });
        }
    }
    calls
}

fn assert_synced_before_each_acknowledgement(kind: Kind, calls: &[Call], database: &str) {
    let marked = |what: &str| -> Vec<usize> {
        let marks = calls.iter().filter(|call| call.text.starts_with("write(1<") && call.text.contains(what));
        marks.map(|call| call.begin).collect()
    };
    let (begun, acknowledged) = (marked(BEGUN), marked(ACKNOWLEDGED));
    assert_eq!((begun.len(), acknowledged.len()), (APPLIES, APPLIES));
    for (begun, acknowledged) in begun.into_iter().zip(acknowledged) {
        let between = || calls.iter().filter(|call| call.begin > begun && call.begin < acknowledged);
        let written =
            between().filter(|call| call.is(kind.write_call(), database)).map(|call| call.end).max();
        let written = written.expect("an apply writes to the database");
        let synced = between().any(|call| {
            call.is("fdatasync", database)
                && call.begin > written
                && call.end < acknowledged
                && call.succeeded()
        });
        let seen: Vec<&str> = between().map(|call| call.text.as_str()).collect();
        assert!(synced, "acknowledged without a sync of what was written:\n{seen:#?}");
    }
}

fn no_blob_was_made(calls: &[Call]) {
    let blob = calls.iter().find(|call| call.text.contains("/blobs/") && call.text.contains("O_CREAT"));
    assert!(blob.is_none(), "sled loses blob files silently in a power cut, and made one: {blob:?}");
}

fn traced(kind: Kind, value_bytes: usize) -> (tempfile::TempDir, Vec<Call>, String) {
    let directory = tempfile::tempdir().unwrap();
    let calls = trace(kind, directory.path(), value_bytes);
    // strace shows where a descriptor leads with every link resolved.
    let database = directory.path().join("store").join(kind.database()).canonicalize().unwrap();
    let database = database.to_str().unwrap().to_owned();
    (directory, calls, database)
}

fn small_and_large(kind: Kind) {
    let (_directory, calls, database) = traced(kind, 100);
    assert_synced_before_each_acknowledgement(kind, &calls, &database);
    let (_directory, calls, database) = traced(kind, 3 << 20);
    assert_synced_before_each_acknowledgement(kind, &calls, &database);
    if kind == Kind::Sled {
        no_blob_was_made(&calls);
    }
}

#[test]
fn sled_values_are_synced_before_they_are_acknowledged_and_make_no_blob() {
    small_and_large(Kind::Sled);
}

#[test]
fn redb_values_are_synced_before_they_are_acknowledged() {
    small_and_large(Kind::Redb);
}

/// Two phases: what the header leads to is synced before the header is written, and that is synced again.
#[test]
fn redb_with_quick_repair_syncs_twice() {
    let (_directory, calls, database) = traced(Kind::RedbQuick, 100);
    assert_synced_before_each_acknowledgement(Kind::RedbQuick, &calls, &database);
    let syncs = calls.iter().filter(|call| call.is("fdatasync", &database)).count();
    assert!(syncs >= 2 * APPLIES, "{syncs} syncs for {APPLIES} applies");
}

#[test]
fn fjall_values_are_synced_before_they_are_acknowledged() {
    small_and_large(Kind::Fjall);
}

/// A new store's names: each directory that got an entry was synced before the first acknowledgement.
fn assert_names_are_durable(kind: Kind, files: &[&str]) {
    let (directory, calls, _) = traced(kind, 100);
    let top = directory.path().canonicalize().unwrap();
    let acknowledged = calls.iter().position(|call| call.text.contains(ACKNOWLEDGED)).unwrap();
    for file in files {
        let file = top.join(file).to_str().unwrap().to_owned();
        let file = file.trim_end_matches('/');
        let synced = calls[..acknowledged].iter().any(|call| call.is("fsync", file) && call.succeeded());
        assert!(synced, "{file} was not synced before the first acknowledgement");
    }
}

#[test]
fn the_names_of_a_new_redb_store_are_durable() {
    assert_names_are_durable(Kind::Redb, &["", "store", "store/forebay.new/data.redb"]);
}

#[test]
fn the_names_of_a_new_fjall_store_are_durable() {
    let made = "store/forebay.new/fjall";
    let journal = format!("{made}/0.jnl");
    let tables = format!("{made}/keyspaces/1/tables");
    assert_names_are_durable(Kind::Fjall, &["", "store", made, &journal, &tables]);
}

/// A failed write-back is told once to each descriptor that was open when it happened.
#[test]
fn the_synced_descriptor_of_sled_is_older_than_the_first_write() {
    let (_directory, calls, database) = traced(Kind::Sled, 100);
    let opened = calls
        .iter()
        .position(|call| call.text.starts_with("openat(") && call.text.contains(&format!("\"{database}\"")));
    let descriptor =
        calls[opened.expect("the database was opened")].text.rsplit("= ").next().unwrap().to_owned();
    let first_write = calls.iter().position(|call| call.is("pwrite64", &database)).unwrap();
    assert!(opened.unwrap() < first_write);
    let syncs: Vec<&Call> = calls.iter().filter(|call| call.is("fdatasync", &database)).collect();
    assert!(!syncs.is_empty());
    let prefix = format!("fdatasync({}", descriptor.split('<').next().unwrap());
    assert!(syncs.iter().all(|call| call.text.starts_with(&prefix)), "{syncs:?} other than {descriptor}");
}

#[test]
fn the_names_of_a_new_sled_store_are_durable() {
    assert_names_are_durable(Kind::Sled, &["", "store", "store/conf"]);
}
