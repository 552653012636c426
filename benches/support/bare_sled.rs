//! sled by itself, with the durability that the crate's store gives it.

use std::fs::{self, File};
use std::path::Path;

use anyhow::Result;

pub(crate) const CACHE_BYTES: u64 = 256 << 20;

/// sled in a new directory, and its file: its flush syncs nothing, so that is done beside it.
pub(crate) fn open_sled(path: &Path) -> Result<(sled::Db, File)> {
    fs::create_dir(path)?;
    let file = File::options().write(true).create_new(true).open(path.join("db"))?;
    let config = sled::Config::new().path(path).cache_capacity(CACHE_BYTES).segment_size(4 << 20);
    Ok((config.flush_every_ms(None).open()?, file))
}
