//! The parts that the commands share: store URLs, printing of findings and keys, the exit status.

use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Result, bail};
use forebay::disk::Disk;
use forebay::disk::OsDisk;
use forebay::journal::{Finding, Hole, Survey};
use forebay::store::{Progress, Store, StoreError};
use forebay::{Error, ErrorKind, Key, Seq, SledStore};
use indicatif::{ProgressBar, ProgressStyle};

/// The bytes of a key or a namespace that are shown.
const SHOWN_BYTES_MAX: usize = 48;

/// The outcome of a command that ran to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Good,
    Bad,
}

impl Verdict {
    pub(crate) fn good_if(good: bool) -> Verdict {
        if good { Verdict::Good } else { Verdict::Bad }
    }
}

/// The kind of a store, and its path.
#[derive(Clone, Debug)]
pub(crate) struct StoreUrl {
    kind: StoreKind,
    path: PathBuf,
}

/// The stores that this binary may have been built with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StoreKind {
    Sled,
    Redb,
    Fjall,
}

impl StoreKind {
    const ALL: [StoreKind; 3] = [StoreKind::Sled, StoreKind::Redb, StoreKind::Fjall];

    /// Returns its name in a URL; for all but the default store that is also the name of its feature.
    fn name(self) -> &'static str {
        match self {
            StoreKind::Sled => "sled",
            StoreKind::Redb => "redb",
            StoreKind::Fjall => "fjall",
        }
    }

    fn is_built_in(self) -> bool {
        match self {
            StoreKind::Sled => true,
            StoreKind::Redb => cfg!(feature = "redb"),
            StoreKind::Fjall => cfg!(feature = "fjall"),
        }
    }

    /// Returns the name of an entry that every directory of such a store has.
    fn mark(self) -> &'static str {
        match self {
            StoreKind::Sled => "db",
            StoreKind::Redb => "data.redb",
            StoreKind::Fjall => "fjall",
        }
    }
}

impl FromStr for StoreUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<StoreUrl, String> {
        let found = text.split_once(':').and_then(|(name, path)| {
            let kind = StoreKind::ALL.into_iter().find(|kind| kind.name() == name)?;
            (!path.is_empty()).then(|| StoreUrl { kind, path: path.into() })
        });
        let Some(url) = found else {
            return Err("a store is given as sled:PATH, redb:PATH or fjall:PATH".to_owned());
        };
        if !url.kind.is_built_in() {
            let name = url.kind.name();
            return Err(format!(
                "this binary was built without the {name} store; build it with the feature `{name}`"
            ));
        }
        Ok(url)
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind.name(), self.path.display())
    }
}

impl StoreUrl {
    /// Opens the store. One that does not exist is taken for a mistyped path: a new store would take the whole journal.
    pub(crate) fn open(&self) -> Result<Box<dyn Store>> {
        let StoreUrl { kind, path } = self;
        if !path.join(kind.mark()).exists() {
            bail!("there is no {} store in {}", kind.name(), path.display());
        }
        Ok(match kind {
            StoreKind::Sled => Box::new(SledStore::open(path)?),
            #[cfg(feature = "redb")]
            StoreKind::Redb => Box::new(forebay::RedbStore::open(path)?),
            #[cfg(feature = "fjall")]
            StoreKind::Fjall => Box::new(forebay::FjallStore::open(path)?),
            #[cfg(not(all(feature = "redb", feature = "fjall")))]
            _ => bail!("this binary was built without the {} store", kind.name()),
        })
    }

    /// Opens the store and returns how far the journal in `dir` has fed it.
    ///
    /// The watermark of a store that was fed from another journal, or by nobody, says nothing about this one: by it a
    /// hole would count as held by the store.
    pub(crate) fn progress_of(&self, dir: &Path) -> Result<Progress> {
        let journal = survey(dir)?.id();
        let store = self.open()?;
        let standing = runtime()?.block_on(store.standing()).map_err(StoreError::into_error)?;
        match (journal, standing.journal) {
            (Some(journal), Some(fed_from)) if journal != fed_from => bail!(
                "{self} was fed from journal {fed_from}, and {} holds journal {journal}: name the store that belongs \
                 to it, or none",
                dir.display()
            ),
            (Some(journal), None) => bail!(
                "{self} was fed from no journal, and {} holds journal {journal}: name the store that belongs to it, \
                 or none",
                dir.display()
            ),
            _ => Ok(standing.progress),
        }
    }
}

/// Makes the runtime of a command that waits.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_time().build()?)
}

/// Returns the operating system's files.
pub(crate) fn disk() -> Arc<dyn Disk> {
    Arc::new(OsDisk)
}

/// Surveys a directory that has to hold a journal.
pub(crate) fn survey(dir: &Path) -> Result<Survey> {
    let survey = Survey::open(disk(), dir)?;
    if survey.segments().is_empty() {
        bail!("there is no journal in {}", dir.display());
    }
    Ok(survey)
}

/// Makes a bar on standard error, which is shown on a terminal only.
pub(crate) fn progress_bar(what: &'static str, unit: Unit) -> ProgressBar {
    let template = match unit {
        Unit::Bytes => "{msg} {bar:40} {bytes} of {total_bytes}, {eta} left",
        Unit::Records => "{msg} {bar:40} {pos} of {len}, {eta} left",
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style).with_message(what)
}

/// The unit of a bar.
#[derive(Clone, Copy)]
pub(crate) enum Unit {
    Bytes,
    Records,
}

/// Moves a bar to a survey's progress.
pub(crate) fn show_progress(bar: &ProgressBar, (done, total): (u64, u64)) {
    bar.set_length(total);
    bar.set_position(done);
}

/// Returns a sentence about a finding, unless it is a frame or an undamaged end.
pub(crate) fn sentence(finding: &Finding) -> Option<String> {
    match finding {
        Finding::Damage(damage) => Some(damage.error.to_string()),
        Finding::Hole(hole) => Some(hole_sentence(hole)),
        Finding::Tail(tail) if tail.torn_bytes > 0 => Some(format!(
            "{}: ends at byte {}; {} bytes behind it are of a write that was interrupted, or is going on",
            tail.path.display(),
            tail.offset,
            tail.torn_bytes
        )),
        _ => None,
    }
}

fn hole_sentence(hole: &Hole) -> String {
    let first = hole.after.next();
    match hole.until {
        Some(until) if hole.after == Seq::ZERO => {
            format!("lost: records {first} to {until} (without those that had been trimmed before)")
        }
        Some(until) => format!("lost: records {first} to {until}"),
        None => format!("lost: records from {first} on; how many is not known"),
    }
}

/// Returns a namespace and a key to print: cut, and with every byte escaped that a terminal would act on.
pub(crate) fn shown(key: &Key) -> (String, String) {
    (escaped(key.namespace().as_bytes()), escaped(key.key()))
}

fn escaped(bytes: &[u8]) -> String {
    let part = bytes.get(..SHOWN_BYTES_MAX).unwrap_or(bytes);
    let cut = if part.len() < bytes.len() { "..." } else { "" };
    format!("{}{cut}", part.escape_ascii())
}

/// Returns standard output, buffered.
pub(crate) fn out() -> io::BufWriter<io::StdoutLock<'static>> {
    io::BufWriter::new(io::stdout().lock())
}

/// Prints the error of a command that failed. Returns its exit status.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
        // The reader, such as `head`, has seen enough.
        return ExitCode::SUCCESS;
    }
    // Without a standard error, the exit status has to do.
    drop(writeln!(io::stderr(), "forebay: {error:#}"));
    let kind = error.downcast_ref::<Error>().map(Error::kind);
    ExitCode::from(if kind == Some(ErrorKind::Damaged) { 1 } else { 2 })
}
