//! The layout of keys and values that all embedded stores use in their databases.
//!
//! The first byte of a key in the database is its type: `m` alone is the meta record, `k` is followed by a key of the
//! user's. A value starts with a byte for its form and the sequence number that wrote it. All integers are
//! little-endian. The first byte of the meta record is the version of the layout; other versions are refused.
//!
//! | meta record | bytes |
//! | --- | --- |
//! | version of the layout, 3 | 1 |
//! | 1 if there is a journal, else 0 | 1 |
//! | epoch | 8 |
//! | identity of the tenure | 16 |
//! | number of its last batch | 8 |
//! | watermark | 8 |
//! | last journaled number at or below it | 8 |
//! | identity of the journal | 16 |
//! | CRC-32C of the above | 4 |
//!
//! | value | bytes |
//! | --- | --- |
//! | form: 0 for a value as it is | 1 |
//! | sequence number | 8 |
//! | the value | the rest |

use std::path::Path;

use bytes::{Buf, BufMut};

use crate::error::{Error, ErrorKind, Result};
use crate::ids::{Epoch, JournalId, Key, Seq, Tenure, TenureId};
use crate::store::contract::{Progress, Standing, StoreError};
use crate::store::embedded::directory::damaged;

pub(crate) const META_KEY: &[u8] = b"m";
/// The form of a value that is stored unchanged, directly behind its header.
pub(crate) const INLINE: u8 = 0;
pub(crate) const VALUE_HEADER_BYTES: usize = 9;

const TAG_VALUE: u8 = b'k';
const META_FORMAT: u8 = 3;
pub(crate) const META_BYTES: usize = 70;

/// Returns the key in the database under which the value of `key` is stored.
pub(crate) fn value_key(key: &Key) -> Vec<u8> {
    let mut stored = Vec::with_capacity(1 + key.as_bytes().len());
    write_value_key(key, &mut stored);
    stored
}

/// Writes the same as [`value_key`] into `buffer`, replacing its contents.
pub(crate) fn write_value_key(key: &Key, buffer: &mut Vec<u8>) {
    buffer.clear();
    // A tag before the key keeps users' keys apart from the meta record and from chunks.
    buffer.push(TAG_VALUE);
    buffer.extend_from_slice(key.as_bytes());
}

/// Returns the header of a stored value.
pub(crate) fn value_header(form: u8, version: Seq) -> [u8; VALUE_HEADER_BYTES] {
    let mut header = [0; VALUE_HEADER_BYTES];
    let mut rest = header.as_mut_slice();
    rest.put_u8(form);
    rest.put_u64_le(version.0);
    header
}

/// Splits a stored value into its form, version and content.
///
/// # Errors
/// [`StoreError::Fatal`] if it is too short.
pub(crate) fn split_value<'a>(mut stored: &'a [u8], key: &Key) -> Result<(u8, Seq, &'a [u8]), StoreError> {
    let form = stored.try_get_u8().map_err(|_| unknown_value(key))?;
    let version = Seq(stored.try_get_u64_le().map_err(|_| unknown_value(key))?);
    Ok((form, version, stored))
}

/// Makes the error for a stored value that this version of the crate cannot have written.
pub(crate) fn unknown_value(key: &Key) -> StoreError {
    let context = format!("the stored value of {key} has a form that this version does not know");
    StoreError::Fatal(Error::new(ErrorKind::Damaged, context))
}

/// Encodes the meta record.
pub(crate) fn encode_meta(standing: &Standing) -> Vec<u8> {
    let mut meta = Vec::with_capacity(META_BYTES);
    meta.put_u8(META_FORMAT);
    meta.put_u8(u8::from(standing.journal.is_some()));
    meta.put_u64_le(standing.tenure.epoch.0);
    meta.put_slice(&standing.tenure.id.0);
    meta.put_u64_le(standing.batch);
    meta.put_u64_le(standing.progress.applied.0);
    meta.put_u64_le(standing.progress.journaled.0);
    meta.put_slice(&standing.journal.map_or([0; 16], |journal| journal.0));
    // The watermark decides what is applied again, so a flipped bit in it would lose or repeat writes.
    let checksum = crc32c::crc32c(&meta);
    meta.put_u32_le(checksum);
    assert_eq!(meta.len(), META_BYTES, "the layout is fixed");
    meta
}

/// Decodes the meta record of the store in `path`. Without one the database has to be empty.
///
/// # Errors
/// [`ErrorKind::UnknownFormat`] if the record has another version, or is missing in front of data;
/// [`ErrorKind::Damaged`].
pub(crate) fn decode_meta(stored: Option<&[u8]>, is_empty: bool, path: &Path) -> Result<Standing> {
    let Some(stored) = stored else {
        // A new database, or one whose creation a crash interrupted.
        if is_empty {
            return Ok(Standing::default());
        }
        let context = format!("the database in {} is not one of this crate", path.display());
        return Err(Error::new(ErrorKind::UnknownFormat, context));
    };
    let broken = || Error::new(ErrorKind::Damaged, damaged(path, "its watermark and epoch are unreadable"));
    // The version comes before length and checksum, which another version may change.
    if let Some(format) = stored.first().filter(|format| **format != META_FORMAT) {
        let context = format!(
            "the store in {} has format {format}, and this version of the crate knows {META_FORMAT}; nothing was \
             changed. Open it with the version that wrote it",
            path.display()
        );
        return Err(Error::new(ErrorKind::UnknownFormat, context));
    }
    // An exact length, because the fields below are read without further checks.
    if stored.len() != META_BYTES {
        return Err(broken());
    }
    let (mut fields, mut checksum) = stored.split_at(META_BYTES - 4);
    if crc32c::crc32c(fields) != checksum.get_u32_le() {
        return Err(broken());
    }
    fields.advance(1);
    let has_journal = fields.get_u8() == 1;
    let epoch = Epoch(fields.get_u64_le());
    let mut tenure = [0; 16];
    fields.copy_to_slice(&mut tenure);
    let (tenure, batch) = (Tenure { epoch, id: TenureId(tenure) }, fields.get_u64_le());
    let progress = Progress { applied: Seq(fields.get_u64_le()), journaled: Seq(fields.get_u64_le()) };
    let mut journal = [0; 16];
    fields.copy_to_slice(&mut journal);
    Ok(Standing { tenure, progress, journal: has_journal.then_some(JournalId(journal)), batch })
}
