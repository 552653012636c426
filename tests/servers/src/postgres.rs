//! A Postgres server of a test's own: in a temporary directory, on a free loopback port, gone with the test.
//!
//! The server needs `initdb` and `postgres` (Debian's package `postgresql`); without them the tests fail and say so.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use forebay::PostgresServer;
use tempfile::TempDir;
use tokio_postgres::{Client, NoTls};

/// The role that may do everything, with a password, so that an error could give it away.
pub const USER: &str = "keeper";
pub const PASSWORD: &str = "open-sesame-93";
/// The time that a server may take to start, or to recover.
const START_PATIENCE: Duration = Duration::from_secs(60);
const READY: &str = "database system is ready to accept connections";
const PORT_TRIES: usize = 5;

/// A server that runs, unless it was killed.
pub struct Postgres {
    directory: TempDir,
    port: u16,
    process: Option<Process>,
    _template: Arc<Template>,
}

struct Process {
    child: Child,
    /// Its log, line by line.
    log: Mutex<Receiver<String>>,
}

/// A database cluster that `initdb` has made, copied for each server.
struct Template(TempDir);

static TEMPLATE: Mutex<Weak<Template>> = Mutex::new(Weak::new());

impl Postgres {
    /// Starts a server with these settings (`name=value`).
    pub fn start_with(settings: &[&str]) -> Postgres {
        Postgres::made(|_| settings.iter().map(ToString::to_string).collect())
    }

    /// Starts one that speaks TLS with this certificate and its key, to those who ask for it.
    pub fn start_with_tls(certificate: &Path, key: &Path) -> Postgres {
        Postgres::made(|directory| {
            let own = |from: &Path, name: &str| {
                let path = directory.join(name);
                fs::copy(from, &path).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
                give_away(&path);
                format!("'{}'", path.display())
            };
            let certificate = format!("ssl_cert_file={}", own(certificate, "certificate.pem"));
            vec!["ssl=on".to_owned(), certificate, format!("ssl_key_file={}", own(key, "key.pem"))]
        })
    }

    /// Starts one with the settings that this makes of its directory.
    fn made(settings: impl FnOnce(&Path) -> Vec<String>) -> Postgres {
        let template = Template::shared();
        let directory = owned_directory();
        copy(&template.0.path().join("data"), &directory.path().join("data"));
        let own = directory.path().join("data/postgresql.auto.conf");
        let lines: Vec<String> = settings(directory.path()).iter().map(|line| format!("{line}\n")).collect();
        fs::write(&own, lines.concat()).unwrap();
        give_away(&own);
        let mut server = Postgres { directory, port: 0, process: None, _template: template };
        for tried in 1.. {
            server.port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            match server.try_run() {
                Ok(()) => return server,
                // Somebody else may have taken the port in between.
                Err(log) if tried == PORT_TRIES => panic!("the Postgres server does not start: {log}"),
                Err(_) => {}
            }
        }
        unreachable!("the loop ends");
    }

    pub fn start() -> Postgres {
        Postgres::start_with(&[])
    }

    /// Starts it again on what is there.
    pub fn run(&mut self) {
        assert!(self.process.is_none(), "it runs already");
        if let Err(log) = self.try_run() {
            panic!("the Postgres server does not start again: {log}");
        }
    }

    fn try_run(&mut self) -> Result<(), String> {
        let mut command = as_server(&binary("postgres"));
        let directory = self.directory.path();
        command.arg("-D").arg(directory.join("data"));
        for setting in [
            "listen_addresses=127.0.0.1".to_owned(),
            format!("port={}", self.port),
            format!("unix_socket_directories={}", directory.display()),
            "fsync=on".to_owned(),
            // In its directory, which goes with the server: what it has elsewhere outlives a kill.
            "dynamic_shared_memory_type=mmap".to_owned(),
            "shared_buffers=16MB".to_owned(),
            "max_connections=60".to_owned(),
            "max_prepared_transactions=4".to_owned(),
            "log_min_messages=warning".to_owned(),
            "lc_messages=C".to_owned(),
        ] {
            command.arg("-c").arg(setting);
        }
        let mut child = command
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = lines_of(BufReader::new(child.stderr.take().unwrap()));
        let process = Process { child, log: Mutex::new(log) };
        let mut told = Vec::new();
        loop {
            match process.next_line() {
                Ok(line) if line.contains(READY) => break,
                Ok(line) => told.push(line),
                Err(why) => {
                    process.kill();
                    return Err(format!("{why}: {}", told.join("\n")));
                }
            }
        }
        self.process = Some(process);
        Ok(())
    }

    /// Ends it at once, as `kill -9` of all its processes does; what the disk has stays.
    pub fn kill(&mut self) {
        self.process.take().expect("it runs").kill();
    }

    /// Ends it as an operator does who wants no client to go on.
    pub fn stop(&mut self) {
        let process = self.process.take().expect("it runs");
        signal("INT", process.child.id());
        process.wait();
    }

    /// A copy of what it has on the disk, as a backup makes it.
    pub fn copy(&self) -> PathBuf {
        assert!(self.process.is_none(), "it runs");
        let copied = self.directory.path().join("copied");
        copy(&self.directory.path().join("data"), &copied);
        copied
    }

    /// Puts such a copy in the place of what it has.
    pub fn set_back(&self, copied: &Path) {
        assert!(self.process.is_none(), "it runs");
        let data = self.directory.path().join("data");
        fs::remove_dir_all(&data).unwrap();
        copy(copied, &data);
    }

    /// Holds all its processes up, until [`Postgres::thaw`].
    pub fn freeze(&self) {
        self.each_process("STOP");
    }

    pub fn thaw(&self) {
        self.each_process("CONT");
    }

    fn each_process(&self, name: &str) {
        let parent = self.process.as_ref().expect("it runs").child.id();
        let children = children_of(parent);
        // The parent first, so that it starts no other.
        signal(name, parent);
        children.iter().for_each(|child| signal(name, *child));
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// A new database.
    pub async fn database(&self, name: &str) -> String {
        let client = self.client("postgres").await;
        client.batch_execute(&format!("CREATE DATABASE \"{name}\"")).await.unwrap();
        name.to_owned()
    }

    /// Returns the server as the crate reaches a database of it.
    pub fn server(&self, database: &str) -> PostgresServer {
        PostgresServer::parse(&self.url(USER, PASSWORD, database)).unwrap()
    }

    pub fn url(&self, user: &str, password: &str, database: &str) -> String {
        format!("postgres://{user}:{password}@127.0.0.1:{}/{database}", self.port)
    }

    /// A connection past the crate.
    pub async fn client(&self, database: &str) -> Client {
        let url = self.url(USER, PASSWORD, database);
        let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
        }
    }
}

impl Process {
    /// Kills it and what it started, and waits until all of them have gone.
    fn kill(mut self) {
        let children = children_of(self.child.id());
        self.child.kill().unwrap();
        // The parent is gone before they are, so none is started any more.
        self.child.wait().unwrap();
        children.iter().for_each(|child| signal("KILL", *child));
        self.wait_for_log();
    }

    fn next_line(&self) -> Result<String, RecvTimeoutError> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).recv_timeout(START_PATIENCE)
    }

    fn wait(mut self) {
        self.child.wait().unwrap();
        self.wait_for_log();
    }

    /// Each of its processes holds the log open: the end of it is the end of the last of them.
    fn wait_for_log(self) {
        loop {
            match self.next_line() {
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => panic!("a process of the Postgres server does not end"),
            }
        }
    }
}

impl Template {
    fn shared() -> Arc<Template> {
        let mut known = TEMPLATE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(template) = known.upgrade() {
            return template;
        }
        let directory = owned_directory();
        let password = directory.path().join("password");
        fs::write(&password, PASSWORD).unwrap();
        give_away(&password);
        let made = as_server(&binary("initdb"))
            .arg("-D")
            .arg(directory.path().join("data"))
            .args(["--username", USER, "--auth", "scram-sha-256", "--encoding", "UTF8", "--no-locale"])
            .arg("--pwfile")
            .arg(&password)
            .arg("--no-sync")
            .current_dir(directory.path())
            .output()
            .unwrap();
        assert!(made.status.success(), "initdb failed: {}", String::from_utf8_lossy(&made.stderr));
        let template = Arc::new(Template(directory));
        *known = Arc::downgrade(&template);
        template
    }
}

/// The newest one that is installed.
fn binary(name: &str) -> PathBuf {
    let mut found: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().path())
        .filter_map(|path| {
            let version = path.file_name()?.to_str()?.parse().ok()?;
            let binary = path.join("bin").join(name);
            binary.is_file().then_some((version, binary))
        })
        .collect();
    found.sort();
    let Some((_, binary)) = found.pop() else {
        panic!("no {name} in /usr/lib/postgresql/*/bin: install a Postgres server (Debian: postgresql)");
    };
    binary
}

/// Postgres refuses to run as root, and needs not.
fn as_server(binary: &Path) -> Command {
    if !is_root() {
        return Command::new(binary);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "postgres", "--regid", "postgres", "--clear-groups"]).arg(binary);
    command
}

fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

/// A temporary directory of the server's.
fn owned_directory() -> TempDir {
    let directory = tempfile::Builder::new().prefix("forebay-postgres-").tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700)).unwrap();
    give_away(directory.path());
    directory
}

fn give_away(path: &Path) {
    if !is_root() {
        return;
    }
    let ids: Vec<u32> = ["-u", "-g"]
        .iter()
        .map(|which| {
            let output = Command::new("id").args([which, "postgres"]).output().unwrap();
            assert!(output.status.success(), "there is no user postgres to run the server as");
            String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
        })
        .collect();
    chown(path, Some(ids[0]), Some(ids[1])).unwrap();
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("--archive").arg(from).arg(to).status().unwrap();
    assert!(status.success(), "copying {}", from.display());
}

fn signal(name: &str, process: u32) {
    // One that has ended by itself meanwhile needs no signal.
    drop(
        Command::new("kill").arg(format!("-{name}")).arg(process.to_string()).stderr(Stdio::null()).status(),
    );
}

fn children_of(process: u32) -> Vec<u32> {
    let path = format!("/proc/{process}/task/{process}/children");
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().map(|child| child.parse().unwrap()).collect()
}

fn lines_of(reader: impl BufRead + Send + 'static) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in reader.lines().map_while(Result::ok) {
            // Read on though nobody listens, so that the server never waits for it.
            drop(sender.send(line));
        }
    });
    lines
}
