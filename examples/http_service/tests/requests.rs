//! Starts the service on a free port, writes, ends it with SIGTERM, and reads from a second run what the first one
//! took.

#![allow(clippy::unwrap_used, clippy::panic, reason = "it is a test")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

struct Service {
    process: Child,
    address: String,
}

impl Service {
    fn start(directory: &Path) -> Service {
        let mut process = Command::new(env!("CARGO_BIN_EXE_forebay-http-service"))
            .arg("127.0.0.1:0")
            .arg(directory)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on ").unwrap().to_owned();
        Service { process, address }
    }

    /// Sends one request; returns the whole response.
    fn ask(&self, method: &str, path: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\n\r\n{body}",
            self.address
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        response
    }

    fn terminate(mut self) {
        let sent = Command::new("kill").arg(self.process.id().to_string()).status().unwrap();
        assert!(sent.success());
        let status = self.process.wait().unwrap();
        assert!(status.success(), "{status}");
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // A test that fails leaves no process behind; one that passed has none left to kill.
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

#[test]
fn a_product_is_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let kettle = r#"{"name":"kettle","price_cents":3490}"#;
    let service = Service::start(directory.path());
    assert!(service.ask("GET", "/products/7", "").starts_with("HTTP/1.1 404 "));
    assert!(service.ask("PUT", "/products/7", kettle).starts_with("HTTP/1.1 204 "));
    assert!(service.ask("GET", "/products/7", "").ends_with(kettle));
    service.terminate();

    let service = Service::start(directory.path());
    let response = service.ask("GET", "/products/7", "");
    assert!(response.starts_with("HTTP/1.1 200 ") && response.ends_with(kettle), "{response}");
    assert!(service.ask("DELETE", "/products/7", "").starts_with("HTTP/1.1 204 "));
    assert!(service.ask("GET", "/products/7", "").starts_with("HTTP/1.1 404 "));
    service.terminate();
}
