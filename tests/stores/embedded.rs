//! Directories that are not as the redb and the fjall store left them: open elsewhere, somebody else's, of a later
//! format, damaged. The store reports it and leaves it as it is. (sled's own tests of this are beside its source.)

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use forebay::store::{Claim, FjallOptions, Op, RedbOptions, Store};
use forebay::{ErrorKind, JournalId, Key, NamespaceName, Seq};

use crate::support::stores::Kind;

const KINDS: [Kind; 2] = [Kind::Redb, Kind::Fjall];
const REDB_TABLE: redb::TableDefinition<'_, &[u8], &[u8]> = redb::TableDefinition::new("forebay");

fn key(name: &str) -> Key {
    Key::new(&NamespaceName::parse("files").unwrap(), name.as_bytes()).unwrap()
}

/// Claims the store and applies one batch for each value, under keys "1", "2" and so on.
async fn fill(kind: Kind, path: &Path, values: &[&[u8]]) {
    let store = kind.open(path).unwrap();
    let claim = Claim::new(Some(JournalId::from_bytes([7; 16]))).unwrap();
    let mut standing = claim.of(&*store).await.unwrap();
    for (seq, value) in (1..).zip(values) {
        let value = Some(Bytes::copy_from_slice(value));
        let ops = vec![Op { seq: Seq::new(seq), key: key(&seq.to_string()), value }];
        let batch = standing.next_batch(Seq::new(seq), ops);
        store.apply(&batch).await.unwrap();
        standing = standing.after(&batch);
    }
}

/// Changes the raw value under a raw key, past the store.
fn set_raw(kind: Kind, path: &Path, key: &[u8], value: &[u8]) {
    if kind == Kind::Fjall {
        let db = fjall::Database::builder(path.join("fjall")).open().unwrap();
        let keyspace = db.keyspace("forebay", fjall::KeyspaceCreateOptions::default).unwrap();
        keyspace.insert(key, value).unwrap();
        db.persist(fjall::PersistMode::SyncAll).unwrap();
        return;
    }
    let db = redb::Database::open(path.join("data.redb")).unwrap();
    let transaction = db.begin_write().unwrap();
    transaction.open_table(REDB_TABLE).unwrap().insert(key, value).unwrap();
    transaction.commit().unwrap();
}

fn get_raw(kind: Kind, path: &Path, key: &[u8]) -> Vec<u8> {
    if kind == Kind::Fjall {
        let db = fjall::Database::builder(path.join("fjall")).open().unwrap();
        let keyspace = db.keyspace("forebay", fjall::KeyspaceCreateOptions::default).unwrap();
        return keyspace.get(key).unwrap().unwrap().to_vec();
    }
    use redb::ReadableDatabase as _;
    let db = redb::Database::open(path.join("data.redb")).unwrap();
    let table = db.begin_read().unwrap().open_table(REDB_TABLE).unwrap();
    table.get(key).unwrap().unwrap().value().to_vec()
}

fn refused(kind: Kind, path: &Path) -> forebay::Error {
    kind.open(path).map(drop).unwrap_err()
}

#[tokio::test]
async fn a_store_that_is_open_is_locked() {
    for kind in KINDS {
        let directory = tempfile::tempdir().unwrap();
        let store = kind.open(directory.path()).unwrap();
        assert_eq!(refused(kind, directory.path()).kind(), ErrorKind::Locked, "{kind:?}");
        drop(store);
        kind.open(directory.path()).unwrap();
    }
}

#[tokio::test]
async fn another_layout_is_refused_and_left_as_it_is() {
    for kind in KINDS {
        let directory = tempfile::tempdir().unwrap();
        fill(kind, directory.path(), &[b"1"]).await;
        let good = get_raw(kind, directory.path(), b"m");
        let mut later = good.clone();
        later[0] = 9;
        set_raw(kind, directory.path(), b"m", &later);
        let error = refused(kind, directory.path());
        assert_eq!(error.kind(), ErrorKind::UnknownFormat, "{kind:?}: {error}");
        assert!(format!("{error:#}").contains("format 9"), "{error}");
        assert_eq!(get_raw(kind, directory.path(), b"m"), later);
        let mut broken = good.clone();
        broken[3] ^= 1;
        set_raw(kind, directory.path(), b"m", &broken);
        assert_eq!(refused(kind, directory.path()).kind(), ErrorKind::Damaged, "{kind:?}");
        set_raw(kind, directory.path(), b"m", &good);
        let store = kind.open(directory.path()).unwrap();
        assert_eq!(store.standing().await.unwrap().journal, Some(JournalId::from_bytes([7; 16])));
    }
}

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// A store that would be made beside another one's files would be empty, and swallow the journal.
#[tokio::test]
async fn somebody_elses_directory_is_refused_and_left_as_it_is() {
    for kind in KINDS {
        for other in [Kind::Sled, Kind::Redb, Kind::Fjall].into_iter().filter(|other| *other != kind) {
            let directory = tempfile::tempdir().unwrap();
            fill(other, directory.path(), &[b"1"]).await;
            let before = names(directory.path());
            let error = refused(kind, directory.path());
            assert_eq!(error.kind(), ErrorKind::UnknownFormat, "{kind:?} in {other:?}: {error}");
            assert_eq!(names(directory.path()), before, "{kind:?} in {other:?}");
            other.open(directory.path()).unwrap();
        }
    }
    let directory = tempfile::tempdir().unwrap();
    drop(redb::Database::create(directory.path().join("data.redb")).unwrap());
    assert_eq!(refused(Kind::Redb, directory.path()).kind(), ErrorKind::UnknownFormat, "no table of ours");
}

/// A crash in the middle of making a store leaves a directory that is made anew.
#[tokio::test]
async fn a_half_made_store_is_made_anew() {
    for kind in KINDS {
        let directory = tempfile::tempdir().unwrap();
        let half = directory.path().join("forebay.new").join(kind.database());
        std::fs::create_dir_all(half.parent().unwrap()).unwrap();
        std::fs::write(half, b"half").unwrap();
        fill(kind, directory.path(), &[b"1"]).await;
        assert!(!names(directory.path()).contains(&"forebay.new".to_owned()));
    }
}

#[test]
fn the_directories_are_their_owners_alone() {
    for kind in KINDS {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deeper/store");
        let _store = kind.open(&path).unwrap();
        let mode = |name: &str| std::fs::metadata(path.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(""), mode("forebay.lock")), (0o700, 0o600), "{kind:?}");
        if kind == Kind::Redb {
            assert_eq!(mode("data.redb"), 0o600);
        }
    }
}

#[test]
fn options_out_of_range_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let errors = [
        RedbOptions::new().cache_bytes(1).open(directory.path()).unwrap_err(),
        FjallOptions::new().cache_bytes(1).open(directory.path()).unwrap_err(),
        FjallOptions::new().memtable_bytes(1).open(directory.path()).unwrap_err(),
    ];
    assert!(errors.iter().all(|error| error.kind() == ErrorKind::InvalidOption), "{errors:?}");
    assert!(names(directory.path()).is_empty());
}

/// Where the journal of a fjall store holds these bytes.
fn journal_with(path: &Path, bytes: &[u8]) -> (PathBuf, Vec<u8>, usize) {
    let journal = path.join("fjall/0.jnl");
    let content = std::fs::read(&journal).unwrap();
    let at = content.windows(bytes.len()).position(|window| window == bytes).unwrap();
    (journal, content, at)
}

/// A power cut left the end of the last batch in fjall's journal, and not its middle. fjall found a wrong checksum and
/// did not open any more, though nothing was lost that had been acknowledged.
#[tokio::test]
async fn a_torn_last_batch_of_fjall_is_cut_off() {
    let directory = tempfile::tempdir().unwrap();
    let (first, second) = ([1_u8; 3_000], [2_u8; 3_000]);
    fill(Kind::Fjall, directory.path(), &[&first, &second]).await;
    let (journal, mut content, at) = journal_with(directory.path(), &second);
    content[at + 1_000..at + 1_512].fill(0);
    std::fs::write(&journal, content).unwrap();
    for _ in 0..2 {
        let store = Kind::Fjall.open(directory.path()).unwrap();
        assert_eq!(store.standing().await.unwrap().progress.applied, Seq::new(1));
        assert_eq!(store.load(&key("1")).await.unwrap().unwrap().value, first[..]);
        assert_eq!(store.load(&key("2")).await.unwrap(), None);
    }
}

/// The same before the last batch cannot come from a power cut, since the next batch begins after a sync: it is damage,
/// and what is there stays for who wants to save it.
#[tokio::test]
async fn damage_before_the_last_batch_of_fjall_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let (first, second) = ([1_u8; 3_000], [2_u8; 3_000]);
    fill(Kind::Fjall, directory.path(), &[&first, &second]).await;
    let (journal, good, at) = journal_with(directory.path(), &first);
    // In the value; and in the length of the key before it, which fjall took for a torn end.
    for place in [at + 1_000, at - key("1").as_bytes().len() - 11] {
        let mut content = good.clone();
        content[place] ^= 1;
        std::fs::write(&journal, &content).unwrap();
        let error = refused(Kind::Fjall, directory.path());
        assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
        assert!(format!("{error:#}").contains("0.jnl: damaged at byte"), "{error}");
        assert!(std::fs::read(&journal).unwrap() == content, "the journal was changed");
    }
    std::fs::write(&journal, &good).unwrap();
    assert_eq!(
        Kind::Fjall.open(directory.path()).unwrap().standing().await.unwrap().progress.applied,
        Seq::new(2)
    );
}

/// fjall never synced the directory that its keyspaces' directories lie in. After a power cut without them it passed
/// over every record in its journal, and the store was empty.
#[tokio::test]
async fn a_fjall_store_without_its_keyspace_is_damaged() {
    let directory = tempfile::tempdir().unwrap();
    fill(Kind::Fjall, directory.path(), &[b"1"]).await;
    std::fs::remove_dir_all(directory.path().join("fjall/keyspaces")).unwrap();
    std::fs::create_dir(directory.path().join("fjall/keyspaces")).unwrap();
    assert_eq!(refused(Kind::Fjall, directory.path()).kind(), ErrorKind::Damaged);
}

/// Without its version file fjall would make a new database in the directory, and the store would be empty.
#[tokio::test]
async fn a_fjall_store_without_its_version_file_is_damaged() {
    let directory = tempfile::tempdir().unwrap();
    fill(Kind::Fjall, directory.path(), &[b"1"]).await;
    std::fs::remove_file(directory.path().join("fjall/version")).unwrap();
    assert_eq!(refused(Kind::Fjall, directory.path()).kind(), ErrorKind::Damaged);
}

/// The first page of redb's file, then its whole content, is overwritten.
#[tokio::test]
async fn a_damaged_redb_file_is_told() {
    let directory = tempfile::tempdir().unwrap();
    fill(Kind::Redb, directory.path(), &[b"1"]).await;
    let file = directory.path().join("data.redb");
    let good = std::fs::read(&file).unwrap();
    let mut damage = BTreeMap::new();
    damage.insert("an empty file", Vec::new());
    damage.insert("zeros", vec![0; good.len()]);
    damage.insert("half a file", good[..good.len() / 2].to_vec());
    for (what, content) in damage {
        std::fs::write(&file, content).unwrap();
        let error = refused(Kind::Redb, directory.path());
        assert_eq!(error.kind(), ErrorKind::Damaged, "{what}: {error}");
    }
    std::fs::write(&file, good).unwrap();
    Kind::Redb.open(directory.path()).unwrap();
}
