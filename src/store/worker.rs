//! A few threads for calls that may sit in the disk, so that no thread of an async runtime does.
//!
//! A job that was handed over runs to its end, whether or not anybody still waits for it. A panic in a job
//! reaches its caller as [`StoreError::Fatal`] and ends neither the thread nor the process. Dropping the
//! workers runs what was handed over, joins the threads, and returns then.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, unbounded};
use tokio::sync::oneshot;

use crate::error::{Error, ErrorKind, Result};
use crate::store::contract::StoreError;

type Job = Box<dyn FnOnce() + Send>;

/// A fixed number of threads that take jobs from one queue.
pub(crate) struct Workers {
    /// Unbounded, since a caller may be a runtime's thread that must not block. What bounds it: every job has
    /// a caller that waits for it before it sends another.
    sender: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Starts `count` threads called `name`.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if the system refuses a thread; those that run already end again.
    pub(crate) fn start(name: &str, count: usize) -> Result<Workers> {
        let (sender, receiver) = unbounded();
        let mut workers = Workers { sender: Some(sender), threads: Vec::with_capacity(count) };
        for _ in 0..count {
            let receiver: Receiver<Job> = receiver.clone();
            let thread = std::thread::Builder::new()
                .name(name.to_owned())
                .spawn(move || receiver.iter().for_each(|job| job()))
                .map_err(|error| Error::io(format!("starting a thread \"{name}\""), error))?;
            workers.threads.push(thread);
        }
        Ok(workers)
    }

    /// Runs `job` on one of the threads and returns what it returned.
    ///
    /// # Errors
    /// The job's own, or [`StoreError::Fatal`] if it panicked.
    ///
    /// # Cancellation
    /// Nothing is handed over before the first poll; from then on the job runs to its end.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move || {
            // An error means that nobody waits any more, which changes nothing about what was done.
            drop(answer.send(caught(job)));
        });
        let sender = self.sender.as_ref().expect("the sender is taken only by drop");
        sender.send(job).expect("the threads receive for as long as there is a sender");
        answered.await.expect("every job answers, a panicking one too")
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.sender = None;
        for thread in self.threads.drain(..) {
            // A worker cannot panic: it runs nothing but jobs, and those catch their own.
            drop(thread.join());
        }
    }
}

/// Runs a call of the store here; a panic in it becomes [`StoreError::Fatal`].
pub(crate) fn caught<T>(call: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    // Unwind safety: the call owns what it touches, or guards it by a lock that a panic poisons.
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| Err(panicked(&*panic)))
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> StoreError {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    let text = text.unwrap_or_else(|| "without a message".to_owned());
    StoreError::Fatal(Error::new(ErrorKind::StoreFailed, format!("a call of the store panicked: {text}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, mpsc};

    #[tokio::test]
    async fn a_panic_reaches_the_caller_and_the_thread_lives_on() {
        let workers = Workers::start("test", 1).unwrap();
        let error = workers.run::<()>(|| panic!("boom")).await.unwrap_err();
        assert!(
            matches!(&error, StoreError::Fatal(error) if format!("{error:#}").contains("boom")),
            "{error:?}"
        );
        assert_eq!(workers.run(|| Ok(7)).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn a_job_whose_future_was_dropped_still_runs_before_the_workers_end() {
        let workers = Workers::start("test", 1).unwrap();
        let done = Arc::new(AtomicBool::new(false));
        let (release, released) = mpsc::channel::<()>();
        let job = {
            let done = Arc::clone(&done);
            move || {
                released.recv().expect("the test releases the job");
                done.store(true, Ordering::SeqCst);
                Ok(())
            }
        };
        {
            let mut future = Box::pin(workers.run(job));
            let polled = std::future::poll_fn(|context| {
                std::task::Poll::Ready(future.as_mut().poll(context).is_ready())
            });
            assert!(!polled.await, "the job waits for its release");
        }
        release.send(()).unwrap();
        drop(workers);
        assert!(done.load(Ordering::SeqCst));
    }
}
