//! What a writer is given.

use crate::ids::Seq;

/// The proof of an acknowledged write: its place in the layer's order. It can be handed to another process that follows
/// this one: see [`ReadOptions::at_least`](crate::ReadOptions::at_least).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct Receipt {
    seq: Seq,
}

impl Receipt {
    pub(crate) fn new(seq: Seq) -> Receipt {
        Receipt { seq }
    }

    /// The write's sequence number; of an atomic batch, its last record's.
    #[must_use]
    pub fn seq(&self) -> Seq {
        self.seq
    }
}
