//! A layer's condition, as its owner sees it.

use crate::error::Error;
use crate::ids::{Epoch, Seq};

/// A layer's condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub enum HealthState {
    /// Everything works.
    Healthy,
    /// The store fails in a way that may pass; the flusher keeps trying and nothing is lost.
    Retrying,
    /// The store rejected a record, and the flusher has stopped until [`Forebay::resume`](crate::Forebay::resume).
    Halted,
    /// A newer owner has claimed the store; this layer can no longer write.
    Fenced,
    /// The journal or the store failed for good; this layer can no longer write.
    Failed,
    /// The layer was closed.
    Closed,
}

/// A layer's condition with its reason, and figures of the queue.
#[derive(Clone, Debug, serde::Serialize)]
#[non_exhaustive]
pub struct Health {
    /// The condition.
    pub state: HealthState,
    /// The reason why the layer is not healthy, or the last failure that concerns no data, such as a segment that could
    /// not be recycled.
    #[serde(serialize_with = "crate::metrics::error_as_text")]
    pub error: Option<Error>,
    /// The number of failed attempts in a row at the batch that is being applied.
    pub attempts: u64,
    /// This layer's tenure of the store.
    pub epoch: Epoch,
    /// The last sequence number that the store holds.
    pub watermark: Seq,
    /// The number up to which the store is fed again, because it had gone back before the layer opened; `None` once it
    /// is.
    pub refeeding_until: Option<Seq>,
    /// The last sequence number that is committed.
    pub committed: Seq,
    /// The number of records that are committed and not in the store yet.
    pub queued_records: u64,
    /// Their size in the journal, in bytes.
    pub queued_bytes: u64,
    /// The number of records in the dead-letter list.
    pub dead_letters: u64,
    /// The journal's size on disk, in bytes; zero without a journal.
    pub journal_bytes: u64,
}

/// The backlog that [`Forebay::close`](crate::Forebay::close) left in the journal.
#[derive(Clone, Debug, serde::Serialize)]
#[non_exhaustive]
pub struct Closed {
    /// The number of records that are in the journal and not in the store; the next opening drains them.
    pub queued: u64,
    /// The reason why they are still there; `None` if there are none.
    #[serde(serialize_with = "crate::metrics::error_as_text")]
    pub reason: Option<Error>,
}
