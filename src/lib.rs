//! Forebay is a cache layer in front of a durable store. It acknowledges writes fast, serves reads from memory, and
//! carries every update to the store in order, through crashes.
//!
//! ```no_run
//! use forebay::{Cache, Durability, Forebay, SledStore, WritePolicy};
//!
//! # async fn run() -> Result<(), forebay::Error> {
//! let bay = Forebay::builder(SledStore::open("data/store")?)
//!     .journal("data/journal")
//!     .durability(Durability::Sync)
//!     .open()
//!     .await?;
//! let products: Cache<u64, String> =
//!     bay.cache("products").capacity(100_000).write_policy(WritePolicy::Behind).open()?;
//!
//! let receipt = products.put(&7, "kettle".into()).await?; // durable in the journal before it returns
//! let seen = products.get(&7).await?; // from memory
//! bay.wait_applied(receipt.seq()).await?; // this write is in the store
//! bay.close().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Promises
//!
//! - No acknowledged write is lost: [`Durability::Sync`] survives power loss, [`Durability::Buffered`] `kill -9`.
//! - The store always equals a prefix of the layer's writes, and each write takes effect in it exactly once.
//! - After an acknowledgement every read returns that value or a newer one, though it was evicted or is still queued.
//! - No load that began before a write or an invalidation is cached after it, and no read exceeds its staleness bound.
//! - Memory and disk use are bounded. Damage and failures are reported with file, offset and reason.
//!
//! # The manual
//!
//! | page | subject |
//! | --- | --- |
//! | [`start`](manual::start) | dependencies, choices, all promises, limits |
//! | [`writing`](manual::writing) | behind, through, around; batches, receipts, a full queue, rejected records |
//! | [`reading`](manual::reading) | staleness bounds, times to live, loaders, versioned keys |
//! | [`invalidation`](manual::invalidation) | keys, namespaces, groups, tags, rules, read sets, schemas |
//! | [`stores`](manual::stores) | sled, redb, fjall, Postgres, and a store of your own |
//! | [`coordination`](manual::coordination), [`buses`](manual::buses), [`events`](manual::events), [`changes`](manual::changes) | between processes |
//! | [`operating`](manual::operating), [`durability`](manual::durability), [`options`](manual::options) | running |
//! | [`errors`](manual::errors) | every kind of error, with a way on |
//! | [`figures`](manual::figures), [`monitor`](manual::monitor) | metrics, alerts, consistency |
//! | [`glossary`](manual::glossary), [`design`](manual::design), [`testing`](manual::testing) | words, and pages for contributors |

#![cfg_attr(docsrs, feature(doc_cfg))]

mod builder;
pub mod bus;
mod cache;
pub mod disk;
mod error;
mod feed;
mod flush;
mod forebay;
mod ids;
mod invalidation;
pub mod journal;
mod layer;
pub mod manual;
#[cfg(not(forebay_mutation))]
mod memory;
mod metrics;
pub mod monitor;
#[cfg(not(forebay_mutation))]
mod options;
#[cfg(feature = "postgres")]
mod postgres;
mod queue;
#[cfg(not(forebay_mutation))]
mod safeguard;
#[cfg(not(forebay_simulation))]
mod seam;
pub mod store;
#[cfg(feature = "testkit")]
pub mod testkit;

// For the crate's own tests alone, as the cfgs are.
#[cfg(forebay_mutation)]
pub mod memory;
#[cfg(forebay_mutation)]
pub mod options;
#[cfg(forebay_mutation)]
pub mod safeguard;
#[cfg(forebay_simulation)]
pub mod seam;

pub use crate::builder::Builder;
pub use crate::bus::contract::{Bus, Channel};
pub use crate::bus::local::LocalBus;
#[cfg(feature = "postgres")]
pub use crate::bus::postgres::PostgresBus;
pub use crate::cache::batch::WriteBatch;
#[cfg(feature = "bincode")]
pub use crate::cache::codec::Bincode;
#[cfg(feature = "postcard")]
pub use crate::cache::codec::Postcard;
pub use crate::cache::codec::{CacheKey, CacheValue, Codec, EncodeError};
pub use crate::cache::entry::{Entry, Loaded, ReadOptions, Receipt, Source, StalenessBound, WriteOptions};
pub use crate::cache::loader::LoadError;
pub use crate::cache::opening::CacheBuilder;
pub use crate::cache::rules::{Replacement, Stale};
pub use crate::cache::typed::derive::{BlockingLoadContext, LoadContext};
pub use crate::cache::typed::{BlockingCache, Cache};
pub use crate::cache::versions::VersionReceipt;
pub use crate::error::{Error, ErrorKind, Result};
pub use crate::feed::change::{Change, ChangeKind, ChangeLag, ChangeOutcome, ChangesFrom, CursorStatus};
pub use crate::feed::changes::{BlockingChangeStream, ChangeStream};
pub use crate::feed::follow::{Follow, FollowStatus};
#[cfg(feature = "postgres")]
pub use crate::feed::outbox::OutboxPuts;
pub use crate::feed::publisher::{BlockingPublication, FollowerStatus, Publication, Publish, PublishStatus};
pub use crate::forebay::{BlockingForebay, Forebay};
pub use crate::ids::{
    Epoch, JournalId, KEY_BYTES_MAX, Key, NAMESPACE_BYTES_MAX, NamespaceName, Seq, VALUE_BYTES_MAX,
};
pub use crate::invalidation::Invalidation;
pub use crate::journal::options::{Durability, JournalOptions};
pub use crate::layer::dead_letter_list::DeadLetterList;
// For the crate's own binary.
#[doc(hidden)]
pub use crate::layer::inspect;
pub use crate::layer::ownership::OnOwned;
pub use crate::memory::advice::TtlAdvice;
pub use crate::memory::freshness::OnUnverified;
pub use crate::memory::metrics::{CacheStats, EvictionCause};
pub use crate::memory::servable::{MissReason, StaleReason};
pub use crate::metrics::ages::AgeSummary;
pub use crate::metrics::{Counts, QueueStats, Stats};
pub use crate::monitor::consistency::Monitor;
pub use crate::monitor::observer::{Observation, Observer};
pub use crate::monitor::report::MonitorReport;
pub use crate::options::{Backpressure, OnRejected, WritePolicy};
#[cfg(feature = "postgres")]
pub use crate::postgres::{KeyColumn, PostgresError, PostgresServer};
pub use crate::queue::dead_letters::DeadLetter;
pub use crate::queue::health::{Closed, Health, HealthState};
pub use crate::seam::clock::Clock;
#[cfg(forebay_mutation)]
pub use crate::seam::clock::{Moment, Ticker};
pub use crate::store::contract::Store;
#[cfg(feature = "fjall")]
pub use crate::store::fjall::FjallStore;
pub use crate::store::memory::MemoryStore;
#[cfg(feature = "postgres")]
pub use crate::store::postgres::PostgresStore;
#[cfg(feature = "redb")]
pub use crate::store::redb::RedbStore;
#[cfg(feature = "sled")]
pub use crate::store::sled::SledStore;

/// The README's program compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
