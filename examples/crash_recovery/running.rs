//! A child process as the parent sees it: started under limits, listened to, stopped, killed.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use crate::history::Id;

/// A child that is not ready by then hangs; and one that was told to end and does not.
pub(crate) const ANSWERS_WITHIN: Duration = Duration::from_secs(60);

/// A line from a child.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    Ready,
    Acknowledged(Id, u64),
    /// A write was refused for want of room and is tried again.
    Full,
    /// The child's last words.
    Failed(String),
}

impl Line {
    fn parse(text: &str) -> Result<Line> {
        if text == "ready" {
            return Ok(Line::Ready);
        }
        if text == "full" {
            return Ok(Line::Full);
        }
        if let Some(why) = text.strip_prefix("failed: ") {
            return Ok(Line::Failed(why.to_owned()));
        }
        let mut fields = text.split(' ').map(str::parse::<u64>);
        match (fields.next(), fields.next(), fields.next(), fields.next()) {
            (Some(Ok(thread)), Some(Ok(counter)), Some(Ok(seq)), None) => {
                Ok(Line::Acknowledged(Id { thread: usize::try_from(thread)?, counter }, seq))
            }
            _ => bail!("the child said {text:?}"),
        }
    }
}

/// The output of a child that has ended.
#[derive(Default)]
pub(crate) struct Said {
    pub(crate) ready: bool,
    pub(crate) acknowledged: Vec<(Id, u64)>,
    pub(crate) full: u64,
    pub(crate) failed: Option<String>,
}

impl Said {
    fn add(&mut self, line: Line) {
        match line {
            Line::Ready => self.ready = true,
            Line::Acknowledged(id, seq) => self.acknowledged.push((id, seq)),
            Line::Full => self.full += 1,
            // The first one is the cause; other threads follow.
            Line::Failed(why) => drop(self.failed.get_or_insert(why)),
        }
    }
}

/// A child that is alive, or was a moment ago. It ends with this.
pub(crate) struct Running {
    child: Child,
    reader: Option<JoinHandle<Result<Said>>>,
    news: Receiver<Line>,
}

impl Running {
    /// Starts `command`, which speaks through a pipe. A line is one short write to it, so it arrives wholly or not.
    pub(crate) fn start(mut command: Command) -> Result<Running> {
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("starting {command:?}"))?;
        let out = child.stdout.take().context("the child has no pipe")?;
        let (tell, news) = channel();
        let reader = thread::spawn(move || listen(out, &tell));
        Ok(Running { child, reader: Some(reader), news })
    }

    /// Waits for `wanted` among the news. `false`: the child ended before it came.
    pub(crate) fn wait_for(&mut self, wanted: impl Fn(&Line) -> bool) -> Result<bool> {
        self.wait_while(wanted, ANSWERS_WITHIN, || Ok(()))
    }

    /// As [`Running::wait_for`], and does `meanwhile` once at the start and after each `interval`.
    pub(crate) fn wait_while(
        &mut self,
        wanted: impl Fn(&Line) -> bool,
        interval: Duration,
        mut meanwhile: impl FnMut() -> Result<()>,
    ) -> Result<bool> {
        let until = Instant::now() + ANSWERS_WITHIN;
        loop {
            meanwhile()?;
            let next = Instant::now() + interval;
            loop {
                match self.news.recv_timeout(next.saturating_duration_since(Instant::now())) {
                    Ok(line) if wanted(&line) => return Ok(true),
                    Ok(_) => {}
                    Err(RecvTimeoutError::Timeout) => break,
                    Err(RecvTimeoutError::Disconnected) => return Ok(false),
                }
            }
            ensure!(Instant::now() < until, "the child did not go on within {ANSWERS_WITHIN:?}");
        }
    }

    /// Forgets the lines that have come so far.
    pub(crate) fn forget(&mut self) {
        while self.news.try_recv().is_ok() {}
    }

    /// As [`Running::wait_for`] the child to have opened its layer, for a child that nothing keeps from it.
    pub(crate) fn wait_ready(&mut self) -> Result<()> {
        if self.wait_for(|line| *line == Line::Ready)? {
            return Ok(());
        }
        bail!("the child ended before it was ready: {}", self.child.wait()?)
    }

    /// Lets the child live for so long: the moment of the kill is what is random here. `false`: it ended.
    pub(crate) fn lives_for(&mut self, time: Duration) -> Result<bool> {
        thread::sleep(time);
        Ok(self.child.try_wait()?.is_none())
    }

    /// SIGKILL: nothing of the child runs any more.
    pub(crate) fn kill(mut self) -> Result<Said> {
        self.child.kill().context("killing the child")?;
        Ok(self.end()?.1)
    }

    fn end(&mut self) -> Result<(ExitStatus, Said)> {
        let status = self.child.wait()?;
        let reader = self.reader.take().context("a child ends once")?;
        Ok((status, reader.join().map_err(|_| anyhow!("the child's reader panicked"))??))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only for a child that is gone.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Reads what a child says until it is dead.
fn listen(out: ChildStdout, tell: &Sender<Line>) -> Result<Said> {
    let mut said = Said::default();
    let mut lines = BufReader::new(out);
    let mut text = String::new();
    loop {
        text.clear();
        if lines.read_line(&mut text).context("reading from the child")? == 0 {
            return Ok(said);
        }
        let Some(text) = text.strip_suffix('\n') else { bail!("the child said half a line: {text:?}") };
        let line = Line::parse(text)?;
        // Nobody may listen any more.
        drop(tell.send(line.clone()));
        said.add(line);
    }
}

/// A child that speaks into a file, so that it is known what it had said when it was stopped.
pub(crate) struct Stoppable {
    child: Child,
    said: PathBuf,
}

impl Stoppable {
    pub(crate) fn start(mut command: Command, said: &Path) -> Result<Stoppable> {
        let out = File::create(said).with_context(|| format!("making {}", said.display()))?;
        let child = command.stdin(Stdio::null()).stdout(out).spawn().context("starting the child")?;
        Ok(Stoppable { child, said: said.to_owned() })
    }

    /// Waits until the child has opened its layer.
    pub(crate) fn wait_ready(&mut self) -> Result<()> {
        let until = Instant::now() + ANSWERS_WITHIN;
        while !self.said()?.ready {
            if let Some(status) = self.child.try_wait()? {
                bail!("the child ended before it was ready: {status}, {:?}", self.said()?.failed);
            }
            ensure!(Instant::now() < until, "the child was not ready within {ANSWERS_WITHIN:?}");
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// SIGSTOP, and waits until each of its threads stands. Returns what it had said by then.
    pub(crate) fn stop(&mut self) -> Result<Said> {
        if let Some(status) = self.child.try_wait()? {
            bail!("the child ended by itself: {status}, {:?}", self.said()?.failed);
        }
        self.signal("STOP")?;
        let until = Instant::now() + ANSWERS_WITHIN;
        while !self.stands()? {
            ensure!(Instant::now() < until, "the child could not be stopped within {ANSWERS_WITHIN:?}");
            thread::yield_now();
        }
        self.said()
    }

    /// SIGCONT, and waits for its end.
    pub(crate) fn go_on_until_it_ends(&mut self) -> Result<(ExitStatus, Said)> {
        self.signal("CONT")?;
        let until = Instant::now() + ANSWERS_WITHIN;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok((status, self.said()?));
            }
            ensure!(Instant::now() < until, "the child did not end within {ANSWERS_WITHIN:?}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn signal(&self, name: &str) -> Result<()> {
        let status = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status();
        ensure!(status.context("running kill")?.success(), "SIG{name} could not be sent");
        Ok(())
    }

    fn stands(&self) -> Result<bool> {
        let mut all = true;
        for thread in std::fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let stat = std::fs::read_to_string(thread?.path().join("stat"))?;
            // The name before the state is in brackets, and may hold some itself.
            let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
            all &= state == Some('T');
        }
        Ok(all)
    }

    fn said(&self) -> Result<Said> {
        let mut said = Said::default();
        let text = std::fs::read_to_string(&self.said)?;
        // What is being written while this reads may end in the middle.
        for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
            said.add(Line::parse(line)?);
        }
        Ok(said)
    }
}

impl Drop for Stoppable {
    fn drop(&mut self) {
        // Both fail only for a child that is gone.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
