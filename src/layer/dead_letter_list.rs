//! The dead-letter list as its owner sees it.

use std::sync::Arc;

use crate::error::Result;
use crate::ids::Key;
use crate::layer::layer::Layer;
use crate::queue::dead_letters::DeadLetter;

/// The records that the store rejected, and later ones of their keys ([`OnRejected::Park`](crate::OnRejected::Park)).
#[derive(Clone)]
pub struct DeadLetterList {
    layer: Arc<Layer>,
}

impl DeadLetterList {
    pub(crate) fn new(layer: Arc<Layer>) -> DeadLetterList {
        DeadLetterList { layer }
    }

    /// The records, oldest first.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) without a journal.
    pub fn list(&self) -> Result<Vec<DeadLetter>> {
        self.layer.dead_letters()
    }

    /// Sends the records of these keys, and of keys that share a batch with them, to the store again, in their
    /// order and in one apply; afterwards the keys are as any other. Keys without dead letters are ignored.
    ///
    /// # Errors
    /// [`ErrorKind::Rejected`](crate::ErrorKind::Rejected) if the store still refuses; they stay in the list.
    pub async fn replay(&self, keys: &[Key]) -> Result<()> {
        self.layer.settle_dead_letters(keys, false).await
    }

    /// Gives up the records of these keys, and of keys that share a batch with them. The store's values count
    /// again. This is the one way to lose an acknowledged write, and it is the caller's.
    ///
    /// # Errors
    /// As [`Forebay::wait_applied`](crate::Forebay::wait_applied).
    pub async fn discard(&self, keys: &[Key]) -> Result<()> {
        self.layer.settle_dead_letters(keys, true).await
    }
}
