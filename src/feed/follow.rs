//! The options and the status of a layer that follows another process. No logic beyond checking the options.

use std::sync::Arc;
use std::time::Duration;

use crate::bus::contract::{Bus, Channel};
use crate::bus::event::{Directive, FOLLOWER_BYTES_MAX};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{Epoch, Seq};
use crate::memory::freshness::{Following, OnUnverified};
use crate::memory::views::{RuleTarget, Views};
use crate::metrics::Counter;
use crate::options::within_time;

/// The suffix of the channel on which followers report their positions.
const SEEN_SUFFIX: &str = "-seen";

/// The options of a layer that follows the owner of its store: the buses, and the reads while the owner is unreachable.
///
/// Given to [`Builder::follow`](crate::Builder::follow), which makes the layer read-only. Its caches keep the values
/// that they load from the store until a directive of the owner invalidates or replaces them.
#[derive(Clone)]
#[must_use = "it does nothing until a layer is opened with it"]
pub struct Follow {
    buses: Vec<(Arc<dyn Bus>, String)>,
    name: Option<String>,
    lag_max: Duration,
    on_unverified: OnUnverified,
    probe_interval: Duration,
    outside_directives: bool,
    derive: Option<Derive>,
}

/// A rule that returns the further targets that a directive makes stale.
pub(crate) type Derive = Arc<dyn Fn(&Directive, &Views) -> Result<Vec<RuleTarget>> + Send + Sync>;

impl Follow {
    /// Follows over this channel of this bus.
    pub fn new(bus: impl Bus, channel: &str) -> Follow {
        Follow {
            buses: vec![(Arc::new(bus), channel.to_owned())],
            name: None,
            lag_max: Duration::from_secs(5),
            on_unverified: OnUnverified::default(),
            probe_interval: Duration::from_millis(500),
            outside_directives: false,
            derive: None,
        }
    }

    /// Follows over this channel of this bus, too. The owner publishes to both, so an event that one loses arrives over
    /// the other.
    pub fn and(mut self, bus: impl Bus, channel: &str) -> Follow {
        self.buses.push((Arc::new(bus), channel.to_owned()));
        self
    }

    /// Reports this layer's position to the owner under this name (1 to 64 bytes). Default: no reports.
    pub fn name(mut self, name: impl Into<String>) -> Follow {
        self.name = Some(name.into());
        self
    }

    /// Sets the time for which memory counts as current without a new proof. Default: 5 s.
    ///
    /// After that the layer has missed an event, or cannot know: [`on_unverified`](Follow::on_unverified) applies.
    pub fn lag_max(mut self, lag: Duration) -> Follow {
        self.lag_max = lag;
        self
    }

    /// Sets the answer to a read of an entry that is no longer known to be current. Default: the store's value.
    pub fn on_unverified(mut self, wanted: OnUnverified) -> Follow {
        self.on_unverified = wanted;
        self
    }

    /// Sets the interval at which the owner's progress is read from the store. Default: 500 ms.
    ///
    /// The store's answer proves that no event was missed. Each probe costs one small read of the store.
    pub fn probe_interval(mut self, interval: Duration) -> Follow {
        self.probe_interval = interval;
        self
    }

    /// Accepts directives outside of the owner's chain of events, as from a database trigger or an operator's script.
    ///
    /// With them, anyone who may publish to the channel can empty this layer's memory, and nothing worse. Default: no;
    /// such directives are refused and counted.
    pub fn outside_directives(mut self, wanted: bool) -> Follow {
        self.outside_directives = wanted;
        self
    }

    pub(crate) fn validate(&self) -> Result<()> {
        let hour = Duration::from_secs(3600);
        within_time("lag_max", self.lag_max, Duration::from_millis(1), 24 * hour)?;
        within_time("probe_interval", self.probe_interval, Duration::from_millis(1), hour)?;
        match &self.name {
            Some(name) if !(1..=FOLLOWER_BYTES_MAX).contains(&name.len()) => {
                let context = format!("a follower's name of {} bytes; allowed are 1 to 64", name.len());
                Err(Error::new(ErrorKind::InvalidName, context))
            }
            _ => self.channels().map(drop),
        }
    }

    pub(crate) fn channels(&self) -> Result<Vec<(Arc<dyn Bus>, Channel)>> {
        let checked =
            |(bus, channel): &(Arc<dyn Bus>, String)| Ok((Arc::clone(bus), Channel::parse(channel)?));
        self.buses.iter().map(checked).collect()
    }

    pub(crate) fn following(&self) -> Following {
        Following { lag_max: self.lag_max, on_unverified: self.on_unverified }
    }

    pub(crate) fn known_as(&self) -> Option<&str> {
        self.name.as_deref()
    }

    pub(crate) fn interval(&self) -> Duration {
        self.probe_interval
    }

    pub(crate) fn deriving(mut self, derive: Derive) -> Follow {
        self.derive = Some(derive);
        self
    }

    pub(crate) fn derive(&self) -> Option<&Derive> {
        self.derive.as_ref()
    }

    pub(crate) fn takes_outside_directives(&self) -> bool {
        self.outside_directives
    }
}

/// Returns the channel on which followers report their positions to the publisher of `channel`.
pub(crate) fn seen_channel(channel: &Channel) -> Result<Channel> {
    Channel::parse(&format!("{channel}{SEEN_SUFFIX}"))
}

/// The status of a layer that follows another process.
#[derive(Clone, Debug, Default, serde::Serialize)]
#[non_exhaustive]
pub struct FollowStatus {
    /// True once it listens to all of its buses. Memory is emptied when it begins to listen to each of them.
    pub listening: bool,
    /// The number up to which all directives have been received and carried out.
    pub position: Seq,
    /// The newest known epoch of an owner.
    pub epoch: Epoch,
    /// The time since memory was last proved to be current.
    pub unverified_for: Duration,
    /// The count of sequence numbers that the store was ahead at the last probe.
    pub behind_records: u64,
    /// The estimated bytes of events for these numbers, from the average of the events received so far.
    ///
    /// The owner knows the bytes in its journal: see [`FollowerStatus`](crate::FollowerStatus).
    pub behind_bytes: u64,
    /// The time since the last event of the owner arrived over a bus; `None` if none has.
    pub silent_for: Option<Duration>,
    /// The last failure of a bus or of the store, until the next success.
    #[serde(serialize_with = "crate::metrics::error_as_text")]
    pub error: Option<Error>,
    /// Events received, duplicates and heartbeats included.
    pub events: u64,
    /// Directives carried out.
    pub directives: u64,
    /// Failures of the rule on directives. Each emptied memory.
    pub rules_failed: u64,
    /// Directives about namespaces without an open cache.
    pub directives_elsewhere: u64,
    /// Refused events: malformed, oversized, of an unknown kind, or outside of the owner's chain.
    pub refused: u64,
    /// Refused events of a fenced owner, or of an owner that the store does not know.
    pub refused_owner: u64,
    /// True while an event is missing before the last one received.
    pub has_gap: bool,
    /// Gaps in the events. Each made the layer subscribe again from the last position.
    pub gaps: u64,
    /// Positions that a bus could not go on from. Memory is kept unless events turn out to be missing.
    pub positions_lost: u64,
    /// Times that missing events could not be recovered. Each emptied memory.
    pub places_lost: u64,
}

/// The counters of a follower.
#[derive(Default)]
pub(crate) struct FollowFigures {
    pub(crate) events: Counter,
    /// The sequence numbers that arrived in order, and the bytes of their events: the base of an estimate.
    pub(crate) numbers_heard: Counter,
    pub(crate) bytes_heard: Counter,
    pub(crate) directives: Counter,
    pub(crate) directives_elsewhere: Counter,
    pub(crate) rules_failed: Counter,
    pub(crate) refused: Counter,
    pub(crate) refused_owner: Counter,
    pub(crate) gaps: Counter,
    pub(crate) positions_lost: Counter,
    pub(crate) places_lost: Counter,
}

impl FollowFigures {
    /// Returns the counters as a status whose other fields are empty.
    pub(crate) fn told(&self) -> FollowStatus {
        FollowStatus {
            events: self.events.value(),
            directives: self.directives.value(),
            rules_failed: self.rules_failed.value(),
            directives_elsewhere: self.directives_elsewhere.value(),
            refused: self.refused.value(),
            refused_owner: self.refused_owner.value(),
            gaps: self.gaps.value(),
            positions_lost: self.positions_lost.value(),
            places_lost: self.places_lost.value(),
            ..FollowStatus::default()
        }
    }

    /// Estimates the bytes of events for so many sequence numbers; zero before the first event.
    pub(crate) fn bytes_of(&self, numbers: u64) -> u64 {
        let (bytes, heard) = (self.bytes_heard.value(), self.numbers_heard.value().max(1));
        let about = u128::from(numbers) * u128::from(bytes) / u128::from(heard);
        u64::try_from(about).unwrap_or(u64::MAX)
    }
}
