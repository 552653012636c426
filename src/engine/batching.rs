//! How the flusher comes by a batch: what it takes, and how long it waits for more.
//!
//! Writers come first: while they are at work the flusher lingers longer. It never waits for them to end: a linger has
//! a bound, nobody who waits for an apply or for room is made to wait for it, and where a whole batch is there is none.

use std::sync::Arc;
use std::time::Duration;

use crate::engine::flusher::{FRAMES_AT_ONCE, Flusher};
use crate::engine::hand::Hand;
use crate::engine::pending::Pending;
use crate::engine::queued::QueuedFrame;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Seq;
use crate::seam::clock;
use crate::seam::sync::thread;

/// How long the flusher waits for those whom it just answered: about a third of what an apply takes.
const LOOK_OUT_MAX: Duration = Duration::from_micros(100);

/// How much longer than asked the flusher lingers while writers are at work: so many times, and never beyond this.
const LINGER_LONGER: (u32, Duration) = (10, Duration::from_millis(100));

impl Flusher {
    /// Waits for work (none means that refused numbers are to be passed), and for the batch to fill if the options say
    /// so and nobody is in a hurry.
    pub(crate) async fn next_batch(&mut self) -> Result<Vec<QueuedFrame>> {
        let core = Arc::clone(&self.core);
        let mut hand = Hand::default();
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
        }
        self.look_out(&mut hand)?;
        if core.options.batch_linger.is_zero() {
            return Ok(hand.frames);
        }
        if !hand.full && !core.is_urgent(self.progress.applied) {
            self.linger().await;
        }
        self.fill(&mut hand)?;
        Ok(hand.frames)
    }

    /// Waits for the batch to fill, unless somebody is in a hurry. While more is being committed it waits longer: each
    /// apply costs a few writes a turn of the disk, so fewer of them are in the way of fewer.
    async fn linger(&self) {
        let (core, linger) = (&self.core, self.core.options.batch_linger);
        let until = clock::now() + longest_linger(linger, core.options.changes);
        let mut committed = core.pending.lock().last_committed();
        loop {
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
            if newest == committed || clock::now() + linger > until {
                return;
            }
            committed = newest;
        }
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

/// How long the flusher lingers at the most while more is being committed. No longer than asked where changes are told,
/// since others wait for those.
fn longest_linger(linger: Duration, tells_changes: bool) -> Duration {
    let (times, at_most) = LINGER_LONGER;
    match tells_changes {
        true => linger,
        false => linger.max(at_most.min(linger.saturating_mul(times))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linger_grows_up_to_its_bound_unless_others_wait_for_what_is_applied() {
        let ms = Duration::from_millis;
        let cases = [(1, 10), (10, 100), (50, 100), (100, 100), (60_000, 60_000)];
        for (linger, longest) in cases {
            assert_eq!(longest_linger(ms(linger), false), ms(longest), "{linger} ms");
            assert_eq!(longest_linger(ms(linger), true), ms(linger), "{linger} ms, and changes are told");
        }
        assert_eq!(longest_linger(Duration::MAX, false), Duration::MAX);
    }
}
