//! `inspect`: prints the contents of a journal's directory, for people or as JSON.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::time::SystemTime;

use anyhow::Result;
use comfy_table::Table;
use forebay::inspect;
use forebay::journal::{Finding, SegmentSummary, Survey};
use forebay::{ErrorKind, Seq};
use serde_json::{Map, Value, json};

use crate::common::{self, StoreUrl, Unit, Verdict};

/// The counts of one segment.
#[derive(Default)]
struct Counted {
    frames: u64,
    records: u64,
    pending: u64,
    first: Option<Seq>,
    last: Option<Seq>,
}

pub(crate) fn run(dir: &Path, as_json: bool, store: Option<&StoreUrl>) -> Result<Verdict> {
    let watermark = store.map(|store| store.progress_of(dir)).transpose()?.map(|progress| progress.applied);
    let mut survey = common::survey(dir)?;
    let mut counted: HashMap<u64, Counted> = HashMap::new();
    let (mut faults, mut notes) = (0_u64, Vec::new());
    let bar = common::progress_bar("reading", Unit::Bytes);
    while let Some(finding) = survey.next_finding()? {
        common::show_progress(&bar, survey.progress());
        if let Finding::Frame(frame) = &finding {
            let segment = counted.entry(frame.location.segment).or_default();
            segment.frames += 1;
            segment.records += u64::from(frame.count);
            segment.first.get_or_insert(frame.first);
            segment.last = Some(frame.last());
            if let Some(watermark) = watermark {
                let applied = watermark.get().saturating_add(1).saturating_sub(frame.first.get());
                segment.pending += u64::from(frame.count).saturating_sub(applied);
            }
        }
        faults += u64::from(matches!(finding, Finding::Damage(_) | Finding::Hole(_)));
        notes.extend(common::sentence(&finding));
    }
    bar.finish_and_clear();
    let letters = inspect::dead_letters(&common::disk(), dir, &mut |finding| {
        faults += u64::from(matches!(finding, Finding::Damage(_) | Finding::Hole(_)));
        notes.extend(common::sentence(finding));
    })?;
    let listed =
        letters.iter().filter(|one| one.resolved_at.is_none_or(|at| watermark.is_none_or(|w| at > w)));
    let letters = listed.count();
    let cursors = match inspect::cursors(&common::disk(), dir) {
        Err(error) if error.kind() == ErrorKind::Damaged => {
            faults += 1;
            notes.push(error.to_string());
            Vec::new()
        }
        cursors => cursors?,
    };
    let pending = watermark.map(|_| counted.values().map(|segment| segment.pending).sum::<u64>());
    let age = oldest_age_seconds(&survey, &counted, watermark);
    let mut out = common::out();
    if as_json {
        let segments: Vec<Value> =
            survey.segments().iter().map(|one| segment_json(one, counted.get(&one.number))).collect();
        let told = json!({
            "journal": survey.id().map(|id| id.to_string()),
            "segments": segments,
            "bytes": survey.segments().iter().map(|segment| segment.bytes).sum::<u64>(),
            "last": counted.values().filter_map(|segment| segment.last).max().map(|last| last.get()),
            "cursors": {
                "flusher": watermark.map(|watermark| watermark.get()),
                "subscribers": cursors.iter().map(|one| (one.name.clone(), json!(one.acknowledged.get())))
                    .collect::<Map<_, _>>(),
            },
            "pending_records": pending,
            "oldest_age_seconds_at_least": age,
            "dead_letters": letters,
            "damage": notes,
            "sound": faults == 0,
        });
        writeln!(out, "{told:#}")?;
    } else {
        print(&mut out, &survey, &counted)?;
        match (watermark, pending) {
            (Some(watermark), Some(pending)) => {
                writeln!(out, "flusher       at {watermark}: {pending} records are pending")?;
            }
            _ => writeln!(out, "flusher       not known: its cursor lies in the store (--store)")?,
        }
        for cursor in &cursors {
            writeln!(out, "subscriber    {} at {}", cursor.name, cursor.acknowledged)?;
        }
        if let Some(age) = age {
            writeln!(out, "oldest        {age} s old at least")?;
        }
        writeln!(out, "dead letters  {letters}")?;
        for note in notes {
            writeln!(out, "{note}")?;
        }
    }
    out.flush()?;
    Ok(Verdict::good_if(faults == 0))
}

/// Returns the least age of the oldest pending record, or of the oldest record if the watermark is not known.
///
/// A frame bears no time, but the file system knows when its segment was last written.
fn oldest_age_seconds(
    survey: &Survey,
    counted: &HashMap<u64, Counted>,
    watermark: Option<Seq>,
) -> Option<u64> {
    let holds = |segment: &&SegmentSummary| {
        let counted = counted.get(&segment.number);
        counted.is_some_and(|counted| counted.last > watermark && counted.records > 0)
    };
    let oldest = survey.segments().iter().find(holds)?;
    let changed = std::fs::metadata(&oldest.path).and_then(|metadata| metadata.modified()).ok()?;
    SystemTime::now().duration_since(changed).ok().map(|age| age.as_secs())
}

fn segment_json(segment: &SegmentSummary, counted: Option<&Counted>) -> Value {
    json!({
        "number": segment.number,
        "file": segment.path.display().to_string(),
        "bytes": segment.bytes,
        "header_sound": segment.after.is_some(),
        "tenure": segment.tenure.map(|tenure| tenure.to_string()),
        "first": counted.and_then(|counted| counted.first).map(|first| first.get()),
        "last": counted.and_then(|counted| counted.last).map(|last| last.get()),
        "frames": counted.map_or(0, |counted| counted.frames),
        "records": counted.map_or(0, |counted| counted.records),
    })
}

fn print(out: &mut impl Write, survey: &Survey, counted: &HashMap<u64, Counted>) -> Result<()> {
    writeln!(out, "journal       {}", survey.id().map_or_else(|| "unknown".to_owned(), |id| id.to_string()))?;
    let mut table = Table::new();
    table.set_header(["segment", "bytes", "records", "frames", "first", "last"]);
    let number = |seq: Option<Seq>| seq.map_or_else(|| "-".to_owned(), |seq| seq.to_string());
    let none = Counted::default();
    for segment in survey.segments() {
        let counted = counted.get(&segment.number).unwrap_or(&none);
        table.add_row([
            segment.number.to_string(),
            segment.bytes.to_string(),
            counted.records.to_string(),
            counted.frames.to_string(),
            number(counted.first),
            number(counted.last),
        ]);
    }
    writeln!(out, "{table}")?;
    Ok(())
}
