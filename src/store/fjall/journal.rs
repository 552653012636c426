//! The repair of fjall's journals after a power cut, before fjall reads them.
//!
//! A journal is a sequence of batches: `1`, count of items (4 bytes), number (8); per item `2`, kind, compression (0:
//! none), keyspace (8), length of the key (2), of the value (4), of the stored value (4), key, value; then `3`, XXH3
//! over the items (8), `FJL\x03`. Integers are little-endian. Zeros may follow, from the
//! creation of the file.
//!
//! fjall 3 silently cuts off a batch that it cannot parse, and all that follows. And it refuses to open if a batch can
//! be parsed but has a wrong checksum, as after a power cut that took the middle of it. Both would be wrong here. A
//! batch is acknowledged after a sync, and the next one begins after that; and a journal is synced before the next one
//! is created. So a broken batch at the end of the newest journal was never acknowledged and is cut off. A broken batch
//! that is followed by another one is damage and is reported.

use std::fs::{self, File, OpenOptions};
use std::hash::Hasher;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

use crate::error::{Error, ErrorKind, Result};
use crate::store::embedded::directory::failed;

const EXTENSION: &str = "jnl";
const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const TRAILER: &[u8; 4] = b"FJL\x03";
/// The end of a batch and the start of the next one.
const SEAM: &[u8; 5] = b"FJL\x03\x01";
const NO_COMPRESSION: u8 = 0;
const BUFFER_BYTES: usize = 64 * 1024;

/// Checks the journals of the database in `path`, and durably cuts a torn batch off the newest one.
///
/// # Errors
/// [`ErrorKind::Damaged`] with file and offset, and nothing was changed; those of the file system.
pub(crate) fn repair(path: &Path) -> Result<()> {
    let mut journals = journals(path)?;
    // By number, because only the newest journal may end in a torn batch.
    journals.sort();
    let newest = journals.pop();
    // fjall syncs a journal before it creates the next one, so older journals cannot be torn.
    for (_, journal) in &journals {
        if let Some(broken) = first_broken(journal)? {
            return Err(damaged(journal, broken.at));
        }
    }
    let Some((_, newest)) = newest else { return Ok(()) };
    match first_broken(&newest)? {
        None => Ok(()),
        // A batch behind it was written after it, so this one had been whole.
        Some(BrokenBatch { at, is_followed: true }) => Err(damaged(&newest, at)),
        Some(BrokenBatch { at, is_followed: false }) => {
            let cutting = |error| failed("cutting a torn batch off", &newest, error);
            let file = OpenOptions::new().write(true).open(&newest).map_err(cutting)?;
            // The cut is synced, or a power cut would bring the torn bytes back behind a batch that is written
            // next.
            file.set_len(at).and_then(|()| file.sync_all()).map_err(cutting)
        }
    }
}

fn damaged(journal: &Path, at: u64) -> Error {
    let context = format!(
        "{}: damaged at byte {at}; what the store was given from there on is at stake",
        journal.display()
    );
    Error::new(ErrorKind::Damaged, context)
}

/// Lists the journals and their numbers.
fn journals(path: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let listing = |error| failed("listing", path, error);
    let mut found = Vec::new();
    for entry in fs::read_dir(path).map_err(listing)? {
        let path = entry.map_err(listing)?.path();
        if path.extension().is_some_and(|extension| extension == EXTENSION)
            && let Some(number) = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok())
        {
            found.push((number, path));
        }
    }
    Ok(found)
}

/// A batch that cannot be parsed or fails its checksum.
struct BrokenBatch {
    at: u64,
    /// True if another batch starts behind it.
    is_followed: bool,
}

/// Finds the first broken batch of a journal.
fn first_broken(journal: &Path) -> Result<Option<BrokenBatch>> {
    let reading = |error| failed("reading", journal, error);
    let mut reader = BufReader::with_capacity(BUFFER_BYTES, File::open(journal).map_err(reading)?);
    let mut at = 0;
    loop {
        match batch(&mut reader) {
            Ok(Some(bytes)) => at += bytes,
            Ok(None) => break,
            // The file ends within a batch, as a crash leaves it.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(reading(error)),
        }
    }
    let (has_more, is_followed) = scan_rest(&mut reader, at).map_err(reading)?;
    Ok(has_more.then_some(BrokenBatch { at, is_followed }))
}

/// Reads one batch and returns its length; `None` if it is broken.
fn batch(reader: &mut impl BufRead) -> io::Result<Option<u64>> {
    let [tag, count @ .., _, _, _, _, _, _, _, _] = array::<13>(reader)?;
    // Zeros of a preallocated file, or the remains of a torn batch; `scan_rest` tells them apart.
    if tag != START {
        return Ok(None);
    }
    let mut bytes = 13;
    let mut checksum = Xxh3::new();
    for _ in 0..u32::from_le_bytes(count) {
        let head = array::<21>(reader)?;
        let [tag, _, compression, _, _, _, _, _, _, _, _, key @ .., v0, v1, v2, v3, s0, s1, s2, s3] = head;
        let stored = u32::from_le_bytes([s0, s1, s2, s3]);
        // A torn item may have any length in it, so nothing of it is trusted before its tag is right.
        if tag != ITEM || compression != NO_COMPRESSION || stored != u32::from_le_bytes([v0, v1, v2, v3]) {
            return Ok(None);
        }
        checksum.update(&head);
        let content = u64::from(u16::from_le_bytes(key)) + u64::from(stored);
        read_through(reader, content, |part| checksum.update(part))?;
        bytes += 21 + content;
    }
    let [tag, sum @ .., t0, t1, t2, t3] = array::<13>(reader)?;
    // The checksum alone does not cover the end mark, which is written last.
    let is_whole = tag == END && [t0, t1, t2, t3] == *TRAILER && u64::from_le_bytes(sum) == checksum.finish();
    Ok(is_whole.then_some(bytes + 13))
}

fn array<const BYTES: usize>(reader: &mut impl Read) -> io::Result<[u8; BYTES]> {
    let mut array = [0; BYTES];
    reader.read_exact(&mut array)?;
    Ok(array)
}

fn read_through(reader: &mut impl BufRead, mut bytes: u64, mut see: impl FnMut(&[u8])) -> io::Result<()> {
    while bytes > 0 {
        let buffer = reader.fill_buf()?;
        let taken = buffer.len().min(usize::try_from(bytes).unwrap_or(usize::MAX));
        // Without this, a length that is too large would make the loop spin at the end of the file.
        if taken == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        see(buffer.get(..taken).unwrap_or_default());
        reader.consume(taken);
        bytes -= taken as u64;
    }
    Ok(())
}

/// Reads the rest of the journal from `at` on. Returns whether it has anything but zeros, and whether a batch ends
/// there and another one starts.
fn scan_rest(reader: &mut BufReader<File>, at: u64) -> io::Result<(bool, bool)> {
    reader.seek(SeekFrom::Start(at))?;
    let (mut has_more, mut is_followed) = (false, false);
    let mut last = Vec::new();
    loop {
        let buffer = reader.fill_buf()?;
        if buffer.is_empty() {
            return Ok((has_more, is_followed));
        }
        if buffer.iter().any(|byte| *byte != 0) {
            has_more = true;
            last.extend_from_slice(buffer);
            is_followed |= last.windows(SEAM.len()).any(|window| window == SEAM);
            // The seam may lie across two buffers, so the last bytes are kept.
            last.drain(..last.len().saturating_sub(SEAM.len() - 1));
        } else {
            // Zeros cannot be a part of a seam, and keeping them would only cost time.
            last.clear();
        }
        let taken = buffer.len();
        reader.consume(taken);
    }
}
