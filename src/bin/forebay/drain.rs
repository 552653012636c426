//! `drain`: opens the layer and applies its backlog to the store.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use forebay::{Forebay, Health, HealthState, OnRejected};

use crate::Opening;
use crate::common::{self, Unit, Verdict};

/// The interval at which the bar moves and a failed layer is noticed.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

pub(crate) fn run(dir: &Path, opening: &Opening, deadline: Option<u64>, park: bool) -> Result<Verdict> {
    common::runtime()?.block_on(async {
        let bay = open(dir, opening, park).await?;
        let start = bay.health();
        let drained = drained_within(&bay, &start, deadline.map(Duration::from_secs)).await;
        let end = bay.health();
        let closed = bay.close_within(Duration::ZERO).await?;
        let mut out = common::out();
        writeln!(out, "the store holds everything up to {}", end.watermark)?;
        if end.dead_letters > 0 {
            writeln!(out, "dead letters: {}", end.dead_letters)?;
        }
        if let Some(why) = drained.err().or(end.error.filter(|_| closed.queued > 0)) {
            writeln!(out, "{} records are left in the journal: {why:#}", closed.queued)?;
        } else if closed.queued > 0 {
            writeln!(out, "{} records are left in the journal: the deadline passed", closed.queued)?;
        }
        out.flush()?;
        Ok(Verdict::good_if(closed.queued == 0))
    })
}

/// Opens the layer whose journal is in `dir`, which has to exist.
pub(crate) async fn open(dir: &Path, opening: &Opening, park: bool) -> Result<Forebay> {
    let survey = common::survey(dir)?;
    if survey.id().is_none() {
        bail!("no segment in {} has a sound header", dir.display());
    }
    drop(survey);
    let on_rejected = if park { OnRejected::Park } else { OnRejected::Halt };
    let builder = Forebay::builder(opening.store.open()?).journal(dir).on_rejected(on_rejected);
    Ok(builder.replace_journal(opening.replace_journal).open().await?)
}

/// Waits until the store has everything, until the deadline, or until the layer fails.
async fn drained_within(bay: &Forebay, start: &Health, deadline: Option<Duration>) -> forebay::Result<()> {
    let bar = common::progress_bar("draining", Unit::Records);
    bar.set_length(start.queued_records);
    let begun = tokio::time::Instant::now();
    let flush = bay.flush();
    tokio::pin!(flush);
    loop {
        let look = tokio::time::sleep(LOOK_AGAIN);
        tokio::select! {
            flushed = &mut flush => {
                bar.finish_and_clear();
                return flushed.map(drop);
            }
            () = look => {}
        }
        let health = bay.health();
        bar.set_position(start.queued_records.saturating_sub(health.queued_records));
        let over = deadline.is_some_and(|deadline| begun.elapsed() >= deadline);
        if over || health.state == HealthState::Failed {
            bar.finish_and_clear();
            return health.error.filter(|_| !over).map_or(Ok(()), Err);
        }
    }
}
