//! persistent-queue: a queue whose items are rows of a store, here of redb; concurrent pushes may share a transaction.

use std::sync::{Mutex, PoisonError};

use ::persistent_queue::{Builder, Consumer, Durability, Producer, RedbStore};
use anyhow::Result;

use crate::subject::{Class, Entry, Face, KEY_BYTES, Subject, Writer};

pub(crate) const ENTRY: Entry = Entry {
    name: "persistent-queue",
    classes: &[
        (Class::Synced, "over its RedbStore, Durability::Group, emptied between the measurements"),
        (Class::Unsynced, "over its RedbStore, Durability::None: it stays in the process; emptied likewise"),
    ],
    faces: &[Face::Threads],
    open: |directory, class| {
        let durability = match class {
            Class::Synced => Durability::Group,
            Class::Unsynced => Durability::None,
        };
        let (producer, consumer) = Builder::new(RedbStore::open(directory.join("persistent-queue"))?)
            .capacity(usize::MAX)
            .durability(durability)
            .durable_acks(false)
            .open()?;
        Ok(Box::new(Queue { producer, consumer: Mutex::new(consumer) }))
    },
};

struct Queue {
    producer: Producer<RedbStore>,
    consumer: Mutex<Consumer<RedbStore>>,
}

impl Subject for Queue {
    fn writer(&self) -> Result<Box<dyn Writer + '_>> {
        Ok(Box::new(QueueWriter { producer: self.producer.clone(), record: Vec::new() }))
    }

    fn settle(&self) -> Result<()> {
        let consumer = self.consumer.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(item) = consumer.reserve()? {
            item.ack()?;
        }
        Ok(())
    }
}

struct QueueWriter {
    producer: Producer<RedbStore>,
    record: Vec<u8>,
}

impl Writer for QueueWriter {
    fn put(&mut self, key: u64, value: Vec<u8>) -> Result<()> {
        let key: [u8; KEY_BYTES] = key.to_be_bytes();
        self.record.clear();
        self.record.extend_from_slice(&key);
        self.record.extend_from_slice(&value);
        Ok(self.producer.push(&self.record)?)
    }
}
