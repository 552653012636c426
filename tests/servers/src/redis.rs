//! A Redis server that syncs every write.

use std::path::Path;

use crate::certificates::Certificates;
use crate::process::Recipe;
use crate::server::Server;

pub type RedisServer = Server<RedisRecipe>;

/// The options of its start.
#[derive(Default)]
pub struct RedisRecipe {
    password: Option<String>,
    tls: Option<Certificates>,
}

impl Recipe for RedisRecipe {
    fn program(&self) -> &str {
        "redis-server"
    }

    fn arguments(&self, port: u16, data: &Path) -> Vec<String> {
        let directory = data.to_str().unwrap();
        let mut arguments: Vec<String> =
            ["--bind", "127.0.0.1", "--dir", directory, "--save", "", "--appendonly", "yes"]
                .map(String::from)
                .into();
        arguments.extend(["--appendfsync", "always", "--daemonize", "no"].map(String::from));
        if let Some(password) = &self.password {
            arguments.extend(["--requirepass".into(), password.clone()]);
        }
        let port = port.to_string();
        match &self.tls {
            None => arguments.extend(["--port".into(), port]),
            Some(tls) => {
                arguments.extend(["--port", "0", "--tls-auth-clients", "no"].map(String::from));
                let files = [
                    ("--tls-port", port),
                    ("--tls-cert-file", tls.certificate()),
                    ("--tls-key-file", tls.key()),
                    ("--tls-ca-cert-file", tls.authority()),
                ];
                arguments.extend(files.into_iter().flat_map(|(option, value)| [option.into(), value]));
            }
        }
        arguments
    }

    fn greeting(&self) -> &[u8] {
        b"PING\r\n"
    }

    fn answers(&self, answer: &[u8]) -> bool {
        // With TLS whatever is no handshake ends the connection.
        self.tls.is_some() || answer.starts_with(b"+PONG") || answer.starts_with(b"-NOAUTH")
    }

    fn kept(&self) -> &str {
        "appendonlydir"
    }

    fn is_saved_while_it_runs(&self) -> bool {
        true
    }
}

impl RedisServer {
    pub fn start() -> RedisServer {
        Server::start_as(RedisRecipe::default())
    }

    pub fn with_password(password: &str) -> RedisServer {
        Server::start_as(RedisRecipe { password: Some(password.into()), tls: None })
    }

    pub fn with_tls(tls: Certificates) -> RedisServer {
        Server::start_as(RedisRecipe { password: None, tls: Some(tls) })
    }

    pub fn url(&self) -> String {
        let scheme = if self.how.tls.is_some() { "rediss" } else { "redis" };
        let password = self.how.password.as_ref().map(|password| format!(":{password}@"));
        format!("{scheme}://{}127.0.0.1:{}", password.unwrap_or_default(), self.port())
    }
}
