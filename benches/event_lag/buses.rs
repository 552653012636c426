//! The buses, each with a server of its own, and the store that lies behind owner and follower.

use std::any::Any;
use std::fmt;
use std::fs;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::ValueEnum;
use forebay::bus::{NatsBus, RedisBus};
use forebay::store::PostgresStoreOptions;
use forebay::{Bus, Channel, LocalBus, MemoryStore, OutboxPuts, PostgresBus, Store};

use forebay_servers::nats::NatsServer;
use forebay_servers::postgres::Postgres;
use forebay_servers::redis::RedisServer;

pub(crate) const CHANNEL: &str = "lag";
const DATABASE: &str = "lag";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Over {
    Local,
    Redis,
    Nats,
    Postgres,
    /// The store is a Postgres database, too, and writes the events in the transaction that changes the data.
    PostgresOutbox,
}

impl Over {
    pub(crate) const ALL: [Over; 5] =
        [Over::Local, Over::Redis, Over::Nats, Over::Postgres, Over::PostgresOutbox];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Over::Local => "local",
            Over::Redis => "redis",
            Over::Nats => "nats",
            Over::Postgres => "postgres",
            Over::PostgresOutbox => "postgres-outbox",
        }
    }

    /// The server's program, and the Debian package that has it.
    fn program(self) -> Option<(&'static str, &'static str)> {
        match self {
            Over::Local => None,
            Over::Redis => Some(("redis-server", "redis-server")),
            Over::Nats => Some(("nats-server", "nats-server")),
            Over::Postgres | Over::PostgresOutbox => Some(("postgres", "postgresql")),
        }
    }

    /// Fails unless its server is installed.
    pub(crate) fn check(self) -> Result<()> {
        let Some((program, package)) = self.program() else { return Ok(()) };
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut places: Vec<PathBuf> = std::env::split_paths(&path).collect();
        // Debian has servers where only the administrator's PATH leads, or none.
        places.extend(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from));
        if program == "postgres" {
            let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
            places = versions.map(|version| version.path().join("bin")).collect();
        }
        let is_there = places.iter().any(|place| place.join(program).is_file());
        ensure!(is_there, "{program} is not installed: Debian has it in the package {package}");
        Ok(())
    }
}

impl fmt::Display for Over {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The stores and the buses of an owner and a follower. With an outbox the owner's store publishes.
pub(crate) struct Ground {
    pub(crate) owner_store: Box<dyn Store>,
    pub(crate) follower_store: Box<dyn Store>,
    pub(crate) owner_bus: Option<Box<dyn Bus>>,
    pub(crate) follower_bus: Box<dyn Bus>,
    /// Ends when it is dropped.
    _server: Box<dyn Any + Send>,
}

impl Ground {
    /// Starts the server, and opens a client for each of the two.
    pub(crate) async fn new(over: Over) -> Result<Ground> {
        let store = MemoryStore::new();
        let on = |owner: Box<dyn Bus>, follower: Box<dyn Bus>, server: Box<dyn Any + Send>| Ground {
            owner_store: Box::new(store.clone()),
            follower_store: Box::new(store.clone()),
            owner_bus: Some(owner),
            follower_bus: follower,
            _server: server,
        };
        Ok(match over {
            Over::Local => {
                let bus = LocalBus::default();
                on(Box::new(bus.clone()), Box::new(bus), Box::new(()))
            }
            Over::Redis => {
                let server = RedisServer::start();
                let bus = || RedisBus::new(&server.url());
                on(Box::new(bus()?), Box::new(bus()?), Box::new(server))
            }
            Over::Nats => {
                let server = NatsServer::start();
                let bus = || NatsBus::new(&server.url());
                on(Box::new(bus()?), Box::new(bus()?), Box::new(server))
            }
            Over::Postgres => {
                let server = Postgres::start();
                let database = server.server(&server.database(DATABASE).await);
                let bus = || PostgresBus::open(database.clone());
                on(Box::new(bus()?), Box::new(bus()?), Box::new(server))
            }
            Over::PostgresOutbox => {
                let server = Postgres::start();
                let database = server.server(&server.database(DATABASE).await);
                let store = || PostgresStoreOptions::new(database.clone());
                let owner = store().outbox(&Channel::parse(CHANNEL)?, OutboxPuts::default()).open().await?;
                Ground {
                    owner_store: Box::new(owner),
                    follower_store: Box::new(store().open().await?),
                    owner_bus: None,
                    follower_bus: Box::new(PostgresBus::open(database.clone())?),
                    _server: Box::new(server),
                }
            }
        })
    }
}
