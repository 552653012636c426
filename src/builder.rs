//! The options of a layer, and how it is opened with them.
//!
//! An option that is out of its range is an error of [`Builder::open`] that names the option, the value and the range.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::bus::event::Directive;
use crate::cache::rules::{self, Stale};
use crate::disk::contract::Disk;
use crate::disk::os::OsDisk;
use crate::error::Result;
use crate::feed::follow::Follow;
use crate::forebay::Forebay;
use crate::journal::options::{Durability, JournalOptions};
use crate::layer::opening;
use crate::layer::ownership::{OnOwned, Role};
#[cfg(forebay_simulation)]
use crate::options::LayerSizes;
use crate::options::{Backpressure, LayerOptions, OnRejected, layer_options};
use crate::seam::clock::{Clock, Ticker, block_on};
use crate::store::contract::Store;

impl Forebay {
    /// Begins to describe a layer in front of `store`; nothing is opened before [`Builder::open`].
    pub fn builder(store: impl Store) -> Builder {
        Builder {
            store: Arc::new(store),
            options: LayerOptions::default(),
            disk: Arc::new(OsDisk),
            ticker: Ticker::default(),
            role: Role::Owner(OnOwned::default()),
        }
    }
}

/// The options of a layer that is about to be opened. Each has a default, and is checked by [`Builder::open`].
///
/// ```
/// # use std::time::Duration;
/// use forebay::{Backpressure, Durability, Forebay, MemoryStore};
/// # let dir = tempfile::tempdir().unwrap();
/// let bay = Forebay::builder(MemoryStore::new())
///     .journal(dir.path().join("journal")) // without one every write goes through to the store
///     .durability(Durability::Sync)
///     .queue_bytes_max(1 << 30)
///     .backpressure(Backpressure::WaitFor(Duration::from_secs(1)))
///     .open_blocking()?; // or `.open().await?`
/// # Ok::<(), forebay::Error>(())
/// ```
#[must_use = "nothing is opened until `open` is called"]
pub struct Builder {
    store: Arc<dyn Store>,
    options: LayerOptions,
    disk: Arc<dyn Disk>,
    ticker: Ticker,
    role: Role,
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("options", &self.options).finish_non_exhaustive()
    }
}

macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident: $kind:ty = $default:expr,)*) => {
        impl Builder {
            $($(#[$doc])* pub fn $name(mut self, value: $kind) -> Self {
                self.options.$name = value;
                self
            })*
        }
    };
}
layer_options!(setters);

impl Builder {
    /// Sets the sizes of internal structures. For the crate's own tests.
    #[cfg(forebay_simulation)]
    #[doc(hidden)]
    pub fn sizes(mut self, sizes: LayerSizes) -> Self {
        self.options.sizes = sizes;
        self
    }

    /// Sets the directory of the journal. Without one every write goes through to the store.
    pub fn journal(mut self, dir: impl Into<PathBuf>) -> Self {
        self.options.journal_dir = Some(dir.into());
        self
    }

    /// Sets the longest wait before the first retry of a failed apply, and before any retry. Default: 10 ms and 10 s.
    pub fn retry_backoff(mut self, first: Duration, cap: Duration) -> Self {
        (self.options.retry_first, self.options.retry_cap) = (first, cap);
        self
    }

    /// Follows the owner of the store, another process or another layer of this one, instead of becoming the owner.
    ///
    /// The layer is read-only then. Its caches keep what they load from the store until the owner's directives, over a
    /// bus, say that it changed. A read's bound on staleness is held against the lag of the directives. See the
    /// manual's page [`coordination`](crate::manual::coordination).
    pub fn follow(mut self, follow: Follow) -> Self {
        self.role = Role::Follower(follow);
        self
    }

    /// Follows as [`Builder::follow`], with a rule of what else a directive of the owner makes stale: keys of this
    /// layer's own caches, tags, namespaces.
    ///
    /// The rule is a pure function. If it panics, or names what cannot be, all of memory is emptied.
    pub fn follow_with(
        self,
        follow: Follow,
        rule: impl Fn(&Directive, &mut Stale) + Send + Sync + 'static,
    ) -> Self {
        self.follow(follow.deriving(Arc::new(rules::on_directive(rule))))
    }

    /// Sets what opening does if the store has a live owner: another layer, of this process or another, that claimed
    /// the store and has not closed. For stores that several processes share. Default: take it over.
    ///
    /// In every case the claim fences the older owner: it can neither change the store nor be heard by followers from
    /// then on.
    pub fn on_owned(mut self, on_owned: OnOwned) -> Self {
        self.role = Role::Owner(on_owned);
        self
    }

    /// Sets the file system of the journal. Default: the operating system's.
    pub fn disk(mut self, disk: Arc<dyn Disk>) -> Self {
        self.disk = disk;
        self
    }

    /// Sets the clock that ages in memory are read from. Waits use the system's clock in any case. Default: the
    /// system's monotonic clock.
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.ticker = Ticker::new(clock);
        self
    }

    /// Opens the layer: claims the store, replays the journal, and starts to drain.
    ///
    /// Dropping the future may leave the store claimed, which only fences its older owner.
    ///
    /// # Errors
    /// A bad option; a journal that is locked, damaged, of an unknown format or not this store's; the store's.
    pub async fn open(self) -> Result<Forebay> {
        let layer = opening::open(self.store, self.options, self.disk, self.ticker, self.role).await?;
        Ok(Forebay::new(layer))
    }

    /// Opens as [`Builder::open`] without a runtime. For a store that needs one, use [`Builder::open`] inside it.
    ///
    /// # Errors
    /// As [`Builder::open`].
    pub fn open_blocking(self) -> Result<Forebay> {
        // There is no layer yet, and so no runtime of its own that could be entered.
        block_on(None, self.open())
    }
}
