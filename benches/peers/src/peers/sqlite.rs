//! SQLite with its write-ahead log: one connection behind a lock, which is faster than many that wait for its
//! file lock.

use std::sync::{Mutex, PoisonError};

use anyhow::{Result, ensure};
use rusqlite::Connection;

use crate::subject::{Class, Entry, Face, Subject, Writer};

pub(crate) const ENTRY: Entry = Entry {
    name: "sqlite",
    classes: &[
        (
            Class::Synced,
            "journal_mode WAL, synchronous FULL; one connection under a lock, a prepared upsert per put",
        ),
        (
            Class::Unsynced,
            "journal_mode WAL, synchronous NORMAL: synced by a checkpoint only; otherwise the same",
        ),
    ],
    faces: &[Face::Threads],
    open: |directory, class| {
        let connection = Connection::open(directory.join("sqlite"))?;
        let mode: String =
            connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
        ensure!(mode == "wal", "SQLite chose the journal mode {mode}");
        let synchronous = if class == Class::Synced { "FULL" } else { "NORMAL" };
        connection.pragma_update(None, "synchronous", synchronous)?;
        connection.execute("CREATE TABLE peers (key INTEGER PRIMARY KEY, value BLOB NOT NULL)", ())?;
        Ok(Box::new(Sqlite { connection: Mutex::new(connection) }))
    },
};

struct Sqlite {
    connection: Mutex<Connection>,
}

impl Sqlite {
    fn locked(&self) -> std::sync::MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Subject for Sqlite {
    fn writer(&self) -> Result<Box<dyn Writer + '_>> {
        Ok(Box::new(SqliteWriter(self)))
    }

    fn settle(&self) -> Result<()> {
        Ok(self.locked().query_row("PRAGMA wal_checkpoint(PASSIVE)", (), |_| Ok(()))?)
    }
}

struct SqliteWriter<'a>(&'a Sqlite);

impl Writer for SqliteWriter<'_> {
    fn put(&mut self, key: u64, value: Vec<u8>) -> Result<()> {
        let connection = self.0.locked();
        let mut upsert = connection.prepare_cached("INSERT OR REPLACE INTO peers VALUES (?1, ?2)")?;
        upsert.execute((key.cast_signed(), value))?;
        Ok(())
    }
}
