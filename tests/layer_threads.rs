//! The threads of a layer, as the system sees them.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "these are tests")]
#![cfg(target_os = "linux")]

use forebay::{Cache, Forebay};

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
