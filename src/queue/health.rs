//! How a layer is, as its owner sees it.

use crate::error::Error;
use crate::ids::{Epoch, Seq};

/// A layer's condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub enum HealthState {
    /// Nothing is wrong.
    Healthy,
    /// The store fails in a way that may pass; the flusher keeps trying and nothing is lost.
    Retrying,
    /// The store rejected a record and the flusher stands, until [`Forebay::resume`](crate::Forebay::resume).
    Halted,
    /// A newer owner has taken the store; this layer can no longer write.
    Fenced,
    /// The journal or the store failed for good; this layer can no longer write.
    Failed,
    /// The layer was closed.
    Closed,
}

/// A layer's condition with its reason and the figures that tell how urgent it is.
#[derive(Clone, Debug, serde::Serialize)]
#[non_exhaustive]
pub struct Health {
    /// The condition.
    pub state: HealthState,
    /// Why it is not healthy, or what last went wrong beside the data (recycling a segment).
    #[serde(serialize_with = "crate::metrics::error_as_text")]
    pub error: Option<Error>,
    /// Failed attempts in a row at the batch that is being applied.
    pub attempts: u64,
    /// This layer's tenure of the store.
    pub epoch: Epoch,
    /// The last sequence number that the store holds.
    pub watermark: Seq,
    /// The last committed sequence number.
    pub committed: Seq,
    /// Records that are committed and not yet in the store.
    pub queued_records: u64,
    /// Their size in the journal, in bytes.
    pub queued_bytes: u64,
    /// Records in the dead-letter list.
    pub dead_letters: u64,
    /// The journal's size on disk, in bytes; zero without a journal.
    pub journal_bytes: u64,
}

/// What [`Forebay::close`](crate::Forebay::close) left behind.
#[derive(Clone, Debug, serde::Serialize)]
#[non_exhaustive]
pub struct Closed {
    /// Records that are in the journal and not in the store; the next opening drains them.
    pub queued: u64,
    /// Why they are still there; `None` if nothing is.
    #[serde(serialize_with = "crate::metrics::error_as_text")]
    pub reason: Option<Error>,
}
