//! Look-ups beyond memory: first the pending records, wherever their values are, and then the store.
//!
//! Nothing is returned that a crash can take back. A pending record is committed before it can be found. While a
//! write-through of a key is in flight, the store's answer for that key is not used, because the store may show the
//! value before it is durable; the look-up waits until the write-through has ended.

use std::sync::{Arc, PoisonError};

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::{Key, Seq};
use crate::journal::frame::{Frame, Location, slices_of};
use crate::journal::log::Log;
use crate::metrics::Metrics;
use crate::queue::dead_letters::DeadLetters;
use crate::queue::health::HealthState;
use crate::queue::pending::{KeyState, PendingLookup, PendingValue};
use crate::queue::record::{Operation, RecordRef};
use crate::queue::state::Core;
use crate::safeguard::Safeguard;
use crate::seam::clock::Handle;
use crate::seam::sync::RwLock;
use crate::store::contract::{Standing, Store, StoreError, Versioned};

/// The parts of a layer that a read needs.
///
/// They are apart from the layer so that a load which outlives the call that began it does not keep the layer open.
pub struct Lookup {
    pub(crate) core: Arc<Core>,
    /// Dropped when the layer stops, so that the store can be opened again though handles of the layer are left.
    pub(crate) store: RwLock<Option<Arc<dyn Store>>>,
    pub(crate) log: Option<Arc<Log>>,
    pub(crate) letters: Option<Arc<DeadLetters>>,
    /// The layer's own runtime: it drives the timers, so that callers need no runtime.
    pub(crate) runtime: Handle,
}

/// The answer of a look-up beyond memory.
#[derive(Clone, Debug)]
pub struct LookupAnswer {
    /// The value; `None` if the key has none.
    pub value: Option<Versioned>,
    /// True if the answer was pending, false if it is the store's.
    pub pending: bool,
}

impl LookupAnswer {
    fn pending(version: Seq, value: Option<Bytes>) -> LookupAnswer {
        LookupAnswer { value: value.map(|value| Versioned { value, version }), pending: true }
    }
}

/// The result of searching frames of the journal for a key.
enum JournalSearch {
    /// The newest record's number, and its value unless it removes.
    Found(Seq, Option<Bytes>),
    /// The frames have no record of the key.
    NotFound,
    /// A frame was trimmed before it could be read.
    Trimmed,
}

/// A pending value that was read from where it is.
enum FetchedValue {
    Value(Bytes),
    Removed,
    /// The dead letter left the list meanwhile.
    Gone,
}

impl Lookup {
    /// Makes memory show every write that was acknowledged before the call. To be called before a cache's memory is
    /// read or changed.
    #[inline]
    pub fn catch_up(&self) {
        if Safeguard::MemoryCatchesUp.holds() {
            self.core.pending.catch_up();
        }
    }

    /// Looks up a key that is not in memory: its pending value, or else the store's.
    ///
    /// Costs a lock if the value is pending in memory, else reads of the journal or the store. Dropping the future has
    /// no effect.
    ///
    /// # Errors
    /// The store's, or the journal's if it lost what it has committed. [`ErrorKind::InDoubt`] if the layer ended while
    /// a write-through of the key was in flight.
    pub async fn load(&self, key: &Key) -> Result<LookupAnswer> {
        let store = self.store()?;
        // The search of the journal goes back in steps, each before the oldest candidate of the one before.
        let mut before = None;
        loop {
            // Registered before the view is locked: otherwise a write-through that ends in between would go unnoticed.
            let through_ended = self.core.through_ended.notified();
            tokio::pin!(through_ended);
            through_ended.as_mut().enable();
            let (PendingLookup { state, candidates }, refused_before) = {
                let mut pending = self.core.pending.lock();
                (pending.find(key, before), pending.refused_throughs())
            };
            if let Some(oldest) = candidates.last().copied() {
                match self.search_journal(key, candidates).await? {
                    JournalSearch::Found(version, value) if state.is_older_than(version) => {
                        self.core.metrics.pending_hits.add(1);
                        return Ok(LookupAnswer::pending(version, value));
                    }
                    // Candidates are newer than what is packed in memory, but a dead letter may be newer still.
                    JournalSearch::Found(..) => {}
                    // The candidates were other keys' that share the hash fragment; older frames may still be this
                    // key's.
                    JournalSearch::NotFound => {
                        before = Some(oldest);
                        continue;
                    }
                    // The flusher applied the frame and the journal was trimmed: the state from before is stale.
                    JournalSearch::Trimmed => {
                        before = None;
                        continue;
                    }
                }
            }
            before = None;
            match state {
                KeyState::Pending { version, value } => match self.fetch(value).await? {
                    FetchedValue::Value(value) => {
                        self.core.metrics.pending_hits.add(1);
                        return Ok(LookupAnswer::pending(version, Some(value)));
                    }
                    FetchedValue::Removed => {
                        self.core.metrics.pending_hits.add(1);
                        return Ok(LookupAnswer::pending(version, None));
                    }
                    // The letter was replayed or discarded: the key has another state by now.
                    FetchedValue::Gone => continue,
                },
                KeyState::InFlightThrough => {
                    self.check_through_can_end()?;
                    through_ended.await;
                    continue;
                }
                KeyState::Absent => {}
            }
            self.core.metrics.store_loads.add(1);
            let loaded = store.load(key).await.map_err(StoreError::into_error)?;
            // A write-through that began during the load may have shown a value that a power cut can still take back,
            // and one that was refused during the load a value that never took effect.
            if !self.core.pending.lock().load_is_in_doubt(key, refused_before) {
                return Ok(LookupAnswer { value: loaded, pending: false });
            }
        }
    }

    /// Returns the value of `key` if it is pending and in memory. `None` means unknown; `Some(None)` that the newest
    /// record removes the key. Costs a lock and no I/O.
    pub fn peek(&self, key: &Key) -> Option<Option<Versioned>> {
        let PendingLookup { state, candidates } = self.core.pending.lock().find(key, None);
        // A candidate in the journal may be newer than what is in memory.
        if !candidates.is_empty() {
            return None;
        }
        match state {
            KeyState::Pending { version, value: PendingValue::InMemory(value) } => {
                Some(Some(Versioned { value, version }))
            }
            KeyState::Pending { value: PendingValue::Removed, .. } => Some(None),
            KeyState::Pending { value: PendingValue::InDeadLetter { .. }, .. }
            | KeyState::InFlightThrough
            | KeyState::Absent => None,
        }
    }

    /// Looks up several keys, in their order; those that are not pending with one call to the store.
    ///
    /// # Errors
    /// As [`Lookup::load`]; one failure fails all.
    pub async fn load_many(&self, keys: &[Key]) -> Result<Vec<LookupAnswer>> {
        let mut found: Vec<Option<LookupAnswer>> = Vec::with_capacity(keys.len());
        let mut absent = Vec::new();
        let refused_before = self.core.pending.lock().refused_throughs();
        for key in keys {
            let PendingLookup { state, candidates } = self.core.pending.lock().find(key, None);
            match state {
                // One call to the store for all of these; the others are few, as a rule.
                KeyState::Absent if candidates.is_empty() => {
                    absent.push(key.clone());
                    found.push(None);
                }
                _ => found.push(Some(self.load(key).await?)),
            }
        }
        self.core.metrics.store_loads.add(absent.len() as u64);
        let loaded = if absent.is_empty() {
            Vec::new()
        } else {
            self.store()?.load_many(&absent).await.map_err(StoreError::into_error)?
        };
        // A store of the user's may break its contract, and an answer must not be taken for another key's.
        if loaded.len() != absent.len() {
            let context = format!("the store answered {} keys out of {}", loaded.len(), absent.len());
            return Err(Error::new(ErrorKind::StoreFailed, context));
        }
        let mut loaded = loaded.into_iter();
        let mut answers = Vec::with_capacity(keys.len());
        for (key, found) in keys.iter().zip(found) {
            let answer = match found {
                Some(answer) => answer,
                None => {
                    let loaded = LookupAnswer { value: loaded.next().flatten(), pending: false };
                    let in_doubt = self.core.pending.lock().load_is_in_doubt(key, refused_before);
                    if in_doubt { self.load(key).await? } else { loaded }
                }
            };
            answers.push(answer);
        }
        Ok(answers)
    }

    /// Reads the point of its history at which the store stands.
    ///
    /// # Errors
    /// The store's.
    pub(crate) async fn standing(&self) -> Result<Standing> {
        self.store()?.standing().await.map_err(StoreError::into_error)
    }

    /// Returns the layer's counters.
    pub fn metrics(&self) -> &Metrics {
        &self.core.metrics
    }

    /// Drops the store; later look-ups fail with [`ErrorKind::Closed`].
    pub(crate) fn release_store(&self) {
        drop(self.store.write().unwrap_or_else(PoisonError::into_inner).take());
    }

    fn store(&self) -> Result<Arc<dyn Store>> {
        self.store.read().unwrap_or_else(PoisonError::into_inner).clone().ok_or_else(Error::layer_closed)
    }

    /// Fails if the layer has ended: its write-throughs stay in flight for ever, and a reader would wait as long.
    fn check_through_can_end(&self) -> Result<()> {
        let status = self.core.status.borrow();
        let ended = matches!(status.state, HealthState::Failed | HealthState::Fenced | HealthState::Closed);
        if !ended {
            return Ok(());
        }
        let reason = status.error.clone().unwrap_or_else(Error::layer_closed);
        let context = "whether a write-through of this key took effect is unknown";
        Err(reason.wrap(ErrorKind::InDoubt, context))
    }

    /// Searches these frames of the journal, newest first, for a key's newest record.
    async fn search_journal(&self, key: &Key, frames: Vec<Location>) -> Result<JournalSearch> {
        let Some(log) = self.log.clone() else { return Ok(JournalSearch::Trimmed) };
        let (key, metrics) = (key.clone(), Arc::clone(&self.core.metrics));
        let search = move || {
            for at in frames {
                metrics.journal_reads.add(1);
                let Some(frame) = log.read_frame(at)? else { return Ok(JournalSearch::Trimmed) };
                if let Some((version, value)) = newest_in(&frame, &key)? {
                    return Ok(JournalSearch::Found(version, value));
                }
            }
            Ok(JournalSearch::NotFound)
        };
        self.run_blocking(search).await
    }

    async fn fetch(&self, value: PendingValue) -> Result<FetchedValue> {
        match value {
            PendingValue::InMemory(value) => Ok(FetchedValue::Value(value)),
            PendingValue::Removed => Ok(FetchedValue::Removed),
            PendingValue::InDeadLetter { letter, record } => {
                let Some(letters) = self.letters.clone() else { return Ok(FetchedValue::Gone) };
                self.run_blocking(move || fetch_from_letter(&letters, letter, record)).await
            }
        }
    }

    /// Runs blocking file access on the layer's own runtime, not on the caller's.
    async fn run_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.runtime.spawn_blocking(work).await.map_err(|_| Error::layer_closed())?
    }
}

/// Returns the last record of `key` in a frame: its number, and its value unless it removes.
fn newest_in(frame: &Frame, key: &Key) -> Result<Option<(Seq, Option<Bytes>)>> {
    let (content, mut newest) = (frame.content(), None);
    for (bytes, at) in slices_of(&content, frame.count).zip(0_u64..) {
        let record = RecordRef::parse(bytes)?;
        if record.is_update() && record.key == key.as_bytes() {
            let value = (record.operation == Operation::Put).then(|| content.slice_ref(record.value));
            newest = Some((frame.first.plus(at), value));
        }
    }
    Ok(newest)
}

fn fetch_from_letter(letters: &DeadLetters, letter: Seq, record: u32) -> Result<FetchedValue> {
    let Some(records) = letters.read(letter)? else { return Ok(FetchedValue::Gone) };
    let Some(found) = records.get(record as usize) else {
        let context = format!("dead letter {letter} lacks its record {record}");
        return Err(Error::new(ErrorKind::Damaged, context));
    };
    Ok(found.stored().map_or(FetchedValue::Removed, FetchedValue::Value))
}
