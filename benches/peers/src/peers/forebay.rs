//! Forebay through its public faces: written behind, written through, and the journal alone.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use bytes::Bytes;
use forebay::journal::Journal;
use forebay::{
    BlockingCache, Builder, Cache, Durability, Forebay, JournalOptions, Seq, SledStore, WritePolicy,
};

use crate::figures::Taken;
use crate::load::{Load, measure_tasks};
use crate::subject::{Class, Entry, Face, Subject, TaskPut, Writer};

pub(crate) const BEHIND: Entry = Entry {
    name: "forebay",
    classes: &[
        (
            Class::Synced,
            "written behind, Durability::Sync, over SledStore, whose drain gives way to writers for a second",
        ),
        (
            Class::Unsynced,
            "written behind, Durability::Buffered synced every 100 ms, over SledStore, likewise",
        ),
    ],
    faces: &[Face::Threads, Face::Tasks],
    open: |directory, class| {
        Ok(Box::new(Layer::open(over_sled(directory)?, directory, Some(durability(class)))?))
    },
};

/// The share that the drain takes from the writers, whose puts are the same.
pub(crate) const DRAINED: Entry = Entry {
    name: "forebay-drained",
    classes: &[
        (Class::Synced, "as forebay, with a drain that gives way to nobody: drain_delay_max is zero"),
        (Class::Unsynced, "as forebay, with a drain that gives way to nobody: drain_delay_max is zero"),
    ],
    faces: &[Face::Threads, Face::Tasks],
    open: |directory, class| {
        let builder = over_sled(directory)?.drain_delay_max(Duration::ZERO);
        Ok(Box::new(Layer::open(builder, directory, Some(durability(class)))?))
    },
};

pub(crate) const THROUGH: Entry = Entry {
    name: "forebay-through",
    classes: &[(Class::Synced, "written through to SledStore, without a journal")],
    faces: &[Face::Threads, Face::Tasks],
    open: |directory, _| Ok(Box::new(Layer::open(over_sled(directory)?, directory, None)?)),
};

pub(crate) const JOURNAL: Entry = Entry {
    name: "forebay-journal",
    classes: &[
        (Class::Synced, "the module journal alone, Durability::Sync; trimmed between the measurements"),
        (
            Class::Unsynced,
            "the module journal alone, Durability::Buffered synced every 100 ms; trimmed likewise",
        ),
    ],
    faces: &[Face::Threads],
    open: |directory, class| {
        let journal = Journal::open(directory.join("journal"), JournalOptions::default(), durability(class))?;
        Ok(Box::new(Queue { journal, last: AtomicU64::new(0) }))
    },
};

fn durability(class: Class) -> Durability {
    match class {
        Class::Synced => Durability::Sync,
        Class::Unsynced => Durability::Buffered { sync_interval: Duration::from_millis(100) },
    }
}

fn over_sled(directory: &Path) -> Result<Builder> {
    Ok(Forebay::builder(SledStore::open(directory.join("store"))?))
}

struct Layer {
    bay: Forebay,
    cache: Cache<u64, Bytes>,
    blocking: BlockingCache<u64, Bytes>,
}

impl Layer {
    /// Without a durability: without a journal, and the writes go through.
    fn open(builder: Builder, directory: &Path, behind: Option<Durability>) -> Result<Layer> {
        let (builder, policy) = match behind {
            Some(durability) => {
                (builder.journal(directory.join("journal")).durability(durability), WritePolicy::Behind)
            }
            None => (builder, WritePolicy::Through),
        };
        let bay = builder.open_blocking()?;
        let cache: Cache<u64, Bytes> = bay.cache("peers").capacity(100_000).write_policy(policy).open()?;
        let blocking = cache.blocking();
        Ok(Layer { bay, cache, blocking })
    }
}

impl Subject for Layer {
    fn writer(&self) -> Result<Box<dyn Writer + '_>> {
        Ok(Box::new(LayerWriter(&self.blocking)))
    }

    fn measure_tasks(&self, load: &Load) -> Result<Taken> {
        measure_tasks(&LayerTask(self.cache.clone()), load)
    }

    fn settle(&self) -> Result<()> {
        self.bay.blocking().flush()?;
        Ok(())
    }

    fn close(self: Box<Self>) -> Result<()> {
        let closed = self.bay.blocking().close()?;
        ensure!(closed.queued == 0, "{} records are queued after a flush", closed.queued);
        Ok(())
    }
}

struct LayerWriter<'a>(&'a BlockingCache<u64, Bytes>);

impl Writer for LayerWriter<'_> {
    fn put(&mut self, key: u64, value: Vec<u8>) -> Result<()> {
        self.0.put(&key, value.into())?;
        Ok(())
    }
}

#[derive(Clone)]
struct LayerTask(Cache<u64, Bytes>);

impl TaskPut for LayerTask {
    async fn put(&self, key: u64, value: Vec<u8>) -> Result<()> {
        self.0.put(&key, value.into()).await?;
        Ok(())
    }
}

struct Queue {
    journal: Journal,
    last: AtomicU64,
}

impl Subject for Queue {
    fn writer(&self) -> Result<Box<dyn Writer + '_>> {
        Ok(Box::new(QueueWriter(self)))
    }

    fn settle(&self) -> Result<()> {
        self.journal.sync()?;
        Ok(self.journal.trim(Seq::new(self.last.load(Ordering::Acquire)))?)
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(self.journal.close()?)
    }
}

struct QueueWriter<'a>(&'a Queue);

impl Writer for QueueWriter<'_> {
    fn put(&mut self, key: u64, value: Vec<u8>) -> Result<()> {
        let place = self.0.journal.append(&[&key.to_le_bytes(), &value])?;
        self.0.last.fetch_max(place.get(), Ordering::AcqRel);
        Ok(())
    }
}
