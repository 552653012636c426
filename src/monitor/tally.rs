//! The monitor's counts and worst answers. Bounded by the followers, the delays, and the number of offenders to keep.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::{Key, Seq};
use crate::monitor::report::{FollowerReport, MonitorReport, Offender, Reason, Share};

/// The most followers that one monitor asks.
pub(super) const FOLLOWERS_MAX: usize = 1_024;

/// The longest error text that is kept, in characters.
const ERROR_CHARS_MAX: usize = 200;

/// The monitor's counts.
pub(super) struct Tally {
    pub(super) sampled: u64,
    pub(super) skipped: u64,
    pub(super) abandoned: u64,
    late_max: Duration,
    delays: Vec<Duration>,
    overall: Vec<Share>,
    followers: Vec<FollowerTally>,
    offenders_max: usize,
    /// The worst first.
    offenders: Vec<Offender>,
}

struct FollowerTally {
    name: String,
    shares: Vec<Share>,
    reasons: BTreeMap<Reason, u64>,
}

/// The meaning of a follower's answer for a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum FollowerAnswer {
    /// The follower would serve nothing older.
    Consistent,
    /// The answer has no version.
    Unknown,
    /// The follower would serve something older, or did not answer.
    Inconsistent { reason: Reason, served: Option<Seq>, lag: u64, error: Option<String> },
}

/// An answer without its details, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum AnswerVerdict {
    Consistent,
    Unknown,
    Inconsistent,
}

impl FollowerAnswer {
    pub(super) fn verdict(&self) -> AnswerVerdict {
        match self {
            FollowerAnswer::Consistent => AnswerVerdict::Consistent,
            FollowerAnswer::Unknown => AnswerVerdict::Unknown,
            FollowerAnswer::Inconsistent { .. } => AnswerVerdict::Inconsistent,
        }
    }
}

/// An answer, and the follower, delay and write that it belongs to.
pub(super) struct AnswerFinding<'a> {
    /// The follower's position.
    pub(super) follower: usize,
    /// The delay's position.
    pub(super) round: usize,
    /// The time from the delay's end until it was asked.
    pub(super) late: Duration,
    pub(super) key: &'a Key,
    pub(super) seq: Seq,
    pub(super) answer: FollowerAnswer,
    /// The worst answer of all followers, if this is the last one of its round.
    pub(super) whole: Option<AnswerVerdict>,
}

fn shares(delays: &[Duration]) -> Vec<Share> {
    delays
        .iter()
        .map(|delay| Share { delay: *delay, asked: 0, consistent: 0, unreachable: 0, unknown: 0 })
        .collect()
}

fn count(share: &mut Share, verdict: AnswerVerdict) {
    // An unknown answer counts neither way: it would hide staleness, or invent it.
    share.asked += u64::from(verdict != AnswerVerdict::Unknown);
    share.consistent += u64::from(verdict == AnswerVerdict::Consistent);
    share.unknown += u64::from(verdict == AnswerVerdict::Unknown);
}

impl Tally {
    pub(super) fn new(delays: Vec<Duration>, offenders_max: usize) -> Tally {
        Tally {
            sampled: 0,
            skipped: 0,
            abandoned: 0,
            late_max: Duration::ZERO,
            overall: shares(&delays),
            delays,
            followers: Vec::new(),
            offenders_max,
            offenders: Vec::new(),
        }
    }

    /// Returns the position of a follower's counts, which stays the same.
    pub(super) fn follower(&mut self, name: &str) -> Result<usize> {
        // A second run goes on with the counts of the first.
        if let Some(place) = self.followers.iter().position(|follower| follower.name == name) {
            return Ok(place);
        }
        // Runs under ever new names would otherwise grow the counts without an end.
        if self.followers.len() >= FOLLOWERS_MAX {
            let context = format!("a monitor that has had {FOLLOWERS_MAX} followers cannot have another one");
            return Err(Error::new(ErrorKind::InvalidOption, context));
        }
        let (name, shares, reasons) = (name.to_owned(), shares(&self.delays), BTreeMap::new());
        self.followers.push(FollowerTally { name, shares, reasons });
        Ok(self.followers.len() - 1)
    }

    /// Counts an answer.
    pub(super) fn note(&mut self, finding: &AnswerFinding<'_>) {
        self.late_max = self.late_max.max(finding.late);
        let unreachable =
            matches!(finding.answer, FollowerAnswer::Inconsistent { reason: Reason::Unreachable, .. });
        if let Some(follower) = self.followers.get_mut(finding.follower) {
            if let Some(share) = follower.shares.get_mut(finding.round) {
                count(share, finding.answer.verdict());
                share.unreachable += u64::from(unreachable);
            }
            if let FollowerAnswer::Inconsistent { reason, .. } = &finding.answer {
                *follower.reasons.entry(*reason).or_default() += 1;
            }
        }
        if let Some(share) = self.overall.get_mut(finding.round) {
            share.unreachable += u64::from(unreachable);
            finding.whole.into_iter().for_each(|whole| count(share, whole));
        }
        self.judge_offender(finding);
    }

    /// Keeps, replaces or marks as healed the offender of this follower and this write.
    fn judge_offender(&mut self, finding: &AnswerFinding<'_>) {
        let (Some(follower), Some(delay)) =
            (self.followers.get(finding.follower), self.delays.get(finding.round).copied())
        else {
            return;
        };
        let is_known = |known: &Offender| {
            known.seq == finding.seq && known.follower == follower.name && known.key == *finding.key
        };
        let known = self.offenders.iter().position(is_known);
        let FollowerAnswer::Inconsistent { reason, served, lag, error } = &finding.answer else {
            // An unknown answer heals nothing.
            let known = known.filter(|_| finding.answer == FollowerAnswer::Consistent);
            if let Some(known) = known.and_then(|at| self.offenders.get_mut(at)) {
                // The first delay at which it was healed stays: later answers say nothing new.
                known.healed.get_or_insert(delay);
            }
            return;
        };
        // An observer's error may be of any length.
        let error = error.as_ref().map(|error| error.chars().take(ERROR_CHARS_MAX).collect());
        let (follower, key) = (follower.name.clone(), finding.key.clone());
        let (seq, served, reason, lag) = (finding.seq, *served, *reason, *lag);
        let offender = Offender { follower, key, seq, served, delay, healed: None, reason, lag, error };
        // The same write after a longer delay is worse, so it moves up.
        if let Some(at) = known {
            self.offenders.remove(at);
        }
        // Sorted by insertion: there are at most a thousand, and mostly none.
        let at = self.offenders.partition_point(|kept| badness(kept) >= badness(&offender));
        self.offenders.insert(at, offender);
        self.offenders.truncate(self.offenders_max);
    }

    pub(super) fn report(&self, writes: u64, in_flight: usize) -> MonitorReport {
        let followers = self.followers.iter().map(|follower| FollowerReport {
            name: follower.name.clone(),
            shares: follower.shares.clone(),
            reasons: follower.reasons.iter().map(|(reason, count)| (*reason, *count)).collect(),
        });
        MonitorReport {
            writes,
            sampled: self.sampled,
            skipped: self.skipped,
            abandoned: self.abandoned,
            in_flight,
            late_max: self.late_max,
            overall: self.overall.clone(),
            followers: followers.collect(),
            offenders: self.offenders.clone(),
        }
    }
}

/// The order of offenders: a wrong answer is worse than none, then by delay, then by how old the answer was.
fn badness(offender: &Offender) -> (bool, Duration, u64) {
    // A version that is newer than the write's must not underflow.
    let behind = offender.seq.0 - offender.served.unwrap_or_default().0.min(offender.seq.0);
    (offender.reason != Reason::Unreachable, offender.delay, behind)
}
