//! Observations from outside of a layer: its files, and the system's counters of the process.

use std::fs::{self, File};
use std::hint::black_box;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// The size of a read.
const WINDOW_BYTES: usize = 1 << 20;
const SEGMENT_HEADER_BYTES: usize = 4096;
const FRAME_HEADER_BYTES: usize = 56;

/// The size of a journal's segments, and the time that it takes to read and to check them.
pub(crate) fn read_and_check(journal: &Path) -> Result<(u64, Duration)> {
    let mut buffer = vec![0; WINDOW_BYTES];
    let (mut bytes, begun) = (0, Instant::now());
    for path in segments(journal)? {
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

/// Measures how long it takes to read a journal's segments and to check what they have checksums for: each frame's
/// header and each frame's body. Tells how many bytes the frames have, too.
pub(crate) fn read_and_check_frames(journal: &Path) -> Result<(u64, Duration)> {
    let mut buffer = vec![0; WINDOW_BYTES];
    let (mut bytes, begun) = (0, Instant::now());
    for path in segments(journal)? {
        let file = File::open(&path)?;
        let (mut start, mut len, mut at) = (0, file.read_at(&mut buffer, 0)?, SEGMENT_HEADER_BYTES);
        loop {
            match buffer.get(at..len).and_then(sound_frame) {
                Some(frame) => {
                    at += frame;
                    bytes += frame as u64;
                }
                // It may go on behind what was read.
                None if at > 0 && len == buffer.len() => {
                    start += at as u64;
                    len = file.read_at(&mut buffer, start)?;
                    at = 0;
                }
                None => break,
            }
        }
        // What is behind them is read, too.
        start += len as u64;
        while file.read_at(&mut buffer, start)? > 0 {
            start += buffer.len() as u64;
        }
    }
    Ok((bytes, begun.elapsed()))
}

/// The length of the frame that `bytes` begin with, padding included, if both of its checksums hold.
fn sound_frame(bytes: &[u8]) -> Option<usize> {
    let (header, rest) = bytes.split_at_checked(FRAME_HEADER_BYTES)?;
    let (crc, fields) = header.split_first_chunk()?;
    let (body_len, behind) = fields.split_first_chunk()?;
    let body_crc = behind.first_chunk()?;
    if crc32c::crc32c(fields) != u32::from_le_bytes(*crc) {
        return None;
    }
    let body = rest.get(..u32::from_le_bytes(*body_len) as usize)?;
    let sound = crc32c::crc32c(body) == u32::from_le_bytes(*body_crc);
    sound.then(|| FRAME_HEADER_BYTES + body.len().next_multiple_of(8))
}

/// Has the system forget what it holds of a journal's segments, so that the next to read them has to ask the disk.
pub(crate) fn forget_cached(journal: &Path) -> Result<()> {
    for path in segments(journal)? {
        File::open(&path)?.sync_all()?;
        let mut dd = Command::new("dd");
        dd.arg(format!("if={}", path.display())).args(["iflag=nocache", "count=0", "status=none"]);
        ensure!(dd.status().context("starting dd")?.success(), "dd cannot empty the page cache of {path:?}");
    }
    Ok(())
}

fn segments(journal: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(journal)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "seg") {
            paths.push(path);
        }
    }
    Ok(paths)
}

/// Returns the total length of the files of a directory.
pub(crate) fn bytes_in(directory: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(directory)? {
        bytes += entry?.metadata()?.len();
    }
    Ok(bytes)
}

/// Returns the bytes that this process has handed over in calls that write. (What the kernel counts as made dirty is
/// whole folios, of up to a mebibyte here, of which the disk gets a block.)
pub(crate) fn bytes_written() -> Result<u64> {
    let text = fs::read_to_string("/proc/self/io").context("this needs Linux")?;
    let written = text.lines().find_map(|line| line.strip_prefix("wchar:"));
    Ok(written.context("no wchar in /proc/self/io")?.trim().parse()?)
}
