//! From validated options to a running layer: claims the store, replays the journal, starts the threads.
//!
//! Nothing is written before it is certain that this journal and this store belong together. An existing
//! journal is always replayed, whatever the caches' policies are.

use std::cell::Cell;
use std::sync::Arc;

use tokio::sync::watch;

use crate::disk::contract::Disk;
use crate::engine::applied::Applied;
use crate::engine::changes::ChangeSource;
use crate::engine::core::Core;
use crate::engine::cursors::Cursors;
use crate::engine::dead_letters::DeadLetters;
use crate::engine::flusher::Flusher;
use crate::engine::follow::Follow;
use crate::engine::follower::Follower;
use crate::engine::hand::Source;
use crate::engine::inbox::PendingView;
use crate::engine::layer::{FlusherThread, Layer};
use crate::engine::ownership::{Lifeline, OnOwned, Role, await_turn};
use crate::engine::publisher::Publishers;
use crate::engine::queued::QueuedFrame;
use crate::engine::reads::Reads;
use crate::engine::tasks::Tasks;
use crate::engine::turns::Turns;
use crate::engine::views::Views;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{Epoch, JournalId, Seq};
use crate::journal::committer::Committer;
use crate::journal::frame::Location;
use crate::journal::log::Log;
use crate::journal::recovery::Opened;
use crate::options::LayerOptions;
use crate::safeguard::Safeguard;
use crate::seam::clock::{self, Handle, Ticker};
use crate::seam::priority;
use crate::seam::span::Span;
use crate::seam::sync::{Mutex, RwLock, thread};
use crate::store::contract::{Batch, Progress, Pulse, Store, StoreError, Tenure};

/// What a layer that starts is to its store.
enum Part {
    Owner { has_ear: bool },
    Follower(Follow),
}

/// Opens a layer.
///
/// # Errors
/// A bad option; a journal that is locked, damaged, of an unknown format, or not this store's; the store's.
pub(crate) async fn open(
    store: Arc<dyn Store>,
    options: LayerOptions,
    disk: Arc<dyn Disk>,
    ticker: Ticker,
    role: Role,
) -> Result<Arc<Layer>> {
    let span = Span::recovery();
    let opened = match role {
        Role::Owner(on_owned) => span.around(claim_and_start(store, options, disk, ticker, on_owned)).await,
        Role::Follower(follow) => span.around(start_following(store, options, disk, ticker, follow)).await,
    };
    match &opened {
        Ok(layer) => {
            let health = layer.health();
            span.note("epoch", health.epoch.0);
            span.note("pending", health.queued_records);
        }
        Err(error) => span.failed(error.kind()),
    }
    opened
}

async fn claim_and_start(
    store: Arc<dyn Store>,
    options: LayerOptions,
    disk: Arc<dyn Disk>,
    ticker: Ticker,
    on_owned: OnOwned,
) -> Result<Arc<Layer>> {
    options.validate()?;
    await_turn(&*store, on_owned).await?;
    let tenure = store.tenure().await.map_err(StoreError::into_error)?;
    let journal = match &options.journal_dir {
        Some(dir) => {
            let (disk, dir, journal) = (Arc::clone(&disk), dir.clone(), options.journal.clone());
            Some(blocking(move || Log::open(disk, &dir, &journal)).await?)
        }
        None => None,
    };
    check_identity(&tenure, journal.as_ref(), options.replace_journal)?;
    let id = journal.as_ref().map(|journal| journal.id);
    let mut tenure = store.claim(id).await.map_err(StoreError::into_error)?;
    forget_lost_journal(&*store, &mut tenure, journal.as_ref()).await?;
    let has_ear = store.pulse().await.map_err(StoreError::into_error)? != Pulse::Unknown;
    let part = Part::Owner { has_ear };
    blocking(move || start(store, options, disk, ticker, tenure, journal, part)).await
}

/// Without a claim: the store has another owner.
async fn start_following(
    store: Arc<dyn Store>,
    options: LayerOptions,
    disk: Arc<dyn Disk>,
    ticker: Ticker,
    follow: Follow,
) -> Result<Arc<Layer>> {
    let options = LayerOptions { follows: true, ..options };
    options.validate()?;
    follow.validate()?;
    let tenure = store.tenure().await.map_err(StoreError::into_error)?;
    blocking(move || start(store, options, disk, ticker, tenure, None, Part::Follower(follow))).await
}

/// Whether this journal is the one that the store was fed from, and whole.
fn check_identity(tenure: &Tenure, journal: Option<&Opened>, replace: bool) -> Result<()> {
    let refuse = |context: String| Err(Error::new(ErrorKind::WrongJournal, context));
    let Some(journal) = journal else {
        return match tenure.journal {
            Some(id) if !replace => refuse(format!(
                "the store was fed from journal {id}, which may hold writes that the store lacks, and the layer \
                 was opened without a journal; open it with that journal once more, or accept its loss with \
                 replace_journal(true)"
            )),
            _ => Ok(()),
        };
    };
    let watermark = tenure.progress.journaled;
    if tenure.journal == Some(journal.id) {
        if watermark > journal.last && !replace && Safeguard::JournalReachesWatermark.holds() {
            return refuse(format!(
                "the store holds journaled records up to {watermark}, but journal {} ends at {}: its end was \
                 lost, with whatever else was queued there",
                journal.id, journal.last
            ));
        }
    } else if journal.last > Seq::ZERO && tenure.epoch > Epoch(0) {
        // Its numbers say nothing about this store, so neither can its records be told from applied ones.
        return refuse(match tenure.journal {
            Some(id) => mismatch(journal.id, id, watermark),
            None => format!("journal {} holds records, and the store was not fed from it", journal.id),
        });
    } else if let Some(id) = tenure.journal.filter(|_| !replace) {
        return refuse(mismatch(journal.id, id, watermark));
    }
    if journal.first_prev > watermark && journal.last > Seq::ZERO {
        return refuse(format!(
            "the store holds journaled records up to {watermark}, but journal {} begins after {}: the records in \
             between are in neither; the store was lost or swapped",
            journal.id, journal.first_prev
        ));
    }
    Ok(())
}

/// After a journal was replaced, the store must not go on expecting the old one's records in the new one.
async fn forget_lost_journal(store: &dyn Store, tenure: &mut Tenure, journal: Option<&Opened>) -> Result<()> {
    let last = journal.map_or(Seq::ZERO, |journal| journal.last);
    if tenure.progress.journaled <= last {
        return Ok(());
    }
    // Only a batch changes the progress, and only one with a number of its own.
    let progress = Progress { applied: tenure.progress.applied.next(), journaled: last };
    let batch = Batch { epoch: tenure.epoch, ops: Vec::new(), progress };
    store.apply(&batch).await.map_err(StoreError::into_error)?;
    tenure.progress = progress;
    Ok(())
}

fn mismatch(found: JournalId, expected: JournalId, watermark: Seq) -> String {
    format!(
        "the store was fed from journal {expected} up to record {watermark}, and this is journal {found}: the \
         journal was lost or swapped, and may have held writes that the store lacks"
    )
}

fn start(
    store: Arc<dyn Store>,
    options: LayerOptions,
    disk: Arc<dyn Disk>,
    ticker: Ticker,
    tenure: Tenure,
    journal: Option<Opened>,
    part: Part,
) -> Result<Arc<Layer>> {
    let watermark = tenure.progress.applied;
    let pending = PendingView::new(options.pending_memory_bytes_max, ticker.clone());
    let cursors = match (&options.journal_dir, &journal) {
        (Some(dir), Some(journal)) => {
            let (disk, bytes_max) = (Arc::clone(&disk), options.changes_bytes_max);
            let passed = tenure.progress.journaled;
            Some(Arc::new(Cursors::open(disk, dir, journal.id, passed, bytes_max)?))
        }
        _ => None,
    };
    let letters = match &options.journal_dir {
        Some(dir) => {
            let records_max = options.dead_letter_records_max;
            let letters = DeadLetters::open(disk, dir, watermark, records_max)?;
            letters.bury_all(&mut pending.lock());
            Some(Arc::new(letters))
        }
        None => None,
    };
    let (mut last, mut recovered, mut applied_end) = (watermark, Seq::ZERO, None);
    if let Some(journal) = &journal {
        recovered = journal.last;
        last = match Safeguard::NumbersNeverReused.holds() {
            true => last.max(journal.last),
            false => journal.last,
        };
        applied_end = replay(&journal.log, &pending, tenure.progress)?.or(journal.log.end());
    }
    pending.lock().start_at(last, ticker.now());
    let durability = options.durability;
    let core = Arc::new(Core::new(options, tenure.epoch, watermark, pending));
    let log = journal.as_ref().map(|journal| Arc::clone(&journal.log));
    let journal = journal.map(|journal| (journal.log, journal.writer));
    let committer = Arc::new(Committer::start(journal, durability, last, Arc::clone(&core))?);
    let views = Arc::new(Views::default());
    let applied = Arc::new(Applied::new(ticker.clone(), watermark, applied_end));
    let flusher = Flusher {
        core: Arc::clone(&core),
        store: Arc::clone(&store),
        committer: Arc::clone(&committer),
        log: log.clone(),
        letters: letters.clone(),
        views: Arc::clone(&views),
        cursors: cursors.clone(),
        applied: Arc::clone(&applied),
        progress: tenure.progress,
        source: Source::new(recovered),
        refused: Cell::new(Seq::ZERO),
        answered: Cell::new(0),
    };
    let (runtime, thread) = run_flusher(flusher)?;
    let lifeline_store = Arc::clone(&store);
    let reads = Arc::new(Reads {
        core: Arc::clone(&core),
        store: RwLock::new(Some(store)),
        log: log.clone(),
        letters: letters.clone(),
        runtime: runtime.clone(),
    });
    let changes = match (&log, &cursors) {
        (Some(log), Some(cursors)) => Some(Arc::new(ChangeSource {
            core: Arc::clone(&core),
            log: Arc::clone(log),
            letters: letters.clone(),
            cursors: Arc::clone(cursors),
            applied,
            runtime: runtime.clone(),
        })),
        _ => None,
    };
    let (flusher, tasks) = (Mutex::new(Some(thread)), Tasks::new(runtime.clone()));
    let turns = Turns::default();
    let (lifeline, follower) = match part {
        Part::Follower(follow) => {
            let parts = (&core, &reads, &views);
            (None, Some(Follower::start(follow, parts, ticker.clone(), &tenure, &tasks)?))
        }
        Part::Owner { has_ear } => {
            (has_ear.then(|| Lifeline::start(lifeline_store, Arc::clone(&core), &tasks)), None)
        }
    };
    Ok(Arc::new(Layer {
        core,
        reads,
        tasks,
        ticker,
        committer,
        log,
        letters,
        cursors,
        changes,
        publishers: Publishers::default(),
        views,
        turns,
        lifeline,
        follower,
        runtime,
        flusher,
    }))
}

/// Takes what the store lacks from the journal: keys and places into memory, values stay on the disk. Returns where it
/// begins, if there is any.
fn replay(log: &Arc<Log>, pending: &PendingView, progress: Progress) -> Result<Option<Location>> {
    let mut reader = log.read_after(progress.applied);
    let (mut after, mut begins) = (progress.applied, None);
    let mut pending = pending.lock();
    while let Some(frame) = reader.next_frame()? {
        begins.get_or_insert(frame.location);
        let queued = QueuedFrame::read(&frame);
        pending.recover(&queued, after)?;
        after = queued.last();
    }
    Ok(begins)
}

/// Starts the flusher on a thread and a runtime of its own. The runtime also drives the layer's timers.
fn run_flusher(flusher: Flusher) -> Result<(Handle, FlusherThread)> {
    // Without a journal every writer waits for the flusher.
    let drains_behind = flusher.log.is_some();
    let runtime = clock::runtime().map_err(|error| Error::io("starting the layer's runtime", error))?;
    let handle = runtime.handle().clone();
    let (stop, mut stopped) = watch::channel(false);
    let thread = thread::Builder::new()
        .name("forebay-flush".into())
        .spawn(move || {
            if drains_behind {
                priority::give_way();
            }
            runtime.block_on(async {
                // A sender that is gone means a layer that is gone, which is a stop as well.
                let stop = async { drop(stopped.wait_for(|stop| *stop).await) };
                tokio::pin!(stop);
                tokio::select! {
                    biased;
                    () = &mut stop => return,
                    () = flusher.run() => {}
                }
                stop.await;
            });
            runtime
        })
        .map_err(|error| Error::io("starting the flusher's thread", error))?;
    Ok((handle, FlusherThread { stop, thread }))
}

/// Runs blocking work off the caller's runtime, which may be missing.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let (sender, done) = tokio::sync::oneshot::channel();
    thread::Builder::new()
        .name("forebay-open".into())
        .spawn(move || drop(sender.send(work())))
        .map_err(|error| Error::io("starting the thread that opens the layer", error))?;
    done.await.map_err(|_| Error::new(ErrorKind::Damaged, "opening the layer panicked"))?
}
