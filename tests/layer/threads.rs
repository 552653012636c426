//! The threads of a layer, as the system sees them: found by their names, so each test has a process of its own.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};

use forebay::disk::DiskOp;
use forebay::{Cache, Forebay, SledStore};

use crate::support::Layer;
use crate::support::child::alone;

/// Returns the niceness of this process's threads of this name, beyond that of the calling thread.
fn niceness_of(name: &str) -> Vec<i64> {
    let mut found = BTreeSet::new();
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        // A thread may end meanwhile.
        let Ok(stat) = std::fs::read_to_string(task.unwrap().path().join("stat")) else { continue };
        if stat.contains(&format!("({name})")) {
            found.insert(niceness(&stat));
        }
    }
    let own = niceness(&std::fs::read_to_string("/proc/thread-self/stat").unwrap());
    found.iter().map(|nice| nice - own).collect()
}

/// proc_pid_stat(5): the name in parentheses is field 2, the niceness is field 19.
fn niceness(stat: &str) -> i64 {
    stat.rsplit_once(')').unwrap().1.split_whitespace().nth(16).unwrap().parse().unwrap()
}

/// Whoever waits for the journal does not compete with the drain, whose thread gives way on Linux, and no other does.
/// Without a journal everybody waits for that thread, and then it does not.
#[test]
fn the_thread_that_drains_gives_way_unless_every_writer_waits_for_it() {
    alone(module_path!(), "the_thread_that_drains_gives_way_unless_every_writer_waits_for_it", || {
        let directory = tempfile::tempdir().unwrap();
        let store = |name| SledStore::open(directory.path().join(name)).unwrap();
        let bay =
            Forebay::builder(store("a")).journal(directory.path().join("journal")).open_blocking().unwrap();
        let cache: Cache<u32, u32> = bay.cache("n").open().unwrap();
        cache.blocking().put(&1, 1).unwrap();
        bay.blocking().flush().unwrap();
        assert_eq!(cache.blocking().get(&2).unwrap(), None);
        assert_eq!(niceness_of("forebay-flush"), [5]);
        assert_eq!(niceness_of("forebay-commit"), [0]);
        assert_eq!(niceness_of("forebay-load"), [0]);
        bay.blocking().close().unwrap();
        let bay = Forebay::builder(store("b")).open_blocking().unwrap();
        let cache: Cache<u32, u32> = bay.cache("n").open().unwrap();
        cache.blocking().put(&1, 1).unwrap();
        assert_eq!(niceness_of("forebay-flush"), [0]);
        bay.blocking().close().unwrap();
    });
}

/// A lone caller without a runtime waits for the disk anyhow, so it does what it would else have to be woken for.
#[test]
fn a_blocking_writer_alone_syncs_for_itself_and_a_task_never_does() {
    alone(module_path!(), "a_blocking_writer_alone_syncs_for_itself_and_a_task_never_does", || {
        let layer = Layer::new();
        let bay = layer.builder().open_blocking().unwrap();
        let cache: Cache<u32, u32> = bay.cache("n").open().unwrap();
        let synced_by: Arc<Mutex<Vec<ThreadId>>> = Arc::default();
        let seen = Arc::clone(&synced_by);
        layer.disk.observe(move |op, name, _| {
            // A spare has another name until it is a segment.
            if op == DiskOp::Sync && name.starts_with('0') {
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
    });
}
