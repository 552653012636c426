//! One measurement: so many threads call one subject for a while, in batches that are timed as a whole, because a
//! look at the clock takes as long as a hit.

use std::fmt;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use clap::ValueEnum;
use tokio::task::LocalSet;

use crate::orders::Order;
use crate::subjects::{Subject, Value, runtime};

/// Calls that are timed together.
const BATCH: usize = 1_000;
/// Keys of one `get_many`.
const MANY: usize = 100;
/// Tasks that ask for one absent key.
pub(crate) const HERD: usize = 1_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum What {
    /// Of a value of 100 bytes.
    Hit,
    /// Of a value of 8 bytes, which costs nothing to clone: what is left is the cache's own.
    HitSmall,
    Miss,
    GetMany,
    Herd,
    Invalidate,
    Bump,
}

impl What {
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

/// The result of one measurement.
pub(crate) struct Taken {
    /// Of each batch, what one call took.
    pub(crate) call_ns: Vec<f64>,
    pub(crate) calls_per_s: f64,
}

/// A subject without its types.
pub(crate) trait Measured {
    fn name(&self) -> &'static str;
    /// Nothing if the subject has no such call.
    fn measure(&self, what: What, order: &Order, threads: usize, time: Duration) -> Result<Option<Taken>>;
}

/// A subject that holds all keys of an order.
pub(crate) struct Held<S, V> {
    subject: S,
    /// The next key that nobody has asked for.
    fresh: AtomicU64,
    value: PhantomData<fn() -> V>,
}

impl<V: Value, S: Subject<V>> Held<S, V> {
    /// As a box, filled.
    pub(crate) fn boxed(distinct: u64) -> Result<Box<dyn Measured>> {
        // Ample, because a shard may get more than its share.
        let subject = S::open(usize::try_from(distinct)? * 2)?;
        fill_all(&subject, distinct)?;
        Ok(Box::new(Held { subject, fresh: AtomicU64::new(1 << 40), value: PhantomData }))
    }

    /// Lets `threads` threads run `batch` again and again, each from a place of its own.
    fn in_threads(
        &self,
        threads: usize,
        time: Duration,
        batch: impl AsyncFn(&S, usize, usize) -> Result<(usize, Duration)> + Sync,
    ) -> Result<Taken> {
        let together = Barrier::new(threads);
        let run = |thread: usize| -> Result<Vec<(usize, Duration)>> {
            let runtime = runtime()?;
            together.wait();
            let begun = Instant::now();
            runtime.block_on(async {
                let mut batches = Vec::new();
                while begun.elapsed() < time {
                    batches.push(batch(&self.subject, thread, batches.len()).await?);
                }
                Ok(batches)
            })
        };
        let batches = thread::scope(|scope| {
            let threads: Vec<_> = (0..threads).map(|thread| scope.spawn(move || run(thread))).collect();
            let joined =
                threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?);
            joined.collect::<Result<Vec<_>>>()
        })?;
        let mut taken = Taken { call_ns: Vec::new(), calls_per_s: 0.0 };
        for batches in batches {
            let calls: usize = batches.iter().map(|(calls, _)| calls).sum();
            let busy: Duration = batches.iter().map(|(_, took)| took).sum();
            taken.calls_per_s += calls as f64 / busy.as_secs_f64();
            taken.call_ns.extend(batches.iter().map(|(calls, took)| took.as_nanos() as f64 / *calls as f64));
        }
        Ok(taken)
    }

    /// One absent key after the other, each asked for by a herd that is spread over the threads.
    fn herds(&self, threads: usize, time: Duration) -> Result<Taken> {
        let together = Barrier::new(threads);
        let (key, asked) = (AtomicU64::new(0), Arc::new(AtomicUsize::new(0)));
        let enough = std::sync::atomic::AtomicBool::new(false);
        let run = |thread: usize| -> Result<Vec<Duration>> {
            let runtime = runtime()?;
            let begun = Instant::now();
            let mut herds = Vec::new();
            loop {
                if thread == 0 {
                    enough.store(begun.elapsed() >= time && !herds.is_empty(), Ordering::SeqCst);
                    key.store(self.fresh.fetch_add(1, Ordering::SeqCst), Ordering::SeqCst);
                    asked.store(0, Ordering::SeqCst);
                }
                together.wait();
                if enough.load(Ordering::SeqCst) {
                    return Ok(herds);
                }
                let (set, key) = (LocalSet::new(), key.load(Ordering::SeqCst));
                let started = Instant::now();
                let tasks: Vec<_> = (thread..HERD)
                    .step_by(threads)
                    .map(|_| {
                        let (subject, asked) = (self.subject.clone(), Arc::clone(&asked));
                        set.spawn_local(async move {
                            asked.fetch_add(1, Ordering::SeqCst);
                            subject.get_or_load(key, asked, HERD).await
                        })
                    })
                    .collect();
                runtime.block_on(set.run_until(async {
                    for task in tasks {
                        ensure!(task.await?.is_some(), "{} loaded nothing", S::NAME);
                    }
                    Ok(())
                }))?;
                together.wait();
                herds.push(started.elapsed());
            }
        };
        let herds = thread::scope(|scope| {
            let threads: Vec<_> = (0..threads).map(|thread| scope.spawn(move || run(thread))).collect();
            let joined =
                threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?);
            joined.collect::<Result<Vec<_>>>()
        })?;
        let call_ns: Vec<f64> =
            herds.iter().flatten().map(|took| took.as_nanos() as f64 / HERD as f64).collect();
        let mean = call_ns.iter().sum::<f64>() / call_ns.len() as f64;
        Ok(Taken { call_ns, calls_per_s: 1e9 / mean })
    }
}

impl<V: Value, S: Subject<V>> Measured for Held<S, V> {
    fn name(&self) -> &'static str {
        S::NAME
    }

    fn measure(&self, what: What, order: &Order, threads: usize, time: Duration) -> Result<Option<Taken>> {
        let keys = &order.keys;
        // Each thread begins elsewhere in the same order.
        let from = |thread: usize, batch: usize| {
            let at = keys.len() / threads * thread + BATCH * batch;
            keys.iter().cycle().skip(at % keys.len()).take(BATCH)
        };
        let taken = match what {
            What::Hit | What::HitSmall | What::Miss => {
                let absent = what == What::Miss;
                let above = if absent { order.distinct } else { 0 };
                self.in_threads(threads, time, async |subject, thread, batch| {
                    let keys: Vec<u64> = from(thread, batch).map(|key| key + above).collect();
                    let (begun, mut found) = (Instant::now(), 0);
                    for key in &keys {
                        found += usize::from(std::hint::black_box(subject.get(key).await).is_some());
                    }
                    let took = begun.elapsed();
                    ensure!(found == if absent { 0 } else { BATCH }, "{}: {found} of {BATCH} found", S::NAME);
                    Ok((BATCH, took))
                })?
            }
            What::GetMany => self.in_threads(threads, time, async |subject, thread, batch| {
                let keys: Vec<u64> = from(thread, batch).copied().collect();
                let (begun, mut found) = (Instant::now(), 0);
                for some in keys.chunks(MANY) {
                    found += subject.get_many(some).await;
                }
                let took = begun.elapsed();
                ensure!(found == BATCH, "{}: {found} of {BATCH} found", S::NAME);
                Ok((BATCH, took))
            })?,
            What::Invalidate => {
                let taken = self.in_threads(threads, time, async |subject, thread, batch| {
                    let keys: Vec<u64> = from(thread, batch).copied().collect();
                    let begun = Instant::now();
                    for key in &keys {
                        subject.invalidate(key).await;
                    }
                    let took = begun.elapsed();
                    subject.fill(&keys).await?;
                    Ok((BATCH, took))
                })?;
                // Another thread's invalidation may have refused what was filled in, and the next one wants hits.
                fill_all(&self.subject, order.distinct)?;
                taken
            }
            What::Herd if !S::SHARES_LOADS => return Ok(None),
            What::Herd => self.herds(threads, time)?,
            What::Bump => return Ok(None),
        };
        Ok(Some(taken))
    }
}

fn fill_all<V: Value, S: Subject<V>>(subject: &S, distinct: u64) -> Result<()> {
    runtime()?.block_on(subject.fill(&(0..distinct).collect::<Vec<u64>>()))
}

/// Bumps of an empty cache before one is measured: the first one after a million loads takes 100 us.
const WARM_UPS: usize = 10;

/// Measures one bump of so many entries. Nothing that was there is served afterwards.
pub(crate) fn bump<S: Subject<u64>>(entries: u64) -> Result<f64> {
    let subject = S::open(usize::try_from(entries)? * 2)?;
    let (runtime, keys) = (runtime()?, (0..entries).collect::<Vec<u64>>());
    runtime.block_on(subject.fill(&keys))?;
    (0..WARM_UPS).try_for_each(|_| subject.bump_nothing())?;
    let begun = Instant::now();
    subject.bump()?;
    let took = begun.elapsed();
    runtime.block_on(async {
        for key in keys.iter().step_by(997) {
            ensure!(subject.get(key).await.is_none(), "{} served {key} after the bump", S::NAME);
        }
        Ok(())
    })?;
    Ok(took.as_nanos() as f64)
}
