//! Equal conditions for all that are measured.

use std::fs::File;
use std::path::Path;

use anyhow::{Context as _, Result};

/// In which order so many take their turns in this round. Nobody comes always after the same: what the one before left
/// to do would be paid by the same one each time.
pub(crate) fn turns(count: usize, round: u64) -> Vec<usize> {
    let mut turns: Vec<usize> = (0..count).collect();
    fastrand::Rng::with_seed(round).shuffle(&mut turns);
    turns
}

/// Waits until the disk has all that was written, or whoever is next would wait for it.
pub(crate) fn sync_file_system(directory: &Path) -> Result<()> {
    let opened = File::open(directory).with_context(|| format!("opening {}", directory.display()))?;
    #[cfg(target_os = "linux")]
    rustix::fs::syncfs(&opened)?;
    #[cfg(not(target_os = "linux"))]
    opened.sync_all()?;
    Ok(())
}
