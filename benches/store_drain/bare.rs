//! The databases by themselves, with the durability that the stores have.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use fjall::{KeyspaceCreateOptions, PersistMode};
use redb::TableDefinition;

use crate::bare_sled::{CACHE_BYTES, open_sled};
use crate::{Row, What};

const TABLE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("bench");

/// A database by itself.
pub(crate) enum Bare {
    Sled(sled::Db, File),
    Redb { db: redb::Database, quick_repair: bool },
    Fjall(fjall::Database, fjall::Keyspace),
}

impl Bare {
    pub(crate) fn open(what: What, path: &Path) -> Result<Bare> {
        if what != What::Sled {
            fs::create_dir(path)?;
        }
        Ok(match what {
            What::Sled => {
                let (db, file) = open_sled(path)?;
                Bare::Sled(db, file)
            }
            What::Redb | What::RedbQuick => {
                let mut builder = redb::Database::builder();
                builder.set_cache_size(usize::try_from(CACHE_BYTES)?);
                let db = builder.create(path.join("data.redb"))?;
                Bare::Redb { db, quick_repair: what == What::RedbQuick }
            }
            What::Fjall => {
                let db = fjall::Database::builder(path).cache_size(CACHE_BYTES).open()?;
                let keyspace = db.keyspace("bench", KeyspaceCreateOptions::default)?;
                Bare::Fjall(db, keyspace)
            }
        })
    }

    pub(crate) fn apply(&mut self, rows: &[Row]) -> Result<Duration> {
        let begun = Instant::now();
        match self {
            Bare::Sled(db, file) => {
                let mut batch = sled::Batch::default();
                rows.iter().for_each(|(key, value)| batch.insert(key, &value[..]));
                db.apply_batch(batch)?;
                db.flush()?;
                file.sync_data()?;
            }
            Bare::Redb { db, quick_repair } => {
                let mut transaction = db.begin_write()?;
                transaction.set_durability(redb::Durability::Immediate)?;
                transaction.set_quick_repair(*quick_repair);
                let mut table = transaction.open_table(TABLE)?;
                for (key, value) in rows {
                    table.insert(key.as_slice(), &value[..])?;
                }
                drop(table);
                transaction.commit()?;
            }
            Bare::Fjall(db, keyspace) => {
                let mut batch = db.batch().durability(Some(PersistMode::SyncData));
                rows.iter().for_each(|(key, value)| batch.insert(keyspace, &key[..], &value[..]));
                batch.commit()?;
            }
        }
        Ok(begun.elapsed())
    }
}
