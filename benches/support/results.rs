//! The directory for the figures of a benchmark, and for what it writes while it measures.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Makes `target/forebay` at the top of the repository, on the disk that the repository is on: a temporary directory
/// may be in memory.
pub(crate) fn directory() -> Result<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target").join("forebay");
    std::fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
    Ok(path)
}
