//! The machine that the figures were taken on, as far as the system describes it.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// The time at which the last rows were taken, UTC.
    pub(crate) at: String,
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) system: String,
    pub(crate) file_system: String,
    /// As the kernel sees the disk: `write back` has a cache of its own, which a sync has to empty.
    pub(crate) write_cache: String,
}

impl Machine {
    /// # Errors
    /// The system does not say how many cores there are.
    pub(crate) fn look(directory: &Path) -> Result<Machine> {
        let said = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned()).ok();
        let unknown = || "unknown".to_owned();
        let processor = said("/proc/cpuinfo").and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("model name"))?.to_owned();
            Some(line.split_once(':')?.1.trim().to_owned())
        });
        let kernel = said("/proc/sys/kernel/osrelease").and_then(|text| {
            // The version alone: what a builder adds to it says nothing.
            Some(text.split(['-', '+']).next()?.to_owned())
        });
        let mount = mount_of(directory);
        let write_cache = mount.as_ref().and_then(|mount| {
            let disk = mount.device.trim_start_matches("/dev/");
            said(&format!("/sys/class/block/{disk}/queue/write_cache"))
                .or_else(|| said(&format!("/sys/class/block/{disk}/../queue/write_cache")))
        });
        Ok(Machine {
            at: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            processor: processor.unwrap_or_else(unknown),
            cores: thread::available_parallelism().context("counting the cores")?.get(),
            system: format!("{} {}", std::env::consts::OS, kernel.unwrap_or_else(unknown)),
            file_system: mount.map_or_else(unknown, |mount| mount.file_system),
            write_cache: write_cache.unwrap_or_else(unknown),
        })
    }

    pub(crate) fn sentence(&self) -> String {
        format!(
            "{} ({} cores), {}, {}, disk write cache: {}",
            self.processor, self.cores, self.system, self.file_system, self.write_cache
        )
    }
}

struct Mount {
    device: String,
    file_system: String,
}

/// The mount that a directory lies in: the longest mount point that is a prefix of its path.
fn mount_of(directory: &Path) -> Option<Mount> {
    let directory = directory.canonicalize().ok()?;
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let matching = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let (device, point, file_system) = (fields.next()?, fields.next()?, fields.next()?);
        let mount = Mount { device: device.to_owned(), file_system: file_system.to_owned() };
        directory.starts_with(point).then_some((point.len(), mount))
    });
    matching.max_by_key(|(length, _)| *length).map(|(_, mount)| mount)
}
