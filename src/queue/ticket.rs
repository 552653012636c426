//! The ticket of a write: its waiter, and its effects on memory when it is committed or applied.

use std::mem;

use tokio::sync::oneshot;

use crate::error::{Error, Result};
use crate::ids::Seq;
use crate::journal::frame::FrameBody;
use crate::queue::key_locks::KeyGuard;
use crate::seam::clock::Moment;

/// The change that a write makes in the memory of the cache that it came from.
///
/// It runs under the pending view's lock, in the order of sequence numbers, on whichever thread holds that lock. It
/// must be short and must not panic.
pub trait Effect: Send {
    /// Makes the write visible, under this sequence number.
    fn publish(self: Box<Self>, seq: Seq);

    /// Returns when the write was submitted, which is before it was committed, if that is known.
    fn since(&self) -> Option<Moment> {
        None
    }
}

/// The effects of a frame, one for each record and in their order.
pub enum Effects {
    /// No effects.
    None,
    /// The effect of a single write.
    One(Box<dyn Effect>),
    /// The effects of an atomic batch; `None` where a later record of the batch writes the same key, since nobody may
    /// see a value that was never current.
    Many(Vec<Option<Box<dyn Effect>>>),
}

/// The moment at which the writer is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    /// Once the frame is committed.
    Committed,
    /// Once the frame is applied.
    Applied,
}

/// The waiter of a frame, and the frame's effects on memory.
pub struct WriteTicket {
    pub(crate) until: Until,
    pub(crate) effects: Effects,
    pub(crate) answer: oneshot::Sender<Result<Seq>>,
    /// The room that the frame takes in the queue, given back when it ends.
    pub(crate) records: u32,
    pub(crate) bytes: u32,
    /// The records to write through, if the journal holds only a notice of them.
    pub(crate) through: Option<Box<FrameBody>>,
    /// The locks of the frame's keys, held until the frame has taken effect or failed, though its writer may be gone.
    pub(crate) key_guard: Option<KeyGuard>,
}

impl Effects {
    /// Returns when a single write was submitted, if that is known.
    pub(crate) fn since(&self) -> Option<Moment> {
        match self {
            Effects::One(effect) => effect.since(),
            Effects::None | Effects::Many(_) => None,
        }
    }

    /// Makes the frame that starts at `first` visible.
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

impl WriteTicket {
    /// Takes the effects out of the ticket.
    pub(crate) fn take_effects(&mut self) -> Effects {
        mem::replace(&mut self.effects, Effects::None)
    }

    /// Makes a frame that was written through visible, except for the records that are superseded: memory has the newer
    /// value of their keys already.
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

    /// Releases the key locks and answers the writer. One that is gone is no error: the write happened all the same.
    pub(crate) fn answer(self, outcome: Result<Seq, Error>) {
        // First: whoever is answered may write the key at once.
        drop(self.key_guard);
        drop(self.answer.send(outcome));
    }
}
