//! Threads of a store's own, so that no async runtime's thread waits for its disk.
//!
//! A job that was handed over runs to its end, though its future is dropped. A panic in a job is an error.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;

use crossbeam_channel::{Sender, unbounded};
use tokio::sync::oneshot;

use crate::error::{Error, ErrorKind, Result};
use crate::store::contract::StoreError;

type Job = Box<dyn FnOnce() + Send>;

/// A fixed number of threads and their one queue.
///
/// The queue has no bound of its own: there is one apply at a time, and loads are bounded by who waits for them.
#[derive(Debug)]
pub(crate) struct Workers {
    jobs: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    pub(crate) fn start(name: &str, count: usize) -> Result<Workers> {
        let (jobs, queue) = unbounded::<Job>();
        let mut threads = Vec::with_capacity(count);
        for _ in 0..count {
            let queue = queue.clone();
            let thread = std::thread::Builder::new()
                .name(name.to_owned())
                .spawn(move || queue.into_iter().for_each(|job| job()))
                .map_err(|error| Error::io(format!("cannot start the thread {name}"), error))?;
            threads.push(thread);
        }
        Ok(Workers { jobs: Some(jobs), threads })
    }

    /// Runs `job` on one of the threads.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, outcome) = oneshot::channel();
        let job: Job = Box::new(move || {
            let done = catch_unwind(AssertUnwindSafe(job)).unwrap_or_else(|_panic| Err(failed("panicked")));
            // That nobody waits any more is no error: the job is done.
            drop(answer.send(done));
        });
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        if !sent {
            return Err(failed("has no threads any more"));
        }
        outcome.await.unwrap_or_else(|_| Err(failed("ended before its answer")))
    }
}

fn failed(how: &str) -> StoreError {
    StoreError::Fatal(Error::new(ErrorKind::StoreFailed, format!("the store {how}")))
}

impl Drop for Workers {
    /// Waits for the jobs that were handed over.
    fn drop(&mut self) {
        drop(self.jobs.take());
        for thread in self.threads.drain(..) {
            // A panic outside of a job cannot happen: the loop does nothing else.
            drop(thread.join());
        }
    }
}
