//! How a layer follows another process, and how it says that it goes: plain values.

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

/// What a channel of followers' answers is named behind the owner's channel.
const SEEN_SUFFIX: &str = "-seen";

/// How a layer follows the owner of its store: over which buses, and what holds while it cannot hear the owner.
///
/// Given to [`Builder::follow`](crate::Builder::follow). The layer is read-only then. Its caches keep what they load
/// from the store until a directive of the owner says that it changed.
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

/// What else becomes stale by a directive.
pub(crate) type Derive = Arc<dyn Fn(&Directive, &Views) -> Result<Vec<RuleTarget>> + Send + Sync>;

impl Follow {
    /// Over this channel of this bus.
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

    /// Over this channel of this bus, too: the owner publishes to both, and what one of them loses comes over the
    /// other.
    pub fn and(mut self, bus: impl Bus, channel: &str) -> Follow {
        self.buses.push((Arc::new(bus), channel.to_owned()));
        self
    }

    /// Tells the owner under this name (1 to 64 bytes) how far this layer has come. Default: it does not.
    pub fn name(mut self, name: impl Into<String>) -> Follow {
        self.name = Some(name.into());
        self
    }

    /// How long what is in memory counts as current without a proof: longer, and the layer has missed what it should
    /// have heard, or cannot tell. Default: 5 s.
    pub fn lag_max(mut self, lag: Duration) -> Follow {
        self.lag_max = lag;
        self
    }

    /// What a read gets of an entry that is not known to be current any more. Default: what the store has.
    pub fn on_unverified(mut self, wanted: OnUnverified) -> Follow {
        self.on_unverified = wanted;
        self
    }

    /// How often the store is asked how far the owner has come, which is what proves that nothing was missed. One small
    /// read of the store each. Default: 500 ms.
    pub fn probe_interval(mut self, interval: Duration) -> Follow {
        self.probe_interval = interval;
        self
    }

    /// Whether directives are carried out that belong to no owner's chain: those of a trigger in the store's database,
    /// or of an operator's script. Whoever may publish to the channel can empty the memory with them, and no more.
    /// Default: no; they are refused and counted.
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

/// The channel on which followers answer.
pub(crate) fn seen_channel(channel: &Channel) -> Result<Channel> {
    Channel::parse(&format!("{channel}{SEEN_SUFFIX}"))
}

/// How a layer that follows another process is.
#[derive(Clone, Debug, Default, serde::Serialize)]
#[non_exhaustive]
pub struct FollowStatus {
    /// Whether it listens to all of its buses: from then on memory is not emptied for having just begun.
    pub listening: bool,
    /// Everything up to here has been heard and carried out.
    pub position: Seq,
    /// The newest epoch of an owner that is known.
    pub epoch: Epoch,
    /// How long ago everything that had happened was known to have been heard.
    pub unverified_for: Duration,
    /// How many numbers of records the store was ahead when it was asked last.
    pub behind_records: u64,
    /// About how many bytes of events that is: as many for each number as the events that were heard took. What it is
    /// in the owner's journal the owner knows: see [`FollowerStatus`](crate::FollowerStatus).
    pub behind_bytes: u64,
    /// How long ago anything was heard over a bus; never, if it was not.
    pub silent_for: Option<Duration>,
    /// The last failure of a bus or of the store, until the next success.
    #[serde(serialize_with = "crate::metrics::error_as_text")]
    pub error: Option<Error>,
    /// Events heard, duplicates and heartbeats included.
    pub events: u64,
    /// Directives carried out.
    pub directives: u64,
    /// How often the rule on directives failed, so that memory was emptied.
    pub rules_failed: u64,
    /// Directives about namespaces of which no cache is open.
    pub directives_elsewhere: u64,
    /// Events that were not to be believed: malformed, oversized, of an unknown kind, or outside of the owner's chain.
    pub refused: u64,
    /// Events of an owner that another one has followed, or that the store does not know.
    pub refused_owner: u64,
    /// Whether something is missing before what has been heard.
    pub has_gap: bool,
    /// How often something was missing and asked for again.
    pub gaps: u64,
    /// How often a bus said that it could not deliver what followed. If nothing did, memory stays as it is.
    pub positions_lost: u64,
    /// How often something missing could not be had, so that memory was emptied.
    pub places_lost: u64,
}

/// What a follower counts.
#[derive(Default)]
pub(crate) struct FollowFigures {
    pub(crate) events: Counter,
    /// How many numbers were heard of in their order, and how many bytes the events took that told them.
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
    /// What was counted, as it is told.
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

    /// About how many bytes events take that tell of so many numbers; nothing if none was heard yet.
    pub(crate) fn bytes_of(&self, numbers: u64) -> u64 {
        let (bytes, heard) = (self.bytes_heard.value(), self.numbers_heard.value().max(1));
        let about = u128::from(numbers) * u128::from(bytes) / u128::from(heard);
        u64::try_from(about).unwrap_or(u64::MAX)
    }
}
