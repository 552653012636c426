//! One change and the tenure that goes with it, without a sled batch.
//!
//! A batch costs sled two writes, each waited for: the manifest that says where it ends goes out by itself. A lone
//! change needs none. Its meta record names the key and how far the store had come before, and is inserted first;
//! sled's log keeps that order, and of a log whose end was lost it keeps a prefix. So after a crash there is neither
//! of the two, or both, or the meta record alone. The last is told by the key, which has another version then, and the
//! store has come as far as before: nobody was told of the change, since both were not durable.
//!
//! | meta record of a lone change | bytes |
//! | --- | --- |
//! | version of the layout, 2 | 1 |
//! | the meta record (`layout`), as after the change | 46 |
//! | watermark before it | 8 |
//! | last journaled number before it | 8 |
//! | number of the change | 8 |
//! | 1 if it removes the key, else 0 | 1 |
//! | where the key lies in the tree | the rest but 4 |
//! | CRC-32C of the above | 4 |

use std::path::Path;

use ::sled::{Db, IVec};
use bytes::{Buf, BufMut};

use crate::error::{Error, ErrorKind, Result};
use crate::ids::Seq;
use crate::store::contract::{Progress, Tenure};
use crate::store::directory::damaged;
use crate::store::layout::{self, META_BYTES, VALUE_HEADER_BYTES};
use crate::store::sled_open::sled_error;

const SINGLE_FORMAT: u8 = 2;
/// All but the key.
const FRAME_BYTES: usize = 1 + META_BYTES + 25 + CHECKSUM_BYTES;
const CHECKSUM_BYTES: usize = 4;
/// The longest place of a key that a meta record names; a change of a longer one is a batch.
pub(crate) const SINGLE_KEY_BYTES_MAX: usize = 1024;

/// The meta record of a change `seq` of what lies at `tree_key`.
pub(crate) fn encode(tenure: &Tenure, before: Progress, seq: Seq, removes: bool, tree_key: &[u8]) -> Vec<u8> {
    let mut meta = Vec::with_capacity(FRAME_BYTES + tree_key.len());
    meta.put_u8(SINGLE_FORMAT);
    meta.put_slice(&layout::encode_meta(tenure));
    meta.put_u64_le(before.applied.0);
    meta.put_u64_le(before.journaled.0);
    meta.put_u64_le(seq.0);
    meta.put_u8(u8::from(removes));
    meta.put_slice(tree_key);
    let checksum = crc32c::crc32c(&meta);
    meta.put_u32_le(checksum);
    assert_eq!(meta.len(), FRAME_BYTES + tree_key.len(), "the layout is fixed");
    meta
}

/// What the meta record of the database in `path` says, and whether what it names is there.
///
/// # Errors
/// [`ErrorKind::UnknownFormat`] and [`ErrorKind::Damaged`], or what the file system says.
pub(crate) fn tenure(db: &Db, stored: Option<&IVec>, path: &Path) -> Result<Tenure> {
    match stored {
        Some(stored) if stored.first() == Some(&SINGLE_FORMAT) => decode(db, stored, path),
        _ => layout::decode_meta(stored.map(IVec::as_ref), db.is_empty(), path),
    }
}

fn decode(db: &Db, stored: &[u8], path: &Path) -> Result<Tenure> {
    let broken = || Error::new(ErrorKind::Damaged, damaged(path, "its watermark and epoch are unreadable"));
    let (fields, checksum) = stored.split_last_chunk::<CHECKSUM_BYTES>().ok_or_else(broken)?;
    if stored.len() < FRAME_BYTES || crc32c::crc32c(fields) != u32::from_le_bytes(*checksum) {
        return Err(broken());
    }
    let (meta, mut rest) = fields.split_at(1 + META_BYTES);
    let after = layout::decode_meta(meta.get(1..), false, path)?;
    let before = Progress { applied: Seq(rest.get_u64_le()), journaled: Seq(rest.get_u64_le()) };
    let (seq, removes) = (Seq(rest.get_u64_le()), rest.get_u8() == 1);
    let found = db.get(rest);
    let found =
        found.map_err(|error| sled_error(format!("opening the store in {}", path.display()), error))?;
    let is_there = match found {
        None => removes,
        Some(value) => !removes && version(&value) == Some(seq),
    };
    Ok(if is_there { after } else { Tenure { progress: before, ..after } })
}

/// Who wrote a stored value.
fn version(stored: &[u8]) -> Option<Seq> {
    let (_, mut version) = stored.get(..VALUE_HEADER_BYTES)?.split_at(1);
    version.try_get_u64_le().ok().map(Seq)
}
