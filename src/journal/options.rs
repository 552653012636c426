//! The options of a journal: segment size, spares, and durability.
//!
//! Plain values with documented ranges. A value out of its range is an error that names the option, the value and the
//! range. Does no I/O.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};

/// The allowed sizes of a segment, in bytes.
pub const SEGMENT_BYTES_RANGE: RangeInclusive<u64> = 64 * 1024..=1024 * 1024 * 1024;
/// The allowed numbers of spares.
pub const SPARES_RANGE: RangeInclusive<usize> = 0..=64;
/// The allowed intervals between two syncs of a buffered journal, in milliseconds.
pub const SYNC_INTERVAL_MS_RANGE: RangeInclusive<u128> = 1..=3_600_000;

/// The failure that an acknowledged write survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Power loss: `fdatasync` returned before the acknowledgement.
    Sync,
    /// `kill -9` of the process: the operating system has the write, and `fdatasync` follows within the interval. A
    /// power cut can lose the writes since the last sync, always the newest ones.
    Buffered {
        /// The longest time between a write and the sync that covers it: 1 ms to 1 h.
        sync_interval: Duration,
    },
}

impl Durability {
    /// Checks the interval.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] naming the option, the value and the range.
    pub fn validate(&self) -> Result<()> {
        // Refused here and not clamped: an interval that was silently changed would be a weaker promise than the
        // one asked for.
        match self {
            Durability::Sync => Ok(()),
            Durability::Buffered { sync_interval } => {
                within("sync_interval in ms", sync_interval.as_millis(), &SYNC_INTERVAL_MS_RANGE)
            }
        }
    }
}

/// The layout of a journal's files.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct JournalOptions {
    /// The size of a segment in bytes: 64 KiB to 1 GiB; 16 MiB by default. May change between opens.
    pub segment_bytes: u64,
    /// Fills new segments with zeros before their use, so that a sync changes no metadata. On by default. Switch it off
    /// on a copy-on-write file system, where it has no benefit.
    pub zero_fill: bool,
    /// Reuses segments that are no longer needed as spares. On by default. Switch it off on a copy-on-write file
    /// system.
    pub recycle: bool,
    /// The most spares that are kept: 0 to 64; 4 by default. With zero, no thread is started to prepare spares.
    pub spares_max: usize,
}

impl Default for JournalOptions {
    fn default() -> JournalOptions {
        JournalOptions { segment_bytes: 16 * 1024 * 1024, zero_fill: true, recycle: true, spares_max: 4 }
    }
}

impl JournalOptions {
    /// Checks every value against its range.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] naming the option, the value and the range.
    pub fn validate(&self) -> Result<()> {
        within("segment_bytes", self.segment_bytes, &SEGMENT_BYTES_RANGE)?;
        within("spares_max", self.spares_max, &SPARES_RANGE)
    }
}

fn within<T: PartialOrd + std::fmt::Display>(
    option: &str,
    value: T,
    range: &RangeInclusive<T>,
) -> Result<()> {
    if range.contains(&value) {
        return Ok(());
    }
    let context = format!("{option} is {value}; it must lie within {}..={}", range.start(), range.end());
    Err(Error::new(ErrorKind::InvalidOption, context))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_option_is_an_error_that_names_option_value_and_range() {
        let small = JournalOptions { segment_bytes: 1, ..JournalOptions::default() };
        let error = small.validate().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOption);
        assert_eq!(format!("{error:#}"), "segment_bytes is 1; it must lie within 65536..=1073741824");
        let many = JournalOptions { spares_max: 65, ..JournalOptions::default() };
        assert_eq!(
            format!("{:#}", many.validate().unwrap_err()),
            "spares_max is 65; it must lie within 0..=64"
        );
        let never = Durability::Buffered { sync_interval: Duration::ZERO };
        assert_eq!(never.validate().unwrap_err().kind(), ErrorKind::InvalidOption);
        assert!(JournalOptions::default().validate().is_ok() && Durability::Sync.validate().is_ok());
    }
}
