//! A test that waits for ever says nothing: whatever might hang is given a time, after which the test fails.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

/// Longer than anything here takes on the slowest machine, shorter than people wait.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `work` on a thread of its own and returns what it returns.
///
/// # Panics
/// If `work` panics, or has not ended after [`PATIENCE`]; its thread is left behind then.
pub fn within<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, done) = channel();
    let thread = thread::spawn(move || drop(sender.send(work())));
    match done.recv_timeout(PATIENCE) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout) => panic!("{what}: hangs; nothing has come for {PATIENCE:?}"),
        Err(RecvTimeoutError::Disconnected) => {
            let panic = thread.join().err();
            let text = panic.as_ref().and_then(|panic| panic.downcast_ref::<String>());
            panic!("{what}: {}", text.map_or("panicked, see above", String::as_str))
        }
    }
}
