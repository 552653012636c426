//! Every submission is answered once, in order, and not before it is as durable as configured.

use std::io::ErrorKind as Io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::thread::{self, ThreadId};
use std::time::Duration;

use forebay::Seq;
use forebay::disk::{CrashPolicy, Disk, DiskOp, Fault, SimDisk};
use forebay::journal::committer::{Committed, Committer, Sink, Submission};
use forebay::journal::frame::{FrameBody, FrameBuilder};
use forebay::journal::{Durability, JournalOptions, recovery};
use forebay::store::TenureId;
use forebay::{Error, ErrorKind};

const DIR: &str = "/journal";
/// Segments are named by their number, spares are not.
const SEGMENT: &str = "0";
const DEADLINE: Duration = Duration::from_secs(20);
const NEVER: Durability = Durability::Buffered { sync_interval: Duration::from_secs(3600) };
const SOON: Durability = Durability::Buffered { sync_interval: Duration::from_millis(1) };

/// The behaviour of the sink.
#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Sound,
    /// Panics at the group that this ticket is in.
    PanicsAt(u64),
    Forgets,
}

struct Recorder {
    mood: Mood,
    told: Mutex<Told>,
    changed: Condvar,
}

#[derive(Default)]
struct Told {
    /// Ticket and first sequence number, in the order of telling.
    committed: Vec<(u64, u64)>,
    /// The thread that told it.
    committed_by: Vec<ThreadId>,
    refused: Vec<(u64, Error)>,
    poisoned: Vec<Error>,
}

impl Recorder {
    fn new(mood: Mood) -> Arc<Recorder> {
        Arc::new(Recorder { mood, told: Mutex::default(), changed: Condvar::new() })
    }

    /// Waits for `count` answered tickets and `poisoned` reports of poisoning; returns all that was reported.
    fn wait(&self, count: usize, poisoned: usize) -> std::sync::MutexGuard<'_, Told> {
        let told = self.told.lock().unwrap();
        let waiting = |told: &mut Told| {
            told.committed.len() + told.refused.len() < count || told.poisoned.len() < poisoned
        };
        let (told, waited) = self.changed.wait_timeout_while(told, DEADLINE, waiting).unwrap();
        assert!(
            !waited.timed_out(),
            "{} committed, {} refused of {count}",
            told.committed.len(),
            told.refused.len()
        );
        told
    }
}

impl Sink for Recorder {
    type Ticket = u64;

    fn committed(&self, group: &mut Vec<Committed<u64>>) {
        match self.mood {
            Mood::PanicsAt(ticket) if group.iter().any(|one| one.ticket == ticket) => {
                panic!("the sink fell over")
            }
            Mood::Forgets => return,
            _ => {}
        }
        let mut told = self.told.lock().unwrap();
        told.committed_by.extend(group.iter().map(|_| thread::current().id()));
        told.committed.extend(group.drain(..).map(|one| (one.ticket, one.frame.first.get())));
        self.changed.notify_all();
    }

    fn refused(&self, ticket: u64, error: &Error) {
        self.told.lock().unwrap().refused.push((ticket, error.clone()));
        self.changed.notify_all();
    }

    fn poisoned(&self, error: &Error) {
        self.told.lock().unwrap().poisoned.push(error.clone());
        self.changed.notify_all();
    }
}

fn options() -> JournalOptions {
    let mut options = JournalOptions::default();
    options.segment_bytes = 64 * 1024;
    options.spares_max = 0;
    options
}

fn open(disk: &SimDisk, durability: Durability, sink: &Arc<Recorder>) -> Committer<Recorder> {
    let opened =
        recovery::open(Arc::new(disk.clone()), Path::new(DIR), &options(), TenureId::default()).unwrap();
    Committer::start(Some((opened.log, opened.writer)), durability, opened.last, Arc::clone(sink)).unwrap()
}

fn body(bytes: usize) -> FrameBody {
    let mut builder = FrameBuilder::new();
    builder.push(&[&vec![b'x'; bytes]]).unwrap();
    builder.finish()
}

fn submission(ticket: u64) -> Submission<u64> {
    Submission { body: body(8), journaled: true, ticket }
}

fn submit(committer: &Committer<Recorder>, tickets: impl IntoIterator<Item = u64>) {
    tickets.into_iter().for_each(|ticket| committer.submit(submission(ticket)));
}

/// The first sequence numbers of the frames that a reopened journal holds.
fn frames(disk: &SimDisk) -> Vec<u64> {
    let opened =
        recovery::open(Arc::new(disk.clone()), Path::new(DIR), &options(), TenureId::default()).unwrap();
    let mut reader = opened.log.read_after(Seq::ZERO);
    std::iter::from_fn(|| reader.next_frame().unwrap())
        .filter(|frame| frame.count > 0)
        .map(|f| f.first.get())
        .collect()
}

#[test]
fn what_comes_while_a_group_syncs_is_one_group_and_nothing_is_told_before_its_sync() {
    let (disk, sink) = (SimDisk::new(), Recorder::new(Mood::Sound));
    let committer = open(&disk, Durability::Sync, &sink);
    let before = disk.syncs(SEGMENT);
    let gate = disk.hold_syncs(SEGMENT);
    submit(&committer, [1]);
    assert!(gate.wait_for(1));
    submit(&committer, 2..=100);
    // The first group is written, and its sync is held: whoever were told now could lose it.
    assert!(sink.told.lock().unwrap().committed.is_empty());
    assert!(frames(&disk.crash(CrashPolicy::OnlySynced)).is_empty());
    gate.open();
    let told = sink.wait(100, 0);
    assert_eq!(told.committed, (1..=100).map(|n| (n, n)).collect::<Vec<_>>());
    assert!(disk.syncs(SEGMENT) - before <= 2, "{} syncs", disk.syncs(SEGMENT) - before);
    assert_eq!(frames(&disk.crash(CrashPolicy::OnlySynced)), (1..=100).collect::<Vec<_>>());
}

/// To wake the thread and to be woken by it would cost a lone caller a good part of a sync.
#[test]
fn a_caller_that_may_block_and_is_alone_commits_for_itself_and_others_go_to_the_thread() {
    let (disk, sink) = (SimDisk::new(), Recorder::new(Mood::Sound));
    let committer = open(&disk, Durability::Sync, &sink);
    committer.submit_blocking(submission(1));
    assert_eq!(sink.told.lock().unwrap().committed_by, [thread::current().id()], "before it returned");
    assert_eq!(frames(&disk.crash(CrashPolicy::OnlySynced)), [1]);
    let gate = disk.hold_syncs(SEGMENT);
    let alone = thread::scope(|scope| {
        let committer = &committer;
        let alone = scope.spawn(move || {
            committer.submit_blocking(submission(2));
            thread::current().id()
        });
        assert!(gate.wait_for(1));
        // Neither waits for the disk, and the one who does writes nothing for them.
        committer.submit(submission(3));
        committer.submit_blocking(submission(4));
        assert_eq!(sink.told.lock().unwrap().committed.len(), 1);
        gate.open();
        alone.join().unwrap()
    });
    let told = sink.wait(4, 0);
    assert_eq!(told.committed, [(1, 1), (2, 2), (3, 3), (4, 4)]);
    assert_eq!(told.committed_by[1], alone);
    for by in &told.committed_by[2..] {
        assert!(*by != alone && *by != thread::current().id(), "the committer's thread");
    }
}

#[test]
fn a_failed_sync_ends_all_writing_and_everybody_is_told_what_they_can_know() {
    let fault = Fault::on(DiskOp::Sync).named(SEGMENT);
    for fault in [fault.clone(), fault.pages_reverted()] {
        let (disk, sink) = (SimDisk::new(), Recorder::new(Mood::Sound));
        let committer = open(&disk, Durability::Sync, &sink);
        submit(&committer, [0]);
        drop(sink.wait(1, 0));
        disk.plan(fault);
        let gate = disk.hold_syncs(SEGMENT);
        submit(&committer, [1]);
        assert!(gate.wait_for(1));
        submit(&committer, 2..=10);
        committer.submit(Submission { body: body(8), journaled: false, ticket: 11 });
        gate.open();
        drop(sink.wait(12, 1));
        // The disk would say that all is well now. It is not asked again.
        let (writes, syncs) = (disk.count(DiskOp::Write), disk.count(DiskOp::Sync));
        submit(&committer, [12]);
        assert_eq!(committer.sync().unwrap_err().kind(), ErrorKind::Poisoned);
        assert_eq!(committer.close().unwrap_err().kind(), ErrorKind::Poisoned);
        assert_eq!(committer.close().unwrap_err().kind(), ErrorKind::Poisoned);
        assert_eq!((disk.count(DiskOp::Write), disk.count(DiskOp::Sync)), (writes, syncs));

        let told = sink.wait(13, 1);
        assert_eq!(told.committed, [(0, 1)]);
        assert_eq!(told.poisoned.len(), 1);
        let tickets: Vec<u64> = told.refused.iter().map(|(ticket, _)| *ticket).collect();
        assert_eq!(tickets, (1..=12).collect::<Vec<_>>());
        for (ticket, error) in &told.refused {
            let sentence = format!("{error:#}");
            assert_eq!(error.kind(), ErrorKind::Poisoned);
            assert_eq!(sentence.starts_with("outcome unknown"), *ticket == 1, "{ticket}: {sentence}");
            assert!(sentence.contains("os error 5"), "names the first cause: {sentence}");
        }
    }
}

#[test]
fn a_failed_write_poisons_and_what_was_not_to_be_written_is_refused_for_certain() {
    let (disk, sink) = (SimDisk::new(), Recorder::new(Mood::Sound));
    let committer = open(&disk, Durability::Sync, &sink);
    let gate = disk.hold_syncs(SEGMENT);
    submit(&committer, [1]);
    assert!(gate.wait_for(1));
    disk.plan(Fault::on(DiskOp::Write));
    submit(&committer, [2]);
    committer.submit(Submission { body: body(8), journaled: false, ticket: 3 });
    gate.open();
    let told = sink.wait(3, 1);
    assert_eq!(told.committed, [(1, 1)]);
    assert!(format!("{:#}", told.refused[0].1).starts_with("outcome unknown"));
    assert!(format!("{:#}", told.refused[1].1).starts_with("refused and not written"));
}

#[test]
fn a_panicking_or_forgetful_sink_leaves_no_ticket_unanswered() {
    for durability in [Durability::Sync, NEVER] {
        for mood in [Mood::PanicsAt(3), Mood::Forgets] {
            let (disk, sink) = (SimDisk::new(), Recorder::new(mood));
            let committer = open(&disk, durability, &sink);
            let gate = disk.hold_syncs(SEGMENT);
            submit(&committer, [1]);
            assert!(durability == NEVER || gate.wait_for(1));
            submit(&committer, 2..=5);
            gate.open();
            drop(sink.wait(5, 1));
            submit(&committer, [6]);
            assert_eq!(committer.close().unwrap_err().kind(), ErrorKind::Poisoned);
            let told = sink.wait(6, 1);
            let mut answered: Vec<u64> = told.committed.iter().map(|(ticket, _)| *ticket).collect();
            answered.extend(told.refused.iter().map(|(ticket, _)| *ticket));
            assert_eq!(answered, [1, 2, 3, 4, 5, 6]);
            assert!(told.refused.iter().all(|(_, error)| error.kind() == ErrorKind::Poisoned));
            assert_eq!(told.poisoned.len(), 1);
            let cause = if mood == Mood::Forgets { "unanswered" } else { "the sink fell over" };
            assert!(format!("{:#}", told.poisoned[0]).contains(cause), "{:#}", told.poisoned[0]);
        }
    }
}

#[test]
fn close_commits_what_was_submitted_refuses_what_comes_later_and_lets_go() {
    for durability in [Durability::Sync, NEVER] {
        let (disk, sink) = (SimDisk::new(), Recorder::new(Mood::Sound));
        let committer = open(&disk, durability, &sink);
        let gate = disk.hold_syncs(SEGMENT);
        thread::scope(|scope| {
            submit(&committer, 1..=50);
            let closing = scope.spawn(|| committer.close());
            assert!(gate.wait_for(1));
            gate.open();
            closing.join().unwrap().unwrap();
        });
        submit(&committer, [51]);
        committer.close().unwrap();
        let told = sink.wait(51, 0);
        assert_eq!(told.committed, (1..=50).map(|n| (n, n)).collect::<Vec<_>>());
        assert_eq!(told.refused[0].1.kind(), ErrorKind::Closed);
        assert_eq!(frames(&disk.crash(CrashPolicy::OnlySynced)), (1..=50).collect::<Vec<_>>());
        // The lock is free although the committer still lives.
        assert_eq!(frames(&disk).len(), 50);
    }
}

#[test]
fn writers_go_on_while_the_periodic_sync_waits_for_the_disk() {
    let (disk, sink) = (SimDisk::new(), Recorder::new(Mood::Sound));
    let committer = open(&disk, SOON, &sink);
    let gate = disk.hold_syncs(SEGMENT);
    submit(&committer, [1]);
    assert!(gate.wait_for(1));
    submit(&committer, 2..=100);
    // The caller wrote itself: all is told by now, and a killed process loses nothing of it.
    assert_eq!(sink.told.lock().unwrap().committed.len(), 100);
    assert_eq!(frames(&disk.crash(CrashPolicy::ProcessKilled)).len(), 100);
    assert!(frames(&disk.crash(CrashPolicy::OnlySynced)).is_empty());
    gate.open();
    committer.sync().unwrap();
    assert_eq!(frames(&disk.crash(CrashPolicy::OnlySynced)).len(), 100);
}

#[test]
fn a_failed_periodic_sync_poisons() {
    let (disk, sink) = (SimDisk::new(), Recorder::new(Mood::Sound));
    let committer = open(&disk, SOON, &sink);
    disk.plan(Fault::on(DiskOp::Sync).named(SEGMENT));
    submit(&committer, [1]);
    drop(sink.wait(1, 1));
    submit(&committer, [2]);
    assert_eq!(committer.sync().unwrap_err().kind(), ErrorKind::Poisoned);
    let told = sink.wait(2, 1);
    assert_eq!(told.committed, [(1, 1)]);
    assert_eq!(told.refused[0].1.kind(), ErrorKind::Poisoned);
    assert!(format!("{:#}", told.refused[0].1).contains("os error 5"));
}

#[test]
fn a_full_disk_refuses_only_what_was_not_written_and_takes_no_numbers_for_it() {
    for durability in [Durability::Sync, NEVER] {
        let (disk, sink) = (SimDisk::new(), Recorder::new(Mood::Sound));
        let committer = open(&disk, durability, &sink);
        // A buffered caller writes itself, and would stand at the gate when the segment is changed.
        let gate = (durability == Durability::Sync).then(|| disk.hold_syncs(SEGMENT));
        submit(&committer, [1]);
        assert!(gate.as_ref().is_none_or(|gate| gate.wait_for(1)));
        disk.set_capacity(Some(disk.used_bytes()));
        // One group under `Sync`: it fits, bypasses, needs a new segment, bypasses.
        for (ticket, bytes, journaled) in
            [(2, 8, true), (3, 8, false), (4, 60_000, true), (5, 60_000, true), (6, 8, false)]
        {
            committer.submit(Submission { body: body(bytes), journaled, ticket });
        }
        drop(gate);
        let told = sink.wait(6, 0);
        assert_eq!(told.committed, [(1, 1), (2, 2), (3, 3), (4, 4), (6, 5)]);
        assert_eq!((told.refused[0].0, told.refused[0].1.kind()), (5, ErrorKind::DiskFull));
        drop(told);
        disk.heal();
        committer.submit(Submission { body: body(60_000), journaled: true, ticket: 7 });
        let told = sink.wait(7, 0);
        assert_eq!(told.committed.last(), Some(&(7, 6)));
        assert!(told.poisoned.is_empty());
        drop(told);
        committer.close().unwrap();
        // The holes are those of the writes that went past the journal.
        assert_eq!(frames(&disk), [1, 2, 4, 6]);
    }
}

#[test]
fn a_write_that_runs_out_of_room_clears_up_by_itself() {
    let (disk, sink) = (SimDisk::new(), Recorder::new(Mood::Sound));
    let committer = open(&disk, Durability::Sync, &sink);
    disk.plan(Fault::on(DiskOp::Write).named(SEGMENT).kind(Io::StorageFull).written(20));
    submit(&committer, [1]);
    drop(sink.wait(1, 0));
    submit(&committer, [2]);
    let told = sink.wait(2, 0);
    assert_eq!(
        (told.refused[0].1.kind(), told.committed.as_slice()),
        (ErrorKind::DiskFull, [(2, 1)].as_slice())
    );
    drop(told);
    committer.close().unwrap();
    assert_eq!(frames(&disk), [1]);
}

#[test]
fn without_a_journal_there_is_an_order_and_no_file() {
    let sink = Recorder::new(Mood::Sound);
    let committer = Committer::start(None, Durability::Sync, Seq::new(41), Arc::clone(&sink)).unwrap();
    committer.submit(Submission { body: body(8), journaled: false, ticket: 1 });
    committer.submit(Submission { body: body(8), journaled: true, ticket: 2 });
    committer.submit(Submission { body: FrameBuilder::new().finish(), journaled: false, ticket: 3 });
    committer.submit(Submission { body: body(8), journaled: false, ticket: 4 });
    committer.sync().unwrap();
    committer.close().unwrap();
    committer.submit(Submission { body: body(8), journaled: false, ticket: 5 });
    let told = sink.wait(5, 0);
    assert_eq!(told.committed, [(1, 42), (4, 43)]);
    let kinds: Vec<_> = told.refused.iter().map(|(ticket, error)| (*ticket, error.kind())).collect();
    assert_eq!(kinds, [(2, ErrorKind::Unsupported), (3, ErrorKind::Unsupported), (5, ErrorKind::Closed)]);
}

#[test]
fn writes_past_the_journal_need_no_disk_but_keep_their_place() {
    let (disk, sink) = (SimDisk::new(), Recorder::new(Mood::Sound));
    let committer = open(&disk, Durability::Sync, &sink);
    submit(&committer, [1]);
    drop(sink.wait(1, 0));
    let before = disk.operations();
    committer.submit(Submission { body: body(8), journaled: false, ticket: 2 });
    drop(sink.wait(2, 0));
    assert_eq!(disk.operations(), before);
    submit(&committer, [3]);
    assert_eq!(sink.wait(3, 0).committed, [(1, 1), (2, 2), (3, 3)]);
    drop(committer);
    assert_eq!(frames(&disk), [1, 3]);
    drop(disk.lock(&Path::new(DIR).join("lock")).unwrap());
}

/// Stands still inside `committed` until it is let go.
struct Slow {
    entered: mpsc::Sender<()>,
    go_on: Mutex<mpsc::Receiver<()>>,
    committed: Mutex<Vec<u64>>,
}

impl Sink for Slow {
    type Ticket = u64;

    fn committed(&self, group: &mut Vec<Committed<u64>>) {
        self.entered.send(()).unwrap();
        self.go_on.lock().unwrap().recv_timeout(DEADLINE).unwrap();
        self.committed.lock().unwrap().extend(group.drain(..).map(|one| one.ticket));
    }

    fn refused(&self, _: u64, error: &Error) {
        panic!("{error}");
    }

    fn poisoned(&self, _: &Error) {}
}

#[test]
fn the_caller_that_writes_also_writes_what_came_meanwhile_and_others_do_not_wait() {
    let disk = SimDisk::new();
    let (entered, was_entered) = mpsc::channel();
    let (go, go_on) = mpsc::channel();
    let sink = Arc::new(Slow { entered, go_on: Mutex::new(go_on), committed: Mutex::default() });
    let opened = recovery::open(Arc::new(disk), Path::new(DIR), &options(), TenureId::default()).unwrap();
    let journal = Some((opened.log, opened.writer));
    let committer = Committer::start(journal, NEVER, opened.last, Arc::clone(&sink)).unwrap();
    let submit = |ticket| committer.submit(Submission { body: body(8), journaled: true, ticket });
    thread::scope(|scope| {
        let leading = scope.spawn(|| submit(1));
        for ticket in 2..10 {
            was_entered.recv_timeout(DEADLINE).unwrap();
            // Returns at once, and nobody else will ever come to write it.
            submit(ticket);
            go.send(()).unwrap();
        }
        go.send(()).unwrap();
        leading.join().unwrap();
        assert_eq!(*sink.committed.lock().unwrap(), (1..10).collect::<Vec<_>>());
    });
}

#[test]
fn callers_that_combine_are_all_told_once_in_order_and_nobody_is_left_behind() {
    const THREADS: u64 = 8;
    const EACH: u64 = 500;
    for round in 0..20 {
        let (disk, sink) = (SimDisk::new(), Recorder::new(Mood::Sound));
        let durability = [SOON, NEVER, NEVER, Durability::Sync][round % 4];
        let committer = open(&disk, durability, &sink);
        thread::scope(|scope| {
            for thread in 0..THREADS {
                let committer = &committer;
                let tickets = (0..EACH).map(move |n| thread * EACH + n);
                scope.spawn(move || match thread % 2 {
                    0 => submit(committer, tickets),
                    _ => tickets.for_each(|ticket| committer.submit_blocking(submission(ticket))),
                });
            }
            // With NEVER nobody but the callers themselves can save one who is left behind.
            if durability != NEVER {
                scope.spawn(|| (0..50).for_each(|_| committer.sync().unwrap()));
            }
        });
        let all = THREADS * EACH;
        let told = sink.wait(usize::try_from(all).unwrap(), 0);
        let firsts: Vec<u64> = told.committed.iter().map(|(_, first)| *first).collect();
        assert_eq!(firsts, (1..=all).collect::<Vec<_>>());
        for thread in 0..THREADS {
            let own: Vec<u64> =
                told.committed.iter().map(|(ticket, _)| *ticket).filter(|t| t / EACH == thread).collect();
            assert_eq!(own, (thread * EACH..(thread + 1) * EACH).collect::<Vec<_>>(), "a caller's own order");
        }
        drop(told);
        committer.close().unwrap();
        assert_eq!(frames(&disk).len() as u64, all);
    }
}
