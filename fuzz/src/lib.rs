//! The bodies of the fuzz targets: each takes any bytes and panics if a promise is broken.
//!
//! `fuzz_targets/` hands them to libFuzzer; `tests/replay.rs` runs the corpus through them on a stable compiler. All of
//! them work on the public interface and a simulated disk.

mod codec;
mod frames;
mod options;
mod recovery;
pub mod seeds;

pub use codec::codec;
pub use frames::frames;
pub use options::options;
pub use recovery::recovery;

/// A target's body.
pub type Target = fn(&[u8]);

/// Every target by name, which is also its folder in the corpus.
pub const TARGETS: [(&str, Target); 4] =
    [("frames", frames), ("recovery", recovery), ("codec", codec), ("options", options)];
