//! fjall: an insert writes its journal, `persist` syncs it.

use ::fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use anyhow::Result;

use crate::subject::{Class, Entry, Face, Subject, Writer};

pub(crate) const ENTRY: Entry = Entry {
    name: "fjall",
    classes: &[
        (Class::Synced, "3, defaults; insert, then persist(PersistMode::SyncData)"),
        (Class::Unsynced, "3, defaults; insert only, which hands its journal to the system"),
    ],
    faces: &[Face::Threads],
    open: |directory, class| {
        let db = Database::builder(directory.join("fjall")).open()?;
        let items = db.keyspace("peers", KeyspaceCreateOptions::default)?;
        Ok(Box::new(Fjall { db, items, synced: class == Class::Synced }))
    },
};

struct Fjall {
    db: Database,
    items: Keyspace,
    synced: bool,
}

impl Subject for Fjall {
    fn writer(&self) -> Result<Box<dyn Writer + '_>> {
        Ok(Box::new(FjallWriter(self)))
    }

    fn settle(&self) -> Result<()> {
        Ok(self.db.persist(PersistMode::SyncData)?)
    }
}

struct FjallWriter<'a>(&'a Fjall);

impl Writer for FjallWriter<'_> {
    fn put(&mut self, key: u64, value: Vec<u8>) -> Result<()> {
        self.0.items.insert(key.to_be_bytes(), value)?;
        if self.0.synced {
            self.0.db.persist(PersistMode::SyncData)?;
        }
        Ok(())
    }
}
