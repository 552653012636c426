//! The bare system calls: `raw`, the floor of one durable write, and `raw-group`, the ceiling of writers that
//! share one.
//!
//! Both write one record behind the other into a file that was written once before.

use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result, anyhow};
use tokio::sync::oneshot;

use crate::figures::Taken;
use crate::load::{Load, measure_tasks};
use crate::raw_file::RawFile;
use crate::subject::{Class, Entry, Face, KEY_BYTES, Subject, TaskPut, Writer};

pub(crate) const RAW: Entry = Entry {
    name: "raw",
    classes: &[
        (
            Class::Synced,
            "pwrite and fdatasync into a file that was written once; every writer syncs for itself",
        ),
        (Class::Unsynced, "pwrite into a file that was written once"),
    ],
    faces: &[Face::Threads],
    open: |directory, class| {
        let file = RawFile::create(&directory.join("raw"))?;
        Ok(Box::new(Raw { file, synced: class == Class::Synced }))
    },
};

pub(crate) const RAW_GROUP: Entry = Entry {
    name: "raw-group",
    classes: &[(
        Class::Synced,
        "one thread that takes all that waits, writes it with one pwrite into a file that was written once, \
         makes one fdatasync and answers all",
    )],
    faces: &[Face::Threads, Face::Tasks],
    open: |directory, _| Ok(Box::new(RawGroup::open(directory)?)),
};

struct Raw {
    file: RawFile,
    synced: bool,
}

impl Subject for Raw {
    fn writer(&self) -> Result<Box<dyn Writer + '_>> {
        Ok(Box::new(RawWriter { raw: self, record: Vec::new() }))
    }

    fn settle(&self) -> Result<()> {
        self.file.sync()
    }
}

struct RawWriter<'a> {
    raw: &'a Raw,
    record: Vec<u8>,
}

impl Writer for RawWriter<'_> {
    fn put(&mut self, key: u64, value: Vec<u8>) -> Result<()> {
        self.record.clear();
        push_record(&mut self.record, key, &value);
        self.raw.file.write(&self.record)?;
        if self.raw.synced { self.raw.file.sync() } else { Ok(()) }
    }
}

fn push_record(to: &mut Vec<u8>, key: u64, value: &[u8]) {
    let key: [u8; KEY_BYTES] = key.to_le_bytes();
    to.extend_from_slice(&key);
    to.extend_from_slice(value);
}

struct RawGroup {
    shared: Arc<Shared>,
    committer: Option<JoinHandle<Result<()>>>,
}

struct Shared {
    line: Mutex<Line>,
    filled: Condvar,
}

/// The writes that wait for the committer.
#[derive(Default)]
struct Line {
    bytes: Vec<u8>,
    waiting: Vec<oneshot::Sender<()>>,
    closed: bool,
}

impl RawGroup {
    fn open(directory: &Path) -> Result<RawGroup> {
        let file = RawFile::create(&directory.join("raw-group"))?;
        let shared = Arc::new(Shared { line: Mutex::default(), filled: Condvar::new() });
        let committer = {
            let shared = Arc::clone(&shared);
            thread::Builder::new().name("raw-group".to_owned()).spawn(move || shared.commit_all(&file))?
        };
        Ok(RawGroup { shared, committer: Some(committer) })
    }

    fn end(&mut self) -> Result<()> {
        let Some(committer) = self.committer.take() else { return Ok(()) };
        self.shared.locked().closed = true;
        self.shared.filled.notify_one();
        committer.join().map_err(|_| anyhow!("the committer panicked"))?
    }
}

impl Drop for RawGroup {
    fn drop(&mut self) {
        // Who wants to know what it says calls `close`.
        let _ = self.end();
    }
}

impl Shared {
    fn locked(&self) -> std::sync::MutexGuard<'_, Line> {
        // A panic between two pushes would leave a record without its waiter: nothing that others suffer from.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn submit(&self, key: u64, value: &[u8]) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        let was_empty = {
            let mut line = self.locked();
            push_record(&mut line.bytes, key, value);
            line.waiting.push(sender);
            line.waiting.len() == 1
        };
        if was_empty {
            self.filled.notify_one();
        }
        receiver
    }

    /// The committer's work. On an error it ends, and who waits learns it from the answer that does not come.
    fn commit_all(&self, file: &RawFile) -> Result<()> {
        let (mut bytes, mut waiting) = (Vec::new(), Vec::new());
        loop {
            {
                let mut line = self.locked();
                while line.waiting.is_empty() {
                    if line.closed {
                        return Ok(());
                    }
                    line = self.filled.wait(line).unwrap_or_else(PoisonError::into_inner);
                }
                std::mem::swap(&mut line.bytes, &mut bytes);
                std::mem::swap(&mut line.waiting, &mut waiting);
            }
            file.write(&bytes)?;
            file.sync()?;
            bytes.clear();
            // A receiver that is gone wants no answer.
            for sender in waiting.drain(..) {
                let _ = sender.send(());
            }
        }
    }
}

impl Subject for RawGroup {
    fn writer(&self) -> Result<Box<dyn Writer + '_>> {
        Ok(Box::new(GroupWriter(&self.shared)))
    }

    fn measure_tasks(&self, load: &Load) -> Result<Taken> {
        measure_tasks(&GroupTask(Arc::clone(&self.shared)), load)
    }

    fn settle(&self) -> Result<()> {
        Ok(())
    }

    fn close(mut self: Box<Self>) -> Result<()> {
        self.end()
    }
}

struct GroupWriter<'a>(&'a Shared);

impl Writer for GroupWriter<'_> {
    fn put(&mut self, key: u64, value: Vec<u8>) -> Result<()> {
        self.0.submit(key, &value).blocking_recv().context("the committer ended")
    }
}

#[derive(Clone)]
struct GroupTask(Arc<Shared>);

impl TaskPut for GroupTask {
    async fn put(&self, key: u64, value: Vec<u8>) -> Result<()> {
        self.0.submit(key, &value).await.context("the committer ended")
    }
}
