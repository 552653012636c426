//! Forebay and its peers on the same work, in turn, in one process: what a durable write costs with each.
//!
//! ```text
//! benches/peers/install
//! cargo run --release --manifest-path benches/peers/Cargo.toml
//! cargo run --release --manifest-path benches/peers/Cargo.toml -- --smoke
//! ```
//!
//! For each durability, number of writers and size of values, every round lets each of them put in turn, so that a mood
//! of the disk meets them all; the first of a round changes. A figure is the median over the rounds. All of them lie on
//! the same file system, each in a fresh directory. `benches/NOTES.md` says how to read the results.
//!
//! The table goes to the terminal; the same figures to `peers.json`, a report for people to `peers.html`, and its
//! tables to `peers.md`, all in `target/forebay/`.

#![forbid(unsafe_code)]

mod arguments;
mod calls;
mod charts;
#[path = "../../support/fair.rs"]
mod fair;
#[path = "../../support/figures.rs"]
mod figures;
mod load;
mod machine;
mod peers;
#[path = "../../support/raw_file.rs"]
mod raw_file;
mod report;
mod results;
mod run;
mod subject;
mod table;
mod targets;
mod trace;

use anyhow::Result;
use clap::Parser as _;

fn main() -> Result<()> {
    run::run(&arguments::Arguments::parse())
}
