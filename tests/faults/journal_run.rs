//! A journal that is worked with and what is known of it: what was issued, what was acknowledged, what must be found.
//!
//! The work follows from a seed and covers what a journal does: groups, batches, frames of every size, syncs, rotation,
//! trimming and recycling, clean and unclean ends, reopening.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use forebay::disk::{Disk, SimDisk};
use forebay::journal::frame::FrameBuilder;
use forebay::journal::recovery::{self, Opened};
use forebay::journal::writer::GroupFrame;
use forebay::store::TenureId;
use forebay::{Error, JournalOptions, Seq};

use crate::support::order::Promised;

pub const DIR: &str = "/journal";

/// A small generator: the same seed, the same work.
pub struct Draw(pub u64);

impl Draw {
    /// SplitMix64 (Steele, Lea, Flood 2014).
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// The layout of a journal's files in these runs; the segments are as small as they may be.
pub fn layout(recycle: bool, zero_fill: bool, spares_max: usize) -> JournalOptions {
    let mut options = JournalOptions::default();
    options.segment_bytes = 64 << 10;
    (options.recycle, options.zero_fill, options.spares_max) = (recycle, zero_fill, spares_max);
    options
}

pub fn open(disk: &SimDisk, options: &JournalOptions) -> Result<Opened, Error> {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    recovery::open(disk, Path::new(DIR), options, TenureId::default())
}

/// Everything known of a journal at one moment.
#[derive(Clone, Default)]
pub struct History {
    /// Record `n` is at `n - 1`. No two are alike, whatever was cut off and written anew.
    pub issued: Vec<Arc<[u8]>>,
    /// The last records of frames: between them a crash must not cut.
    pub frames: BTreeSet<u64>,
    pub promised: Promised,
    /// The last record that may have been trimmed.
    pub trimmed: u64,
    serial: u64,
}

impl History {
    /// Makes and notes the records of a frame.
    fn issue(&mut self, sizes: &[usize]) -> GroupFrame {
        let first = self.issued.len() as u64 + 1;
        let mut builder = FrameBuilder::new();
        for &size in sizes {
            self.serial += 1;
            let mut bytes = self.serial.to_le_bytes().to_vec();
            // A pattern in which a sector in the wrong place shows.
            let mut at = self.serial << 32;
            while bytes.len() < size.max(8) {
                at += 1;
                bytes.extend_from_slice(&at.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
            }
            bytes.truncate(size.max(8));
            builder.push(&[&bytes]).unwrap();
            self.issued.push(bytes.into());
        }
        self.frames.insert(self.issued.len() as u64);
        GroupFrame { first: Seq::new(first), body: builder.finish() }
    }

    /// Takes what was recovered for all there is, from now on and for good.
    fn cut_after(&mut self, last: u64) {
        self.issued.truncate(last as usize);
        self.frames.retain(|end| *end <= last);
        self.promised.cut_after(last);
    }

    /// The same records, none of which has to be there.
    pub fn unpromised(&self) -> History {
        History { promised: Promised::default(), ..self.clone() }
    }

    /// Checks that a journal holds what it must hold, and nothing else. Says what is wrong.
    pub fn verify(&self, opened: &Opened, power_cut: bool) -> Result<(), String> {
        let least = self.promised.least(power_cut);
        let (first_prev, last) = (opened.first_prev.get(), opened.last.get());
        if last < least {
            return Err(format!("ends at record {last}, and {least} were to survive"));
        }
        if last > self.issued.len() as u64 {
            return Err(format!("ends at record {last}, and only {} were issued", self.issued.len()));
        }
        if last > 0 && !self.frames.contains(&last) {
            return Err(format!("ends at record {last}, within a batch"));
        }
        if first_prev > self.trimmed {
            return Err(format!("begins after record {first_prev}, trimmed were {}", self.trimmed));
        }
        let mut reader = opened.log.read_after(Seq::ZERO);
        let mut expected = first_prev;
        while let Some(frame) = reader.next_frame().map_err(|error| format!("reading: {error:?}"))? {
            for (record, seq) in frame.records().zip(frame.first.get()..) {
                expected += 1;
                let issued = self.issued.get(seq as usize - 1);
                if seq != expected || issued.is_none_or(|issued| **issued != *record) {
                    return Err(format!("record {seq} comes where {expected} belongs, or is not as issued"));
                }
            }
        }
        if expected != last {
            return Err(format!("reads up to record {expected} and says it ends at {last}"));
        }
        Ok(())
    }
}

/// A history that an observer of the disk reads while it grows.
#[derive(Clone, Default)]
pub struct Shared<H = History>(Arc<Mutex<H>>);

impl<H: Clone> Shared<H> {
    pub fn new(history: H) -> Shared<H> {
        Shared(Arc::new(Mutex::new(history)))
    }

    pub fn lock(&self) -> MutexGuard<'_, H> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn now(&self) -> H {
        self.lock().clone()
    }
}

/// The moment of an acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acknowledge {
    /// After the sync.
    Synced,
    /// After the write.
    Written,
}

/// A journal at work.
pub struct Run {
    pub acknowledge: Acknowledge,
    pub history: Shared,
    pub opened: Opened,
}

impl Run {
    /// Opens the journal; see [`Run::start`].
    ///
    /// # Errors
    /// The journal's, or what is wrong with what it holds.
    pub fn open(
        disk: &SimDisk,
        options: &JournalOptions,
        acknowledge: Acknowledge,
        history: &Shared,
        power_cut: bool,
    ) -> Result<Run, String> {
        let opened = open(disk, options).map_err(|error| format!("opening: {error:?}"))?;
        Run::start(opened, acknowledge, history, power_cut)
    }

    /// Starts with a journal that was just opened. What it serves from now on must stay.
    ///
    /// # Errors
    /// Says what is wrong with the journal's content.
    pub fn start(
        opened: Opened,
        acknowledge: Acknowledge,
        history: &Shared,
        power_cut: bool,
    ) -> Result<Run, String> {
        // Not under the lock, which an observer of the disk needs.
        history.now().verify(&opened, power_cut)?;
        history.lock().cut_after(opened.last.get());
        Ok(Run { acknowledge, history: history.clone(), opened })
    }

    /// Appends frames, given by the sizes of their records, as one group.
    pub fn append(&mut self, frames: &[Vec<usize>]) -> Result<(), Error> {
        let group: Vec<GroupFrame> = {
            let mut history = self.history.lock();
            frames.iter().map(|sizes| history.issue(sizes)).collect()
        };
        let writer = &mut self.opened.writer;
        let mut written = Vec::new();
        if let Err(error) = writer.append(&group, &mut written) {
            let last = writer.last().get();
            let mut history = self.history.lock();
            if error.kind() == forebay::ErrorKind::DiskFull {
                // What has no location was refused, and must not come back.
                assert_eq!(
                    history.frames.range(..=last).filter(|end| **end >= group[0].first.get()).count(),
                    written.len()
                );
                history.issued.truncate(last as usize);
                history.frames.retain(|end| *end <= last);
            }
            return Err(error);
        }
        match self.acknowledge {
            Acknowledge::Synced => self.sync()?,
            Acknowledge::Written => self.history.lock().promised.written(self.opened.writer.last().get()),
        }
        self.opened.writer.publish(self.opened.writer.last());
        Ok(())
    }

    pub fn sync(&mut self) -> Result<(), Error> {
        self.opened.writer.sync()?;
        self.synced(self.opened.writer.last().get());
        Ok(())
    }

    fn synced(&self, last: u64) {
        self.history.lock().promised.durable(last);
    }

    /// Lets go of what a consumer that has come `behind` records short of the end no longer needs.
    pub fn trim(&mut self, behind: u64) -> Result<(), Error> {
        let up_to = {
            let mut history = self.history.lock();
            let up_to = history.promised.durable.saturating_sub(behind);
            history.trimmed = history.trimmed.max(up_to);
            history.trimmed
        };
        self.opened.log.trim(Seq::new(up_to))
    }

    /// One step, as the seed has it.
    ///
    /// # Errors
    /// The journal's.
    pub fn step(&mut self, draw: &mut Draw) -> Result<(), Error> {
        match draw.below(16) {
            0 | 1 => self.trim(draw.below(12)),
            2 => self.sync(),
            3 => {
                // A sync beside the writer, which goes on meanwhile.
                let point = self.opened.writer.sync_point();
                let covered = self.opened.writer.last().get();
                self.append(&[vec![200]])?;
                point.sync()?;
                self.opened.writer.synced(point);
                self.synced(covered);
                Ok(())
            }
            _ => {
                let group: Vec<Vec<usize>> = (0..=draw.below(3)).map(|_| sizes(draw)).collect();
                self.append(&group)
            }
        }
    }

    /// Ends the journal cleanly.
    pub fn close(mut self) -> Result<(), Error> {
        self.opened.writer.close()?;
        self.synced(self.opened.writer.last().get());
        Ok(())
    }
}

/// The sizes of a frame's records: mostly small, some of several sectors, some that fill a segment, rarely one that
/// needs a segment of its own and is not copied.
fn sizes(draw: &mut Draw) -> Vec<usize> {
    let size = |draw: &mut Draw| match draw.below(40) {
        0 => 300_000,
        1..8 => 8_000 + draw.below(22_000) as usize,
        8..20 => 300 + draw.below(2_500) as usize,
        _ => draw.below(120) as usize,
    };
    match draw.below(4) {
        0 => (0..3).map(|_| draw.below(700) as usize).collect(),
        _ => vec![size(draw)],
    }
}

/// The whole work of a seed: opens the journal again and again, at the end by a clean close or without one.
///
/// # Errors
/// Says what is wrong, or what failed.
pub fn work(
    disk: &SimDisk,
    options: &JournalOptions,
    acknowledge: Acknowledge,
    history: &Shared,
    draw: &mut Draw,
    (tenures, steps): (u64, u64),
) -> Result<(), String> {
    for _ in 0..tenures {
        let mut run = Run::open(disk, options, acknowledge, history, false)?;
        for _ in 0..steps {
            run.step(draw).map_err(|error| format!("working: {error:?}"))?;
        }
        if draw.below(3) > 0 {
            run.close().map_err(|error| format!("closing: {error:?}"))?;
        }
    }
    Ok(())
}
