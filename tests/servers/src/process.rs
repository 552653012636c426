//! One server's process.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// The time that a server may take to come up, or to go.
const PATIENCE: Duration = Duration::from_secs(20);
/// The interval of the checks whether a server has come up, or is gone.
const LOOK: Duration = Duration::from_millis(10);
/// The number of ports that may turn out to be somebody else's.
const PORTS_TRIED: usize = 5;

/// The start of a server, and the sign that it answers.
pub trait Recipe {
    /// The program's name.
    fn program(&self) -> &str;
    /// Its arguments, on this port with its data in this directory.
    fn arguments(&self, port: u16, data: &Path) -> Vec<String>;
    /// The first bytes that a new connection gets.
    fn greeting(&self) -> &[u8];
    /// True if this is how a server begins that answers.
    fn answers(&self, answer: &[u8]) -> bool;
    /// Where below its directory the server keeps what it was told.
    fn kept(&self) -> &str;
    /// True if that can be copied while the server runs: only files that are appended to.
    fn is_saved_while_it_runs(&self) -> bool;
}

/// A server that runs, and is killed when this is dropped.
pub struct Process {
    child: Child,
    pub port: u16,
}

impl Process {
    /// Starts a server on a free port, and waits until it answers.
    pub fn start(recipe: &dyn Recipe, data: &Path) -> Process {
        for _ in 0..PORTS_TRIED {
            // Free now, and unlikely to be taken in a moment; if it is, another one is tried.
            let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
            if let Some(process) = Process::try_start(recipe, data, port) {
                return process;
            }
        }
        panic!("{} does not come up; it says:\n{}", recipe.program(), log(data));
    }

    /// Starts a server on this port, and waits until it answers.
    pub fn start_on(recipe: &dyn Recipe, data: &Path, port: u16) -> Process {
        Process::try_start(recipe, data, port)
            .unwrap_or_else(|| panic!("{} does not come up again; it says:\n{}", recipe.program(), log(data)))
    }

    fn try_start(recipe: &dyn Recipe, data: &Path, port: u16) -> Option<Process> {
        fs::create_dir_all(data).unwrap();
        let output = fs::File::options().create(true).append(true).open(data.join("log")).unwrap();
        let mut command = Command::new(recipe.program());
        // Debian has servers where only the administrator's PATH leads.
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{path}:/usr/local/sbin:/usr/sbin:/sbin"));
        command.args(recipe.arguments(port, data)).stdin(Stdio::null());
        command.stdout(output.try_clone().unwrap()).stderr(output);
        let child = command.spawn().unwrap_or_else(|error| {
            let program = recipe.program();
            panic!("{program} cannot be started: {error}; `bash .ci/install {program}` installs it")
        });
        let mut process = Process { child, port };
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if process.child.try_wait().unwrap().is_some() {
                return None;
            }
            if answer(port, recipe.greeting()).is_ok_and(|answer| recipe.answers(&answer)) {
                return Some(process);
            }
            thread::sleep(LOOK);
        }
        panic!("{} does not answer; it says:\n{}", recipe.program(), log(data));
    }

    /// Asks it to end, and waits until it has.
    pub fn terminate(mut self) {
        self.signal("TERM");
        let begun = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            assert!(begun.elapsed() < PATIENCE, "the server on port {} does not end", self.port);
            thread::sleep(LOOK);
        }
    }

    /// Kills it, and waits until it is gone.
    pub fn kill(mut self) -> ExitStatus {
        self.child.kill().unwrap();
        self.child.wait().unwrap()
    }

    /// Stops it where it stands; its connections stay.
    pub fn pause(&self) {
        self.signal("STOP");
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(sent.unwrap().success(), "signal {name} was not sent");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may be gone already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn answer(port: u16, greeting: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(greeting)?;
    let mut answer = vec![0; 64];
    // Who ends the connection has answered as well.
    let length = stream.read(&mut answer).unwrap_or(0);
    answer.truncate(length);
    Ok(answer)
}

fn log(data: &Path) -> String {
    fs::read_to_string(data.join("log")).unwrap_or_default()
}
