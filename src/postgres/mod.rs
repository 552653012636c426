//! The common part of the Postgres store and the Postgres bus: connections, failures, and the outbox table.

pub(crate) mod driver;
pub mod failure;
pub(crate) mod outbox;
pub(crate) mod pool;
pub mod server;
pub mod trigger;

pub use failure::PostgresError;
pub use server::PostgresServer;
pub use trigger::KeyColumn;
