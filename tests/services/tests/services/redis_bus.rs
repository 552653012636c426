//! The bus over Redis Streams, against real servers: what Redis hides is noticed, and what fails says so.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use forebay::bus::{BoxFuture, Bus, Delivery, Position, RedisBus, RedisBusOptions, StartPosition};
use forebay::{Channel, ErrorKind};

use crate::bus::{
    channel, expect_lost, expect_nothing, message, next, numbered, publish, subscribe, take, within,
};
use crate::bus_server::{self, BusServer};
use forebay_servers::certificates::Certificates;
use forebay_servers::redis::{RedisRecipe, RedisServer};

fn quick() -> RedisBusOptions {
    RedisBusOptions::new().idle(Duration::from_millis(100)).timeout(Duration::from_secs(2))
}

fn bus_of(server: &RedisServer) -> RedisBus {
    RedisBus::with_options(&server.url(), quick()).unwrap()
}

/// Says something to the server past the bus.
async fn command<T: redis::FromRedisValue>(server: &RedisServer, words: &[&str]) -> T {
    let client = redis::Client::open(server.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    command.query_async(&mut connection).await.unwrap()
}

async fn trim(server: &RedisServer, stream: &str) {
    let _: i64 = command(server, &["XTRIM", stream, "MAXLEN", "0"]).await;
}

impl BusServer for RedisRecipe {
    fn client(at: SocketAddr) -> Arc<dyn Bus> {
        Arc::new(RedisBus::with_options(&format!("redis://{at}"), quick()).unwrap())
    }

    fn trim<'a>(server: &'a RedisServer, channel: &'a Channel) -> BoxFuture<'a, ()> {
        Box::pin(async move { trim(server, &format!("{{forebay:{channel}}}")).await })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_contract_is_kept() {
    bus_server::keeps_the_contract(RedisServer::start()).await;
}

#[tokio::test]
async fn what_is_published_comes_in_order_and_is_resumed() {
    let server = RedisServer::start();
    let (bus, channel) = (bus_of(&server), channel("c"));
    bus_server::publishes_in_order_and_resumes(&bus, &channel).await;
}

/// Redis says nothing when what comes next was trimmed: `XREAD` waits, or gives what is left.
#[tokio::test]
async fn trimming_is_noticed() {
    let server = RedisServer::start();
    let bus = bus_of(&server);
    bus_server::trimming_is_noticed(server, &bus).await;
}

/// A listener that does not read meanwhile: what it would have read was trimmed, and nothing comes after it.
#[tokio::test]
async fn trimming_before_a_read_is_noticed() {
    let server = RedisServer::start();
    let (bus, channel) = (bus_of(&server), channel("c"));
    let mut reader = subscribe(&bus, &channel, StartPosition::Now).await;
    publish(&bus, &channel, &["1", "2"]).await;
    trim(&server, "{forebay:c}").await;
    expect_lost(&mut reader).await;
    publish(&bus, &channel, &["3", "4", "5"]).await;
    let third: Vec<(String, Vec<String>)> = command(&server, &["XRANGE", "{forebay:c}", "-", "+"]).await;
    let _: i64 = command(&server, &["XDEL", "{forebay:c}", &third[1].0]).await;
    take(&mut reader, &["3"]).await;
    expect_lost(&mut reader).await;
    take(&mut reader, &["5"]).await;
}

#[tokio::test]
async fn a_channel_holds_about_as_much_as_it_is_told_to() {
    let server = RedisServer::start();
    let bus = RedisBus::with_options(&server.url(), quick().retained(100).prefix("few")).unwrap();
    let channel = channel("c");
    let mut reader = subscribe(&bus, &channel, StartPosition::Now).await;
    let many = numbered(1000);
    publish(&bus, &channel, &many).await;
    let held: i64 = command(&server, &["XLEN", "{few:c}"]).await;
    assert!((100..=300).contains(&held), "{held} are held");
    expect_lost(&mut reader).await;
    take(&mut reader, &many[many.len() - usize::try_from(held).unwrap()..]).await;
}

#[tokio::test]
async fn a_restart_loses_nothing() {
    let server = RedisServer::start();
    let bus = bus_of(&server);
    bus_server::a_restart_loses_nothing(server, &bus, 1).await;
}

#[tokio::test]
async fn lost_data_are_noticed() {
    let server = RedisServer::start();
    let bus = bus_of(&server);
    bus_server::losing_all_data_is_noticed(server, &bus).await;
}

/// The server comes back without its last writes, and gives their numbers anew: by what is counted, nothing is
/// missing.
#[tokio::test]
async fn numbers_that_were_given_anew_are_noticed() {
    let server = RedisServer::start();
    let (bus, channel) = (bus_of(&server), channel("c"));
    let mut reader = subscribe(&bus, &channel, StartPosition::Now).await;
    publish(&bus, &channel, &["1"]).await;
    let saved = server.save();
    publish(&bus, &channel, &["2", "3"]).await;
    let position = take(&mut reader, &["1", "2", "3"]).await;
    bus_server::falling_back_is_noticed(server, &saved, &bus, reader, position).await;
}

#[tokio::test]
async fn a_deleted_stream_is_noticed() {
    let server = RedisServer::start();
    let (bus, channel) = (bus_of(&server), channel("c"));
    let mut reader = subscribe(&bus, &channel, StartPosition::Now).await;
    publish(&bus, &channel, &["1"]).await;
    take(&mut reader, &["1"]).await;
    // The stream alone: the numbering goes on, and nothing was missed. A server names an entry by its millisecond, and
    // does not know after this which names it has given: one that is given anew is a lost position.
    let last = server_millisecond(&server).await;
    let _: i64 = command(&server, &["DEL", "{forebay:c}"]).await;
    within("the server's next millisecond", async { while server_millisecond(&server).await == last {} })
        .await;
    publish(&bus, &channel, &["2"]).await;
    take(&mut reader, &["2"]).await;
    let _: i64 = command(&server, &["DEL", "{forebay:c}", "{forebay:c}:place"]).await;
    publish(&bus, &channel, &["3"]).await;
    expect_lost(&mut reader).await;
    take(&mut reader, &["3"]).await;
    // The numbering alone, as a server evicts it that is out of memory.
    let _: i64 = command(&server, &["DEL", "{forebay:c}:place"]).await;
    publish(&bus, &channel, &["4"]).await;
    expect_lost(&mut reader).await;
    assert_eq!(next(&mut reader).await.unwrap(), Delivery::Message(last_position(&server).await, "4".into()));
    expect_nothing(&mut reader, Duration::from_millis(350)).await;
}

/// The server's clock, in milliseconds.
async fn server_millisecond(server: &RedisServer) -> u64 {
    let (seconds, micros): (u64, u64) = command(server, &["TIME"]).await;
    seconds * 1_000 + micros / 1_000
}

async fn last_position(server: &RedisServer) -> Position {
    let last: Vec<(String, Vec<String>)> =
        command(server, &["XREVRANGE", "{forebay:c}", "+", "-", "COUNT", "1"]).await;
    let (id, fields) = &last[0];
    Position::new(format!("{}:{}:{id}", fields[1], fields[3]))
}

#[tokio::test]
async fn a_paused_server_is_noticed_and_nothing_is_lost() {
    let server = RedisServer::start();
    let options = quick().timeout(Duration::from_millis(300));
    let bus = RedisBus::with_options(&server.url(), options).unwrap();
    bus_server::a_pause_is_noticed_and_loses_nothing(server, &bus).await;
}

#[tokio::test]
async fn dropping_the_future_loses_nothing() {
    let server = RedisServer::start();
    bus_server::dropping_the_future_loses_nothing(&bus_of(&server)).await;
}

#[tokio::test]
async fn what_does_not_pass_by_itself_says_so() {
    let server = RedisServer::with_password("s3cret-of-the-server");
    let wrong = server.url().replace("s3cret-of-the-server", "s3cret-that-is-wrong");
    for url in [wrong.as_str(), &format!("redis://127.0.0.1:{}", server.port())] {
        let bus = RedisBus::with_options(url, quick()).unwrap();
        bus_server::credentials_are_refused(&bus, "the redis bus at 127.0.0.1:").await;
    }
    let (bus, other, channel) = (bus_of(&server), channel("other"), channel("c"));
    publish(&bus, &channel, &["1"]).await;
    let _: String = command(&server, &["SET", "{forebay:other}", "a string"]).await;
    bus_server::refused(&bus, &other).await;
    // Somebody else's entry.
    let mut reader = subscribe(&bus, &channel, StartPosition::Oldest).await;
    let _: String = command(&server, &["XADD", "{forebay:c}", "*", "a", "b"]).await;
    assert_eq!(next(&mut reader).await.expect_err("not of the bus").kind(), ErrorKind::BusFailed);
}

/// The rights of the manual are enough, and the lack of one is told.
#[tokio::test]
async fn rights_are_enough_or_their_lack_is_told() {
    let server = RedisServer::start();
    let channel = channel("c");
    let listening =
        ["~{forebay:*", "+evalsha", "+script|load", "+xread", "+xrange", "+xrevrange", "+hget", "+hsetnx"];
    let users =
        [("listener", [">p", "on"].as_slice()), ("publisher", [">p", "on", "+xadd", "+hset"].as_slice())];
    for (name, more) in users {
        let words: Vec<&str> = [&["ACL", "SETUSER", name], listening.as_slice(), more].concat();
        let _: String = command(&server, &words).await;
    }
    let url = |user| format!("redis://{user}:p@127.0.0.1:{}", server.port());
    let publisher = RedisBus::with_options(&url("publisher"), quick()).unwrap();
    let listener = RedisBus::with_options(&url("listener"), quick()).unwrap();
    let mut reader = subscribe(&listener, &channel, StartPosition::Now).await;
    publish(&publisher, &channel, &["1"]).await;
    take(&mut reader, &["1"]).await;
    expect_nothing(&mut reader, Duration::from_millis(350)).await;
    let error = listener.publish(&channel, &[message("2")]).await.expect_err("it may only listen");
    assert_eq!(error.kind(), ErrorKind::BusFailed, "{error}");
}

#[test]
fn options_and_urls_are_checked() {
    for url in ["", "http://h", "redis://:s3cret@h:port", "redis://h/not-a-database"] {
        bus_server::is_bad_option(RedisBus::new(url), "");
    }
    let options = RedisBusOptions::new().idle(Duration::ZERO);
    bus_server::is_bad_option(RedisBus::with_options("redis://h", options), "idle is");
}

#[tokio::test]
async fn tls_works_and_an_untrusted_server_is_refused() {
    let certificates = Certificates::make();
    let (right, other) = (certificates.authority_pem(), Certificates::make().authority_pem());
    let server = RedisServer::with_tls(certificates);
    let [trusting, distrusting] = [right, other]
        .map(|pem| RedisBus::with_options(&server.url(), quick().root_certificates(pem)).unwrap());
    bus_server::tls_works_with_the_right_authority(&trusting, &distrusting).await;
}
