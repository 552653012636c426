//! The options of a cache, and how it is opened with them.
//!
//! A namespace has one memory per layer: opening it again returns the same cache, or an error if types or options
//! differ.

use std::any::type_name;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::cache::codec::{
    BoxError, CacheKey, CacheValue, Codec, Coder, SCHEMA_DEFAULT, SCHEMA_MAX, Upgrade,
};
use crate::cache::entry::{LIFE_MAX, LIFE_MIN};
use crate::cache::reading::OpenCache;
use crate::cache::rules::{Replacement, Rule, Stale};
use crate::cache::throttle::Throttle;
use crate::cache::typed::Cache;
use crate::cache::versions::VERSIONS_KEPT_MAX;
use crate::cache::view::{GroupOf, TypedView};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::NamespaceName;
use crate::layer::layer::Layer;
use crate::memory::freshness::Freshness;
use crate::memory::metrics::CacheMetrics;
use crate::memory::resident::{Capacity, Resident};
use crate::memory::views::View;
use crate::options::{WritePolicy, within_time};

/// The number of entries in memory of a cache that sets no bound.
const CAPACITY_DEFAULT: usize = 10_000;

const LOAD_THROTTLE_DEFAULT: Duration = Duration::from_secs(1);

/// The options of a cache that is about to be opened. Each has a default, and is checked by [`CacheBuilder::open`].
///
/// ```
/// # use std::time::Duration;
/// # use forebay::{Cache, Forebay, MemoryStore, WritePolicy};
/// # let bay = Forebay::builder(MemoryStore::new()).open_blocking()?;
/// let users: Cache<u64, String> = bay
///     .cache("users")
///     .capacity(100_000)
///     .write_policy(WritePolicy::Through)
///     .time_to_live(Duration::from_secs(300))
///     .stale_while_revalidate(Duration::from_secs(30))
///     .open()?;
/// # Ok::<(), forebay::Error>(())
/// ```
#[must_use = "nothing is opened until `open` is called"]
pub struct CacheBuilder<K, V> {
    layer: Arc<Layer>,
    name: String,
    bound: Capacity<K, V>,
    policy: Option<WritePolicy>,
    coalesce: bool,
    time_to_live: Option<Duration>,
    freshness: Freshness,
    jitter: f64,
    load_throttle: Option<Duration>,
    versions_kept: Option<usize>,
    coder: Option<Coder<K, V>>,
    schema: u8,
    upgrade: Option<Upgrade<V>>,
    group_of: Option<GroupOf<K>>,
    rules: Vec<Rule<K, V>>,
}

impl<K, V> fmt::Debug for CacheBuilder<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheBuilder").field("namespace", &self.name).finish_non_exhaustive()
    }
}

impl<K: CacheKey, V: CacheValue> CacheBuilder<K, V> {
    pub(crate) fn new(layer: Arc<Layer>, name: &str) -> Self {
        CacheBuilder {
            layer,
            name: name.into(),
            bound: Capacity::Entries(CAPACITY_DEFAULT),
            policy: None,
            coalesce: true,
            time_to_live: None,
            freshness: Freshness::default(),
            jitter: 0.0,
            load_throttle: None,
            versions_kept: None,
            coder: Coder::of_default(),
            schema: SCHEMA_DEFAULT,
            upgrade: None,
            group_of: None,
            rules: Vec::new(),
        }
    }

    /// Limits the number of entries in memory. Default: 10,000.
    pub fn capacity(mut self, entries: usize) -> Self {
        self.bound = Capacity::Entries(entries);
        self
    }

    /// Limits the weight of the entries in memory, in the unit of `weigh`, instead of their number.
    ///
    /// A value that `weigh` panics on is not kept. A weight above 2,047 is kept in eleven bits and counts as up to a
    /// thousandth more.
    pub fn weight_capacity(
        mut self,
        weight: u64,
        weigh: impl Fn(&K, &V) -> u32 + Send + Sync + 'static,
    ) -> Self {
        self.bound = Capacity::Weight(weight, Box::new(weigh));
        self
    }

    /// Sets when writes are acknowledged. Default: write-behind on a layer with a journal, write-through on one
    /// without.
    pub fn write_policy(mut self, policy: WritePolicy) -> Self {
        self.policy = Some(policy);
        self
    }

    /// Sends only the last of several writes of a key in one apply to the store. Default: true.
    pub fn coalesce(mut self, coalesce: bool) -> Self {
        self.coalesce = coalesce;
        self
    }

    /// Sets how keys and values become bytes. Default: `Bincode`.
    ///
    /// Without the feature `bincode` there is no default, and opening a cache that names no codec fails with
    /// [`ErrorKind::InvalidOption`].
    pub fn codec<C: Codec>(mut self) -> Self {
        self.coder = Some(Coder::of::<C>());
        self
    }

    /// Sets the version of the values' schema, from 1 to 127. Default: 1.
    ///
    /// A stored value of another version goes through [`CacheBuilder::upgrade`]; without that, reading it fails with
    /// [`ErrorKind::Decode`]. No value is ever decoded as another version than it was written with. A namespace can be
    /// opened with another version once no handle of the old one is left; its memory is empty then.
    pub fn schema_version(mut self, version: u8) -> Self {
        self.schema = version;
        self
    }

    /// Converts stored values of other schema versions when they are read. Default: none.
    ///
    /// The function gets the stored version and bytes, which decode by [`Codec::decode`] of the cache's codec: a value
    /// of another codec is an error. The store keeps the old bytes until the key is written again.
    ///
    /// ```
    /// # use forebay::{Bincode, Cache, Codec, Forebay, MemoryStore};
    /// # let bay = Forebay::builder(MemoryStore::new()).open_blocking()?;
    /// let old: Cache<u64, u32> = bay.cache("prices").open()?;
    /// old.blocking().put(&7, 35)?;
    /// drop(old);
    /// let prices: Cache<u64, (u32, String)> = bay
    ///     .cache("prices")
    ///     .schema_version(2)
    ///     .upgrade(|from, bytes| match from {
    ///         1 => Ok((Bincode::decode::<u32>(bytes)?, "EUR".into())),
    ///         newer => Err(format!("written by a later release, with version {newer}").into()),
    ///     })
    ///     .open()?;
    /// assert_eq!(prices.blocking().get(&7)?, Some((35, "EUR".into())));
    /// # Ok::<(), forebay::Error>(())
    /// ```
    pub fn upgrade(
        mut self,
        upgrade: impl Fn(u8, &[u8]) -> Result<V, BoxError> + Send + Sync + 'static,
    ) -> Self {
        self.upgrade = Some(Box::new(upgrade));
        self
    }

    /// Puts each key into a group, or none: a function of the key alone. [`Cache::invalidate_group`] invalidates
    /// one. Default: none.
    ///
    /// A layer keeps 4,096 floors for its groups and tags, so two groups may share one: the invalidation of one then
    /// costs the other a reload.
    pub fn group_by(mut self, group_of: impl Fn(&K) -> Option<String> + Send + Sync + 'static) -> Self {
        self.group_of = Some(Box::new(group_of));
        self
    }

    /// Adds a rule that names what becomes stale elsewhere when a key of this cache is written or removed: a pure
    /// function of the key, the old value and the new one.
    ///
    /// The named entries are dropped from memory before the write, and again when the write has taken effect.
    /// Invalidations do not run rules, since they do not say what changed. A rule must not hold a handle of the layer
    /// or of its caches: it would keep the layer open for ever.
    ///
    /// With a rule, writing a key that is not in memory costs a load, and writes of one key wait for each other. A
    /// write that has waited for [`through_timeout`](crate::Builder::through_timeout) fails with
    /// [`ErrorKind::Transient`]. If the rule panics or names what cannot be, the write fails with
    /// [`ErrorKind::RuleFailed`]. Nothing is written in either case.
    ///
    /// ```
    /// # use forebay::{Cache, Forebay, MemoryStore};
    /// # let bay = Forebay::builder(MemoryStore::new()).open_blocking()?;
    /// let catalogue: Cache<String, Vec<u64>> = bay.cache("catalogue").open()?;
    /// let products = bay
    ///     .cache::<u64, String>("products") // by their category
    ///     .on_change(|change, stale| {
    ///         for category in change.old.into_iter().chain(change.new) {
    ///             stale.key("catalogue", category.clone());
    ///         }
    ///         stale.tag("home");
    ///     })
    ///     .open()?;
    /// let catalogue = catalogue.blocking();
    /// catalogue.get_or_load(&"toys".into(), |_| Ok::<_, std::io::Error>(Some(vec![1, 7])))?;
    /// products.blocking().put(&7, "toys".into())?;
    /// assert_eq!(catalogue.get(&"toys".into())?, None); // not in memory any more, and never in the store
    /// # Ok::<(), forebay::Error>(())
    /// ```
    pub fn on_change(
        mut self,
        rule: impl Fn(&Replacement<'_, K, V>, &mut Stale) + Send + Sync + 'static,
    ) -> Self {
        self.rules.push(Box::new(rule));
        self
    }

    /// Sets how long a value in memory is fresh, counted from the start of its load or from its write. Pending writes
    /// are always fresh. Default: for as long as it is in memory. See [`Cache::set_time_to_live`].
    pub fn time_to_live(mut self, time_to_live: Duration) -> Self {
        self.time_to_live = Some(time_to_live);
        self
    }

    /// Sets how long a value stays servable while nobody reads it. Default: for as long as it is in memory.
    pub fn time_to_idle(mut self, time_to_idle: Duration) -> Self {
        self.freshness.time_to_idle = Some(time_to_idle);
        self
    }

    /// Sets how long a key that was found absent is taken to be absent. Default: zero; each read asks the store.
    pub fn negative_time_to_live(mut self, time_to_live: Duration) -> Self {
        self.freshness.negative_time_to_live = Some(time_to_live);
        self
    }

    /// Cuts each entry's time to live at random by up to this share, from 0 to 1, so that entries that came together do
    /// not expire together. Never makes it longer. Default: 0.
    pub fn time_to_live_jitter(mut self, share: f64) -> Self {
        self.jitter = share;
        self
    }

    /// Loads an entry again in the background before it expires: the likelier, the longer its load took and the closer
    /// its end is (XFetch; Vattani, Chierichetti, Lowenstein, VLDB 2015). `beta` is usually 1, at most 1,000; a higher
    /// one loads earlier. Default: never.
    pub fn early_refresh(mut self, beta: f64) -> Self {
        self.freshness.early_refresh = Some(beta);
        self
    }

    /// Serves a value for this long after its time to live while it is loaded again in the background. Default: zero.
    pub fn stale_while_revalidate(mut self, window: Duration) -> Self {
        self.freshness.stale_while_revalidate = window;
        self
    }

    /// Serves a value for this long after its time to live if loading it again fails; [`Cache::get_entry`] returns the
    /// failure, too. Default: zero.
    pub fn stale_if_error(mut self, window: Duration) -> Self {
        self.freshness.stale_if_error = window;
        self
    }

    /// Sets how long after a failed load of a key no other one is tried. Meanwhile readers get a value that may be
    /// served stale, or the same failure. Default: one second if there is a stale window, otherwise zero: each read
    /// tries.
    pub fn load_throttle(mut self, interval: Duration) -> Self {
        self.load_throttle = Some(interval);
        self
    }

    /// Keeps this many versions of each value, 1 to 1,024: the highest ones. See [`Cache::put_version`]. Default:
    /// values have no versions.
    ///
    /// If a later opening keeps fewer, a key loses the lower ones at its next write. A value that was put without a
    /// version is found by plain reads until the first version comes.
    pub fn versions_kept(mut self, versions: usize) -> Self {
        self.versions_kept = Some(versions);
        self
    }

    /// Opens the cache, or returns the open one if types and options are the same.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidName`], [`ErrorKind::InvalidOption`]; [`ErrorKind::NamespaceInUse`] if the namespace
    /// is open with other types or options; [`ErrorKind::Unsupported`] for write-behind without a journal.
    pub fn open(mut self) -> Result<Cache<K, V>> {
        let namespace = NamespaceName::parse(&self.name)?;
        let has_journal = self.layer.has_journal();
        // Without a journal an acknowledged write-behind would be lost in a crash.
        let default = if has_journal { WritePolicy::Behind } else { WritePolicy::Through };
        let policy = self.policy.unwrap_or(default);
        // A follower writes nothing, so the policy means nothing there, and one program text may serve both roles.
        if policy == WritePolicy::Behind && !has_journal && self.layer.follower.is_none() {
            let context = format!("cache \"{namespace}\": write-behind needs a layer with a journal");
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        // Each look-up of a follower needs the bound on its lag, so memory keeps it with its other times.
        let following = self.layer.follower.as_ref().map(|follower| follower.following());
        let freshness = Freshness { following, ..self.freshness()? };
        let Some(coder) = self.coder.take() else {
            let context = format!(
                "cache \"{namespace}\": the crate is built without the feature `bincode`, so a cache has to name its \
                 codec with CacheBuilder::codec"
            );
            return Err(Error::new(ErrorKind::InvalidOption, context));
        };
        // Checked before a view is made: a bad option must not leave the namespace open.
        let described = self.describe(policy, coder.id(), &freshness)?;
        let (bound, coalesce, time_to_live) = (self.bound, self.coalesce, self.time_to_live);
        let coder = coder.with_schema(self.schema, self.upgrade);
        let (group_of, rules, schema) = (self.group_of, self.rules, self.schema);
        let versions_kept = self.versions_kept;
        let ticker = self.layer.ticker().clone();
        let scopes = Arc::clone(self.layer.views().scopes());
        let layer_metrics = Arc::clone(self.layer.metrics());
        // Effects of acknowledged writes that have not reached memory yet hold the namespace's old memory. After this
        // none does, so that a namespace without handles can be opened with other types.
        self.layer.catch_up();
        let view = self.layer.views().open(&namespace, schema, || {
            let throttle = Throttle::new(freshness.load_throttle);
            let resident = Resident::new(bound, freshness, ticker)?;
            // The layer's ticks from the first entry on: generations of another order could not be compared.
            let resident = resident.with_scopes(scopes).with_comparison(coder.comparison());
            resident.set_time_to_live(time_to_live);
            let view: TypedView<K, V> = TypedView {
                namespace: namespace.clone(),
                policy,
                coalesce,
                described: described.clone(),
                coder,
                group_of,
                rules,
                resident,
                flights: Arc::default(),
                loader_flights: Arc::default(),
                derived_flights: Arc::default(),
                throttle,
                versions_kept,
                metrics: CacheMetrics::default(),
                layer_metrics,
            };
            Ok(Arc::new(view) as Arc<dyn View>)
        })?;
        match view.into_any().downcast::<TypedView<K, V>>() {
            // Rules, groups and upgrades are functions, which cannot be compared: only whether there are any is.
            Ok(view) if view.described == described => {
                Ok(Cache { open: OpenCache { layer: self.layer, view } })
            }
            Ok(view) => Err(in_use(&namespace, &view.described, &described)),
            // Two memories of one namespace would not see each other's writes, so the first opening decides the types.
            Err(_) => Err(in_use(&namespace, "other types", &described)),
        }
    }

    /// Checks the times, and returns them as memory needs them.
    fn freshness(&self) -> Result<Freshness> {
        let mut freshness = self.freshness.clone();
        let lives = [
            ("time_to_live", self.time_to_live),
            ("time_to_idle", freshness.time_to_idle),
            ("negative_time_to_live", freshness.negative_time_to_live),
        ];
        for (option, life) in lives {
            life.map_or(Ok(()), |life| within_time(option, life, LIFE_MIN, LIFE_MAX))?;
        }
        let has_window = !freshness.stale_while_revalidate.is_zero() || !freshness.stale_if_error.is_zero();
        // Without a stale value to serve meanwhile, a throttle would answer reads with an old failure.
        let throttle = if has_window { LOAD_THROTTLE_DEFAULT } else { Duration::ZERO };
        freshness.load_throttle = self.load_throttle.unwrap_or(throttle);
        let windows = [
            ("stale_while_revalidate", freshness.stale_while_revalidate),
            ("stale_if_error", freshness.stale_if_error),
            ("load_throttle", freshness.load_throttle),
        ];
        for (option, window) in windows {
            within_time(option, window, Duration::ZERO, LIFE_MAX)?;
        }
        // NaN is in no range, so this refuses it, too.
        if !(0.0..=1.0).contains(&self.jitter) {
            return Err(out_of_range("time_to_live_jitter", self.jitter, "0 to 1"));
        }
        // In parts of 65,536.
        freshness.jitter = (self.jitter * f64::from(u16::MAX)).round() as u16;
        match freshness.early_refresh {
            Some(beta) if !(0.0..=1000.0).contains(&beta) => {
                Err(out_of_range("early_refresh", beta, "0 to 1000"))
            }
            _ => Ok(freshness),
        }
    }

    /// Checks the other options, and puts all into words, so that two openings of a namespace can be compared.
    fn describe(&self, policy: WritePolicy, codec: u8, freshness: &Freshness) -> Result<String> {
        let bound = match &self.bound {
            // A cache that can hold nothing would load on every read: more likely a mistake than a wish.
            Capacity::Entries(0) | Capacity::Weight(0, _) => {
                let context = format!("cache \"{}\": capacity is 0; it has to be at least 1", self.name);
                return Err(Error::new(ErrorKind::InvalidOption, context));
            }
            Capacity::Entries(entries) => format!("{entries} entries"),
            Capacity::Weight(weight, _) => format!("weight {weight}"),
        };
        // The eighth bit of the stored byte marks a value with tags.
        if !(1..=SCHEMA_MAX).contains(&self.schema) {
            let context = format!("schema_version is {}; allowed are 1 to {SCHEMA_MAX}", self.schema);
            return Err(Error::new(ErrorKind::InvalidOption, context));
        }
        let (key, value) = (type_name::<K>(), type_name::<V>());
        let coalesce = if self.coalesce { "coalescing" } else { "every update" };
        let mut words = format!("{key} -> {value}, {bound}, {policy:?}, {coalesce}, codec {codec}");
        // Options at their defaults are left out, as the text is shown to users.
        let schema = (self.schema != SCHEMA_DEFAULT).then(|| format!(", schema {}", self.schema));
        let upgrade = self.upgrade.is_some().then(|| ", upgraded".to_owned());
        let groups = self.group_of.is_some().then(|| ", with groups".to_owned());
        let rules = (!self.rules.is_empty()).then(|| format!(", {} rules", self.rules.len()));
        words.extend([schema, upgrade, groups, rules].into_iter().flatten());
        if let Some(kept) = self.versions_kept {
            if !(1..=VERSIONS_KEPT_MAX).contains(&kept) {
                let context = format!("versions_kept is {kept}; allowed are 1 to {VERSIONS_KEPT_MAX}");
                return Err(Error::new(ErrorKind::InvalidOption, context));
            }
            if !self.rules.is_empty() {
                let context =
                    "on_change and versions_kept: a rule is told the one value that a write replaces";
                return Err(Error::new(ErrorKind::InvalidOption, context));
            }
            words = format!("{words}, {kept} versions");
        }
        Ok(match (self.time_to_live, freshness) {
            (None, freshness) if *freshness == Freshness::default() => words,
            (time_to_live, freshness) => format!("{words}, time to live {time_to_live:?}, {freshness:?}"),
        })
    }
}

fn out_of_range(option: &str, value: f64, allowed: &str) -> Error {
    Error::new(ErrorKind::InvalidOption, format!("{option} is {value}; allowed are {allowed}"))
}

fn in_use(namespace: &NamespaceName, open: &str, asked: &str) -> Error {
    let context = format!("cache \"{namespace}\" is open with {open}, and was asked for with {asked}");
    Error::new(ErrorKind::NamespaceInUse, context)
}
