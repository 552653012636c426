//! The operator's tool: checks and prints a layer's files, drains them, and salvages what is sound of a damaged
//! journal.
//!
//! `verify`, `inspect`, `tail` and `dead-letters list` take no lock and change nothing, so they work beside a running
//! layer. Nothing that is printed ever holds a value, and of a key only a bounded, escaped prefix.
//!
//! Exit status: 0 if all is well, 1 if something is damaged, lost or not done, 2 for a wrong call or a failing file
//! system.

mod common;
mod drain;
mod inspect;
mod letters;
mod salvage;
mod tail;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::common::{StoreUrl, Verdict};

#[derive(Parser)]
#[command(name = "forebay", version, about = "Checks, drains and repairs the journal of a Forebay layer.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Check everything in a journal's directory, dead letters included. Changes nothing.
    Verify {
        /// The journal's directory.
        dir: PathBuf,
        /// The journal is used by itself, as a queue: its records are not a layer's.
        #[arg(long)]
        queue: bool,
    },
    /// Show what a journal's directory holds: segments, pending records, dead letters. Changes nothing.
    Inspect {
        /// The journal's directory.
        dir: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        /// The store that knows what is pending, as sled:PATH, redb:PATH or fjall:PATH. It is opened, so its layer must
        /// be closed.
        #[arg(long)]
        store: Option<StoreUrl>,
    },
    /// Print the records: number, operation, namespace, key, length of the value. Changes nothing.
    Tail {
        /// The journal's directory.
        dir: PathBuf,
        /// The first sequence number to print.
        #[arg(long, default_value_t = 0)]
        from: u64,
        /// Go on with records that are written from now on, until interrupted.
        #[arg(long)]
        follow: bool,
    },
    /// Write what can be proven good to a new journal, and list what is lost.
    Salvage {
        /// The damaged journal's directory. It is not changed.
        dir: PathBuf,
        /// The new journal's directory, which must not exist.
        #[arg(long)]
        out: PathBuf,
        /// The store, as sled:PATH, redb:PATH or fjall:PATH: a hole that it holds already is no loss. It is opened, so
        /// its layer must be closed.
        #[arg(long)]
        store: Option<StoreUrl>,
        /// Go on behind the first hole. A store that is fed from the new journal then lacks writes in between.
        #[arg(long)]
        past_holes: bool,
    },
    /// Open the layer and apply everything that is pending to the store.
    Drain {
        /// The journal's directory.
        dir: PathBuf,
        #[command(flatten)]
        opening: Opening,
        /// The seconds to try; without it, until everything is in the store.
        #[arg(long)]
        deadline: Option<u64>,
        /// Put records that the store rejects into the dead-letter list instead of stopping at them.
        #[arg(long)]
        park: bool,
    },
    /// List, replay or discard the records that the store rejected.
    DeadLetters {
        /// The journal's directory.
        dir: PathBuf,
        #[command(subcommand)]
        action: Letters,
    },
}

#[derive(Args)]
struct Opening {
    /// The store, as sled:PATH, redb:PATH or fjall:PATH. It must exist.
    #[arg(long)]
    store: StoreUrl,
    /// Accept that the end of the journal that the store was fed from is gone.
    #[arg(long)]
    replace_journal: bool,
}

#[derive(Subcommand)]
enum Letters {
    /// List them. Changes nothing.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Open the layer and send letters to the store again, with all that share a batch or a key with them.
    Replay(Choice),
    /// Open the layer and discard letters, with all that share a batch or a key with them.
    Discard(Choice),
}

#[derive(Args)]
struct Choice {
    #[command(flatten)]
    opening: Opening,
    /// The sequence numbers, as `list` shows them, with commas in between.
    #[arg(long, value_delimiter = ',', required_unless_present = "all")]
    seq: Vec<u64>,
    /// All of them.
    #[arg(long, conflicts_with = "seq")]
    all: bool,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(Verdict::Good) => ExitCode::SUCCESS,
        Ok(Verdict::Bad) => ExitCode::from(1),
        Err(error) => common::report(&error),
    }
}

fn run(command: Command) -> anyhow::Result<Verdict> {
    match command {
        Command::Verify { dir, queue } => verify::run(&dir, queue),
        Command::Inspect { dir, json, store } => inspect::run(&dir, json, store.as_ref()),
        Command::Tail { dir, from, follow } => tail::run(&dir, from, follow),
        Command::Salvage { dir, out, store, past_holes } => {
            salvage::run(&dir, &out, store.as_ref(), past_holes)
        }
        Command::Drain { dir, opening, deadline, park } => drain::run(&dir, &opening, deadline, park),
        Command::DeadLetters { dir, action } => letters::run(&dir, &action),
    }
}
