//! Builds and runs the tests on simulated threads. They need `--cfg forebay_simulation`, with which nothing but
//! simulated threads works, so that one build cannot hold both.

use std::path::Path;
use std::process::Command;

use crate::support::simulated_build::simulated;

/// Passes `FOREBAY_BUDGET` and `FOREBAY_SEED` on to them. They write to this test's own output.
#[test]
fn tests_on_simulated_threads_pass() {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["test", "--test", "simulation"]);
    simulated(&mut cargo);
    cargo.arg("--manifest-path").arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"));
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    let status = cargo.status().expect("cargo can be started");
    assert!(status.success(), "see the output of the tests above: {status}");
}
