//! A server with its data, which can be ended, started again, and brought back to what it had been.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::process::{Process, Recipe};

/// A server of some kind; it runs, unless it was ended.
pub struct Server<H> {
    pub(crate) how: H,
    data: TempDir,
    process: Option<Process>,
    port: u16,
}

impl<H: Recipe> Server<H> {
    pub(crate) fn start_as(how: H) -> Server<H> {
        let data = tempfile::tempdir().unwrap();
        let process = Process::start(&how, data.path());
        let port = process.port;
        Server { how, data, process: Some(process), port }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn process(&self) -> &Process {
        self.process.as_ref().unwrap()
    }

    pub(crate) fn runs(&self) -> bool {
        self.process.is_some()
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

    fn kept(&self) -> PathBuf {
        self.data.path().join(self.how.kept())
    }

    /// Takes the data away from a server that does not run.
    pub fn forget_everything(&self) {
        assert!(!self.runs(), "it runs");
        fs::remove_dir_all(self.kept()).unwrap();
    }

    /// Copies the data, in a state to which [`Server::fall_back`] returns.
    pub fn save(&self) -> TempDir {
        assert!(!self.runs() || self.how.is_saved_while_it_runs(), "it runs");
        let saved = tempfile::tempdir().unwrap();
        copy(&self.kept(), saved.path());
        saved
    }

    /// Brings a server that does not run back to what it had been, as one whose last writes were not synced.
    pub fn fall_back(&self, saved: &TempDir) {
        self.forget_everything();
        copy(saved.path(), &self.kept());
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
