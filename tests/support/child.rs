//! A program of tests that runs itself again, for what needs a process of its own: a recorder or an allocator of the
//! whole process, its threads, its death, a trace of its system calls.

use std::process::{Command, Stdio};

/// Set for a test that [`alone`] runs in a process of its own.
const ALONE: &str = "FOREBAY_TEST_ALONE";

/// The arguments with which this program runs one ignored test and no other: a child that another test starts.
pub fn child_arguments(module: &str, name: &str) -> [String; 4] {
    ["--exact".into(), path(module, name), "--ignored".into(), "--nocapture".into()]
}

/// Runs the test of this module and name in a process of its own, where `body` is all that runs.
///
/// # Panics
/// If `body` panics there, or if `name` is not that of the test which calls this.
pub fn alone(module: &str, name: &str, body: impl FnOnce()) {
    let path = path(module, name);
    if std::env::var(ALONE).is_ok_and(|alone| alone == path) {
        return body();
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &path, "--nocapture"])
        .env(ALONE, &path)
        // What is said of a search that found nothing goes where this test would write it.
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(told.contains("running 1 test"), "{path} is no test: {told}");
    assert!(output.status.success(), "it failed in a process of its own: {told}");
}

/// The harness names a test by its path within the program.
fn path(module: &str, name: &str) -> String {
    let (_, module) = module.split_once("::").unwrap();
    format!("{module}::{name}")
}
