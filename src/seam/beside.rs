//! Jobs that threads do beside each other, and that end before whoever gave them goes on.

use std::io;

#[cfg(not(forebay_simulation))]
use {
    crate::seam::sync::{Mutex, thread},
    std::sync::PoisonError,
};

/// How many threads the system would run at a time. One in the simulation, whose runs are to be repeatable; three in
/// the crate's tests, whatever the machine has.
pub(crate) fn processors() -> usize {
    match cfg!(forebay_simulation) {
        true => 1,
        false if cfg!(test) => 3,
        // A system that does not tell is taken for one that has one.
        false => std::thread::available_parallelism().map_or(1, usize::from),
    }
}

/// Does jobs on so many threads, of which this is one, each taking the next. Returns their results in the jobs' order.
/// If one panics, so does this, when all threads have ended.
///
/// # Errors
/// What the system says if it cannot start a thread.
pub(crate) fn work_off<J: Send, T: Send>(
    threads: usize,
    jobs: Vec<J>,
    work: impl Fn(J) -> T + Sync,
) -> io::Result<Vec<T>> {
    #[cfg(not(forebay_simulation))]
    if threads > 1 {
        return on_threads(threads, jobs, work);
    }
    debug_assert!(threads == 1, "the simulation has no threads for this");
    Ok(jobs.into_iter().map(work).collect())
}

#[cfg(not(forebay_simulation))]
fn on_threads<J: Send, T: Send>(
    threads: usize,
    jobs: Vec<J>,
    work: impl Fn(J) -> T + Sync,
) -> io::Result<Vec<T>> {
    let mut results: Vec<Option<T>> = jobs.iter().map(|_| None).collect();
    let queue = Mutex::new(jobs.into_iter().zip(&mut results));
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work_some = || {
        while let Some((job, result)) = next() {
            *result = Some(work(job));
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            thread::Builder::new().name("forebay-check".into()).spawn_scoped(scope, work_some)?;
        }
        work_some();
        Ok::<(), io::Error>(())
    })?;
    drop(queue);
    Ok(results.into_iter().flatten().collect())
}
