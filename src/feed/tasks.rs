//! Background tasks of a layer: they run on the layer's own runtime and end with the layer.
//!
//! A layer that stops drops its tasks at their next await point and waits until they are dropped. Afterwards no task
//! holds the store any more.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::watch;

use crate::seam::clock::{Handle, block_on};
use crate::seam::sync::thread_local;

/// The tasks of a layer.
pub struct Tasks {
    runtime: Handle,
    stop: watch::Sender<bool>,
}

thread_local! {
    /// True while this thread runs a task, so that a stop from there does not wait for itself.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// A task. Its future is dropped before the task counts as ended.
struct Task {
    work: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    _running: watch::Receiver<bool>,
}

impl Tasks {
    pub(crate) fn new(runtime: Handle) -> Tasks {
        Tasks { runtime, stop: watch::Sender::new(false) }
    }

    /// Runs `work` until it ends or the layer stops. A stopped layer drops it at once.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut stopped = self.stop.subscribe();
        let task = Task { work: Some(Box::pin(work)), _running: self.stop.subscribe() };
        drop(self.runtime.spawn(async move {
            tokio::select! {
                biased;
                // The sender is dropped only with the layer, so a closed channel is a stop as well.
                _ = stopped.wait_for(|stopped| *stopped) => {}
                () = task => {}
            }
        }));
    }

    /// Ends all tasks, and waits until they have ended. Idempotent.
    pub(crate) fn end(&self) {
        self.stop.send_replace(true);
        // A task that drops the last handle of its layer gets here itself, and would wait for its own end.
        if !INSIDE.with(Cell::get) {
            block_on(None, self.stop.closed());
        }
    }
}

impl Future for Task {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        inside(|| self.work.as_mut().map_or(Poll::Ready(()), |work| work.as_mut().poll(context)))
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        // The future may hold the last handle of its layer, whose drop ends the tasks from here.
        inside(|| drop(self.work.take()));
    }
}

fn inside<T>(work: impl FnOnce() -> T) -> T {
    let was = INSIDE.with(|inside| inside.replace(true));
    let done = work();
    INSIDE.with(|inside| inside.set(was));
    done
}
