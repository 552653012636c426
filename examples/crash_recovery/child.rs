//! The process that is killed: it writes from several threads for as long as it lives, and says what was
//! acknowledged.
//!
//! It prints `ready` once the layer is open, and then one line, `thread counter number`, after each write
//! that returned; never before. A line is one short write to a pipe, so it reaches the parent wholly or not
//! at all. A write that found the disk full is told as `full` and tried again; any other failure is told as
//! `failed: `, its kind and its sentence, and ends the process.

use std::io::Write as _;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use forebay::{Cache, Error, ErrorKind, Forebay, WritePolicy};

use crate::history::{Entry, Id, Kind, Place, Side, Step};
use crate::layer::{self, Settings};

/// The wait of a writer before it tries again on a full disk.
const FULL_PAUSE: Duration = Duration::from_millis(2);

/// Writes for ever; returns only what went wrong. `next` holds each thread's first counter.
pub(crate) fn run(settings: &Settings, seed: u64, next: &[u64]) -> Result<()> {
    let opened = layer::open(settings);
    if let Err(error) = &opened {
        say(&format!("failed: {} opening: {}\n", kind(error), one_line(error)))?;
    }
    let bay = opened?;
    let left = layer::open_cache(&bay, Side::Left)?;
    let right = layer::open_cache(&bay, Side::Right)?;
    say("ready\n")?;
    thread::scope(|scope| {
        let writers: Vec<_> = next
            .iter()
            .enumerate()
            .map(|(thread, &first)| {
                let writer = Writer { bay: &bay, left: &left, right: &right, seed };
                scope.spawn(move || writer.run(thread, first))
            })
            .collect();
        // A writer ends only by an error; the process must not look alive then, with a thread less.
        for writer in writers {
            writer.join().map_err(|_| anyhow!("a writer panicked"))??;
        }
        Ok(())
    })
}

struct Writer<'a> {
    bay: &'a Forebay,
    left: &'a Cache<u64, Entry>,
    right: &'a Cache<u64, Entry>,
    seed: u64,
}

impl Writer<'_> {
    fn run(&self, thread: usize, first: u64) -> Result<()> {
        for counter in first.. {
            let id = Id { thread, counter };
            let written = loop {
                match self.write(Step::of(self.seed, id)) {
                    Err(error) if is_full(&error) => {
                        say("full\n")?;
                        thread::sleep(FULL_PAUSE);
                    }
                    written => break written,
                }
            };
            match written {
                Ok(seq) => say(&format!("{thread} {counter} {seq}\n"))?,
                Err(error) => {
                    // The other writers may go on for ever, and the parent would take this one for a slow one.
                    say(&format!("failed: {} {id:?}: {}\n", kind(&error), one_line(&error)))?;
                    std::process::exit(1);
                }
            }
        }
        Ok(())
    }

    fn write(&self, step: Step) -> Result<u64> {
        let receipt = match step.kind {
            Kind::Behind(place) => self.single(step, place, WritePolicy::Behind)?,
            Kind::Through(place) => self.single(step, place, WritePolicy::Through)?,
            Kind::Pair(_) => {
                let mut batch = self.bay.batch();
                for place in step.places() {
                    match step.entry(self.seed, place) {
                        Some(entry) => batch.put(self.cache(place.side), &place.key, entry)?,
                        None => batch.remove(self.cache(place.side), &place.key)?,
                    };
                }
                self.bay.blocking().commit(batch)?
            }
        };
        Ok(receipt.seq().get())
    }

    fn single(&self, step: Step, place: Place, policy: WritePolicy) -> Result<forebay::Receipt> {
        let cache = self.cache(place.side).blocking();
        Ok(match step.entry(self.seed, place) {
            Some(entry) => cache.put_with(&place.key, entry, policy)?,
            None => cache.remove_with(&place.key, policy)?,
        })
    }

    fn cache(&self, side: Side) -> &Cache<u64, Entry> {
        match side {
            Side::Left => self.left,
            Side::Right => self.right,
        }
    }
}

/// Nothing of such a write happened, and the same one may go through later.
fn is_full(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Error>().is_some_and(|error| error.kind() == ErrorKind::DiskFull)
}

fn kind(error: &anyhow::Error) -> String {
    error.downcast_ref::<Error>().map_or_else(|| "other".to_owned(), |error| format!("{:?}", error.kind()))
}

fn one_line(error: &anyhow::Error) -> String {
    format!("{error:#}").replace('\n', " ")
}

fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(line.as_bytes()).and_then(|()| out.flush()).context("telling the parent")
}
