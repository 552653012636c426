//! What a committer hands from one to the next: the right to write, with all that belongs to it. Whoever has it gives
//! numbers, writes groups and syncs them; who that is, and when, is the committer's to say.

use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::Seq;
use crate::journal::frame::Location;
use crate::journal::log::Log;
use crate::journal::sink::Committed;
use crate::journal::writer::Writer;
use crate::safeguard::Safeguard;

/// How many places a vector keeps after a large group.
const GROUP_KEPT: usize = 1024;

/// The baton: all that only one may touch at a time. Its vectors are reused between groups.
pub(super) struct Order<T> {
    pub(super) journal: Option<(Arc<Log>, Writer)>,
    /// The last sequence number given.
    pub(super) last: Seq,
    /// Whether something was written that no sync point covers.
    pub(super) unsynced: bool,
    /// How many submissions came while the last group was written and synced.
    pub(super) came_meanwhile: usize,
    pub(super) group: Vec<Committed<T>>,
    locations: Vec<Location>,
}

impl<T> Order<T> {
    pub(super) fn new(journal: Option<(Arc<Log>, Writer)>, last: Seq) -> Order<T> {
        Order { journal, last, unsynced: false, came_meanwhile: 0, group: Vec::new(), locations: Vec::new() }
    }

    /// Gives back what a large group took.
    pub(super) fn shrink(&mut self) {
        self.group.shrink_to(GROUP_KEPT);
        self.locations.shrink_to(GROUP_KEPT);
    }

    /// Gives the group its numbers, writes what of it is to be journaled, and syncs that if asked to. If the disk was
    /// full, returns why, and those at the end that were not written have no location.
    pub(super) fn write(&mut self, sync: bool) -> Result<Option<Error>> {
        number(self.last, &mut self.group);
        self.locations.clear();
        let Some((_, writer)) = &mut self.journal else { return Ok(None) };
        let journaled = self.group.iter().filter(|one| one.journaled).map(|one| &one.frame);
        let count = journaled.clone().count();
        if count == 0 {
            return Ok(None);
        }
        let error = writer.append(journaled, &mut self.locations).err();
        match &error {
            Some(error) if error.kind() != ErrorKind::DiskFull => return Err(error.clone()),
            None if self.locations.len() != count => {
                return Err(Error::new(ErrorKind::Poisoned, "the journal's writer lost count of its frames"));
            }
            _ => {}
        }
        let journaled = self.group.iter_mut().filter(|one| one.journaled);
        for (one, location) in journaled.zip(&self.locations) {
            one.location = Some(*location);
        }
        if !self.locations.is_empty() {
            if sync && Safeguard::AcknowledgeAfterSync.holds() {
                writer.sync()?;
            } else {
                self.unsynced = true;
            }
        }
        Ok(error)
    }
}

/// Gives a group the numbers that follow `last`.
pub(super) fn number<T>(mut last: Seq, group: &mut [Committed<T>]) {
    for one in group {
        one.frame.first = last.next();
        last = last.plus(u64::from(one.frame.body.count()));
    }
}
