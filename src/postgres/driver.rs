//! The runtime on which the connections to Postgres run.
//!
//! A connection needs a task that drives it. It cannot run on the caller's runtime: that may belong to a flusher that
//! ends, or there may be none (the blocking API). So each call is handed to this runtime, where it runs to its end or
//! to its timeout even if its caller no longer waits: a dropped future never leaves a transaction half sent.

use std::future::Future;

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

use crate::error::{Error, ErrorKind, Result};

/// The runtime. Dropping it aborts the running calls.
pub(crate) struct Driver {
    /// `None` only while the driver is being dropped.
    runtime: Option<Runtime>,
}

impl Driver {
    /// Starts the runtime, with one thread.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if the system refuses the thread.
    pub(crate) fn start() -> Result<Driver> {
        // A thread of its own: a current-thread runtime makes progress only while somebody blocks on it.
        let built = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("forebay-postgres")
            .enable_all()
            .build()
            .map_err(|error| Error::io("starting the thread of a Postgres client", error))?;
        Ok(Driver { runtime: Some(built) })
    }

    /// Starts `work`. Dropping the handle does not end it.
    pub(crate) fn begin<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.runtime.as_ref().expect("only dropping takes it").spawn(work)
    }

    /// Runs `work` and returns its result.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`] if it panicked.
    ///
    /// # Cancellation
    /// Nothing starts before the first poll; from then on the work runs to its end.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T> {
        // A panic ends its task only, so the other calls of the client go on.
        self.begin(work).await.map_err(|_| ended())
    }

    /// Runs `work` and blocks this thread until it has returned.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`] if it panicked.
    pub(crate) fn block<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T> {
        let (answer, answered) = std::sync::mpsc::sync_channel(1);
        // The receiver lives until the answer: this thread waits for it below.
        drop(self.begin(async move { drop(answer.send(work.await)) }));
        answered.recv().map_err(|_| ended())
    }
}

/// Makes the error for a call that never returned.
pub(crate) fn ended() -> Error {
    Error::new(ErrorKind::Closed, "a call of the Postgres client panicked, or the client is gone")
}

impl Drop for Driver {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // A plain drop would block, which tokio forbids inside a runtime.
            runtime.shutdown_background();
        }
    }
}
