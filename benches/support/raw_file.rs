//! The file of the bare system calls: written once beforehand, so that a sync changes data only, as in a journal's
//! segment.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result};

/// The size of the file: that of a journal segment.
const FILE_BYTES: u64 = 16 << 20;

pub(crate) struct RawFile {
    file: File,
    written: AtomicU64,
}

impl RawFile {
    /// # Errors
    /// There is one already; it cannot be written.
    pub(crate) fn create(path: &Path) -> Result<RawFile> {
        let file = File::create_new(path).with_context(|| format!("making {}", path.display()))?;
        // In pieces as small as a journal's: what the page cache keeps in larger ones takes longer to write.
        let zeros = vec![0; 64 << 10];
        for at in (0..FILE_BYTES).step_by(zeros.len()) {
            file.write_all_at(&zeros, at)?;
        }
        file.sync_all()?;
        Ok(RawFile { file, written: AtomicU64::new(0) })
    }

    /// One `pwrite`, behind what was written last, as in a log, and at the start again where the file would grow.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn write(&self, bytes: &[u8]) -> Result<()> {
        let length = bytes.len() as u64;
        let place = self.written.fetch_add(length, Ordering::Relaxed) % FILE_BYTES;
        let fits = place + length <= FILE_BYTES;
        Ok(self.file.write_all_at(bytes, if fits { place } else { 0 })?)
    }

    /// # Errors
    /// The system's.
    pub(crate) fn sync(&self) -> Result<()> {
        Ok(self.file.sync_data()?)
    }
}
