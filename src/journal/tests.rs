//! What the journal promises, tried on a disk that fails, tears and forgets.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::Seq;
use crate::journal::frame::{FrameBuilder, Location};
use crate::journal::log::Log;
use crate::journal::options::JournalOptions;
use crate::journal::recovery::Opened;
use crate::journal::segment::segment_name;
use crate::journal::testdisk::{Keep, MemDisk};
use crate::journal::writer::{GroupFrame, Writer};

mod crash;
mod damage;
mod shares;
mod survey;
mod usage;

const SEGMENT: u64 = 64 * 1024;

/// Files grow, and are recycled; no thread, so operations come in one order.
fn growing() -> JournalOptions {
    JournalOptions { segment_bytes: SEGMENT, zero_fill: false, recycle: true, spares_max: 2 }
}

/// Files are filled with zeros when they are needed; no thread, no spares.
fn filled() -> JournalOptions {
    JournalOptions { segment_bytes: SEGMENT, zero_fill: true, recycle: false, spares_max: 0 }
}

fn open(disk: &MemDisk, options: &JournalOptions) -> Result<Opened> {
    Log::open(Arc::new(disk.clone()), Path::new("journal"), options)
}

/// What record `seq` holds: its content follows from its number, and sizes differ.
fn record(seq: u64) -> Vec<u8> {
    format!("record {seq};").repeat(1 + (seq as usize * 7) % 23).into_bytes()
}

fn frame_of(first: u64, records: &[Vec<u8>]) -> GroupFrame {
    let mut builder = FrameBuilder::new();
    for record in records {
        builder.push(&[record]).unwrap();
    }
    GroupFrame { first: Seq(first), body: builder.finish() }
}

/// A frame of `count` records from `first`.
fn frame(first: u64, count: u64) -> GroupFrame {
    frame_of(first, &(first..first + count).map(record).collect::<Vec<_>>())
}

/// A frame of one record of `len` bytes.
fn large(first: u64, len: usize) -> GroupFrame {
    frame_of(first, &[vec![first as u8; len]])
}

/// Appends: what was written, and what stopped it.
fn try_append(writer: &mut Writer, group: &[GroupFrame]) -> (Vec<Location>, Option<Error>) {
    let mut written = Vec::new();
    let error = writer.append(group, &mut written).err();
    (written, error)
}

/// Appends and publishes; every frame must have been written.
fn append(writer: &mut Writer, group: &[GroupFrame]) -> Vec<Location> {
    let (locations, error) = try_append(writer, group);
    assert!(error.is_none(), "{error:?}");
    assert_eq!(locations.len(), group.len());
    writer.publish(writer.last());
    locations
}

/// All records after `after`, with their numbers.
fn read_all(log: &Arc<Log>, after: u64) -> Result<Vec<(u64, Bytes)>> {
    let mut reader = log.read_after(Seq(after));
    let mut all = Vec::new();
    while let Some(frame) = reader.next_frame()? {
        all.extend((frame.first.0..).zip(frame.records()));
    }
    Ok(all)
}

/// The journal holds `record(n)` for each n up to its last one, from its first; returns the last.
fn assert_dense(opened: &Opened) -> u64 {
    let all = read_all(&opened.log, 0).unwrap();
    let numbers: Vec<u64> = all.iter().map(|(seq, _)| *seq).collect();
    let expected: Vec<u64> = (opened.first_prev.0 + 1..=opened.last.0).collect();
    assert_eq!(numbers, expected);
    for (seq, content) in all {
        assert_eq!(content, record(seq), "record {seq}");
    }
    opened.last.0
}

fn error_of<T>(result: Result<T>) -> Error {
    result.err().expect("it has to fail")
}
