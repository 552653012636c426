//! What is seen from outside of a layer: its files, and what the system counts of the process.

use std::fs::{self, File};
use std::hint::black_box;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// How many bytes a journal's segments have, and how long it takes to read and to check them.
pub(crate) fn read_and_check(journal: &Path) -> Result<(u64, Duration)> {
    let mut buffer = vec![0; 1 << 20];
    let (mut bytes, begun) = (0, Instant::now());
    for entry in fs::read_dir(journal)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "seg") {
            continue;
        }
        let mut file = File::open(&path)?;
        let mut crc = 0;
        loop {
            let read = file.read(&mut buffer)?;
            let Some(some) = buffer.get(..read).filter(|some| !some.is_empty()) else { break };
            crc = crc32c::crc32c_append(crc, some);
            bytes += read as u64;
        }
        black_box(crc);
    }
    Ok((bytes, begun.elapsed()))
}

/// How long the files of a directory are together.
pub(crate) fn bytes_in(directory: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(directory)? {
        bytes += entry?.metadata()?.len();
    }
    Ok(bytes)
}

/// How many bytes this process has handed over in calls that write. (What the kernel counts as made dirty is whole
/// folios, of up to a mebibyte here, of which the disk gets a block.)
pub(crate) fn bytes_written() -> Result<u64> {
    let text = fs::read_to_string("/proc/self/io").context("this needs Linux")?;
    let written = text.lines().find_map(|line| line.strip_prefix("wchar:"));
    Ok(written.context("no wchar in /proc/self/io")?.trim().parse()?)
}
