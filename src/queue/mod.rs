//! Acknowledged and not yet applied updates: admission, pending records, look-ups, dead letters, key locks, health.

pub(crate) mod age;
pub mod dead_letters;
pub(crate) mod gate;
pub mod health;
pub(crate) mod inbox;
pub(crate) mod key_locks;
pub mod lookup;
pub(crate) mod packed;
pub(crate) mod pending;
pub(crate) mod queued;
pub(crate) mod record;
pub(crate) mod spilled;
pub(crate) mod state;
pub mod ticket;
