//! The operator's binary on the stores that are behind features: it drains into them, and makes none by itself.

#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

#[path = "support/stores.rs"]
mod stores;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use forebay::testkit::FlakyStore;
use forebay::testkit::flaky::Fault;
use forebay::{Forebay, Seq, WritePolicy};
use stores::Kind;

fn forebay(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_forebay")).args(arguments).output().unwrap();
    let told = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(told).unwrap())
}

/// A layer whose store takes nothing, closed with twenty records in the journal.
async fn leave_a_backlog(kind: Kind, store: &Path, journal: &Path) {
    let store = FlakyStore::new(kind.open(store).unwrap());
    store.script(std::iter::repeat_n(Some(Fault::TransientBefore), 10_000));
    let bay = Forebay::builder(store).journal(journal).open().await.unwrap();
    let shelf = bay.cache::<u64, String>("shelf").write_policy(WritePolicy::Behind).open().unwrap();
    for number in 0..20 {
        shelf.put(&number, format!("{number}")).await.unwrap();
    }
    let closed = bay.close_within(Duration::ZERO).await.unwrap();
    assert!(closed.queued > 0, "nothing is left to drain");
}

#[tokio::test]
async fn drain_carries_everything_to_the_store_that_is_named() {
    for (kind, name) in [(Kind::Redb, "redb"), (Kind::Fjall, "fjall")] {
        let top = tempfile::tempdir().unwrap();
        let (store, journal) = (top.path().join("store"), top.path().join("journal"));
        leave_a_backlog(kind, &store, &journal).await;
        let journal = journal.to_str().unwrap();
        let elsewhere = format!("{name}:{}", top.path().join("elsewhere").display());
        let (status, told) = forebay(&["drain", journal, "--store", &elsewhere]);
        assert_eq!(status, Some(2), "{told}");
        assert!(told.contains(&format!("there is no {name} store in")), "{told}");
        assert!(!top.path().join("elsewhere").exists(), "something was made there");
        let (status, told) = forebay(&["drain", journal, "--store", &format!("{name}:{}", store.display())]);
        assert_eq!(status, Some(0), "{told}");
        assert!(told.contains("the store holds everything up to 20"), "{told}");
        assert_eq!(
            kind.open(&store).unwrap().tenure().await.unwrap().progress.applied,
            Seq::new(20),
            "{name}"
        );
    }
}
