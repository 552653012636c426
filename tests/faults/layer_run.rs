//! A layer that is worked with on a simulated disk and a store whose state can be copied, and what is known of it.
//!
//! The work follows from a seed: writes behind and through, removals, batches, two caches (one coalesces), keys that
//! the store rejects, dead letters replayed and discarded, flushes, ends with and without a close.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use forebay::disk::{Disk, SimDisk};
use forebay::{
    Bincode, Cache, Codec, Durability, Error, Forebay, Key, NamespaceName, OnRejected, WritePolicy,
};

use crate::history_store::HistoryStore;
use crate::journal_run::{self, Draw, layout};
use crate::support::order::{Order, Promised};

/// A cache's number and a key in it. The store takes every op of `PLAIN`, coalesced ones of `COALESCED`, and none of
/// `REJECTED` unless it is told to.
pub type Place = (usize, u32);

pub const PLAIN: usize = 0;
pub const COALESCED: usize = 1;
pub const REJECTED: usize = 2;
/// Of the rejected keys the first is replayed sometimes, the second is discarded sometimes.
pub const REPLAYED: Place = (REJECTED, 0);
pub const DISCARDED: Place = (REJECTED, 1);
const NAMES: [&str; 3] = ["plain", "coalesced", "rejected"];
const KEYS: [u32; 3] = [5, 3, 2];

pub fn key_of((cache, key): Place) -> Key {
    let mut encoded = Vec::new();
    Bincode::encode(&key, 1 << 20, &mut encoded).unwrap();
    Key::new(&NamespaceName::parse(NAMES[cache]).unwrap(), &encoded).unwrap()
}

/// One atomic write: what it makes of which keys. Values are known by their serial number.
pub type Write = Vec<(Place, Option<u64>)>;

/// Everything known of a layer at one moment.
#[derive(Clone, Default)]
pub struct History {
    pub issued: Vec<Write>,
    /// In how many writes.
    pub promised: Promised,
    serial: u64,
}

impl History {
    /// Returns what every key shows after the first `count` writes.
    pub fn state_after(&self, count: usize) -> BTreeMap<Place, u64> {
        let mut order = Order::default();
        for (number, write) in self.issued.iter().enumerate() {
            for (place, value) in write {
                order.insert(*place, number + 1, *value);
            }
        }
        order.content(count)
    }

    fn promise(&mut self, count: usize, durable: bool) {
        match durable {
            true => self.promised.durable(count as u64),
            false => self.promised.written(count as u64),
        }
    }

    fn issue(&mut self, write: Write) -> Write {
        self.issued.push(write.clone());
        write
    }

    fn value(&mut self) -> Option<u64> {
        self.serial += 1;
        Some(self.serial)
    }

    /// Takes what was recovered for all there is, from now on and for good.
    pub fn cut_after(&mut self, count: usize) {
        self.issued.truncate(count);
        self.promised.cut_after(count as u64);
    }

    /// Returns the number of writes up to the one that gave this value.
    fn count_up_to(&self, serial: u64) -> Option<usize> {
        let holds = |write: &Write| write.iter().any(|(_, value)| *value == Some(serial));
        self.issued.iter().rposition(holds).map(|at| at + 1)
    }
}

pub type Shared = journal_run::Shared<History>;

/// The options of a layer.
#[derive(Clone, Debug)]
pub struct Kind {
    pub durability: Durability,
    pub recycle: bool,
    pub zero_fill: bool,
    pub spares_max: usize,
}

impl Kind {
    pub fn is_sync(&self) -> bool {
        self.durability == Durability::Sync
    }
}

/// An open layer.
pub struct Run {
    pub kind: Kind,
    pub bay: Forebay,
    pub caches: Vec<Cache<u32, Vec<u8>>>,
    pub store: HistoryStore,
    pub history: Shared,
}

impl Run {
    /// # Errors
    /// The layer's.
    pub fn open(disk: &SimDisk, store: &HistoryStore, kind: &Kind, history: &Shared) -> Result<Run, Error> {
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        let bay = Forebay::builder(store.clone())
            .journal("/journal")
            .journal_options(layout(kind.recycle, kind.zero_fill, kind.spares_max))
            .durability(kind.durability)
            .on_rejected(OnRejected::Park)
            // So that segments are recycled.
            .retain_applied_for(Duration::ZERO)
            .batch_linger(Duration::ZERO)
            // Some values are in memory, most have to be read back.
            .pending_memory_bytes_max(20_000)
            .retry_backoff(Duration::from_millis(1), Duration::from_millis(1))
            .disk(shared)
            .open_blocking()?;
        let open = |cache: usize| bay.cache(NAMES[cache]).coalesce(cache == COALESCED).open();
        let caches = (0..NAMES.len()).map(open).collect::<Result<Vec<_>, Error>>()?;
        let (kind, store, history) = (kind.clone(), store.clone(), history.clone());
        Ok(Run { kind, bay, caches, store, history })
    }

    /// Reads every key.
    ///
    /// # Errors
    /// The layer's, or a value that nobody wrote.
    pub fn read_all(&self) -> Result<BTreeMap<Place, u64>, String> {
        let mut state = BTreeMap::new();
        for (cache, keys) in (0..).zip(KEYS) {
            for key in 0..keys {
                let got = self.caches[cache].blocking().get(&key);
                if let Some(value) = got.map_err(|error| format!("reading {cache}/{key}: {error:?}"))? {
                    state.insert((cache, key), serial_of(&value)?);
                }
            }
        }
        Ok(state)
    }

    /// Reads a key, and notes what that promises: under `Sync` nobody sees what a power cut could take.
    ///
    /// # Errors
    /// As [`Run::read_all`].
    pub fn look(&self, (cache, key): Place) -> Result<(), String> {
        let got = self.caches[cache].blocking().get(&key).map_err(|error| format!("reading: {error:?}"))?;
        let Some(value) = got else { return Ok(()) };
        let serial = serial_of(&value)?;
        let mut history = self.history.lock();
        let count = history.count_up_to(serial).ok_or(format!("value {serial} was never written"))?;
        history.promise(count, self.kind.is_sync());
        Ok(())
    }

    /// Writes, and notes the outcome if it is good.
    ///
    /// # Errors
    /// The layer's.
    pub fn write(&self, write: Write, size: usize, policy: WritePolicy) -> Result<(), Error> {
        let write = self.history.lock().issue(write);
        let mut batch = self.bay.batch();
        for ((cache, key), value) in &write {
            match value {
                Some(serial) => drop(batch.put(&self.caches[*cache], key, value_of(*serial, size))?),
                None => drop(batch.remove(&self.caches[*cache], key)?),
            }
        }
        batch.write_policy(policy);
        self.bay.blocking().commit(batch)?;
        self.acknowledged(policy == WritePolicy::Through);
        Ok(())
    }

    pub fn acknowledged(&self, durable: bool) {
        let mut history = self.history.lock();
        let all = history.issued.len();
        history.promise(all, durable || self.kind.is_sync());
    }

    /// # Errors
    /// The layer's.
    pub fn flush(&self) -> Result<(), Error> {
        self.bay.blocking().flush()?;
        self.acknowledged(true);
        Ok(())
    }

    /// Replays what the store has rejected of a key, which it takes now.
    ///
    /// # Errors
    /// The layer's.
    pub fn replay(&self) -> Result<(), Error> {
        self.store.reject([key_of(DISCARDED)]);
        self.bay.blocking().replay_dead_letters(&[key_of(REPLAYED)])?;
        self.acknowledged(true);
        self.store.reject([key_of(REPLAYED), key_of(DISCARDED)]);
        Ok(())
    }

    /// Gives up what the store has rejected of a key, of which it holds nothing.
    ///
    /// # Errors
    /// The layer's.
    pub fn discard(&self) -> Result<(), Error> {
        self.history.lock().issue(vec![(DISCARDED, None)]);
        self.bay.blocking().discard_dead_letters(&[key_of(DISCARDED)])?;
        self.acknowledged(true);
        Ok(())
    }

    /// One step, as the seed has it.
    ///
    /// # Errors
    /// The layer's.
    pub fn step(&self, draw: &mut Draw) -> Result<(), Error> {
        let (size, policy) = match draw.below(8) {
            0 => (30_000, WritePolicy::Behind),
            1 => (200, WritePolicy::Through),
            _ => (10 + draw.below(9_000) as usize, WritePolicy::Behind),
        };
        let place = |draw: &mut Draw, cache: usize| (cache, draw.below(u64::from(KEYS[cache])) as u32);
        match draw.below(20) {
            0 => self.flush(),
            1 => self.replay(),
            2 => self.discard(),
            3..6 => {
                let place = place(draw, REJECTED);
                let value = self.history.lock().value();
                self.write(vec![(place, value)], size / 4, WritePolicy::Behind)
            }
            6 | 7 => {
                let write = {
                    let mut history = self.history.lock();
                    let plain = (place(draw, PLAIN), history.value());
                    vec![plain, (place(draw, COALESCED), history.value())]
                };
                self.write(write, size / 2, policy)
            }
            8 => {
                let removed = place(draw, PLAIN);
                self.write(vec![(removed, None)], 0, policy)
            }
            drawn => {
                let place = place(draw, if drawn < 13 { COALESCED } else { PLAIN });
                let value = self.history.lock().value();
                self.write(vec![(place, value)], size, policy)
            }
        }
    }

    /// Checks that the layer, and then the store, shows what it must: a prefix of the history, which is all there is
    /// from then on.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn verify(&self, power_cut: bool) -> Result<(), String> {
        let history = self.history.now();
        let least = history.promised.least(power_cut) as usize;
        let shown = self.read_all()?;
        let fits = |count: &usize| history.state_after(*count) == shown;
        let mut counts: Vec<usize> = (least..=history.issued.len()).filter(fits).collect();
        if counts.is_empty() {
            let before: Vec<usize> = (0..least).filter(fits).collect();
            return Err(format!(
                "shows {shown:?}: no prefix of {least} to {} writes (but the prefixes {before:?}) of {:?}",
                history.issued.len(),
                history.issued
            ));
        }
        self.bay.blocking().flush().map_err(|error| format!("flushing: {error:?}"))?;
        let after = self.read_all()?;
        // A discard that was not acknowledged is the last write, and takes effect when the flusher gets there.
        let whole = history.issued.len();
        let discards = history.issued.last().is_some_and(|write| *write == [(DISCARDED, None)]);
        if after != shown && discards && after == history.state_after(whole) && fits(&(whole - 1)) {
            counts.push(whole);
        } else if after != shown {
            return Err(format!("showed {shown:?}, and after the flush {after:?}"));
        }
        let count = self.verify_store(&history, &counts)?;
        self.history.lock().cut_after(count);
        Ok(())
    }

    /// The store holds a prefix of the history without the parked keys, each of its ops once and in order.
    fn verify_store(&self, history: &History, counts: &[usize]) -> Result<usize, String> {
        let ops = self.store.ops();
        let mut seqs = ops.iter().filter(|op| op.key.namespace() != NAMES[REJECTED]).map(|op| op.seq);
        let mut last = None;
        if let Some(seq) = seqs.find(|seq| last.replace(*seq).is_some_and(|last| last >= *seq)) {
            return Err(format!("the store took record {seq} after one at least as late"));
        }
        let mut taken = Vec::new();
        for op in ops.iter().filter(|op| op.key.namespace() == NAMES[PLAIN]) {
            let value = op.value.as_ref().map(|value| decoded(value)).transpose()?;
            taken.push((op.key.clone(), value));
        }
        let plain = |count: usize| {
            let changes = history.issued[..count].iter().flatten();
            let plain = changes.filter(|((cache, _), _)| *cache == PLAIN);
            plain.map(|(place, value)| (key_of(*place), *value)).collect::<Vec<_>>()
        };
        let Some(count) = counts.iter().rev().find(|count| plain(**count) == taken) else {
            return Err(format!(
                "the store took {} plain ops, which are not those of {counts:?} writes",
                taken.len()
            ));
        };
        let data = self.store.data();
        for (place, serial) in history.state_after(*count) {
            let held = data.get(&key_of(place)).map(|held| decoded(&held.value)).transpose()?;
            if place.0 != REJECTED && held != Some(serial) {
                return Err(format!("the store holds {held:?} for {place:?}, not {serial}"));
            }
        }
        Ok(*count)
    }

    /// # Errors
    /// The layer's, or why something is left.
    pub fn close(self) -> Result<(), Error> {
        let closed = self.bay.blocking().close()?;
        if let Some(error) = closed.reason {
            return Err(error);
        }
        self.acknowledged(true);
        Ok(())
    }
}

fn value_of(serial: u64, size: usize) -> Vec<u8> {
    let mut value = serial.to_le_bytes().to_vec();
    let mut at = serial << 32;
    while value.len() < size {
        at += 1;
        value.extend_from_slice(&at.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    }
    value
}

fn serial_of(value: &[u8]) -> Result<u64, String> {
    let serial =
        value.first_chunk().map(|serial| u64::from_le_bytes(*serial)).ok_or("a value without a serial")?;
    if value != value_of(serial, value.len()) {
        return Err(format!("value {serial} is not as it was written"));
    }
    Ok(serial)
}

fn decoded(stored: &[u8]) -> Result<u64, String> {
    let value: Vec<u8> = Bincode::decode(&stored[2..]).map_err(|error| format!("{error:?}"))?;
    serial_of(&value)
}
