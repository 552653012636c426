//! What hangs on a write until it is committed or applied, and what happens then.

use std::mem;

use tokio::sync::oneshot;

use crate::error::{Error, Result};
use crate::ids::Seq;
use crate::journal::frame::FrameBody;
use crate::queue::key_locks::KeyGuard;
use crate::seam::clock::Moment;

/// What a write changes in the memory of the cache that it came from.
///
/// Run under the pending view's lock, in the one order, on the committer's or the flusher's thread. It must be
/// short and must not panic.
pub trait Effect: Send {
    /// The write has this sequence number and may be seen from now on.
    fn publish(self: Box<Self>, seq: Seq);

    /// When the write was handed over, if it knows: before it was committed.
    fn since(&self) -> Option<Moment> {
        None
    }
}

/// The effects of a frame, one per record and in the records' order.
pub enum Effects {
    /// There are none.
    None,
    /// A single write's.
    One(Box<dyn Effect>),
    /// An atomic batch's; nothing where a later record of the batch writes the same key, since nobody may see a value
    /// that was never there.
    Many(Vec<Option<Box<dyn Effect>>>),
}

/// When the writer is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    /// When the frame is committed.
    Committed,
    /// When the frame is applied.
    Applied,
}

/// Somebody who waits for a frame, and what the frame changes in memory.
pub struct Ticket {
    pub(crate) until: Until,
    pub(crate) effects: Effects,
    pub(crate) answer: oneshot::Sender<Result<Seq>>,
    /// What the frame took of the gate; given back when the frame ends.
    pub(crate) records: u32,
    pub(crate) bytes: u32,
    /// What is written through, if the journal holds but a notice of it.
    pub(crate) through: Option<Box<FrameBody>>,
    /// Ends when the frame has its place in what readers see, or none, though its writer may be gone by then.
    pub(crate) key_guard: Option<KeyGuard>,
}

impl Effects {
    /// When a single write was handed over, if it knows.
    pub(crate) fn since(&self) -> Option<Moment> {
        match self {
            Effects::One(effect) => effect.since(),
            Effects::None | Effects::Many(_) => None,
        }
    }

    /// Makes the frame that starts at `first` visible in memory.
    pub(crate) fn publish(self, first: Seq) {
        match self {
            Effects::None => {}
            Effects::One(effect) => effect.publish(first),
            Effects::Many(effects) => {
                let numbered = effects.into_iter().zip(0_u64..);
                let numbered = numbered.filter_map(|(effect, at)| effect.map(|effect| (effect, at)));
                numbered.for_each(|(effect, at)| effect.publish(first.plus(at)));
            }
        }
    }
}

impl Ticket {
    /// What the frame changes in memory; the ticket has it no more.
    pub(crate) fn take_effects(&mut self) -> Effects {
        mem::replace(&mut self.effects, Effects::None)
    }

    /// As [`Effects::publish`] for a frame that was written through: of a key that was written behind meanwhile memory
    /// has the newer value already, and keeps it.
    pub(crate) fn publish_applied(&mut self, first: Seq, superseded: &[bool]) {
        let effects = match self.take_effects() {
            Effects::None => Vec::new(),
            Effects::One(effect) => vec![Some(effect)],
            Effects::Many(effects) => effects,
        };
        let numbered = effects.into_iter().zip(0_u64..).zip(superseded);
        let kept = numbered.filter(|(_, superseded)| !**superseded).map(|(numbered, _)| numbered);
        let kept = kept.filter_map(|(effect, at)| effect.map(|effect| (effect, at)));
        kept.for_each(|(effect, at)| effect.publish(first.plus(at)));
    }

    /// Answers the writer. That nobody waits any more is no error: the write happened all the same.
    pub(crate) fn answer(self, outcome: Result<Seq, Error>) {
        drop(self.key_guard);
        drop(self.answer.send(outcome));
    }
}
