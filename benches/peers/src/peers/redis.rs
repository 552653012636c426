//! A Redis server of our own over loopback: in the subject's directory, on a free port, and ended with the subject.

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::thread;

use ::redis::io::tcp::TcpSettings;
use ::redis::{Client, Connection, ConnectionAddr, IntoConnectionInfo as _};
use anyhow::{Context as _, Result, anyhow, bail};

use crate::subject::{Class, Entry, Face, Subject, Writer};

const PROGRAM: &str = "redis-server";

pub(crate) const ENTRY: Entry = Entry {
    name: "redis",
    classes: &[
        (
            Class::Synced,
            "a server over loopback, appendonly, appendfsync always, no snapshots, no rewrite of the log; \
             a connection per thread, SET",
        ),
        (Class::Unsynced, "as synced, with appendfsync everysec"),
    ],
    faces: &[Face::Threads],
    open: |directory, class| Ok(Box::new(Redis::start(&directory.join("redis"), class)?)),
};

struct Redis {
    /// Killed and waited for when this is dropped.
    server: Mutex<Server>,
    client: Client,
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // Its data are deleted with the directory. An error means that it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Redis {
    fn start(directory: &Path, class: Class) -> Result<Redis> {
        std::fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
        // Free when it was asked for; should somebody else take it meanwhile, the server says so and ends.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let fsync = if class == Class::Synced { "always" } else { "everysec" };
        let mut command = Command::new(PROGRAM);
        command
            .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--daemonize", "no"])
            .arg("--dir")
            .arg(directory)
            .args(["--appendonly", "yes", "--appendfsync", fsync])
            .args(["--save", "", "--auto-aof-rewrite-percentage", "0"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| {
            format!("{PROGRAM} does not start; install it (apt-get install redis-server), or run `--without redis`")
        })?;
        let output = child.stdout.take().context("its output")?;
        let server = Server(child);
        let mut said = BufReader::new(output).lines();
        let mut heard = Vec::new();
        loop {
            match said.next().transpose()? {
                Some(line) if line.contains("Ready to accept connections") => break,
                Some(line) => heard.push(line),
                None => bail!("{PROGRAM} ended before it was ready:\n{}", heard.join("\n")),
            }
        }
        // A full pipe would stop it. This thread ends with the server.
        thread::spawn(move || said.for_each(drop));
        let address = ConnectionAddr::Tcp("127.0.0.1".to_owned(), port);
        let info = address.into_connection_info()?.set_tcp_settings(TcpSettings::default().set_nodelay(true));
        Ok(Redis { server: Mutex::new(server), client: Client::open(info)? })
    }
}

impl Subject for Redis {
    fn writer(&self) -> Result<Box<dyn Writer + '_>> {
        Ok(Box::new(RedisWriter(self.client.get_connection()?)))
    }

    fn settle(&self) -> Result<()> {
        let mut server = self.server.lock().map_err(|_| anyhow!("a panic"))?;
        if let Some(status) = server.0.try_wait()? {
            bail!("{PROGRAM} has ended: {status}");
        }
        Ok(())
    }
}

struct RedisWriter(Connection);

impl Writer for RedisWriter {
    fn put(&mut self, key: u64, value: Vec<u8>) -> Result<()> {
        ::redis::cmd("SET").arg(&key.to_be_bytes()).arg(value).exec(&mut self.0)?;
        Ok(())
    }
}
