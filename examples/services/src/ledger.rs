//! The writes and the reads of a run, and the check that no read was given something older than it accepts.
//!
//! The store has a write since some time before the owner said so, so a value counts as replaced later than it was:
//! whatever is counted as a breach is one.

use std::collections::{BTreeMap, HashMap};

use crate::service::REMOVED_FROM;

/// A write that the store has.
#[derive(Clone, Copy, Debug)]
struct Write {
    /// Since when at the latest, in microseconds of Unix time.
    since_us: u64,
}

/// A read of a follower.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Read {
    pub(crate) key: u64,
    pub(crate) value: Option<u64>,
    pub(crate) began_us: u64,
    pub(crate) tolerance_us: u64,
}

#[derive(Default)]
pub(crate) struct Ledger {
    writes: HashMap<u64, BTreeMap<u64, Write>>,
    /// The write that brought a value.
    seqs: HashMap<(u64, u64), u64>,
    reads: Vec<(&'static str, Read)>,
    pub(crate) written: u64,
}

/// The result of the check of all reads.
#[derive(Clone, Debug, Default)]
pub(crate) struct Findings {
    pub(crate) reads: u64,
    /// Reads that found what the owner was killed before it could tell of.
    pub(crate) unknown: u64,
    pub(crate) breaches: u64,
    pub(crate) examples: Vec<String>,
    /// The staleness of the stalest read, in microseconds: the time from the replacement of its value to its beginning.
    pub(crate) stalest_us: u64,
    /// Reads that returned a value which had been replaced before they began.
    pub(crate) stale: u64,
}

impl Ledger {
    pub(crate) fn applied(&mut self, key: u64, seq: u64, value: Option<u64>, since_us: u64) {
        self.written += 1;
        self.writes.entry(key).or_default().insert(seq, Write { since_us });
        if let Some(value) = value {
            self.seqs.insert((key, value), seq);
        }
    }

    pub(crate) fn read(&mut self, follower: &'static str, read: Read) {
        self.reads.push((follower, read));
    }

    /// Looks at every read, by follower.
    pub(crate) fn check(&self) -> BTreeMap<&'static str, Findings> {
        let replacements: HashMap<u64, Vec<(u64, u64)>> =
            self.writes.iter().map(|(key, writes)| (*key, replacements(writes))).collect();
        let mut findings: BTreeMap<&'static str, Findings> = BTreeMap::new();
        for (follower, read) in &self.reads {
            let findings = findings.entry(follower).or_default();
            findings.reads += 1;
            let Some(replaced_us) = self.replaced(read, &replacements, findings) else { continue };
            let stale_us = read.began_us.saturating_sub(replaced_us);
            if stale_us == 0 {
                continue;
            }
            findings.stale += 1;
            findings.stalest_us = findings.stalest_us.max(stale_us);
            if stale_us >= read.tolerance_us {
                findings.breaches += 1;
                if findings.examples.len() < 5 {
                    findings
                        .examples
                        .push(format!("{read:?} was given what was replaced {stale_us} us before"));
                }
            }
        }
        findings
    }

    /// The latest moment at which the value that a read returned can have been replaced; `None` if it was not, or that
    /// is unknown.
    fn replaced(
        &self,
        read: &Read,
        replacements: &HashMap<u64, Vec<(u64, u64)>>,
        findings: &mut Findings,
    ) -> Option<u64> {
        let replaced = replacements.get(&read.key)?;
        let seq = match read.value {
            Some(value) => match self.seqs.get(&(read.key, value)) {
                Some(seq) => *seq,
                None => {
                    findings.unknown += 1;
                    return None;
                }
            },
            // Which of the removals it saw nobody knows.
            None if read.key >= REMOVED_FROM => return None,
            None => 0,
        };
        // Each value is written once, so whatever came later replaced it.
        let later = replaced.partition_point(|(other, _)| *other <= seq);
        replaced.get(later).map(|(_, since_us)| *since_us)
    }
}

/// Of each write, by its number: since when at the latest the store had it or a later one.
fn replacements(writes: &BTreeMap<u64, Write>) -> Vec<(u64, u64)> {
    let mut since_us = u64::MAX;
    let mut replacements: Vec<(u64, u64)> = Vec::with_capacity(writes.len());
    for (seq, write) in writes.iter().rev() {
        since_us = since_us.min(write.since_us);
        replacements.push((*seq, since_us));
    }
    replacements.reverse();
    replacements
}
