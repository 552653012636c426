//! The flusher's dealings with the dead-letter list: parking, replaying, discarding.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::flush::flusher::{Flusher, Refusal};
use crate::flush::plan::Ops;
use crate::ids::{Key, Seq};
use crate::options::OnRejected;
use crate::queue::dead_letters::DeadLetters;
use crate::queue::health::HealthState;
use crate::queue::queued::QueuedFrame;
use crate::queue::record::Operation;
use crate::safeguard::Safeguard;
use crate::store::contract::{Op, StoreError};

impl Flusher {
    pub(crate) fn can_park(&self) -> bool {
        let room =
            |letters: &Arc<DeadLetters>| letters.record_count() < self.core.options.dead_letter_records_max;
        self.core.options.on_rejected == OnRejected::Park && self.letters.as_ref().is_some_and(room)
    }

    /// Puts the frames whose keys are parked behind their keys.
    pub(crate) fn set_parked_apart(
        &self,
        frames: &mut Vec<QueuedFrame>,
        parked: &mut Vec<QueuedFrame>,
    ) -> Result<()> {
        let Some(letters) = &self.letters else { return Ok(()) };
        let mut kept = Vec::with_capacity(frames.len());
        for frame in frames.drain(..) {
            if !letters.concerns(&frame)? || !Safeguard::ParkLaterWrites.holds() {
                kept.push(frame);
            } else if frame.location.is_none() {
                let context = "the key has dead letters, which would come after this write";
                self.refuse(&frame, Error::new(ErrorKind::Parked, context))?;
            } else {
                self.park(&frame, "an earlier record of its key was rejected")?;
                parked.push(frame);
            }
        }
        *frames = kept;
        Ok(())
    }

    /// Puts a frame into the dead-letter list, where its keys stay readable.
    pub(crate) fn park(&self, frame: &QueuedFrame, reason: &str) -> Result<()> {
        let Some(letters) = &self.letters else {
            return Err(Error::new(ErrorKind::Unsupported, "parking needs a dead-letter list"));
        };
        letters.park(frame, reason)?;
        self.core.pending.lock().park(frame)?;
        self.core.metrics.records_parked.add(u64::from(frame.count));
        Ok(())
    }

    /// Replays or discards the dead letters that a control frame names.
    pub(crate) async fn control(&mut self, frames: Vec<QueuedFrame>) -> Result<(), ()> {
        let progress = self.progress_after(frames.iter());
        let Some(frame) = frames.first() else { return Ok(()) };
        let prepared = self.prepare_control(frame);
        let (chosen, ops, discard) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => {
                self.core.fail(HealthState::Failed, error);
                return Err(());
            }
        };
        let outcome = match self.apply(ops, progress).await {
            Ok(()) => {
                self.finish_control(&chosen, discard);
                Ok(())
            }
            Err(Refusal::Over) => return Err(()),
            Err(Refusal::Record(seq, error)) => {
                self.core.metrics.records_rejected.add(1);
                let cancelled = self.letters.as_ref().map_or(Ok(()), |letters| letters.cancel(frame.last()));
                if let Err(error) = cancelled {
                    self.core.fail(HealthState::Failed, error);
                    return Err(());
                }
                if self.apply(Vec::new(), progress).await.is_err() {
                    return Err(());
                }
                Err(StoreError::Rejected { seq, error }.into_error())
            }
        };
        let ticket = self.core.pending.lock().take_ticket(frame.first);
        self.retire(&frames, &[], progress)?;
        if let Some(ticket) = ticket {
            ticket.answer(outcome.map(|()| frame.last()));
        }
        Ok(())
    }

    /// Which letters a control frame is about, what the store is sent for them, and whether they are given up.
    fn prepare_control(&self, frame: &QueuedFrame) -> Result<(BTreeSet<Seq>, Vec<Op>, bool)> {
        let Some(letters) = &self.letters else { return Ok(Default::default()) };
        let records = frame.records().collect::<Result<Vec<_>>>()?;
        let discard = records.iter().any(|(_, record)| record.operation == Operation::Discard);
        let keys: Vec<Key> = records.into_iter().map(|(_, record)| record.key).collect();
        let chosen = letters.closure(&keys);
        let mut ops = Ops::default();
        if !discard {
            for letter in &chosen {
                for record in letters.read(*letter)?.unwrap_or_default() {
                    let value = record.stored();
                    ops.push(Op { seq: frame.last(), key: record.key, value }, record.coalesce);
                }
            }
        }
        letters.resolve(frame.last(), &chosen)?;
        Ok((chosen, ops.finish(), discard))
    }

    fn finish_control(&self, chosen: &BTreeSet<Seq>, discard: bool) {
        let Some(letters) = &self.letters else { return };
        let keys = letters.forget(chosen);
        let mut pending = self.core.pending.lock();
        for (key, newest) in &keys {
            pending.unbury(key, *newest);
            if discard {
                self.views.invalidate(key.namespace());
            }
        }
    }
}
