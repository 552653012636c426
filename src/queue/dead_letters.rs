//! The durable list of records that the store rejected, and of later records of the same keys.
//!
//! It lies beside the journal, in a queue of its own. A letter is written before the watermark passes the frame
//! that it holds, so a record is always in the journal, in this list or in the store. What has become of a
//! letter is written as "resolved at n" *before* the apply whose watermark is n, and counts only if the store's
//! watermark has reached n: a crash in between leaves the letter here and the order to replay it in the journal.
//!
//! Letters are whole frames, because a batch is atomic; a frame with one parked key is parked with all its keys.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::{Arc, PoisonError};

use bytes::Bytes;

use crate::disk::contract::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{Key, Seq};
use crate::journal::frame::Frame;
use crate::journal::options::{Durability, JournalOptions};
use crate::journal::queue::Journal;
use crate::queue::pending::{Pending, Place};
use crate::queue::queued::QueuedFrame;
use crate::queue::record::Record;
use crate::seam::sync::{Mutex, MutexGuard};

/// The folder beside the segments.
pub(crate) const FOLDER: &str = "dead-letters";
/// Small in a simulation, where writing zeros takes most of the time.
const SEGMENT_BYTES: u64 = if cfg!(forebay_simulation) { 64 << 10 } else { 1 << 20 };
const REASON_BYTES_MAX: usize = 512;
const LETTER: u8 = 1;
const RESOLVED: u8 = 2;
const CANCELLED: u8 = 3;

/// One record of the dead-letter list.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadLetter {
    /// The record's sequence number.
    pub seq: Seq,
    /// Its key.
    pub key: Key,
    /// Whether it removes the key instead of writing a value.
    pub removes: bool,
    /// Why it is here.
    pub reason: String,
}

/// A parked frame.
#[derive(Debug)]
struct Letter {
    /// Where the list's own queue holds it.
    place: Seq,
    records: Vec<(Seq, Key, bool)>,
    reason: String,
}

#[derive(Default)]
struct State {
    letters: BTreeMap<Seq, Letter>,
    /// How many letters each parked key has.
    parked: HashMap<Key, u32>,
    /// The last place in the list's own queue.
    last: Seq,
}

/// What the list's own queue says, a frame at a time.
#[derive(Default)]
pub(crate) struct History {
    state: State,
    /// Which letters are resolved once the store's watermark has reached a number.
    resolved: BTreeMap<Seq, Vec<Seq>>,
}

/// The list, open.
pub(crate) struct DeadLetters {
    queue: Journal,
    state: Mutex<State>,
    records_max: u64,
}

impl DeadLetters {
    /// Opens the list beside the journal in `journal_dir`, as of the store's watermark.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        journal_dir: &Path,
        watermark: Seq,
        records_max: u64,
    ) -> Result<DeadLetters> {
        let options =
            JournalOptions { segment_bytes: SEGMENT_BYTES, spares_max: 0, ..JournalOptions::default() };
        let queue = Journal::open_on(disk, journal_dir.join(FOLDER), options, Durability::Sync)?;
        let mut history = History::default();
        let mut reader = queue.read_after(Seq::ZERO);
        while let Some(frame) = reader.next_frame()? {
            history.take(&frame).map_err(|error| {
                let (file, offset) = (queue.file_of(frame.location), frame.location.offset);
                let context = format!(
                    "{}: damaged at byte {offset}: it is no dead letter; the list cannot be trusted",
                    file.display()
                );
                error.wrap(ErrorKind::Damaged, context)
            })?;
        }
        let state = history.into_state(watermark);
        Ok(DeadLetters { queue, state: Mutex::new(state), records_max })
    }

    /// Makes the parked values readable.
    pub(crate) fn bury_all(&self, pending: &mut Pending) {
        for (first, letter) in &self.lock().letters {
            for ((seq, key, removes), at) in letter.records.iter().zip(0_u32..) {
                pending.bury(key, *seq, !removes, Place::DeadLetter { letter: *first, record: at });
            }
        }
    }

    /// Whether the frame updates a parked key.
    pub(crate) fn concerns(&self, frame: &QueuedFrame) -> Result<bool> {
        let state = self.lock();
        if state.parked.is_empty() {
            return Ok(false);
        }
        for numbered in frame.records() {
            let (_, record) = numbered?;
            if record.is_update() && state.parked.contains_key(&record.key) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether the frame that starts at `first` is in the list.
    pub(crate) fn holds(&self, first: Seq) -> bool {
        self.lock().letters.contains_key(&first)
    }

    /// Puts a frame into the list, durably on return. A frame that is there already stays as it is.
    ///
    /// # Errors
    /// [`ErrorKind::QueueFull`] if the list has reached its bound; a failure of the disk.
    pub(crate) fn park(&self, frame: &QueuedFrame, reason: &str) -> Result<()> {
        let mut state = self.lock();
        if state.letters.contains_key(&frame.first) {
            return Ok(());
        }
        if state.record_count() >= self.records_max {
            let context = format!("the dead-letter list holds its {} records", self.records_max);
            return Err(Error::new(ErrorKind::QueueFull, context));
        }
        let reason = cut(reason);
        let mut head = vec![LETTER];
        head.extend_from_slice(&frame.first.0.to_le_bytes());
        put_bytes(&mut head, reason.as_bytes());
        let mut parts: Vec<Vec<u8>> = Vec::new();
        let records: Vec<Bytes> = frame.encoded().collect();
        put_length(&mut head, records.len());
        for record in &records {
            let mut length = Vec::new();
            put_length(&mut length, record.len());
            parts.push(length);
        }
        let mut slices: Vec<&[u8]> = vec![&head];
        for (length, record) in parts.iter().zip(&records) {
            slices.push(length);
            slices.push(record);
        }
        let place = self.queue.append(&slices)?;
        state.last = place;
        let letter = Letter { place, records: list_records(frame.first, &records)?, reason: reason.into() };
        state.insert((frame.first, letter));
        Ok(())
    }

    /// The letters of these keys and of every key that shares a frame with them, oldest first.
    pub(crate) fn closure(&self, keys: &[Key]) -> BTreeSet<Seq> {
        let state = self.lock();
        let mut wanted: BTreeSet<Key> = keys.iter().cloned().collect();
        let mut chosen = BTreeSet::new();
        loop {
            let before = chosen.len();
            for (first, letter) in &state.letters {
                if letter.records.iter().any(|(_, key, _)| wanted.contains(key)) && chosen.insert(*first) {
                    wanted.extend(letter.records.iter().map(|(_, key, _)| key.clone()));
                }
            }
            if chosen.len() == before {
                return chosen;
            }
        }
    }

    /// The records of a letter, read back from the disk; `None` if it has left the list meanwhile.
    pub(crate) fn read(&self, letter: Seq) -> Result<Option<Vec<Record>>> {
        let Some(place) = self.lock().letters.get(&letter).map(|letter| letter.place) else {
            return Ok(None);
        };
        let mut reader = self.queue.read_after(Seq(place.0.saturating_sub(1)));
        let Some(frame) = reader.next_frame()? else {
            return Ok(None);
        };
        let Some(bytes) = frame.records().next().filter(|_| frame.first == place) else {
            return Ok(None);
        };
        let mut fields = Fields(bytes);
        fields.u8()?;
        fields.seq()?;
        fields.bytes()?;
        let records = fields.list()?;
        records.iter().map(Record::parse).collect::<Result<Vec<_>>>().map(Some)
    }

    /// Writes that these letters are resolved once the store's watermark has reached `at`.
    pub(crate) fn resolve(&self, at: Seq, letters: &BTreeSet<Seq>) -> Result<()> {
        let mut record = vec![RESOLVED];
        record.extend_from_slice(&at.0.to_le_bytes());
        put_length(&mut record, letters.len());
        letters.iter().for_each(|letter| record.extend_from_slice(&letter.0.to_le_bytes()));
        self.append(&record)
    }

    /// Takes back what [`DeadLetters::resolve`] wrote for `at`.
    pub(crate) fn cancel(&self, at: Seq) -> Result<()> {
        let mut record = vec![CANCELLED];
        record.extend_from_slice(&at.0.to_le_bytes());
        self.append(&record)
    }

    fn append(&self, record: &[u8]) -> Result<()> {
        let mut state = self.lock();
        state.last = self.queue.append(&[record])?;
        Ok(())
    }

    /// Forgets resolved letters. Returns their keys, each with its newest sequence number.
    pub(crate) fn forget(&self, letters: &BTreeSet<Seq>) -> HashMap<Key, Seq> {
        let mut state = self.lock();
        let mut keys = HashMap::new();
        for letter in letters {
            if let Some(letter) = state.letters.get(letter) {
                keys.extend(letter.records.iter().map(|(seq, key, _)| (key.clone(), *seq)));
            }
            state.remove(*letter);
        }
        keys
    }

    /// Gives the list's files back if it is empty: then nothing in them is needed any more, the records of its
    /// resolutions included.
    pub(crate) fn trim(&self) -> Result<()> {
        let state = self.lock();
        if state.letters.is_empty() { self.queue.trim(state.last) } else { Ok(()) }
    }

    /// The list.
    pub(crate) fn list(&self) -> Vec<DeadLetter> {
        self.lock().letters.values().flat_map(Letter::list).collect()
    }

    /// How many records the list holds.
    pub(crate) fn record_count(&self) -> u64 {
        self.lock().record_count()
    }

    /// Ends its threads and lets its files go. Every letter is durable already.
    pub(crate) fn shutdown(&self) {
        drop(self.queue.close());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl History {
    pub(crate) fn take(&mut self, frame: &Frame) -> Result<()> {
        self.state.last = frame.last();
        for (bytes, at) in frame.records().zip(0_u64..) {
            let mut fields = Fields(bytes);
            match fields.u8()? {
                LETTER => self.state.insert(parse_letter(fields, frame.first.plus(at))?),
                RESOLVED => drop(self.resolved.insert(fields.seq()?, fields.seqs()?)),
                CANCELLED => drop(self.resolved.remove(&fields.seq()?)),
                _ => return Err(damaged("has an unknown kind")),
            }
        }
        Ok(())
    }

    /// The list when the store's watermark is this.
    fn into_state(self, watermark: Seq) -> State {
        let mut state = self.state;
        for (_, letters) in self.resolved.into_iter().filter(|(at, _)| *at <= watermark) {
            letters.iter().for_each(|letter| state.remove(*letter));
        }
        state
    }

    /// Every letter, each with the watermark at which it is resolved, if it is.
    pub(crate) fn letters(&self) -> Vec<(DeadLetter, Option<Seq>)> {
        let resolved_at = |first: &Seq| {
            let mut resolutions = self.resolved.iter();
            resolutions.find(|(_, letters)| letters.contains(first)).map(|(at, _)| *at)
        };
        let letters = self.state.letters.iter();
        letters.flat_map(|(first, letter)| letter.list().map(move |one| (one, resolved_at(first)))).collect()
    }
}

impl Letter {
    fn list(&self) -> impl Iterator<Item = DeadLetter> + '_ {
        self.records.iter().map(|(seq, key, removes)| DeadLetter {
            seq: *seq,
            key: key.clone(),
            removes: *removes,
            reason: self.reason.clone(),
        })
    }
}

/// The watermark at which something is resolved, if that is what a frame of the list's queue says.
pub(crate) fn resolution_at(frame: &Frame) -> Result<Option<Seq>> {
    let Some(bytes) = frame.records().next() else { return Ok(None) };
    let mut fields = Fields(bytes);
    Ok(if fields.u8()? == RESOLVED { Some(fields.seq()?) } else { None })
}

impl State {
    fn insert(&mut self, (first, letter): (Seq, Letter)) {
        if let Some(previous) = self.letters.get(&first) {
            debug_assert_eq!(previous.records.len(), letter.records.len());
            return;
        }
        for (_, key, _) in &letter.records {
            *self.parked.entry(key.clone()).or_insert(0) += 1;
        }
        self.letters.insert(first, letter);
    }

    fn remove(&mut self, first: Seq) {
        let Some(letter) = self.letters.remove(&first) else { return };
        for (_, key, _) in &letter.records {
            if let Some(count) = self.parked.get_mut(key) {
                *count -= 1;
                if *count == 0 {
                    self.parked.remove(key);
                }
            }
        }
    }

    fn record_count(&self) -> u64 {
        self.letters.values().map(|letter| letter.records.len() as u64).sum()
    }
}

fn parse_letter(mut fields: Fields, place: Seq) -> Result<(Seq, Letter)> {
    let first = fields.seq()?;
    let reason = String::from_utf8_lossy(&fields.bytes()?).into_owned();
    let records = list_records(first, &fields.list()?)?;
    Ok((first, Letter { place, records, reason }))
}

fn list_records(first: Seq, records: &[Bytes]) -> Result<Vec<(Seq, Key, bool)>> {
    let numbered = records.iter().zip(0_u64..);
    let parsed = numbered.map(|(bytes, at)| {
        let record = Record::parse(bytes)?;
        Ok((first.plus(at), record.key.detached(), record.stored().is_none()))
    });
    parsed.collect()
}

fn cut(reason: &str) -> &str {
    let mut end = reason.len().min(REASON_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    reason.get(..end).unwrap_or("")
}

fn put_length(out: &mut Vec<u8>, length: usize) {
    let length = u32::try_from(length).expect("a frame's body is far below 4 GiB");
    out.extend_from_slice(&length.to_le_bytes());
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_length(out, bytes.len());
    out.extend_from_slice(bytes);
}

fn damaged(what: &str) -> Error {
    Error::new(ErrorKind::Damaged, format!("a record of the dead-letter list {what}"))
}

/// Reads fixed-width fields off the front of a record.
struct Fields(Bytes);

impl Fields {
    fn take(&mut self, count: usize) -> Result<Bytes> {
        if count > self.0.len() {
            return Err(damaged("is too short"));
        }
        Ok(self.0.split_to(count))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let bytes = self.take(N)?;
        Ok(<[u8; N]>::try_from(bytes.as_ref()).expect("exactly N bytes were taken"))
    }

    fn u8(&mut self) -> Result<u8> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    fn length(&mut self) -> Result<usize> {
        Ok(u32::from_le_bytes(self.array()?) as usize)
    }

    fn seq(&mut self) -> Result<Seq> {
        Ok(Seq(u64::from_le_bytes(self.array()?)))
    }

    fn seqs(&mut self) -> Result<Vec<Seq>> {
        let count = self.length()?;
        (0..count).map(|_| self.seq()).collect()
    }

    fn bytes(&mut self) -> Result<Bytes> {
        let length = self.length()?;
        self.take(length)
    }

    fn list(&mut self) -> Result<Vec<Bytes>> {
        let count = self.length()?;
        (0..count).map(|_| self.bytes()).collect()
    }
}
