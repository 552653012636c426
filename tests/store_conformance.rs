//! Both stores pass the public suite, and the sled store's own promises about its files hold.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use forebay::testkit::conformance::{Subject, run};
use forebay::{ErrorKind, MemoryStore, SledStore};
use tempfile::TempDir;

struct InMemory;

impl Subject for InMemory {
    type Store = MemoryStore;

    fn create(&mut self) -> MemoryStore {
        MemoryStore::new()
    }

    fn reopen(&mut self, store: MemoryStore) -> MemoryStore {
        store
    }
}

#[derive(Default)]
struct OnSled(Vec<TempDir>);

impl Subject for OnSled {
    type Store = SledStore;

    fn create(&mut self) -> SledStore {
        let folder = tempfile::tempdir().unwrap();
        let store = SledStore::open(folder.path().join("store")).unwrap();
        self.0.push(folder);
        store
    }

    fn reopen(&mut self, store: SledStore) -> SledStore {
        drop(store);
        SledStore::open(self.0.last().unwrap().path().join("store")).unwrap()
    }
}

#[tokio::test]
async fn the_memory_store_conforms() {
    run(&mut InMemory).await;
}

#[tokio::test]
async fn the_sled_store_conforms() {
    run(&mut OnSled::default()).await;
}

#[test]
fn a_sled_database_is_open_once_and_let_go_by_its_last_handle() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let store = SledStore::open(&path).unwrap();
    let clone = store.clone();
    drop(store);
    let error = SledStore::open(&path).expect_err("held by the clone");
    assert_eq!(error.kind(), ErrorKind::Locked, "{error}");
    drop(clone);
    SledStore::open(&path).expect("nobody holds it any more");
}

#[cfg(unix)]
#[tokio::test]
async fn sleds_files_are_their_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let mut subject = OnSled::default();
    run(&mut subject).await;
    let mut seen = 0;
    let mut folders: Vec<_> = subject.0.iter().map(|folder| folder.path().join("store")).collect();
    while let Some(folder) = folders.pop() {
        let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&folder), 0o700, "{folder:?}");
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            seen += 1;
            // The snapshot that sled writes while it closes is younger than our last look; the folder keeps it.
            let snapshot = path.file_name().unwrap().to_string_lossy().starts_with("snap.");
            assert!(snapshot || mode(&path) == 0o600, "{path:?} has mode {:o}", mode(&path));
        }
    }
    assert!(seen > 10, "{seen} files");
}
