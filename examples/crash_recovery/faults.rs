//! The kinds of fault, a round of each.
//!
//! Each function leaves the children dead and the ledger up to date, for [`Arena::check`].

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;

use crate::arena::Arena;
use crate::layer::{Settings, StoreAt};
use crate::running::{Line, Running, Stoppable};
use crate::served::Server;

/// The longest time that a child writes before it is killed.
const WRITING_MAX: Duration = Duration::from_millis(400);
const WRITING_MIN: Duration = Duration::from_millis(5);
/// The file systems that fill up, in MiB.
const SMALL_DISK_MIB: u64 = 64;
/// The interval at which freed room is taken again.
const FILLING: Duration = Duration::from_millis(20);
/// More writes than an owner can make between its thaw and its learning that it is fenced.
const ZOMBIES_WRITES: u64 = 1_000_000;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Fault {
    /// SIGKILL at a random moment, recovery too.
    Kill,
    /// SIGSTOP, a second owner of the same store, SIGCONT: the first one must be fenced.
    Freeze,
    /// The journal's file system fills up, and has room again.
    DiskFull,
    /// The store's file system fills up: the layer ends, and its files go on once there is room.
    StoreFull,
    /// `ulimit -v`: so little address space that allocations and threads fail.
    Memory,
    /// `ulimit -n`: few descriptors.
    Descriptors,
}

/// Some children, each killed while it recovers or writes.
pub(crate) fn kill(arena: &mut Arena<'_>, ready: &mut Duration) -> Result<()> {
    loop {
        let before_ready = arena.random.below(3) == 0;
        let mut running = Running::start(arena.child(&arena.settings(), None)?)?;
        let lives = if before_ready {
            arena.time(Duration::ZERO, *ready)
        } else {
            let started = Instant::now();
            running.wait_ready()?;
            *ready = started.elapsed();
            arena.time(WRITING_MIN, WRITING_MAX)
        };
        let alive = running.lives_for(lives)?;
        let said = running.kill()?;
        ensure!(alive, "the child ended by itself: {:?}", said.failed);
        arena.totals.count("kills", true);
        arena.totals.count("of them before the child had finished to open its layer", !said.ready);
        arena.died(said)?;
        if arena.random.below(2) == 0 {
            return Ok(());
        }
    }
}

/// Children under a limit that they may die of, or be refused by, wherever they like. It is widened until one of them
/// had something acknowledged.
pub(crate) fn limited(arena: &mut Arena<'_>, fault: Fault) -> Result<()> {
    let (option, mut limit, step) = match fault {
        Fault::Descriptors => ("-n", 6 + arena.random.below(12), 3),
        _ => ("-v", (60 + arena.random.below(400)) << 10, 200 << 10),
    };
    loop {
        let mut command = arena.child(&arena.settings(), Some(&format!("{option} {limit}")))?;
        // It complains in many ways, which nobody needs unless something is lost.
        let complaints =
            File::options().create(true).append(true).open(arena.directory.join("complaints"))?;
        command.stderr(complaints);
        let mut running = Running::start(command)?;
        let lives = arena.time(WRITING_MIN, 2 * WRITING_MAX);
        let alive = running.lives_for(lives)?;
        let said = running.kill()?;
        let totals = &mut arena.totals;
        totals.count("could not open", !alive && !said.ready);
        totals.count("failed while they wrote", !alive && said.ready);
        totals.count("killed while they opened", alive && !said.ready);
        totals.count("killed while they wrote", alive && said.ready);
        let checks_something = !said.acknowledged.is_empty();
        arena.died(said)?;
        if checks_something {
            return Ok(());
        }
        limit += step;
    }
}

/// A frozen owner, a second one on a copy of its journal and on the same store, and the thaw of the first.
pub(crate) fn freeze(arena: &mut Arena<'_>) -> Result<()> {
    let socket = arena.directory.join("socket");
    let (old_journal, journal) = (arena.journal.clone(), arena.directory.join("journal.next"));
    let server = Server::start(&arena.store, &socket)?;
    let settings = |journal: &Path, arena: &Arena<'_>| Settings {
        store: StoreAt::Socket(socket.clone()),
        journal: journal.to_owned(),
        ..arena.settings()
    };
    let command = arena.child(&settings(&old_journal, arena), None)?;
    let mut old = Stoppable::start(command, &arena.directory.join("said"))?;
    old.wait_ready()?;
    std::thread::sleep(arena.time(WRITING_MIN, WRITING_MAX));
    let said = old.stop()?;
    ensure!(said.failed.is_none(), "the first owner failed: {:?}", said.failed);
    arena.died(said)?;
    // Its own counters go on when it is thawed: nothing that it writes then may look like the second owner's.
    arena.ledger.leave_out(ZOMBIES_WRITES);

    // The journal's lock is the frozen process's. A failover takes over from a copy of the files.
    copy_dir(&old_journal, &journal)?;
    let mut new = Running::start(arena.child(&settings(&journal, arena), None)?)?;
    new.wait_ready()?;
    let lives = arena.time(Duration::ZERO, WRITING_MAX / 2);
    let alive = new.lives_for(lives)?;
    let before = server.fenced();
    let (status, zombie) = old.go_on_until_it_ends()?;
    let told = zombie.failed.context("the first owner ended without a word")?;
    // A write-through that was under way is in doubt, for that same reason.
    ensure!(
        told.contains("another owner holds the store"),
        "the first owner ended with {status}, and said: {told}"
    );
    ensure!(server.fenced() > before, "nothing of the first owner's was refused by the store");
    let lives = arena.time(Duration::ZERO, WRITING_MAX / 2);
    let alive = alive && new.lives_for(lives)?;
    let said = new.kill()?;
    ensure!(alive, "the second owner ended by itself: {:?}", said.failed);
    arena.died(said)?;
    server.stop()?;
    fs::remove_dir_all(&old_journal)?;
    fs::rename(&journal, &old_journal)?;
    arena.totals.count("older owners thawed, fenced and told so", true);
    Ok(())
}

/// A child whose journal meets a full disk, and room again or its death.
pub(crate) fn disk_full(arena: &mut Arena<'_>, disk: &SmallDisk) -> Result<()> {
    let settings = Settings { stalls: true, ..arena.settings() };
    let mut running = Running::start(arena.child(&settings, None)?)?;
    running.wait_ready()?;
    let lives = arena.time(Duration::ZERO, WRITING_MAX / 2);
    let mut alive = running.lives_for(lives)?;
    // What the child's journal gives back meanwhile is taken as well.
    alive &= running.wait_while(|line| *line == Line::Full, FILLING, || disk.fill())?;
    let cleared = alive && arena.random.below(3) > 0;
    if cleared {
        disk.make_room()?;
        running.forget();
        alive &= running.wait_for(|line| matches!(line, Line::Acknowledged(..)))?;
    }
    let lives = arena.time(Duration::ZERO, WRITING_MAX);
    alive &= running.lives_for(lives)?;
    let said = running.kill()?;
    disk.make_room()?;
    ensure!(alive, "the child ended by itself on the full disk: {:?}", said.failed);
    arena.totals.count("times that a writer was told of the full disk", said.full);
    arena.totals.count("layers that went on by themselves once there was room", cleared);
    arena.totals.count("killed while the disk was full", !cleared);
    arena.died(said)
}

/// A child whose store meets a full disk. sled takes no more then, so the layer ends and says why.
pub(crate) fn store_full(arena: &mut Arena<'_>, disk: &SmallDisk) -> Result<()> {
    let mut running = Running::start(arena.child(&arena.settings(), None)?)?;
    running.wait_ready()?;
    let lives = arena.time(Duration::ZERO, WRITING_MAX / 2);
    ensure!(running.lives_for(lives)?, "the child ended by itself before the disk was full");
    disk.fill()?;
    running.wait_for(|line| matches!(line, Line::Failed(_)))?;
    let said = running.kill()?;
    disk.make_room()?;
    let told = said.failed.as_deref().context("the child ended without a word on the full disk")?;
    ensure!(told.contains("No space left"), "the child does not say that the disk is full: {told}");
    arena.totals.count("layers that ended on the full disk, and said so", true);
    arena.died(said)
}

/// A small file system of its own, in a namespace of its own: no privilege is needed where the kernel allows that.
pub(crate) struct SmallDisk {
    holder: Child,
    /// Where this process sees it.
    pub(crate) path: PathBuf,
}

impl SmallDisk {
    /// `Err`: the system does not let us.
    pub(crate) fn mount(at: &Path) -> Result<SmallDisk> {
        fs::create_dir_all(at)?;
        let script =
            format!("mount -t tmpfs -o size={SMALL_DISK_MIB}m forebay \"$0\" && echo mounted && exec cat");
        let mut holder = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script])
            .arg(at)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("running unshare")?;
        let mut line = String::new();
        let out = holder.stdout.take().context("the holder has no pipe")?;
        BufReader::new(out).read_line(&mut line)?;
        if line != "mounted\n" {
            let output = holder.wait_with_output()?;
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let root = PathBuf::from(format!("/proc/{}/root", holder.id()));
        let path = root.join(at.strip_prefix("/").context("a path from the root")?);
        let disk = SmallDisk { holder, path };
        disk.make_room().context("using the file system of the other namespace")?;
        Ok(disk)
    }

    /// Takes all the room there is.
    fn fill(&self) -> Result<()> {
        let mut ballast = File::options().create(true).append(true).open(self.path.join("ballast"))?;
        for block in [1 << 16, 1 << 12] {
            loop {
                match ballast.write_all(&vec![1; block]) {
                    Ok(()) => {}
                    Err(error) if error.kind() == std::io::ErrorKind::StorageFull => break,
                    Err(error) => return Err(error).context("filling the disk"),
                }
            }
        }
        Ok(())
    }

    fn make_room(&self) -> Result<()> {
        match fs::remove_file(self.path.join("ballast")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context("making room"),
            _ => Ok(()),
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // The file system goes with its namespace, and that with its last process.
        drop(self.holder.kill());
        drop(self.holder.wait());
    }
}

/// Copies a directory of files and directories.
pub(crate) fn copy_dir(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir(to).with_context(|| format!("making {}", to.display()))?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_dir(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target).with_context(|| format!("copying to {}", target.display()))?;
        }
    }
    Ok(())
}
