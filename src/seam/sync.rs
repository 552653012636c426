//! Threads, locks and atomics. Everything in the crate that may block a thread, or that threads race for, comes from
//! here.
//!
//! Not from here: `Arc`, `OnceLock` and counters, on which no thread waits; tokio's channels and semaphores, which
//! never block a thread; and locks that are held over no other call of this module (the memory store's, the simulated
//! disk's, quick_cache's), which one simulated thread can therefore never find taken by another.

#[cfg(not(forebay_simulation))]
pub(crate) use std::{
    sync::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic},
    thread, thread_local,
};

#[cfg(forebay_simulation)]
pub(crate) use {
    crate::seam::simulated::Condvar,
    shuttle::{
        sync::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic},
        thread, thread_local,
    },
};
