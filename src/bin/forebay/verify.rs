//! `verify`: reads everything and checks that it is what was written.

use std::io::Write;
use std::path::Path;

use anyhow::Result;
use forebay::ErrorKind;
use forebay::inspect;
use forebay::journal::Finding;

use crate::common::{self, Unit, Verdict};

pub(crate) fn run(dir: &Path, queue: bool) -> Result<Verdict> {
    let mut out = common::out();
    let mut survey = common::survey(dir)?;
    let (mut faults, mut frames, mut records) = (0_u64, 0_u64, 0_u64);
    let mut ends: Option<(u64, u64)> = None;
    let bar = common::progress_bar("verifying", Unit::Bytes);
    while let Some(finding) = survey.next_finding()? {
        common::show_progress(&bar, survey.progress());
        if let Finding::Frame(frame) = &finding {
            frames += 1;
            records += u64::from(frame.count);
            ends = Some((ends.map_or(frame.first.get(), |(first, _)| first), frame.last().get()));
            if let Err(error) = if queue { Ok(Vec::new()) } else { inspect::records_of(frame) } {
                faults += 1;
                let (segment, offset) = (frame.location.segment, frame.location.offset);
                writeln!(out, "{}: {segment:020}.seg: damaged at byte {offset}: {error:#}", dir.display())?;
            }
        }
        faults += u64::from(matches!(finding, Finding::Damage(_) | Finding::Hole(_)));
        if let Some(sentence) = common::sentence(&finding) {
            writeln!(out, "{sentence}")?;
        }
    }
    bar.finish_and_clear();
    let id = survey.id().map_or_else(|| "unknown".to_owned(), |id| id.to_string());
    let range = ends.map_or_else(String::new, |(first, last)| format!(", {first} to {last}"));
    let segments = survey.segments().len();
    writeln!(out, "journal {id}: {segments} segments, {frames} frames, {records} records{range}")?;

    if !queue {
        let mut sentences = Vec::new();
        let letters = inspect::dead_letters(&common::disk(), dir, &mut |finding| {
            faults += u64::from(matches!(finding, Finding::Damage(_) | Finding::Hole(_)));
            sentences.extend(common::sentence(finding));
        })?;
        for sentence in sentences {
            writeln!(out, "{sentence}")?;
        }
        writeln!(out, "dead letters: {}", letters.len())?;
        match inspect::cursors(&common::disk(), dir) {
            Err(error) if error.kind() == ErrorKind::Damaged => {
                faults += 1;
                writeln!(out, "{error:#}")?;
            }
            cursors => match cursors?.len() {
                0 => {}
                count => writeln!(out, "subscribers of the change stream: {count}")?,
            },
        }
    }
    writeln!(out, "{}", if faults == 0 { "sound" } else { "DAMAGED" })?;
    out.flush()?;
    Ok(Verdict::good_if(faults == 0))
}
