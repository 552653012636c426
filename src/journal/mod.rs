//! The journal: the persisted ordered queue between an acknowledgement and the system of record.
//!
//! It keeps opaque records in one order, survives power cuts, and is read by any number of cursors while it is
//! written. It knows nothing of caches, keys or stores, and this file holds no logic.
//!
//! # Files
//! | name | what it is |
//! | --- | --- |
//! | `lock` | held exclusively by the one process that has the journal open |
//! | `{number:020}.seg` | a segment; numbers are consecutive, the highest is the last |
//! | `spare-{n}.seg` | a file to become a segment; its content means nothing |
//! | `spare-{n}.tmp` | a spare in the making; removed when the journal is opened |
//!
//! Other names are left alone.
//!
//! # A segment's header: one block of 4096 bytes
//! All integers are unsigned, fixed-width, little-endian. What is not named is zero.
//!
//! | at | bytes | field |
//! | --- | --- | --- |
//! | 0 | 8 | magic, `forebayJ` |
//! | 8 | 4 | format version, 1; magic and version keep their place in every version |
//! | 12 | 4 | CRC-32C of the whole block, with zero here |
//! | 16 | 16 | the journal's identity |
//! | 32 | 8 | the segment's number |
//! | 40 | 8 | nonce, drawn anew for each use of a file |
//! | 48 | 8 | capacity: how far frames may reach |
//! | 56 | 8 | prepared length: the file was durably that long when it became a segment |
//! | 64 | 8 | the predecessor's number, 0 if there never was one |
//! | 72 | 8 | the last sequence number in the predecessor or before it |
//! | 80 | 8 | the predecessor's end: the byte behind its last frame |
//! | 88 | 4 | the predecessor's chain: CRC-32C over its frames' header checksums, in order |
//!
//! # A frame
//! Frames follow each other from byte 4096, each padded with zeros to a multiple of 8 bytes.
//!
//! | at | bytes | field |
//! | --- | --- | --- |
//! | 0 | 4 | CRC-32C of bytes 4 to 56 |
//! | 4 | 4 | the body's length |
//! | 8 | 4 | CRC-32C of the body |
//! | 12 | 4 | count of records |
//! | 16 | 8 | sequence number of the first record |
//! | 24 | 8 | the last journaled sequence number before it |
//! | 32 | 8 | the segment's nonce |
//! | 40 | 8 | synced offset: what lies before this byte was synced when the frame was made |
//! | 48 | 8 | reserved, zero |
//! | 56 | | the body: for each record its length (4 bytes) and its bytes |
//!
//! Writes that bypass the journal take sequence numbers too, so there are holes; each is explained, because a
//! frame names the number before it. A frame that does not continue the one before it is damage. A frame with
//! no records is a promise: it is written by a clean close, so that the last synced offset is on record.
//!
//! # Torn tail or damage
//! In the last segment the first frame that is not sound ends the journal, as the write that a crash
//! interrupted, unless a header behind it says that a sync had covered that place: then it is damage. In a
//! segment that has a successor, all frames up to the end that the successor records must be sound and must add
//! up to the recorded chain. Damage stops the open, and nothing is changed.
//!
//! # Recovery
//! Opening syncs the directory before it lists it, and serves nothing that a power cut could still take back: frames
//! behind the last promise are written once more, as they are, and synced, because after a sync that failed in an
//! earlier process they may be readable and yet not on the disk. A recovered segment is never appended to: the next
//! frame goes to a new segment, whose header seals the recovered one at its sound end. Until then no content has
//! changed on the disk, so recovering again, after a crash at any point, comes to the same end; and a full disk does
//! not keep a backlog from being opened and drained. A last segment without frames is replaced by its successor, which
//! takes its number and its predecessor, in one atomic rename.
//!
//! A segment's header and its successor's say how it begins and how it ends. So segments of a large journal are checked
//! beside each other, with up to eight threads; whichever of them finds damage first, the first in the journal's order
//! is told, and nothing on the disk changes before all of them have found their segments sound.

pub mod committer;
pub mod cursors;
pub mod frame;
mod guard;
pub mod log;
pub mod options;
mod order;
mod pool;
pub mod queue;
pub mod reader;
pub mod recovery;
pub mod salvage;
mod scan;
mod segment;
pub(crate) mod shares;
pub mod sink;
pub mod survey;
#[cfg(test)]
pub(crate) mod testdisk;
#[cfg(test)]
mod tests;
pub mod writer;
