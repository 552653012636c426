//! The publisher: sends the change stream of a layer to a bus, at least once and in order.
//!
//! Its position is a named cursor of the change stream, which survives crashes. It publishes nothing that the store
//! does not hold. It reads the journal, so writers do not wait for it. Events that were published and not acknowledged
//! are published again after a restart, which is harmless. Changes that the journal could not keep are published as
//! "everything may have changed".

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

/// The bytes of directives in one event, unless one directive alone is larger.
const EVENT_BYTES: usize = 64 << 10;
/// The most directives in one event.
const EVENT_DIRECTIVES_MAX: usize = 1024;
/// The most bytes of an event beside its directives.
const EVENT_OVERHEAD: usize = 64;
/// The most followers whose positions are kept.
const FOLLOWERS_MAX: usize = 4096;

/// The options of a publisher: the channel, the cursor, the heartbeat, and the use of values.
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

    /// Publishes to this channel.
    pub fn to(channel: &str) -> Publish {
        Publish {
            channel: channel.to_owned(),
            cursor: None,
            heartbeat: Duration::from_secs(1),
            values: false,
        }
    }

    /// Sets the name of the publisher's [cursor](crate::Forebay::cursors). Default: the channel's name.
    ///
    /// Publishers to several buses need one name each.
    pub fn cursor(mut self, name: &str) -> Publish {
        self.cursor = Some(name.to_owned());
        self
    }

    /// Sets the interval of heartbeats, which are sent while nothing changes. Default: 1 s.
    ///
    /// With them followers can tell a silent owner from a broken bus.
    pub fn heartbeat(mut self, interval: Duration) -> Publish {
        self.heartbeat = interval;
        self
    }

    /// Sends new values along, so that followers replace their entries instead of dropping them. Default: no.
    ///
    /// A value that is too large for an event is left out, and followers drop the entry.
    pub fn values(mut self, wanted: bool) -> Publish {
        self.values = wanted;
        self
    }
}

/// The status of a publisher.
#[derive(Clone, Debug, Default, serde::Serialize)]
#[non_exhaustive]
pub struct PublishStatus {
    /// The name of the publisher, which is that of its cursor.
    pub name: String,
    /// The number up to which the bus has taken everything.
    pub published: Seq,
    /// The lag of that number behind the store.
    pub lag: ChangeLag,
    /// The last failure, until the next success.
    #[serde(serialize_with = "crate::metrics::error_as_text")]
    pub error: Option<Error>,
    /// Events published, heartbeats included.
    pub events: u64,
    /// Directives published.
    pub directives: u64,
    /// Ranges of changes that were lost. Each was published as an invalidation of everything.
    pub places_lost: u64,
}

/// The status of a follower, as it last reported its position to the owner.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct FollowerStatus {
    /// Its name.
    pub name: String,
    /// The number up to which it has carried out everything.
    pub seen: Seq,
    /// The lag of that number behind the store. Includes changes that are not published yet, or not yet received.
    pub lag: ChangeLag,
    /// The time since its last report.
    pub silent_for: Duration,
}

/// A running publisher. Dropping this ends the publisher and keeps its cursor.
///
/// The publisher also ends with its layer.
pub struct Publication {
    shared: Arc<PublisherShared>,
    _running: watch::Sender<()>,
}

pub(crate) struct PublisherShared {
    name: String,
    source: Arc<ChangeSource>,
    reads: Arc<Lookup>,
    ticker: Ticker,
    state: Mutex<PublisherState>,
    /// The number of reports received from followers.
    heard: watch::Sender<u64>,
    events: Counter,
    directives: Counter,
    places_lost: Counter,
}

/// The running publishers of a layer.
#[derive(Default)]
pub(crate) struct Publishers(Mutex<Vec<Weak<PublisherShared>>>);

#[derive(Default)]
struct PublisherState {
    published: Seq,
    /// The place in the journal right after that number, if it is known.
    published_end: Option<Location>,
    error: Option<Error>,
    followers: BTreeMap<String, (Seq, Moment)>,
}

impl Publication {
    /// Starts a publisher of the stream's changes.
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
        let state = PublisherState { published: stream.told(), ..PublisherState::default() };
        let shared = Arc::new(PublisherShared {
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
        // The sender is dropped with the publication, which ends both tasks.
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
                () = listening.receive_reports(&*bus, &answers) => {}
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
    /// Returns the publisher's status.
    #[must_use]
    pub fn status(&self) -> PublishStatus {
        self.shared.status()
    }

    /// Converts this into a publication for callers without a runtime.
    #[must_use]
    pub fn blocking(self) -> BlockingPublication {
        BlockingPublication { inner: self }
    }

    /// Returns the followers that have reported a position, in the order of their names.
    #[must_use]
    pub fn followers(&self) -> Vec<FollowerStatus> {
        self.shared.followers()
    }

    /// Removes a follower that will not come back from the list. Returns true if it was known.
    ///
    /// It is added again with its next report.
    pub fn forget_follower(&self, name: &str) -> bool {
        self.shared.state().followers.remove(name).is_some()
    }

    /// Waits until all followers of these names have carried out everything up to `seq`, for at most `patience`.
    ///
    /// Returns the followers that have not, with their positions; none if all have. Dropping the future only ends the
    /// wait.
    pub async fn seen_by_all(&self, names: &[&str], seq: Seq, patience: Duration) -> Vec<FollowerStatus> {
        let behind = || {
            let known = self.followers();
            let stands = |name: &&str| {
                let found = known.iter().find(|follower| follower.name == *name).cloned();
                // A follower that has never reported counts as behind everything.
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
            // The caller may have no runtime, so the timer runs on the layer's.
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

/// A [`Publication`] for callers without a runtime. Dropping it ends the publisher, too.
#[derive(Debug)]
pub struct BlockingPublication {
    inner: Publication,
}

impl BlockingPublication {
    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        block_on(Some(&self.inner.shared.reads.runtime), future)
    }

    /// Returns the publication itself, for the calls that do not wait.
    #[must_use]
    pub fn publication(&self) -> &Publication {
        &self.inner
    }

    blocking_calls! { Publication:
        fn seen_by_all(names: &[&str], seq: Seq, patience: Duration) -> Vec<FollowerStatus>;
    }
}

impl Publishers {
    fn add(&self, publisher: &Arc<PublisherShared>) {
        let mut publishers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Dropped publications leave dead entries, which nothing else removes.
        publishers.retain(|other| other.strong_count() > 0);
        publishers.push(Arc::downgrade(publisher));
    }

    /// Returns the status of each publisher, and of its followers.
    #[cfg(feature = "metrics")]
    pub(crate) fn list(&self) -> Vec<(PublishStatus, Vec<FollowerStatus>)> {
        let publishers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let working = publishers.iter().filter_map(Weak::upgrade);
        working.map(|one| (one.status(), one.followers())).collect()
    }
}

impl PublisherShared {
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

    fn state(&self) -> MutexGuard<'_, PublisherState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Receives the reports of followers. Only the newest report of each counts, so a lost position on the bus is
    /// harmless.
    async fn receive_reports(&self, bus: &dyn Bus, channel: &Channel) {
        let mut failures = 0;
        loop {
            let mut subscription = match bus.subscribe(channel, StartPosition::Now).await {
                Ok(subscription) => subscription,
                Err(_) => {
                    // Not shown: the publisher meets the same failure, and its status shows it.
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
        // No follower can have reached an epoch or a number that does not exist yet. A forged report would let
        // `seen_by_all` return too early.
        if epoch > self.source.core.tenure.epoch || seen > self.source.core.status.borrow().watermark {
            return;
        }
        // Names come from the bus, so without a limit anyone who may publish could fill the memory.
        if is_known || state.followers.len() < FOLLOWERS_MAX {
            state.followers.insert(name, (seen, now));
        }
        drop(state);
        self.heard.send_modify(|count| *count += 1);
    }
}

/// The task of a publisher.
struct Work {
    shared: Arc<PublisherShared>,
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
                // No heartbeat before the first change: an event up to number zero belongs to no owner's chain, and
                // followers would refuse it.
                None if self.stream.told() == Seq::ZERO => {
                    beat = clock::now();
                    continue;
                }
                None => Payload::Heartbeat,
                // The journal may be readable again later. Skipping the range would hide changes from followers.
                Some(Err(error)) if matches!(error.kind(), ErrorKind::Damaged | ErrorKind::Io) => {
                    self.shared.state().error = Some(error);
                    clock::sleep(RETRY.max()).await;
                    continue;
                }
                // Any other error is the end of the layer or of its ownership.
                Some(Err(error)) => return self.shared.state().error = Some(error),
            };
            let until = self.stream.told();
            if !Safeguard::PublishBeforeAcknowledge.holds() {
                drop(self.stream.acknowledge(until).await);
            }
            let is_heartbeat = payload == Payload::Heartbeat;
            if let Err(error) = self.publish_event(after, until, payload).await {
                return self.shared.state().error = Some(error);
            }
            // An acknowledgement costs two syncs, so not for every event. Events published twice are harmless.
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

    /// Returns the next change, or `None` if there is none within `wait`.
    ///
    /// A read of the journal is never cancelled: a read that takes longer than `wait` would begin again for ever.
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

    /// Returns the directives of one event: the first change, and further ones that are ready, as far as they fit.
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
            // Checked before the next one is taken from the stream, since it could not be put back.
            let has_room = bytes < EVENT_BYTES && directives.len() < EVENT_DIRECTIVES_MAX;
            next = if has_room { self.stream.ready() } else { None };
        }
        directives
    }

    fn directive(&self, Change { seq, key, kind }: Change) -> Directive {
        match kind {
            ChangeKind::Put(value) if self.publish.values => {
                let put = Directive::Put(key.clone(), seq, value);
                // Added to an event that is almost full, it must not exceed the largest message of a bus.
                match put.encoded_len() + EVENT_OVERHEAD > BODY_BYTES_MAX - EVENT_BYTES {
                    true => Directive::Invalidate(Invalidation::Key(key), seq),
                    false => put,
                }
            }
            ChangeKind::Remove => Directive::Remove(key, seq),
            ChangeKind::Invalidate(what) => Directive::Invalidate(what, seq),
            // A put without its value, a version, or a kind that comes later: dropping the key is always safe.
            _ => Directive::Invalidate(Invalidation::Key(key), seq),
        }
    }

    /// Returns a time at which the store held nothing beyond `until`, in microseconds of Unix time. Zero if it holds
    /// more.
    async fn proof(&self, until: Seq) -> Result<u64> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // The clock is read before the store: the other way round, a change in between would be missed.
        let standing = self.shared.reads.standing().await?;
        // A fenced owner does not know the changes of the newer one, so it must not prove anything.
        if standing.tenure != self.shared.source.core.tenure {
            let context = format!("another owner holds the store, in tenure {}", standing.tenure);
            return Err(Error::new(ErrorKind::Fenced, context));
        }
        let is_all = standing.progress.applied <= until;
        Ok(if is_all { u64::try_from(now.as_micros()).unwrap_or(u64::MAX) } else { 0 })
    }

    /// Publishes an event, and retries until the bus has taken it. A heartbeat carries a proof of time, if the store
    /// answers.
    async fn publish_event(&self, after: Seq, until: Seq, payload: Payload) -> Result<()> {
        let (as_of_us, directives) = match &payload {
            Payload::Directives(directives) => (0, directives.len()),
            _ => match self.proof(until).await {
                Err(error) if error.kind() == ErrorKind::Fenced => return Err(error),
                // Without the store's answer the heartbeat still shows that the owner is alive.
                proof => (proof.unwrap_or(0), 0),
            },
        };
        let epoch = self.shared.source.core.tenure.epoch;
        let event = Event { epoch, after, until, as_of_us, payload };
        // Made from the event alone, so that the bus recognises a message that a retry publishes twice.
        let identity = Identity::parse(&format!("{epoch}.{after}.{until}.{as_of_us}"))?;
        let message = [Message { identity, body: event.encode()? }];
        let mut failures = 0_u64;
        loop {
            match self.bus.publish(&self.channel, &message).await {
                Ok(()) => break,
                // A closed bus takes nothing any more. The cursor stays, so a later publisher goes on from there.
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
