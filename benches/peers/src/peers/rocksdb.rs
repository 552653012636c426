//! RocksDB: a put into its write-ahead log, synced or not; concurrent puts share a write and a sync.

use ::rocksdb::{DB, Options, WriteOptions};
use anyhow::Result;

use crate::subject::{Class, Entry, Face, Subject, Writer};

pub(crate) const ENTRY: Entry = Entry {
    name: "rocksdb",
    classes: &[
        (Class::Synced, "defaults, no compression, recycle_log_file_num 4; WriteOptions::sync"),
        (
            Class::Unsynced,
            "defaults, no compression, recycle_log_file_num 4; sync off, the log goes to the system",
        ),
    ],
    faces: &[Face::Threads],
    open: |directory, class| {
        let mut options = Options::default();
        options.create_if_missing(true);
        // What its documentation advises for a synced log: a file that is written over needs no metadata synced.
        options.set_recycle_log_file_num(4);
        let db = DB::open(&options, directory.join("rocksdb"))?;
        Ok(Box::new(Rocks { db, synced: class == Class::Synced }))
    },
};

struct Rocks {
    db: DB,
    synced: bool,
}

impl Subject for Rocks {
    fn writer(&self) -> Result<Box<dyn Writer + '_>> {
        let mut options = WriteOptions::default();
        options.set_sync(self.synced);
        Ok(Box::new(RocksWriter { db: &self.db, options }))
    }

    fn settle(&self) -> Result<()> {
        Ok(self.db.flush_wal(true)?)
    }
}

struct RocksWriter<'a> {
    db: &'a DB,
    options: WriteOptions,
}

impl Writer for RocksWriter<'_> {
    fn put(&mut self, key: u64, value: Vec<u8>) -> Result<()> {
        Ok(self.db.put_opt(key.to_be_bytes(), value, &self.options)?)
    }
}
