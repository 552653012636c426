//! A small runtime of its own for all that talks to a server.
//!
//! A connection needs somebody who drives it. The caller's runtime cannot: it may be that of a flusher that ends, or
//! there may be none (the blocking face). So every call is handed to this runtime, where it runs to its end within its
//! time, whether or not anybody still waits for it: a dropped future never leaves a transaction half sent.

use std::future::Future;

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

use crate::error::{Error, ErrorKind, Result};

/// The runtime; dropping it cuts what is under way.
pub(crate) struct Driver {
    /// `None` only while it is being dropped.
    runtime: Option<Runtime>,
}

impl Driver {
    /// Starts its one thread.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if the system refuses it.
    pub(crate) fn start() -> Result<Driver> {
        let built = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("forebay-postgres")
            .enable_all()
            .build()
            .map_err(|error| Error::io("starting the thread of a Postgres client", error))?;
        Ok(Driver { runtime: Some(built) })
    }

    /// Begins `work`; dropping the handle does not end it.
    pub(crate) fn begin<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.runtime.as_ref().expect("only dropping takes it").spawn(work)
    }

    /// Runs `work` and waits for it.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`] if it panicked.
    ///
    /// # Cancellation
    /// Nothing is begun before the first poll; from then on the work runs to its end.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T> {
        self.begin(work).await.map_err(|_| ended())
    }

    /// Runs `work` and blocks this thread until it is done.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`] if it panicked.
    pub(crate) fn block<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T> {
        let (answer, answered) = std::sync::mpsc::sync_channel(1);
        // Nobody waits any more if it cannot be sent.
        drop(self.begin(async move { drop(answer.send(work.await)) }));
        answered.recv().map_err(|_| ended())
    }
}

/// A call that never answered.
pub(crate) fn ended() -> Error {
    Error::new(ErrorKind::Closed, "a call of the Postgres client panicked, or the client is gone")
}

impl Drop for Driver {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Does not wait, so it may happen inside another runtime, too.
            runtime.shutdown_background();
        }
    }
}
