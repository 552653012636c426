//! Jobs that several threads do in parallel. They have ended when the call returns.

use std::io;

#[cfg(not(forebay_simulation))]
use {
    crate::seam::sync::{Mutex, thread},
    std::sync::PoisonError,
};

/// Returns the number of threads that the system runs at a time. A simulated system has one, so that its runs can be
/// repeated.
pub(crate) fn processors() -> usize {
    if cfg!(forebay_simulation) {
        return 1;
    }
    // A system that does not say is taken for one with a single processor.
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Does jobs on so many threads, of which the calling one is the first. Each thread takes the next job. Returns the
/// results in the jobs' order. A panic of one is passed on when all threads have ended.
///
/// # Errors
/// The system's if it cannot start a thread.
pub(crate) fn parallel_map<J: Send, T: Send>(
    threads: usize,
    jobs: Vec<J>,
    work: impl Fn(J) -> T + Sync,
) -> io::Result<Vec<T>> {
    // A single thread needs no queue, and a simulated system has no other.
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
    // A place for each job from the start: results keep the order of their jobs, whichever thread ends first.
    let mut results: Vec<Option<T>> = jobs.iter().map(|_| None).collect();
    let queue = Mutex::new(jobs.into_iter().zip(&mut results));
    // A function of its own, so that the lock is released before the job is done.
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work_some = || {
        while let Some((job, result)) = next() {
            *result = Some(work(job));
        }
    };
    thread::scope(|scope| {
        // The calling thread is one of them. If one cannot be made, the others still end the queue.
        for _ in 1..threads {
            thread::Builder::new().name("forebay-check".into()).spawn_scoped(scope, work_some)?;
        }
        work_some();
        Ok::<(), io::Error>(())
    })?;
    drop(queue);
    Ok(results.into_iter().flatten().collect())
}
