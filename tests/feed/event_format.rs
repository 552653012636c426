//! Events from another language: the bytes of the manual's page and of the Python example are those that
//! the crate makes, and the example sends them to a server as it says.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use forebay::Invalidation;
use forebay::bus::{Directive, Event, Payload};
use forebay::{Bincode, Codec, Epoch, Key, NamespaceName, Seq};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/publish_directive.py");
const PAGE: &str = include_str!("../../src/manual/events.md");
const DEADLINE: Duration = Duration::from_secs(30);

/// `invalidate products/123 v42`, said by somebody who is no layer.
fn event() -> Event {
    let mut key = Vec::new();
    Bincode::encode(&123_u64, 100, &mut key).unwrap();
    let key = Key::new(&NamespaceName::parse("products").unwrap(), &key).unwrap();
    let payload = Payload::Directives(vec![Directive::Invalidate(Invalidation::Key(key), Seq::new(42))]);
    Event { epoch: Epoch::new(0), after: Seq::ZERO, until: Seq::ZERO, as_of_us: 0, payload }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn script(arguments: &[&str]) -> Output {
    let mut command = Command::new("python3");
    command.arg(SCRIPT).args(arguments).stdin(Stdio::null());
    command.output().expect("python3 runs: .ci/test installs it")
}

#[test]
fn the_example_in_python_prints_what_the_crate_encodes() {
    let printed = script(&["--print"]);
    let errors = String::from_utf8_lossy(&printed.stderr);
    assert!(printed.status.success() && errors.is_empty(), "{errors}");
    let printed = String::from_utf8(printed.stdout).unwrap();
    assert_eq!(printed.trim(), hex(&event().encode().unwrap()));
    let lines = std::fs::read_to_string(SCRIPT).unwrap().lines().count();
    assert!(lines <= 40, "{lines} lines: it is to show how little that takes");
}

#[test]
fn the_page_shows_what_the_crate_encodes_and_decodes() {
    let block = PAGE.split("```text\n").nth(1).unwrap().split("```").next().unwrap();
    let bytes: Vec<u8> = block
        .lines()
        .flat_map(|line| line[..24].split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()))
        .collect();
    assert_eq!(hex(&bytes), hex(&event().encode().unwrap()));
    assert_eq!(Event::decode(&Bytes::from(bytes)).unwrap(), event());
}

#[test]
fn the_page_the_example_and_the_redis_bus_call_the_same_script() {
    const BUS: &str = include_str!("../../src/bus/redis/script.rs");
    let between = |text: &str, start: &str, end: &str| {
        let script = text.split(start).nth(1).unwrap().split(end).next().unwrap();
        let lines = script.lines().filter(|line| !line.trim().is_empty() && !line.starts_with("--"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let example = std::fs::read_to_string(SCRIPT).unwrap();
    let bus = between(BUS, "const ADD: &str = \"\n", "\";");
    assert!(bus.len() > 5);
    assert_eq!(between(&example, "ADD = \"\"\"\n", "\"\"\""), bus);
    assert_eq!(between(PAGE, "```lua\n", "```"), bus);
}

#[test]
fn other_keys_are_encoded_as_the_page_says() {
    let encoded = |encode: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = Vec::new();
        encode(&mut bytes);
        hex(&bytes)
    };
    assert_eq!(encoded(&|out| Bincode::encode(&7_u32, 99, out).unwrap()), "07000000");
    assert_eq!(encoded(&|out| Bincode::encode(&true, 99, out).unwrap()), "01");
    assert_eq!(encoded(&|out| Bincode::encode(&"ab", 99, out).unwrap()), "02000000000000006162");
    assert_eq!(encoded(&|out| Bincode::encode(&vec![5_u8], 99, out).unwrap()), "010000000000000005");
    assert_eq!(encoded(&|out| Bincode::encode(&(1_u8, 2_u16), 99, out).unwrap()), "010200");
    assert_eq!(encoded(&|out| Bincode::encode(&Some(3_u8), 99, out).unwrap()), "0103");
    assert_eq!(encoded(&|out| Bincode::encode(&None::<u8>, 99, out).unwrap()), "00");
    let second: std::result::Result<u8, u8> = Err(9);
    assert_eq!(encoded(&|out| Bincode::encode(&second, 99, out).unwrap()), "0100000009");
}

/// Reads one command as Redis would.
fn command(stream: &TcpStream) -> std::io::Result<Vec<Vec<u8>>> {
    let mut reader = BufReader::new(stream);
    let mut number = |sigil: char| -> std::io::Result<(usize, Vec<u8>)> {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let digits = line.strip_prefix(sigil).and_then(|rest| rest.strip_suffix("\r\n"));
        let number = digits.and_then(|digits| digits.parse().ok());
        let number: usize =
            number.ok_or_else(|| std::io::Error::other(format!("not {sigil}<number>: {line:?}")))?;
        let mut bytes = Vec::new();
        if sigil == '$' {
            bytes.resize(number + 2, 0);
            reader.read_exact(&mut bytes)?;
            assert!(bytes.ends_with(b"\r\n"));
            bytes.truncate(number);
        }
        Ok((number, bytes))
    };
    let (count, _) = number('*')?;
    (0..count).map(|_| number('$').map(|(_, bytes)| bytes)).collect()
}

/// Runs the example against a server that answers so; returns what the server got, and how the example ended.
fn publish(answer: &'static str) -> (Vec<Vec<u8>>, Output) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (got, gets) = mpsc::channel();
    let serving = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        got.send(command(&stream).unwrap()).unwrap();
        stream.write_all(answer.as_bytes()).unwrap();
    });
    let output = script(&[&address, "prices"]);
    let got = gets
        .recv_timeout(DEADLINE)
        .unwrap_or_else(|_| panic!("the example sent nothing: {}", String::from_utf8_lossy(&output.stderr)));
    serving.join().unwrap();
    (got, output)
}

#[test]
fn the_example_publishes_the_event_by_the_buss_script() {
    let (got, output) = publish(":1\r\n");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let [eval, script, two, stream, place, incarnation, retained, body] = got.as_slice() else {
        panic!("{} parts came", got.len());
    };
    assert_eq!((&eval[..], &two[..], &retained[..]), (&b"EVAL"[..], &b"2"[..], &b"65536"[..]));
    assert!(String::from_utf8_lossy(script).contains("redis.call('XADD', KEYS[1]"));
    assert_eq!((&stream[..], &place[..]), (&b"{forebay:prices}"[..], &b"{forebay:prices}:place"[..]));
    assert!(incarnation.len() == 16 && incarnation.iter().all(u8::is_ascii_hexdigit));
    assert_eq!(Event::decode(&Bytes::from(body.clone())).unwrap(), event());

    let (_, output) = publish("-OOM command not allowed\r\n");
    assert!(!output.status.success(), "what the server refused was not published");
    assert!(String::from_utf8_lossy(&output.stderr).contains("-OOM command not allowed"));
}
