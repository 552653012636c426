//! The tests that need the feature `simulation`, built on their own and run: with it nothing but simulated threads
//! works, so one build cannot hold both. This is how `cargo test` has them all.

use std::path::Path;
use std::process::Command;

/// Passes `FOREBAY_BUDGET` and `FOREBAY_SEED` on to them. They write to this test's own output.
#[test]
fn tests_on_simulated_threads_pass() {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["test", "--features", "simulation"]);
    cargo.args(["--test", "simulation"]);
    cargo.arg("--manifest-path").arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"));
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    let status = cargo.status().expect("cargo can be started");
    assert!(status.success(), "see the output of the tests above: {status}");
}
