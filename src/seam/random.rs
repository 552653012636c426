//! Random numbers for nonces, identities, waits, and the keys of hash tables.

#[cfg(not(forebay_simulation))]
pub(crate) use {
    getrandom::{fill, u32},
    quick_cache::DefaultHashBuilder as HashBuilder,
};

#[cfg(forebay_simulation)]
pub(crate) use crate::seam::simulated::{HashBuilder, fill, u32};
