//! The flusher's side of the dead-letter list: parking frames, and replaying or discarding letters.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::flush::accounts::Numbers;
use crate::flush::plan::Ops;
use crate::ids::{Key, Seq};
use crate::memory::views::Views;
use crate::options::OnRejected;
use crate::queue::dead_letters::DeadLetters;
use crate::queue::queued::QueuedFrame;
use crate::queue::record::Operation;
use crate::queue::state::Core;
use crate::safeguard::Safeguard;
use crate::store::contract::Op;

/// Parks frames, if the layer has a dead-letter list.
pub(crate) struct Parking {
    core: Arc<Core>,
    letters: Option<Arc<DeadLetters>>,
    views: Arc<Views>,
}

/// A command to the dead-letter list, prepared for the store.
#[derive(Default)]
pub(crate) struct LetterCommand {
    /// The letters that it resolves.
    chosen: BTreeSet<Seq>,
    /// The updates that a replay sends to the store.
    pub(crate) ops: Vec<Op>,
    discards: bool,
}

impl Parking {
    pub(crate) fn new(core: Arc<Core>, letters: Option<Arc<DeadLetters>>, views: Arc<Views>) -> Parking {
        Parking { core, letters, views }
    }

    /// Returns true if a rejected frame is to be parked and the list has room for it.
    pub(crate) fn has_room(&self) -> bool {
        let room =
            |letters: &Arc<DeadLetters>| letters.record_count() < self.core.options.dead_letter_records_max;
        self.core.options.on_rejected == OnRejected::Park && self.letters.as_ref().is_some_and(room)
    }

    /// Moves the frames with parked keys from `frames` to `parked`, because their records must not reach the store
    /// before those that are in the list. A write-through among them is refused instead.
    ///
    /// Returns the numbers that were refused.
    pub(crate) fn park_behind_letters(
        &self,
        frames: &mut Vec<QueuedFrame>,
        parked: &mut Vec<QueuedFrame>,
    ) -> Result<Vec<Numbers>> {
        let mut refused = Vec::new();
        let Some(letters) = &self.letters else { return Ok(refused) };
        let mut kept = Vec::with_capacity(frames.len());
        for frame in frames.drain(..) {
            let is_behind = letters.has_key_of(&frame)? && Safeguard::ParkLaterWrites.holds();
            if !is_behind {
                kept.push(frame);
            } else if frame.location.is_none() {
                let context = "the key has dead letters, which would come after this write";
                self.core.refuse_through(&frame, Error::new(ErrorKind::Parked, context))?;
                refused.push(Numbers::of(&frame));
            } else {
                self.park(&frame, "an earlier record of its key was rejected")?;
                parked.push(frame);
            }
        }
        *frames = kept;
        Ok(refused)
    }

    /// Adds a frame to the dead-letter list, durably on return. Its keys stay readable from there.
    pub(crate) fn park(&self, frame: &QueuedFrame, reason: &str) -> Result<()> {
        let Some(letters) = &self.letters else {
            return Err(Error::new(ErrorKind::Unsupported, "parking needs a dead-letter list"));
        };
        letters.park(frame, reason)?;
        self.core.pending.lock().park(frame)?;
        self.core.metrics.records_parked.add(u64::from(frame.count));
        Ok(())
    }

    /// Prepares the command that a control frame holds. On return it is durable that the chosen letters are resolved
    /// once the store has applied the frame.
    pub(crate) fn prepare(&self, frame: &QueuedFrame) -> Result<LetterCommand> {
        let Some(letters) = &self.letters else { return Ok(LetterCommand::default()) };
        let records = frame.records().collect::<Result<Vec<_>>>()?;
        let discards = records.iter().any(|(_, record)| record.operation == Operation::Discard);
        let keys: Vec<Key> = records.into_iter().map(|(_, record)| record.key).collect();
        let chosen = letters.closure(&keys);
        let mut ops = Ops::default();
        if !discards {
            for letter in &chosen {
                for record in letters.read(*letter)?.unwrap_or_default() {
                    let value = record.stored();
                    // Under the command's number: the store takes nothing at or below its watermark.
                    ops.push(Op { seq: frame.last(), key: record.key, value }, record.coalesce);
                }
            }
        }
        letters.resolve(frame.last(), &chosen)?;
        Ok(LetterCommand { chosen, ops: ops.finish(), discards })
    }

    /// Revokes the resolution that [`Parking::prepare`] wrote, because the store rejected the command.
    pub(crate) fn revoke(&self, frame: &QueuedFrame) -> Result<()> {
        self.letters.as_ref().map_or(Ok(()), |letters| letters.cancel(frame.last()))
    }

    /// Removes the letters of a command that the store has applied.
    pub(crate) fn finish(&self, command: &LetterCommand) {
        let Some(letters) = &self.letters else { return };
        let keys = letters.remove(&command.chosen);
        let mut pending = self.core.pending.lock();
        for (key, newest) in &keys {
            pending.remove_dead_letter(key, *newest);
            // Memory may have the discarded value, which the store never got.
            if command.discards {
                self.views.invalidate(key.namespace());
            }
        }
    }

    /// Removes the list's files if it is empty and no record after `up_to` has to do with it.
    pub(crate) fn trim(&self, up_to: Seq) -> Result<()> {
        self.letters.as_ref().map_or(Ok(()), |letters| letters.trim(up_to))
    }
}
