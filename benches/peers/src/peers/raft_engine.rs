//! raft-engine: the log of TiKV, whose writers share writes and syncs.

use ::raft_engine::{Config, Engine, LogBatch, ReadableSize};
use anyhow::{Context as _, Result};

use crate::subject::{Class, Entry, Face, Subject, Writer};

/// All puts belong to one group, as those of one log do.
const GROUP: u64 = 1;

pub(crate) const ENTRY: Entry = Entry {
    name: "raft-engine",
    classes: &[
        (Class::Synced, "defaults, prefill_for_recycle with 128 MB; a batch per put, written with sync"),
        (Class::Unsynced, "defaults, prefill_for_recycle with 128 MB; a batch per put, written without sync"),
    ],
    faces: &[Face::Threads],
    open: |directory, class| {
        let config = Config {
            dir: directory.join("raft-engine").to_str().context("a path that is not UTF-8")?.to_owned(),
            prefill_for_recycle: true,
            prefill_limit: Some(ReadableSize::mb(128)),
            ..Config::default()
        };
        Ok(Box::new(Raft { engine: Engine::open(config)?, synced: class == Class::Synced }))
    },
};

struct Raft {
    engine: Engine,
    synced: bool,
}

impl Subject for Raft {
    fn writer(&self) -> Result<Box<dyn Writer + '_>> {
        Ok(Box::new(RaftWriter { raft: self, batch: LogBatch::with_capacity(1) }))
    }

    fn settle(&self) -> Result<()> {
        let mut batch = LogBatch::with_capacity(1);
        batch.put(GROUP, b"settled".to_vec(), Vec::new())?;
        self.engine.write(&mut batch, true)?;
        Ok(())
    }
}

struct RaftWriter<'a> {
    raft: &'a Raft,
    batch: LogBatch,
}

impl Writer for RaftWriter<'_> {
    fn put(&mut self, key: u64, value: Vec<u8>) -> Result<()> {
        self.batch.put(GROUP, key.to_be_bytes().to_vec(), value)?;
        // It takes the batch's content and leaves it empty.
        self.raft.engine.write(&mut self.batch, self.raft.synced)?;
        Ok(())
    }
}
