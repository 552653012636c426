//! What goes into the committer and what comes out of it.

use crate::error::Error;
use crate::ids::Seq;
use crate::journal::frame::{FrameBody, Location};
use crate::journal::writer::GroupFrame;

/// Where a committer's outcomes go. No method may call the committer, and none should block: all writers wait.
pub trait Sink: Send + Sync + 'static {
    /// What stands for one submission and its waiter.
    type Ticket: Send + 'static;

    /// These are committed: durable as configured, and visible to readers. In order, never concurrently.
    ///
    /// It drains the group. A panic poisons the committer; tickets still in the group are refused, those taken
    /// out of it are the sink's own to answer (a ticket may do so in its `Drop`).
    fn committed(&self, group: &mut Vec<Committed<Self::Ticket>>);

    /// This did not commit, or its outcome is unknown ([`ErrorKind::Poisoned`](crate::ErrorKind::Poisoned),
    /// "outcome unknown").
    fn refused(&self, ticket: Self::Ticket, error: &Error);

    /// Told once, before anybody is refused for it: nothing is written any more, and why.
    fn poisoned(&self, error: &Error);
}

/// A batch to commit.
#[derive(Debug)]
pub struct Submission<T> {
    /// Its records, at least one.
    pub body: FrameBody,
    /// Whether it is written to the journal, or takes its sequence numbers only.
    pub journaled: bool,
    /// Comes back with the outcome.
    pub ticket: T,
}

/// A batch that is committed.
#[derive(Debug)]
pub struct Committed<T> {
    /// Its place and its records, whose numbers follow without a gap.
    pub frame: GroupFrame,
    /// Where its frame lies; nothing if it was not journaled.
    pub location: Option<Location>,
    /// What was submitted with it.
    pub ticket: T,
    /// Whether it is to be journaled.
    pub(super) journaled: bool,
}

impl<T> Committed<T> {
    /// What is going to be one: without a number yet, and not in the journal.
    pub(crate) fn waiting(submission: Submission<T>) -> Committed<T> {
        let Submission { body, journaled, ticket } = submission;
        Committed { frame: GroupFrame { first: Seq::ZERO, body }, location: None, ticket, journaled }
    }

    /// Its last record's sequence number.
    #[must_use]
    pub fn last(&self) -> Seq {
        let GroupFrame { first, body } = &self.frame;
        Seq(first.0.saturating_add(u64::from(body.count())).saturating_sub(1))
    }
}
