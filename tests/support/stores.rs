//! The embedded stores, for tests that all of them have to pass.

use std::path::Path;

#[cfg(feature = "fjall")]
use forebay::store::FjallOptions;
#[cfg(feature = "redb")]
use forebay::store::RedbOptions;
use forebay::store::{SledStore, Store};

/// A store, and its options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Sled,
    #[cfg(feature = "redb")]
    Redb,
    /// redb with quick repair, which commits in two phases.
    #[cfg(feature = "redb")]
    RedbQuick,
    /// fjall with so little memory that it writes and merges tables all the time. It and redb are there where the whole
    /// workspace is tested, whose other members have the features on: they would double what the crate's own tests have
    /// to compile.
    #[cfg(feature = "fjall")]
    Fjall,
}

impl Kind {
    const ALL: &[Kind] = &[
        Kind::Sled,
        #[cfg(feature = "redb")]
        Kind::Redb,
        #[cfg(feature = "redb")]
        Kind::RedbQuick,
        #[cfg(feature = "fjall")]
        Kind::Fjall,
    ];

    pub fn open(self, path: impl AsRef<Path>) -> forebay::Result<Box<dyn Store>> {
        Ok(match self {
            Kind::Sled => Box::new(SledStore::open(path)?),
            #[cfg(feature = "redb")]
            Kind::Redb => Box::new(RedbOptions::new().open(path)?),
            #[cfg(feature = "redb")]
            Kind::RedbQuick => Box::new(RedbOptions::new().quick_repair(true).open(path)?),
            #[cfg(feature = "fjall")]
            Kind::Fjall => Box::new(FjallOptions::new().memtable_bytes(256 << 10).open(path)?),
        })
    }

    /// The file that a batch is written to first, in the store's directory.
    pub fn database(self) -> &'static str {
        match self {
            Kind::Sled => "db",
            #[cfg(feature = "redb")]
            Kind::Redb | Kind::RedbQuick => "data.redb",
            #[cfg(feature = "fjall")]
            Kind::Fjall => "fjall/0.jnl",
        }
    }

    /// The system call that writes it.
    pub fn write_call(self) -> &'static str {
        match self {
            #[cfg(feature = "fjall")]
            Kind::Fjall => "write",
            _ => "pwrite64",
        }
    }

    /// A name for a child's environment; see [`Kind::named`].
    pub fn name(self) -> String {
        format!("{self:?}")
    }

    pub fn named(name: &str) -> Kind {
        *Kind::ALL.iter().find(|kind| kind.name() == name).expect("a store's name")
    }
}
