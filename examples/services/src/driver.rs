//! Does harm, listens, and says in the end what came of it.

use std::collections::{BTreeMap, HashMap};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use forebay::PostgresServer;
use forebay::testkit::proxy::Direction;
use forebay::{Bincode, Codec as _, Key, Monitor, NamespaceName, PostgresStore, Seq, Store as _};
use indicatif::{ProgressBar, ProgressStyle};

use crate::ledger::{Findings, Ledger, Read};
use crate::service::{PRODUCTS, Random};
use crate::watching::{ask, followers};
use crate::world::World;
use crate::{Arguments, Fault, Role};

/// The time that a service may take to be ready, or the followers to agree in the end.
const PATIENCE: Duration = Duration::from_secs(90);
const FOLLOWERS: [Role; 2] = [Role::Catalogue, Role::Prices];
/// The share of the writes that the monitor follows.
const SAMPLED: f64 = 0.02;
/// A stored value's codec and schema.
const VALUE_PREFIX_BYTES: usize = 2;

pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    let seed = arguments.seed.unwrap_or_else(crate::service::now_us);
    println!(
        "bus {:?}, {} s, {} writes a second, seed {seed}",
        arguments.bus, arguments.seconds, arguments.rate
    );
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(drive(arguments, Random(seed)))
}

/// The lines that the services have sent.
#[derive(Default)]
pub(crate) struct Heard {
    ledger: Ledger,
    monitor: Option<Monitor>,
    ready: BTreeMap<Role, u64>,
    at: HashMap<Role, Option<u64>>,
    answers: HashMap<u64, String>,
}

impl Heard {
    /// The answer to a question, if it is there.
    pub(crate) fn answer(&mut self, number: u64) -> Option<String> {
        self.answers.remove(&number)
    }
}

pub(crate) type Shared = Arc<Mutex<Heard>>;

async fn drive(arguments: &Arguments, mut random: Random) -> Result<bool> {
    let (sender, lines) = channel();
    let heard = Shared::default();
    let listening = Arc::clone(&heard);
    std::thread::spawn(move || listen(&lines, &listening));
    let mut world = World::start(arguments, sender).await?;
    let mut starts = BTreeMap::from([(Role::Owner, 1), (Role::Catalogue, 1), (Role::Prices, 1)]);
    wait("the services to be ready", || Ok(locked(&heard)?.ready == starts)).await?;

    let monitor = Monitor::builder().share(SAMPLED).delays(delays(arguments.seconds)).build()?;
    locked(&heard)?.monitor = Some(monitor.clone());
    let watching = {
        let (monitor, observers) = (monitor.clone(), followers(&world.inputs, &heard, FOLLOWERS));
        tokio::spawn(async move { monitor.run(observers).await })
    };
    let began = Instant::now();
    let end = Duration::from_secs(arguments.seconds);
    let bar = ProgressBar::new(arguments.seconds);
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} s  {msg}")?);
    let mut done: BTreeMap<Fault, u64> = BTreeMap::new();
    let kinds = if arguments.faults.is_empty() {
        vec![Fault::Kill, Fault::Freeze, Fault::Cut, Fault::Stall, Fault::Bus]
    } else {
        arguments.faults.clone()
    };
    while began.elapsed() < end {
        let pause = arguments.every_ms / 2 + random.below(arguments.every_ms);
        tokio::time::sleep(Duration::from_millis(pause).min(end.saturating_sub(began.elapsed()))).await;
        let fault = kinds[random.below(kinds.len() as u64) as usize];
        let role = [Role::Owner, Role::Catalogue, Role::Prices][random.below(3) as usize];
        let how_long = Duration::from_millis(100 + random.below(4_000));
        harm(&mut world, fault, role, how_long).await?;
        *done.entry(fault).or_default() += 1;
        if fault == Fault::Kill {
            *starts.entry(role).or_default() += 1;
        }
        if let Some(role) = world.has_ended()? {
            bail!("{role:?} has ended by itself");
        }
        let written = locked(&heard)?.ledger.written;
        bar.set_position(began.elapsed().as_secs());
        bar.set_message(format!("{written} writes, harm {}", done.values().sum::<u64>()));
    }
    bar.finish_and_clear();
    wait("the services to be ready again", || Ok(locked(&heard)?.ready == starts)).await?;
    monitor.close();
    let differ = agree(&world, &heard).await?;
    watching.await??;
    println!("{}", monitor.report());
    let findings = locked(&heard)?.ledger.check();
    report(&done, &findings, &differ, locked(&heard)?.ledger.written);
    let breaches: u64 = findings.values().map(|findings| findings.breaches).sum();
    let silent = FOLLOWERS.iter().any(|role| !findings.contains_key(name(*role)));
    Ok(breaches == 0 && differ.is_empty() && !silent)
}

/// Does one kind of harm to a service, and mends it.
async fn harm(world: &mut World, fault: Fault, role: Role, how_long: Duration) -> Result<()> {
    match fault {
        Fault::Kill => {
            world.kill(role)?;
            tokio::time::sleep(how_long / 4).await;
            world.start_service(role)?;
        }
        Fault::Freeze => {
            world.signal(role, "STOP")?;
            tokio::time::sleep(how_long).await;
            world.signal(role, "CONT")?;
        }
        Fault::Cut => {
            world.proxy(role).cut().await;
            tokio::time::sleep(how_long).await;
            world.proxy(role).mend();
        }
        Fault::Stall => {
            world.proxy(role).stall(Direction::ToClients, true);
            tokio::time::sleep(how_long).await;
            world.proxy(role).stall(Direction::ToClients, false);
        }
        Fault::Bus => {
            world.kill_bus();
            tokio::time::sleep(how_long / 4).await;
            world.start_bus();
        }
    }
    Ok(())
}

/// Lets the owner stop, waits until the followers have heard everything, and compares what they serve with the store.
async fn agree(world: &World, heard: &Shared) -> Result<Vec<String>> {
    for role in [Role::Owner, Role::Catalogue, Role::Prices] {
        world.inputs.ask(role, "stop")?;
    }
    let mut last = None;
    let began = Instant::now();
    while last.is_none() {
        last = ask_where(world, heard, Role::Owner).await?;
        anyhow::ensure!(began.elapsed() < PATIENCE, "the owner does not come to an end");
    }
    for role in FOLLOWERS {
        let began = Instant::now();
        while ask_where(world, heard, role).await? < last {
            anyhow::ensure!(began.elapsed() < PATIENCE, "{role:?} does not hear of everything");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    let store = PostgresStore::open(PostgresServer::parse(&world.store_url())?.schema("products")).await?;
    let mut differ = Vec::new();
    for product in 0..PRODUCTS {
        let stored = store.load(&stored_key(product)?).await.map_err(|error| error.into_error())?;
        let stored = match stored {
            Some(stored) => {
                let body = stored.value.get(VALUE_PREFIX_BYTES..).context("a value has a prefix")?;
                Bincode::decode::<u64>(body).map_err(|error| anyhow!(error))?.to_string()
            }
            None => "-".to_owned(),
        };
        for role in FOLLOWERS {
            let question = format!("final {{}} {product}");
            let answer = tokio::time::timeout(PATIENCE, ask(&world.inputs, heard, role, &question));
            let answer = answer.await.context("a follower does not answer")??;
            if answer != stored {
                differ.push(format!(
                    "{}: product {product} is {answer}, and {stored} in the store",
                    name(role)
                ));
            }
        }
    }
    Ok(differ)
}

fn stored_key(product: u64) -> Result<Key> {
    let mut key = Vec::new();
    Bincode::encode(&product, 64, &mut key).map_err(|error| anyhow!(error))?;
    Ok(Key::new(&NamespaceName::parse("products")?, &key)?)
}

/// After which times the monitor asks: those that fit into the run.
fn delays(seconds: u64) -> Vec<Duration> {
    [0, 1, 10, 60].into_iter().filter(|delay| *delay * 2 <= seconds).map(Duration::from_secs).collect()
}

/// Where a service stands; nothing if it is not at its end.
async fn ask_where(world: &World, heard: &Shared, role: Role) -> Result<Option<u64>> {
    locked(heard)?.at.remove(&role);
    world.inputs.ask(role, "where")?;
    wait("a service to say where it stands", || Ok(locked(heard)?.at.contains_key(&role))).await?;
    Ok(locked(heard)?.at.get(&role).copied().flatten())
}

async fn wait(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !holds()? {
        anyhow::ensure!(began.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// Takes in what the services say, until the last of them is gone.
fn listen(lines: &Receiver<(Role, String)>, heard: &Shared) {
    loop {
        let (role, line) = match lines.recv_timeout(Duration::from_secs(1)) {
            Ok(said) => said,
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let Ok(mut heard) = heard.lock() else { return };
        // A service that is killed may have said half a line.
        let _half = take_in(&mut heard, role, &line);
    }
}

fn take_in(heard: &mut Heard, role: Role, line: &str) -> Option<()> {
    let words: Vec<&str> = line.split(' ').collect();
    let number = |word: &str| word.parse::<u64>().ok();
    match words.as_slice() {
        ["ready"] => *heard.ready.entry(role).or_default() += 1,
        ["applied", key, seq, value, since] => {
            let value = if *value == "-" { None } else { Some(number(value)?) };
            let (key, seq) = (number(key)?, number(seq)?);
            heard.ledger.applied(key, seq, value, number(since)?);
            if let (Some(monitor), Ok(key)) = (&heard.monitor, stored_key(key)) {
                monitor.committed(&key, Seq::new(seq));
            }
        }
        ["read", key, value, began, tolerance] => {
            let value = if *value == "-" { None } else { Some(number(value)?) };
            let (key, began_us, tolerance_us) = (number(key)?, number(began)?, number(tolerance)?);
            heard.ledger.read(name(role), Read { key, value, began_us, tolerance_us });
        }
        ["at", place] => {
            heard.at.insert(role, number(place));
        }
        ["answer", asked, ..] => {
            let answer = words.get(2..)?.join(" ");
            heard.answers.insert(number(asked)?, answer);
        }
        _ => return None,
    }
    Some(())
}

pub(crate) fn name(role: Role) -> &'static str {
    match role {
        Role::Owner => "owner",
        Role::Catalogue => "catalogue",
        Role::Prices => "prices",
    }
}

fn locked(heard: &Shared) -> Result<std::sync::MutexGuard<'_, Heard>> {
    heard.lock().map_err(|_| anyhow!("the listening thread panicked"))
}

fn report(
    done: &BTreeMap<Fault, u64>,
    findings: &BTreeMap<&'static str, Findings>,
    differ: &[String],
    written: u64,
) {
    let harm: Vec<String> =
        done.iter().map(|(fault, count)| format!("{fault:?} {count}").to_lowercase()).collect();
    println!("{written} writes; harm done: {}", harm.join(", "));
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header(["follower", "reads", "of unknown writes", "stale", "stalest ms", "beyond tolerance"]);
    for (follower, found) in findings {
        let stalest = format!("{:.1}", found.stalest_us as f64 / 1e3);
        let row = [found.reads, found.unknown, found.stale].map(|count| count.to_string());
        let mut cells = vec![(*follower).to_owned()];
        cells.extend(row);
        cells.extend([stalest, found.breaches.to_string()]);
        table.add_row(cells);
    }
    println!("{table}");
    findings.values().flat_map(|found| &found.examples).for_each(|example| println!("{example}"));
    println!("products on which a follower differs from the store: {}", differ.len());
    differ.iter().take(10).for_each(|line| println!("{line}"));
}
