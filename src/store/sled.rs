//! The embedded default store, on sled 0.34.
//!
//! Values lie in sled's default tree, each behind the eight bytes of its version, and the tenure beside them under
//! a key that no user's key can be: so one sled batch changes both. sled locks its directory, so all handles of a
//! process are clones that share one lock, and that lock makes the epoch's check and the batch one step.
//!
//! On Linux sled's `flush` is a write and `sync_file_range`, which a drive's cache can still lose. After each flush
//! this store therefore syncs the database file through a descriptor of its own, opened before the first write,
//! and whatever other files sled has made (large values become files of their own), and their directories. A failed
//! sync is never repeated: the store refuses everything afterwards. sled's periodic flush stays on, because sled
//! collects its garbage with it; it promises nothing here.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::{Epoch, JournalId, Key, Seq};
use crate::store::contract::{Batch, BoxFuture, Progress, Store, StoreError, Tenure, Versioned};
use crate::store::workers::Workers;

/// A user's key starts with a namespace, which is never empty, so none starts with a zero byte.
const TENURE_KEY: &[u8] = b"\0forebay";
const TENURE_VERSION: u8 = 1;
const TENURE_BYTES: usize = 1 + 8 + 8 + 8 + 1 + 16 + 4;
const VERSION_BYTES: usize = 8;
const THREADS: usize = 4;

/// A sled database as a layer's system of record. Clones share it; it closes with the last one.
#[derive(Clone, Debug)]
pub struct SledStore(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    // First, so that its threads end before the database they work on is closed.
    workers: Workers,
    database: Arc<Database>,
}

#[derive(Debug)]
struct Database {
    sled: sled::Db,
    /// sled's main file, for the syncs that sled does not make.
    main: File,
    path: PathBuf,
    tenure: Mutex<Tenure>,
    /// Files that were synced after they appeared.
    known: Mutex<HashSet<PathBuf>>,
    failed: OnceLock<Error>,
}

impl SledStore {
    /// Opens the database in `path`, or creates it. Blocking.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`] if it is open already; [`ErrorKind::Damaged`]; [`ErrorKind::UnknownFormat`]; the
    /// file system's.
    pub fn open(path: impl AsRef<Path>) -> Result<SledStore> {
        SledStore::open_with(sled::Config::new().path(path.as_ref()))
    }

    /// As [`SledStore::open`], with sled's own options (cache capacity, compression); the path is among them.
    ///
    /// # Errors
    /// As [`SledStore::open`].
    pub fn open_with(config: sled::Config) -> Result<SledStore> {
        let path = config.get_path();
        create_private_dir(&path)?;
        let sled = config.open().map_err(|error| cannot_open(&path, error))?;
        let main = path.join("db");
        let main = File::options().read(true).write(true).open(&main);
        let main = main.map_err(|error| cannot("open", &path.join("db"), error))?;
        let tenure = match sled.get(TENURE_KEY).map_err(|error| cannot_open(&path, error))? {
            Some(bytes) => decode_tenure(&bytes, &path)?,
            None => Tenure::default(),
        };
        let database = Database {
            sled,
            main,
            path,
            tenure: Mutex::new(tenure),
            known: Mutex::default(),
            failed: OnceLock::new(),
        };
        database.sync_new_files()?;
        let workers = Workers::start("forebay-sled", THREADS)?;
        Ok(SledStore(Arc::new(Shared { workers, database: Arc::new(database) })))
    }

    async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Database) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let database = Arc::clone(&self.0.database);
        self.0.workers.run(move || job(&database)).await
    }
}

impl Store for SledStore {
    fn tenure(&self) -> BoxFuture<'_, Result<Tenure, StoreError>> {
        Box::pin(async { self.0.database.check().map(|()| *self.0.database.lock()) })
    }

    fn claim(&self, journal: Option<JournalId>) -> BoxFuture<'_, Result<Tenure, StoreError>> {
        Box::pin(self.run(move |database| database.claim(journal)))
    }

    fn load<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Versioned>, StoreError>> {
        let key = key.clone();
        Box::pin(self.run(move |database| database.load(&key)))
    }

    fn load_many<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<Vec<Option<Versioned>>, StoreError>> {
        let keys = keys.to_vec();
        Box::pin(self.run(move |database| keys.iter().map(|key| database.load(key)).collect()))
    }

    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<(), StoreError>> {
        let batch = batch.clone();
        Box::pin(self.run(move |database| database.apply(&batch)))
    }
}

impl Database {
    fn claim(&self, journal: Option<JournalId>) -> Result<Tenure, StoreError> {
        self.check()?;
        let mut tenure = self.lock();
        let claimed = Tenure { epoch: Epoch(tenure.epoch.0 + 1), journal, ..*tenure };
        self.write(sled::Batch::default(), &claimed)?;
        *tenure = claimed;
        Ok(claimed)
    }

    fn load(&self, key: &Key) -> Result<Option<Versioned>, StoreError> {
        self.check()?;
        let found = self.sled.get(key.as_bytes()).map_err(|error| self.fail(failure(&self.path, error)))?;
        let Some(bytes) = found else { return Ok(None) };
        let Some((version, value)) = bytes.split_first_chunk::<VERSION_BYTES>() else {
            let context = format!("the value of {key} in {} lacks its version", self.path.display());
            return Err(StoreError::Fatal(Error::new(ErrorKind::Damaged, context)));
        };
        let version = Seq(u64::from_le_bytes(*version));
        Ok(Some(Versioned { value: Bytes::copy_from_slice(value), version }))
    }

    fn apply(&self, batch: &Batch) -> Result<(), StoreError> {
        self.check()?;
        let mut tenure = self.lock();
        if batch.epoch < tenure.epoch {
            return Err(StoreError::Fenced { current: tenure.epoch });
        }
        let watermark = tenure.progress.applied;
        if batch.progress.applied <= watermark {
            return Ok(());
        }
        let mut changes = sled::Batch::default();
        for op in batch.ops.iter().filter(|op| op.seq > watermark) {
            match &op.value {
                Some(value) => {
                    let mut stored = Vec::with_capacity(VERSION_BYTES + value.len());
                    stored.extend_from_slice(&op.seq.0.to_le_bytes());
                    stored.extend_from_slice(value);
                    changes.insert(op.key.as_bytes(), stored);
                }
                None => changes.remove(op.key.as_bytes()),
            }
        }
        let applied = Tenure { progress: batch.progress, ..*tenure };
        self.write(changes, &applied)?;
        *tenure = applied;
        Ok(())
    }

    /// Writes the changes and the tenure as one, durably. Any failure is for good: what of it is on the disk is
    /// not known, and sled itself refuses to go on after an I/O error.
    fn write(&self, mut changes: sled::Batch, tenure: &Tenure) -> Result<(), StoreError> {
        changes.insert(TENURE_KEY, encode_tenure(tenure));
        let written = self.sled.apply_batch(changes).and_then(|()| self.sled.flush());
        written.map_err(|error| self.fail(failure(&self.path, error)))?;
        let synced = self
            .main
            .sync_data()
            .map_err(|error| cannot("sync", &self.path.join("db"), error))
            .and_then(|()| self.sync_new_files());
        synced.map_err(|error| self.fail(error))
    }

    /// Syncs the files that sled has made since the last call, and the directories that they appeared in.
    fn sync_new_files(&self) -> Result<()> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for dir in [&self.path.join("blobs"), &self.path] {
            let mut there = HashSet::new();
            let mut appeared = false;
            for entry in fs::read_dir(dir).map_err(|error| cannot("list", dir, error))? {
                let path = entry.map_err(|error| cannot("list", dir, error))?.path();
                if !known.contains(&path) {
                    appeared |= sync_new_file(&path)?;
                }
                there.insert(path);
            }
            if appeared {
                let synced = File::open(dir).and_then(|dir| dir.sync_all());
                synced.map_err(|error| cannot("sync", dir, error))?;
            }
            // What is gone may come back under the same name.
            known.retain(|path| path.parent() != Some(dir) || there.contains(path));
            known.extend(there);
        }
        Ok(())
    }

    fn check(&self) -> Result<(), StoreError> {
        self.failed.get().map_or(Ok(()), |error| Err(StoreError::Fatal(error.clone())))
    }

    fn fail(&self, error: Error) -> StoreError {
        StoreError::Fatal(self.failed.get_or_init(|| error).clone())
    }

    fn lock(&self) -> MutexGuard<'_, Tenure> {
        // It is changed only after what it says is durable, so a panic meanwhile leaves it right.
        self.tenure.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes a file its owner's alone and durable; says whether it was still there.
fn sync_new_file(path: &Path) -> Result<bool> {
    let synced = File::open(path).and_then(|file| {
        let directory = file.metadata()?.is_dir();
        make_private(&file, directory)?;
        if directory { file.sync_all() } else { file.sync_data() }
    });
    match synced {
        Ok(()) => Ok(true),
        // sled removes files that it has replaced.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(cannot("sync", path, error)),
    }
}

#[cfg(unix)]
fn make_private(file: &File, directory: bool) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(fs::Permissions::from_mode(if directory { 0o700 } else { 0o600 }))
}

#[cfg(not(unix))]
fn make_private(_file: &File, _directory: bool) -> io::Result<()> {
    Ok(())
}

fn create_private_dir(path: &Path) -> Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path).map_err(|error| cannot("create", path, error))
}

fn encode_tenure(tenure: &Tenure) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(TENURE_BYTES);
    bytes.push(TENURE_VERSION);
    bytes.extend_from_slice(&tenure.epoch.0.to_le_bytes());
    bytes.extend_from_slice(&tenure.progress.applied.0.to_le_bytes());
    bytes.extend_from_slice(&tenure.progress.journaled.0.to_le_bytes());
    bytes.push(u8::from(tenure.journal.is_some()));
    bytes.extend_from_slice(&tenure.journal.map_or([0; 16], |id| id.0));
    bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
    bytes
}

fn decode_tenure(bytes: &[u8], path: &Path) -> Result<Tenure> {
    let damaged = || {
        let context =
            format!("the layer's own record in {} is damaged: {} bytes", path.display(), bytes.len());
        Error::new(ErrorKind::Damaged, context)
    };
    let (fields, checksum) = bytes.split_last_chunk::<4>().ok_or_else(damaged)?;
    if crc32c::crc32c(fields) != u32::from_le_bytes(*checksum) {
        return Err(damaged());
    }
    let (&version, mut fields) = fields.split_first().ok_or_else(damaged)?;
    if version != TENURE_VERSION {
        let context = format!("the layer's own record in {} has format version {version}", path.display());
        return Err(Error::new(ErrorKind::UnknownFormat, context));
    }
    let mut number = || {
        let (field, rest) = fields.split_first_chunk::<8>().ok_or_else(damaged)?;
        fields = rest;
        Ok::<u64, Error>(u64::from_le_bytes(*field))
    };
    let epoch = Epoch(number()?);
    let progress = Progress { applied: Seq(number()?), journaled: Seq(number()?) };
    let journal = match fields.split_first() {
        Some((0, _)) => None,
        Some((_, id)) => Some(JournalId(id.try_into().map_err(|_| damaged())?)),
        None => return Err(damaged()),
    };
    Ok(Tenure { epoch, progress, journal })
}

fn cannot(what: &str, path: &Path, error: io::Error) -> Error {
    Error::io(format!("cannot {what} {}", path.display()), error)
}

fn cannot_open(path: &Path, error: sled::Error) -> Error {
    match error {
        // sled says so only in words.
        sled::Error::Io(error) if error.to_string().contains("could not acquire lock") => {
            let context = format!("the sled database in {} is open already", path.display());
            Error::with_source(ErrorKind::Locked, context, error)
        }
        error => failure(path, error),
    }
}

fn failure(path: &Path, error: sled::Error) -> Error {
    let context = format!("the sled database in {}", path.display());
    match error {
        sled::Error::Io(error) => Error::io(context, error),
        error @ sled::Error::Corruption { .. } => Error::with_source(ErrorKind::Damaged, context, error),
        error => Error::with_source(ErrorKind::StoreFailed, context, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_or_unknown_tenure_is_refused() {
        let tenure = Tenure {
            epoch: Epoch(3),
            progress: Progress { applied: Seq(9), journaled: Seq(7) },
            journal: Some(JournalId([5; 16])),
        };
        let bytes = encode_tenure(&tenure);
        let path = Path::new("db");
        assert_eq!((bytes.len(), decode_tenure(&bytes, path).unwrap()), (TENURE_BYTES, tenure));
        for at in 0..bytes.len() {
            let mut other = bytes.clone();
            other[at] ^= 1;
            assert_eq!(decode_tenure(&other, path).expect_err("flipped").kind(), ErrorKind::Damaged);
        }
        let mut newer = bytes[..TENURE_BYTES - 4].to_vec();
        newer[0] = 2;
        newer.extend_from_slice(&crc32c::crc32c(&newer).to_le_bytes());
        assert_eq!(decode_tenure(&newer, path).expect_err("newer").kind(), ErrorKind::UnknownFormat);
        assert!(decode_tenure(&[], path).is_err());
    }
}
