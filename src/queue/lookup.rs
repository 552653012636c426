//! Reads beyond memory: pending records, wherever their values are, and then the store.
//!
//! Nothing is returned that a crash can take back: what is pending is committed, and what the store shows of a key
//! whose write-through is under way is not believed before the store has confirmed it.

use std::sync::{Arc, PoisonError};

use crate::error::{Error, ErrorKind, Result};
use crate::ids::{Key, Seq};
use crate::journal::frame::{Frame, Location, slices_of};
use crate::journal::log::Log;
use crate::metrics::Metrics;
use crate::queue::dead_letters::DeadLetters;
use crate::queue::health::HealthState;
use crate::queue::pending::{Found, Place, Sought};
use crate::queue::record::{Operation, Record, RecordRef};
use crate::queue::state::Core;
use crate::safeguard::Safeguard;
use crate::seam::clock::Handle;
use crate::seam::sync::RwLock;
use crate::store::contract::{Store, StoreError, Tenure, Versioned};

/// What reading needs of a layer, apart from it: a load may outlive the call that began it, but keeps no layer open.
pub struct Lookup {
    pub(crate) core: Arc<Core>,
    /// Let go when the layer stops, so that the store can be opened again though handles are left.
    pub(crate) store: RwLock<Option<Arc<dyn Store>>>,
    pub(crate) log: Option<Arc<Log>>,
    pub(crate) letters: Option<Arc<DeadLetters>>,
    /// The layer's own runtime: it drives the timers, so that callers need no runtime.
    pub(crate) runtime: Handle,
}

/// What was found beyond memory.
#[derive(Clone, Debug)]
pub struct LookupAnswer {
    /// The value; `None` if there is none.
    pub value: Option<Versioned>,
    /// Whether it was pending, rather than the store's.
    pub pending: bool,
}

impl LookupAnswer {
    fn pending(value: Option<Versioned>) -> LookupAnswer {
        LookupAnswer { value, pending: true }
    }
}

impl Lookup {
    /// Makes memory show every write that was acknowledged before the call. To be called before a cache's memory is
    /// looked at or changed.
    #[inline]
    pub fn catch_up(&self) {
        if Safeguard::MemoryCatchesUp.holds() {
            self.core.pending.catch_up();
        }
    }

    /// The value of `key` that is not in memory: pending, or the store's. `None` if there is none.
    ///
    /// # Errors
    /// The store's, or the journal's if it no longer holds what it has committed.
    pub async fn load(&self, key: &Key) -> Result<LookupAnswer> {
        let store = self.store()?;
        let mut before = None;
        loop {
            let settled = self.core.settled.notified();
            tokio::pin!(settled);
            settled.as_mut().enable();
            let (Sought { found, journaled }, refusals) = {
                let mut pending = self.core.pending.lock();
                (pending.find(key, before), pending.refusals())
            };
            if let Some(oldest) = journaled.last().copied() {
                match self.seek(key, journaled).await? {
                    // A dead letter may be as new.
                    Some(Looked::Found(version, value)) if found.is_before(version) => {
                        self.core.metrics.pending_hits.add(1);
                        return Ok(LookupAnswer::pending(value.map(|value| Versioned { value, version })));
                    }
                    Some(Looked::Found(..)) => {}
                    // Those were of other keys.
                    Some(Looked::NotThere) => {
                        before = Some(oldest);
                        continue;
                    }
                    // Applied and recycled meanwhile.
                    None => {
                        before = None;
                        continue;
                    }
                }
            }
            before = None;
            match found {
                Found::Pending { version, place } => match self.fetch(place).await? {
                    Fetched::Value(value) => {
                        self.core.metrics.pending_hits.add(1);
                        return Ok(LookupAnswer::pending(Some(Versioned { value, version })));
                    }
                    Fetched::Removed => {
                        self.core.metrics.pending_hits.add(1);
                        return Ok(LookupAnswer::pending(None));
                    }
                    Fetched::Gone => continue,
                },
                Found::Unsettled => {
                    self.check_settling()?;
                    settled.await;
                    continue;
                }
                Found::Absent => {}
            }
            self.core.metrics.store_loads.add(1);
            let loaded = store.load(key).await.map_err(StoreError::into_error)?;
            // A write-through that began meanwhile may have shown what a power cut can still take back, or what did not
            // come to be.
            if !self.core.pending.lock().may_have_shown(key, refusals) {
                return Ok(LookupAnswer { value: loaded, pending: false });
            }
        }
    }

    /// The value of `key` if it is pending and at hand without any I/O.
    pub fn peek(&self, key: &Key) -> Option<Option<Versioned>> {
        let Sought { found, journaled } = self.core.pending.lock().find(key, None);
        match found {
            // The journal may have a newer one.
            _ if !journaled.is_empty() => None,
            Found::Pending { version, place: Place::Memory(value) } => {
                Some(Some(Versioned { value, version }))
            }
            Found::Pending { place: Place::Removed, .. } => Some(None),
            _ => None,
        }
    }

    /// Loads several keys, in their order; what is not pending in one call to the store.
    ///
    /// # Errors
    /// As [`Lookup::load`]; one failure fails all.
    pub async fn load_many(&self, keys: &[Key]) -> Result<Vec<LookupAnswer>> {
        let mut found: Vec<Option<LookupAnswer>> = Vec::with_capacity(keys.len());
        let mut absent = Vec::new();
        let refusals = self.core.pending.lock().refusals();
        for key in keys {
            let Sought { found: pending, journaled } = self.core.pending.lock().find(key, None);
            match pending {
                Found::Absent if journaled.is_empty() => {
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
        if loaded.len() != absent.len() {
            let context = format!("the store answered {} keys out of {}", loaded.len(), absent.len());
            return Err(Error::new(ErrorKind::StoreFailed, context));
        }
        let mut loaded = loaded.into_iter();
        let mut all = Vec::with_capacity(keys.len());
        for (key, found) in keys.iter().zip(found) {
            let value = match found {
                Some(value) => value,
                None => {
                    let loaded = LookupAnswer { value: loaded.next().flatten(), pending: false };
                    let doubtful = self.core.pending.lock().may_have_shown(key, refusals);
                    if doubtful { self.load(key).await? } else { loaded }
                }
            };
            all.push(value);
        }
        Ok(all)
    }

    /// How far the store's owner has come.
    ///
    /// # Errors
    /// The store's.
    pub(crate) async fn tenure(&self) -> Result<Tenure> {
        self.store()?.tenure().await.map_err(StoreError::into_error)
    }

    /// The layer's counters.
    pub fn metrics(&self) -> &Metrics {
        &self.core.metrics
    }

    /// Lets the store go.
    pub(crate) fn let_go(&self) {
        drop(self.store.write().unwrap_or_else(PoisonError::into_inner).take());
    }

    fn store(&self) -> Result<Arc<dyn Store>> {
        self.store.read().unwrap_or_else(PoisonError::into_inner).clone().ok_or_else(Error::layer_closed)
    }

    fn check_settling(&self) -> Result<()> {
        let status = self.core.status.borrow();
        let ended = matches!(status.state, HealthState::Failed | HealthState::Fenced | HealthState::Closed);
        if !ended {
            return Ok(());
        }
        let reason = status.error.clone().unwrap_or_else(Error::layer_closed);
        let context = "whether a write-through of this key took effect is unknown";
        Err(reason.wrap(ErrorKind::InDoubt, context))
    }

    /// Looks for a key's newest record in these frames; nothing if one of them left the journal before it was found.
    async fn seek(&self, key: &Key, frames: Vec<Location>) -> Result<Option<Looked>> {
        let Some(log) = self.log.clone() else { return Ok(None) };
        let (key, metrics) = (key.clone(), Arc::clone(&self.core.metrics));
        let look = move || {
            for at in frames {
                metrics.journal_reads.add(1);
                let Some(frame) = log.read_frame(at)? else { return Ok(None) };
                if let Some(newest) = newest_of(&key, &frame)? {
                    return Ok(Some(newest));
                }
            }
            Ok(Some(Looked::NotThere))
        };
        self.aside(look).await
    }

    async fn fetch(&self, place: Place) -> Result<Fetched> {
        match place {
            Place::Memory(value) => Ok(Fetched::Value(value)),
            Place::Removed => Ok(Fetched::Removed),
            Place::DeadLetter { letter, record } => {
                let Some(letters) = self.letters.clone() else { return Ok(Fetched::Gone) };
                self.aside(move || read_from_letters(&letters, letter, record)).await
            }
        }
    }

    /// Runs blocking file access on the layer's own runtime, not on the caller's.
    async fn aside<T: Send + 'static>(&self, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        self.runtime.spawn_blocking(work).await.map_err(|_| Error::layer_closed())?
    }
}

enum Fetched {
    Value(bytes::Bytes),
    Removed,
    Gone,
}

/// What frames of the journal were found to have of a key.
enum Looked {
    /// The newest record's number, and its value unless it removes.
    Found(Seq, Option<bytes::Bytes>),
    NotThere,
}

fn newest_of(key: &Key, frame: &Frame) -> Result<Option<Looked>> {
    let (content, mut found) = (frame.content(), None);
    for (bytes, at) in slices_of(&content, frame.count).zip(0_u64..) {
        let record = RecordRef::parse(bytes)?;
        if record.is_update() && record.key == key.as_bytes() {
            let value = (record.operation == Operation::Put).then(|| content.slice_ref(record.value));
            found = Some(Looked::Found(frame.first.plus(at), value));
        }
    }
    Ok(found)
}

fn read_from_letters(letters: &DeadLetters, letter: Seq, record: u32) -> Result<Fetched> {
    let Some(records) = letters.read(letter)? else { return Ok(Fetched::Gone) };
    match records.get(record as usize) {
        Some(record) => fetched(record),
        None => {
            Err(Error::new(ErrorKind::Damaged, format!("dead letter {letter} lacks its record {record}")))
        }
    }
}

fn fetched(record: &Record) -> Result<Fetched> {
    Ok(record.stored().map_or(Fetched::Removed, Fetched::Value))
}
