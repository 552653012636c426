//! okaywal: a log whose committers share a sync. It has no way to write without one.

use ::okaywal::{Configuration, LogVoid, WriteAheadLog};
use anyhow::{Result, anyhow};

use crate::subject::{Class, Entry, Face, KEY_BYTES, Subject, Writer};

pub(crate) const ENTRY: Entry = Entry {
    name: "okaywal",
    classes: &[(
        Class::Synced,
        "segments of 16 MiB, checkpointed (into nothing) at 12 MiB, the ratio of its defaults; an entry per put",
    )],
    faces: &[Face::Threads],
    open: |directory, _| {
        let log = Configuration::default_for(directory.join("okaywal"))
            .preallocate_bytes(16 << 20)
            .checkpoint_after_bytes(12 << 20)
            .open(LogVoid)?;
        Ok(Box::new(Okay { log }))
    },
};

struct Okay {
    log: WriteAheadLog,
}

impl Subject for Okay {
    fn writer(&self) -> Result<Box<dyn Writer + '_>> {
        Ok(Box::new(OkayWriter { log: &self.log, record: Vec::new() }))
    }

    fn settle(&self) -> Result<()> {
        Ok(())
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.log.shutdown().map_err(|error| anyhow!(error))
    }
}

struct OkayWriter<'a> {
    log: &'a WriteAheadLog,
    record: Vec<u8>,
}

impl Writer for OkayWriter<'_> {
    fn put(&mut self, key: u64, value: Vec<u8>) -> Result<()> {
        let key: [u8; KEY_BYTES] = key.to_be_bytes();
        self.record.clear();
        self.record.extend_from_slice(&key);
        self.record.extend_from_slice(&value);
        let mut entry = self.log.begin_entry()?;
        entry.write_chunk(&self.record)?;
        entry.commit()?;
        Ok(())
    }
}
