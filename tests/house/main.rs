//! Holds the shape of the source. The checks read the files as text, without comments and literals, so that they name a
//! file and a line. Each check is itself tested on sources that break it.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    unreachable_pub,
    reason = "these are tests; their modules share what is public in them"
)]

mod files;
mod module_ranks;
mod modules;
mod text;
