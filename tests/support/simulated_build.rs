//! The build of the tests on simulated threads.

use std::path::Path;
use std::process::Command;

/// Sets the flags of the build with simulated threads, and its directory: nothing of the other build fits.
pub fn simulated(cargo: &mut Command) {
    cargo.args(["--package", "forebay"]);
    // What simulates threads is run for minutes.
    cargo.args(["--config", "profile.dev.package.'*'.opt-level = 1"]);
    cargo.env("RUSTFLAGS", "--cfg forebay_mutation --cfg forebay_simulation");
    cargo.env("CARGO_TARGET_DIR", Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("simulation"));
}
