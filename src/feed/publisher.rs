//! A publisher: carries the change stream of a layer to a bus, at least once and in order.
//!
//! Its place is a named cursor of the change stream, so it survives every crash, and nothing is published that the
//! store does not hold. It reads the journal and costs the writers nothing. What it published and had not acknowledged
//! is published again after a restart, which does no harm; what the journal could not keep for it is published as
//! "anything may have changed".

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

use crate::bus::contract::{BODY_BYTES_MAX, Bus, Channel, Delivery, Identity, Message, StartPosition};
use crate::bus::event::{Directive, Event, Payload};
use crate::error::{Error, ErrorKind, Result};
use crate::feed::change::{Change, ChangeKind, ChangeLag, ChangeOutcome};
use crate::feed::changes::{ChangeSource, ChangeStream};
use crate::feed::follow::seen_channel;
use crate::feed::tasks::Tasks;
use crate::ids::{Epoch, Seq};
use crate::invalidation::Invalidation;
use crate::journal::frame::Location;
use crate::metrics::Counter;
use crate::options::within_time;
use crate::queue::lookup::Lookup;
use crate::safeguard::Safeguard;
use crate::seam::backoff::RETRY;
use crate::seam::blocking::blocking_calls;
use crate::seam::clock::{self, Moment, Ticker, block_on};
use crate::seam::sync::{Mutex, MutexGuard};

/// How many bytes of directives go into one event, unless one alone is larger.
const EVENT_BYTES: usize = 64 << 10;
/// How many directives at the most.
const EVENT_DIRECTIVES_MAX: usize = 1024;
/// What an event takes beside its directives, at the most.
const EVENT_OVERHEAD: usize = 64;
/// How many followers are kept in mind.
const FOLLOWERS_MAX: usize = 4096;

/// How a layer publishes what changes in its store.
#[derive(Clone, Debug)]
#[must_use = "it does nothing until it is given to `publish`"]
pub struct Publish {
    channel: String,
    cursor: Option<String>,
    heartbeat: Duration,
    values: bool,
}

impl Publish {
    /// The name of the durable cursor.
    pub(crate) fn cursor_name(&self) -> &str {
        self.cursor.as_deref().unwrap_or(&self.channel)
    }

    /// Checks the options.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidName`], [`ErrorKind::InvalidOption`].
    pub(crate) fn check(&self) -> Result<()> {
        seen_channel(&Channel::parse(&self.channel)?)?;
        within_time("heartbeat", self.heartbeat, Duration::from_millis(1), Duration::from_secs(3600))
    }

    /// To this channel.
    pub fn to(channel: &str) -> Publish {
        Publish {
            channel: channel.to_owned(),
            cursor: None,
            heartbeat: Duration::from_secs(1),
            values: false,
        }
    }

    /// Under this name among the [cursors](crate::Forebay::cursors) of the change stream. Default: the channel's name.
    /// Who publishes to several buses needs a name for each.
    pub fn cursor(mut self, name: &str) -> Publish {
        self.cursor = Some(name.to_owned());
        self
    }

    /// How often is said that nothing happened, so that silence means something. Default: 1 s.
    pub fn heartbeat(mut self, interval: Duration) -> Publish {
        self.heartbeat = interval;
        self
    }

    /// Whether new values travel along, so that followers replace what they have instead of dropping it. A value that
    /// is too large for an event is told without it. Default: no.
    pub fn values(mut self, wanted: bool) -> Publish {
        self.values = wanted;
        self
    }
}

/// How a publisher is.
#[derive(Clone, Debug, Default, serde::Serialize)]
#[non_exhaustive]
pub struct PublishStatus {
    /// What it is known by: the name of its cursor.
    pub name: String,
    /// The bus has everything up to here.
    pub published: Seq,
    /// How far that is behind the store now.
    pub lag: ChangeLag,
    /// The last failure, until the next success.
    #[serde(serialize_with = "crate::metrics::error_as_text")]
    pub error: Option<Error>,
    /// Events published, heartbeats included.
    pub events: u64,
    /// Directives published.
    pub directives: u64,
    /// How often its place was lost, so that it published that anything may have changed.
    pub places_lost: u64,
}

/// A follower that has told its owner where it stands.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct FollowerStatus {
    /// Its name.
    pub name: String,
    /// Everything up to here has been carried out by it.
    pub seen: Seq,
    /// How far that is behind the store: what is not published yet, and what is still on its way.
    pub lag: ChangeLag,
    /// How long ago it said so.
    pub silent_for: Duration,
}

/// A publisher at work. Dropping it ends it, and its cursor stays; so does the end of the layer.
pub struct Publication {
    shared: Arc<Shared>,
    _running: watch::Sender<()>,
}

pub(crate) struct Shared {
    name: String,
    source: Arc<ChangeSource>,
    reads: Arc<Lookup>,
    ticker: Ticker,
    state: Mutex<State>,
    /// Counts what was heard of followers.
    heard: watch::Sender<u64>,
    events: Counter,
    directives: Counter,
    places_lost: Counter,
}

/// The publishers of a layer, as long as somebody holds them.
#[derive(Default)]
pub(crate) struct Publishers(Mutex<Vec<Weak<Shared>>>);

#[derive(Default)]
struct State {
    published: Seq,
    /// Where that ends in the journal, if that is known.
    published_end: Option<Location>,
    error: Option<Error>,
    followers: BTreeMap<String, (Seq, Moment)>,
}

impl Publication {
    /// Starts a publisher of what the stream reports.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidName`].
    pub(crate) fn start(
        bus: Arc<dyn Bus>,
        publish: Publish,
        stream: ChangeStream,
        layer: PublishingLayer<'_>,
    ) -> Result<Publication> {
        let channel = Channel::parse(&publish.channel)?;
        let answers = seen_channel(&channel)?;
        let state = State { published: stream.told(), ..State::default() };
        let shared = Arc::new(Shared {
            name: publish.cursor_name().to_owned(),
            source: Arc::clone(stream.source()),
            reads: Arc::clone(layer.reads),
            ticker: layer.ticker.clone(),
            state: Mutex::new(state),
            heard: watch::Sender::new(0),
            events: Counter::default(),
            directives: Counter::default(),
            places_lost: Counter::default(),
        });
        layer.publishers.add(&shared);
        let running = watch::Sender::new(());
        let work = Work { shared: Arc::clone(&shared), bus: Arc::clone(&bus), channel, publish, stream };
        let listening = Arc::clone(&shared);
        let (mut ended, mut ended_too) = (running.subscribe(), running.subscribe());
        // A sender that is gone is the publication's end.
        layer.tasks.spawn(async move {
            tokio::select! {
                biased;
                _ = ended.changed() => {}
                () = work.run() => {}
            }
        });
        layer.tasks.spawn(async move {
            tokio::select! {
                biased;
                _ = ended_too.changed() => {}
                () = listening.hear_followers(&*bus, &answers) => {}
            }
        });
        Ok(Publication { shared, _running: running })
    }
}

/// The parts of a layer that a publisher works with.
pub(crate) struct PublishingLayer<'a> {
    pub(crate) reads: &'a Arc<Lookup>,
    pub(crate) ticker: &'a Ticker,
    pub(crate) tasks: &'a Tasks,
    pub(crate) publishers: &'a Publishers,
}

impl fmt::Debug for Publication {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publication").field("name", &self.shared.name).finish_non_exhaustive()
    }
}

impl Publication {
    /// How it goes.
    #[must_use]
    pub fn status(&self) -> PublishStatus {
        self.shared.status()
    }

    /// The same publication for a caller without a runtime.
    #[must_use]
    pub fn blocking(self) -> BlockingPublication {
        BlockingPublication { inner: self }
    }

    /// The followers that have said where they stand, in the order of their names.
    #[must_use]
    pub fn followers(&self) -> Vec<FollowerStatus> {
        self.shared.followers()
    }

    /// Forgets a follower that will not come back, so that it counts as behind no more; says whether it was known. If
    /// it speaks again, it is known again.
    pub fn forget_follower(&self, name: &str) -> bool {
        self.shared.state().followers.remove(name).is_some()
    }

    /// Waits until all followers of these names have carried out everything up to `seq`; returns those that have not
    /// within `patience`, with where they stand.
    pub async fn seen_by_all(&self, names: &[&str], seq: Seq, patience: Duration) -> Vec<FollowerStatus> {
        let behind = || {
            let known = self.followers();
            let stands = |name: &&str| {
                let found = known.iter().find(|follower| follower.name == *name).cloned();
                found.unwrap_or_else(|| FollowerStatus {
                    name: (*name).to_owned(),
                    seen: Seq::ZERO,
                    lag: self.shared.source.lag(Seq::ZERO, None),
                    silent_for: Duration::MAX,
                })
            };
            names.iter().map(stands).filter(|follower| follower.seen < seq).collect::<Vec<_>>()
        };
        let mut heard = self.shared.heard.subscribe();
        let wait = async {
            // The sender lives as long as this publication.
            while !behind().is_empty() && heard.changed().await.is_ok() {}
        };
        let deadline = {
            let _entered = self.shared.reads.runtime.enter();
            clock::sleep(patience)
        };
        tokio::select! {
            biased;
            () = wait => Vec::new(),
            () = deadline => behind(),
        }
    }
}

/// A [`Publication`] for callers without a runtime. Dropping it ends the publisher, as there.
#[derive(Debug)]
pub struct BlockingPublication {
    inner: Publication,
}

impl BlockingPublication {
    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        block_on(Some(&self.inner.shared.reads.runtime), future)
    }

    /// The publication itself, whose calls that do not wait are the same for both.
    #[must_use]
    pub fn publication(&self) -> &Publication {
        &self.inner
    }

    blocking_calls! { Publication:
        fn seen_by_all(names: &[&str], seq: Seq, patience: Duration) -> Vec<FollowerStatus>;
    }
}

impl Publishers {
    fn add(&self, publisher: &Arc<Shared>) {
        let mut publishers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        publishers.retain(|other| other.strong_count() > 0);
        publishers.push(Arc::downgrade(publisher));
    }

    /// How each goes, and its followers.
    #[cfg(feature = "metrics")]
    pub(crate) fn list(&self) -> Vec<(PublishStatus, Vec<FollowerStatus>)> {
        let publishers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let working = publishers.iter().filter_map(Weak::upgrade);
        working.map(|one| (one.status(), one.followers())).collect()
    }
}

impl Shared {
    fn status(&self) -> PublishStatus {
        let state = self.state();
        PublishStatus {
            name: self.name.clone(),
            published: state.published,
            lag: self.source.lag(state.published, state.published_end),
            error: state.error.clone(),
            events: self.events.value(),
            directives: self.directives.value(),
            places_lost: self.places_lost.value(),
        }
    }

    fn followers(&self) -> Vec<FollowerStatus> {
        let now = self.ticker.now();
        let state = self.state();
        let status = |(name, (seen, at)): (&String, &(Seq, Moment))| FollowerStatus {
            name: name.clone(),
            seen: *seen,
            lag: self.source.lag(*seen, None),
            silent_for: now.since(*at),
        };
        state.followers.iter().map(status).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Listens to what followers say. Only their newest word counts, so nothing is lost with a position.
    async fn hear_followers(&self, bus: &dyn Bus, channel: &Channel) {
        let mut failures = 0;
        loop {
            let mut subscription = match bus.subscribe(channel, StartPosition::Now).await {
                Ok(subscription) => subscription,
                Err(_) => {
                    // The publisher's own failures say the same, and are shown.
                    failures += 1;
                    clock::sleep(RETRY.delay(failures)).await;
                    continue;
                }
            };
            loop {
                match subscription.next().await {
                    Ok(Delivery::Message(_, body)) => {
                        failures = 0;
                        if let Ok(Event { epoch, until, payload: Payload::Seen(name), .. }) =
                            Event::decode(&body)
                        {
                            self.note_follower(name, epoch, until);
                        }
                    }
                    Ok(Delivery::PositionLost) => failures = 0,
                    Err(_) => {
                        failures += 1;
                        clock::sleep(RETRY.delay(failures)).await;
                    }
                }
            }
        }
    }

    fn note_follower(&self, name: String, epoch: Epoch, seen: Seq) {
        let now = self.ticker.now();
        let mut state = self.state();
        let is_known = state.followers.contains_key(&name);
        // What nobody can have seen is nobody's word.
        if epoch > self.source.core.epoch || seen > self.source.core.status.borrow().watermark {
            return;
        }
        if is_known || state.followers.len() < FOLLOWERS_MAX {
            state.followers.insert(name, (seen, now));
        }
        drop(state);
        self.heard.send_modify(|count| *count += 1);
    }
}

/// What a publisher works with.
struct Work {
    shared: Arc<Shared>,
    bus: Arc<dyn Bus>,
    channel: Channel,
    publish: Publish,
    stream: ChangeStream,
}

impl Work {
    /// Publishes until the layer ends.
    async fn run(mut self) {
        let mut acknowledged = self.stream.told();
        let mut beat = clock::now();
        let since = |beat| clock::now().saturating_duration_since(beat);
        loop {
            let after = self.stream.told();
            let payload = match self.first(self.publish.heartbeat.saturating_sub(since(beat))).await {
                Some(Ok(first)) => Payload::Directives(self.gather(first)),
                // Nothing has ever happened.
                None if self.stream.told() == Seq::ZERO => {
                    beat = clock::now();
                    continue;
                }
                None => Payload::Heartbeat,
                Some(Err(error)) if matches!(error.kind(), ErrorKind::Damaged | ErrorKind::Io) => {
                    self.shared.state().error = Some(error);
                    clock::sleep(RETRY.max()).await;
                    continue;
                }
                Some(Err(error)) => return self.shared.state().error = Some(error),
            };
            let until = self.stream.told();
            if !Safeguard::PublishBeforeAcknowledge.holds() {
                drop(self.stream.acknowledge(until).await);
            }
            let is_heartbeat = payload == Payload::Heartbeat;
            if let Err(error) = self.say(after, until, payload).await {
                return self.shared.state().error = Some(error);
            }
            // Two syncs each, so not for every event; what is published again does no harm.
            if is_heartbeat || since(beat) >= self.publish.heartbeat {
                if until > acknowledged {
                    match self.stream.acknowledge(until).await {
                        Ok(()) => acknowledged = until,
                        Err(error) => self.shared.state().error = Some(error),
                    }
                }
                beat = clock::now();
            }
        }
    }

    /// The next change; nothing if there is none for so long. A read of the journal is never broken off: one that takes
    /// longer than the wait would begin again for ever.
    async fn first(&mut self, wait: Duration) -> Option<Result<ChangeOutcome>> {
        let timer = clock::sleep(wait);
        tokio::pin!(timer);
        loop {
            if let Some(outcome) = self.stream.ready() {
                return Some(Ok(outcome));
            }
            let more = tokio::select! {
                biased;
                more = self.stream.more() => more,
                () = &mut timer => return None,
            };
            let read = match more {
                Ok(watermark) => self.stream.read_to(watermark).await,
                Err(error) => Err(error),
            };
            if let Err(error) = read {
                return Some(Err(error));
            }
        }
    }

    /// What goes into one event: this, and what else is ready to be told, as far as there is room.
    fn gather(&mut self, first: ChangeOutcome) -> Vec<Directive> {
        let (mut directives, mut bytes, mut next) = (Vec::new(), EVENT_OVERHEAD, Some(first));
        while let Some(outcome) = next {
            let directive = match outcome {
                ChangeOutcome::Change(change) => self.directive(change),
                ChangeOutcome::PlaceLost { until, .. } => {
                    self.shared.places_lost.add(1);
                    Directive::Invalidate(Invalidation::Everything, until)
                }
            };
            bytes += directive.encoded_len();
            directives.push(directive);
            let has_room = bytes < EVENT_BYTES && directives.len() < EVENT_DIRECTIVES_MAX;
            next = if has_room { self.stream.ready() } else { None };
        }
        directives
    }

    fn directive(&self, Change { seq, key, kind }: Change) -> Directive {
        match kind {
            ChangeKind::Put(value) if self.publish.values => {
                let put = Directive::Put(key.clone(), seq, value);
                match put.encoded_len() + EVENT_OVERHEAD > BODY_BYTES_MAX - EVENT_BYTES {
                    true => Directive::Invalidate(Invalidation::Key(key), seq),
                    false => put,
                }
            }
            ChangeKind::Remove => Directive::Remove(key, seq),
            ChangeKind::Invalidate(what) => Directive::Invalidate(what, seq),
            _ => Directive::Invalidate(Invalidation::Key(key), seq),
        }
    }

    /// The time, in microseconds of Unix time, at which the store held nothing beyond `until`; zero if it does now.
    async fn proof(&self, until: Seq) -> Result<u64> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let tenure = self.shared.reads.tenure().await?;
        if tenure.epoch != self.shared.source.core.epoch {
            let context = format!("a newer owner holds the store, in epoch {}", tenure.epoch);
            return Err(Error::new(ErrorKind::Fenced, context));
        }
        let is_all = tenure.progress.applied <= until;
        Ok(if is_all { u64::try_from(now.as_micros()).unwrap_or(u64::MAX) } else { 0 })
    }

    /// Publishes an event, however often it takes. A heartbeat says when that was all, if the store can tell.
    async fn say(&self, after: Seq, until: Seq, payload: Payload) -> Result<()> {
        let (as_of_us, directives) = match &payload {
            Payload::Directives(directives) => (0, directives.len()),
            _ => match self.proof(until).await {
                Err(error) if error.kind() == ErrorKind::Fenced => return Err(error),
                // The heartbeat says all the same that the owner is alive.
                proof => (proof.unwrap_or(0), 0),
            },
        };
        let epoch = self.shared.source.core.epoch;
        let event = Event { epoch, after, until, as_of_us, payload };
        let identity = Identity::parse(&format!("{epoch}.{after}.{until}.{as_of_us}"))?;
        let message = [Message { identity, body: event.encode()? }];
        let mut failures = 0_u64;
        loop {
            match self.bus.publish(&self.channel, &message).await {
                Ok(()) => break,
                Err(error) if error.kind() == ErrorKind::Closed => return Err(Error::layer_closed()),
                Err(error) => {
                    self.shared.state().error = Some(error);
                    failures = failures.saturating_add(1);
                    clock::sleep(RETRY.delay(failures)).await;
                }
            }
        }
        self.shared.events.add(1);
        self.shared.directives.add(directives as u64);
        let mut state = self.shared.state();
        (state.published, state.published_end, state.error) = (until, self.stream.told_end(), None);
        Ok(())
    }
}
