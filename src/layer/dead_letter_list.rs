//! The public handle of the dead-letter list: list, replay, discard. It holds no state beside the layer itself.

use std::sync::Arc;

use crate::error::Result;
use crate::ids::Key;
use crate::layer::layer::Layer;
use crate::queue::dead_letters::DeadLetter;

/// A handle of the dead-letter list: the records that the store rejected, and later records of their keys.
///
/// Records come here under [`OnRejected::Park`](crate::OnRejected::Park). Cloning the handle is cheap.
#[derive(Clone)]
pub struct DeadLetterList {
    layer: Arc<Layer>,
}

impl DeadLetterList {
    pub(crate) fn new(layer: Arc<Layer>) -> DeadLetterList {
        DeadLetterList { layer }
    }

    /// Returns the records of the list, oldest first.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) without a journal.
    pub fn list(&self) -> Result<Vec<DeadLetter>> {
        self.layer.dead_letters()
    }

    /// Sends the records of these keys, and of keys that share a batch with them, to the store again.
    ///
    /// They are applied in their order and in one apply. Afterwards the keys can be written as any other. Keys without
    /// dead letters are ignored. If the future is dropped, the replay may still take place.
    ///
    /// # Errors
    /// [`ErrorKind::Rejected`](crate::ErrorKind::Rejected) if the store still refuses; the records stay in the list.
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) without a journal.
    pub async fn replay(&self, keys: &[Key]) -> Result<()> {
        self.layer.settle_dead_letters(keys, false).await
    }

    /// Deletes the records of these keys, and of keys that share a batch with them, without applying them.
    ///
    /// Reads then return the store's values again. No other call loses an acknowledged write. If the future is dropped,
    /// the records may still be deleted.
    ///
    /// # Errors
    /// As [`Forebay::wait_applied`](crate::Forebay::wait_applied), and
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) without a journal.
    pub async fn discard(&self, keys: &[Key]) -> Result<()> {
        self.layer.settle_dead_letters(keys, true).await
    }
}
