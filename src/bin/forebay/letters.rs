//! `dead-letters`: lists, replays or discards the records that the store rejected.

use std::io::Write;
use std::path::Path;

use anyhow::{Result, bail};
use forebay::inspect;
use forebay::journal::Finding;
use forebay::{DeadLetter, ErrorKind, Key};
use serde_json::{Value, json};

use crate::common::{self, Verdict};
use crate::{Choice, Letters, drain};

pub(crate) fn run(dir: &Path, action: &Letters) -> Result<Verdict> {
    match action {
        Letters::List { json } => list(dir, *json),
        Letters::Replay(choice) => settle(dir, choice, false),
        Letters::Discard(choice) => settle(dir, choice, true),
    }
}

fn list(dir: &Path, as_json: bool) -> Result<Verdict> {
    common::survey(dir)?;
    let (mut good, mut notes) = (true, Vec::new());
    let letters = inspect::dead_letters(&common::disk(), dir, &mut |finding| {
        good &= !matches!(finding, Finding::Damage(_) | Finding::Hole(_));
        notes.extend(common::sentence(finding));
    })?;
    let mut out = common::out();
    if as_json {
        let rows: Vec<Value> = letters
            .iter()
            .map(|one| {
                let (namespace, key) = common::shown(&one.letter.key);
                json!({
                    "seq": one.letter.seq.get(),
                    "operation": operation(&one.letter),
                    "namespace": namespace,
                    "key": key,
                    "reason": one.letter.reason,
                    "resolved_at": one.resolved_at.map(|at| at.get()),
                })
            })
            .collect();
        writeln!(out, "{:#}", json!({ "letters": rows, "damage": notes, "sound": good }))?;
    } else {
        for one in &letters {
            let line = line(&one.letter);
            match one.resolved_at {
                Some(at) => writeln!(out, "{line} (settled, if the store has reached {at})")?,
                None => writeln!(out, "{line}")?,
            }
        }
        for note in notes {
            writeln!(out, "{note}")?;
        }
        writeln!(out, "{} dead letters", letters.len())?;
    }
    out.flush()?;
    Ok(Verdict::good_if(good))
}

fn settle(dir: &Path, choice: &Choice, discard: bool) -> Result<Verdict> {
    common::runtime()?.block_on(async {
        let bay = drain::open(dir, &choice.opening, false).await?;
        let before = bay.dead_letters().list()?;
        let unknown = choice.seq.iter().find(|seq| !before.iter().any(|letter| letter.seq.get() == **seq));
        if let Some(unknown) = unknown {
            bay.close_within(std::time::Duration::ZERO).await?;
            bail!("there is no dead letter with the number {unknown}");
        }
        let chosen = before.iter().filter(|letter| choice.all || choice.seq.contains(&letter.seq.get()));
        let keys: Vec<Key> = chosen.map(|letter| letter.key.clone()).collect();
        let letters = bay.dead_letters();
        let settled = if discard { letters.discard(&keys).await } else { letters.replay(&keys).await };
        let left = letters.list()?;
        bay.close_within(std::time::Duration::ZERO).await?;
        let mut out = common::out();
        let done = if discard { "discarded" } else { "replayed" };
        for letter in before.iter().filter(|letter| !left.iter().any(|other| other.seq == letter.seq)) {
            writeln!(out, "{done} {}", line(letter))?;
        }
        let verdict = match settled {
            Ok(()) => Verdict::Good,
            Err(error) if matches!(error.kind(), ErrorKind::Rejected | ErrorKind::Halted) => {
                writeln!(out, "not done: {}", printable(&format!("{error:#}")))?;
                Verdict::Bad
            }
            Err(error) => return Err(error.into()),
        };
        writeln!(out, "{} dead letters are left", left.len())?;
        out.flush()?;
        Ok(verdict)
    })
}

fn operation(letter: &DeadLetter) -> &'static str {
    if letter.removes { "remove" } else { "put" }
}

fn line(letter: &DeadLetter) -> String {
    let (namespace, key) = common::shown(&letter.key);
    let reason = printable(&letter.reason);
    format!("{:>10}  {:<7} {namespace} {key}  {reason}", letter.seq.get(), operation(letter))
}

/// Replaces every character of a store's error that a terminal would act on.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
