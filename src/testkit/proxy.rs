//! A TCP proxy on the loopback interface between clients and one server, which simulates faults of the network.
//!
//! It forwards bytes unchanged, and can cut all connections and refuse new ones, delay each direction, and stall it.
//! Dropping it closes all connections.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

use crate::error::{Error, Result};

/// The size of one read, in bytes.
const CHUNK_BYTES: usize = 16 << 10;
/// The number of reads in flight in one direction of one connection. When they are used up, the sender must wait.
const CHUNKS_MAX: usize = 256;

/// The direction of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the clients to the server.
    ToServer,
    /// From the server to the clients.
    ToClients,
}

/// A TCP proxy on the loopback interface.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    network: watch::Sender<Network>,
    /// The number of open connections.
    open: watch::Sender<usize>,
    accepting: AbortHandle,
}

/// The state of the simulated network.
#[derive(Clone, Copy, Debug, Default)]
struct Network {
    cut: bool,
    /// The number of cuts so far. A connection ends when it changes.
    cuts: u64,
    to_server: DirectionState,
    to_clients: DirectionState,
}

#[derive(Clone, Copy, Debug, Default)]
struct DirectionState {
    delay: Duration,
    stalled: bool,
}

impl Network {
    fn way(&mut self, direction: Direction) -> &mut DirectionState {
        match direction {
            Direction::ToServer => &mut self.to_server,
            Direction::ToClients => &mut self.to_clients,
        }
    }
}

impl Proxy {
    /// Starts a proxy to a server, on a free port of 127.0.0.1. It needs a tokio runtime with I/O and ends with it. The
    /// server need not run yet; a client whose connection cannot be forwarded is disconnected.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::error::ErrorKind::Io) if there is no port.
    pub async fn start(server: SocketAddr) -> Result<Proxy> {
        let failed = |error| Error::io("starting a proxy on a free port of 127.0.0.1", error);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (network, open) = (watch::Sender::new(Network::default()), watch::Sender::new(0));
        let accepting = tokio::spawn(accept(listener, server, network.subscribe(), open.clone()));
        Ok(Proxy { address, network, open, accepting: accepting.abort_handle() })
    }

    /// Returns the address for clients.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the number of open connections.
    #[must_use]
    pub fn connections(&self) -> usize {
        *self.open.borrow()
    }

    /// Cuts all connections, with all bytes in flight, and closes every new one at once until [`Proxy::mend`]. On
    /// return no connection is open.
    pub async fn cut(&self) {
        self.network.send_modify(|network| {
            network.cut = true;
            network.cuts += 1;
        });
        // The sockets are closed by their tasks, and until then a client could still get an answer.
        let mut open = self.open.subscribe();
        open.wait_for(|open| *open == 0).await.expect("this proxy holds the sender");
    }

    /// Accepts connections again after [`Proxy::cut`].
    pub fn mend(&self) {
        self.network.send_modify(|network| network.cut = false);
    }

    /// Delays all bytes that are sent in this direction from now on.
    pub fn delay(&self, direction: Direction, by: Duration) {
        self.network.send_modify(|network| network.way(direction).delay = by);
    }

    /// Stalls this direction, without closing connections, or releases it.
    pub fn stall(&self, direction: Direction, stalled: bool) {
        self.network.send_modify(|network| network.way(direction).stalled = stalled);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Accepts clients. Dropping the future closes all connections.
async fn accept(
    listener: TcpListener,
    server: SocketAddr,
    network: watch::Receiver<Network>,
    open: watch::Sender<usize>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            // Removes the connections that have ended, which the set would keep.
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => {
                // An error means that the client has disconnected already.
                let Ok((client, _)) = accepted else { continue };
                // Read once, because the state and the number of the cut have to belong together.
                let now = *network.borrow();
                if !now.cut {
                    // Counted before it runs, because a cut right after this has to wait for it.
                    let counted = OpenConnection::new(&open);
                    connections.spawn(connection(client, server, now.cuts, network.clone(), counted));
                }
            }
        }
    }
}

/// Counts a connection while it is open.
struct OpenConnection(watch::Sender<usize>);

impl OpenConnection {
    fn new(open: &watch::Sender<usize>) -> OpenConnection {
        open.send_modify(|open| *open += 1);
        OpenConnection(open.clone())
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.send_modify(|open| *open -= 1);
    }
}

/// Forwards both ways until both have ended, or the network is cut.
async fn connection(
    client: TcpStream,
    server: SocketAddr,
    cuts: u64,
    network: watch::Receiver<Network>,
    counted: OpenConnection,
) {
    let mut cut = network.clone();
    let forwarded = async {
        // Without a server the client is disconnected.
        let Ok(server) = TcpStream::connect(server).await else { return };
        // Without this, Nagle's algorithm would add delays of its own.
        if client.set_nodelay(true).and_then(|()| server.set_nodelay(true)).is_err() {
            return;
        }
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        tokio::join!(
            forward(from_client, to_server, Direction::ToServer, network.clone()),
            forward(from_server, to_client, Direction::ToClients, network),
        );
    };
    tokio::select! {
        () = forwarded => {}
        // This also ends, with an error, if the proxy was dropped.
        _ = cut.wait_for(|network| network.cuts != cuts) => {}
    }
    // Only now, because the sockets are closed here.
    drop(counted);
}

/// Forwards one direction until the sender closes it, and then closes it for the receiver.
async fn forward(
    from: OwnedReadHalf,
    to: OwnedWriteHalf,
    direction: Direction,
    network: watch::Receiver<Network>,
) {
    let (on_its_way, arriving) = mpsc::channel(CHUNKS_MAX);
    tokio::join!(
        send(from, on_its_way, direction, network.clone()),
        arrive(to, arriving, direction, network)
    );
}

type Chunk = (Instant, Vec<u8>);

async fn send(
    mut from: OwnedReadHalf,
    on_its_way: mpsc::Sender<Chunk>,
    direction: Direction,
    network: watch::Receiver<Network>,
) {
    loop {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        // For the other side a broken connection is a closed one.
        let Ok(1..) = from.read_buf(&mut chunk).await else { return };
        // Read for each chunk, so that a change holds for what is sent from now on.
        let delay = network.borrow().clone().way(direction).delay;
        if on_its_way.send((Instant::now() + delay, chunk)).await.is_err() {
            return;
        }
    }
}

async fn arrive(
    mut to: OwnedWriteHalf,
    mut arriving: mpsc::Receiver<Chunk>,
    direction: Direction,
    mut network: watch::Receiver<Network>,
) {
    while let Some((due, chunk)) = arriving.recv().await {
        sleep_until(due).await;
        if network.wait_for(|network| !network.clone().way(direction).stalled).await.is_err() {
            return;
        }
        if to.write_all(&chunk).await.is_err() {
            return;
        }
    }
    // The close arrives behind all delayed bytes. An error means that the receiver has closed already.
    drop(to.shutdown().await);
}

#[cfg(test)]
#[cfg(not(forebay_simulation))]
mod tests {
    use super::*;
    use tokio::time::timeout;

    const DEADLINE: Duration = Duration::from_secs(20);
    const QUIET: Duration = Duration::from_millis(100);

    /// A server that sends back what it gets, and tells about it.
    async fn echo() -> (SocketAddr, mpsc::UnboundedReceiver<u8>, JoinSet<()>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (got, gets) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let got = got.clone();
                connections.spawn(async move {
                    while let Ok(byte) = stream.read_u8().await {
                        got.send(byte).unwrap();
                        if stream.write_u8(byte).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        (address, gets, tasks)
    }

    async fn within<T>(future: impl Future<Output = T>) -> T {
        timeout(DEADLINE, future).await.expect("within the deadline")
    }

    async fn ask(stream: &mut TcpStream, byte: u8) -> std::io::Result<u8> {
        stream.write_u8(byte).await?;
        within(stream.read_u8()).await
    }

    #[tokio::test]
    async fn a_cut_ends_every_connection_and_refuses_new_ones_until_it_is_mended() {
        let (server, _gets, _serving) = echo().await;
        let proxy = Proxy::start(server).await.unwrap();
        let mut clients = Vec::new();
        for byte in 0..3 {
            let mut client = TcpStream::connect(proxy.address()).await.unwrap();
            assert_eq!(ask(&mut client, byte).await.unwrap(), byte);
            clients.push(client);
        }
        assert_eq!(proxy.connections(), 3);
        within(proxy.cut()).await;
        assert_eq!(proxy.connections(), 0);
        for mut client in clients {
            assert!(within(client.read_u8()).await.is_err());
        }
        let refused = async { ask(&mut TcpStream::connect(proxy.address()).await?, 7).await };
        assert!(refused.await.is_err());
        proxy.mend();
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(ask(&mut client, 7).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn one_direction_can_be_stalled_while_the_other_goes_on() {
        let (server, mut gets, _serving) = echo().await;
        let proxy = Proxy::start(server).await.unwrap();
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        proxy.stall(Direction::ToClients, true);
        client.write_u8(1).await.unwrap();
        assert_eq!(within(gets.recv()).await, Some(1), "it reaches the server");
        assert!(timeout(QUIET, client.read_u8()).await.is_err(), "the answer is held back");
        proxy.stall(Direction::ToClients, false);
        assert_eq!(within(client.read_u8()).await.unwrap(), 1);
        proxy.stall(Direction::ToServer, true);
        client.write_u8(2).await.unwrap();
        assert!(timeout(QUIET, gets.recv()).await.is_err(), "it does not reach the server");
        within(proxy.cut()).await;
        assert!(within(client.read_u8()).await.is_err(), "what is stalled is cut all the same");
    }

    #[tokio::test]
    async fn each_direction_is_delayed_by_what_was_said() {
        let (server, _gets, _serving) = echo().await;
        let proxy = Proxy::start(server).await.unwrap();
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        let (there, back) = (Duration::from_millis(40), Duration::from_millis(60));
        proxy.delay(Direction::ToServer, there);
        proxy.delay(Direction::ToClients, back);
        let asked = Instant::now();
        assert_eq!(ask(&mut client, 1).await.unwrap(), 1);
        assert!(asked.elapsed() >= there + back);
    }

    #[tokio::test]
    async fn the_ends_of_the_server_and_of_the_proxy_reach_the_client() {
        let (server, _gets, mut serving) = echo().await;
        let proxy = Proxy::start(server).await.unwrap();
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(ask(&mut client, 1).await.unwrap(), 1);
        within(serving.shutdown()).await;
        assert!(within(client.read_u8()).await.is_err(), "the server has gone");
        let mut late = TcpStream::connect(proxy.address()).await.unwrap();
        assert!(within(late.read_u8()).await.is_err(), "there is no server");
        let (address, mut open) = (proxy.address(), proxy.open.subscribe());
        drop((client, late));
        within(open.wait_for(|open| *open == 0)).await.unwrap();
        proxy.stall(Direction::ToServer, true);
        let mut held = TcpStream::connect(address).await.unwrap();
        drop(proxy);
        assert!(within(held.read_u8()).await.is_err(), "the proxy has gone");
    }
}
