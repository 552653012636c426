//! How the flusher comes by a batch: what it takes, and how long it waits for more.
//!
//! Writers come first: while they go on committing, the drain stays out of their way, since it shares the processors
//! and the disk with them. It never waits for them to end: what is pending may grow so old and so much and no more, and
//! nobody who waits for an apply or for room is made to wait for this. Then all that was there is drained.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};
use crate::flush::flusher::{FRAMES_AT_ONCE, Flusher};
use crate::flush::hand::Hand;
use crate::ids::Seq;
use crate::queue::pending::Pending;
use crate::queue::queued::QueuedFrame;
use crate::seam::clock;
use crate::seam::sync::thread;

/// How long the flusher waits for those whom it just answered: about a third of what an apply takes.
const LOOK_OUT_MAX: Duration = Duration::from_micros(100);

/// How far the drain has come with what was pending when it last began.
pub(crate) struct Drain {
    /// What is not newer than this is applied at once.
    up_to: Seq,
    /// Anything newer was committed later than this.
    begun: Instant,
    /// When a write-through was last answered.
    through: Option<Instant>,
}

impl Default for Drain {
    fn default() -> Self {
        Drain { up_to: Seq::ZERO, begun: clock::now(), through: None }
    }
}

impl Flusher {
    /// Waits for work (none means that refused numbers are to be passed), and for the batch to fill if the options say
    /// so and nobody is in a hurry.
    pub(crate) async fn next_batch(&mut self) -> Result<Vec<QueuedFrame>> {
        let core = Arc::clone(&self.core);
        let mut hand = Hand::default();
        // Nothing that is pending by now is older.
        let mut oldest = self.drain.begun;
        loop {
            let work = core.work.notified();
            self.fill(&mut hand)?;
            if !hand.frames.is_empty() {
                break;
            }
            // All that was committed before them has ended.
            if self.refused.get() > self.progress.applied {
                return Ok(hand.frames);
            }
            work.await;
            oldest = clock::now();
        }
        if self.answered.get() > 0 {
            self.drain.through = Some(clock::now());
        }
        self.look_out(&mut hand)?;
        if core.options.batch_linger.is_zero() {
            return Ok(hand.frames);
        }
        if hand.frames.first().is_some_and(|frame| frame.first > self.drain.up_to) {
            self.linger(oldest).await;
            let up_to = core.pending.lock().last_committed();
            self.drain = Drain { up_to, begun: clock::now(), ..self.drain };
        }
        self.fill(&mut hand)?;
        Ok(hand.frames)
    }

    /// Waits for the batch to fill, unless somebody is in a hurry. While more is being committed it waits longer, and
    /// for more than a batch.
    async fn linger(&self, oldest: Instant) {
        let (core, linger) = (&self.core, self.core.options.batch_linger);
        let until = oldest + self.delay_max();
        let mut committed = core.pending.lock().last_committed();
        loop {
            let gives_way = clock::now() + linger <= until;
            core.drain_gives_way(gives_way);
            let deadline = clock::sleep(linger);
            tokio::pin!(deadline);
            loop {
                if core.is_urgent(self.progress.applied) {
                    return;
                }
                tokio::select! {
                    biased;
                    () = &mut deadline => break,
                    () = core.urgent.notified() => {}
                }
            }
            let newest = core.pending.lock().last_committed();
            if newest == committed || !gives_way {
                return;
            }
            committed = newest;
        }
    }

    /// How old what is pending may become while the drain gives way. Where others hear of changes they wait for those;
    /// and who wrote through a moment ago may do so again, and would wait for all that is pending by then.
    fn delay_max(&self) -> Duration {
        let delay_max = self.core.options.drain_delay_max;
        let through = self.drain.through.is_some_and(|at| clock::now() < at + delay_max);
        if self.tells || through { Duration::ZERO } else { delay_max }
    }

    /// Looks out, awake, for those who were just answered: they write through again at once, as a rule, and whoever is
    /// left behind waits for two applies. A lone writer is never kept waiting.
    fn look_out(&mut self, hand: &mut Hand) -> Result<()> {
        let expected = self.answered.replace(0);
        if expected < 2 {
            return Ok(());
        }
        let until = clock::now() + LOOK_OUT_MAX;
        while !hand.full && hand.frames.len() < expected && clock::now() < until {
            thread::yield_now();
            self.fill(hand)?;
        }
        Ok(())
    }

    /// Takes what is there until the batch is full.
    fn fill(&mut self, hand: &mut Hand) -> Result<()> {
        while !hand.full {
            self.read_ahead()?;
            let limit = self.source.ahead.as_ref().map(|frame| frame.first);
            let mut pending = self.core.pending.lock();
            if pending.has_before(limit) {
                self.take_from_memory(hand, &mut pending, limit)?;
                continue;
            }
            let frame = match &self.source.ahead {
                Some(ahead) => QueuedFrame::read(ahead),
                // Frames were left to the journal just now.
                None if pending.spilled().is_some() => continue,
                None => return Ok(()),
            };
            if !hand.admits(&frame, &self.core.options)? {
                return Ok(());
            }
            if pending.read_back(frame.last()) {
                self.source.reader = None;
            }
            self.source.ahead = None;
            hand.frames.push(frame);
        }
        Ok(())
    }

    /// Takes frames that come before `limit`, and not so many that the committer has to wait long for the lock.
    fn take_from_memory(&self, hand: &mut Hand, pending: &mut Pending, limit: Option<Seq>) -> Result<()> {
        for _ in 0..FRAMES_AT_ONCE {
            let Some(front) = pending.front_before(limit) else { return Ok(()) };
            if hand.full || !hand.admits(&front, &self.core.options)? {
                return Ok(());
            }
            hand.frames.extend(pending.pop_before(limit));
        }
        Ok(())
    }

    /// Reads the next spilled frame, if frames were left to the journal.
    fn read_ahead(&mut self) -> Result<()> {
        if self.source.ahead.is_some() {
            return Ok(());
        }
        let Some((after, until)) = self.core.pending.lock().spilled() else { return Ok(()) };
        let Some(log) = &self.log else { return Ok(()) };
        loop {
            let reader = self.source.reader.get_or_insert_with(|| log.read_after(after));
            let frame = reader.next_frame()?.ok_or_else(|| {
                let context = format!("the journal ends before record {until}, which it has committed");
                Error::new(ErrorKind::Damaged, context)
            })?;
            if !self.source.is_of_memory(&frame)? {
                self.source.ahead = Some(frame);
                return Ok(());
            }
        }
    }
}
