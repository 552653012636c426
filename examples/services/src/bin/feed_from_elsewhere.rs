//! Another program changes a table of Postgres, in plain SQL and without knowing of any cache. A trigger says so in the
//! outbox, in the same transaction, and a service that keeps what it reads drops what has changed.
//!
//! ```text
//! cargo run --release -p forebay-services --bin feed_from_elsewhere
//! ```
//!
//! Starts a Postgres server of its own on a free port of this machine, with its data in a temporary directory, and
//! stops it. The other program is `psql`. Exit status 1 unless the service sees each change that was committed.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it is a program")]

use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use forebay::{Cache, Channel, Follow, Forebay, KeyColumn, NamespaceName, PostgresBus, PostgresStore};
use forebay_servers::postgres::{PASSWORD, Postgres, USER};
use tokio_postgres::Client;

/// The time within which a change has to be seen.
const PATIENCE: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let outcome = runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(run()));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("feed_from_elsewhere: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<()> {
    let server = Postgres::start();
    let database = server.database("shop").await;
    let url = server.url(USER, PASSWORD, &database);

    // Once, as a migration: the outbox, and the triggers of the other program's table.
    let (channel, namespace) = (Channel::parse("shop")?, NamespaceName::parse("products")?);
    let bus = PostgresBus::open(server.server(&database))?;
    let client = Arc::new(server.client(&database).await);
    client.batch_execute("CREATE TABLE products (id int8 PRIMARY KEY, price int8 NOT NULL)").await?;
    client.batch_execute("INSERT INTO products SELECT id, id * 100 FROM generate_series(1, 1000) id").await?;
    let triggers = bus.trigger_sql("products", KeyColumn::Number("id"), &namespace, &channel)?;
    client.batch_execute(&triggers).await?;

    // The service: what it reads of the table stays in memory until the table's triggers say that it changed.
    let store = PostgresStore::open(server.server(&database)).await?;
    let follow = Follow::new(bus, channel.as_str()).outside_directives(true);
    // No layer owns the table, so nothing proves that nothing happened: a value is read again after a minute.
    let bay = Forebay::builder(store).follow(follow.lag_max(Duration::from_secs(60))).open().await?;
    let products: Cache<u64, u64> = bay.cache("products").open()?;
    let service = Service { products, client, loads: Arc::default() };

    for id in 1..=1_000 {
        service.price(id).await?;
    }
    let loads = service.loads();
    for id in 1..=1_000 {
        service.price(id).await?;
    }
    println!("1,000 products read twice: {loads} loads, then {} more", service.loads() - loads);

    let changes = [
        ("UPDATE products SET price = 4990 WHERE id = 7", 7, Some(4_990)),
        ("DELETE FROM products WHERE id = 8", 8, None),
        ("BEGIN; UPDATE products SET price = 1 WHERE id = 9; ROLLBACK", 9, Some(900)),
        ("UPDATE products SET price = price + 1 WHERE id BETWEEN 101 AND 200", 150, Some(15_001)),
        ("INSERT INTO products VALUES (8, 850)", 8, Some(850)),
    ];
    for (sql, id, expected) in changes {
        let began = Instant::now();
        elsewhere(&url, sql)?;
        let done = began.elapsed();
        loop {
            let seen = service.price(id).await?;
            if seen == expected {
                break;
            }
            ensure!(began.elapsed() < PATIENCE, "product {id} is {seen:?}, and should be {expected:?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let after = began.elapsed().saturating_sub(done);
        println!("psql: {sql}\n  product {id} is {expected:?} after {:.1} ms", after.as_secs_f64() * 1e3);
    }

    let loads = service.loads();
    for id in 1..=1_000 {
        service.price(id).await?;
    }
    let again = service.loads() - loads;
    println!("all of them once more: {again} loads, of what was changed and not read since");
    ensure!(again <= 110, "only what was changed is loaded again, and {again} products were");
    let status = bay.following().context("it follows")?;
    println!("{} directives, none refused: {}", status.directives, status.refused == 0);
    bay.close().await?;
    Ok(())
}

/// Changes the table as any other program would.
fn elsewhere(url: &str, sql: &str) -> Result<()> {
    let output = Command::new("psql").args([url, "-q", "-v", "ON_ERROR_STOP=1", "-c", sql]).output();
    let output =
        output.context("psql cannot be started; it comes with Debian's package postgresql-client")?;
    ensure!(output.status.success(), "psql: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

struct Service {
    products: Cache<u64, u64>,
    client: Arc<Client>,
    loads: Arc<AtomicU64>,
}

impl Service {
    async fn price(&self, id: u64) -> Result<Option<u64>> {
        let (client, loads) = (Arc::clone(&self.client), Arc::clone(&self.loads));
        let load = move |id: u64| async move {
            loads.fetch_add(1, Ordering::SeqCst);
            let number = i64::try_from(id).unwrap_or(i64::MAX);
            let row = client.query_opt("SELECT price FROM products WHERE id = $1", &[&number]).await?;
            Ok::<_, tokio_postgres::Error>(row.map(|row| row.get::<_, i64>(0).unsigned_abs()))
        };
        Ok(self.products.get_or_load(&id, load).await?)
    }

    fn loads(&self) -> u64 {
        self.loads.load(Ordering::SeqCst)
    }
}
