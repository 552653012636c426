//! The findings of the monitor, as plain values and as a table.

use std::fmt;
use std::time::Duration;

use crate::ids::{Key, Seq};
use crate::metrics::{as_text, labels};

/// The findings of a monitor so far. Counts only grow.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct MonitorReport {
    /// Writes that were reported to the monitor.
    pub writes: u64,
    /// Writes of them that were sampled.
    pub sampled: u64,
    /// Writes that were drawn and not sampled, because too many were in flight. If there are many of these, the shares
    /// say little of busy times.
    pub skipped: u64,
    /// Sampled writes without all their answers, because the run was dropped or an observer panicked.
    pub abandoned: u64,
    /// Sampled writes that wait for an answer at this moment.
    pub in_flight: usize,
    /// The longest time from the end of a delay until a follower was asked. A follower that is asked late has had more
    /// time.
    pub late_max: Duration,
    /// For each delay: the writes in which *every* follower was consistent.
    pub overall: Vec<Share>,
    /// The followers, in the order in which they were first asked.
    pub followers: Vec<FollowerReport>,
    /// The worst answers, the worst first: those of the longest delay, then those that are most versions behind;
    /// followers that did not answer come last.
    pub offenders: Vec<Offender>,
}

/// The findings about one follower.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct FollowerReport {
    /// Its name.
    pub name: String,
    /// For each delay: its consistent answers.
    pub shares: Vec<Share>,
    /// The reasons of the others, over all delays. Reasons that did not occur are left out.
    pub reasons: Vec<(Reason, u64)>,
}

/// The share of consistent answers after one delay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Share {
    /// The delay after the write.
    pub delay: Duration,
    /// Questions, without those whose answer is unknown.
    pub asked: u64,
    /// Consistent answers. A follower that does not answer is not consistent.
    pub consistent: u64,
    /// Questions without an answer; in the overall shares those of all followers.
    pub unreachable: u64,
    /// Answers that cannot be judged: from memory and without a version, as an absence.
    pub unknown: u64,
}

impl Share {
    /// Returns the share of consistent answers, from 0 to 1; `None` if nothing was asked yet.
    #[must_use]
    pub fn ratio(&self) -> Option<f64> {
        (self.asked > 0).then(|| self.consistent as f64 / self.asked as f64)
    }
}

labels! {
    /// The reason why an answer was not consistent.
    pub enum Reason {
        /// The follower had not received the write.
        Lag = "lag",
        /// The follower knew that events were missing.
        Gap = "gap",
        /// A load of the follower's was refused as too old, and it still had something older.
        RefusedFill = "refused_fill",
        /// The follower would serve it only as an entry that it cannot prove to be current.
        Unverified = "unverified",
        /// The follower did not answer, or not in time.
        Unreachable = "unreachable",
        /// The follower had received the write, or cannot say how far it has received, and knew of nothing wrong. The
        /// former is a defect, of the follower or of what fed it.
        Unexplained = "unexplained",
    }
}

/// A write that a follower did not serve after a delay.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct Offender {
    /// The follower.
    pub follower: String,
    /// The key that was written.
    #[serde(serialize_with = "as_text")]
    pub key: Key,
    /// The version that it was given.
    pub seq: Seq,
    /// The version that the follower would have served, if it said one.
    pub served: Option<Seq>,
    /// The longest delay after which this was so.
    pub delay: Duration,
    /// The delay after which the follower was consistent again; `None` if it has not been.
    pub healed: Option<Duration>,
    /// The reason.
    pub reason: Reason,
    /// The sequence numbers that the follower was behind the write, by its own account.
    pub lag: u64,
    /// The error in place of an answer.
    pub error: Option<String>,
}

impl fmt::Display for MonitorReport {
    /// A table of the shares, and one of the offenders, for a terminal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MonitorReport { writes, sampled, skipped, abandoned, in_flight, late_max, .. } = self;
        write!(f, "{sampled} of {writes} writes looked at, {in_flight} in flight, {skipped} skipped, ")?;
        writeln!(f, "{abandoned} abandoned; asked up to {:.3} s late", late_max.as_secs_f64())?;
        let delays = self.overall.iter().map(|share| seconds(share.delay));
        let mut rows = vec![["consistent after".to_owned()].into_iter().chain(delays).collect::<Vec<_>>()];
        let row = |name: &str, shares: &[Share], reasons: String| {
            // Names come from outside: control characters must not reach a terminal or break the table.
            let name = name.escape_debug().to_string();
            let shares = shares.iter().map(|share| percent(share.consistent, share.asked));
            [name].into_iter().chain(shares).chain([reasons]).collect::<Vec<_>>()
        };
        for follower in &self.followers {
            let reasons =
                follower.reasons.iter().map(|(reason, count)| format!("{} {count}", reason.as_str()));
            let unknown: u64 = follower.shares.iter().map(|share| share.unknown).sum();
            let unknown = (unknown > 0).then(|| format!("unknown {unknown}"));
            let reasons = reasons.chain(unknown).collect::<Vec<_>>().join(", ");
            rows.push(row(&follower.name, &follower.shares, reasons));
        }
        rows.push(row("(every follower)", &self.overall, String::new()));
        table(f, &rows)?;
        if self.offenders.is_empty() {
            return Ok(());
        }
        let head = ["inconsistent", "key", "version", "served", "after", "healed", "why"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(self.offenders.iter().map(Offender::row));
        writeln!(f)?;
        table(f, &rows)
    }
}

impl Offender {
    fn row(&self) -> Vec<String> {
        let why = match (&self.error, self.lag) {
            (Some(error), _) => format!("{}: {}", self.reason.as_str(), error.escape_debug()),
            (None, 0) => self.reason.as_str().to_owned(),
            (None, lag) => format!("{}, {lag} behind", self.reason.as_str()),
        };
        let healed = self.healed.map_or("no".into(), seconds);
        vec![
            self.follower.escape_debug().to_string(),
            self.key.to_string(),
            self.seq.to_string(),
            self.served.map_or("-".into(), |served| served.to_string()),
            seconds(self.delay),
            healed,
            why,
        ]
    }
}

fn seconds(delay: Duration) -> String {
    format!("{} s", delay.as_secs_f64())
}

/// Formats a share in percent, rounded down, so that only the whole reads as 100 %.
fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".into();
    }
    // In integers: a double rounds 0.9999999 up.
    let millionths = u128::from(part) * 1_000_000 / u128::from(whole);
    format!("{}.{:04} %", millionths / 10_000, millionths % 10_000)
}

fn table(f: &mut fmt::Formatter<'_>, rows: &[Vec<String>]) -> fmt::Result {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let cell = |row: &[String], column: usize| row.get(column).map_or(0, |cell| cell.chars().count());
    let widths =
        (0..columns).map(|column| rows.iter().map(|row| cell(row, column)).max().unwrap_or_default());
    let widths: Vec<usize> = widths.collect();
    for row in rows {
        let line: Vec<String> =
            row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
        writeln!(f, "{}", line.join("  ").trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_reads_as_all_of_it() {
        assert_eq!(percent(0, 0), "-");
        assert_eq!(percent(3, 3), "100.0000 %");
        assert_eq!(percent(u64::MAX - 1, u64::MAX), "99.9999 %");
        assert_eq!(percent(1, 3), "33.3333 %");
        assert_eq!(percent(0, 7), "0.0000 %");
    }
}
