//! The crate's one error: a kind to branch on, a sentence to read, and the source.
//!
//! Errors are cheap to clone, because one failure may have to reach every waiter. No error ever holds a value
//! of the user's, and of a key only a bounded, escaped prefix.

use std::fmt;
use std::sync::Arc;

/// What kind of failure an [`Error`] is. New kinds may come.
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
    /// Whether the write took effect is unknown; it may still do so.
    InDoubt,
    /// The store refused this write. It is not in the store.
    Rejected,
    /// A newer owner has opened the store; this layer can no longer change it.
    Fenced,
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
    /// What came over a bus is not to be believed: it is malformed, oversized, of an unknown kind or of an owner that
    /// another one has followed. Nothing of it was carried out.
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
    /// What was asked for needs something that this layer was opened without.
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

    /// What kind of failure this is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether the same call may work later without anybody mending anything but the outside world.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self.kind(), ErrorKind::Transient | ErrorKind::DiskFull | ErrorKind::QueueFull)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.context)?;
        match &self.0.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.kind)
    }
}

impl std::error::Error for Error {
    // The source is part of the sentence already, so it is not told again.
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        None
    }
}
