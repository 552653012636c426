//! Tests of a bus whose server is stopped, set back or paused: its listeners notice, whichever bus it is.

#![allow(unreachable_pub, reason = "a module of a program of tests")]
#![allow(clippy::panic, clippy::unwrap_used, reason = "these are tests")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use forebay::bus::{BoxFuture, Bus, Delivery, StartPosition};
use forebay::testkit::bus_conformance::{self, BusFixture};
use forebay::testkit::proxy::Proxy;
use forebay::{Channel, ErrorKind};
use tokio::sync::Mutex;
use tokio::task::block_in_place;

use crate::bus::{
    channel, expect_error, expect_lost, message, next, next_at_last, publish, publish_at_last, subscribe,
    take, take_at_last,
};
use forebay_servers::process::Recipe;
use forebay_servers::server::Server;

/// A kind of server, as the conformance suite treats it.
pub trait BusServer: Recipe + Send + Sync + 'static {
    /// A client of the server that is reached there.
    fn client(at: SocketAddr) -> Arc<dyn Bus>;
    /// Takes all messages away. The channel may not have been used before.
    fn trim<'a>(server: &'a Server<Self>, channel: &'a Channel) -> BoxFuture<'a, ()>
    where
        Self: Sized;
}

/// A server that can be killed and started again, behind a proxy that can cut its connections.
struct BehindProxy<H> {
    server: Mutex<Server<H>>,
    proxy: Proxy,
}

impl<H: BusServer> BusFixture for BehindProxy<H> {
    fn connect(&self) -> BoxFuture<'_, Arc<dyn Bus>> {
        Box::pin(async { H::client(self.proxy.address()) })
    }

    fn trim<'a>(&'a self, channel: &'a Channel) -> BoxFuture<'a, ()> {
        Box::pin(async move { H::trim(&*self.server.lock().await, channel).await })
    }

    fn restart(&self) -> BoxFuture<'_, bool> {
        Box::pin(async {
            let mut server = self.server.lock().await;
            block_in_place(|| {
                server.kill();
                server.start_again();
            });
            true
        })
    }

    fn cut(&self) -> BoxFuture<'_, bool> {
        Box::pin(async {
            self.proxy.cut().await;
            true
        })
    }

    fn mend(&self) -> BoxFuture<'_, ()> {
        Box::pin(async { self.proxy.mend() })
    }
}

/// Runs the conformance suite. On a runtime of several threads.
pub async fn keeps_the_contract<H: BusServer>(server: Server<H>) {
    let proxy = Proxy::start(SocketAddr::from((Ipv4Addr::LOCALHOST, server.port()))).await.unwrap();
    bus_conformance::check(&BehindProxy { server: Mutex::new(server), proxy }).await;
}

/// The server comes back without anything that it had.
pub async fn losing_all_data_is_noticed<H: Recipe>(mut server: Server<H>, bus: &impl Bus) {
    let channel = channel("c");
    let mut reader = subscribe(bus, &channel, StartPosition::Now).await;
    publish(bus, &channel, &["1", "2"]).await;
    let position = take(&mut reader, &["1", "2"]).await;
    server.kill();
    server.forget_everything();
    server.start_again();
    // Nobody has published yet, and the numbering has begun anew all the same.
    expect_lost(&mut reader).await;
    // As many as there were, so that the numbers alone do not tell.
    publish_at_last(bus, &channel, &["3", "4"]).await;
    take_at_last(&mut reader, &["3", "4"]).await;
    let mut after = subscribe(bus, &channel, StartPosition::After(position)).await;
    expect_lost(&mut after).await;
    take(&mut after, &["3", "4"]).await;
}

/// The server stands still, with its connections open. The bus has to wait less than a second for an answer.
pub async fn a_pause_is_noticed_and_loses_nothing<H: Recipe>(server: Server<H>, bus: &impl Bus) {
    let channel = channel("c");
    let mut reader = subscribe(bus, &channel, StartPosition::Now).await;
    publish(bus, &channel, &["1"]).await;
    take(&mut reader, &["1"]).await;
    server.process().pause();
    for _ in 0..2 {
        let error = expect_error(&mut reader, Duration::from_secs(3)).await;
        assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
    }
    let error = bus.publish(&channel, &[message("2")]).await.expect_err("the server is paused");
    assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
    server.process().resume();
    publish_at_last(bus, &channel, &["3"]).await;
    // What failed may have been published all the same.
    let mut seen = Vec::new();
    while seen.last().map(String::as_str) != Some("3") {
        match next_at_last(&mut reader).await {
            Delivery::Message(_, body) => seen.push(String::from_utf8(body.to_vec()).unwrap()),
            Delivery::PositionLost => panic!("nothing was lost"),
        }
    }
    assert!(seen == ["3"] || seen == ["2", "3"], "{seen:?}");
}

/// A delivery that nobody waits for any longer is not lost, and asking often does not pile up requests.
pub async fn dropping_the_future_loses_nothing(bus: &impl Bus) {
    let channel = channel("c");
    let mut reader = subscribe(bus, &channel, StartPosition::Now).await;
    let texts: Vec<String> = (0..200).map(|n| format!("m{n}")).collect();
    let mut texts = texts.iter().map(String::as_str);
    let mut seen = Vec::new();
    for round in 0..400 {
        if round % 2 == 0 {
            publish(bus, &channel, &[texts.next().unwrap()]).await;
        }
        let wait = Duration::from_micros(50 * (round % 9));
        if let Ok(delivery) = tokio::time::timeout(wait, reader.next()).await {
            seen.push(delivery.unwrap());
        }
    }
    while seen.len() < 200 {
        seen.push(next(&mut reader).await.unwrap());
    }
    for (number, delivery) in seen.iter().enumerate() {
        assert!(
            matches!(delivery, Delivery::Message(_, body) if *body == format!("m{number}")),
            "{delivery:?}"
        );
    }
}
