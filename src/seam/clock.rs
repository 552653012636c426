//! Time, and what drives futures.

#[cfg(feature = "simulation")]
pub(crate) use crate::seam::simulated::{Handle, Runtime, block_on, may_block, now, runtime, sleep};
#[cfg(not(feature = "simulation"))]
pub(crate) use {
    real::{block_on, may_block, now, runtime},
    tokio::runtime::{Handle, Runtime},
    tokio::time::sleep,
};

#[cfg(not(feature = "simulation"))]
mod real {
    use std::cell::Cell;
    use std::io;
    use std::pin::pin;
    use std::sync::Arc;
    use std::task::{Context, Poll, Wake, Waker};
    use std::thread::{self, Thread};
    use std::time::Instant;

    use tokio::runtime::{Builder, Handle, Runtime};

    pub(crate) fn now() -> Instant {
        Instant::now()
    }

    /// The runtime of a layer: it drives the timers, and runs what may block.
    pub(crate) fn runtime() -> io::Result<Runtime> {
        Builder::new_multi_thread().worker_threads(1).thread_name("forebay-timers").enable_all().build()
    }

    thread_local! {
        static BLOCKED: Cell<bool> = const { Cell::new(false) };
    }

    /// Whether this thread is in a call that blocks it, so that it may wait for the disk itself.
    pub(crate) fn may_block() -> bool {
        BLOCKED.get()
    }

    /// Says so until it is dropped.
    struct Blocked {
        before: bool,
    }

    impl Blocked {
        fn begin() -> Blocked {
            Blocked { before: BLOCKED.replace(true) }
        }
    }

    impl Drop for Blocked {
        fn drop(&mut self) {
            BLOCKED.set(self.before);
        }
    }

    /// Drives a future on this thread. A store whose futures need tokio finds the layer's own runtime.
    pub(crate) fn block_on<T>(runtime: Option<&Handle>, future: impl Future<Output = T>) -> T {
        // Inside a task of somebody's runtime the task's budget would run out and stay so: this future is not
        // part of that task's work.
        let mut future = pin!(tokio::task::unconstrained(future));
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut context = Context::from_waker(&waker);
        loop {
            let polled = {
                let (_entered, _blocked) = (runtime.map(Handle::enter), Blocked::begin());
                future.as_mut().poll(&mut context)
            };
            match polled {
                Poll::Ready(output) => return output,
                // A wake-up that came first makes this return at once; a false one only polls again.
                Poll::Pending => thread::park(),
            }
        }
    }

    struct Unpark(Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
}
