//! The services. A line of theirs says:
//!
//! | line | of | |
//! | --- | --- | --- |
//! | `ready` | all | it has opened |
//! | `applied KEY SEQ VALUE US` | owner | the store has this write (`-`: a removal) since that time at the latest |
//! | `read KEY VALUE BEGAN_US TOLERANCE_US` | followers | a read that may serve what is that stale found this, or `-` |
//! | `answer N ...` | followers | the answer to `ask N KEY` |
//! | `at SEQ` | all | the answer to `where` |
//!
//! They are asked `ask N KEY`, `where`, and `stop`, which ends the writing and the reading.

use std::io::{BufRead as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use forebay::bus::{Directive, NatsBus, PostgresBus, RedisBus};
use forebay::{
    Bincode, Bus, Cache, Codec as _, Follow, Forebay, PostgresStore, Publish, ReadOptions, Seq, StaleReason,
    WritePolicy,
};
use forebay::{Invalidation, PostgresServer};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::{Arguments, BusKind, LAG_MAX, Role};

const CHANNEL: &str = "products";
/// Products; those from [`REMOVED_FROM`] on are removed now and then.
pub(crate) const PRODUCTS: u64 = 400;
pub(crate) const REMOVED_FROM: u64 = 360;
/// Products on a page, or in a list.
pub(crate) const GROUP: u64 = 10;
/// Readers of a follower, and the rest of each after a read.
const READERS: u64 = 4;
const REST: Duration = Duration::from_millis(2);

pub(crate) fn run(role: Role, arguments: &Arguments) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let questions = questions();
        match role {
            Role::Owner => own(arguments, questions).await,
            Role::Catalogue | Role::Prices => follow(role, arguments, questions).await,
        }
    })
}

pub(crate) fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// The driver's requests, line by line. When they end the driver has ended, and this process ends too.
fn questions() -> UnboundedReceiver<String> {
    let (sender, receiver) = unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { break };
            if sender.send(line).is_err() {
                return;
            }
        }
        std::process::exit(0);
    });
    receiver
}

/// Says lines, in the order in which they come.
fn speaker() -> UnboundedSender<String> {
    let (sender, mut receiver) = unbounded_channel::<String>();
    std::thread::spawn(move || {
        let mut output = std::io::BufWriter::new(std::io::stdout().lock());
        while let Some(line) = receiver.blocking_recv() {
            let mut next = Some(line);
            while let Some(line) = next {
                // A driver that is gone needs no lines.
                if writeln!(output, "{line}").is_err() {
                    std::process::exit(0);
                }
                next = receiver.try_recv().ok();
            }
            if output.flush().is_err() {
                std::process::exit(0);
            }
        }
    });
    sender
}

fn bus(arguments: &Arguments) -> Result<Arc<dyn Bus>> {
    let url = &arguments.bus_url;
    Ok(match arguments.bus {
        BusKind::Redis => Arc::new(RedisBus::new(url)?),
        BusKind::Nats => Arc::new(NatsBus::new(url)?),
        BusKind::Postgres => Arc::new(PostgresBus::open(PostgresServer::parse(url)?.schema("bus"))?),
    })
}

async fn store(arguments: &Arguments) -> Result<PostgresStore> {
    let server = PostgresServer::parse(&arguments.store_url)?.schema("products");
    loop {
        match PostgresStore::open(server.clone()).await {
            Ok(store) => return Ok(store),
            // The database may be the bus, and be away.
            Err(error) if error.is_transient() => tokio::time::sleep(Duration::from_millis(200)).await,
            Err(error) => return Err(error).context("opening the store"),
        }
    }
}

async fn own(arguments: &Arguments, mut questions: UnboundedReceiver<String>) -> Result<()> {
    let journal = arguments.journal.clone().context("an owner has a journal")?;
    let bay = loop {
        let builder = Forebay::builder(store(arguments).await?);
        match builder.journal(&journal).changes(true).open().await {
            Ok(bay) => break bay,
            Err(error) if error.is_transient() => tokio::time::sleep(Duration::from_millis(200)).await,
            Err(error) => return Err(error).context("opening the owner's layer"),
        }
    };
    let products: Cache<u64, u64> = bay.cache("products").open()?;
    let publish = Publish::to(CHANNEL).heartbeat(Duration::from_millis(200));
    let _publication = bay.publish(bus(arguments)?, publish).await?;
    let say = speaker();
    say.send("ready".into())?;
    let stop = Arc::new(AtomicBool::new(false));
    let (written, mut to_apply) = unbounded_channel::<(u64, Seq, Option<u64>)>();
    let applied = (bay.clone(), say.clone());
    tokio::spawn(async move {
        let (bay, say) = applied;
        while let Some((key, seq, value)) = to_apply.recv().await {
            if bay.wait_applied(seq).await.is_err() {
                // It is in the journal, and nobody can say when the store gets it.
                continue;
            }
            let value = value.map_or("-".to_owned(), |value| value.to_string());
            if say.send(format!("applied {key} {} {value} {}", seq.get(), now_us())).is_err() {
                return;
            }
        }
    });
    let writing = {
        let (stop, products, rate) = (Arc::clone(&stop), products.clone(), arguments.rate);
        tokio::spawn(async move {
            let mut random = Random(now_us());
            let mut ticks = tokio::time::interval(Duration::from_millis(10));
            let mut owed = 0.0;
            while !stop.load(Ordering::SeqCst) {
                ticks.tick().await;
                owed += rate as f64 / 100.0;
                while owed >= 1.0 {
                    owed -= 1.0;
                    let key = random.below(PRODUCTS);
                    let removes = key >= REMOVED_FROM && random.below(4) == 0;
                    // Each value is written once, so that a reader's value tells which write it saw.
                    let value = (!removes).then(|| random.next());
                    let receipt = match (value, random.below(20)) {
                        (None, _) => products.remove(&key).await,
                        (Some(value), 0) => products.put_with(&key, value, WritePolicy::Through).await,
                        (Some(value), 1) => products.put_with(&key, value, WritePolicy::Around).await,
                        (Some(value), _) => products.put(&key, value).await,
                    };
                    // What is refused or in doubt is not told: it may be there, and nobody relies on it.
                    if let Ok(receipt) = receipt
                        && written.send((key, receipt.seq(), value)).is_err()
                    {
                        return;
                    }
                }
            }
        })
    };
    while let Some(question) = questions.recv().await {
        match question.as_str() {
            "stop" => stop.store(true, Ordering::SeqCst),
            "where" => {
                let bay = bay.clone();
                let last = if writing.is_finished() { bay.flush().await.ok() } else { None };
                say.send(last.map_or("at -".into(), |seq| format!("at {}", seq.get())))?;
            }
            other => bail!("the owner does not know \"{other}\""),
        }
    }
    Ok(())
}

async fn follow(role: Role, arguments: &Arguments, mut questions: UnboundedReceiver<String>) -> Result<()> {
    let name = if role == Role::Catalogue { "catalogue" } else { "prices" };
    let bay = loop {
        let follow = Follow::new(bus(arguments)?, CHANNEL)
            .name(name)
            .lag_max(LAG_MAX)
            .probe_interval(Duration::from_millis(100));
        let builder = Forebay::builder(store(arguments).await?);
        let opened = builder.follow_with(follow, drop_lists).open().await;
        match opened {
            Ok(bay) => break bay,
            Err(error) if error.is_transient() => tokio::time::sleep(Duration::from_millis(200)).await,
            Err(error) => return Err(error).context("opening the follower's layer"),
        }
    };
    let products: Cache<u64, u64> = bay.cache("products").open()?;
    let groups: Cache<u64, Group> =
        bay.cache(if role == Role::Catalogue { "pages" } else { "lists" }).open()?;
    let say = speaker();
    say.send("ready".into())?;
    let stop = Arc::new(AtomicBool::new(false));
    for reader in 0..READERS {
        let (products, groups) = (products.clone(), groups.clone());
        let (say, stop) = (say.clone(), Arc::clone(&stop));
        tokio::spawn(async move {
            let mut random = Random(now_us() ^ reader);
            while !stop.load(Ordering::SeqCst) {
                let tolerance = [Duration::from_millis(100), Duration::from_secs(1), LAG_MAX];
                let tolerance = tolerance[random.below(3) as usize];
                let lines = match random.below(8) {
                    0 => {
                        read_group(role, &products, &groups, random.below(PRODUCTS / GROUP), tolerance).await
                    }
                    _ => read_product(&products, random.below(PRODUCTS), tolerance).await,
                };
                if lines.into_iter().any(|line| say.send(line).is_err()) {
                    return;
                }
                tokio::time::sleep(REST).await;
            }
        });
    }
    while let Some(question) = questions.recv().await {
        let words: Vec<&str> = question.split(' ').collect();
        match words.as_slice() {
            ["stop"] => stop.store(true, Ordering::SeqCst),
            ["where"] => say.send(format!("at {}", bay.watermark().get()))?,
            ["ask", number, key] => {
                // Before the look: what is heard in between is not missing.
                let heard_until = bay.watermark();
                let status = bay.following().unwrap_or_default();
                let entry = products.peek(&key.parse()?);
                let state = match &entry {
                    None => "store",
                    Some(entry) if entry.stale == Some(StaleReason::Unverified) => "unverified",
                    Some(entry) if entry.value.is_none() => "absent",
                    Some(_) => "fresh",
                };
                let version = entry.and_then(|entry| entry.version).map_or(0, |version| version.get());
                let gap = if status.has_gap { "gap" } else { "-" };
                say.send(format!("answer {number} {state} {version} {} {gap}", heard_until.get()))?;
            }
            // Through memory, as any reader: what the driver compares with the store.
            ["final", number, key] => {
                let line = match products.get_entry(&key.parse()?).await {
                    Ok(entry) => text(entry.value),
                    Err(error) => format!("failed: {error:#}"),
                };
                say.send(format!("answer {number} {line}"))?;
            }
            other => bail!("a follower does not know {other:?}"),
        }
    }
    Ok(())
}

/// The products of a page, or of a list.
type Group = Vec<Option<u64>>;

/// Drops the list of a changed product: a loader made it, so that the cache does not know what it was made from.
fn drop_lists(directive: &Directive, stale: &mut forebay::Stale) {
    match directive {
        Directive::Invalidate(Invalidation::Key(key), _)
        | Directive::Put(key, ..)
        | Directive::Remove(key, _)
            if key.namespace() == "products" =>
        {
            match Bincode::decode::<u64>(key.key()) {
                Ok(product) => stale.key("lists", product / GROUP),
                Err(_) => stale.namespace("lists"),
            }
        }
        _ => {}
    }
}

/// A read that fails is told by nobody: it served nothing.
async fn read_product(products: &Cache<u64, u64>, key: u64, tolerance: Duration) -> Vec<String> {
    let began = now_us();
    match products.get_entry_with(&key, &ReadOptions::new().max_staleness(tolerance)).await {
        Ok(entry) => vec![read_line(key, entry.value, began, tolerance)],
        Err(_) => Vec::new(),
    }
}

async fn read_group(
    role: Role,
    products: &Cache<u64, u64>,
    groups: &Cache<u64, Group>,
    group: u64,
    tolerance: Duration,
) -> Vec<String> {
    let began = now_us();
    let options = ReadOptions::new().max_staleness(tolerance);
    let products = products.clone();
    let keys = move |group: u64| group * GROUP..(group + 1) * GROUP;
    let entry = if role == Role::Catalogue {
        let derive = move |group, context: forebay::LoadContext| async move {
            let mut found = Group::new();
            for key in keys(group) {
                found.push(context.get(&products, &key).await?);
            }
            Ok::<_, forebay::Error>(Some(found))
        };
        groups.get_or_derive_with(&group, &options, derive).await
    } else {
        let load = move |group| async move {
            let keys: Vec<u64> = keys(group).collect();
            let exact = ReadOptions::new().max_staleness(Duration::ZERO);
            products.get_many_with(&keys, &exact).await.map(Some)
        };
        groups.get_or_load_with(&group, &options, load).await
    };
    let Some(found) = entry.ok().and_then(|entry| entry.value) else { return Vec::new() };
    // A page is as stale as its own tolerance allows, and what it was made of as stale as the layer allows.
    let whole = if role == Role::Catalogue { tolerance + LAG_MAX } else { tolerance };
    (group * GROUP..).zip(found).map(|(key, value)| read_line(key, value, began, whole)).collect()
}

fn read_line(key: u64, value: Option<u64>, began: u64, tolerance: Duration) -> String {
    format!("read {key} {} {began} {}", text(value), tolerance.as_micros())
}

fn text(value: Option<u64>) -> String {
    value.map_or("-".to_owned(), |value| value.to_string())
}

/// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}
