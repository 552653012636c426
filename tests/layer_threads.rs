//! The threads of a layer, as the system sees them.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "these are tests")]
#![cfg(target_os = "linux")]

mod support;

use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};

use forebay::disk::simulated::Op;
use forebay::{Cache, Forebay};
use support::Layer;

/// Whoever waits for an acknowledgement does not compete with the drain: on Linux its threads give way, and no others.
#[tokio::test]
async fn threads_that_drain_give_way_and_those_that_commit_and_load_do_not() {
    let directory = tempfile::tempdir().unwrap();
    let store = forebay::SledStore::open(directory.path().join("store")).unwrap();
    let bay = Forebay::builder(store).journal(directory.path().join("journal")).open().await.unwrap();
    let cache: Cache<u32, u32> = bay.cache("n").open().unwrap();
    cache.put(&1, 1).await.unwrap();
    bay.flush().await.unwrap();
    assert_eq!(cache.get(&2).await.unwrap(), None);
    let mut threads: Vec<(String, i64)> = Vec::new();
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        // Other tests' threads end meanwhile.
        let Ok(stat) = std::fs::read_to_string(task.unwrap().path().join("stat")) else { continue };
        let (before, after) = stat.rsplit_once(')').unwrap();
        // proc_pid_stat(5): the name in parentheses is field 2, the niceness is field 19.
        let nice = after.split_whitespace().nth(16).unwrap().parse().unwrap();
        threads.push((before.split_once('(').unwrap().1.to_owned(), nice));
    }
    let own = threads.iter().find(|(name, _)| name == "forebay-commit").expect("a committer").1;
    for (name, nice) in &threads {
        let drains = name == "forebay-flush" || name == "forebay-store";
        if name.starts_with("forebay-") {
            assert_eq!(*nice - own, if drains { 5 } else { 0 }, "{name} among {threads:?}");
        }
    }
    assert!(threads.iter().any(|(name, _)| name == "forebay-store"), "{threads:?}");
    bay.close().await.unwrap();
}

/// A lone caller without a runtime waits for the disk anyhow, so it does what it would else have to be woken for.
#[test]
fn a_blocking_writer_alone_syncs_for_itself_and_a_task_never_does() {
    let layer = Layer::new();
    let bay = layer.builder().open_blocking().unwrap();
    let cache: Cache<u32, u32> = bay.cache("n").open().unwrap();
    let synced_by: Arc<Mutex<Vec<ThreadId>>> = Arc::default();
    let seen = Arc::clone(&synced_by);
    layer.disk.observe(move |operation, _| {
        // A spare has another name until it is a segment.
        if operation.op == Op::Sync && operation.name.starts_with('0') {
            seen.lock().unwrap().push(thread::current().id());
        }
    });
    cache.blocking().put(&1, 1).unwrap();
    assert_eq!(*synced_by.lock().unwrap(), [thread::current().id()]);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(cache.put(&2, 2)).unwrap();
    layer.disk.unobserve();
    let synced_by = synced_by.lock().unwrap();
    assert_eq!(synced_by.len(), 2);
    assert_ne!(synced_by[1], thread::current().id(), "a runtime's thread is not kept waiting");
}
