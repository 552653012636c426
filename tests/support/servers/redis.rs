//! A Redis server that syncs every write.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::certificates::Certificates;
use super::process::{Process, Recipe};

pub struct RedisServer {
    data: TempDir,
    how: How,
    process: Option<Process>,
    port: u16,
}

#[derive(Default)]
struct How {
    password: Option<String>,
    tls: Option<Certificates>,
}

impl Recipe for How {
    fn program(&self) -> &str {
        "redis-server"
    }

    fn arguments(&self, port: u16, data: &Path) -> Vec<String> {
        let directory = data.to_str().unwrap();
        let mut arguments: Vec<String> =
            ["--bind", "127.0.0.1", "--dir", directory, "--save", "", "--appendonly", "yes"]
                .map(String::from)
                .into();
        arguments.extend(["--appendfsync", "always", "--daemonize", "no"].map(String::from));
        if let Some(password) = &self.password {
            arguments.extend(["--requirepass".into(), password.clone()]);
        }
        let port = port.to_string();
        match &self.tls {
            None => arguments.extend(["--port".into(), port]),
            Some(tls) => {
                arguments.extend(["--port", "0", "--tls-auth-clients", "no"].map(String::from));
                let files = [
                    ("--tls-port", port),
                    ("--tls-cert-file", tls.certificate()),
                    ("--tls-key-file", tls.key()),
                    ("--tls-ca-cert-file", tls.authority()),
                ];
                arguments.extend(files.into_iter().flat_map(|(option, value)| [option.into(), value]));
            }
        }
        arguments
    }

    fn greeting(&self) -> &[u8] {
        b"PING\r\n"
    }

    fn answers(&self, answer: &[u8]) -> bool {
        // With TLS whatever is no handshake ends the connection.
        self.tls.is_some() || answer.starts_with(b"+PONG") || answer.starts_with(b"-NOAUTH")
    }
}

impl RedisServer {
    pub fn start() -> RedisServer {
        RedisServer::start_as(How::default())
    }

    pub fn with_password(password: &str) -> RedisServer {
        RedisServer::start_as(How { password: Some(password.into()), tls: None })
    }

    pub fn with_tls(tls: Certificates) -> RedisServer {
        RedisServer::start_as(How { password: None, tls: Some(tls) })
    }

    fn start_as(how: How) -> RedisServer {
        let data = tempfile::tempdir().unwrap();
        let process = Process::start(&how, data.path());
        let port = process.port;
        RedisServer { data, how, process: Some(process), port }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        let scheme = if self.how.tls.is_some() { "rediss" } else { "redis" };
        let password = self.how.password.as_ref().map(|password| format!(":{password}@"));
        format!("{scheme}://{}127.0.0.1:{}", password.unwrap_or_default(), self.port)
    }

    pub fn process(&self) -> &Process {
        self.process.as_ref().unwrap()
    }

    /// Ends it as a service manager does.
    pub fn terminate(&mut self) {
        self.process.take().unwrap().terminate();
    }

    pub fn kill(&mut self) {
        self.process.take().unwrap().kill();
    }

    /// Starts it again on the same port, over what its data are now.
    pub fn start_again(&mut self) {
        self.process = Some(Process::start_on(&self.how, self.data.path(), self.port));
    }

    /// Takes the data away from a server that does not run.
    pub fn forget_everything(&self) {
        assert!(self.process.is_none(), "it runs");
        fs::remove_dir_all(self.data.path().join("appendonlydir")).unwrap();
    }

    /// Copies the data, in a state to which [`RedisServer::fall_back`] returns.
    pub fn save(&self) -> TempDir {
        let saved = tempfile::tempdir().unwrap();
        copy(&self.data.path().join("appendonlydir"), saved.path());
        saved
    }

    /// Brings a server that does not run back to what it had been, as one whose last writes were not synced.
    pub fn fall_back(&self, saved: &TempDir) {
        self.forget_everything();
        copy(saved.path(), &self.data.path().join("appendonlydir"));
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}
