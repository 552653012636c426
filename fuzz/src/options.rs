//! Options: any values open a layer, or are an error that names the option. Nothing panics or overflows.

use std::sync::Arc;
use std::time::Duration;

use forebay::disk::SimDisk;
use forebay::options::LayerOptions;
use forebay::{
    Backpressure, Durability, ErrorKind, Forebay, JournalOptions, MemoryStore, NamespaceName, OnRejected,
};

/// Input: two bytes of choices, then numbers of eight bytes each as long as there are any; the rest is a name.
pub fn options(data: &[u8]) {
    let Some(([choice, _], mut rest)) = data.split_first_chunk::<2>() else { return };
    let defaults = LayerOptions::default();
    let mut number = |default: u64| match rest.split_first_chunk::<8>() {
        Some((bytes, left)) => {
            rest = left;
            u64::from_le_bytes(*bytes)
        }
        None => default,
    };
    let mut journal = JournalOptions::default();
    journal.segment_bytes = number(64 << 10);
    journal.spares_max = usize::try_from(number(0)).unwrap_or(usize::MAX);
    journal.zero_fill = choice & 1 != 0;
    journal.recycle = choice & 2 != 0;
    // What is opened has to fit into this process's memory.
    let small = journal.segment_bytes <= 1 << 20 && journal.spares_max <= 2;
    let disk = Arc::new(SimDisk::new());
    let mut builder = Forebay::builder(MemoryStore::new()).disk(disk).journal_options(journal);
    if choice & 4 != 0 {
        builder = builder.journal("/journal");
    }
    if choice & 8 != 0 {
        builder = builder.on_rejected(OnRejected::Park);
    }
    builder = builder
        .queue_bytes_max(number(defaults.queue_bytes_max))
        .queue_records_max(number(defaults.queue_records_max))
        .pending_memory_bytes_max(number(defaults.pending_memory_bytes_max))
        .batch_records_max(usize::try_from(number(1024)).unwrap_or(usize::MAX))
        .batch_bytes_max(number(defaults.batch_bytes_max))
        .dead_letter_records_max(number(defaults.dead_letter_records_max))
        .batch_linger(Duration::from_nanos(number(0)))
        .retry_backoff(Duration::from_millis(number(10)), Duration::from_millis(number(10_000)))
        .through_timeout(Duration::from_millis(number(30_000)))
        .close_deadline(Duration::from_nanos(number(1_000_000)));
    if choice & 16 != 0 {
        builder = builder
            .durability(Durability::Buffered { sync_interval: Duration::from_nanos(number(1_000_000)) });
    }
    if choice & 32 != 0 {
        builder = builder.backpressure(Backpressure::WaitFor(Duration::from_nanos(number(1_000_000))));
    }
    builder = builder.drain_delay_max(Duration::from_nanos(number(1_000_000)));
    let name = String::from_utf8_lossy(rest);
    if let Err(error) = NamespaceName::parse(&name) {
        assert_eq!(error.kind(), ErrorKind::InvalidName);
    }
    if !small {
        return;
    }
    match builder.open_blocking() {
        Ok(bay) => {
            let cache = bay.cache::<u64, u64>(&name).capacity(64).open();
            assert_eq!(cache.is_ok(), NamespaceName::parse(&name).is_ok(), "a name is good or it is not");
            drop(cache);
            bay.blocking().close_within(Duration::ZERO).expect("it closes");
        }
        Err(error) => assert_eq!(error.kind(), ErrorKind::InvalidOption, "{error}"),
    }
}
