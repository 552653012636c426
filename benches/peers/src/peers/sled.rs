//! sled 0.34. Its `flush` writes and does not sync on Linux, so a durable put is insert, flush, and an
//! `fdatasync` of its file by a descriptor of our own.

use std::fs::File;
use std::path::Path;

use ::sled::Db;
use anyhow::{Context as _, Result};

use crate::subject::{Class, Entry, Face, Subject, Writer};

pub(crate) const ENTRY: Entry = Entry {
    name: "sled",
    classes: &[
        (Class::Synced, "0.34, defaults without the timed flush; insert, flush, and fdatasync of its file"),
        (Class::Unsynced, "0.34, defaults (flushed every 500 ms); insert only: it stays in the process"),
    ],
    faces: &[Face::Threads],
    open: |directory, class| Ok(Box::new(Sled::open(&directory.join("sled"), class)?)),
};

struct Sled {
    db: Db,
    file: File,
    synced: bool,
}

impl Sled {
    fn open(path: &Path, class: Class) -> Result<Sled> {
        let synced = class == Class::Synced;
        let config = ::sled::Config::new().path(path);
        let db = if synced { config.flush_every_ms(None) } else { config }.open()?;
        let file = path.join("db");
        let file = File::open(&file).with_context(|| format!("opening {}", file.display()))?;
        Ok(Sled { db, file, synced })
    }
}

impl Subject for Sled {
    fn writer(&self) -> Result<Box<dyn Writer + '_>> {
        Ok(Box::new(SledWriter(self)))
    }

    fn settle(&self) -> Result<()> {
        self.db.flush()?;
        Ok(self.file.sync_data()?)
    }
}

struct SledWriter<'a>(&'a Sled);

impl Writer for SledWriter<'_> {
    fn put(&mut self, key: u64, value: Vec<u8>) -> Result<()> {
        self.0.db.insert(key.to_be_bytes(), value)?;
        if self.0.synced {
            self.0.db.flush()?;
            self.0.file.sync_data()?;
        }
        Ok(())
    }
}
