//! The dead-letter list: durable records that the store rejected, and later records of the same keys.
//!
//! It lies beside the journal, in a queue of its own. A letter is written before the watermark passes its frame, so a
//! record is always in the journal, in this list or in the store. A letter's end is written as "resolved at n" *before*
//! the apply whose watermark is n, and counts only if the store's watermark has reached n: a crash in between leaves
//! the letter here, and the command to replay it in the journal.
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
use crate::queue::pending::{Pending, PendingValue};
use crate::queue::queued::QueuedFrame;
use crate::queue::record::Record;
use crate::seam::sync::{Mutex, MutexGuard};

/// The name of the list's folder, beside the segments.
pub(crate) const FOLDER: &str = "dead-letters";
/// The part of an error's text that a letter keeps.
const REASON_BYTES_MAX: usize = 512;
/// The kinds of records in the list's own queue.
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
    /// True if it removes the key instead of writing a value.
    pub removes: bool,
    /// The reason why it is here, cut to 512 bytes.
    pub reason: String,
}

/// A parked frame.
#[derive(Debug)]
struct Letter {
    /// Its number in the list's own queue.
    number: Seq,
    records: Vec<(Seq, Key, bool)>,
    reason: String,
}

/// The letters, by the first numbers of their frames.
#[derive(Default)]
struct LetterMap {
    letters: BTreeMap<Seq, Letter>,
    /// The number of letters of each parked key.
    parked: HashMap<Key, u32>,
    /// The last number in the list's own queue.
    last: Seq,
    /// The newest command that has resolved letters.
    last_command: Seq,
}

/// The contents of the list's own queue, read a frame at a time.
#[derive(Default)]
pub(crate) struct LetterLog {
    map: LetterMap,
    /// The letters that are resolved once the store's watermark has reached a number.
    resolved: BTreeMap<Seq, Vec<Seq>>,
}

/// The list of an open layer.
pub(crate) struct DeadLetters {
    queue: Journal,
    map: Mutex<LetterMap>,
    records_max: u64,
}

impl DeadLetters {
    /// Opens the list beside the journal in `journal_dir`, as of the store's watermark. Blocking.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] if a frame is no part of a list; else the journal's.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        journal_dir: &Path,
        segment_bytes: u64,
        watermark: Seq,
        records_max: u64,
    ) -> Result<DeadLetters> {
        let options = JournalOptions { segment_bytes, spares_max: 0, ..JournalOptions::default() };
        let queue = Journal::open_on(disk, journal_dir.join(FOLDER), options, Durability::Sync)?;
        let mut log = LetterLog::default();
        let mut reader = queue.read_after(Seq::ZERO);
        // All of it before any letter counts as resolved: a resolution may be revoked further on.
        while let Some(frame) = reader.next_frame()? {
            log.add_frame(&frame).map_err(|error| {
                let (file, offset) = (queue.file_of(frame.location), frame.location.offset);
                let context = format!(
                    "{}: damaged at byte {offset}: it is no dead letter; the list cannot be trusted",
                    file.display()
                );
                error.wrap(ErrorKind::Damaged, context)
            })?;
        }
        let map = log.into_map(watermark);
        Ok(DeadLetters { queue, map: Mutex::new(map), records_max })
    }

    /// Adds all letters to the pending view, so that reads find their values.
    pub(crate) fn add_to(&self, pending: &mut Pending) {
        for (first, letter) in &self.lock().letters {
            for ((seq, key, removes), at) in letter.records.iter().zip(0_u32..) {
                let value = match removes {
                    true => PendingValue::Removed,
                    false => PendingValue::InDeadLetter { letter: *first, record: at },
                };
                pending.add_dead_letter(key, *seq, value);
            }
        }
    }

    /// Returns true if the frame updates a parked key.
    pub(crate) fn has_key_of(&self, frame: &QueuedFrame) -> Result<bool> {
        let map = self.lock();
        // The rule: no letters, and then a batch costs no look at its records.
        if map.parked.is_empty() {
            return Ok(false);
        }
        for numbered in frame.records() {
            let (_, record) = numbered?;
            if record.is_update() && map.parked.contains_key(&record.key) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns true if the frame that starts at `first` is in the list.
    pub(crate) fn holds(&self, first: Seq) -> bool {
        self.lock().letters.contains_key(&first)
    }

    /// Adds a frame to the list, durably on return. A frame that is there already stays as it is: after a crash
    /// before the watermark passed it, it comes from the journal once more.
    ///
    /// # Errors
    /// [`ErrorKind::QueueFull`] if the list has reached its bound; a failure of the disk.
    pub(crate) fn park(&self, frame: &QueuedFrame, reason: &str) -> Result<()> {
        let mut map = self.lock();
        if map.letters.contains_key(&frame.first) {
            return Ok(());
        }
        // The flusher checks for room first; frames of parked keys come here without that, and must not be dropped.
        if map.record_count() >= self.records_max {
            let context = format!("the dead-letter list holds its {} records", self.records_max);
            return Err(Error::new(ErrorKind::QueueFull, context));
        }
        // A store's error may quote the value, of any size.
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
        // On the disk before it is in memory: a failure here leaves the frame to the journal.
        let number = self.queue.append(&slices)?;
        map.last = number;
        let letter = Letter { number, records: list_records(frame.first, &records)?, reason: reason.into() };
        map.insert(frame.first, letter);
        Ok(())
    }

    /// Returns the letters of these keys and of every key that shares a frame with them, directly or through others,
    /// oldest first.
    pub(crate) fn closure(&self, keys: &[Key]) -> BTreeSet<Seq> {
        let map = self.lock();
        let mut wanted: BTreeSet<Key> = keys.iter().cloned().collect();
        let mut chosen = BTreeSet::new();
        loop {
            let before = chosen.len();
            // A letter that joins brings keys, which may belong to letters that this pass has gone by.
            for (first, letter) in &map.letters {
                if letter.records.iter().any(|(_, key, _)| wanted.contains(key)) && chosen.insert(*first) {
                    wanted.extend(letter.records.iter().map(|(_, key, _)| key.clone()));
                }
            }
            if chosen.len() == before {
                return chosen;
            }
        }
    }

    /// Reads the records of a letter from the disk; `None` if it has left the list. Blocking.
    pub(crate) fn read(&self, letter: Seq) -> Result<Option<Vec<Record>>> {
        let Some(number) = self.lock().letters.get(&letter).map(|letter| letter.number) else {
            return Ok(None);
        };
        let mut reader = self.queue.read_after(Seq(number.0.saturating_sub(1)));
        let Some(frame) = reader.next_frame()? else {
            return Ok(None);
        };
        let Some(bytes) = frame.records().next().filter(|_| frame.first == number) else {
            return Ok(None);
        };
        let mut fields = Fields(bytes);
        fields.u8()?;
        fields.seq()?;
        fields.bytes()?;
        let records = fields.list()?;
        records.iter().map(Record::parse).collect::<Result<Vec<_>>>().map(Some)
    }

    /// Writes durably that these letters are resolved once the store's watermark has reached `at`.
    pub(crate) fn resolve(&self, at: Seq, letters: &BTreeSet<Seq>) -> Result<()> {
        let mut record = vec![RESOLVED];
        record.extend_from_slice(&at.0.to_le_bytes());
        put_length(&mut record, letters.len());
        letters.iter().for_each(|letter| record.extend_from_slice(&letter.0.to_le_bytes()));
        self.append(&record)?;
        let mut map = self.lock();
        map.last_command = map.last_command.max(at);
        Ok(())
    }

    /// Revokes [`DeadLetters::resolve`] for `at`, durably.
    pub(crate) fn cancel(&self, at: Seq) -> Result<()> {
        let mut record = vec![CANCELLED];
        record.extend_from_slice(&at.0.to_le_bytes());
        self.append(&record)
    }

    fn append(&self, record: &[u8]) -> Result<()> {
        let mut map = self.lock();
        map.last = self.queue.append(&[record])?;
        Ok(())
    }

    /// Removes resolved letters. Returns their keys, each with its newest sequence number.
    pub(crate) fn remove(&self, letters: &BTreeSet<Seq>) -> HashMap<Key, Seq> {
        let mut map = self.lock();
        let mut keys = HashMap::new();
        for letter in letters {
            if let Some(letter) = map.letters.get(letter) {
                keys.extend(letter.records.iter().map(|(seq, key, _)| (key.clone(), *seq)));
            }
            map.remove(*letter);
        }
        keys
    }

    /// Removes the list's files if it is empty, and the journal keeps nothing up to `up_to`.
    ///
    /// As long as the journal keeps a command that resolved letters, a store that goes back to before it needs them
    /// again: without them their records would be sent to it once more.
    pub(crate) fn trim(&self, up_to: Seq) -> Result<()> {
        let map = self.lock();
        // Only as a whole: the records of resolutions lie among the letters, and older letters may outlive newer ones.
        if map.letters.is_empty() && map.last_command <= up_to { self.queue.trim(map.last) } else { Ok(()) }
    }

    /// Returns all records of the list, oldest letter first.
    pub(crate) fn list(&self) -> Vec<DeadLetter> {
        self.lock().letters.values().flat_map(Letter::list).collect()
    }

    /// Returns the number of records in the list.
    pub(crate) fn record_count(&self) -> u64 {
        self.lock().record_count()
    }

    /// Ends the list's threads and closes its files. Every letter is durable already.
    pub(crate) fn shutdown(&self) {
        drop(self.queue.close());
    }

    fn lock(&self) -> MutexGuard<'_, LetterMap> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LetterLog {
    /// Adds the next frame of the list's own queue.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] if a record is no part of a list.
    pub(crate) fn add_frame(&mut self, frame: &Frame) -> Result<()> {
        self.map.last = frame.last();
        for (bytes, at) in frame.records().zip(0_u64..) {
            let mut fields = Fields(bytes);
            match fields.u8()? {
                LETTER => {
                    let (first, letter) = parse_letter(fields, frame.first.plus(at))?;
                    self.map.insert(first, letter);
                }
                RESOLVED => drop(self.resolved.insert(fields.seq()?, fields.seqs()?)),
                CANCELLED => drop(self.resolved.remove(&fields.seq()?)),
                // Of a later version, or no list: a letter that was skipped would be a lost record.
                _ => return Err(damaged("has an unknown kind")),
            }
        }
        Ok(())
    }

    /// Returns the letters that are left when the store's watermark is this.
    fn into_map(self, watermark: Seq) -> LetterMap {
        let mut map = self.map;
        map.last_command = self.resolved.keys().next_back().copied().unwrap_or_default();
        // Beyond the watermark the store has not applied the replay, and the journal still has the command.
        for (_, letters) in self.resolved.into_iter().filter(|(at, _)| *at <= watermark) {
            letters.iter().for_each(|letter| map.remove(*letter));
        }
        map
    }

    /// Returns the records of every letter, each with the watermark at which it is resolved, if there is one.
    pub(crate) fn letters(&self) -> Vec<(DeadLetter, Option<Seq>)> {
        let resolved_at = |first: &Seq| {
            let mut resolutions = self.resolved.iter();
            resolutions.find(|(_, letters)| letters.contains(first)).map(|(at, _)| *at)
        };
        let letters = self.map.letters.iter();
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

/// Returns the watermark of the resolution that a frame of the list's queue holds, if it holds one.
pub(crate) fn resolution_at(frame: &Frame) -> Result<Option<Seq>> {
    let Some(bytes) = frame.records().next() else { return Ok(None) };
    let mut fields = Fields(bytes);
    Ok(if fields.u8()? == RESOLVED { Some(fields.seq()?) } else { None })
}

impl LetterMap {
    fn insert(&mut self, first: Seq, letter: Letter) {
        // A crash after the letter was written and before the watermark passed it: the frame was parked again.
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

fn parse_letter(mut fields: Fields, number: Seq) -> Result<(Seq, Letter)> {
    let first = fields.seq()?;
    let reason = String::from_utf8_lossy(&fields.bytes()?).into_owned();
    let records = list_records(first, &fields.list()?)?;
    Ok((first, Letter { number, records, reason }))
}

fn list_records(first: Seq, records: &[Bytes]) -> Result<Vec<(Seq, Key, bool)>> {
    let numbered = records.iter().zip(0_u64..);
    let parsed = numbered.map(|(bytes, at)| {
        let record = Record::parse(bytes)?;
        // Detached: a slice of the frame would keep the frame's values in memory.
        Ok((first.plus(at), record.key.detached(), record.stored().is_none()))
    });
    parsed.collect()
}

/// Cuts a text to [`REASON_BYTES_MAX`] bytes, at the boundary of a character.
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

/// Reads little-endian fields off the front of a record.
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
