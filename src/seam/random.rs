//! Random numbers for nonces, identities, waits, and the keys of hash tables.

#[cfg(not(forebay_simulation))]
pub(crate) use {
    getrandom::{fill, u32},
    quick_cache::DefaultHashBuilder as HashBuilder,
};

#[cfg(forebay_simulation)]
pub(crate) use crate::seam::simulated::{HashBuilder, fill, u32};

use crate::error::{Error, ErrorKind, Result};

/// Draws the bytes of an identity; `what` names it in the error.
pub(crate) fn identity(what: &str) -> Result<[u8; 16]> {
    let mut bytes = [0; 16];
    fill(&mut bytes).map_err(|error| Error::new(ErrorKind::Io, format!("cannot draw {what}: {error}")))?;
    Ok(bytes)
}
