//! What the committer and the check make of panics, and the committer of failures in the middle of a write: errors
//! that say what is not known.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::{Error, ErrorKind, Result};

/// Turns a panic into an error. What it may have left half done is not used again: the error poisons, or ends the
/// opening.
pub(crate) fn guarded<T>(doing: &str, run: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| Err(panicked(doing, &*panic)))
}

pub(crate) fn panicked(doing: &str, panic: &(dyn Any + Send)) -> Error {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
    Error::new(ErrorKind::Poisoned, format!("{doing} panicked: {text}"))
}

pub(crate) fn outcome_unknown(cause: &Error) -> Error {
    cause.clone().wrap(ErrorKind::Poisoned, "outcome unknown, because the journal failed meanwhile")
}
