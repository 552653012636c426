//! The servers, and the services as processes, each behind a proxy of its own.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};

use anyhow::{Context as _, Result, anyhow, ensure};
use forebay::testkit::Proxy;

use crate::{Arguments, BusKind, Role};
use forebay_servers::nats::NatsServer;
use forebay_servers::postgres::{PASSWORD, Postgres, USER};
use forebay_servers::redis::RedisServer;

const DATABASE: &str = "shop";

/// The bus's server; of Postgres that is the store's.
enum BusServer {
    Redis(RedisServer),
    Nats(NatsServer),
    Postgres,
}

/// The servers and services of a run.
pub(crate) struct World {
    arguments: Arguments,
    pub(crate) postgres: Postgres,
    bus: BusServer,
    journal: PathBuf,
    _scratch: tempfile::TempDir,
    proxies: HashMap<Role, Proxy>,
    services: HashMap<Role, Child>,
    pub(crate) inputs: Inputs,
    lines: Sender<(Role, String)>,
}

/// Where the services listen. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Inputs(Arc<Mutex<HashMap<Role, ChildStdin>>>);

impl Inputs {
    /// Asks a service something.
    pub(crate) fn ask(&self, role: Role, question: &str) -> Result<()> {
        let mut inputs = self.0.lock().map_err(|_| anyhow!("a thread that asked panicked"))?;
        let input = inputs.get_mut(&role).context("the service does not run")?;
        writeln!(input, "{question}")?;
        Ok(input.flush()?)
    }

    fn set(&self, role: Role, input: Option<ChildStdin>) -> Result<()> {
        let mut inputs = self.0.lock().map_err(|_| anyhow!("a thread that asked panicked"))?;
        match input {
            Some(input) => drop(inputs.insert(role, input)),
            None => drop(inputs.remove(&role)),
        }
        Ok(())
    }
}

impl World {
    pub(crate) async fn start(arguments: &Arguments, lines: Sender<(Role, String)>) -> Result<World> {
        let postgres = Postgres::start();
        postgres.database(DATABASE).await;
        let bus = match arguments.bus {
            BusKind::Redis => BusServer::Redis(RedisServer::start()),
            BusKind::Nats => BusServer::Nats(NatsServer::start()),
            BusKind::Postgres => BusServer::Postgres,
        };
        let scratch = tempfile::tempdir()?;
        let journal = scratch.path().join("journal");
        let mut world = World {
            arguments: arguments.clone(),
            postgres,
            bus,
            journal,
            _scratch: scratch,
            proxies: HashMap::new(),
            services: HashMap::new(),
            inputs: Inputs::default(),
            lines,
        };
        let server = SocketAddr::from((Ipv4Addr::LOCALHOST, world.bus_port()));
        for role in [Role::Owner, Role::Catalogue, Role::Prices] {
            world.proxies.insert(role, Proxy::start(server).await?);
            world.start_service(role)?;
        }
        Ok(world)
    }

    fn bus_port(&self) -> u16 {
        match &self.bus {
            BusServer::Redis(server) => server.port(),
            BusServer::Nats(server) => server.port(),
            BusServer::Postgres => self.postgres.port(),
        }
    }

    pub(crate) fn store_url(&self) -> String {
        self.postgres.url(USER, PASSWORD, DATABASE)
    }

    pub(crate) fn proxy(&self, role: Role) -> &Proxy {
        &self.proxies[&role]
    }

    pub(crate) fn start_service(&mut self, role: Role) -> Result<()> {
        ensure!(!self.services.contains_key(&role), "{role:?} runs already");
        let at = self.proxy(role).address();
        let bus_url = match self.bus {
            BusServer::Redis(_) => format!("redis://{at}"),
            BusServer::Nats(_) => format!("nats://{at}"),
            BusServer::Postgres => format!("postgres://{USER}:{PASSWORD}@{at}/{DATABASE}"),
        };
        let name = |value: &dyn std::fmt::Debug| format!("{value:?}").to_lowercase();
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--service", &name(&role), "--bus", &name(&self.arguments.bus)]);
        command.args(["--bus-url", &bus_url, "--store-url", &self.store_url()]);
        command.args(["--rate", &self.arguments.rate.to_string()]);
        command.arg("--journal").arg(&self.journal);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = child.stdin.take().context("the service has an input")?;
        let output = BufReader::new(child.stdout.take().context("the service has an output")?);
        let lines = self.lines.clone();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if lines.send((role, line)).is_err() {
                    return;
                }
            }
        });
        self.services.insert(role, child);
        self.inputs.set(role, Some(input))
    }

    /// Ends a service at once.
    pub(crate) fn kill(&mut self, role: Role) -> Result<()> {
        let mut child = self.services.remove(&role).context("it runs")?;
        self.inputs.set(role, None)?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Stops a service where it stands, or lets it go on.
    pub(crate) fn signal(&self, role: Role, name: &str) -> Result<()> {
        let id = self.services[&role].id().to_string();
        let sent = Command::new("kill").args([&format!("-{name}"), &id]).status()?;
        ensure!(sent.success(), "signal {name} was not sent to {role:?}");
        Ok(())
    }

    /// True if a service has ended by itself.
    pub(crate) fn has_ended(&mut self) -> Result<Option<Role>> {
        for (role, child) in &mut self.services {
            if child.try_wait()?.is_some() {
                return Ok(Some(*role));
            }
        }
        Ok(None)
    }

    pub(crate) fn kill_bus(&mut self) {
        match &mut self.bus {
            BusServer::Redis(server) => server.kill(),
            BusServer::Nats(server) => server.kill(),
            BusServer::Postgres => self.postgres.kill(),
        }
    }

    pub(crate) fn start_bus(&mut self) {
        match &mut self.bus {
            BusServer::Redis(server) => server.start_again(),
            BusServer::Nats(server) => server.start_again(),
            BusServer::Postgres => self.postgres.run(),
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for child in self.services.values_mut() {
            // It may be gone already.
            drop(child.kill());
            drop(child.wait());
        }
    }
}
