//! Tests of the journal's promises on a simulated disk that fails, tears writes and loses unsynced data.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use crate::disk::simulated::{CrashPolicy, DiskOp, Fault, SimDisk};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Seq;
use crate::journal::frame::{FrameBuilder, Location};
use crate::journal::log::Log;
use crate::journal::options::JournalOptions;
use crate::journal::recovery::{self, CheckOptions, Opened};
use crate::journal::segment::segment_name;
use crate::journal::writer::{GroupFrame, Writer};

mod crash;
mod damage;
mod parallel_check;
mod survey;
mod usage;

const SEGMENT: u64 = 64 * 1024;
const DIR: &str = "journal";

/// The files of a journal, by name.
type Files = BTreeMap<String, Vec<u8>>;

/// Read access to a simulated disk that has one directory, and changes to it that are no operations of a journal.
trait OneDirectory {
    fn image(&self) -> Files;
    fn names(&self) -> Vec<String>;
    fn content(&self, name: &str) -> Vec<u8>;
    fn put(&self, name: &str, content: Vec<u8>);
    fn delete(&self, name: &str);
    /// Returns the number of operations so far that change something.
    fn changes(&self) -> u64;
    /// Returns a list that each later operation which changes something is added to, as `Kind name`.
    fn record_changes(&self) -> Arc<Mutex<Vec<String>>>;
    /// Plans that operations of one kind fail after so many more of them: one, or all that follow. Of a failing write
    /// half is written.
    fn fail(&self, op: DiskOp, after: u64, kind: io::ErrorKind, once: bool);
    /// Cuts the power after so many more changes: half of a write that is cut is written, and everything later fails.
    fn cut_after(&self, changes: u64);
}

fn path_of(name: &str) -> PathBuf {
    Path::new(DIR).join(name)
}

impl OneDirectory for SimDisk {
    fn image(&self) -> Files {
        self.files(Path::new(DIR))
    }

    fn names(&self) -> Vec<String> {
        self.image().into_keys().collect()
    }

    fn content(&self, name: &str) -> Vec<u8> {
        self.image().remove(name).unwrap()
    }

    fn put(&self, name: &str, content: Vec<u8>) {
        self.put_file(&path_of(name), content);
    }

    fn delete(&self, name: &str) {
        self.delete_file(&path_of(name));
    }

    fn changes(&self) -> u64 {
        use DiskOp::{Create, CreateDir, Remove, Rename, Sync, SyncDir, Write};
        [CreateDir, Create, Rename, Remove, SyncDir, Write, Sync].map(|op| self.count(op)).iter().sum()
    }

    fn record_changes(&self) -> Arc<Mutex<Vec<String>>> {
        let list = Arc::new(Mutex::new(Vec::new()));
        let recorded = Arc::clone(&list);
        self.observe(move |op, name, _| recorded.lock().unwrap().push(format!("{op:?} {name}")));
        list
    }

    fn fail(&self, op: DiskOp, after: u64, kind: io::ErrorKind, once: bool) {
        self.plan(Fault::on(op).after(after).kind(kind).half_written());
        if !once {
            self.plan(Fault::on(op).after(after + 1).kind(kind).until_healed());
        }
    }

    fn cut_after(&self, changes: u64) {
        let cut = |after| Fault::on_any_change().after(after).kind(io::ErrorKind::BrokenPipe);
        self.plan(cut(changes).half_written());
        self.plan(cut(changes + 1).until_healed());
    }
}

/// Files grow, and are recycled; no thread, so operations come in one order.
fn growing() -> JournalOptions {
    JournalOptions { segment_bytes: SEGMENT, zero_fill: false, recycle: true, spares_max: 2 }
}

/// Files are filled with zeros when they are needed; no thread, no spares.
fn filled() -> JournalOptions {
    JournalOptions { segment_bytes: SEGMENT, zero_fill: true, recycle: false, spares_max: 0 }
}

/// Opens the journal, and checks it with several threads however small it is.
fn open(disk: &SimDisk, options: &JournalOptions) -> Result<Opened> {
    let check = CheckOptions::eager();
    Ok(recovery::open_visiting(
        Arc::new(disk.clone()),
        Path::new(DIR),
        options,
        crate::ids::TenureId::default(),
        &check,
        |_| (),
    )?
    .0)
}

/// Returns the content of record `seq`, which follows from its number. Sizes differ.
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

/// Builds a frame of `count` records from `first` on.
fn frame(first: u64, count: u64) -> GroupFrame {
    frame_of(first, &(first..first + count).map(record).collect::<Vec<_>>())
}

/// Builds a frame of one record of `len` bytes.
fn large(first: u64, len: usize) -> GroupFrame {
    frame_of(first, &[vec![first as u8; len]])
}

/// Appends, and returns the locations that were written and the error that stopped it.
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

/// Reads all records after `after`, with their numbers.
fn read_all(log: &Arc<Log>, after: u64) -> Result<Vec<(u64, Bytes)>> {
    let mut reader = log.read_after(Seq(after));
    let mut all = Vec::new();
    while let Some(frame) = reader.next_frame()? {
        all.extend((frame.first.0..).zip(frame.records()));
    }
    Ok(all)
}

/// Asserts that the journal holds `record(n)` for each n from its first number to its last; returns the last.
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
