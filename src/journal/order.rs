//! What a committer hands from one to the next: the right to write, with all that belongs to it. Whoever has it gives
//! numbers, writes groups and syncs them; who that is, and when, is the committer's to say.

use std::mem;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::Seq;
use crate::journal::frame::Location;
use crate::journal::log::Log;
use crate::journal::sink::{Committed, Submission};
use crate::journal::writer::{GroupFrame, Writer};
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
    pub(super) group: Vec<Submission<T>>,
    pub(super) frames: Vec<GroupFrame>,
    pub(super) locations: Vec<Location>,
    pub(super) committed: Vec<Committed<T>>,
}

impl<T> Order<T> {
    pub(super) fn new(journal: Option<(Arc<Log>, Writer)>, last: Seq) -> Order<T> {
        Order {
            journal,
            last,
            unsynced: false,
            came_meanwhile: 0,
            group: Vec::new(),
            frames: Vec::new(),
            locations: Vec::new(),
            committed: Vec::new(),
        }
    }

    /// Gives back what a large group took.
    pub(super) fn shrink(&mut self) {
        self.group.shrink_to(GROUP_KEPT);
        self.frames.shrink_to(GROUP_KEPT);
        self.locations.shrink_to(GROUP_KEPT);
        self.committed.shrink_to(GROUP_KEPT);
    }

    /// Writes the group's frames, and syncs them if asked to. Leaves in `frames` the bodies of what is journaled, in
    /// `locations` where they lie, and returns why some at the end were not written if the disk was full.
    pub(super) fn write(&mut self, sync: bool) -> Result<Option<Error>> {
        self.locations.clear();
        let Some((_, writer)) = &mut self.journal else { return Ok(None) };
        let mut last = self.last;
        for submission in &mut self.group {
            let (first, count) = (last.next(), submission.body.count());
            if submission.journaled {
                self.frames.push(GroupFrame { first, body: mem::take(&mut submission.body) });
            }
            last = last.plus(u64::from(count));
        }
        if self.frames.is_empty() {
            return Ok(None);
        }
        let error = writer.append(&self.frames, &mut self.locations).err();
        match &error {
            Some(error) if error.kind() != ErrorKind::DiskFull => return Err(error.clone()),
            None if self.locations.len() != self.frames.len() => {
                return Err(Error::new(ErrorKind::Poisoned, "the journal's writer lost count of its frames"));
            }
            _ => {}
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
