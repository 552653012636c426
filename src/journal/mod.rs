//! The journal: the persisted ordered queue between an acknowledgement and the system of record.
//!
//! It stores opaque records in one order, survives power cuts, and can be read by any number of consumers while it is
//! written. It knows nothing of caches, keys or stores. This file holds no logic.
//!
//! # Files
//! | name | content |
//! | --- | --- |
//! | `lock` | locked exclusively by the one process that has the journal open |
//! | `{number:020}.seg` | a segment; numbers are consecutive, the highest is the last |
//! | `spare-{n}.seg` | a file that will become a segment; its content means nothing |
//! | `spare-{n}.tmp` | an unfinished spare; removed when the journal is opened |
//! | `cursors` | the positions of named consumers; see `cursors.rs` |
//! | `cursors.tmp` | an unfinished `cursors` file; removed before the next one is written |
//!
//! Files with other names are left alone.
//!
//! # A segment's header: one block of 4096 bytes
//! All integers are unsigned, fixed-width, little-endian. Bytes that are not listed are zero.
//!
//! | at | bytes | field |
//! | --- | --- | --- |
//! | 0 | 8 | magic, `forebayJ` |
//! | 8 | 4 | format version, 2; magic and version keep their place in every version |
//! | 12 | 4 | CRC-32C of the whole block, computed with zero here |
//! | 16 | 16 | the journal's identity |
//! | 32 | 16 | the tenure in which the segment's frames were written; zeros in a journal without a store |
//! | 48 | 8 | the segment's number |
//! | 56 | 8 | nonce, drawn anew for each use of a file |
//! | 64 | 8 | capacity: the offset up to which frames may be written |
//! | 72 | 8 | prepared length: the file's durable length when it became a segment |
//! | 80 | 8 | the predecessor's number, 0 if there never was one |
//! | 88 | 8 | the last sequence number in the predecessor or before it |
//! | 96 | 8 | the predecessor's end: the offset after its last frame |
//! | 104 | 4 | the predecessor's chain: CRC-32C over its frames' header checksums, in order |
//!
//! # A frame
//! Frames follow each other from byte 4096, each padded with zeros to a multiple of 8 bytes.
//!
//! | at | bytes | field |
//! | --- | --- | --- |
//! | 0 | 4 | CRC-32C of bytes 4 to 56 |
//! | 4 | 4 | the body's length |
//! | 8 | 4 | CRC-32C of the body |
//! | 12 | 4 | number of records |
//! | 16 | 8 | sequence number of the first record |
//! | 24 | 8 | the last journaled sequence number before it |
//! | 32 | 8 | the segment's nonce |
//! | 40 | 8 | synced offset: the bytes of the file before it were synced when the frame was made |
//! | 48 | 8 | witness: the store's watermark when the frame was made |
//! | 56 | | the body: for each record its length (4 bytes) and its bytes |
//!
//! Sequence numbers have gaps, because writes that bypass the journal take numbers too. Every gap is explained: a frame
//! names the journaled number before it. A frame that does not continue the one before it is damage. A frame without
//! records is a promise: a clean close writes it, so that the last synced offset is on record.
//!
//! # Torn tail or damage
//! In the last segment the first unsound frame ends the journal: it is a write that a crash interrupted. It is damage
//! instead if a frame header after it says that a sync had covered that place. In a segment that has a successor, all
//! frames up to the recorded end must be sound, and their chain must be the recorded one. Damage is an error of the
//! opening, and nothing is changed then.
//!
//! # Recovery
//! Opening syncs the directory before it lists it. It serves nothing that a power cut could still take back: frames
//! after the last promise are written once more, as they are, and synced, because after a sync that failed in an
//! earlier process they may be readable and yet not on the disk.
//!
//! A recovered segment is never appended to. The next frame goes to a new segment, whose header seals the recovered
//! one at its sound end. Until then no content has changed on the disk, so recovering again, after a crash at any
//! point, comes to the same end; and a full disk does not keep a backlog from being opened and drained. A last
//! segment without frames is replaced by its successor, which takes its number and its predecessor, in one atomic
//! rename.
//!
//! A segment's header and its successor's say where it begins and ends. So the segments of a large journal are
//! checked in parallel, by up to eight threads. The first damage in the journal's order is reported, whichever thread
//! finds one first, and nothing on the disk changes before all segments are found sound.

#[cfg(not(forebay_mutation))]
pub(crate) mod committer;
#[cfg(forebay_mutation)]
pub mod committer;
pub(crate) mod cursors;
mod errors;
#[cfg(not(forebay_mutation))]
pub(crate) mod frame;
#[cfg(forebay_mutation)]
pub mod frame;
pub(crate) mod log;
pub(crate) mod options;
mod pool;
pub(crate) mod queue;
#[cfg(not(forebay_mutation))]
#[allow(dead_code, reason = "tests alone ask whether an opening made the journal, and how much it cut off")]
pub(crate) mod recovery;
#[cfg(forebay_mutation)]
pub mod recovery;
pub(crate) mod salvage;
pub(crate) mod scan;
mod segment;
pub(crate) mod survey;
#[cfg(test)]
mod tests;
#[cfg(not(forebay_mutation))]
pub(crate) mod writer;
#[cfg(forebay_mutation)]
pub mod writer;

pub use frame::{Frame, Location};
pub use log::Reader;
#[doc(no_inline)]
pub use options::{Durability, JournalOptions};
pub use queue::Journal;
// For the crate's own binary.
#[doc(hidden)]
pub use salvage::{SalvageOptions, SalvageStep, Salvaged, salvage};
#[doc(hidden)]
pub use survey::{Damage, Finding, Hole, SegmentSummary, Survey, Tail};
