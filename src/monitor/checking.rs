//! The monitor's work: asking every follower at every delay, and judging the answer.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};

use crate::bus::event::FOLLOWER_BYTES_MAX;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Seq;
use crate::monitor::observer::{Observation, Observer, Served, Trouble};
use crate::monitor::report::Reason;
use crate::monitor::sampling::{FOLLOWERS_MAX, Monitor, Sample, SharedTally, lock};
use crate::monitor::tally::{Answer, Finding, Verdict};
use crate::seam::sync::Mutex;

impl Monitor {
    /// Asks the followers, until [`Monitor::close`]; then returns once nothing is in flight. For a task of the
    /// caller's, on a tokio runtime. A second call waits until the first one has ended, and goes on with its figures.
    ///
    /// Dropping the future gives up what is in flight, which is counted.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] at once: no observer, more than [`FOLLOWERS_MAX`], or a name that is empty, longer
    /// than 64 bytes, or another one's.
    pub async fn run(&self, observers: Vec<Arc<dyn Observer>>) -> Result<()> {
        check_names(&observers)?;
        let inner = &*self.0;
        let mut arriving = inner.arriving.lock().await;
        let places: Vec<usize> = {
            let mut tally = lock(&inner.tally);
            observers.iter().map(|observer| tally.follower(observer.name())).collect::<Result<_>>()?
        };
        let followers: Vec<(usize, Arc<dyn Observer>)> = places.into_iter().zip(observers).collect();
        let mut closed = inner.closed.subscribe();
        let mut asking = JoinSet::new();
        loop {
            let is_closed = *closed.borrow_and_update();
            if is_closed && self.in_flight() == 0 {
                return Ok(());
            }
            tokio::select! {
                Some(sample) = arriving.recv() => {
                    let sample = Arc::new(Taken::new(sample, &inner.tally, inner.delays.len(), followers.len()));
                    for (follower, observer) in &followers {
                        let (sample, observer) = (Arc::clone(&sample), Arc::clone(observer));
                        asking.spawn(ask(observer, *follower, sample, Arc::clone(&inner.delays), inner.patience));
                    }
                }
                // An observer that panicked leaves its sample unanswered, and that is counted.
                Some(_) = asking.join_next() => {}
                changed = closed.changed(), if !is_closed => changed.expect("this monitor holds the sender"),
            }
        }
    }
}

fn check_names(observers: &[Arc<dyn Observer>]) -> Result<()> {
    let refuse = |what: String| Err(Error::new(ErrorKind::InvalidOption, what));
    let count = observers.len();
    if !(1..=FOLLOWERS_MAX).contains(&count) {
        return refuse(format!("a monitor with {count} observers; allowed are 1 to {FOLLOWERS_MAX}"));
    }
    let mut names = BTreeSet::new();
    for name in observers.iter().map(|observer| observer.name()) {
        if !(1..=FOLLOWER_BYTES_MAX).contains(&name.len()) {
            let length = name.len();
            return refuse(format!(
                "an observer's name of {length} bytes; allowed are 1 to {FOLLOWER_BYTES_MAX}"
            ));
        }
        if !names.insert(name) {
            return refuse(format!("two observers are named \"{}\"", name.escape_debug()));
        }
    }
    Ok(())
}

/// A sample that is asked for.
struct Taken {
    sample: Sample,
    tally: SharedTally,
    /// Of each delay: how many followers have not answered yet, and the worst that the others said.
    rounds: Mutex<Vec<(usize, Verdict)>>,
}

impl Taken {
    fn new(sample: Sample, tally: &SharedTally, delays: usize, followers: usize) -> Taken {
        Taken {
            sample,
            tally: Arc::clone(tally),
            rounds: Mutex::new(vec![(followers, Verdict::Consistent); delays]),
        }
    }

    /// Notes what a follower would serve, and, if it was the last one of its round, whether the write was consistent.
    fn note(&self, follower: usize, round: usize, late: Duration, answer: Answer) {
        let mut tally = lock(&self.tally);
        let mut rounds = self.rounds.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((left, worst)) = rounds.get_mut(round) else { return };
        *left -= 1;
        *worst = answer.verdict().max(*worst);
        let whole = (*left == 0).then_some(*worst);
        tally.note(&Finding {
            follower,
            round,
            late,
            key: &self.sample.key,
            seq: self.sample.seq,
            answer,
            whole,
        });
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let rounds = self.rounds.get_mut().unwrap_or_else(PoisonError::into_inner);
        if rounds.iter().any(|(left, _)| *left > 0) {
            lock(&self.tally).abandoned += 1;
        }
    }
}

/// Asks one follower for one write, after each delay.
async fn ask(
    observer: Arc<dyn Observer>,
    follower: usize,
    taken: Arc<Taken>,
    delays: Arc<[Duration]>,
    patience: Duration,
) {
    let nexts = delays.iter().skip(1).map(Some).chain([None]);
    for (round, (delay, next)) in delays.iter().zip(nexts).enumerate() {
        let due = taken.sample.applied + *delay;
        sleep_until(due).await;
        let late = due.elapsed();
        // An answer that takes longer would be mixed up with the next one's.
        let patience = next.map_or(patience, |next| patience.min(next.saturating_sub(*delay)));
        let answered = timeout(patience, observer.observe(&taken.sample.key)).await;
        let observed = answered.unwrap_or_else(|_| {
            let context =
                format!("asking \"{}\" what it serves: no answer within {patience:?}", observer.name());
            Err(Error::new(ErrorKind::Transient, context))
        });
        taken.note(follower, round, late, judge(taken.sample.seq, observed));
    }
}

/// What an answer says of a write: it is consistent if what would be served is at least as new, or nothing would be
/// served from memory. Of what has no version, an absence above all, nobody can tell.
fn judge(seq: Seq, observed: Result<Observation>) -> Answer {
    let observation = match observed {
        Ok(observation) => observation,
        Err(error) => {
            return Answer::Inconsistent {
                reason: Reason::Unreachable,
                served: None,
                lag: 0,
                error: Some(format!("{error:#}")),
            };
        }
    };
    let Observation { version: served, state, heard_until, trouble } = observation;
    match served {
        _ if state == Served::Store => return Answer::Consistent,
        Some(version) if version >= seq => return Answer::Consistent,
        Some(_) => {}
        None => return Answer::Unknown,
    }
    let lag = heard_until.map_or(0, |heard_until| seq.0.saturating_sub(heard_until.0));
    let reason = match (state, trouble) {
        (Served::Unverified, _) => Reason::Unverified,
        (_, Some(Trouble::Gap)) => Reason::Gap,
        (_, Some(Trouble::RefusedFill)) => Reason::RefusedFill,
        _ if lag > 0 => Reason::Lag,
        _ => Reason::Unexplained,
    };
    Answer::Inconsistent { reason, served, lag, error: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_is_consistent_where_nothing_older_would_be_served() {
        let observed = |version: Option<u64>, state, heard_until: u64, trouble| {
            let (version, heard_until) = (version.map(Seq), Some(Seq(heard_until)));
            judge(Seq(42), Ok(Observation { version, state, heard_until, trouble }))
        };
        let consistent = [
            observed(Some(42), Served::Fresh, 42, None),
            observed(Some(43), Served::Fresh, 9, Some(Trouble::Gap)),
            observed(Some(42), Served::Unverified, 9, None),
            observed(Some(42), Served::Absent, 42, None),
            observed(None, Served::Store, 9, Some(Trouble::Gap)),
        ];
        assert!(consistent.iter().all(|answer| *answer == Answer::Consistent), "{consistent:?}");
        assert_eq!(observed(None, Served::Absent, 42, None), Answer::Unknown);
        assert_eq!(observed(None, Served::Fresh, 9, Some(Trouble::Gap)), Answer::Unknown);
        for (observed, expected, behind) in [
            (observed(Some(41), Served::Fresh, 39, None), Reason::Lag, 3),
            (observed(Some(41), Served::Fresh, 39, Some(Trouble::Gap)), Reason::Gap, 3),
            (observed(Some(41), Served::Fresh, 42, Some(Trouble::RefusedFill)), Reason::RefusedFill, 0),
            (observed(Some(41), Served::Unverified, 41, Some(Trouble::Gap)), Reason::Unverified, 1),
            (observed(Some(41), Served::Fresh, 50, None), Reason::Unexplained, 0),
            (observed(Some(41), Served::Absent, 42, None), Reason::Unexplained, 0),
            (judge(Seq(42), Err(Error::new(ErrorKind::Transient, "gone"))), Reason::Unreachable, 0),
        ] {
            let Answer::Inconsistent { reason, lag, .. } = observed else {
                panic!("{expected:?}: {observed:?}")
            };
            assert_eq!((reason, lag), (expected, behind));
        }
    }
}
