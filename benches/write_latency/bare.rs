//! The comparisons for a layer's writes: the bare system calls, and the bare store, each by threads.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use crate::bare_sled::open_sled;
use crate::figures::Taken;
use crate::raw_file::RawFile;
use crate::{KEYS_PER_WRITER, VALUE_BYTES, nanoseconds};

const KEY_BYTES: usize = 8;
impl Put for RawFile {
    fn put(&self, _writer: usize, number: u64) -> Result<()> {
        self.write(&[number.to_le_bytes()[0]; KEY_BYTES + VALUE_BYTES])?;
        self.sync()
    }
}

/// The bare store, with the durability that a layer's has.
pub(crate) struct BareSled {
    db: sled::Db,
    /// Its flush syncs nothing, so the file is synced beside it.
    file: File,
    /// The number of puts so far: sled writes nothing where a key has the value already.
    next: AtomicU64,
}

impl BareSled {
    pub(crate) fn open(path: &Path) -> Result<BareSled> {
        let (db, file) = open_sled(path)?;
        Ok(BareSled { db, file, next: AtomicU64::new(0) })
    }
}

impl Put for BareSled {
    fn put(&self, writer: usize, number: u64) -> Result<()> {
        let key = writer as u64 * KEYS_PER_WRITER + number % KEYS_PER_WRITER;
        let mut value = self.next.fetch_add(1, Ordering::Relaxed).to_le_bytes().to_vec();
        value.resize(VALUE_BYTES, 7);
        self.db.insert(key.to_le_bytes(), value)?;
        self.db.flush()?;
        Ok(self.file.sync_data()?)
    }
}

/// A subject that a thread can put into by itself.
pub(crate) trait Put: Send + Sync + 'static {
    /// Puts durably what this writer puts as its `number`-th.
    fn put(&self, writer: usize, number: u64) -> Result<()>;
}

pub(crate) fn by_threads(what: &Arc<impl Put>, writers: usize, measure: Duration) -> Result<Taken> {
    let begin = Arc::new(Barrier::new(writers + 1));
    let threads: Vec<_> = (0..writers)
        .map(|writer| {
            let (what, begin) = (Arc::clone(what), Arc::clone(&begin));
            thread::spawn(move || {
                begin.wait();
                let started = Instant::now();
                let mut latencies_ns = Vec::new();
                for number in 0_u64.. {
                    let begun = Instant::now();
                    if begun - started >= measure {
                        break;
                    }
                    what.put(writer, number)?;
                    latencies_ns.push(nanoseconds(begun.elapsed()));
                }
                anyhow::Ok(latencies_ns)
            })
        })
        .collect();
    begin.wait();
    let started = Instant::now();
    let mut latencies_ns = Vec::new();
    for thread in threads {
        latencies_ns.extend(thread.join().map_err(|_| anyhow!("a writer panicked"))??);
    }
    Ok(Taken { latencies_ns, took: started.elapsed() })
}
