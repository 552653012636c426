//! Opens a layer: validates the options, claims the store, replays the journal, starts the threads.
//!
//! Nothing is written before it is certain that this journal and this store belong together. An existing journal is
//! always replayed, whatever the caches' policies are. It is read once: records that the store lacks enter the pending
//! view while the frames are checked, and the view is used only if all frames are sound.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;

use crate::disk::contract::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::feed::changes::ChangeSource;
use crate::feed::follow::Follow;
use crate::feed::follower::Follower;
use crate::feed::publisher::Publishers;
use crate::feed::tasks::Tasks;
use crate::flush::applied::ApplyHistory;
use crate::flush::batching::Batcher;
use crate::flush::flusher::Flusher;
use crate::flush::parking::Parking;
use crate::ids::{Seq, TenureId};
use crate::journal::committer::Committer;
use crate::journal::cursors::Cursors;
use crate::journal::frame::Location;
use crate::journal::options::JournalOptions;
use crate::journal::recovery::{self, CheckOptions, Opened};
use crate::journal::scan::JournalFiles;
use crate::layer::history::JournalHistory;
use crate::layer::layer::{FlusherThread, Layer};
use crate::layer::ownership::{Heartbeat, OnOwned, Role, await_turn};
use crate::memory::views::Views;
use crate::options::LayerOptions;
use crate::queue::dead_letters::DeadLetters;
use crate::queue::inbox::PendingView;
use crate::queue::key_locks::KeyLocks;
use crate::queue::lookup::Lookup;
use crate::queue::pending::Pending;
use crate::queue::queued::QueuedFrame;
use crate::queue::spilled::{UnappliedRecords, Unjournaled};
use crate::queue::state::Core;
use crate::safeguard::Safeguard;
use crate::seam::clock::{self, Handle, Ticker};
use crate::seam::priority;
use crate::seam::span::Span;
use crate::seam::sync::{Mutex, RwLock, thread};
use crate::store::contract::{Batch, Claim, OwnerStatus, Standing, Store, StoreError};

/// More numbers than a journal may have given behind the store's watermark: the queue holds at most half as many
/// records.
const LOST_NUMBERS_MAX: u64 = 1 << 32;

/// The role of a layer whose store has been read.
enum StartRole {
    Owner { supports_heartbeat: bool },
    Follower(Follow),
}

/// Opens a layer.
///
/// # Errors
/// A bad option; a journal that is locked, damaged, of an unknown format, or of another store; a failure of the store.
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
    let standing = store.standing().await.map_err(StoreError::into_error)?;
    let claim = Claim::new(None)?;
    // The journal is read before the claim, so that a damaged journal leaves a live owner undisturbed. Records that
    // this owner applies meanwhile are removed from the backlog below.
    let journal = match &options.journal_dir {
        Some(dir) => {
            let (disk, dir, journal) = (Arc::clone(&disk), dir.clone(), options.journal_options.clone());
            let (hash_mask, replace) = (options.sizes.spilled_hash_mask, options.replace_journal);
            let check = CheckOptions::default();
            let opening = move || {
                refuse_new_journal(&*disk, &dir, &standing, replace)?;
                open_journal(disk, &dir, &journal, claim.tenure, &check, standing.progress.applied, hash_mask)
            };
            Some(blocking(opening).await?)
        }
        None => None,
    };
    // Before the claim: a claim fences a live owner, which an opening with the wrong journal must not do.
    check_identity(&standing, journal.as_ref(), options.replace_journal)?;
    let claim = Claim { journal: journal.as_ref().map(|(journal, _)| journal.id), ..claim };
    let before = store.claim(&claim).await.map_err(StoreError::into_error)?;
    // What the claim answers decides: until then the store could be written to, or replaced.
    let refeed_until = check_identity(&before, journal.as_ref(), options.replace_journal)?;
    if before.progress.applied < standing.progress.applied {
        let context = format!(
            "the store went back from record {} to {} while the layer opened; open it again",
            standing.progress.applied, before.progress.applied
        );
        return Err(Error::new(ErrorKind::WentBack, context));
    }
    let mut standing = before.claimed(&claim).map_err(StoreError::into_error)?;
    skip_lost_numbers(&*store, &before, &mut standing, journal.as_ref().map(|(journal, _)| journal)).await?;
    let supports_heartbeat =
        store.owner_status().await.map_err(StoreError::into_error)? != OwnerStatus::Unknown;
    let part = StartRole::Owner { supports_heartbeat };
    blocking(move || {
        let journal = match journal {
            Some((journal, backlog)) => {
                let backlog = backlog.without_applied(&standing, &journal)?;
                Some((journal, backlog))
            }
            None => None,
        };
        start(store, options, disk, ticker, (standing, refeed_until), journal, part)
    })
    .await
}

/// Opens a layer that follows the store's owner. It does not claim the store and has no journal.
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
    let standing = store.standing().await.map_err(StoreError::into_error)?;
    let part = StartRole::Follower(follow);
    blocking(move || start(store, options, disk, ticker, (standing, None), None, part)).await
}

/// Refuses an opening that would make a new journal beside a store that was fed from another one, before anything is
/// made: most likely the path is wrong.
fn refuse_new_journal(disk: &dyn Disk, dir: &Path, standing: &Standing, replace: bool) -> Result<()> {
    let Some(id) = standing.journal.filter(|_| !replace) else { return Ok(()) };
    match disk.list(dir) {
        Ok(_) if !JournalFiles::read(disk, dir)?.segments.is_empty() => return Ok(()),
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::io(format!("looking for the journal in {}", dir.display()), error)),
    }
    let context = format!(
        "the store was fed from journal {id} up to record {}, and there is no journal in {}: the path is wrong, or the \
         journal was lost, with whatever was queued there; accept that with replace_journal(true)",
        standing.progress.journaled,
        dir.display()
    );
    Err(Error::new(ErrorKind::WrongJournal, context))
}

/// Checks that store and journal belong together. Returns the number up to which the store has to be fed again, if it
/// went back.
fn check_identity(
    standing: &Standing,
    journal: Option<&(Opened, Backlog)>,
    replace: bool,
) -> Result<Option<Seq>> {
    match (journal, standing.journal) {
        (Some((journal, backlog)), _) => {
            JournalHistory::of(journal, &backlog.unjournaled).compare(standing, replace)
        }
        (None, Some(id)) if !replace => Err(Error::new(
            ErrorKind::WrongJournal,
            format!(
                "the store was fed from journal {id}, which may hold writes that the store lacks, and the layer was \
                 opened without a journal; open it with that journal once more, or accept its loss with \
                 replace_journal(true)"
            ),
        )),
        (None, _) => Ok(None),
    }
}

/// Moves the store's watermark behind all numbers that a lost journal may have given, and its journaled watermark to
/// the end of the new one.
///
/// Otherwise a number could be given twice, and the next opening would take the new journal for one that has lost its
/// end.
async fn skip_lost_numbers(
    store: &dyn Store,
    before: &Standing,
    standing: &mut Standing,
    journal: Option<&Opened>,
) -> Result<()> {
    let last = journal.map_or(Seq::ZERO, |journal| journal.last);
    let is_replaced = before.journal.is_some() && before.journal != standing.journal;
    if !is_replaced && standing.progress.journaled <= last {
        return Ok(());
    }
    let until = standing.progress.applied.plus(LOST_NUMBERS_MAX);
    let batch = Batch { journaled: last, ..standing.next_batch(until, Vec::new()) };
    store.apply(&batch).await.map_err(StoreError::into_error)?;
    *standing = standing.after(&batch);
    Ok(())
}

fn start(
    store: Arc<dyn Store>,
    options: LayerOptions,
    disk: Arc<dyn Disk>,
    ticker: Ticker,
    (standing, refeed_until): (Standing, Option<Seq>),
    journal: Option<(Opened, Backlog)>,
    part: StartRole,
) -> Result<Arc<Layer>> {
    let watermark = standing.progress.applied;
    let pending = PendingView::new(options.pending_memory_bytes_max, ticker.clone());
    let cursors = match (&options.journal_dir, &journal) {
        (Some(dir), Some((journal, _))) => {
            let (disk, bytes_max) = (Arc::clone(&disk), options.changes_bytes_max);
            // Nothing may be trimmed for a cursor before the first apply says what is to be kept.
            Some(Arc::new(Cursors::open(disk, dir, journal.id, Seq::ZERO, bytes_max)?))
        }
        _ => None,
    };
    // Numbers go on after both ends: write-throughs have numbers that the journal may not hold.
    let (mut last, mut recovered, mut applied_end) = (watermark, Seq::ZERO, None);
    let journal = journal.map(|(journal, backlog)| {
        recovered = journal.last;
        last = match Safeguard::NumbersNeverReused.holds() {
            true => last.max(journal.last),
            false => journal.last,
        };
        applied_end = backlog.begins.or(journal.log.end());
        *pending.lock() = backlog.pending;
        journal
    });
    let letters = match &options.journal_dir {
        Some(dir) => {
            let records_max = options.dead_letter_records_max;
            let letters =
                DeadLetters::open(disk, dir, options.sizes.letter_segment_bytes, watermark, records_max)?;
            // Reads show parked values, and later writes of their keys have to be parked behind them.
            letters.add_to(&mut pending.lock());
            Some(Arc::new(letters))
        }
        None => None,
    };
    pending.lock().start_at(last, ticker.now());
    let durability = options.durability;
    let tells = options.changes || store.has_change_feed();
    let sizes = options.sizes;
    let core = Arc::new(Core::new(options, standing.tenure, watermark, refeed_until, pending));
    let log = journal.as_ref().map(|journal| Arc::clone(&journal.log));
    if let Some(log) = &log {
        log.note_applied(watermark);
    }
    let journal = journal.map(|journal| (journal.log, journal.writer));
    let committer = Arc::new(Committer::start(journal, durability, last, Arc::clone(&core))?);
    let views = Arc::new(Views::new(sizes.memory));
    let applied = Arc::new(ApplyHistory::new(ticker.clone(), watermark, applied_end));
    let flusher = Flusher {
        core: Arc::clone(&core),
        store: Arc::clone(&store),
        committer: Arc::clone(&committer),
        log: log.clone(),
        cursors: cursors.clone(),
        applied: Arc::clone(&applied),
        parking: Parking::new(Arc::clone(&core), letters.clone(), Arc::clone(&views)),
        batcher: Batcher::new(Arc::clone(&core), log.clone(), recovered, tells),
        progress: standing.progress,
        batch: standing.batch,
        refused: Vec::new(),
        answered: 0,
    };
    let (runtime, thread) = run_flusher(flusher)?;
    let heartbeat_store = Arc::clone(&store);
    let reads = Arc::new(Lookup {
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
    let key_locks = KeyLocks::new(core.options.sizes.key_locks);
    let (heartbeat, follower) = match part {
        StartRole::Follower(follow) => {
            let parts = (&core, &reads, &views);
            (None, Some(Follower::start(follow, parts, ticker.clone(), &standing, &tasks)?))
        }
        StartRole::Owner { supports_heartbeat } => {
            (supports_heartbeat.then(|| Heartbeat::start(heartbeat_store, Arc::clone(&core), &tasks)), None)
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
        key_locks,
        heartbeat,
        follower,
        runtime,
        flusher,
    }))
}

/// The records of a journal that the store lacked when its watermark was read.
#[derive(Default)]
struct Backlog {
    pending: Pending,
    /// The place of the first of them in the journal, if there is one.
    begins: Option<Location>,
    /// The watermark that the store returned.
    applied: Seq,
    /// The numbers behind it that the journal does not hold.
    unjournaled: Unjournaled,
}

/// Opens a journal, and collects the records after `applied` while its frames are checked.
///
/// Memory holds the keys' hashes and places; values stay on disk. The result may be used only once the store is known
/// to be the one of this journal.
fn open_journal(
    disk: Arc<dyn Disk>,
    dir: &Path,
    options: &JournalOptions,
    tenure: TenureId,
    check: &CheckOptions,
    applied: Seq,
    hash_mask: u64,
) -> Result<(Opened, Backlog)> {
    let nothing = UnappliedRecords::after(applied, hash_mask);
    let (opened, parts) =
        recovery::open_visiting(disk, dir, options, tenure, check, |before| nothing.empty_part(before))?;
    let mut found = parts.into_iter().try_fold(nothing, UnappliedRecords::with)?;
    let (begins, unjournaled) = (found.begins, std::mem::take(&mut found.unjournaled));
    Ok((opened, Backlog { pending: Pending::recovered(found), begins, applied, unjournaled }))
}

impl Backlog {
    /// Removes the records that the store took between the reading of its watermark and the claim.
    ///
    /// The previous owner's last apply may have been under way then.
    fn without_applied(mut self, standing: &Standing, journal: &Opened) -> Result<Backlog> {
        let applied = standing.progress.applied;
        if applied <= self.applied || self.begins.is_none() {
            return Ok(self);
        }
        self.begins = None;
        // The backlog has hashes and no keys, so the frames are read again to remove theirs.
        let mut reader = journal.log.read_after(self.applied);
        while let Some(frame) = reader.next_frame()? {
            if frame.last() > applied {
                self.begins = Some(frame.location);
                break;
            }
            self.pending.drop_recovered(&QueuedFrame::read(&frame))?;
        }
        Ok(self)
    }
}

/// Starts the flusher on a thread and a runtime of its own. The runtime also drives the layer's timers.
fn run_flusher(flusher: Flusher) -> Result<(Handle, FlusherThread)> {
    // Without a journal every writer waits for the flusher, so it keeps its priority.
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
                // The sender is dropped only with the layer, so a closed channel is a stop as well.
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

/// Runs blocking work on a thread of its own, since the caller may have no runtime.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let (sender, done) = tokio::sync::oneshot::channel();
    thread::Builder::new()
        .name("forebay-open".into())
        .spawn(move || drop(sender.send(work())))
        .map_err(|error| Error::io("starting the thread that opens the layer", error))?;
    done.await.map_err(|_| Error::new(ErrorKind::Damaged, "opening the layer panicked"))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::os::OsDisk;
    use crate::disk::simulated::SimDisk;
    use crate::ids::{Key, NamespaceName};
    use crate::journal::frame::FrameBuilder;
    use crate::journal::survey::Survey;
    use crate::journal::writer::GroupFrame;
    use crate::options::LayerSizes;
    use crate::queue::pending::PendingLookup;
    use crate::queue::record::{Operation, push};
    use crate::store::contract::{Progress, claimed};
    use crate::store::memory::MemoryStore;

    fn key(number: u64) -> Key {
        Key::new(&NamespaceName::parse("n").unwrap(), &number.to_le_bytes()).unwrap()
    }

    fn options() -> JournalOptions {
        JournalOptions { segment_bytes: 64 << 10, zero_fill: false, recycle: true, spares_max: 0 }
    }

    fn open_after(disk: &SimDisk, applied: u64) -> Result<(Opened, Backlog)> {
        let (check, hash_mask) = (CheckOptions::eager(), LayerSizes::COLLIDING.spilled_hash_mask);
        let (disk, dir) = (Arc::new(disk.clone()), Path::new("journal"));
        open_journal(disk, dir, &options(), TenureId::default(), &check, Seq(applied), hash_mask)
    }

    /// A journal with `count` frames of one record, each of a key of its own, and where they lie.
    fn journal(disk: &SimDisk, count: u64, last: FrameBuilder) -> Vec<Location> {
        journal_in(Arc::new(disk.clone()), Path::new("journal"), count, last)
    }

    fn journal_in(disk: Arc<dyn Disk>, dir: &Path, count: u64, last: FrameBuilder) -> Vec<Location> {
        let mut opened = recovery::open(disk, dir, &options(), TenureId::default()).unwrap();
        let frames = (1..=count).map(|seq| {
            let mut body = FrameBuilder::new();
            push(&mut body, Operation::Put, true, key(seq).as_bytes(), &[7; 500]).unwrap();
            GroupFrame { first: Seq(seq), body: body.finish() }
        });
        let mut frames: Vec<GroupFrame> = frames.collect();
        frames.push(GroupFrame { first: Seq(count + 1), body: last.finish() });
        let mut written = Vec::new();
        opened.writer.append(&frames, &mut written).unwrap();
        opened.writer.close().unwrap();
        written
    }

    fn sound(seq: u64) -> FrameBuilder {
        let mut body = FrameBuilder::new();
        push(&mut body, Operation::Remove, true, key(seq).as_bytes(), b"").unwrap();
        body
    }

    fn places(backlog: &mut Backlog, number: u64) -> Vec<Location> {
        let PendingLookup { candidates, .. } = backlog.pending.find(&key(number), None);
        candidates
    }

    #[test]
    fn one_pass_finds_what_lies_behind_the_watermark() {
        let disk = SimDisk::new();
        let written = journal(&disk, 299, sound(300));
        let (opened, mut backlog) = open_after(&disk, 120).unwrap();
        assert!(written.last().unwrap().segment > 1 && opened.last == Seq(300));
        assert_eq!(backlog.begins, Some(written[120]));
        assert_eq!(backlog.pending.size().records, 180);
        assert_eq!(backlog.pending.spilled(), Some((Seq(120), Seq(300))));
        for seq in 121..=300 {
            assert!(places(&mut backlog, seq).contains(&written[seq as usize - 1]) || seq < 290, "{seq}");
        }
        assert!(places(&mut backlog, 120).iter().all(|place| *place > written[119]));
    }

    /// An older owner's apply was on its way when the store was asked how far it is, and had landed when the store was
    /// claimed.
    #[test]
    fn what_the_store_took_before_it_was_claimed_is_not_pending() {
        let disk = SimDisk::new();
        let written = journal(&disk, 299, sound(300));
        for (applied, records) in [(100, 200), (250, 50), (300, 0), (400, 0)] {
            let (opened, backlog) = open_after(&disk, 100).unwrap();
            let progress = Progress { applied: Seq(applied), journaled: Seq(applied.min(300)) };
            let standing = Standing { progress, ..Standing::default() };
            let mut backlog = backlog.without_applied(&standing, &opened).unwrap();
            assert_eq!(backlog.pending.size().records, records, "applied up to {applied}");
            assert_eq!(backlog.pending.size().bytes == 0, records == 0);
            assert_eq!(backlog.begins, written.get(applied as usize).copied());
            let spilled = (records > 0).then_some((Seq(applied), Seq(300)));
            assert_eq!(backlog.pending.spilled(), spilled);
            let before = written.get(applied as usize - 1).copied();
            let none_before = |place: &Location| before.is_some_and(|before| *place > before);
            assert!((1..=300).all(|seq| places(&mut backlog, seq).iter().all(none_before)));
        }
    }

    /// Here keys share sixteen fragments of hashes, so frames of other keys lie between those of a key: more than one
    /// search returns.
    #[test]
    fn every_key_of_a_backlog_is_read_though_other_keys_share_its_fragment() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Arc::new(OsDisk);
        journal_in(Arc::clone(&disk) as Arc<dyn Disk>, dir.path(), 299, sound(7));
        let options = LayerOptions {
            journal_dir: Some(dir.path().to_owned()),
            journal_options: options(),
            // All of it stays pending.
            batch_linger: std::time::Duration::from_secs(60),
            batch_records_max: 1_000_000,
            sizes: LayerSizes::COLLIDING,
            ..LayerOptions::default()
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (store, role) = (Arc::new(MemoryStore::new()), Role::Owner(OnOwned::TakeOver));
        // Without a claim the store would be one that the journal does not belong to.
        let id = Survey::open(Arc::clone(&disk) as Arc<dyn Disk>, dir.path()).unwrap().id();
        runtime.block_on(claimed(&*store, id));
        let layer = runtime.block_on(open(store, options, disk, Ticker::default(), role)).unwrap();
        for number in 1..=400 {
            let answer = runtime.block_on(layer.reads.load(&key(number))).unwrap();
            let there = (1..=299).contains(&number) && number != 7;
            assert_eq!(answer.value.map(|value| value.version), there.then_some(Seq(number)), "{number}");
            assert_eq!(answer.pending, number < 300, "{number}");
        }
    }

    /// Its checksums hold, so somebody wrote it, but no record of a layer is in it.
    #[test]
    fn a_sound_frame_without_sound_records_is_told_with_its_place() {
        let disk = SimDisk::new();
        let mut junk = FrameBuilder::new();
        junk.push(&[b"junk"]).unwrap();
        let written = journal(&disk, 5, junk);
        let error = open_after(&disk, 0).err().expect("it is refused");
        assert_eq!(error.kind(), ErrorKind::Damaged);
        let place = format!("damaged at byte {}", written[5].offset);
        assert!(format!("{error:#}").contains(&place), "{error}");
        assert!(open_after(&disk, 6).is_ok(), "what the store has is not looked at");
    }
}
