//! The errors of the journal: failed system calls, damage, and panics.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use crate::error::{Error, ErrorKind, Result};

/// Returns the error for damage: its place, its nature, and the records at stake.
pub(crate) fn damage(path: &Path, offset: u64, why: &str, stake: &str) -> Error {
    let context = format!("{}: damaged at byte {offset}: {why}; {stake}", path.display());
    Error::new(ErrorKind::Damaged, context)
}

/// Returns the error for a failed system call.
pub(crate) fn cannot(verb: &str, path: &Path, error: io::Error) -> Error {
    Error::io(format!("cannot {verb} {}", path.display()), error)
}

/// Runs a closure and turns its panic into an error.
///
/// The caller must not use again what the closure may have left half done: it poisons the journal, or ends the opening.
#[inline]
pub(crate) fn guarded<T>(doing: &str, run: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| Err(panicked(doing, &*panic)))
}

pub(crate) fn panicked(doing: &str, panic: &(dyn Any + Send)) -> Error {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
    Error::new(ErrorKind::Poisoned, format!("{doing} panicked: {text}"))
}

/// Returns the error for a write that was in flight when the journal failed.
pub(crate) fn outcome_unknown(cause: &Error) -> Error {
    cause.clone().wrap(ErrorKind::Poisoned, "outcome unknown, because the journal failed meanwhile")
}
