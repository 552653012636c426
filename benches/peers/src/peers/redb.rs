//! redb: a transaction per put, and one writer at a time.

use ::redb::{Database, Durability, TableDefinition};
use anyhow::Result;

use crate::subject::{Class, Entry, Face, Subject, Writer};

const TABLE: TableDefinition<u64, &[u8]> = TableDefinition::new("peers");

pub(crate) const ENTRY: Entry = Entry {
    name: "redb",
    classes: &[
        (Class::Synced, "4, defaults; a transaction per put with Durability::Immediate"),
        (
            Class::Unsynced,
            "4, defaults; a transaction per put with Durability::None: it stays in the process",
        ),
    ],
    faces: &[Face::Threads],
    open: |directory, class| {
        let durability = match class {
            Class::Synced => Durability::Immediate,
            Class::Unsynced => Durability::None,
        };
        let redb = Redb { db: Database::create(directory.join("redb"))?, durability };
        redb.put(u64::MAX, &[], Durability::Immediate)?;
        Ok(Box::new(redb))
    },
};

struct Redb {
    db: Database,
    durability: Durability,
}

impl Redb {
    fn put(&self, key: u64, value: &[u8], durability: Durability) -> Result<()> {
        let mut transaction = self.db.begin_write()?;
        transaction.set_durability(durability)?;
        transaction.open_table(TABLE)?.insert(key, value)?;
        Ok(transaction.commit()?)
    }
}

impl Subject for Redb {
    fn writer(&self) -> Result<Box<dyn Writer + '_>> {
        Ok(Box::new(RedbWriter(self)))
    }

    fn settle(&self) -> Result<()> {
        // A durable transaction takes those before it along.
        self.put(u64::MAX, &[], Durability::Immediate)
    }
}

struct RedbWriter<'a>(&'a Redb);

impl Writer for RedbWriter<'_> {
    fn put(&mut self, key: u64, value: Vec<u8>) -> Result<()> {
        self.0.put(key, &value, self.0.durability)
    }
}
