//! The Postgres store keeps the contract, through deaths of the server, and its outbox says what the data say.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use forebay::bus::{Continuity, Directive, Event, Payload, Tracker};
use forebay::store::{
    Applying, Batch, BoxFuture, Claim, Op, PostgresStore, PostgresStoreOptions, Standing, Store, StoreError,
};
use forebay::testkit::conformance::{self, Subject};
use forebay::{Cache, Channel, ErrorKind, Forebay, Key, NamespaceName, OutboxPuts, Seq, WritePolicy};
use forebay::{PostgresServer, Result};
use tokio_postgres::Client;

use forebay_servers::postgres::{PASSWORD, Postgres, USER};

/// A schema of a database.
struct InSchema(PostgresServer);

/// Makes subjects, each in a schema of its own.
fn schemas(server: &Postgres) -> impl Fn() -> InSchema {
    let count = Arc::new(AtomicU64::new(0));
    let server = server.server("postgres");
    move || InSchema(server.clone().schema(format!("s{}", count.fetch_add(1, Ordering::Relaxed))))
}

impl Subject for InSchema {
    type Store = PostgresStore;
    fn open(&self) -> BoxFuture<'_, Result<PostgresStore>> {
        Box::pin(PostgresStore::open(self.0.clone()))
    }

    fn has_heartbeat(&self) -> bool {
        true
    }
}

#[tokio::test]
async fn the_postgres_store_conforms() {
    let server = Postgres::start();
    conformance::run(schemas(&server)).await.unwrap();
}

#[tokio::test]
async fn the_postgres_store_keeps_the_largest_value() {
    let server = Postgres::start();
    conformance::run_huge(schemas(&server)).await.unwrap();
}

fn key(number: u64) -> Key {
    Key::new(&NamespaceName::parse("shop").unwrap(), &number.to_le_bytes()).unwrap()
}

fn put(seq: u64, number: u64) -> Op {
    Op { seq: Seq::new(seq), key: key(number), value: Some(Bytes::from(format!("value {seq}"))) }
}

/// Makes a batch that accounts for everything up to its last change.
fn batch(standing: Standing, ops: Vec<Op>) -> Batch {
    let last = ops.last().unwrap().seq;
    Batch { number: last.get(), after: Seq::ZERO, ..standing.next_batch(last, ops) }
}

async fn claimed(store: &PostgresStore) -> Standing {
    Claim::new(None).unwrap().of(store).await.unwrap()
}

fn channel() -> Channel {
    Channel::parse("shop").unwrap()
}

/// The events of the outbox, and how far the store has come, of one snapshot.
async fn outbox(client: &Client) -> (Vec<Event>, Seq) {
    let sql = "SELECT t.applied, o.event FROM forebay.tenure t LEFT JOIN forebay.outbox o ON o.channel = 'shop' \
               ORDER BY o.xid, o.id";
    let rows = client.query(sql, &[]).await.unwrap();
    let events = rows.iter().filter_map(|row| row.get::<_, Option<Vec<u8>>>(1));
    let events = events.map(|body| Event::decode(&Bytes::from(body)).unwrap()).collect();
    (events, Seq::new(rows[0].get::<_, i64>(0) as u64))
}

/// P3 and P8 for a server that is killed again and again: whenever it comes back, its outbox tells all that its data
/// hold and nothing else, and each batch took effect once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_and_outbox_agree_after_each_death_of_the_server() {
    const DEATHS: u64 = 6;
    const KEYS: u64 = 50;
    let mut server = Postgres::start();
    let options = PostgresStoreOptions::new(server.server("postgres")).outbox(&channel(), OutboxPuts::Value);
    let store = options.open().await.unwrap();
    let tenure = claimed(&store).await;
    let (acknowledged, seen) = tokio::sync::watch::channel(0_u64);
    let applier = tokio::spawn(async move {
        let mut doubts = 0_u64;
        for number in 1.. {
            let first = (number - 1) * 10 + 1;
            let sent = batch(tenure, (first..first + 10).map(|seq| put(seq, seq % KEYS)).collect());
            while let Err(error) = store.apply(&sent).await {
                assert!(matches!(error, StoreError::Transient(_)), "{error:?}");
                doubts += 1;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            if acknowledged.send(first + 9).is_err() {
                break;
            }
        }
        doubts
    });
    for death in 1..=DEATHS {
        let goal = *seen.borrow() + 30 + 70 * death;
        seen.clone().wait_for(|seq| *seq >= goal).await.unwrap();
        server.kill();
        let acknowledged = *seen.borrow();
        server.run();
        let client = server.client("postgres").await;
        let (events, applied) = outbox(&client).await;
        assert!(
            applied >= Seq::new(acknowledged),
            "{acknowledged} was acknowledged, the store is at {applied}"
        );
        let mut tracker = Tracker::new(tenure.tenure.epoch, Seq::ZERO);
        let mut told = std::collections::BTreeMap::new();
        for event in &events {
            assert_eq!(event.after, tracker.position(), "a batch is told once");
            assert_eq!(tracker.observe(event.epoch, event.after, event.until), Continuity::InOrder);
            let Payload::Directives(directives) = &event.payload else { panic!("{event:?}") };
            for directive in directives {
                let Directive::Put(key, seq, value) = directive else { panic!("{directive:?}") };
                told.insert(key.as_bytes().to_vec(), (seq.get() as i64, value.to_vec()));
            }
        }
        // The applier goes on meanwhile; what is asked for here is as old as what was read above, or newer.
        assert_eq!(tracker.position(), applied);
        let sql = "SELECT key, version, value FROM forebay.data WHERE version <= $1";
        for row in client.query(sql, &[&(applied.get() as i64)]).await.unwrap() {
            assert_eq!(told[row.get::<_, &[u8]>(0)], (row.get(1), row.get(2)));
        }
    }
    drop(seen);
    assert!(applier.await.unwrap() > 0, "no death was noticed");
}

/// A claim while an apply is under way: it waits, and what it returns holds that apply.
#[tokio::test]
async fn a_claim_waits_for_the_apply_that_holds_the_tenure() {
    let server = Postgres::start();
    let old = PostgresStore::open(server.server("postgres")).await.unwrap();
    let new = PostgresStore::open(server.server("postgres")).await.unwrap();
    let tenure = claimed(&old).await;
    old.apply(&batch(tenure, vec![put(1, 1)])).await.unwrap();
    // Somebody else holds a row, so that the apply stops midway, with the tenure locked.
    let mut client = server.client("postgres").await;
    let other = client.transaction().await.unwrap();
    other.execute("SELECT FROM forebay.data FOR UPDATE", &[]).await.unwrap();
    let applying = tokio::spawn(async move {
        let applied = old.apply(&batch(tenure, vec![put(2, 1)])).await;
        (old, applied)
    });
    wait_until_blocked(&server, "INSERT INTO \"forebay\".data").await;
    let claiming = tokio::spawn(async move { Claim::new(None).unwrap().of(&new).await });
    wait_until_blocked(&server, "FOR UPDATE").await;
    other.commit().await.unwrap();
    let (old, applied) = applying.await.unwrap();
    applied.unwrap();
    let claimed = claiming.await.unwrap().unwrap();
    assert_eq!(
        claimed.progress.applied,
        Seq::new(2),
        "what was under way is part of what the new owner finds"
    );
    let refused = old.apply(&batch(tenure, vec![put(3, 1)])).await;
    assert!(
        matches!(refused, Err(StoreError::Fenced { current }) if current == claimed.tenure.epoch),
        "{refused:?}"
    );
}

/// Waits until the server says that a statement like this waits for a lock.
async fn wait_until_blocked(server: &Postgres, like: &str) {
    let client = server.client("postgres").await;
    let sql =
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND position($1 IN query) > 0";
    while client.query_one(sql, &[&like]).await.unwrap().get::<_, i64>(0) == 0 {
        tokio::task::yield_now().await;
    }
}

/// An owner that is frozen in the middle of an apply, with the tenure locked: the server ends its transaction, so its
/// successor has to wait for a bounded time only, and what the owner sends once it wakes up does not land.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_owner_holds_its_successor_up_for_a_bounded_time() {
    let server = Postgres::start();
    let limited = server.server("postgres").call_timeout(Duration::from_secs(2));
    let (asleep, sleeps) = std::sync::mpsc::channel();
    let (wake, woken) = std::sync::mpsc::channel::<()>();
    let woken = std::sync::Mutex::new(woken);
    // Asked between the lock and the writes, on the thread of the store's connections.
    let events = Arc::new(move |_: &Applying<'_>| {
        asleep.send(()).unwrap();
        woken.lock().unwrap().recv().unwrap();
        Ok(vec![Bytes::from_static(b"an event")])
    });
    let old = PostgresStoreOptions::new(limited.clone()).outbox_events("shop", events).open().await.unwrap();
    let tenure = claimed(&old).await;
    let applying = tokio::spawn(async move {
        let applied = old.apply(&batch(tenure, vec![put(1, 1)])).await;
        (old, applied)
    });
    tokio::task::spawn_blocking(move || sleeps.recv().unwrap()).await.unwrap();
    let new = PostgresStore::open(limited).await.unwrap();
    let claimed = claimed(&new).await;
    assert_eq!(claimed.progress.applied, Seq::ZERO);
    new.apply(&batch(claimed, vec![put(1, 7)])).await.unwrap();
    wake.send(()).unwrap();
    let (old, applied) = applying.await.unwrap();
    assert!(matches!(applied, Err(StoreError::Transient(_))), "{applied:?}");
    let again = old.apply(&batch(tenure, vec![put(1, 1)])).await;
    assert!(
        matches!(again, Err(StoreError::Fenced { current }) if current == claimed.tenure.epoch),
        "{again:?}"
    );
    assert_eq!(new.load(&key(1)).await.unwrap(), None);
    assert_eq!(outbox(&server.client("postgres").await).await, (vec![], Seq::new(1)));
}

/// The outbox does not grow for ever: applies trim it.
#[tokio::test]
async fn applies_trim_the_outbox() {
    let server = Postgres::start();
    let events = Arc::new(|_: &Applying<'_>| Ok(vec![Bytes::from_static(b"an event"); 600]));
    let options = PostgresStoreOptions::new(server.server("postgres")).outbox_events("shop", events);
    let store = options.outbox_retained(50, Duration::from_secs(3600)).open().await.unwrap();
    let without = PostgresStoreOptions::new(server.server("postgres")).open().await.unwrap();
    assert_eq!(
        (store.has_change_feed(), without.has_change_feed()),
        (true, false),
        "who waits for its events"
    );
    let tenure = claimed(&store).await;
    let client = server.client("postgres").await;
    let mut rows = Vec::new();
    for seq in 1..=6 {
        store.apply(&batch(tenure, vec![put(seq, 1)])).await.unwrap();
        let count = client.query_one("SELECT count(*) FROM forebay.outbox", &[]).await.unwrap();
        rows.push(count.get::<_, i64>(0));
    }
    // What an apply has written itself it cannot trim: it is not committed yet.
    assert_eq!(rows, [600, 1200, 600, 1200, 1800, 600]);
    let noted = "SELECT count(*) FROM forebay.outbox o, forebay.outbox_channel c
                 WHERE c.channel = 'shop' AND (o.xid, o.id) <= (c.trimmed_xid, c.trimmed_id)";
    assert_eq!(client.query_one(noted, &[]).await.unwrap().get::<_, i64>(0), 0, "what was trimmed is noted");
}

/// The record that a constraint refuses is named, whichever place it has, and nothing of its batch is there.
#[tokio::test]
async fn a_refused_record_is_found() {
    let server = Postgres::start();
    let options =
        PostgresStoreOptions::new(server.server("postgres")).outbox(&channel(), OutboxPuts::Invalidate);
    let store = options.open().await.unwrap();
    let client = server.client("postgres").await;
    let constraints = "ALTER TABLE forebay.data
          ADD CONSTRAINT not_seven CHECK (position('7' IN encode(value, 'escape')) = 0);
        CREATE FUNCTION no_nine() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF position('9' IN encode(NEW.value, 'escape')) > 0 THEN RAISE EXCEPTION 'has a 9: %', NEW.value; END IF;
            RETURN NULL; END $$;
        CREATE CONSTRAINT TRIGGER no_nine AFTER INSERT OR UPDATE ON forebay.data
            DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION no_nine();";
    client.batch_execute(constraints).await.unwrap();
    let tenure = claimed(&store).await;
    store.apply(&batch(tenure, vec![put(1, 1)])).await.unwrap();
    for (seqs, refused) in [
        (vec![2, 3, 4, 5, 6, 7, 8], 7),
        (vec![7], 7),
        (vec![27, 30, 37], 27),
        (vec![2, 3, 19, 20, 21], 19),
        (vec![2, 17, 19], 17),
    ] {
        let sent = batch(tenure, seqs.iter().map(|seq| put(*seq, 100 - seq)).collect());
        match store.apply(&sent).await {
            Err(StoreError::Rejected { seq, error }) => {
                assert_eq!(seq, Seq::new(refused), "of {seqs:?}");
                assert_eq!(error.kind(), ErrorKind::Rejected);
                assert!(!format!("{error:#} {error:?}").contains("value"), "it shows a value: {error:#}");
                assert!(format!("{error:#}").contains("SQLSTATE"), "{error:#}");
            }
            other => panic!("{seqs:?}: {other:?}"),
        }
        assert_eq!(store.standing().await.unwrap().progress.applied, Seq::new(1));
        let rows = client.query("SELECT version FROM forebay.data", &[]).await.unwrap();
        assert_eq!(rows.len(), 1, "nothing of the batch is there");
        assert_eq!(outbox(&client).await.0.len(), 1);
    }
    // Without it the batch is taken.
    store.apply(&batch(tenure, vec![put(2, 1), put(3, 1), put(40, 2)])).await.unwrap();
    assert_eq!(outbox(&client).await.1, Seq::new(40));
}

/// A frozen server is a failure that passes, after a bounded time; whether the batch was applied does not matter.
#[tokio::test]
async fn a_frozen_server_is_given_up_and_found_again() {
    let server = Postgres::start();
    let store = PostgresStore::open(server.server("postgres").call_timeout(Duration::from_millis(300)));
    let store = store.await.unwrap();
    let tenure = claimed(&store).await;
    store.apply(&batch(tenure, vec![put(1, 1)])).await.unwrap();
    server.freeze();
    let frozen = [
        store.apply(&batch(tenure, vec![put(2, 1)])).await.expect_err("frozen"),
        store.load(&key(1)).await.expect_err("frozen"),
    ];
    server.thaw();
    for error in frozen {
        assert!(matches!(&error, StoreError::Transient(_)), "{error:?}");
    }
    // The transaction that was under way may hold the tenure until the server has noticed.
    let longer = vec![put(2, 1), put(3, 1)];
    while let Err(error) = store.apply(&batch(tenure, longer.clone())).await {
        assert!(matches!(&error, StoreError::Transient(_)), "{error:?}");
    }
    let found = store.load(&key(1)).await.unwrap().unwrap();
    assert_eq!((found.version, found.value), (Seq::new(3), Bytes::from("value 3")));
}

/// Connections that an operator ends are made again by the next call.
#[tokio::test]
async fn connections_that_were_cut_are_made_again() {
    let server = Postgres::start();
    let store = PostgresStore::open(server.server("postgres")).await.unwrap();
    let tenure = claimed(&store).await;
    let client = server.client("postgres").await;
    for round in 1..=5 {
        store.load(&key(1)).await.unwrap();
        let ended = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name = 'forebay'";
        client.query(ended, &[]).await.unwrap();
        let sent = batch(tenure, vec![put(round, 1)]);
        let mut tries = 0;
        while let Err(error) = store.apply(&sent).await {
            tries += 1;
            assert!(matches!(&error, StoreError::Transient(_)) && tries < 3, "{error:?}");
        }
    }
    assert_eq!(store.standing().await.unwrap().progress.applied, Seq::new(5));
}

/// A layer on it, from threads without any runtime.
#[test]
fn a_layer_works_without_a_runtime() {
    let server = Postgres::start();
    let directory = tempfile::tempdir().unwrap();
    let open = || {
        let store = PostgresStore::open_blocking(server.server("postgres")).unwrap();
        Forebay::builder(store).journal(directory.path().join("journal")).open_blocking().unwrap()
    };
    for round in 0..2_u64 {
        let bay = open();
        let cache = |policy| -> Cache<u64, String> {
            let name = if policy == WritePolicy::Through { "through" } else { "behind" };
            bay.cache(name).write_policy(policy).open().unwrap()
        };
        let (through, behind) =
            (cache(WritePolicy::Through).blocking(), cache(WritePolicy::Behind).blocking());
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let (through, behind) = (through.clone(), behind.clone());
                std::thread::spawn(move || {
                    for number in 0..20 {
                        let number = thread * 100 + number;
                        if round > 0 {
                            assert_eq!(through.get(&number).unwrap().as_deref(), Some("through"));
                            assert_eq!(behind.get(&number).unwrap().as_deref(), Some("behind"));
                        }
                        through.put(&number, "through".to_owned()).unwrap();
                        behind.put(&number, "behind".to_owned()).unwrap();
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        bay.blocking().flush().unwrap();
        assert_eq!(bay.blocking().close().unwrap().queued, 0);
    }
}

/// Failures that do not pass by themselves say so, and show no password.
#[tokio::test]
async fn what_does_not_pass_is_fatal_and_shows_no_secret() {
    let mut server = Postgres::start();
    let port = server.port();
    for (user, password, database) in
        [(USER, "wrong-6291", "postgres"), ("nobody-6291", PASSWORD, "postgres"), (USER, PASSWORD, "missing")]
    {
        let wrong = PostgresServer::parse(&server.url(user, password, database)).unwrap();
        let error = PostgresStore::open(wrong).await.expect_err(database);
        assert_eq!(error.kind(), ErrorKind::StoreFailed, "{error}");
        let told = format!("{error} {error:?}");
        assert!(!told.contains("6291") && !told.contains(PASSWORD) && !told.contains(USER), "{told}");
        assert!(told.contains(&format!("127.0.0.1:{port}")), "it names the server: {told}");
    }
    let store = PostgresStore::open(server.server("postgres")).await.unwrap();
    let tenure = claimed(&store).await;
    let client = server.client("postgres").await;
    client.batch_execute("DROP TABLE forebay.data").await.unwrap();
    let gone = store.apply(&batch(tenure, vec![put(1, 1)])).await.expect_err("no table");
    assert!(matches!(gone, StoreError::Fatal(_)), "{gone:?}");
    server.stop();
    let down = PostgresStore::open(server.server("postgres")).await.expect_err("down");
    assert_eq!(down.kind(), ErrorKind::Transient);
}

/// A later layout, and the first one, which no release wrote: it had no identity of a tenure.
#[tokio::test]
async fn a_store_of_another_layout_is_refused_and_left_as_it_is() {
    let server = Postgres::start();
    let store = PostgresStore::open(server.server("postgres")).await.unwrap();
    let tenure = claimed(&store).await;
    store.apply(&batch(tenure, vec![put(1, 1)])).await.unwrap();
    let client = server.client("postgres").await;
    let first = "UPDATE forebay.tenure SET layout = 1;
                 ALTER TABLE forebay.tenure DROP COLUMN tenure, DROP COLUMN batch";
    for (change, layout) in [("UPDATE forebay.tenure SET layout = 3", 3), (first, 1)] {
        client.batch_execute(change).await.unwrap();
        let error = PostgresStore::open(server.server("postgres")).await.expect_err("another layout");
        assert_eq!(error.kind(), ErrorKind::UnknownFormat, "{error}");
        assert!(error.to_string().contains(&format!("has layout {layout}, which is unknown")), "{error}");
        let held = "SELECT layout, applied FROM forebay.tenure, forebay.data";
        let held = client.query_one(held, &[]).await.unwrap();
        assert_eq!((held.get::<_, i32>(0), held.get::<_, i64>(1)), (layout, 1));
    }
}

/// A role that owns one schema and may do nothing else can run a store with an outbox, and listen.
#[tokio::test]
async fn an_ordinary_role_suffices() {
    use forebay::bus::{Bus, Delivery, StartPosition};
    let server = Postgres::start();
    let client = server.client("postgres").await;
    let setup = "CREATE ROLE clerk LOGIN PASSWORD 'clerk'; CREATE SCHEMA own AUTHORIZATION clerk;
                 REVOKE CREATE ON DATABASE postgres FROM PUBLIC; REVOKE ALL ON SCHEMA public FROM PUBLIC";
    client.batch_execute(setup).await.unwrap();
    let clerk = PostgresServer::parse(&server.url("clerk", "clerk", "postgres")).unwrap().schema("own");
    let options = PostgresStoreOptions::new(clerk.clone()).outbox(&channel(), OutboxPuts::Invalidate);
    let store = options.open().await.unwrap();
    let bus = forebay::PostgresBus::open(clerk).unwrap();
    let mut heard = bus.subscribe(&channel(), StartPosition::Now).await.unwrap();
    let tenure = claimed(&store).await;
    store.apply(&batch(tenure, vec![put(1, 1)])).await.unwrap();
    let Delivery::Message(_, body) = heard.next().await.unwrap() else { panic!("lost") };
    assert_eq!(Event::decode(&body).unwrap().until, Seq::new(1));
    bus.trim(&channel(), 0).await.unwrap();
    bus.outbox_backlog(&channel()).await.unwrap();
}
