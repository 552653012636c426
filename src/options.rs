//! The options of a layer, with their texts, defaults and ranges. A bad option is an error that names it.

use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::VALUE_BYTES_MAX;
use crate::journal::options::{Durability, JournalOptions};
use crate::memory::scope::StripeCounts;

/// The moment at which a write is acknowledged.
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

/// The behaviour of a write when the queue is full.
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

/// The behaviour of the flusher when the store rejects a queued record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnRejected {
    /// Halt there and keep everything, until the layer is resumed or opened again. [`Health`](crate::Health) shows it.
    Halt,
    /// Put the record, and every later one of its keys, into the durable dead-letter list, and go on.
    Park,
}

/// Calls the macro `$then` with the options that a layer is opened with, each with its text, its type and its default.
/// Both the fields of [`LayerOptions`] and the methods of [`Builder`](crate::Builder) are made from this list.
macro_rules! layer_options {
    ($then:ident) => {
        $then! {
            /// Sets when a journaled write counts as committed. Default: [`Durability::Sync`](crate::Durability::Sync).
            durability: Durability = Durability::Sync,
            /// Sets segment sizes and the other options of the journal.
            journal_options: JournalOptions = JournalOptions::default(),
            /// Limits the bytes of the journal that wait for the store, those in flight included. Default: 4 GiB.
            queue_bytes_max: u64 = 4 << 30,
            /// Limits the records that wait for the store, those in flight included. Default: 4,000,000.
            queue_records_max: u64 = 4_000_000,
            /// Limits the bytes of pending records in memory. Records beyond that are read back from the journal, and
            /// take 8 to 16 bytes each that do not count here. Default: 256 MiB.
            pending_memory_bytes_max: u64 = 256 << 20,
            /// Sets what a write does when the queue is full. Default: wait.
            backpressure: Backpressure = Backpressure::Wait,
            /// Limits the records of one apply. An atomic batch is never split. Default: 1024.
            batch_records_max: usize = 1024,
            /// Limits the bytes of one apply. An atomic batch is never split. Default: 8 MiB.
            batch_bytes_max: u64 = 8 << 20,
            /// Sets how long the flusher waits for a batch to fill, as long as nobody waits for an apply or for room. A
            /// store's sync and the journal's share the disk, so applying every write at once would slow the writers
            /// down. Zero applies what is there at once. Default: 10 ms.
            batch_linger: Duration = Duration::from_millis(10),
            /// Limits how long the drain gives way to writers that go on committing, since it shares processors and
            /// disk with them. The drain then waits for a `batch_linger` in which nothing is committed; but no longer
            /// than this, not beyond a quarter of the queue's limits or of `pending_memory_bytes_max`, and not while
            /// somebody waits for an apply or for room. There is no such delay where changes are delivered
            /// ([`Builder::changes`](crate::Builder::changes), or an outbox of the store's), nor for this long after a
            /// write-through. Zero applies whatever fills a batch at once. Default: 1 s.
            drain_delay_max: Duration = Duration::from_secs(1),
            /// Sets what happens when the store rejects a record. Default: halt.
            on_rejected: OnRejected = OnRejected::Halt,
            /// Limits the records in the dead-letter list; beyond that the flusher halts instead. Default: 100,000.
            dead_letter_records_max: u64 = 100_000,
            /// Sets how long a write-through waits for the store before it fails with
            /// [`ErrorKind::InDoubt`](crate::ErrorKind::InDoubt). Default: 30 s.
            through_timeout: Duration = Duration::from_secs(30),
            /// Sets how long [`Forebay::close`](crate::Forebay::close) drains. Default: 30 s.
            close_deadline: Duration = Duration::from_secs(30),
            /// Allows [`Forebay::changes`](crate::Forebay::changes). The journal then holds a notice of each
            /// write-through, too, which costs that a sync of the journal before the store's. Default: false.
            changes: bool = false,
            /// Limits the bytes of applied segments that are kept for named cursors of the change stream. Beyond that
            /// the slowest cursors lose their places, and their subscribers are notified. Default: 1 GiB.
            changes_bytes_max: u64 = 1 << 30,
            /// Sets how long the journal keeps records that the store has applied, so that a store that goes back, as
            /// after the failover to a standby, can be fed again. Default: 60 s.
            retain_applied_for: Duration = Duration::from_secs(60),
            /// Limits the bytes of applied segments that are kept for that. Default: 64 MiB.
            retain_applied_bytes: u64 = 64 << 20,
            /// Sets how often the layer renews its sign of life in the store, for layers that
            /// [wait](crate::Builder::on_owned) for the store. Default: 1 s.
            renew_interval: Duration = Duration::from_secs(1),
            /// Accepts that the journal that the store was fed from is gone, with whatever was queued in it. Default:
            /// false.
            replace_journal: bool = false,
        }
    };
}
pub(crate) use layer_options;

macro_rules! layer_options_struct {
    ($($(#[$doc:meta])* $name:ident: $kind:ty = $default:expr,)*) => {
        /// The options of a layer.
        #[derive(Clone, Debug)]
        #[non_exhaustive]
        pub struct LayerOptions {
            $($(#[$doc])* pub $name: $kind,)*
            /// The journal's directory. Without one every write goes through.
            pub journal_dir: Option<PathBuf>,
            /// The longest wait before the first retry of a failed apply.
            pub retry_first: Duration,
            /// The longest wait before any retry.
            pub retry_cap: Duration,
            /// True if the layer follows another process that owns the store, so that it writes nothing.
            pub follows: bool,
            /// The sizes of internal structures.
            pub sizes: LayerSizes,
        }

        impl Default for LayerOptions {
            fn default() -> Self {
                LayerOptions {
                    $($name: $default,)*
                    journal_dir: None,
                    retry_first: Duration::from_millis(10),
                    retry_cap: Duration::from_secs(10),
                    follows: false,
                    sizes: LayerSizes::default(),
                }
            }
        }
    };
}
layer_options!(layer_options_struct);

/// The sizes of a layer's internal structures. Tests choose small ones, so that keys collide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerSizes {
    /// The stripes of the caches' memories.
    pub memory: StripeCounts,
    /// The stripes of the locks of keys.
    pub key_locks: usize,
    /// The bits of a key's hash that count in the index of spilled records.
    pub spilled_hash_mask: u64,
    /// The bytes of a segment of the dead-letter list.
    pub letter_segment_bytes: u64,
}

#[cfg(any(test, forebay_simulation))]
impl LayerSizes {
    /// So few that keys and tags collide in a short test; the index of spilled records has sixteen different hashes.
    pub const COLLIDING: LayerSizes = LayerSizes {
        memory: StripeCounts { fences: 8, floors: 8 },
        key_locks: 8,
        spilled_hash_mask: 0xF << 58,
        letter_segment_bytes: 64 << 10,
    };
}

impl Default for LayerSizes {
    fn default() -> Self {
        LayerSizes {
            memory: StripeCounts::default(),
            key_locks: 256,
            spilled_hash_mask: u64::MAX,
            letter_segment_bytes: 1 << 20,
        }
    }
}

impl LayerOptions {
    /// Checks every option against its range.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] naming the option, the value and the allowed range.
    pub fn validate(&self) -> Result<()> {
        self.journal_options.validate()?;
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
        // A cap below the first wait would cut every wait to less than the first.
        within_time("retry_backoff (cap)", self.retry_cap, self.retry_first, hour)?;
        // Zero would put each write-through in doubt before the store could answer.
        within_time("through_timeout", self.through_timeout, Duration::from_millis(1), 24 * hour)?;
        // Zero is a wish: to stop without draining, and leave the queue to the next open.
        within_time("close_deadline", self.close_deadline, Duration::ZERO, 24 * hour)?;
        within("retain_applied_bytes", self.retain_applied_bytes, 0, 1 << 50)?;
        within_time("retain_applied_for", self.retain_applied_for, Duration::ZERO, 24 * hour)?;
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
