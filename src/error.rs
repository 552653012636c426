//! The crate's one error: a kind to branch on, a sentence to read, and the causes below it.
//!
//! `{}` prints the sentence and `{:#}` the whole chain of causes. Errors are cheap to clone, because one failure may
//! have to reach every waiter. No error of the crate's own holds a user's value, and of a key only a bounded, escaped
//! prefix.

use std::fmt;
use std::sync::Arc;

/// The kind of failure of an [`Error`]. Later versions may add kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An option is out of its range; the sentence names the option, the value and the range.
    InvalidOption,
    /// A namespace name or a key cannot be what it says.
    InvalidName,
    /// A key, value or batch is larger than its limit. Nothing was written.
    TooLarge,
    /// A key or value could not be encoded. Nothing was written.
    Encode,
    /// Stored bytes do not decode as the cache's type.
    Decode,
    /// The file system failed.
    Io,
    /// The disk has no room. Nothing was acknowledged; later writes succeed once there is room.
    DiskFull,
    /// A file is damaged; the sentence names the file, the offset and what is at stake.
    Damaged,
    /// A file was written by a format version that this version of the crate does not know.
    UnknownFormat,
    /// Another process, or another layer of this one, holds the journal or the store.
    Locked,
    /// The journal that the store was fed from is missing, or is not the one that was opened.
    WrongJournal,
    /// A sync failed earlier, so nothing more is written; what was in flight has an unknown outcome.
    Poisoned,
    /// The queue is full, and the write was not to wait, or not longer.
    QueueFull,
    /// The outcome of the write is unknown: it may have taken effect, or may still do so.
    InDoubt,
    /// The store refused this write. It is not in the store.
    Rejected,
    /// A newer owner has opened the store; this layer can no longer change it.
    Fenced,
    /// The store went back: it lacks writes that it had confirmed, as after the failover to a standby that had not
    /// received all of them, or it was replaced by an older copy. The layer takes no more writes.
    WentBack,
    /// The store rejected a queued record, and the flusher stands until it is resumed.
    Halted,
    /// The key has records in the dead-letter list; they have to be replayed or discarded first.
    Parked,
    /// The store or the bus failed in a way that may pass.
    Transient,
    /// The store failed for good.
    StoreFailed,
    /// A loader that the reader brought failed, or a load panicked.
    LoadFailed,
    /// A rule of the cache panicked, or named something that cannot be. Nothing was written.
    RuleFailed,
    /// The bus failed in a way that does not pass by itself: it refused the credentials, or is not what was asked for.
    BusFailed,
    /// A message of a bus was refused: it is malformed, oversized, of an unknown kind, or of an owner that was
    /// succeeded by another one. Nothing of it was carried out.
    Refused,
    /// The layer follows another process, which alone may write.
    ReadOnly,
    /// The layer follows another process and cannot know at the moment whether what it has is current, and the reader
    /// wants nothing else.
    Unverified,
    /// The layer, or the part of it that was asked, is closed.
    Closed,
    /// The namespace is open already with other types or other options.
    NamespaceInUse,
    /// The call needs something that this layer was opened without.
    Unsupported,
}

/// A failure: what was being done to what, and why it did not work.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

struct Inner {
    kind: ErrorKind,
    context: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error without a source.
    #[must_use]
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Error {
        Error(Arc::new(Inner { kind, context: context.into(), source: None }))
    }

    /// An error that another one caused.
    #[must_use]
    pub fn with_source(
        kind: ErrorKind,
        context: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Error {
        Error(Arc::new(Inner { kind, context: context.into(), source: Some(source.into()) }))
    }

    /// A file-system failure; "no space" and "quota exceeded" become [`ErrorKind::DiskFull`].
    #[must_use]
    pub fn io(context: impl Into<String>, source: std::io::Error) -> Error {
        use std::io::ErrorKind as Io;
        let full = matches!(source.kind(), Io::StorageFull | Io::QuotaExceeded);
        Error::with_source(if full { ErrorKind::DiskFull } else { ErrorKind::Io }, context, source)
    }

    /// The answer of a layer that is closed.
    pub(crate) fn layer_closed() -> Error {
        Error::new(ErrorKind::Closed, "the layer is closed")
    }

    /// This error as the cause of another.
    #[must_use]
    pub fn wrap(self, kind: ErrorKind, context: impl Into<String>) -> Error {
        Error::with_source(kind, context, self)
    }

    /// The first cause of this type in the chain, nearest first: a user's own error, as a loader or a store returned
    /// it.
    #[must_use]
    pub fn downcast_ref<E: std::error::Error + 'static>(&self) -> Option<&E> {
        self.causes().find_map(|cause| cause.downcast_ref())
    }

    /// The causes, nearest first.
    fn causes(&self) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
        std::iter::successors(std::error::Error::source(self), |cause| cause.source())
    }

    /// Returns the kind of failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Returns true if the same call may succeed later, once the store, the bus, the disk or the queue has recovered.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self.kind(), ErrorKind::Transient | ErrorKind::DiskFull | ErrorKind::QueueFull)
    }
}

impl fmt::Display for Error {
    /// Writes what failed; with `{:#}` also the whole chain of causes, joined by colons.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.context)?;
        if f.alternate() {
            for cause in self.causes() {
                write!(f, ": {cause}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self:#}", self.0.kind)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error as _;

    #[derive(Debug, PartialEq)]
    struct Refused(u16);

    impl fmt::Display for Refused {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "connection refused by port {}", self.0)
        }
    }

    impl std::error::Error for Refused {}

    /// A loader's "connection refused" used to be lost behind "error sending request".
    #[test]
    fn a_wrapped_error_keeps_its_cause() {
        let sending = Error::with_source(ErrorKind::Transient, "error sending request", Refused(5432));
        let error = sending.wrap(ErrorKind::LoadFailed, "the loader failed");
        assert_eq!(error.to_string(), "the loader failed");
        let whole = "the loader failed: error sending request: connection refused by port 5432";
        assert_eq!(format!("{error:#}"), whole);
        assert_eq!(format!("{error:?}"), format!("LoadFailed: {whole}"));
        assert_eq!(error.source().map(ToString::to_string).as_deref(), Some("error sending request"));
        assert_eq!(error.downcast_ref(), Some(&Refused(5432)));
        assert_eq!(error.clone().downcast_ref(), Some(&Refused(5432)));
        assert!(error.downcast_ref::<std::io::Error>().is_none());
    }
}
