//! Whose store it is: who may open a layer on a store that has an owner, and how an owner says that it lives.
//!
//! What makes this safe is the epoch, not the liveness: a claim fences whoever owned the store before, so an owner that
//! was taken for dead and thaws can neither apply nor be heard. Liveness only decides who may claim, and when. It is
//! told by a count in the store that the owner raises, and judged by the waiter's own clock, so no two clocks are
//! compared.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::error::{Error, ErrorKind, Result};
use crate::feed::follow::Follow;
use crate::feed::tasks::Tasks;
use crate::options::within_time;
use crate::queue::health::HealthState;
use crate::queue::state::Core;
use crate::seam::clock;
use crate::seam::sync::thread;
use crate::store::contract::{OwnerStatus, Store, StoreError};

/// What opening a layer does if the store has an owner that lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnOwned {
    /// Takes the store over at once. The other owner is fenced: it can change nothing any more, and is told so.
    #[default]
    TakeOver,
    /// Waits until the owner has closed, or has not said for so long that it lives; then takes over.
    Wait(Duration),
    /// Fails with [`ErrorKind::Locked`] unless the owner has closed, or does not say for so long that it lives.
    Refuse(Duration),
}

/// How an open layer stands to its store.
pub(crate) enum Role {
    /// It owns it.
    Owner(OnOwned),
    /// It follows the owner.
    Follower(Follow),
}

/// The longest that passes before the store is asked again whether its owner lives.
const ASK_INTERVAL_MAX: Duration = Duration::from_millis(500);
const QUIET_MIN: Duration = Duration::from_millis(10);
const QUIET_MAX: Duration = Duration::from_secs(3600);

/// Waits until the store may be claimed.
pub(crate) async fn await_turn(store: &dyn Store, on_owned: OnOwned) -> Result<()> {
    let quiet = match on_owned {
        OnOwned::TakeOver => return Ok(()),
        OnOwned::Wait(quiet) | OnOwned::Refuse(quiet) => quiet,
    };
    within_time("on_owned (quiet)", quiet, QUIET_MIN, QUIET_MAX)?;
    let ask = async || store.owner_status().await.map_err(StoreError::into_error);
    let interval = (quiet / 8).clamp(Duration::from_millis(1), ASK_INTERVAL_MAX);
    let mut last = ask().await?;
    let mut silent = Duration::ZERO;
    loop {
        match last {
            OwnerStatus::Unknown => {
                let context = "on_owned: this kind of store cannot say whether its owner lives";
                return Err(Error::new(ErrorKind::Unsupported, context));
            }
            OwnerStatus::Free => return Ok(()),
            OwnerStatus::Owned(_) if silent >= quiet => return Ok(()),
            OwnerStatus::Owned(_) => {}
        }
        pause(interval).await?;
        let now = ask().await?;
        if now == last {
            silent = silent.saturating_add(interval);
            continue;
        }
        if let (OnOwned::Refuse(_), OwnerStatus::Owned(_)) = (on_owned, now) {
            return Err(Error::new(ErrorKind::Locked, "the store has an owner, and that lives"));
        }
        (last, silent) = (now, Duration::ZERO);
    }
}

/// What says that an owner lives, and at last that it has ended.
pub(crate) struct Heartbeat {
    end: watch::Sender<bool>,
    ended: watch::Receiver<()>,
}

impl Heartbeat {
    /// Says so again and again, until the layer ends or is the owner no more. Nothing if the store has no ear for it.
    pub(crate) fn start(store: Arc<dyn Store>, core: Arc<Core>, tasks: &Tasks) -> Heartbeat {
        let (end, ending) = watch::channel(false);
        let (alive, ended) = watch::channel(());
        tasks.spawn(async move {
            keep_alive(&*store, &core, ending).await;
            drop(alive);
        });
        Heartbeat { end, ended }
    }

    /// Says that the owner has ended, so that nobody has to wait for its silence.
    pub(crate) async fn end(&self) {
        self.end.send_replace(true);
        let mut ended = self.ended.clone();
        // The other end is dropped when it has been said.
        while ended.changed().await.is_ok() {}
    }
}

async fn keep_alive(store: &dyn Store, core: &Core, mut ending: watch::Receiver<bool>) {
    loop {
        let ends = *ending.borrow_and_update();
        match store.renew(core.epoch, ends).await {
            Ok(()) => {}
            Err(error @ StoreError::Fenced { .. }) => {
                return core.fail(HealthState::Fenced, error.into_error());
            }
            // Whoever waits for the store takes it for silence, and a claim fences this layer.
            Err(error) => core.warn(Some(error.into_error())),
        }
        if ends {
            return;
        }
        tokio::select! {
            biased;
            // A sender that is gone means a layer that is gone without a word.
            changed = ending.changed() => if changed.is_err() { return },
            () = clock::sleep(core.options.renew_interval) => {}
        }
    }
}

/// Waits without a runtime: a layer that is being opened has none yet, and its caller may have none.
async fn pause(time: Duration) -> Result<()> {
    let (sender, done) = tokio::sync::oneshot::channel();
    let waiting = move || {
        std::thread::sleep(time);
        // Nobody waiting any more is no error.
        let _nobody_waits = sender.send(());
    };
    let spawned = thread::Builder::new().name("forebay-wait".into()).spawn(waiting);
    spawned.map_err(|error| Error::io("starting the thread that waits for the store's owner", error))?;
    done.await.map_err(|_| Error::new(ErrorKind::Closed, "waiting for the store's owner was interrupted"))
}
