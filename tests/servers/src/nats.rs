//! A NATS server with JetStream.

use std::fs;
use std::path::Path;

use crate::certificates::Certificates;
use crate::process::Recipe;
use crate::server::Server;

pub type NatsServer = Server<NatsRecipe>;

/// The options of its start.
#[derive(Default)]
pub struct NatsRecipe {
    password: Option<String>,
    /// Further lines of its file of options.
    config: Option<String>,
    tls: Option<Certificates>,
}

impl Recipe for NatsRecipe {
    fn program(&self) -> &str {
        "nats-server"
    }

    fn arguments(&self, port: u16, data: &Path) -> Vec<String> {
        let mut arguments: Vec<String> = ["-a", "127.0.0.1", "-p"].map(String::from).into();
        arguments.extend([port.to_string(), "-js".into(), "-sd".into(), data.to_str().unwrap().into()]);
        if let Some(password) = &self.password {
            arguments.extend(["--user".into(), "bus".into(), "--pass".into(), password.clone()]);
        }
        if let Some(config) = &self.config {
            let file = data.join("options.conf");
            fs::write(&file, config).unwrap();
            arguments.extend(["-c".into(), file.to_str().unwrap().into()]);
        }
        if let Some(tls) = &self.tls {
            arguments.extend(["--tls".into(), "--tlscert".into(), tls.certificate()]);
            arguments.extend(["--tlskey".into(), tls.key()]);
        }
        arguments
    }

    fn greeting(&self) -> &[u8] {
        b""
    }

    fn answers(&self, answer: &[u8]) -> bool {
        answer.starts_with(b"INFO")
    }

    fn kept(&self) -> &str {
        "jetstream"
    }

    fn is_saved_while_it_runs(&self) -> bool {
        false
    }
}

impl NatsServer {
    pub fn start() -> NatsServer {
        Server::start_as(NatsRecipe::default())
    }

    /// Of a user `bus` with this password.
    pub fn with_password(password: &str) -> NatsServer {
        Server::start_as(NatsRecipe { password: Some(password.into()), ..NatsRecipe::default() })
    }

    /// With this in its file of options.
    pub fn with_config(config: &str) -> NatsServer {
        Server::start_as(NatsRecipe { config: Some(config.into()), ..NatsRecipe::default() })
    }

    pub fn with_tls(tls: Certificates) -> NatsServer {
        Server::start_as(NatsRecipe { tls: Some(tls), ..NatsRecipe::default() })
    }

    pub fn url(&self) -> String {
        let scheme = if self.how.tls.is_some() { "tls" } else { "nats" };
        let user = self.how.password.as_ref().map(|password| format!("bus:{password}@"));
        format!("{scheme}://{}127.0.0.1:{}", user.unwrap_or_default(), self.port())
    }

    pub fn password(&self) -> String {
        self.how.password.clone().unwrap_or_default()
    }
}
