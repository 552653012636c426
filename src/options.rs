//! Plain options with their ranges. Nothing is opened here; a bad option is an error that names it.

use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::VALUE_BYTES_MAX;
use crate::journal::options::{Durability, JournalOptions};

/// When a write is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WritePolicy {
    /// Once the journal holds it at the layer's durability; the store follows.
    Behind,
    /// Once the store holds it durably. Such a write is not journaled.
    Through,
    /// As [`WritePolicy::Through`], but the key leaves memory instead of being kept there: its next reader loads it.
    /// For values that are written and seldom read.
    Around,
}

/// What a write does when the queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Backpressure {
    /// Wait until there is room.
    Wait,
    /// Wait so long, then fail with [`ErrorKind::QueueFull`].
    WaitFor(Duration),
    /// Fail at once with [`ErrorKind::QueueFull`].
    Refuse,
}

/// What the flusher does when the store rejects a queued record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnRejected {
    /// Stop there, keep everything, and say so, until the layer is resumed or opened again.
    Halt,
    /// Put the record, and every later one of its keys, into the durable dead-letter list, and go on.
    Park,
}

/// The options of a layer.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LayerOptions {
    /// Where the journal lies; without one every write has to go through.
    pub journal_dir: Option<PathBuf>,
    /// Segment sizes and the like.
    pub journal: JournalOptions,
    /// When a journaled write counts as committed.
    pub durability: Durability,
    /// How many bytes of the journal may wait for the store; what is in flight counts.
    pub queue_bytes_max: u64,
    /// How many records may wait for the store; what is in flight counts.
    pub queue_records_max: u64,
    /// How many bytes of pending records stay in memory. The others are read from the journal, and each takes 8 to 16
    /// bytes that do not count here.
    pub pending_memory_bytes_max: u64,
    /// What a write does when the queue is full.
    pub backpressure: Backpressure,
    /// How many records one apply takes at the most (an atomic batch is never split).
    pub batch_records_max: usize,
    /// How many bytes one apply takes at the most (an atomic batch is never split).
    pub batch_bytes_max: u64,
    /// How long the flusher waits for a batch to fill, unless somebody waits for an apply or for room.
    pub batch_linger: Duration,
    /// For how long the drain stays out of the way of writers that go on committing, whole batches or not.
    pub drain_delay_max: Duration,
    /// The longest wait before the first retry of a failed apply.
    pub retry_first: Duration,
    /// The longest wait before any retry.
    pub retry_cap: Duration,
    /// What a rejected record does.
    pub on_rejected: OnRejected,
    /// How many records the dead-letter list may hold before the flusher halts instead of parking.
    pub dead_letter_records_max: u64,
    /// How long a write-through waits for the store before it returns [`ErrorKind::InDoubt`].
    pub through_timeout: Duration,
    /// How long closing drains before it gives the rest to the next opening.
    pub close_deadline: Duration,
    /// Accept that the journal that the store was fed from is gone.
    pub replace_journal: bool,
    /// Whether changes are told; then the journal holds a notice of each write-through, too.
    pub changes: bool,
    /// How many bytes of applied segments the cursors of the change stream may hold back.
    pub changes_bytes_max: u64,
    /// How often the layer says in the store that it lives.
    pub renew_interval: Duration,
    /// Whether the layer follows another process that owns the store, so that it writes nothing.
    pub follows: bool,
    /// Internal sizes, for tests.
    #[doc(hidden)]
    pub sizes: Sizes,
}

/// Internal sizes on which it depends how often keys collide.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// The number of stripes of the key locks.
    pub key_lock_stripes: usize,
    /// The bits of a key's hash that count in the index of spilled records.
    pub spilled_hash_mask: u64,
}

impl Sizes {
    /// The sizes of every layer outside tests.
    pub const SHIPPED: Sizes = Sizes { key_lock_stripes: 256, spilled_hash_mask: u64::MAX };
    /// Sizes with which keys collide all the time: there are eight key locks, and sixteen different hashes.
    pub const COLLIDING: Sizes = Sizes { key_lock_stripes: 8, spilled_hash_mask: 0xF << 58 };
}

impl Default for LayerOptions {
    fn default() -> Self {
        LayerOptions {
            journal_dir: None,
            journal: JournalOptions::default(),
            durability: Durability::Sync,
            queue_bytes_max: 4 << 30,
            queue_records_max: 4_000_000,
            pending_memory_bytes_max: 256 << 20,
            backpressure: Backpressure::Wait,
            batch_records_max: 1024,
            batch_bytes_max: 8 << 20,
            batch_linger: Duration::from_millis(10),
            drain_delay_max: Duration::from_secs(1),
            retry_first: Duration::from_millis(10),
            retry_cap: Duration::from_secs(10),
            on_rejected: OnRejected::Halt,
            dead_letter_records_max: 100_000,
            through_timeout: Duration::from_secs(30),
            close_deadline: Duration::from_secs(30),
            replace_journal: false,
            changes: false,
            changes_bytes_max: 1 << 30,
            renew_interval: Duration::from_secs(1),
            follows: false,
            sizes: Sizes::SHIPPED,
        }
    }
}

impl LayerOptions {
    /// Checks every option against its range.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] naming the option, the value and the allowed range.
    pub fn validate(&self) -> Result<()> {
        self.journal.validate()?;
        let value_max = u64::try_from(VALUE_BYTES_MAX).unwrap_or(u64::MAX);
        within("queue_bytes_max", self.queue_bytes_max, 64 << 10, 1 << 50)?;
        within("queue_records_max", self.queue_records_max, 1, 1 << 31)?;
        within("pending_memory_bytes_max", self.pending_memory_bytes_max, 0, 1 << 50)?;
        within("batch_records_max", u64::try_from(self.batch_records_max).unwrap_or(u64::MAX), 1, 1 << 20)?;
        within("batch_bytes_max", self.batch_bytes_max, 1, 16 * value_max)?;
        within("changes_bytes_max", self.changes_bytes_max, 0, 1 << 50)?;
        within("dead_letter_records_max", self.dead_letter_records_max, 1, 1 << 31)?;
        let hour = Duration::from_secs(3600);
        within_time("batch_linger", self.batch_linger, Duration::ZERO, Duration::from_secs(60))?;
        within_time("drain_delay_max", self.drain_delay_max, Duration::ZERO, hour)?;
        within_time("retry_backoff (first)", self.retry_first, Duration::from_millis(1), hour)?;
        within_time("retry_backoff (cap)", self.retry_cap, self.retry_first, hour)?;
        within_time("through_timeout", self.through_timeout, Duration::from_millis(1), 24 * hour)?;
        within_time("close_deadline", self.close_deadline, Duration::ZERO, 24 * hour)?;
        within_time("renew_interval", self.renew_interval, Duration::from_millis(1), hour)?;
        if let Durability::Buffered { sync_interval } = self.durability {
            within_time("sync_interval", sync_interval, Duration::from_millis(1), hour)?;
        }
        if let Backpressure::WaitFor(wait) = self.backpressure {
            within_time("backpressure (wait)", wait, Duration::from_nanos(1), 24 * hour)?;
        }
        if self.journal_dir.is_none() && self.on_rejected == OnRejected::Park {
            let why = "on_rejected = Park needs a journal, because the dead-letter list lies beside it";
            return Err(Error::new(ErrorKind::InvalidOption, why));
        }
        if self.journal_dir.is_some() && self.follows {
            let why = "a layer that follows another process writes nothing, so it takes no journal";
            return Err(Error::new(ErrorKind::InvalidOption, why));
        }
        if self.journal_dir.is_none() && self.changes {
            let why = "changes = true needs a journal, because that is where changes are read from";
            return Err(Error::new(ErrorKind::InvalidOption, why));
        }
        Ok(())
    }
}

fn within(option: &str, value: u64, min: u64, max: u64) -> Result<()> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::InvalidOption, format!("{option} is {value}; allowed are {min} to {max}")))
}

pub(crate) fn within_time(option: &str, value: Duration, min: Duration, max: Duration) -> Result<()> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::InvalidOption,
        format!("{option} is {value:?}; allowed are {min:?} to {max:?}"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_option_is_named_with_its_value_and_range() {
        let bad = LayerOptions { queue_records_max: 0, ..LayerOptions::default() };
        let error = bad.validate().expect_err("zero records");
        assert_eq!(error.kind(), ErrorKind::InvalidOption);
        assert_eq!(format!("{error:#}"), "queue_records_max is 0; allowed are 1 to 2147483648");
        let bad = LayerOptions { retry_cap: Duration::from_millis(1), ..LayerOptions::default() };
        assert!(
            format!("{:#}", bad.validate().expect_err("cap below first")).contains("allowed are 10ms to")
        );
        let bad = LayerOptions { on_rejected: OnRejected::Park, ..LayerOptions::default() };
        assert!(bad.validate().is_err());
        LayerOptions::default().validate().expect("the defaults are in range");
    }
}
