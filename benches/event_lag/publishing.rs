//! The cost of a publisher to a write: the same writers on layers with one and without, in turn within each round.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use forebay::bus::{Delivery, Event, RedisBus, StartPosition, Subscription};
use forebay::{
    Bus, Cache, Channel, Durability, Forebay, LocalBus, MemoryStore, Publication, Publish, WritePolicy,
};

use crate::buses::{CHANNEL, Over};
use crate::load::{KEYS, Paced, Ranks, write_closed};
use forebay_servers::redis::RedisServer;

const CLOSED_WRITERS: u64 = 64;

/// The arrival of writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    /// At a rate.
    Paced,
    /// Each when its writer's last was answered.
    Closed,
}

impl Load {
    pub(crate) const ALL: [Load; 2] = [Load::Paced, Load::Closed];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Load::Paced => "paced",
            Load::Closed => "closed",
        }
    }
}

/// The result of one measurement of a round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) writes_per_s: f64,
}

/// One line of the table, with a measurement per round.
pub(crate) struct Line {
    pub(crate) load: Load,
    pub(crate) what: &'static str,
    pub(crate) rounds: Vec<Figures>,
}

/// A layer, and whoever publishes what it says.
struct Subject {
    what: &'static str,
    bay: Forebay,
    cache: Cache<u64, Bytes>,
    published: Option<(Publication, Box<dyn Subscription>)>,
}

impl Subject {
    async fn open(what: &'static str, directory: &Path, buses: Option<[Box<dyn Bus>; 2]>) -> Result<Subject> {
        let bay = Forebay::builder(MemoryStore::new())
            .journal(directory.join(what))
            .durability(Durability::Sync)
            .changes(true)
            .open()
            .await?;
        let cache = bay
            .cache("cost")
            .capacity(usize::try_from(2 * KEYS)?)
            .write_policy(WritePolicy::Behind)
            .open()?;
        let published = match buses {
            Some([bus, listening]) => {
                let subscription = listening.subscribe(&Channel::parse(CHANNEL)?, StartPosition::Now).await?;
                Some((bay.publish(bus, Publish::to(CHANNEL)).await?, subscription))
            }
            None => None,
        };
        Ok(Subject { what, bay, cache, published })
    }

    async fn measure(&mut self, load: Load, paced: Paced, time: Duration) -> Result<Figures> {
        let (took, writes_per_s) = match load {
            Load::Paced => {
                let start = Instant::now();
                let writes = paced.write(&self.cache, start).await?;
                let end = writes.iter().map(|write| write.committed).max().context("some writes")?;
                let per_s = writes.len() as f64 / end.duration_since(start).as_secs_f64();
                (writes.into_iter().map(|write| write.took).collect(), per_s)
            }
            Load::Closed => write_closed(&self.cache, CLOSED_WRITERS, time).await?,
        };
        // Nobody is to pay for what this one has left to do.
        let last = self.bay.flush().await?;
        if let Some((_, subscription)) = &mut self.published {
            loop {
                let Delivery::Message(_, body) = subscription.next().await? else { continue };
                if Event::decode(&body)?.until >= last {
                    break;
                }
            }
        }
        let Ranks { p50_ms, p99_ms, .. } = Ranks::of(took)?;
        Ok(Figures { p50_ms, p99_ms, writes_per_s })
    }
}

/// Measures `without` a publisher, without one once more, and with one over each of these buses.
pub(crate) async fn measure(
    over: &[Over],
    rounds: u64,
    paced: Paced,
    time: Duration,
    directory: &Path,
) -> Result<Vec<Line>> {
    let mut subjects = vec![
        Subject::open("without", directory, None).await?,
        Subject::open("without-again", directory, None).await?,
    ];
    if over.contains(&Over::Local) {
        let bus = LocalBus::default();
        let buses: [Box<dyn Bus>; 2] = [Box::new(bus.clone()), Box::new(bus)];
        subjects.push(Subject::open("publishing-local", directory, Some(buses)).await?);
    }
    let mut server = None;
    if over.contains(&Over::Redis) {
        let url = server.insert(RedisServer::start()).url();
        let buses: [Box<dyn Bus>; 2] = [Box::new(RedisBus::new(&url)?), Box::new(RedisBus::new(&url)?)];
        subjects.push(Subject::open("publishing-redis", directory, Some(buses)).await?);
    }
    let mut lines = Vec::new();
    for load in Load::ALL {
        lines.extend(subjects.iter().map(|subject| Line { load, what: subject.what, rounds: Vec::new() }));
    }
    let count = subjects.len();
    for round in 0..usize::try_from(rounds)? {
        for load in Load::ALL {
            // Who comes first turns by one from round to round.
            for place in 0..count {
                let subject = subjects.get_mut((round + place) % count).context("it is one of them")?;
                let figures = subject.measure(load, paced, time).await?;
                let line = lines.iter_mut().find(|line| (line.load, line.what) == (load, subject.what));
                line.context("each has a line")?.rounds.push(figures);
            }
        }
    }
    for Subject { bay, published, .. } in subjects {
        if let Some((publication, _)) = &published {
            ensure!(publication.status().places_lost == 0, "a publisher has lost its place");
        }
        drop(published);
        let _closed = bay.close().await?;
    }
    drop(server);
    Ok(lines)
}

impl Line {
    /// The figures of each round, of those without a publisher in the same round.
    pub(crate) fn ratios(&self, without: &Line, figure: fn(&Figures) -> f64) -> Vec<f64> {
        self.rounds
            .iter()
            .zip(&without.rounds)
            .map(|(with, without)| figure(with) / figure(without))
            .collect()
    }
}
