//! `salvage`: writes a new journal of what can be proven sound, and prints what is lost.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use forebay::Seq;
use forebay::inspect::{self, Part};
use forebay::journal::Finding;
use forebay::journal::SalvageOptions;

use crate::common::{self, StoreUrl, Unit, Verdict};

pub(crate) fn run(dir: &Path, out_dir: &Path, store: Option<&StoreUrl>, past_holes: bool) -> Result<Verdict> {
    // A directory without a journal is told before anything else.
    common::survey(dir)?;
    if out_dir.exists() {
        bail!("{} exists; a salvaged journal needs a directory of its own", out_dir.display());
    }
    let progress = store.map(|store| store.progress_of(dir)).transpose()?.unwrap_or_default();
    let mut options = SalvageOptions::default();
    options.watermark = progress.applied;
    options.past_holes = past_holes;

    // Under another name until it is complete, so that an interrupted salvage is not taken for a complete one.
    let partial = partial_name(out_dir)?;
    if partial.exists() {
        bail!("{} is left of a salvage that was interrupted; remove it first", partial.display());
    }
    let mut sentences = Vec::new();
    let mut left_out = LeftOut::default();
    let mut lost = false;
    let bar = common::progress_bar("salvaging", Unit::Bytes);
    let done = inspect::salvage_layer(&common::disk(), dir, &partial, &options, &mut |part, told| {
        common::show_progress(&bar, told.progress);
        let what = if part == Part::Journal { "" } else { "dead letters: " };
        if let Finding::Frame(frame) = told.finding
            && !told.written
        {
            left_out.add(part, frame.first, frame.last());
        }
        let held = match told.finding {
            Finding::Hole(hole)
                if part == Part::Journal && hole.until.is_some_and(|u| u <= progress.applied) =>
            {
                ": the store holds them"
            }
            Finding::Hole(_) => {
                lost = true;
                ""
            }
            _ => "",
        };
        sentences.extend(common::sentence(told.finding).map(|sentence| format!("{what}{sentence}{held}")));
    });
    bar.finish_and_clear();
    let (journal, letters) = done?;
    fs::rename(&partial, out_dir).with_context(|| format!("renaming {}", partial.display()))?;
    let parent = out_dir.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new("."))).and_then(|parent| parent.sync_all())?;

    let mut out = common::out();
    for sentence in sentences {
        writeln!(out, "{sentence}")?;
    }
    for (part, first, last) in &left_out.0 {
        let what = if *part == Part::Journal { "records" } else { "dead letters: records" };
        writeln!(out, "sound, but not written: {what} {first} to {last}")?;
    }
    let (records, after, last) = (journal.records, journal.first_prev, journal.last);
    writeln!(out, "written: {records} records after {after}, up to {last}")?;
    if let Some(letters) = letters {
        writeln!(out, "written: {} records of the dead-letter list", letters.records)?;
    }
    if progress.journaled > journal.last {
        let held = progress.journaled;
        writeln!(
            out,
            "the store holds records up to {held} already: open this journal with --replace-journal"
        )?;
    }
    let whole = !lost && left_out.0.is_empty();
    writeln!(
        out,
        "{}",
        if whole {
            "nothing was lost"
        } else {
            "what is listed as lost or not written is not in the new journal"
        }
    )?;
    out.flush()?;
    Ok(Verdict::good_if(whole))
}

/// Ranges of records that are sound and were not written.
#[derive(Default)]
struct LeftOut(Vec<(Part, Seq, Seq)>);

impl LeftOut {
    fn add(&mut self, part: Part, first: Seq, last: Seq) {
        match self.0.last_mut() {
            Some((before, _, end)) if *before == part && end.next() == first => *end = last,
            _ => self.0.push((part, first, last)),
        }
    }
}

fn partial_name(out_dir: &Path) -> Result<PathBuf> {
    let Some(name) = out_dir.file_name() else {
        bail!("{} is no name for a new directory", out_dir.display());
    };
    let mut partial = OsString::from(name);
    partial.push(".partial");
    Ok(out_dir.with_file_name(partial))
}
