//! The memory view of what the store lacks: which value each pending key has, and the queue for the flusher.
//!
//! One lock guards it all, with an inbox before it. A committed frame is seen as soon as it is in the inbox: whoever
//! takes the lock takes the frames in first, here and into the caches' memory, and whoever reads memory without it
//! looks whether there are any. So a reader who misses memory sees either everything of the frame or nothing, and never
//! an older value after a newer one, and writers are answered before that work is done.
//!
//! Frames beyond the memory budget are left to the journal ("spilled"): the index then holds places instead of
//! values, and the flusher reads the frames back in order. Once spilling has begun it goes on until the
//! flusher has caught up, so that the order in which to merge the two sources stays simple.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::iter;
use std::sync::PoisonError;

use bytes::Bytes;

use crate::engine::age::CommitTimes;
use crate::engine::commit::{Effects, Ticket};
use crate::engine::queued::QueuedFrame;
use crate::engine::record::Record;
use crate::error::{Error, Result};
use crate::ids::{Key, Seq};
use crate::journal::frame::Location;
use crate::metrics::QueueStats;
use crate::safeguard::Safeguard;
use crate::seam::clock::{Moment, Ticker};
use crate::seam::random::HashBuilder;
use crate::seam::sync::atomic::{AtomicUsize, Ordering};
use crate::seam::sync::{Mutex, MutexGuard};

/// Where a pending value is.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// Here.
    Memory(Bytes),
    /// Nowhere: the record removes its key.
    Removed,
    /// In the journal, as the n-th record of a frame.
    Journal { frame: Location, record: u32 },
    /// In the dead-letter list, as the n-th record of a letter.
    DeadLetter { letter: Seq, record: u32 },
}

/// What the pending view knows of a key.
#[derive(Clone, Debug)]
pub(crate) enum Found {
    /// Nothing; the store is the truth.
    Absent,
    /// Nothing yet, but a write-through of the key is under way, and the store may show it before it is durable.
    Unsettled,
    /// The newest committed value.
    Pending { version: Seq, place: Place },
}

/// How many frames are taken into memory under one lock.
const TAKEN_IN_AT_ONCE: usize = 64;

#[derive(Debug)]
struct Slot {
    version: Seq,
    place: Place,
}

/// The queue's size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Backlog {
    pub(crate) records: u64,
    pub(crate) bytes: u64,
}

/// The state behind the lock.
#[derive(Default)]
pub(crate) struct Pending {
    index: HashMap<Key, Slot, HashBuilder>,
    unsettled: HashMap<Key, u32, HashBuilder>,
    queue: VecDeque<QueuedFrame>,
    /// Journaled frames after the first and up to the second number are only in the journal.
    spilled: Option<(Seq, Seq)>,
    tickets: BTreeMap<Seq, Ticket>,
    memory_bytes: u64,
    backlog: Backlog,
    times: CommitTimes,
    last_committed: Seq,
    /// How many records were left to the journal since somebody asked.
    spilled_records: u64,
    /// A frame could not be taken in.
    failure: Option<Error>,
    /// How many write-throughs ended without taking effect.
    refusals: u64,
}

/// A frame that is committed, and what it changes.
pub(crate) struct Revealed {
    pub(crate) frame: QueuedFrame,
    /// Of who waits for its apply.
    pub(crate) ticket: Option<Ticket>,
    /// On memory, at once.
    pub(crate) effects: Effects,
}

/// The view behind its lock, and the inbox before it.
///
/// A committed frame goes to the inbox, where it is seen: nobody gets the lock before what is in the inbox has been
/// taken into the view and into memory, and who reads memory without the lock asks first whether anything waits. So
/// writers can be answered before that is done.
pub(crate) struct PendingView {
    /// With the moment of their commit at the first frame of each group.
    inbox: Mutex<VecDeque<(Option<Moment>, Revealed)>>,
    /// How many frames are in the inbox, or on their way from it into memory.
    unseen: AtomicUsize,
    state: Mutex<Pending>,
    memory_bytes_max: u64,
    ticker: Ticker,
}

impl PendingView {
    pub(crate) fn new(memory_bytes_max: u64, ticker: Ticker) -> PendingView {
        let (inbox, state) = (Mutex::default(), Mutex::default());
        PendingView { inbox, unseen: AtomicUsize::new(0), state, memory_bytes_max, ticker }
    }

    /// The view, with everything that is committed.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Pending> {
        let mut state = lock(&self.state);
        self.take_in(&mut state, usize::MAX);
        state
    }

    /// Reveals frames: every read that begins from now on sees them. The iterator runs under a lock.
    pub(crate) fn reveal(&self, frames: impl ExactSizeIterator<Item = Revealed>) {
        let moments = iter::once(Some(self.ticker.now())).chain(iter::repeat(None));
        let mut inbox = lock(&self.inbox);
        self.unseen.fetch_add(frames.len(), Ordering::SeqCst);
        inbox.extend(moments.zip(frames));
    }

    /// Makes memory show everything that is committed.
    #[inline]
    pub(crate) fn catch_up(&self) {
        if self.unseen.load(Ordering::SeqCst) > 0 {
            self.take_in_some();
        }
    }

    #[cold]
    fn take_in_some(&self) {
        // Some at a time, so that readers are not kept out for longer than some microseconds.
        while self.unseen.load(Ordering::SeqCst) > 0
            && self.take_in(&mut lock(&self.state), TAKEN_IN_AT_ONCE) > 0
        {}
    }

    /// Takes frames from the inbox, in their order, since only one has the state. Returns how many; with none left, all
    /// are in memory, whoever took them.
    fn take_in(&self, state: &mut Pending, at_most: usize) -> usize {
        if self.unseen.load(Ordering::SeqCst) == 0 {
            return 0;
        }
        let mut count = 0;
        while count < at_most {
            let next = lock(&self.inbox).pop_front();
            let Some((at, Revealed { frame, ticket, effects })) = next else { break };
            let (first, records) = (frame.first, u64::from(frame.count));
            at.into_iter().for_each(|at| state.times.note(first, at));
            match state.commit(frame, ticket, self.memory_bytes_max) {
                Ok(spilled) => state.spilled_records += if spilled { records } else { 0 },
                Err(error) => state.failure = Some(error),
            }
            effects.publish(first);
            count += 1;
        }
        self.unseen.fetch_sub(count, Ordering::SeqCst);
        count
    }
}

/// Code of the user's types that runs under these locks is caught before it gets here, so a poisoned lock means a
/// defect of this module; going on with the same state is what the flusher would do anyway.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pending {
    /// How many records were left to the journal since the last call, and whether a frame could not be taken in.
    pub(crate) fn outcome(&mut self) -> (u64, Option<Error>) {
        (std::mem::take(&mut self.spilled_records), self.failure.take())
    }

    /// Sets where a recovered layer starts: everything committed before it, nothing of it in memory.
    pub(crate) fn start_at(&mut self, last_committed: Seq, now: Moment) {
        self.last_committed = last_committed;
        if self.backlog.records > 0 {
            self.times.note(Seq::ZERO, now);
        }
    }

    /// Takes a recovered frame: its values stay in the journal.
    pub(crate) fn recover(&mut self, frame: &QueuedFrame, after: Seq) -> Result<()> {
        self.spill(frame.last(), after);
        self.count(frame);
        self.index_records(frame, false)
    }

    /// Takes a committed frame and its ticket. Returns whether its values were left to the journal.
    pub(crate) fn commit(
        &mut self,
        mut frame: QueuedFrame,
        ticket: Option<Ticket>,
        memory_bytes_max: u64,
    ) -> Result<bool> {
        let size = frame.bytes;
        let spilling = self.spilled.is_some() && Safeguard::SpillInOrder.holds();
        let over = spilling || self.memory_bytes.saturating_add(size) > memory_bytes_max;
        let spill = over && frame.location.is_some();
        self.count(&frame);
        if let Some(ticket) = ticket {
            self.tickets.insert(frame.first, ticket);
        }
        if frame.location.is_some() {
            self.index_records(&frame, !spill)?;
        } else {
            self.unsettle(&frame)?;
        }
        let after = self.last_committed;
        self.last_committed = frame.last();
        if spill {
            self.spill(frame.last(), after);
        } else {
            frame.counted = true;
            self.memory_bytes += size;
            self.queue.push_back(frame);
        }
        Ok(spill)
    }

    /// What is known of `key`.
    pub(crate) fn find(&self, key: &Key) -> Found {
        match self.index.get(key) {
            Some(slot) => Found::Pending { version: slot.version, place: slot.place.clone() },
            None if self.is_unsettled(key) => Found::Unsettled,
            None => Found::Absent,
        }
    }

    /// Whether a write-through of `key` is under way.
    pub(crate) fn is_unsettled(&self, key: &Key) -> bool {
        Safeguard::UnsettledReads.holds() && self.unsettled.contains_key(key)
    }

    /// How many write-throughs have ended without taking effect.
    pub(crate) fn refusals(&self) -> u64 {
        self.refusals
    }

    /// Whether what was loaded of `key`, since there were so many refusals, may be of a write-through that is under way
    /// or did not take effect: the store may show it before it is durable.
    pub(crate) fn may_have_shown(&self, key: &Key, refusals: u64) -> bool {
        self.is_unsettled(key) || Safeguard::UnsettledReads.holds() && self.refusals != refusals
    }

    /// Forgets a frame that was to be written through and will not be.
    pub(crate) fn refuse(&mut self, frame: &QueuedFrame) -> Result<()> {
        self.refusals += 1;
        self.retire(frame)
    }

    /// Which frames are only in the journal: after the first and up to the second number.
    pub(crate) fn spilled(&self) -> Option<(Seq, Seq)> {
        self.spilled
    }

    /// Says that the flusher has read the journal up to `last`; ends the spilling if that is all of it.
    pub(crate) fn read_back(&mut self, last: Seq) -> bool {
        let caught_up = self.spilled.is_some_and(|(_, until)| until <= last);
        if caught_up {
            self.spilled = None;
        }
        caught_up
    }

    /// A look at the next frame in memory, if it comes before `limit` or, without one, before all spilled frames:
    /// those may have been committed since the caller looked for them.
    pub(crate) fn front_before(&self, limit: Option<Seq>) -> Option<&QueuedFrame> {
        let limit = limit.or_else(|| self.spilled.map(|(after, _)| after.next()));
        self.queue.front().filter(|frame| limit.is_none_or(|limit| frame.first < limit))
    }

    /// The next frame in memory, if it comes before `limit`.
    pub(crate) fn pop_before(&mut self, limit: Option<Seq>) -> Option<QueuedFrame> {
        self.front_before(limit)?;
        self.queue.pop_front()
    }

    /// The ticket of the frame that starts at `first`, if somebody waits for its apply.
    pub(crate) fn take_ticket(&mut self, first: Seq) -> Option<Ticket> {
        self.tickets.remove(&first)
    }

    /// Of each record of a frame that was written through, whether its key has a newer pending one.
    pub(crate) fn superseded(&self, frame: &QueuedFrame) -> Result<Vec<bool>> {
        if frame.location.is_some() {
            return Ok(Vec::new());
        }
        let newer =
            |(seq, record): (Seq, Record)| self.index.get(&record.key).is_some_and(|slot| slot.version > seq);
        frame.records().map(|numbered| numbered.map(newer)).collect()
    }

    /// All tickets, when nothing will be applied any more. What was unsettled stays so.
    pub(crate) fn take_tickets(&mut self) -> Vec<Ticket> {
        std::mem::take(&mut self.tickets).into_values().collect()
    }

    /// Removes every frame that was written through and that the flusher has not taken.
    pub(crate) fn take_unjournaled(&mut self) -> Vec<QueuedFrame> {
        let (kept, taken): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut self.queue).into_iter().partition(|frame| frame.location.is_some());
        self.queue = kept;
        taken.into()
    }

    /// Forgets a frame that the store holds, or that ended otherwise.
    ///
    /// A key is forgotten only if the frame's record is its newest: a newer pending one must not go with it.
    pub(crate) fn retire(&mut self, frame: &QueuedFrame) -> Result<()> {
        for numbered in frame.records() {
            let (seq, record) = numbered?;
            if frame.location.is_none() {
                self.settle(&record.key);
            } else if self
                .index
                .get(&record.key)
                .is_some_and(|slot| slot.version == seq || !Safeguard::RetireByNumber.holds())
            {
                self.index.remove(&record.key);
            }
        }
        self.uncount(frame);
        Ok(())
    }

    /// Moves a frame's keys to the dead-letter list: they stay readable from there.
    pub(crate) fn park(&mut self, frame: &QueuedFrame) -> Result<()> {
        for (numbered, at) in frame.records().zip(0_u32..) {
            let (seq, record) = numbered?;
            self.bury(
                &record.key,
                seq,
                record.stored().is_some(),
                Place::DeadLetter { letter: frame.first, record: at },
            );
        }
        self.uncount(frame);
        Ok(())
    }

    /// Takes a dead letter found at recovery.
    pub(crate) fn bury(&mut self, key: &Key, seq: Seq, has_value: bool, place: Place) {
        let place = if has_value { place } else { Place::Removed };
        match self.index.get_mut(key) {
            Some(slot) if slot.version > seq => {}
            Some(slot) => *slot = Slot { version: seq, place },
            None => drop(self.index.insert(key.detached(), Slot { version: seq, place })),
        }
    }

    /// Forgets a key whose dead letters were replayed or discarded, unless it has a newer record.
    pub(crate) fn unbury(&mut self, key: &Key, newest: Seq) {
        if self.index.get(key).is_some_and(|slot| slot.version <= newest) {
            self.index.remove(key);
        }
    }

    /// The queue's size, what the flusher has in hand included.
    pub(crate) fn backlog(&self) -> Backlog {
        self.backlog
    }

    /// Says that nothing up to `applied` is pending any more.
    pub(crate) fn passed(&mut self, applied: Seq) {
        self.times.forget_before(applied.next(), self.backlog.records == 0);
    }

    /// The queue as its owner sees it.
    pub(crate) fn queue(&self, now: Moment) -> QueueStats {
        let Backlog { records, bytes } = self.backlog;
        QueueStats { records, bytes, oldest_age: self.times.oldest(now) }
    }

    /// The last committed sequence number.
    pub(crate) fn last_committed(&self) -> Seq {
        self.last_committed
    }

    fn spill(&mut self, last: Seq, after: Seq) {
        self.spilled = Some(match self.spilled {
            Some((from, _)) => (from, last),
            None => (after, last),
        });
    }

    fn index_records(&mut self, frame: &QueuedFrame, in_memory: bool) -> Result<()> {
        for (numbered, at) in frame.records().zip(0_u32..) {
            let (version, record) = numbered?;
            if !record.is_update() {
                continue;
            }
            let place = match (record.stored(), frame.location) {
                (None, _) => Place::Removed,
                (Some(value), _) if in_memory => Place::Memory(value),
                (Some(value), None) => Place::Memory(value),
                (Some(_), Some(location)) => Place::Journal { frame: location, record: at },
            };
            match self.index.get_mut(&record.key) {
                Some(slot) => *slot = Slot { version, place },
                // A key that is a slice of its frame would keep the whole frame in memory for as long as newer
                // frames write the key.
                None => drop(self.index.insert(record.key.detached(), Slot { version, place })),
            }
        }
        Ok(())
    }

    fn unsettle(&mut self, frame: &QueuedFrame) -> Result<()> {
        for numbered in frame.records() {
            let (_, record) = numbered?;
            *self.unsettled.entry(record.key).or_insert(0) += 1;
        }
        Ok(())
    }

    fn settle(&mut self, key: &Key) {
        if let Some(count) = self.unsettled.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                self.unsettled.remove(key);
            }
        }
    }

    fn count(&mut self, frame: &QueuedFrame) {
        self.backlog.records += u64::from(frame.count);
        self.backlog.bytes += frame.bytes;
    }

    fn uncount(&mut self, frame: &QueuedFrame) {
        let bytes = frame.bytes;
        self.backlog.records = self.backlog.records.saturating_sub(u64::from(frame.count));
        self.backlog.bytes = self.backlog.bytes.saturating_sub(bytes);
        if frame.counted {
            self.memory_bytes = self.memory_bytes.saturating_sub(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::record::{Operation, push};
    use crate::ids::NamespaceName;
    use crate::journal::frame::FrameBuilder;

    fn frame(seq: u64, journaled: bool) -> QueuedFrame {
        let key = Key::new(&NamespaceName::parse("n").unwrap(), b"k").unwrap();
        let mut body = FrameBuilder::new();
        push(&mut body, Operation::Put, true, key.as_bytes(), b"value").unwrap();
        let location = journaled.then_some(Location { segment: 1, offset: 4096 });
        QueuedFrame::committed(Seq(seq), &body.finish(), location)
    }

    /// The flusher saw that nothing was spilled; then a write-behind was committed and spilled, and a write-through
    /// behind it was queued in memory. The flusher took the write-through, the watermark passed the acknowledged
    /// write-behind, and no later batch could bring it to the store any more. Found by the simulation.
    #[test]
    fn a_frame_in_memory_does_not_overtake_one_that_was_spilled_unseen() {
        let mut pending = Pending::default();
        pending.commit(frame(1, false), None, 0).unwrap();
        assert!(pending.commit(frame(2, true), None, 0).unwrap(), "beyond the memory budget");
        pending.commit(frame(3, false), None, 0).unwrap();
        assert_eq!(pending.front_before(None).map(|frame| frame.first), Some(Seq(1)));
        assert!(pending.pop_before(None).is_some());
        assert!(pending.front_before(None).is_none(), "2 comes first, from the journal");
        assert_eq!(pending.front_before(Some(Seq(4))).map(|frame| frame.first), Some(Seq(3)));
    }
}
