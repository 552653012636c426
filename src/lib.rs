//! Forebay is a cache layer in front of a durable store.
//!
//! This file is a table of contents; what a module promises stands at its own head.

pub mod builder;
pub mod bus;
pub mod cache;
pub mod disk;
pub mod error;
pub mod feed;
pub mod flush;
pub mod ids;
pub mod journal;
pub mod layer;
pub mod manual;
pub mod memory;
pub mod metrics;
pub mod monitor;
pub mod options;
#[cfg(feature = "postgres")]
pub mod postgres;
pub mod queue;
#[cfg(not(feature = "mutation"))]
mod safeguard;
#[cfg(feature = "mutation")]
pub mod safeguard;
#[cfg(not(feature = "simulation"))]
mod seam;
#[cfg(feature = "simulation")]
pub mod seam;
pub mod store;
#[cfg(feature = "testkit")]
pub mod testkit;

pub use crate::builder::blocking::BlockingForebay;
pub use crate::builder::{Builder, Forebay};
pub use crate::bus::contract::{Bus, Channel};
pub use crate::bus::local::LocalBus;
#[cfg(feature = "postgres")]
pub use crate::bus::postgres::PostgresBus;
pub use crate::cache::batch::Batch;
pub use crate::cache::blocking::BlockingCache;
#[cfg(feature = "postcard")]
pub use crate::cache::codec::Postcard;
pub use crate::cache::codec::{Bincode, Codec};
pub use crate::cache::derive::{BlockingLoadContext, LoadContext};
pub use crate::cache::entry::{Entry, Loaded, MetBound, ReadOptions, Source, WriteOptions};
pub use crate::cache::group::{BlockingGroup, Group};
pub use crate::cache::opening::CacheBuilder;
pub use crate::cache::receipt::Receipt;
pub use crate::cache::rules::{Replacement, Stale};
pub use crate::cache::typed::Cache;
pub use crate::cache::versions::{VersionPlace, VersionReceipt};
pub use crate::error::{Error, ErrorKind, Result};
pub use crate::feed::change::{Change, ChangeKind, ChangeLag, ChangeOutcome, ChangesFrom, CursorStatus};
pub use crate::feed::changes::{BlockingChangeStream, ChangeStream};
pub use crate::feed::follow::{Follow, FollowStatus};
#[cfg(feature = "postgres")]
pub use crate::feed::outbox::OutboxPuts;
pub use crate::feed::publisher::{FollowerStatus, Publication, Publish, PublishStatus};
pub use crate::ids::{Epoch, JournalId, Key, NamespaceName, Seq};
pub use crate::journal::options::{Durability, JournalOptions};
pub use crate::layer::dead_letter_list::DeadLetterList;
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
pub use crate::postgres::server::PostgresServer;
pub use crate::queue::dead_letters::DeadLetter;
pub use crate::queue::health::{Closed, Health, HealthState};
pub use crate::seam::clock::{Clock, Moment, Ticker};
pub use crate::store::contract::Store;
#[cfg(feature = "fjall")]
pub use crate::store::fjall::FjallStore;
pub use crate::store::memory::MemoryStore;
#[cfg(feature = "postgres")]
pub use crate::store::postgres::PostgresStore;
#[cfg(feature = "redb")]
pub use crate::store::redb::RedbStore;
pub use crate::store::sled::SledStore;

/// The README's program compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
