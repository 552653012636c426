//! The work: so many writers, each of which puts again as soon as its put has returned.
//!
//! All begin together. What begins within the warm-up is not counted; what begins after it is, also if it ends late, so
//! that a stall at the end does not go missing. Each writer has at least one that counts.

use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow};

use crate::figures::Taken;
use crate::subject::{Measure, Subject, TaskPut};

/// Keys that each writer goes through.
const KEYS_PER_WRITER: u64 = 1_000;

/// The number of turns, of all writers of all measurements.
static TURNS: AtomicU64 = AtomicU64::new(0);

/// The parameters of a measurement with tasks: the load, and the number of threads.
pub(crate) struct Load {
    pub(crate) of: Measure,
    pub(crate) threads: usize,
}

/// One writer's place in the load.
struct Turn {
    number: u64,
    /// Of this turn alone, so that no value was there before: a store may write nothing for an equal one.
    mark: u64,
    first_key: u64,
    counted_from: Instant,
    until: Instant,
    value_bytes: usize,
    latencies_ns: Vec<u64>,
}

impl Turn {
    fn new(of: &Measure, writer: usize, started: Instant) -> Result<Turn> {
        let counted_from = started + of.warm_up;
        Ok(Turn {
            number: 0,
            mark: TURNS.fetch_add(1, Ordering::Relaxed) << 32,
            first_key: u64::try_from(writer)? * KEYS_PER_WRITER,
            counted_from,
            until: counted_from + of.measure,
            value_bytes: of.value_bytes,
            latencies_ns: Vec::new(),
        })
    }

    /// The next put, and when it begins; its value is made before that.
    fn next(&mut self) -> Option<(u64, Vec<u8>, Instant)> {
        let key = self.first_key + self.number % KEYS_PER_WRITER;
        let mut value = vec![self.number.to_le_bytes()[0]; self.value_bytes];
        value.iter_mut().zip((self.mark + self.number).to_le_bytes()).for_each(|(byte, own)| *byte = own);
        self.number += 1;
        let begun = Instant::now();
        (begun < self.until || self.latencies_ns.is_empty()).then_some((key, value, begun))
    }

    fn returned(&mut self, begun: Instant) {
        if begun >= self.counted_from {
            self.latencies_ns.push(u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX));
        }
    }
}

/// Lets as many threads put as there are writers.
///
/// # Errors
/// The first put that failed.
pub(crate) fn measure_threads(subject: &dyn Subject, of: &Measure) -> Result<Taken> {
    let begin = Barrier::new(of.writers + 1);
    let (latencies, took) = thread::scope(|scope| -> Result<_> {
        let threads: Vec<_> = (0..of.writers)
            .map(|writer| {
                let begin = &begin;
                scope.spawn(move || -> Result<Vec<u64>> {
                    // Whether it opens or not, the others wait here.
                    let opened = subject.writer();
                    begin.wait();
                    let mut turn = Turn::new(of, writer, Instant::now())?;
                    let mut putter = opened?;
                    while let Some((key, value, begun)) = turn.next() {
                        putter.put(key, value)?;
                        turn.returned(begun);
                    }
                    Ok(turn.latencies_ns)
                })
            })
            .collect();
        begin.wait();
        let counted_from = Instant::now() + of.warm_up;
        let mut latencies = Vec::new();
        for thread in threads {
            latencies.extend(thread.join().map_err(|_| anyhow!("a writer panicked"))??);
        }
        Ok((latencies, counted_from.elapsed()))
    })?;
    Ok(Taken { latencies_ns: latencies, took })
}

/// Lets as many tasks put as there are writers.
///
/// # Errors
/// The first put that failed; no runtime could be made.
pub(crate) fn measure_tasks<P: TaskPut>(putter: &P, load: &Load) -> Result<Taken> {
    let runtime = match load.of.writers {
        // One task has no use for worker threads.
        1 => tokio::runtime::Builder::new_current_thread().build(),
        _ => tokio::runtime::Builder::new_multi_thread().worker_threads(load.threads).build(),
    };
    let (latencies, took) = runtime.context("making a runtime")?.block_on(async {
        let started = Instant::now();
        let mut tasks = Vec::new();
        for writer in 0..load.of.writers {
            let putter = putter.clone();
            let mut turn = Turn::new(&load.of, writer, started)?;
            tasks.push(tokio::spawn(async move {
                while let Some((key, value, begun)) = turn.next() {
                    putter.put(key, value).await?;
                    turn.returned(begun);
                    // A put that never waits would keep the other tasks from their turn.
                    tokio::task::yield_now().await;
                }
                anyhow::Ok(turn.latencies_ns)
            }));
        }
        let mut latencies = Vec::new();
        for task in tasks {
            latencies.extend(task.await??);
        }
        anyhow::Ok((latencies, (started + load.of.warm_up).elapsed()))
    })?;
    Ok(Taken { latencies_ns: latencies, took })
}

/// `count` puts by each of `writers` threads: for the trace of system calls, which counts and takes no time.
///
/// # Errors
/// The first put that failed.
pub(crate) fn put_counted(
    subject: &dyn Subject,
    writers: usize,
    count: u64,
    value_bytes: usize,
) -> Result<()> {
    let begin = Barrier::new(writers);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..writers)
            .map(|writer| {
                let begin = &begin;
                scope.spawn(move || -> Result<()> {
                    let opened = subject.writer();
                    begin.wait();
                    let mut putter = opened?;
                    let first_key = u64::try_from(writer)? * KEYS_PER_WRITER;
                    (0..count).try_for_each(|number| putter.put(first_key + number, vec![7; value_bytes]))
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a writer panicked"))?)
    })
}
