//! `tail`: prints the records, one line each.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use forebay::Seq;
use forebay::inspect::{self, RecordKind};
use forebay::journal::Finding;
use forebay::journal::frame::Frame;

use crate::common::{self, Verdict};

/// The interval at which `--follow` looks for new records. A reader without a lock is not notified of them.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

pub(crate) fn run(dir: &Path, from: u64, follow: bool) -> Result<Verdict> {
    let mut out = common::out();
    let mut after = Seq::new(from.saturating_sub(1));
    loop {
        let mut good = true;
        let mut survey = common::survey(dir)?.starting_after(after);
        while let Some(finding) = survey.next_finding()? {
            if let Finding::Frame(frame) = &finding {
                if frame.last() > after {
                    print(&mut out, frame, after)?;
                    after = frame.last();
                }
                continue;
            }
            good &= !matches!(finding, Finding::Damage(_) | Finding::Hole(_));
            if let Some(sentence) = common::sentence(&finding).filter(|_| !follow || !good) {
                writeln!(out, "{sentence}")?;
            }
        }
        out.flush()?;
        if !follow || !good {
            return Ok(Verdict::good_if(good));
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

fn print(out: &mut impl Write, frame: &Frame, after: Seq) -> Result<()> {
    let place = format!("{}:{}", frame.location.segment, frame.location.offset);
    match inspect::records_of(frame) {
        Ok(records) => {
            for record in records.into_iter().filter(|record| record.seq > after) {
                let what = match record.kind {
                    RecordKind::Put => "put",
                    RecordKind::Remove => "remove",
                    RecordKind::Replay => "replay",
                    RecordKind::Discard => "discard",
                    RecordKind::Notice => "notice",
                    _ => "other",
                };
                let (namespace, key) = common::shown(&record.key);
                let bytes = record.value_bytes;
                writeln!(
                    out,
                    "{:>10}  {place:<12} {what:<7} {namespace} {key}  {bytes} bytes",
                    record.seq.get()
                )?;
            }
        }
        // The records of a journal that is used as a queue are opaque: only their lengths can be printed.
        Err(_) => {
            for (bytes, at) in frame.records().zip(0_u64..) {
                let seq = frame.first.plus(at);
                if seq > after {
                    writeln!(out, "{:>10}  {place:<12} opaque  {} bytes", seq.get(), bytes.len())?;
                }
            }
        }
    }
    Ok(())
}
