//! The engine joins journal, memory and store. It knows keys and bytes, never types.

pub(crate) mod applied;
pub mod change;
pub mod changes;
pub mod commit;
pub(crate) mod core;
pub mod cursors;
pub mod dead_letters;
pub mod directives;
pub(crate) mod flusher;
pub(crate) mod gate;
pub(crate) mod hand;
pub mod health;
pub mod inspect;
pub mod layer;
pub mod letter_list;
pub mod loader;
pub(crate) mod parking;
pub(crate) mod pending;
pub(crate) mod plan;
pub mod reads;
pub(crate) mod record;
pub(crate) mod recovery;
pub mod tasks;
pub mod throttle;
pub(crate) mod turns;
