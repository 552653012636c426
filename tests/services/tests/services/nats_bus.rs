//! The bus over NATS JetStream, against real servers: what JetStream hides is noticed, and what fails says so.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream;
use forebay::bus::{BoxFuture, Bus, Delivery, NatsBus, NatsBusOptions, StartPosition};
use forebay::{Channel, ErrorKind};

use crate::bus::{
    channel, expect_lost, expect_nothing, message, next, numbered, publish, publish_at_last, subscribe, take,
    take_at_last, within,
};
use crate::bus_server::{self, BusServer};
use forebay_servers::certificates::Certificates;
use forebay_servers::nats::{NatsRecipe, NatsServer};

fn quick() -> NatsBusOptions {
    NatsBusOptions::new().idle(Duration::from_millis(100)).timeout(Duration::from_secs(2))
}

fn bus_of(server: &NatsServer) -> NatsBus {
    NatsBus::with_options(&server.url(), quick()).unwrap()
}

/// JetStream past the bus.
async fn context(server: &NatsServer) -> jetstream::Context {
    let options = async_nats::ConnectOptions::new().user_and_password("bus".into(), server.password());
    jetstream::new(options.connect(server.url()).await.unwrap())
}

/// Takes all messages away. The channel may not have been used before.
async fn trim(server: &NatsServer, stream: &str) {
    match context(server).await.get_stream(stream).await {
        Ok(stream) => assert!(stream.purge().await.unwrap().success),
        Err(error) => assert!(format!("{error:#}").contains("not found"), "{error:#}"),
    }
}

impl BusServer for NatsRecipe {
    fn client(at: SocketAddr) -> Arc<dyn Bus> {
        Arc::new(NatsBus::with_options(&format!("nats://{at}"), quick()).unwrap())
    }

    fn trim<'a>(server: &'a NatsServer, channel: &'a Channel) -> BoxFuture<'a, ()> {
        Box::pin(async move { trim(server, &format!("forebay-{channel}")).await })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_contract_is_kept() {
    bus_server::keeps_the_contract(NatsServer::start()).await;
}

#[tokio::test]
async fn what_is_published_comes_in_order_and_is_resumed() {
    let server = NatsServer::start();
    let (bus, channel) = (bus_of(&server), channel("c"));
    let mut now = bus_server::publishes_in_order_and_resumes(&bus, &channel).await;
    // What was published lately is not published again.
    publish(&bus, &channel, &["4", "5"]).await;
    take(&mut now, &["5"]).await;
}

/// JetStream starts at the first message that is left, and says nothing.
#[tokio::test]
async fn trimming_is_noticed() {
    let server = NatsServer::start();
    let bus = bus_of(&server);
    bus_server::trimming_is_noticed(server, &bus).await;
}

/// Waits until no pull of the stream is open, which the server reports and does not signal.
async fn no_pull_is_open(server: &NatsServer, stream: &str) {
    let stream = context(server).await.get_stream(stream).await.unwrap();
    loop {
        let mut consumers = stream.consumers();
        let mut open = 0;
        while let Some(consumer) = futures_util::StreamExt::next(&mut consumers).await {
            open += consumer.unwrap().num_waiting;
        }
        if open == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A listener that does not pull meanwhile: what it would have been given was trimmed, and nothing comes after it.
#[tokio::test]
async fn trimming_before_a_pull_is_noticed() {
    let server = NatsServer::start();
    let (bus, channel) = (bus_of(&server), channel("c"));
    let mut reader = subscribe(&bus, &channel, StartPosition::Now).await;
    expect_nothing(&mut reader, Duration::from_millis(350)).await;
    // Nobody asks it for more, so it makes no other one.
    within("the end of its last pull", no_pull_is_open(&server, "forebay-c")).await;
    publish(&bus, &channel, &["1", "2"]).await;
    trim(&server, "forebay-c").await;
    expect_lost(&mut reader).await;
    publish(&bus, &channel, &["3", "4", "5"]).await;
    let stream = context(&server).await.get_stream("forebay-c").await.unwrap();
    assert!(stream.delete_message(4).await.unwrap());
    take(&mut reader, &["3"]).await;
    let delivery = next(&mut reader).await.unwrap();
    // It may have been on its way before it was deleted.
    if delivery == Delivery::PositionLost {
        take(&mut reader, &["5"]).await;
    } else {
        assert!(matches!(delivery, Delivery::Message(_, body) if body == "4"));
    }
    // Who comes after it finds the hole.
    let mut oldest = subscribe(&bus, &channel, StartPosition::Oldest).await;
    take(&mut oldest, &["3"]).await;
    expect_lost(&mut oldest).await;
    take(&mut oldest, &["5"]).await;
}

#[tokio::test]
async fn a_channel_holds_as_much_as_it_is_told_to() {
    let server = NatsServer::start();
    let options = quick().retained(100).in_flight(1).prefix("few");
    let bus = NatsBus::with_options(&server.url(), options).unwrap();
    let channel = channel("c");
    let mut reader = subscribe(&bus, &channel, StartPosition::Now).await;
    let many = numbered(300);
    publish(&bus, &channel, &many).await;
    expect_lost(&mut reader).await;
    take(&mut reader, &many[200..]).await;
}

#[tokio::test]
async fn a_restart_loses_nothing() {
    let server = NatsServer::start();
    let bus = bus_of(&server);
    bus_server::a_restart_loses_nothing(server, &bus, 2).await;
}

#[tokio::test]
async fn lost_data_are_noticed() {
    let server = NatsServer::start();
    let bus = bus_of(&server);
    bus_server::losing_all_data_is_noticed(server, &bus).await;
}

/// The server comes back without its last messages, and gives their numbers anew: by the numbers, nothing is missing.
#[tokio::test]
async fn numbers_that_were_given_anew_are_noticed() {
    let mut server = NatsServer::start();
    let (bus, channel) = (bus_of(&server), channel("c"));
    let mut reader = subscribe(&bus, &channel, StartPosition::Now).await;
    publish(&bus, &channel, &["1"]).await;
    server.terminate();
    let saved = server.save();
    server.start_again();
    publish_at_last(&bus, &channel, &["2", "3"]).await;
    let position = take_at_last(&mut reader, &["1", "2", "3"]).await;
    bus_server::falling_back_is_noticed(server, &saved, &bus, reader, position).await;
}

#[tokio::test]
async fn a_deleted_stream_is_noticed_and_a_deleted_consumer_is_made_anew() {
    let server = NatsServer::start();
    let (bus, channel) = (bus_of(&server), channel("c"));
    let mut reader = subscribe(&bus, &channel, StartPosition::Now).await;
    publish(&bus, &channel, &["1"]).await;
    take(&mut reader, &["1"]).await;
    let context = context(&server).await;
    let stream = context.get_stream("forebay-c").await.unwrap();
    let mut names = stream.consumer_names();
    let name = futures_util::StreamExt::next(&mut names).await.unwrap().unwrap();
    assert!(stream.delete_consumer(&name).await.unwrap().success);
    publish(&bus, &channel, &["2"]).await;
    take_at_last(&mut reader, &["2"]).await;
    context.delete_stream("forebay-c").await.unwrap();
    publish_at_last(&bus, &channel, &["3"]).await;
    expect_lost(&mut reader).await;
    take_at_last(&mut reader, &["3"]).await;
}

#[tokio::test]
async fn a_paused_server_is_noticed_and_nothing_is_lost() {
    let server = NatsServer::start();
    let options = quick().timeout(Duration::from_millis(300));
    let bus = NatsBus::with_options(&server.url(), options).unwrap();
    bus_server::a_pause_is_noticed_and_loses_nothing(server, &bus).await;
}

#[tokio::test]
async fn dropping_the_future_loses_nothing() {
    let server = NatsServer::start();
    bus_server::dropping_the_future_loses_nothing(&bus_of(&server)).await;
}

#[tokio::test]
async fn what_does_not_pass_by_itself_says_so() {
    let server = NatsServer::with_password("s3cret-of-the-server!");
    let right = server.url().replace('!', "%21");
    let wrong = server.url().replace("s3cret-of-the-server", "s3cret-that-is-wrong");
    let token = quick().token("s3cret-token");
    let credentials = quick().credentials("s3cret-file");
    let bare = format!("nats://127.0.0.1:{}", server.port());
    let in_url = format!("nats://s3cret-token@127.0.0.1:{}", server.port());
    for (url, options) in
        [(&wrong, quick()), (&in_url, quick()), (&bare, quick()), (&bare, token), (&bare, credentials)]
    {
        let bus = NatsBus::with_options(url, options.clone()).unwrap();
        bus_server::credentials_are_refused(&bus, "the nats bus at 127.0.0.1:").await;
        assert!(!format!("{options:?}").contains("s3cret"), "{options:?}");
    }
    let bus = NatsBus::with_options(&right, quick()).unwrap();
    publish(&bus, &channel("c"), &["1"]).await;
    // A queue, whose messages are gone when somebody has taken them.
    let config = jetstream::stream::Config {
        name: "forebay-other".into(),
        subjects: vec!["forebay.other".into()],
        retention: jetstream::stream::RetentionPolicy::WorkQueue,
        ..Default::default()
    };
    context(&server).await.create_stream(config).await.unwrap();
    bus_server::refused(&bus, &channel("other")).await;
}

/// The permissions of the manual are enough, and without them the server's refusal is told.
#[tokio::test]
async fn permissions_are_enough_or_their_lack_is_told() {
    let server = NatsServer::with_config(
        r#"authorization { users = [
            { user: "bus", password: "p", permissions: { subscribe: "_INBOX.>", publish: [
                "forebay.c", "$JS.API.STREAM.INFO.forebay-c", "$JS.API.STREAM.CREATE.forebay-c",
                "$JS.API.STREAM.MSG.GET.forebay-c", "$JS.API.CONSUMER.CREATE.forebay-c",
                "$JS.API.CONSUMER.CREATE.forebay-c.>", "$JS.API.CONSUMER.MSG.NEXT.forebay-c.*" ] } },
            { user: "guest", password: "p", permissions: { subscribe: "_INBOX.>", publish: "guests" } } ] }"#,
    );
    let channel = channel("c");
    let url = |user| format!("nats://{user}:p@127.0.0.1:{}", server.port());
    let bus = NatsBus::with_options(&url("bus"), quick()).unwrap();
    let mut reader = subscribe(&bus, &channel, StartPosition::Now).await;
    publish(&bus, &channel, &["1"]).await;
    let position = take(&mut reader, &["1"]).await;
    expect_nothing(&mut reader, Duration::from_millis(350)).await;
    let mut after = subscribe(&bus, &channel, StartPosition::After(position)).await;
    publish(&bus, &channel, &["2"]).await;
    take(&mut after, &["2"]).await;
    let guest = NatsBus::with_options(&url("guest"), quick().timeout(Duration::from_millis(300))).unwrap();
    let error = guest.publish(&channel, &[message("3")]).await.expect_err("a guest");
    assert_eq!(error.kind(), ErrorKind::BusFailed, "{error}");
    assert!(format!("{error:#}").contains("Permissions Violation"), "{error:#}");
}

#[test]
fn options_and_urls_are_checked() {
    for url in ["", "nats://u:s3cret@h:port", "nats://ok,nats://u:s3cret@h:port"] {
        bus_server::is_bad_option(NatsBus::new(url), "");
    }
    let bad = [
        (NatsBusOptions::new().idle(Duration::ZERO), "idle is"),
        (NatsBusOptions::new().replicas(0), "replicas is 0; allowed are 1 to 5"),
        (NatsBusOptions::new().in_flight(5000), "in_flight is 5000; allowed are 1 to 4096"),
    ];
    for (options, text) in bad {
        bus_server::is_bad_option(NatsBus::with_options("nats://h", options), text);
    }
}

#[tokio::test]
async fn tls_works_and_an_untrusted_server_is_refused() {
    let certificates = Certificates::make();
    let authority = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(authority.path(), certificates.authority_pem()).unwrap();
    let server = NatsServer::with_tls(certificates);
    let other = Certificates::make();
    let [trusting, distrusting] = [authority.path().to_owned(), other.authority_path()]
        .map(|path| NatsBus::with_options(&server.url(), quick().root_certificates(path)).unwrap());
    bus_server::tls_works_with_the_right_authority(&trusting, &distrusting).await;
}
