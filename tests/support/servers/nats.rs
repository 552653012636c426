//! A NATS server with JetStream.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::certificates::Certificates;
use super::process::{Process, Recipe};

pub struct NatsServer {
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
        "nats-server"
    }

    fn arguments(&self, port: u16, data: &Path) -> Vec<String> {
        let mut arguments: Vec<String> = ["-a", "127.0.0.1", "-p"].map(String::from).into();
        arguments.extend([port.to_string(), "-js".into(), "-sd".into(), data.to_str().unwrap().into()]);
        if let Some(password) = &self.password {
            arguments.extend(["--user".into(), "bus".into(), "--pass".into(), password.clone()]);
        }
        if let Some(tls) = &self.tls {
            arguments.extend(["--tls".into(), "--tlscert".into(), tls.certificate()]);
            arguments.extend(["--tlskey".into(), tls.key()]);
        }
        arguments
    }

    fn greeting(&self) -> &[u8] {
        b""
    }

    fn answers(&self, answer: &[u8]) -> bool {
        answer.starts_with(b"INFO")
    }
}

impl NatsServer {
    pub fn start() -> NatsServer {
        NatsServer::start_as(How::default())
    }

    /// Of a user `bus` with this password.
    pub fn with_password(password: &str) -> NatsServer {
        NatsServer::start_as(How { password: Some(password.into()), tls: None })
    }

    pub fn with_tls(tls: Certificates) -> NatsServer {
        NatsServer::start_as(How { password: None, tls: Some(tls) })
    }

    fn start_as(how: How) -> NatsServer {
        let data = tempfile::tempdir().unwrap();
        let process = Process::start(&how, data.path());
        let port = process.port;
        NatsServer { data, how, process: Some(process), port }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        let scheme = if self.how.tls.is_some() { "tls" } else { "nats" };
        let user = self.how.password.as_ref().map(|password| format!("bus:{password}@"));
        format!("{scheme}://{}127.0.0.1:{}", user.unwrap_or_default(), self.port)
    }

    pub fn password(&self) -> String {
        self.how.password.clone().unwrap_or_default()
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

    fn store(&self) -> PathBuf {
        self.data.path().join("jetstream")
    }

    /// Takes the data away from a server that does not run.
    pub fn forget_everything(&self) {
        assert!(self.process.is_none(), "it runs");
        fs::remove_dir_all(self.store()).unwrap();
    }

    /// Copies the data of a server that does not run, in a state to which [`NatsServer::fall_back`] returns.
    pub fn save(&self) -> TempDir {
        assert!(self.process.is_none(), "it runs");
        let saved = tempfile::tempdir().unwrap();
        copy(&self.store(), saved.path());
        saved
    }

    /// Brings a server that does not run back to what it had been, as one whose last writes were not synced.
    pub fn fall_back(&self, saved: &TempDir) {
        self.forget_everything();
        copy(saved.path(), &self.store());
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()));
        } else {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}
