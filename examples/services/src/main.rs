//! Three services and a bus between them: an owner of products, a catalogue and a price list that follow it, each a
//! process of its own, over a real bus and a real database, while their processes are killed and frozen, their
//! connections cut, and the bus's server killed.
//!
//! ```text
//! cargo run --release -p forebay-services -- --bus redis --seconds 60
//! ```
//!
//! This process starts a Postgres server for the store, and the server of the bus (`redis-server`, `nats-server`, or
//! Postgres itself), on free ports of this machine with their data in a temporary directory, and stops them. Each
//! service reaches the bus through a proxy of its own, which can be cut. Services are this program, started again;
//! they speak to the driver in lines over their standard input and output (`service.rs`).
//!
//! - The *owner* writes products: behind, through, around, and removals, and says of each when the store had it.
//! - The *catalogue* follows it, reads products, and keeps pages that it derives from them (`get_or_derive`).
//! - The *prices* follow it, read products, and keep lists that a loader makes and a rule on directives drops.
//!
//! Each read of a follower has a tolerance. The driver knows when each value was replaced, and counts every read that
//! was given one that had been replaced longer ago than that before the read began (`ledger.rs`). At the end all harm
//! is mended, and every follower has to agree with the store on every product. Exit status 1 unless both hold. The
//! consistency monitor looks on, and its table is printed.

#![allow(clippy::print_stdout, clippy::print_stderr, clippy::indexing_slicing, reason = "it is a program")]

mod driver;
mod ledger;
mod service;
mod watching;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};

/// Three services over a real bus, while harm is done to all of them.
#[derive(Clone, Parser, Debug)]
pub(crate) struct Arguments {
    /// The bus.
    #[arg(long, value_enum, default_value_t = BusKind::Redis)]
    bus: BusKind,
    /// For how many seconds harm is done.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Products written per second.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..=20_000))]
    rate: u64,
    /// The kinds of harm (comma-separated); by default all.
    #[arg(long, value_enum, value_delimiter = ',')]
    faults: Vec<Fault>,
    /// The average time between two kinds of harm, in milliseconds.
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(1..))]
    every_ms: u64,
    /// Where the random choices come from; printed at the start.
    #[arg(long)]
    seed: Option<u64>,
    /// Used by the program itself: be this service.
    #[arg(long, value_enum, hide = true)]
    service: Option<Role>,
    /// Used by the program itself: where the bus is.
    #[arg(long, hide = true, default_value = "")]
    bus_url: String,
    /// Used by the program itself: where the store is.
    #[arg(long, hide = true, default_value = "")]
    store_url: String,
    /// Used by the program itself: where the owner's journal is.
    #[arg(long, hide = true)]
    journal: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BusKind {
    Redis,
    Nats,
    Postgres,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum)]
pub(crate) enum Role {
    Owner,
    Catalogue,
    Prices,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Fault {
    /// A service is killed and started again.
    Kill,
    /// A service is frozen for a while.
    Freeze,
    /// A service's connections to the bus are cut for a while.
    Cut,
    /// Holds back what the bus sends to a service.
    Stall,
    /// The bus's server is killed and started again over its data.
    Bus,
}

/// The longest that a follower takes for current without a proof.
pub(crate) const LAG_MAX: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match arguments.service {
        Some(role) => service::run(role, &arguments).map(|()| true),
        None => driver::run(&arguments),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("services: {error:#}");
            ExitCode::FAILURE
        }
    }
}
