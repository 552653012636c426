//! The common part of the embedded stores: load threads, fencing, the watermark, and the end after a failure.
//!
//! **Fencing** is a check under a mutex. This suffices because one process at a time can hold the lock of the
//! directory, that process has one store with its clones, and all of them share one mutex. The mutex is held from the
//! check until the batch is durable, and nobody can write without it.
//!
//! **Failures.** A failed write ends the store for good: every later call returns [`StoreError::Fatal`]. A failed sync
//! must not be repeated because the kernel has marked the pages clean, and the databases themselves refuse all writes
//! after a failed one, even after a full disk. Loads are refused too because the data in memory may not be on the disk.
//! Opening the store again reads what is on the disk.
//!
//! **Threads.** A batch is applied on the calling thread, which is the layer's flusher and may block: handing it to
//! another thread and back costs a write-through more than its sync. Loads run on threads of the store. A page in
//! memory could be read faster on the caller's thread, but nobody can know beforehand whether a load has to read the
//! disk or to wait for a batch. The layer's own memory answers what is hot.

pub(crate) mod directory;
pub(crate) mod layout;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, unbounded};
use tokio::sync::oneshot;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::Key;
use crate::safeguard::Safeguard;
use crate::store::contract::{
    Batch, BoxFuture, Claim, Op, Placement, Standing, Store, StoreError, Versioned,
};

/// The number of threads that load.
const LOAD_THREADS: usize = 2;

/// A database under an embedded store.
pub(crate) trait Database: Send + Sync + 'static {
    /// The state that only the writer may touch.
    type Writer: Send + 'static;

    /// Loads one value, concurrently with other loads and a write.
    ///
    /// # Errors
    /// [`StoreError::Transient`] or [`StoreError::Fatal`]; neither ends the store.
    fn load(&self, key: &Key) -> Result<Option<Versioned>, StoreError>;

    /// Writes the changes, and the point at which the store stands with them, atomically and durably. There is one
    /// change per key, in the order of keys.
    ///
    /// # Errors
    /// [`StoreError::Fatal`], which ends the store.
    fn write(
        &self,
        writer: &mut Self::Writer,
        changes: &[&Op],
        standing: &Standing,
    ) -> Result<(), StoreError>;

    /// Closes the files. Called once, when no other call is running and all acknowledged batches are durable.
    fn close(&mut self, writer: &mut Self::Writer);
}

/// A store on such a database. Clones share it. Dropping the last one finishes the calls that have begun, joins the
/// threads and closes the database.
pub(crate) struct Embedded<D: Database>(Arc<EmbeddedHandle<D>>);

/// The fields are dropped in their order: the workers have ended when the database closes.
struct EmbeddedHandle<D: Database> {
    workers: Workers,
    shared: Arc<GuardedDatabase<D>>,
}

/// The database and the lock of its writer, shared by the threads.
pub(crate) struct GuardedDatabase<D: Database> {
    pub(crate) database: D,
    pub(crate) state: Mutex<WriterState<D>>,
    /// The failure that ended the store, if one did.
    failed: OnceLock<Error>,
}

/// The state of the one writer, under the mutex.
pub(crate) struct WriterState<D: Database> {
    /// As it is on the disk.
    standing: Standing,
    pub(crate) writer: D::Writer,
}

impl<D: Database> Clone for Embedded<D> {
    fn clone(&self) -> Embedded<D> {
        Embedded(Arc::clone(&self.0))
    }
}

impl<D: Database> Embedded<D> {
    /// Starts the threads of an opened database.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if the system refuses one.
    pub(crate) fn start(database: D, writer: D::Writer, standing: Standing) -> Result<Embedded<D>> {
        let state = Mutex::new(WriterState { standing, writer });
        let shared = Arc::new(GuardedDatabase { database, state, failed: OnceLock::new() });
        Ok(Embedded(Arc::new(EmbeddedHandle {
            workers: Workers::start("forebay-load", LOAD_THREADS)?,
            shared,
        })))
    }

    /// Returns the failure that ended the store, if one did.
    pub(crate) fn failed(&self) -> Option<&Error> {
        self.0.shared.failed.get()
    }

    /// Returns the internals, for tests that look below the contract.
    #[cfg(test)]
    pub(crate) fn shared(&self) -> &Arc<GuardedDatabase<D>> {
        &self.0.shared
    }
}

impl<D: Database> Store for Embedded<D> {
    fn standing(&self) -> BoxFuture<'_, Result<Standing, StoreError>> {
        let shared = Arc::clone(&self.0.shared);
        Box::pin(self.0.workers.run(move || shared.with_state(|_, state| Ok(state.standing))))
    }

    fn claim<'a>(&'a self, claimed: &'a Claim) -> BoxFuture<'a, Result<Standing, StoreError>> {
        let (shared, claimed) = (Arc::clone(&self.0.shared), *claimed);
        Box::pin(
            self.0.workers.run(move || shared.with_state(|database, state| claim(database, state, &claimed))),
        )
    }

    fn load<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Versioned>, StoreError>> {
        let shared = Arc::clone(&self.0.shared);
        let key = key.clone();
        Box::pin(self.0.workers.run(move || shared.load(&key)))
    }

    fn load_many<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<Vec<Option<Versioned>>, StoreError>> {
        let shared = Arc::clone(&self.0.shared);
        let keys = keys.to_vec();
        Box::pin(self.0.workers.run(move || keys.iter().map(|key| shared.load(key)).collect()))
    }

    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            // On this thread, which the contract allows to block; a panic must not reach the flusher.
            caught(|| self.0.shared.with_state(|database, state| apply(database, state, batch)))
        })
    }
}

/// Implements [`Store`] and `Debug` for a public type that wraps an [`Embedded`] and adds nothing.
macro_rules! embedded_store {
    ($store:ident) => {
        impl std::fmt::Debug for $store {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($store)).field("failed", &self.0.failed()).finish_non_exhaustive()
            }
        }

        impl $crate::store::contract::Store for $store {
            fn standing(&self) -> BoxFuture<'_, Result<Standing, StoreError>> {
                self.0.standing()
            }

            fn claim<'a>(
                &'a self,
                claim: &'a $crate::store::contract::Claim,
            ) -> BoxFuture<'a, Result<Standing, StoreError>> {
                self.0.claim(claim)
            }

            fn load<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Versioned>, StoreError>> {
                self.0.load(key)
            }

            fn load_many<'a>(
                &'a self,
                keys: &'a [Key],
            ) -> BoxFuture<'a, Result<Vec<Option<Versioned>>, StoreError>> {
                self.0.load_many(keys)
            }

            fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<(), StoreError>> {
                self.0.apply(batch)
            }
        }
    };
}
pub(crate) use embedded_store;

impl<D: Database> GuardedDatabase<D> {
    /// Returns the database, unless a failure has ended the store.
    pub(crate) fn usable(&self) -> Result<&D, StoreError> {
        // A panic may have come between the data and the standing in memory, so nothing here may be believed.
        if self.state.is_poisoned() {
            self.failed
                .get_or_init(|| Error::new(ErrorKind::StoreFailed, "a call of the store panicked midway"));
        }
        match self.failed.get() {
            None => Ok(&self.database),
            Some(error) => {
                let context = "the store failed earlier and must be opened again";
                Err(StoreError::Fatal(error.clone().wrap(ErrorKind::StoreFailed, context)))
            }
        }
    }

    /// Runs a call that reads or changes the writer's state, with the mutex held. A fatal error or a panic ends the
    /// store.
    pub(crate) fn with_state<T>(
        &self,
        work: impl FnOnce(&D, &mut WriterState<D>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        // `failed` is read after the lock is taken: a call that waited for the lock while another one failed must not
        // write.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let result = work(self.usable()?, &mut state);
        // Only fatal errors end the store. A rejected or fenced batch has changed nothing.
        if let Err(StoreError::Fatal(error)) = &result {
            self.failed.get_or_init(|| error.clone());
        }
        result
    }

    fn load(&self, key: &Key) -> Result<Option<Versioned>, StoreError> {
        self.usable()?.load(key)
    }
}

impl<D: Database> Drop for GuardedDatabase<D> {
    fn drop(&mut self) {
        // A poisoned state is closed all the same, or its files would stay locked for this process.
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.database.close(&mut state.writer);
    }
}

fn claim<D: Database>(
    database: &D,
    state: &mut WriterState<D>,
    claim: &Claim,
) -> Result<Standing, StoreError> {
    let before = state.standing;
    let claimed = before.claimed(claim)?;
    // Durable before anybody learns of the claim: one that a power cut takes back would let the old owner write again.
    database.write(&mut state.writer, &[], &claimed)?;
    state.standing = claimed;
    Ok(before)
}

fn apply<D: Database>(database: &D, state: &mut WriterState<D>, batch: &Batch) -> Result<(), StoreError> {
    let held = state.standing;
    if held.place(batch)? == Placement::Repeated {
        return Ok(());
    }
    // Only the last change of each key is written.
    let mut changes: Vec<&Op> = held.unapplied(batch).collect();
    // The sort is stable, so that of two changes of a key the one with the greater number stays last.
    changes.sort_by(|a, b| a.key.cmp(&b.key));
    changes.dedup_by(|later, kept| {
        let is_same = later.key == kept.key;
        if is_same {
            *kept = *later;
        }
        is_same
    });
    // Without the safeguard the data goes in a transaction of its own, and a crash in between leaves it without its
    // watermark.
    if !Safeguard::WatermarkInTransaction.holds() {
        database.write(&mut state.writer, &std::mem::take(&mut changes), &held)?;
    }
    let applied = held.after(batch);
    database.write(&mut state.writer, &changes, &applied)?;
    // Only after the write. If it fails, memory must not claim more than the disk has.
    state.standing = applied;
    Ok(())
}

type Job = Box<dyn FnOnce() + Send>;

/// A few threads for calls that may wait for the disk, so that no thread of an async runtime does.
///
/// A job that was handed over runs to its end even if its caller no longer waits. A panic in a job reaches its caller
/// as [`StoreError::Fatal`] and ends neither the thread nor the process. Dropping the workers runs all jobs that were
/// handed over and joins the threads.
pub(crate) struct Workers {
    /// Unbounded because a caller may be a thread of a runtime, which must not block. The number of callers bounds it:
    /// each waits for its job before it sends another one.
    sender: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Starts `count` threads called `name`.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if the system refuses a thread; those that were started end again.
    pub(crate) fn start(name: &str, count: usize) -> Result<Workers> {
        let (sender, receiver) = unbounded();
        let mut workers = Workers { sender: Some(sender), threads: Vec::with_capacity(count) };
        for _ in 0..count {
            let receiver: Receiver<Job> = receiver.clone();
            // A worker ends when the last sender is gone, and only after all jobs that were queued before.
            let thread = std::thread::Builder::new()
                .name(name.to_owned())
                .spawn(move || receiver.iter().for_each(|job| job()))
                .map_err(|error| Error::io(format!("starting a thread \"{name}\""), error))?;
            workers.threads.push(thread);
        }
        Ok(workers)
    }

    /// Runs `job` on one of the threads and returns its result.
    ///
    /// # Errors
    /// Those of the job, or [`StoreError::Fatal`] if it panicked.
    ///
    /// # Cancellation
    /// Nothing is handed over before the first poll; from then on the job runs to its end.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        // One answer for one job; the channel outlives a caller that stopped waiting.
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move || {
            // Sending fails if the caller has dropped its future; the job was done all the same.
            drop(answer.send(caught(job)));
        });
        let sender = self.sender.as_ref().expect("the sender is taken only by drop");
        sender.send(job).expect("the threads receive for as long as there is a sender");
        answered.await.expect("every job answers, a panicking one too")
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        // Closes the channel, without which the threads would wait for jobs for ever and `join` with them.
        self.sender = None;
        for thread in self.threads.drain(..) {
            // A thread cannot have panicked: it runs only jobs, and `caught` catches their panics.
            drop(thread.join());
        }
    }
}

/// Runs a call of the store on this thread; a panic in it becomes [`StoreError::Fatal`].
pub(crate) fn caught<T>(call: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    // Unwind safety: the call owns the data that it changes, or a lock guards it that a panic poisons.
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| Err(panicked(&*panic)))
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> StoreError {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    // Panics carry `&str` or `String`; anything else has no text that could be shown.
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
