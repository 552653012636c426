//! What the Postgres store and the Postgres bus share: reaching a server, its failures, and the outbox table.

pub(crate) mod driver;
pub(crate) mod failure;
pub(crate) mod outbox;
pub(crate) mod pool;
pub mod server;
pub mod trigger;

pub use server::PostgresServer;
pub use trigger::KeyColumn;
