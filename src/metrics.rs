//! Counters, and the snapshots that users read.
//!
//! A counter only grows. Reading one takes no lock, so a snapshot may miss what is counted meanwhile.
//!
//! Each counter is declared once, with the name under which it is exported: `stats!` makes the live counters, the
//! snapshot and the list for the export from that declaration. A count that is divided by reason is indexed by an enum
//! that `labels!` declares, which also names the label of each reason.

pub mod ages;

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Index;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::ser::{Serialize, SerializeMap, Serializer};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        // Many callers pass a condition as a number, which is mostly zero: that costs no atomic operation.
        if n > 0 {
            self.0.fetch_add(n, Ordering::Relaxed);
        }
    }

    /// Returns the sum so far.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The variants of an enum that divides a count, each with its label in the export. Implemented by `labels!`.
pub trait Label: Copy + 'static {
    /// All variants, in the order of [`Label::index`].
    const ALL: &'static [Self];

    /// The position in [`Label::ALL`].
    fn index(self) -> usize;

    /// The value of the label in the export.
    fn label(self) -> &'static str;
}

/// The most variants that an enum of labels has.
pub(crate) const LABELS_MAX: usize = 16;

/// Declares an enum that divides a count, with the label of each variant in the export.
macro_rules! labels {
    (
        $(#[$doc:meta])* $vis:vis enum $name:ident {
            $($(#[$variant_doc:meta])* $variant:ident = $label:literal,)*
        }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        $vis enum $name { $($(#[$variant_doc])* $variant,)* }

        impl $name {
            /// All variants.
            $vis const ALL: &'static [$name] = &[$($name::$variant,)*];

            /// Returns the label under which it is exported and serialised.
            #[must_use]
            $vis fn as_str(self) -> &'static str {
                match self { $($name::$variant => $label,)* }
            }
        }

        // The arrays of counters are equally long for all enums.
        const _: () = assert!($name::ALL.len() <= $crate::metrics::LABELS_MAX);

        impl $crate::metrics::Label for $name {
            const ALL: &'static [$name] = $name::ALL;

            #[inline]
            fn index(self) -> usize {
                self as usize
            }

            fn label(self) -> &'static str {
                self.as_str()
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }
    };
}
pub(crate) use labels;

/// One [`Counter`] for each variant of an enum.
#[derive(Debug)]
pub struct Counters<E>([Counter; LABELS_MAX], PhantomData<E>);

impl<E> Default for Counters<E> {
    fn default() -> Self {
        Counters(Default::default(), PhantomData)
    }
}

impl<E: Label> Counters<E> {
    /// Adds `n` to the count of `label`.
    pub fn add(&self, label: E, n: u64) {
        let Counters(counters, _) = self;
        counters.get(label.index()).expect("no enum of labels has more variants than LABELS_MAX").add(n);
    }

    /// Returns the sums so far.
    #[must_use]
    pub fn value(&self) -> Counts<E> {
        let Counters(counters, _) = self;
        Counts(std::array::from_fn(|at| counters.get(at).map_or(0, Counter::value)), PhantomData)
    }
}

/// A number for each variant of an enum: `counts[variant]`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Counts<E>([u64; LABELS_MAX], PhantomData<E>);

impl<E> Default for Counts<E> {
    fn default() -> Self {
        Counts([0; LABELS_MAX], PhantomData)
    }
}

impl<E: Label> Counts<E> {
    /// Every variant with its count.
    pub fn iter(&self) -> impl Iterator<Item = (E, u64)> + '_ {
        E::ALL.iter().map(|label| (*label, self[*label]))
    }

    /// Returns the sum over all variants.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.iter().map(|(_, count)| count).sum()
    }
}

impl<E: Label> Index<E> for Counts<E> {
    type Output = u64;

    fn index(&self, label: E) -> &u64 {
        let Counts(counts, _) = self;
        counts.get(label.index()).expect("no enum of labels has more variants than LABELS_MAX")
    }
}

impl<E: Label> fmt::Debug for Counts<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter().map(|(label, count)| (label.label(), count))).finish()
    }
}

/// As a map from label to count.
impl<E: Label> Serialize for Counts<E> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(E::ALL.len()))?;
        for (label, count) in self.iter() {
            map.serialize_entry(label.label(), &count)?;
        }
        map.end()
    }
}

/// Serialises a value as its text.
pub(crate) fn as_text<T: fmt::Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// Serialises an error as the text of its whole chain.
pub(crate) fn error_as_text<T: fmt::Display, S: Serializer>(
    error: &Option<T>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match error {
        Some(error) => serializer.serialize_some(&format!("{error:#}")),
        None => serializer.serialize_none(),
    }
}

/// A figure as it is exported.
#[cfg(any(test, feature = "metrics"))]
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Figure {
    /// The metric's name.
    pub(crate) name: &'static str,
    /// The label that divides it, and its value.
    pub(crate) label: Option<(&'static str, &'static str)>,
    pub(crate) value: FigureValue,
}

/// The value of a figure. All but the first are gauges.
#[cfg(any(test, feature = "metrics"))]
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum FigureValue {
    /// A total that only grows.
    Total(u64),
    /// A number of things.
    Number(u64),
    Bytes(u64),
    Time(Duration),
}

/// A field of a snapshot that can be exported.
#[cfg(any(test, feature = "metrics"))]
pub(crate) trait Export {
    /// Appends what is exported of it. `name` is the metric's name, or what the names of several begin with; `label` is
    /// the label's key and, for a single count, its value.
    fn export(&self, name: &'static str, label: &[&'static str], to: &mut Vec<Figure>);
}

#[cfg(any(test, feature = "metrics"))]
impl Export for u64 {
    fn export(&self, name: &'static str, label: &[&'static str], to: &mut Vec<Figure>) {
        let label = match label {
            [key, value] => Some((*key, *value)),
            _ => None,
        };
        to.push(Figure { name, label, value: FigureValue::Total(*self) });
    }
}

#[cfg(any(test, feature = "metrics"))]
impl<E: Label> Export for Counts<E> {
    fn export(&self, name: &'static str, label: &[&'static str], to: &mut Vec<Figure>) {
        let key = label.first().copied().unwrap_or("reason");
        let figure = |(of, count): (E, u64)| Figure {
            name,
            label: Some((key, of.label())),
            value: FigureValue::Total(count),
        };
        to.extend(self.iter().map(figure));
    }
}

#[cfg(any(test, feature = "metrics"))]
impl Export for QueueStats {
    fn export(&self, _: &'static str, _: &[&'static str], to: &mut Vec<Figure>) {
        let QueueStats { records, bytes, oldest_age } = *self;
        to.extend(
            [
                ("forebay_queue_records", FigureValue::Number(records)),
                ("forebay_queue_bytes", FigureValue::Bytes(bytes)),
                ("forebay_queue_oldest_age_seconds", FigureValue::Time(oldest_age)),
            ]
            .map(|(name, value)| Figure { name, label: None, value }),
        );
    }
}

/// A [`Counter`] that many threads increment at once. Up to 31 threads at a time have a cell of their own, which costs
/// them no atomic addition.
#[derive(Debug, Default)]
pub struct StripedCounter {
    /// Cells that are each written by one thread only.
    owned: [PaddedCell; OWNED],
    /// The cell of all other threads.
    shared: PaddedCell,
}

/// The number of threads that have cells of their own at a time. Fewer than the bits of [`TAKEN`].
const OWNED: usize = 31;

/// A cell on a cache line of its own, together with the neighbouring line that the processor fetches along.
#[derive(Debug, Default)]
#[repr(align(128))]
struct PaddedCell(AtomicU64);

/// The cells that have a thread, as bits. A thread has the same cell in all counters.
static TAKEN: AtomicU64 = AtomicU64::new(0);

/// The cell number of a thread that has not asked for one yet. No cell has it.
const UNASKED: usize = usize::MAX;

thread_local! {
    /// The number of this thread's cell, or one that no cell has. It has no destructor, so that reading it is cheap.
    static OWN: Cell<usize> = const { Cell::new(UNASKED) };
    static LEASE: CellLease = CellLease::begin();
}

/// A thread's right to its cell. It ends with the thread.
struct CellLease {
    number: usize,
}

impl CellLease {
    fn begin() -> CellLease {
        // The lowest free cell, so that the cells in use stay close together.
        let lowest_free = |taken: u64| {
            let number = taken.trailing_ones();
            (number < OWNED as u32).then(|| taken | 1 << number)
        };
        // Acquires what the cell's former thread released, so that this thread goes on from its last count.
        let before = TAKEN.fetch_update(Ordering::AcqRel, Ordering::Acquire, lowest_free);
        let number = before.map_or(OWNED, |taken| taken.trailing_ones() as usize);
        // Set even without a cell, so that the thread does not ask again at each increment.
        OWN.set(number);
        CellLease { number }
    }
}

impl Drop for CellLease {
    fn drop(&mut self) {
        // Destructors that run after this one may still count: they use the shared cell.
        OWN.set(OWNED);
        if self.number < OWNED {
            // Releases the last count of this thread to the cell's next one.
            TAKEN.fetch_and(!(1 << self.number), Ordering::Release);
        }
    }
}

impl StripedCounter {
    /// Adds one.
    #[inline]
    pub fn increment(&self) {
        // One comparison serves three states: a cell of its own, none, and not asked yet.
        match self.owned.get(OWN.get()) {
            // A load and a store will do: no other thread writes this cell.
            Some(PaddedCell(own)) => {
                own.store(own.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed)
            }
            None => self.increment_without_cell(),
        }
    }

    #[cold]
    fn increment_without_cell(&self) {
        // A thread that is ending cannot lease a cell any more: `try_with` fails.
        if OWN.get() == UNASKED && LEASE.try_with(|_| ()).is_ok() {
            return self.increment();
        }
        self.shared.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the sum so far.
    #[must_use]
    pub fn value(&self) -> u64 {
        // The cells are read one after the other: a sum may miss increments made meanwhile, never count one twice.
        self.owned.iter().chain([&self.shared]).map(|PaddedCell(cell)| cell.load(Ordering::Relaxed)).sum()
    }
}

/// The records that wait for the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct QueueStats {
    /// Their number.
    pub records: u64,
    /// Their size in the journal, in bytes.
    pub bytes: u64,
    /// The time since the oldest of them was committed, or recovered by this opening. Never too low. Too high by at
    /// most a 32nd of the time in which the queue was filled, plus the time its writer waited for room and for the
    /// commit.
    pub oldest_age: Duration,
}

/// Declares the live counters of something and their snapshot, with the name under which each is exported.
///
/// `live` fields are counted here. `filled in` ones are measured elsewhere, and whoever makes the snapshot sets them.
macro_rules! stats {
    (
        $(#[$live_doc:meta])* live $live:ident;
        $(#[$still_doc:meta])* snapshot $still:ident;
        live {
            $($(#[$doc:meta])* $field:ident: $kind:ty => $value:ty, $name:literal $([$($label:literal)+])?;)*
        }
        filled in {
            $(
                $(#[$other_doc:meta])*
                $other:ident: $other_value:ty, $other_name:literal $([$($other_label:literal)+])?;
            )*
        }
    ) => {
        $(#[$live_doc])*
        #[derive(Debug, Default)]
        pub struct $live {
            $($(#[$doc])* pub $field: $kind,)*
        }

        $(#[$still_doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
        #[non_exhaustive]
        pub struct $still {
            $($(#[$doc])* pub $field: $value,)*
            $($(#[$other_doc])* pub $other: $other_value,)*
        }

        impl $live {
            /// Returns a snapshot, without the fields that somebody else fills in.
            #[must_use]
            pub fn snapshot(&self) -> $still {
                $still {
                    $($field: self.$field.value(),)*
                    $($other: <$other_value>::default(),)*
                }
            }
        }

        impl $still {
            /// Returns every field as it is exported.
            #[cfg(any(test, feature = "metrics"))]
            pub(crate) fn figures(&self) -> Vec<$crate::metrics::Figure> {
                use $crate::metrics::Export;

                let mut figures = Vec::new();
                $(self.$field.export($name, &[$($($label,)+)?], &mut figures);)*
                $(self.$other.export($other_name, &[$($($other_label,)+)?], &mut figures);)*
                figures
            }
        }
    };
}
pub(crate) use stats;

stats! {
    /// The live counters of a layer.
    live Metrics;
    /// The counters of a layer at one moment. All count from when the layer opened.
    snapshot Stats;
    live {
        /// Reads answered from a pending record.
        pending_hits: Counter => u64, "forebay_pending_hits_total";
        /// Reads that asked the store.
        store_loads: Counter => u64, "forebay_store_loads_total";
        /// Reads that waited for another read's load instead of asking the store again.
        joined_loads: Counter => u64, "forebay_joined_loads_total";
        /// Loaded values not kept, because a write, an invalidation or a later load came in between.
        refused_fills: Counter => u64, "forebay_refused_fills_total";
        /// Values not kept in memory, because the weigher or other code of the key's or value's type panicked.
        memory_failures: Counter => u64, "forebay_memory_failures_total";
        /// Records committed: acknowledged ones of write-behind, and accepted ones of write-through.
        records_committed: Counter => u64, "forebay_records_committed_total";
        /// Records that the store took, or that ended because the store rejected them.
        records_applied: Counter => u64, "forebay_records_applied_total";
        /// Changes in batches that the store took. Coalescing makes them fewer than the records.
        ops_applied: Counter => u64, "forebay_ops_applied_total";
        /// Batches that the store took.
        batches_applied: Counter => u64, "forebay_batches_applied_total";
        /// Failed attempts to apply a batch, each of which was or will be repeated.
        apply_retries: Counter => u64, "forebay_apply_retries_total";
        /// Records that the store rejected.
        records_rejected: Counter => u64, "forebay_records_rejected_total";
        /// Records put into the dead-letter list.
        records_parked: Counter => u64, "forebay_records_parked_total";
        /// Changes delivered by change streams.
        changes_delivered: Counter => u64, "forebay_changes_delivered_total";
        /// Ranges of changes that change streams could not deliver any more
        /// ([`ChangeOutcome::PlaceLost`](crate::ChangeOutcome::PlaceLost)).
        places_lost: Counter => u64, "forebay_change_places_lost_total";
        /// Pending values left to the journal because the memory budget was used up.
        records_spilled: Counter => u64, "forebay_records_spilled_total";
        /// Values of pending records read back from the journal for a reader.
        journal_reads: Counter => u64, "forebay_journal_reads_total";
        /// Writes refused because the queue was full.
        writes_refused_full: Counter => u64, "forebay_writes_refused_full_total";
    }
    filled in {
        /// Reads answered from memory, over all caches that were opened.
        memory_hits: u64, "forebay_memory_hits_total";
        /// Records that are committed and not yet in the store, at this moment.
        queue: QueueStats, "forebay_queue";
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::sync::{Barrier, Mutex};
    use std::thread;

    /// Two threads that wrote one cell would lose each other's additions.
    #[test]
    fn no_two_threads_write_one_cell_while_more_come_and_go_than_there_are_cells() {
        const THREADS: usize = 2 * OWNED;
        let counter = StripedCounter::default();
        for _ in 0..3 {
            let all_count = Barrier::new(THREADS);
            let cells = Mutex::new(BTreeSet::new());
            thread::scope(|scope| {
                let count = || {
                    (0..100).for_each(|_| counter.increment());
                    let own = OWN.get();
                    let is_own = own >= OWNED || cells.lock().unwrap().insert(own);
                    all_count.wait();
                    assert!(is_own, "cell {own} has two threads");
                };
                // Joined one by one: a scope does not wait until a thread has given its cell back.
                let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(count)).collect();
                threads.into_iter().for_each(|thread| thread.join().unwrap());
            });
            // Other tests' threads may have some.
            assert!(!cells.into_inner().unwrap().is_empty(), "threads that have ended gave their cells back");
        }
        assert_eq!(counter.value(), 3 * THREADS as u64 * 100);
    }

    labels! {
        /// Two reasons.
        enum Why {
            /// The first.
            First = "first",
            /// The second.
            Second = "second",
        }
    }

    #[test]
    fn a_divided_count_is_exported_by_every_label_and_serialises_as_a_map() {
        let counters = Counters::default();
        counters.add(Why::Second, 3);
        let counts: Counts<Why> = counters.value();
        assert_eq!((counts[Why::First], counts[Why::Second], counts.total()), (0, 3, 3));
        assert_eq!(format!("{counts:?}"), r#"{"first": 0, "second": 3}"#);
        let mut figures = Vec::new();
        counts.export("n", &["why"], &mut figures);
        let figure = |count, label| Figure {
            name: "n",
            label: Some(("why", label)),
            value: FigureValue::Total(count),
        };
        assert_eq!(figures, [figure(0, "first"), figure(3, "second")]);
    }

    /// The export of a layer once left two of its counters out.
    #[test]
    fn every_counter_of_a_layer_is_exported_once() {
        let figures = Stats::default().figures();
        let names: BTreeSet<&str> = figures.iter().map(|figure| figure.name).collect();
        assert_eq!(names.len(), figures.len());
        assert!(
            names.contains("forebay_changes_delivered_total")
                && names.contains("forebay_change_places_lost_total")
        );
    }
}
