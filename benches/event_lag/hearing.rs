//! The cost of a directive to the follower that carries it out.

use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use forebay::Invalidation;
use forebay::bus::{Bus as _, Directive, Event, Identity, Message, Payload};
use forebay::store::{Claim, Standing};
use forebay::{
    Bincode, Cache, Channel, Codec as _, Follow, Forebay, Key, LocalBus, MemoryStore, NamespaceName, Seq,
    Store, WritePolicy,
};

use crate::counting::Task;
use crate::load::VALUE_BYTES;

const CHANNEL: &str = "cost";
const NAMESPACE: &str = "products";
/// Where nobody has a cache open.
const ELSEWHERE: &str = "elsewhere";
/// Directives of an event: as many as a publisher puts into one at the most.
pub(crate) const EVENT_DIRECTIVES: usize = 1024;
/// Writes of a batch that fills the store.
const FILL: usize = 1_000;
/// Longer than it takes: nobody asks the store in between.
const NEVER: Duration = Duration::from_secs(3600);

/// Whose keys the directives name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keys {
    /// In memory.
    Present,
    /// Of an open cache that has not got them in memory.
    Absent,
    /// Of a namespace that nobody has open.
    Elsewhere,
}

impl Keys {
    pub(crate) const ALL: [Keys; 3] = [Keys::Present, Keys::Absent, Keys::Elsewhere];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Keys::Present => "present",
            Keys::Absent => "absent",
            Keys::Elsewhere => "elsewhere",
        }
    }
}

/// One line of the table, with a measurement per round: nanoseconds per directive, and those that decoding alone takes.
pub(crate) struct Line {
    pub(crate) keys: Keys,
    pub(crate) all_ns: Vec<f64>,
    pub(crate) decode_ns: Vec<f64>,
}

/// A follower that has all entries in memory, and the owner's part played by hand.
struct Bed {
    entries: u64,
    store: MemoryStore,
    bus: LocalBus,
    channel: Channel,
    standing: Standing,
    at: Seq,
    follower: Forebay,
    cache: Cache<u64, Bytes>,
}

pub(crate) async fn measure(rounds: u64, entries: u64) -> Result<Vec<Line>> {
    let mut bed = Bed::new(entries).await?;
    let new = |keys| Line { keys, all_ns: Vec::new(), decode_ns: Vec::new() };
    let mut lines = Keys::ALL.map(new);
    for _ in 0..rounds {
        for line in &mut lines {
            let (all_ns, decode_ns) = bed.measure(line.keys).await?;
            line.all_ns.push(all_ns);
            line.decode_ns.push(decode_ns);
        }
    }
    Ok(lines.into())
}

impl Bed {
    async fn new(entries: u64) -> Result<Bed> {
        let (store, bus, channel) = (MemoryStore::new(), LocalBus::default(), Channel::parse(CHANNEL)?);
        fill(&store, entries).await?;
        let claim = Claim::new(None)?;
        let standing = claim.of(&store).await.map_err(forebay::store::StoreError::into_error)?;
        let follow = Follow::new(bus.clone(), CHANNEL).probe_interval(NEVER).lag_max(NEVER);
        let follower = Forebay::builder(store.clone()).follow(follow).open().await?;
        // Ample, because a shard may get more than its share.
        let cache = follower.cache(NAMESPACE).capacity(usize::try_from(4 * entries)?).open()?;
        let at = standing.progress.applied;
        let mut bed = Bed { entries, store, bus, channel, standing, at, follower, cache };
        // Until it has listened, what is published counts for nothing.
        let first = bed.events(&[])?;
        bed.tell(&first).await?;
        Ok(bed)
    }

    /// Encodes an event with these directives, as the owner publishes it.
    fn events(&mut self, directives: &[Directive]) -> Result<Vec<Message>> {
        let mut messages = Vec::new();
        let none: [&[Directive]; 1] = [&[]];
        let parts = directives.chunks(EVENT_DIRECTIVES);
        for part in none.into_iter().filter(|_| directives.is_empty()).chain(parts) {
            let until = Seq::new(self.at.get() + u64::try_from(part.len().max(1))?);
            let payload = Payload::Directives(part.to_vec());
            let event =
                Event { epoch: self.standing.tenure.epoch, after: self.at, until, as_of_us: 0, payload };
            messages.push(Message { identity: Identity::parse(&until.to_string())?, body: event.encode()? });
            self.at = until;
        }
        Ok(messages)
    }

    /// Publishes, and waits until all of it has been carried out. Returns how long that took.
    async fn tell(&mut self, messages: &[Message]) -> Result<Duration> {
        // Truth first, then the event.
        let batch = self.standing.next_batch(self.at, Vec::new());
        self.store.apply(&batch).await.map_err(forebay::store::StoreError::into_error)?;
        self.standing = self.standing.after(&batch);
        let begun = Instant::now();
        self.bus.publish(&self.channel, messages).await?;
        self.follower.wait_applied(self.at).await?;
        Ok(begun.elapsed())
    }

    /// Brings all entries into memory. Returns how many were not there.
    async fn warm(&self) -> Result<u64> {
        let before = self.follower.stats().store_loads;
        let keys: Vec<u64> = (0..self.entries).collect();
        for keys in keys.chunks(FILL) {
            let found = self.cache.get_many(keys).await?;
            ensure!(found.iter().all(Option::is_some), "the store has not got all keys");
        }
        Ok(self.follower.stats().store_loads - before)
    }

    /// Directives about keys of a namespace, with the numbers that come next.
    fn directives(&self, namespace: &str, keys: Range<u64>) -> Result<Vec<Directive>> {
        let namespace = NamespaceName::parse(namespace)?;
        let first = keys.start;
        let directives = keys.map(|number| {
            let mut encoded = Vec::new();
            Bincode::encode(&number, 1 << 10, &mut encoded).map_err(anyhow::Error::msg)?;
            let version = Seq::new(self.at.get() + 1 + number - first);
            Ok(Directive::Invalidate(Invalidation::Key(Key::new(&namespace, &encoded)?), version))
        });
        directives.collect()
    }

    async fn measure(&mut self, keys: Keys) -> Result<(f64, f64)> {
        let loaded = self.warm().await?;
        let again = self.warm().await?;
        ensure!(again == 0, "memory does not keep all entries: {again} of {loaded} were loaded again");
        let (namespace, first) = match keys {
            Keys::Present => (NAMESPACE, 0),
            Keys::Absent => (NAMESPACE, self.entries),
            Keys::Elsewhere => (ELSEWHERE, 0),
        };
        let directives = self.directives(namespace, first..first + self.entries)?;
        let messages = self.events(&directives)?;
        let before = self.follower.following().context("it follows")?;
        let all = self.tell(&messages).await?;
        let after = self.follower.following().context("it follows")?;
        let elsewhere = if keys == Keys::Elsewhere { self.entries } else { 0 };
        ensure!(after.directives - before.directives == self.entries, "not all directives were carried out");
        ensure!(after.directives_elsewhere - before.directives_elsewhere == elsewhere, "others were meant");
        ensure!(after.places_lost == before.places_lost, "the follower has lost its place");
        let dropped = self.warm().await?;
        let expected = if keys == Keys::Present { self.entries } else { 0 };
        ensure!(dropped == expected, "{dropped} entries left memory instead of {expected}");

        let begun = Instant::now();
        for message in &messages {
            std::hint::black_box(Event::decode(&message.body)?);
        }
        let decode = begun.elapsed();
        let each = |time: Duration| time.as_nanos() as f64 / self.entries as f64;
        Ok((each(all), each(decode)))
    }
}

/// Does a task with so many events, and little else that is not the same however many there are.
pub(crate) async fn perform(task: Task, events: usize) -> Result<()> {
    let mut bed = Bed::new(1).await?;
    let namespace = if task == Task::Elsewhere { ELSEWHERE } else { NAMESPACE };
    let directives = bed.directives(namespace, 1..1 + EVENT_DIRECTIVES as u64)?;
    let messages = bed.events(&directives)?;
    // Their bytes are made once: an event that comes again is carried out again.
    let again: Vec<Message> = (0..events).flat_map(|_| messages.clone()).collect();
    if task == Task::Decode {
        for message in &again {
            std::hint::black_box(Event::decode(&message.body)?);
        }
        return Ok(());
    }
    // An event of its own behind them says when they have been carried out.
    let last = bed.events(&[])?;
    bed.tell(&[again, last].concat()).await.map(drop)
}

/// Writes the entries into the store, as an owner does.
async fn fill(store: &MemoryStore, entries: u64) -> Result<()> {
    let owner = Forebay::builder(store.clone()).open().await?;
    let cache: Cache<u64, Bytes> = owner.cache(NAMESPACE).write_policy(WritePolicy::Through).open()?;
    let keys: Vec<u64> = (0..entries).collect();
    for keys in keys.chunks(FILL) {
        let mut batch = owner.batch();
        for key in keys {
            batch.put(&cache, key, Bytes::from(vec![7; VALUE_BYTES]))?;
        }
        let _receipt = batch.commit().await?;
    }
    let _closed = owner.close().await?;
    Ok(())
}
