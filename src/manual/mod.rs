//! The manual, in the order of a user's path.
//!
//! - [`start`]: dependencies, the first program, the choices to make, the promises and the limits.
//! - [`writing`]: behind, through and around; receipts, batches, the queue, rejected records.
//! - [`reading`]: loads, staleness bounds, times to live, cache-aside, versioned keys.
//! - [`invalidation`]: keys, namespaces, groups, tags, rules, read sets, schema versions.
//! - [`stores`]: sled, redb, fjall and Postgres, and what to know of each.
//!
//! Between processes:
//!
//! - [`coordination`]: an owner, its followers, and who owns a store.
//! - [`buses`]: in memory, Redis, NATS, and what each loses.
//! - [`events`]: the bytes of an event, for other languages.
#![cfg_attr(
    feature = "postgres",
    doc = "- [`bus_postgres`]: events over a table of Postgres, in the data's own transaction."
)]
#![cfg_attr(
    not(feature = "postgres"),
    doc = "- `bus_postgres` (feature `postgres`): events over a table of Postgres."
)]
//! - [`changes`]: the change stream of a layer, for programs of your own.
//!
//! Running:
//!
//! - [`operating`]: health, closing, threads, files, the binary, damaged journals.
//! - [`durability`]: what each acknowledgement survives, and why.
//! - [`options`]: every option with its default and range.
//! - [`errors`]: every kind of error with a way on, and what to do after a crash.
//! - [`figures`]: metrics, spans, alerts, and advice on the time to live.
//! - [`monitor`]: the share of writes that followers serve within a delay.
//! - [`glossary`]: the words of the crate.
//!
//! For contributors:
//!
//! - [`design`]: the modules and the reasons.
//! - [`testing`]: how the promises are tested, and how to repeat a failure.

macro_rules! pages {
    ($($page:ident)+) => {
        $(#[doc = include_str!(concat!(stringify!($page), ".md"))] pub mod $page {})+
    };
}

pages! { start writing reading invalidation stores coordination buses events changes }
#[cfg(feature = "postgres")]
pages! { bus_postgres }
pages! { operating durability options errors figures monitor glossary design testing }
