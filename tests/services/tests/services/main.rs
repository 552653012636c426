//! Stores and buses against real servers, with TLS and without: Postgres, Redis and NATS.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    unreachable_pub,
    reason = "these are tests; their modules share what is public in them"
)]

mod bus;
mod bus_server;
mod nats_bus;
mod postgres_bus;
mod postgres_store;
mod postgres_tls;
mod redis_bus;
