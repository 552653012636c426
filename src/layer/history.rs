//! The comparison of a store's history with a journal's, by identities first and numbers second.
//!
//! A journal knows the tenures in which it was written, and with its last frame a witness: how far the store had come
//! by then. So an opening finds a store that went back while nobody looked, and feeds it again from what the journal
//! has kept of the applied records. It does so only if the journal holds everything that the store lacks.

use crate::error::{Error, ErrorKind, Result};
use crate::ids::{JournalId, Seq};
use crate::journal::recovery::{JournalTenure, Opened};
use crate::queue::spilled::Unjournaled;
use crate::safeguard::Safeguard;
use crate::store::contract::Standing;

/// The part of a journal's history that a store is compared with.
pub(crate) struct JournalHistory<'a> {
    id: JournalId,
    tenures: &'a [JournalTenure],
    witness: Option<Seq>,
    /// The last journaled number before the oldest record.
    first_prev: Seq,
    last: Seq,
    /// What lies behind the store's watermark and is not in the journal.
    unjournaled: &'a Unjournaled,
}

impl<'a> JournalHistory<'a> {
    pub(crate) fn of(journal: &'a Opened, unjournaled: &'a Unjournaled) -> JournalHistory<'a> {
        let Opened { id, tenures, witness, first_prev, last, .. } = journal;
        JournalHistory {
            id: *id,
            tenures,
            witness: *witness,
            first_prev: *first_prev,
            last: *last,
            unjournaled,
        }
    }

    /// Checks that the store was fed from this journal, and that each has what the other relies on. Returns the number
    /// up to which the store has to be fed again, if it went back.
    ///
    /// # Errors
    /// [`ErrorKind::WrongJournal`], and [`ErrorKind::WentBack`] if the store went back behind what the journal has.
    pub(crate) fn compare(&self, standing: &Standing, replace: bool) -> Result<Option<Seq>> {
        if standing.journal == Some(self.id) {
            return self.compare_own(standing, replace);
        }
        let (id, watermark) = (self.id, standing.progress.journaled);
        if self.last > Seq::ZERO {
            // The numbers of another history say nothing about this store, so pending records could not be told from
            // applied ones. `replace_journal` does not help here.
            let context = match standing.journal {
                Some(fed_from) => mismatch(id, fed_from, watermark),
                None if standing.tenure.epoch.get() == 0 => format!(
                    "no layer has ever written to this store, and journal {id} holds records up to {}: the store was \
                     lost, or one of the two paths is wrong. Open the store that the journal belongs to; for a new \
                     store, use a new directory for the journal",
                    self.last
                ),
                None => format!(
                    "journal {id} holds records, and the store was not fed from it; for this store, use another \
                     directory for the journal"
                ),
            };
            return refuse(ErrorKind::WrongJournal, context);
        }
        match standing.journal.filter(|_| !replace) {
            // The new directory is empty: most likely the path is wrong, or the old journal is lost.
            Some(fed_from) => refuse(
                ErrorKind::WrongJournal,
                format!("{}; accept its loss with replace_journal(true)", mismatch(id, fed_from, watermark)),
            ),
            None => Ok(None),
        }
    }

    /// Compares the journal with a store that was fed from it last.
    fn compare_own(&self, standing: &Standing, replace: bool) -> Result<Option<Seq>> {
        let (id, progress) = (self.id, standing.progress);
        if progress.journaled > self.last && !replace && Safeguard::JournalReachesWatermark.holds() {
            return refuse(
                ErrorKind::WrongJournal,
                format!(
                    "the store holds journaled records up to {}, but journal {id} ends at {}: its end was lost, with \
                     whatever else was queued there; accept that with replace_journal(true)",
                    progress.journaled, self.last
                ),
            );
        }
        self.begins_in_time(standing)?;
        let Some(until) = self.witness.filter(|_| Safeguard::WitnessIsCompared.holds()) else {
            return Ok(None);
        };
        let after = progress.applied;
        match self.tenures.iter().position(|known| known.id == standing.tenure.id) {
            // A tenure behind the last frame leaves no trace in the journal, and the store may have gone on in it.
            None if after >= until => return Ok(None),
            None => {
                return refuse(
                    ErrorKind::WentBack,
                    format!(
                        "the store stands at record {after} of tenure {}, of which journal {id} holds nothing any \
                         more, and the journal was written when the store had records up to {until}: this is an \
                         older copy of the store",
                        standing.tenure
                    ),
                );
            }
            Some(own) => {
                // The store went back to before a later claim. If it was written to after that, by another journal's
                // numbers or by this one's, the two histories part there.
                let next = self.tenures.iter().skip(own + 1).find_map(|later| later.first);
                if let Some(next) = next.filter(|next| after >= *next) {
                    return refuse(
                        ErrorKind::WentBack,
                        format!(
                            "the store has record {after} of tenure {}, and journal {id} has other records of these \
                             numbers, of a later tenure: the histories of the two part at record {next}",
                            standing.tenure
                        ),
                    );
                }
            }
        }
        if after >= until {
            return Ok(None);
        }
        self.holds_all(after, until)?;
        Ok(Some(until))
    }

    /// Checks that the journal begins at or before the store's watermark.
    fn begins_in_time(&self, standing: &Standing) -> Result<()> {
        let watermark = standing.progress.applied;
        // Only records that the store held were trimmed.
        if self.first_prev > watermark && self.last > Seq::ZERO {
            return refuse(
                ErrorKind::WentBack,
                format!(
                    "the store holds records up to {watermark}, but journal {} begins after {}: the records in between \
                     are in neither; this is an older copy of the store",
                    self.id, self.first_prev
                ),
            );
        }
        Ok(())
    }

    /// Checks that the journal has the values of all records that the store lacks and once had.
    fn holds_all(&self, after: Seq, until: Seq) -> Result<()> {
        let mut missing = self.unjournaled.within(after, until);
        // Write-throughs behind the last frame.
        if until > self.last.max(after) {
            missing.push((self.last.max(after).next(), until));
        }
        if missing.is_empty() {
            return Ok(());
        }
        let ranges: Vec<String> = missing
            .iter()
            .map(|(first, last)| if first == last { first.to_string() } else { format!("{first} to {last}") })
            .collect();
        refuse(
            ErrorKind::WentBack,
            format!(
                "the store went back from record {until} to {after}, and these records in between were written through \
                 and are in neither store nor journal: {}",
                ranges.join(", ")
            ),
        )
    }
}

fn refuse<T>(kind: ErrorKind, context: String) -> Result<T> {
    Err(Error::new(kind, context))
}

fn mismatch(found: JournalId, expected: JournalId, watermark: Seq) -> String {
    format!(
        "the store was fed from journal {expected} up to record {watermark}, and this is journal {found}: the \
         journal was lost or swapped, and may have held writes that the store lacks"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Epoch, Tenure, TenureId};
    use crate::store::contract::Progress;

    const JOURNAL: JournalId = JournalId([1; 16]);

    fn id(number: u8) -> TenureId {
        TenureId([number; 16])
    }

    fn standing(tenure: u8, applied: u64) -> Standing {
        let progress = Progress { applied: Seq(applied), journaled: Seq(applied) };
        let tenure = Tenure { epoch: Epoch(u64::from(tenure)), id: id(tenure) };
        Standing { tenure, journal: Some(JOURNAL), progress, batch: 7 }
    }

    /// A journal from which everything up to 50 was trimmed, with tenure 1 up to record 100, nothing of tenure 2, and
    /// tenure 3 from 111 up to 200; the store had come to 180.
    fn compare(standing: Standing, unjournaled: &[(u64, u64)]) -> Result<Option<Seq>> {
        let tenures = [
            JournalTenure { id: id(1), after: Seq(50), first: Some(Seq(51)) },
            JournalTenure { id: id(3), after: Seq(100), first: Some(Seq(111)) },
        ];
        let mut missing = Unjournaled::default();
        unjournaled.iter().for_each(|(first, last)| missing.note(Seq(*first), Seq(*last)));
        let journal = JournalHistory {
            id: JOURNAL,
            tenures: &tenures,
            witness: Some(Seq(180)),
            first_prev: Seq(50),
            last: Seq(200),
            unjournaled: &missing,
        };
        journal.compare(&standing, false)
    }

    fn refused(standing: Standing, unjournaled: &[(u64, u64)], said: &str) {
        let error = compare(standing, unjournaled).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WentBack, "{error}");
        assert!(error.to_string().contains(said), "{error}");
    }

    #[test]
    fn a_store_at_or_behind_the_witness_goes_on() {
        for (tenure, applied) in [(3, 180), (3, 200), (4, 180), (4, 190)] {
            assert_eq!(
                compare(standing(tenure, applied), &[(181, 185)]).unwrap(),
                None,
                "{tenure} {applied}"
            );
        }
    }

    #[test]
    fn a_store_that_went_back_is_fed_again_from_a_point_that_the_journal_has() {
        for (tenure, applied) in [(3, 179), (3, 120), (1, 100), (1, 60), (1, 50)] {
            assert_eq!(
                compare(standing(tenure, applied), &[]).unwrap(),
                Some(Seq(180)),
                "{tenure} {applied}"
            );
        }
    }

    #[test]
    fn a_store_of_a_history_that_the_journal_does_not_have_is_refused() {
        refused(standing(1, 49), &[], "begins after 50");
        refused(standing(2, 105), &[], "holds nothing any more");
        refused(standing(1, 111), &[], "part at record 111");
        refused(standing(1, 170), &[], "part at record 111");
    }

    /// A journal of which only an empty segment is left has no witness, and still says where it begins.
    #[test]
    fn a_journal_without_a_frame_is_compared_by_where_it_begins() {
        let missing = Unjournaled::default();
        let (witness, first_prev, last) = (None, Seq(50), Seq(50));
        let journal =
            JournalHistory { id: JOURNAL, tenures: &[], witness, first_prev, last, unjournaled: &missing };
        assert_eq!(journal.compare(&standing(1, 50), false).unwrap(), None);
        let error = journal.compare(&standing(1, 49), false).unwrap_err();
        assert!(error.to_string().contains("begins after 50"), "{error}");
    }

    #[test]
    fn records_that_are_in_neither_are_named() {
        refused(standing(3, 150), &[(155, 155), (170, 172)], "155, 170 to 172");
        // What the witness does not cover was never applied, or not acknowledged for long.
        assert!(compare(standing(3, 150), &[(181, 190)]).unwrap().is_some());
        refused(standing(3, 150), &[(179, 190)], "179 to 180");
    }

    #[test]
    fn a_store_that_nobody_has_written_to_does_not_swallow_a_journal() {
        let error = compare(Standing::default(), &[]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WrongJournal);
        assert!(error.to_string().contains("use a new directory"), "{error}");
    }
}
