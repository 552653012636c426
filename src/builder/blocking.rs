//! The handle of a layer for callers without a runtime.

use std::future::Future;
use std::time::Duration;

use crate::builder::Forebay;
use crate::cache::batch::WriteBatch;
use crate::cache::receipt::Receipt;
use crate::error::Result;
use crate::feed::change::ChangesFrom;
use crate::feed::changes::{BlockingChangeStream, ChangeStream};
use crate::ids::{Key, Seq};
use crate::queue::health::Closed;
use crate::seam::clock::block_on;

/// A [`Forebay`] for callers without a runtime. What does not wait is the same on both.
#[derive(Clone, Debug)]
pub struct BlockingForebay {
    bay: Forebay,
}

impl BlockingForebay {
    pub(super) fn new(bay: Forebay) -> BlockingForebay {
        BlockingForebay { bay }
    }

    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        block_on(Some(&self.bay.layer.runtime), future)
    }

    /// See [`Forebay::wait_applied`].
    ///
    /// # Errors
    /// As there.
    pub fn wait_applied(&self, seq: Seq) -> Result<()> {
        self.run(self.bay.wait_applied(seq))
    }

    /// See [`Forebay::flush`].
    ///
    /// # Errors
    /// As there.
    pub fn flush(&self) -> Result<Seq> {
        self.run(self.bay.flush())
    }

    /// See [`Forebay::close`].
    ///
    /// # Errors
    /// As there.
    pub fn close(&self) -> Result<Closed> {
        self.run(self.bay.close())
    }

    /// See [`Forebay::close_within`].
    ///
    /// # Errors
    /// As there.
    pub fn close_within(&self, deadline: Duration) -> Result<Closed> {
        self.run(self.bay.close_within(deadline))
    }

    /// See [`Forebay::invalidate_namespace`].
    ///
    /// # Errors
    /// As there.
    pub fn invalidate_namespace(&self, name: &str) -> Result<Receipt> {
        self.run(self.bay.invalidate_namespace(name))
    }

    /// See [`Forebay::namespace_token`].
    ///
    /// # Errors
    /// As there.
    pub fn namespace_token(&self, name: &str) -> Result<Seq> {
        self.run(self.bay.namespace_token(name))
    }

    /// Commits a batch; see [`WriteBatch::commit`].
    ///
    /// # Errors
    /// As there.
    pub fn commit(&self, batch: WriteBatch) -> Result<Receipt> {
        self.run(batch.commit())
    }

    /// See [`Forebay::changes`].
    ///
    /// # Errors
    /// As there.
    pub fn changes(&self, from: impl Into<ChangesFrom>) -> Result<BlockingChangeStream> {
        self.run(self.bay.changes(from)).map(ChangeStream::blocking)
    }

    /// See [`Forebay::forget_cursor`].
    ///
    /// # Errors
    /// As there.
    pub fn forget_cursor(&self, name: &str) -> Result<bool> {
        self.run(self.bay.forget_cursor(name))
    }

    /// See [`DeadLetterList::replay`](crate::DeadLetterList::replay).
    ///
    /// # Errors
    /// As there.
    pub fn replay_dead_letters(&self, keys: &[Key]) -> Result<()> {
        self.run(self.bay.dead_letters().replay(keys))
    }

    /// See [`DeadLetterList::discard`](crate::DeadLetterList::discard).
    ///
    /// # Errors
    /// As there.
    pub fn discard_dead_letters(&self, keys: &[Key]) -> Result<()> {
        self.run(self.bay.dead_letters().discard(keys))
    }

    /// The layer itself.
    #[must_use]
    pub fn forebay(&self) -> &Forebay {
        &self.bay
    }
}
