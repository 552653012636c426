//! Tests of a bus whose server is stopped, set back or paused: its listeners notice, whichever bus it is.

#![allow(unreachable_pub, reason = "a module of a program of tests")]
#![allow(clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "these are tests")]

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use forebay::bus::{BoxFuture, Bus, Delivery, Position, StartPosition, Subscription};
use forebay::testkit::bus_conformance::{self, BusFixture};
use forebay::testkit::proxy::Proxy;
use forebay::{Channel, Error, ErrorKind};
use tempfile::TempDir;
use tokio::sync::Mutex;
use tokio::task::block_in_place;

use crate::bus::{
    channel, expect_error, expect_lost, expect_nothing, message, next, next_at_last, numbered, publish,
    publish_at_last, subscribe, take, take_at_last,
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

/// Listeners get what is published in its order, from where they start. Returns one that has taken everything.
pub async fn publishes_in_order_and_resumes(bus: &impl Bus, channel: &Channel) -> Box<dyn Subscription> {
    let mut now = subscribe(bus, channel, StartPosition::Now).await;
    publish(bus, channel, &["1", "2", "3"]).await;
    let position = take(&mut now, &["1", "2"]).await;
    take(&mut subscribe(bus, channel, StartPosition::Oldest).await, &["1", "2", "3"]).await;
    let mut after = subscribe(bus, channel, StartPosition::After(position)).await;
    take(&mut after, &["3"]).await;
    expect_nothing(&mut after, Duration::from_millis(450)).await;
    publish(bus, channel, &["4"]).await;
    take(&mut after, &["4"]).await;
    take(&mut now, &["3", "4"]).await;
    // More than are on their way at once, and than one call takes or one read brings.
    let many = numbered(700);
    publish(bus, channel, &many).await;
    take(&mut now, &many).await;
    let error = bus.subscribe(channel, StartPosition::After(Position::new("5-0"))).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::BusFailed, "{error}");
    now
}

/// All messages are taken away: a listener that had them all goes on, and one that had not is told.
pub async fn trimming_is_noticed<H: BusServer>(server: Server<H>, bus: &impl Bus) {
    let channel = channel("c");
    let mut reader = subscribe(bus, &channel, StartPosition::Now).await;
    publish(bus, &channel, &["1", "2"]).await;
    let position = take(&mut reader, &["1"]).await;
    let last = take(&mut reader, &["2"]).await;
    H::trim(&server, &channel).await;
    expect_nothing(&mut reader, Duration::from_millis(350)).await;
    let mut end = subscribe(bus, &channel, StartPosition::After(last)).await;
    expect_nothing(&mut end, Duration::from_millis(350)).await;

    let mut behind = subscribe(bus, &channel, StartPosition::After(position)).await;
    expect_lost(&mut behind).await;
    publish(bus, &channel, &["3"]).await;
    take(&mut behind, &["3"]).await;
    take(&mut reader, &["3"]).await;
    take(&mut end, &["3"]).await;
}

/// The server is killed once `taken` of two messages have been taken, and is started again; a message that was left is
/// delivered while it is away. Later it is ended and started once more.
pub async fn a_restart_loses_nothing<H: Recipe>(mut server: Server<H>, bus: &impl Bus, taken: usize) {
    let channel = channel("c");
    let texts = ["1", "2", "3"];
    let mut reader = subscribe(bus, &channel, StartPosition::Now).await;
    publish(bus, &channel, &texts[..2]).await;
    let position = take(&mut reader, &texts[..taken]).await;
    server.kill();
    take_at_last(&mut reader, &texts[taken..2]).await;
    let error = expect_error(&mut reader, Duration::from_secs(5)).await;
    assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
    let error = bus.publish(&channel, &[message("3")]).await.expect_err("the server is away");
    assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
    assert!(bus.subscribe(&channel, StartPosition::Now).await.is_err_and(|error| error.is_transient()));
    server.start_again();
    publish_at_last(bus, &channel, &["3"]).await;
    take_at_last(&mut reader, &["3"]).await;
    let mut after = subscribe(bus, &channel, StartPosition::After(position)).await;
    take_at_last(&mut after, &texts[taken..]).await;
    server.terminate();
    server.start_again();
    publish_at_last(bus, &channel, &["4"]).await;
    take_at_last(&mut reader, &["4"]).await;
}

/// The server falls back to `saved`, where it had only "1" of the three messages that `reader` took up to `position`.
/// It gives the numbers of the others anew, so by the numbers nothing is missing.
pub async fn falling_back_is_noticed<H: Recipe>(
    mut server: Server<H>,
    saved: &TempDir,
    bus: &impl Bus,
    mut reader: Box<dyn Subscription>,
    position: Position,
) {
    let channel = channel("c");
    server.kill();
    server.fall_back(saved);
    server.start_again();
    publish_at_last(bus, &channel, &["2b", "3b", "4b"]).await;
    expect_lost(&mut reader).await;
    take_at_last(&mut reader, &["1", "2b", "3b", "4b"]).await;
    let mut after = subscribe(bus, &channel, StartPosition::After(position)).await;
    expect_lost(&mut after).await;
    take(&mut after, &["1", "2b", "3b", "4b"]).await;
}

/// Returns the errors of publishing and of subscribing, which do not pass by themselves.
pub async fn refused(bus: &impl Bus, channel: &Channel) -> [Error; 2] {
    let published = bus.publish(channel, &[message("1")]).await.expect_err("publishing is refused");
    let subscribed = bus.subscribe(channel, StartPosition::Now).await.err().expect("subscribing is refused");
    for error in [&published, &subscribed] {
        assert_eq!(error.kind(), ErrorKind::BusFailed, "{error}");
    }
    [published, subscribed]
}

/// Bad credentials are refused, and neither the errors nor the bus shows a secret. Every secret contains "s3cret".
pub async fn credentials_are_refused(bus: &(impl Bus + fmt::Debug), error_prefix: &str) {
    for error in refused(bus, &channel("c")).await {
        assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
        assert!(format!("{error:#}").starts_with(error_prefix), "{error}");
    }
    assert!(!format!("{bus:?}").contains("s3cret"), "{bus:?}");
}

/// A bus cannot be made of bad options or URLs. The error begins with `prefix` and shows no secret.
pub fn is_bad_option<B: fmt::Debug>(opened: Result<B, Error>, prefix: &str) {
    let error = opened.expect_err("a bus was made");
    assert_eq!(error.kind(), ErrorKind::InvalidOption, "{error}");
    assert!(format!("{error:#}").starts_with(prefix), "{error:#}");
    assert!(!format!("{error:#} {error:?}").contains("s3cret"), "{error:#}");
}

/// With TLS a bus works if it trusts the server's authority, and is refused if it trusts another one.
pub async fn tls_works_with_the_right_authority(trusting: &impl Bus, distrusting: &impl Bus) {
    let channel = channel("c");
    let mut reader = subscribe(trusting, &channel, StartPosition::Now).await;
    publish(trusting, &channel, &["1"]).await;
    take(&mut reader, &["1"]).await;
    let error = distrusting.publish(&channel, &[message("2")]).await.expect_err("another authority");
    assert_eq!(error.kind(), ErrorKind::BusFailed, "{error}");
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
    let mut texts = numbered(200).into_iter();
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
