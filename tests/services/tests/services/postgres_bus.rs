//! The Postgres bus keeps the contract; what commits late is not passed over, and what was restored is not trusted.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use forebay::bus::{
    BoxFuture, Bus, Delivery, Directive, Event, Identity, Message, Payload, Position, PostgresBus,
    PostgresBusOptions, StartPosition, Subscription,
};
use forebay::testkit::bus_conformance::{self, BusFixture};
use forebay::{Bincode, Channel, Codec, ErrorKind, Key, NamespaceName, Seq};
use forebay::{Invalidation, KeyColumn};
use tokio::sync::Mutex;

use forebay_servers::postgres::{PASSWORD, Postgres, USER};

struct Fixture(Mutex<Postgres>);

impl BusFixture for Fixture {
    fn connect(&self) -> BoxFuture<'_, Arc<dyn Bus>> {
        Box::pin(async { Arc::new(open(&*self.0.lock().await)) as Arc<dyn Bus> })
    }

    fn trim<'a>(&'a self, channel: &'a Channel) -> BoxFuture<'a, ()> {
        Box::pin(async {
            let server = self.0.lock().await;
            trim_all(&server, channel).await;
        })
    }

    fn restart(&self) -> BoxFuture<'_, bool> {
        Box::pin(async {
            let mut server = self.0.lock().await;
            server.kill();
            server.run();
            true
        })
    }

    fn cut(&self) -> BoxFuture<'_, bool> {
        Box::pin(async {
            self.0.lock().await.stop();
            true
        })
    }

    fn mend(&self) -> BoxFuture<'_, ()> {
        Box::pin(async { self.0.lock().await.run() })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_postgres_bus_conforms() {
    bus_conformance::check(&Fixture(Mutex::new(Postgres::start()))).await;
}

fn open(server: &Postgres) -> PostgresBus {
    PostgresBus::open(server.server("postgres")).unwrap()
}

fn channel() -> Channel {
    Channel::parse("shop").unwrap()
}

fn message(number: u64) -> Message {
    let identity = Identity::parse(&number.to_string()).unwrap();
    Message { identity, body: Bytes::from(number.to_string()) }
}

/// Trims all; what a transaction of the server's own holds up, as soon as that has ended.
async fn trim_all(server: &Postgres, channel: &Channel) {
    let bus = open(server);
    bus.trim(channel, 0).await.unwrap();
    let client = server.client("postgres").await;
    let left = "SELECT count(*) FROM forebay.outbox WHERE channel = $1";
    while client.query_one(left, &[&channel.as_str()]).await.unwrap().get::<_, i64>(0) > 0 {
        bus.trim(channel, 0).await.unwrap();
    }
}

async fn heard(subscription: &mut Box<dyn Subscription>) -> (Position, String) {
    match within(subscription.next()).await.unwrap() {
        Delivery::Message(position, body) => (position, String::from_utf8(body.to_vec()).unwrap()),
        Delivery::PositionLost => panic!("the position is lost"),
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("nothing has come")
}

async fn is_lost(subscription: &mut Box<dyn Subscription>) {
    let first = within(subscription.next()).await.unwrap();
    assert_eq!(first, Delivery::PositionLost);
}

/// The failure: rows are read with `number > last`; one transaction takes number 1, another takes 2 and commits, 2 is
/// read, 1 commits, and is never read.
#[tokio::test]
async fn a_row_that_commits_late_is_not_passed_over() {
    let server = Postgres::start();
    let bus = open(&server);
    let mut listener = bus.subscribe(&channel(), StartPosition::Now).await.unwrap();
    let mut client = server.client("postgres").await;
    let late = client.transaction().await.unwrap();
    let row = "INSERT INTO forebay.outbox (channel, event) VALUES ('shop', 'late')";
    late.execute(row, &[]).await.unwrap();
    bus.publish(&channel(), &[message(1), message(2)]).await.unwrap();
    let mut first = tokio::spawn(async move { (heard(&mut listener).await, listener) });
    // It reads, again and again, and delivers nothing.
    let early = tokio::time::timeout(Duration::from_millis(300), &mut first).await;
    assert!(early.is_err(), "something was delivered in front of a row that may still commit");
    let held = bus.outbox_backlog(&channel()).await.unwrap();
    assert_eq!(held.rows, 2);
    assert!(held.row_age > Duration::from_millis(200), "{held:?}");
    assert!(held.transaction_age.unwrap() >= held.row_age, "{held:?}");
    late.commit().await.unwrap();
    let ((_, body), mut listener) = first.await.unwrap();
    assert_eq!(body, "late");
    assert_eq!(heard(&mut listener).await.1, "1");
    assert_eq!(heard(&mut listener).await.1, "2");
    // A server's own transaction may still run.
    while bus.outbox_backlog(&channel()).await.unwrap().rows > 0 {}
}

/// Numbers that were given to what was rolled back are missing, and nothing is lost.
#[tokio::test]
async fn a_jump_in_the_numbers_is_no_loss() {
    let server = Postgres::start();
    let bus = open(&server);
    let mut listener = bus.subscribe(&channel(), StartPosition::Now).await.unwrap();
    let client = server.client("postgres").await;
    for number in 1..=5 {
        let undone = "BEGIN; INSERT INTO forebay.outbox (channel, event) VALUES ('shop', 'undone'); ROLLBACK";
        client.batch_execute(undone).await.unwrap();
        bus.publish(&channel(), &[message(number)]).await.unwrap();
        let (position, body) = heard(&mut listener).await;
        assert_eq!(body, number.to_string());
        listener = bus.subscribe(&channel(), StartPosition::After(position)).await.unwrap();
    }
}

/// Without any notification, the poll brings it.
#[tokio::test]
async fn a_lost_wake_up_costs_a_poll_interval() {
    let server = Postgres::start();
    let options = PostgresBusOptions::new(server.server("postgres"));
    let bus = options.poll_interval(Duration::from_millis(50)).open().unwrap();
    let mut listener = bus.subscribe(&channel(), StartPosition::Oldest).await.unwrap();
    let client = server.client("postgres").await;
    client.batch_execute("ALTER TABLE forebay.outbox DISABLE TRIGGER outbox_notify").await.unwrap();
    for number in 1..=3 {
        bus.publish(&channel(), &[message(number)]).await.unwrap();
        assert_eq!(heard(&mut listener).await.1, number.to_string());
    }
}

#[tokio::test]
async fn an_identity_is_published_once() {
    let server = Postgres::start();
    let bus = open(&server);
    let mut listener = bus.subscribe(&channel(), StartPosition::Oldest).await.unwrap();
    let other = Channel::parse("other").unwrap();
    bus.publish(&channel(), &[message(1), message(1), message(2)]).await.unwrap();
    bus.publish(&other, &[message(1)]).await.unwrap();
    bus.publish(&channel(), &[message(2), message(3), message(1)]).await.unwrap();
    for number in 1..=3 {
        assert_eq!(heard(&mut listener).await.1, number.to_string());
    }
    let client = server.client("postgres").await;
    let count = client.query_one("SELECT count(*) FROM forebay.outbox", &[]).await.unwrap();
    assert_eq!(count.get::<_, i64>(0), 4);
}

/// A publisher trims by rows and by age, and a listener that was too slow learns of it.
#[tokio::test]
async fn publishing_trims_what_goes_beyond_the_retention() {
    let server = Postgres::start();
    let options = PostgresBusOptions::new(server.server("postgres"));
    let bus = options.clone().retained(100, Duration::from_secs(3600)).open().unwrap();
    let mut slow = bus.subscribe(&channel(), StartPosition::Oldest).await.unwrap();
    let messages: Vec<Message> = (0..1100).map(message).collect();
    bus.publish(&channel(), &messages[..1099]).await.unwrap();
    bus.publish(&channel(), &messages[1099..]).await.unwrap();
    let client = server.client("postgres").await;
    let count = "SELECT count(*) FROM forebay.outbox";
    // Of what was just published none can be trimmed yet, so up to one row more than retained stays.
    let left = client.query_one(count, &[]).await.unwrap().get::<_, i64>(0);
    assert!((100..=101).contains(&left), "{left} rows");
    is_lost(&mut slow).await;
    assert_eq!(heard(&mut slow).await.1, "1000");

    let old = Channel::parse("old").unwrap();
    let bus = options.retained(1_000_000, Duration::from_secs(3600)).open().unwrap();
    bus.publish(&old, &messages).await.unwrap();
    let age = "UPDATE forebay.outbox SET created = created - interval '2 hours' WHERE channel = 'old' AND id % 2 = 0";
    client.batch_execute(age).await.unwrap();
    bus.publish(&old, &[message(5000)]).await.unwrap();
    let left = client.query("SELECT event FROM forebay.outbox WHERE channel = 'old'", &[]).await.unwrap();
    assert!(
        left.len() <= 2,
        "what is old has gone, and what is in front of it: {} rows are left",
        left.len()
    );
}

/// A place in a table that is not there any more, or was made anew, or emptied.
#[tokio::test]
async fn a_table_that_was_lost_is_noticed() {
    let server = Postgres::start();
    let client = server.client("postgres").await;
    let loss = [
        "DROP SCHEMA forebay CASCADE",
        "DROP TABLE forebay.outbox",
        "TRUNCATE forebay.outbox",
        "DROP TABLE forebay.outbox, forebay.outbox_meta, forebay.outbox_channel",
    ];
    let bus = open(&server);
    for (number, loss) in (1..).zip(loss) {
        let mut heard_some = bus.subscribe(&channel(), StartPosition::Oldest).await.unwrap();
        bus.publish(&channel(), &[message(number)]).await.unwrap();
        let mut position = None;
        while position.is_none() {
            let (at, body) = heard(&mut heard_some).await;
            position = (body == number.to_string()).then_some(at);
        }
        let position = position.unwrap();
        let mut heard_none = bus.subscribe(&channel(), StartPosition::Now).await.unwrap();
        client.batch_execute(loss).await.unwrap();
        let mut new = None;
        while new.is_none() {
            match bus.subscribe(&channel(), StartPosition::After(position.clone())).await {
                Ok(listener) => new = Some(listener),
                Err(error) => assert_eq!(error.kind(), ErrorKind::BusFailed, "{loss}: {error}"),
            }
        }
        let published = bus.publish(&channel(), &[message(100 + number)]).await;
        if let Err(error) = published {
            assert_eq!(error.kind(), ErrorKind::BusFailed, "{loss}: {error}");
            bus.publish(&channel(), &[message(100 + number)]).await.unwrap();
        }
        for listener in [&mut heard_some, &mut heard_none, &mut new.unwrap()] {
            let mut first = within(listener.next()).await;
            // A listener may have met the table when it was gone; it says so, and finds the new one.
            while let Err(error) = first {
                assert_eq!(error.kind(), ErrorKind::BusFailed, "{loss}: {error}");
                first = within(listener.next()).await;
            }
            assert_eq!(first.unwrap(), Delivery::PositionLost, "{loss}");
            assert_eq!(heard(listener).await.1, (100 + number).to_string(), "{loss}");
        }
    }
}

/// A database that was set back to an earlier copy of its files, which no number drawn in it can tell.
#[tokio::test]
async fn a_database_that_was_set_back_is_noticed() {
    let mut server = Postgres::start();
    let bus = open(&server);
    bus.publish(&channel(), &[message(1)]).await.unwrap();
    let mut listener = bus.subscribe(&channel(), StartPosition::Oldest).await.unwrap();
    let (first, _) = heard(&mut listener).await;
    server.stop();
    let copied = server.copy();
    server.run();
    bus_publishes(&bus, 2).await;
    let mut listener = bus.subscribe(&channel(), StartPosition::Oldest).await.unwrap();
    heard(&mut listener).await;
    let (second, body) = heard(&mut listener).await;
    assert_eq!(body, "2");
    let mut edge = bus.subscribe(&channel(), StartPosition::Now).await.unwrap();
    server.stop();
    server.set_back(&copied);
    server.run();
    // What happened before the copy is there still, and what came after it is not.
    let mut kept = subscribed(&bus, StartPosition::After(first)).await;
    let mut gone = subscribed(&bus, StartPosition::After(second)).await;
    bus_publishes(&bus, 3).await;
    assert_eq!(heard(&mut kept).await.1, "3");
    is_lost(&mut gone).await;
    for listener in [&mut listener, &mut edge] {
        let mut next = within(listener.next()).await;
        while let Err(error) = next {
            assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
            next = within(listener.next()).await;
        }
        assert_eq!(next.unwrap(), Delivery::PositionLost);
    }
    fs::remove_dir_all(copied).unwrap();
}

/// Subscribes although connections have ended.
async fn subscribed(bus: &PostgresBus, from: StartPosition) -> Box<dyn Subscription> {
    loop {
        match bus.subscribe(&channel(), from.clone()).await {
            Ok(subscription) => return subscription,
            Err(error) => assert_eq!(error.kind(), ErrorKind::Transient, "{error}"),
        }
    }
}

async fn bus_publishes(bus: &PostgresBus, number: u64) {
    while let Err(error) = bus.publish(&channel(), &[message(number)]).await {
        assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
    }
}

/// The server of a listener that waits is frozen: the listener says so after the call timeout, and then goes on.
#[tokio::test]
async fn a_frozen_server_is_told_and_found_again() {
    let server = Postgres::start();
    let reached = server.server("postgres").call_timeout(Duration::from_millis(300));
    let options = PostgresBusOptions::new(reached.connect_timeout(Duration::from_millis(300)));
    let bus = options.poll_interval(Duration::from_millis(50)).open().unwrap();
    let mut listener = bus.subscribe(&channel(), StartPosition::Now).await.unwrap();
    bus.publish(&channel(), &[message(1)]).await.unwrap();
    assert_eq!(heard(&mut listener).await.1, "1");
    server.freeze();
    for _ in 0..2 {
        assert_eq!(within(listener.next()).await.expect_err("frozen").kind(), ErrorKind::Transient);
    }
    let published = bus.publish(&channel(), &[message(2)]).await.expect_err("frozen");
    assert_eq!(published.kind(), ErrorKind::Transient);
    server.thaw();
    bus_publishes(&bus, 2).await;
    let next = loop {
        match within(listener.next()).await {
            Ok(next) => break next,
            Err(error) => assert_eq!(error.kind(), ErrorKind::Transient, "{error}"),
        }
    };
    assert!(matches!(next, Delivery::Message(_, body) if body == "2"));
}

#[tokio::test]
async fn errors_say_whether_they_pass_and_show_no_secret() {
    let mut server = Postgres::start();
    for (user, password) in [(USER, "wrong-6291"), ("nobody-6291", PASSWORD)] {
        let wrong = forebay::PostgresServer::parse(&server.url(user, password, "postgres")).unwrap();
        let bus = PostgresBus::open(wrong).unwrap();
        let published = bus.publish(&channel(), &[message(1)]).await.expect_err("credentials");
        let Err(listened) = bus.subscribe(&channel(), StartPosition::Now).await else {
            panic!("credentials")
        };
        for error in [published, listened] {
            assert_eq!(error.kind(), ErrorKind::BusFailed, "{error}");
            let told = format!("{error} {error:?} {bus:?}");
            assert!(!told.contains("6291") && !told.contains(PASSWORD) && !told.contains(USER), "{told}");
        }
    }
    server.stop();
    let bus = open(&server);
    let error = bus.publish(&channel(), &[message(1)]).await.expect_err("down");
    assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
    assert!(format!("{error:#}").contains("Postgres at 127.0.0.1"), "{error}");
}

/// Rows that another program writes, in its own transaction.
#[tokio::test]
async fn rows_of_other_programs_are_events() {
    let server = Postgres::start();
    let bus = open(&server);
    let mut listener = bus.subscribe(&channel(), StartPosition::Now).await.unwrap();
    let client = server.client("postgres").await;
    client
        .batch_execute(
            "INSERT INTO forebay.outbox (channel, operation, namespace, key_bytes, key_text, key_number, version) VALUES
               ('shop', 'invalidate', 'products', '\\x07ff', NULL, NULL, NULL),
               ('shop', 'invalidate', 'products', NULL, 'lamp', NULL, NULL),
               ('shop', 'remove', 'products', NULL, NULL, -2, 17),
               ('shop', 'namespace', 'products/eu', NULL, NULL, NULL, NULL),
               ('shop', 'remove', 'no name!', NULL, NULL, 1, NULL)",
        )
        .await
        .unwrap();
    let name = |name| NamespaceName::parse(name).unwrap();
    let key = |key: &[u8]| Key::new(&name("products"), key).unwrap();
    let mut text = 4_u64.to_le_bytes().to_vec();
    text.extend(b"lamp");
    let expected = [
        Directive::Invalidate(Invalidation::Key(key(&[7, 0xFF])), Seq::ZERO),
        Directive::Invalidate(Invalidation::Key(key(&text)), Seq::ZERO),
        Directive::Remove(key(&(-2_i64).to_le_bytes()), Seq::new(17)),
        Directive::Invalidate(Invalidation::Namespace(name("products/eu")), Seq::ZERO),
        Directive::Invalidate(Invalidation::Everything, Seq::ZERO),
    ];
    for expected in expected {
        let Delivery::Message(_, body) = within(listener.next()).await.unwrap() else { panic!("lost") };
        let event = Event::decode(&body).unwrap();
        assert!(!event.is_chained());
        assert_eq!(event.payload, Payload::Directives(vec![expected]));
    }
}

/// Plain SQL of a program that knows nothing of the crate, under a role that may not touch the outbox: what it commits
/// arrives, and what it rolls back does not.
#[tokio::test]
async fn a_change_in_plain_sql_arrives_and_a_rolled_back_one_does_not() {
    let server = Postgres::start();
    let bus = open(&server);
    let client = server.client("postgres").await;
    let tables = "CREATE SCHEMA sales; CREATE TABLE sales.products (id int4 PRIMARY KEY, price int4);
                  CREATE TABLE \"Odd names\" (\"the Key\" varchar(20));
                  CREATE ROLE clerk LOGIN PASSWORD 'clerk'; GRANT USAGE ON SCHEMA sales TO clerk;
                  GRANT ALL ON sales.products, \"Odd names\" TO clerk";
    client.batch_execute(tables).await.unwrap();
    let (products, texts) =
        (NamespaceName::parse("products").unwrap(), NamespaceName::parse("texts").unwrap());
    let scripts = [
        bus.trigger_sql("sales.products", KeyColumn::Number("id"), &products, &channel()).unwrap(),
        bus.trigger_sql("Odd names", KeyColumn::Text("the Key"), &texts, &channel()).unwrap(),
    ];
    for script in scripts.iter().chain(&scripts) {
        client.batch_execute(script).await.unwrap();
    }
    let mut listener = bus.subscribe(&channel(), StartPosition::Now).await.unwrap();

    let url = server.url("clerk", "clerk", "postgres");
    let (clerk, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    let denied = clerk.batch_execute("DELETE FROM forebay.outbox").await.expect_err("not the clerk's");
    assert_eq!(denied.code().map(|code| code.code()), Some("42501"));
    for statements in [
        "INSERT INTO sales.products SELECT n, n FROM generate_series(1, 3) n",
        "BEGIN; UPDATE sales.products SET price = 0; DELETE FROM sales.products; ROLLBACK",
        "UPDATE sales.products SET price = 5 WHERE id = 2",
        "UPDATE sales.products SET id = 9 WHERE id = 3",
        "DELETE FROM sales.products WHERE id = 1",
        "UPDATE sales.products SET price = 1 WHERE id = 77",
        "INSERT INTO \"Odd names\" VALUES ('lamp'), (NULL), ('lamp')",
        "TRUNCATE sales.products",
    ] {
        clerk.batch_execute(statements).await.unwrap();
    }
    let number = |id: u64| {
        Directive::Invalidate(Invalidation::Key(Key::new(&products, &id.to_le_bytes()).unwrap()), Seq::ZERO)
    };
    let mut lamp = Vec::new();
    Bincode::encode(&"lamp".to_owned(), 100, &mut lamp).unwrap();
    let lamp = Directive::Invalidate(Invalidation::Key(Key::new(&texts, &lamp).unwrap()), Seq::ZERO);
    let all = Directive::Invalidate(Invalidation::Namespace(products.clone()), Seq::ZERO);
    // Within a statement, in any order.
    let expected: [Vec<Directive>; 6] = [
        vec![number(1), number(2), number(3)],
        vec![number(2)],
        vec![number(3), number(9)],
        vec![number(1)],
        vec![lamp],
        vec![all],
    ];
    for mut expected in expected {
        while !expected.is_empty() {
            let Delivery::Message(_, body) = within(listener.next()).await.unwrap() else { panic!("lost") };
            let event = Event::decode(&body).unwrap();
            let Payload::Directives(said) = &event.payload else { panic!("{event:?}") };
            let at = expected.iter().position(|directive| said[..] == [directive.clone()]);
            expected.remove(at.unwrap_or_else(|| panic!("{said:?}, and not one of {expected:?}")));
        }
    }
}
