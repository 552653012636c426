//! Ownership of a store: the rules for taking over a store that has an owner, and the owner's heartbeat.
//!
//! The epoch makes this safe, not the liveness. A claim fences the previous owner, so an owner that was taken for dead
//! and resumes can neither apply nor publish. Liveness only decides when another process may claim. The owner raises a
//! counter in the store, and the waiting process judges it by its own clock, so no two clocks are compared.

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

/// The choice of an opening that finds a store with a live owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnOwned {
    /// Takes the store over at once. The other owner is fenced: its further writes fail with [`ErrorKind::Fenced`].
    #[default]
    TakeOver,
    /// Takes over as soon as the owner has closed, or has sent no heartbeat for this long; waits until then.
    Wait(Duration),
    /// Fails with [`ErrorKind::Locked`] unless the owner has closed, or sends no heartbeat for this long.
    Refuse(Duration),
}

/// The role of a layer that is being opened.
pub(crate) enum Role {
    /// It owns the store and may write.
    Owner(OnOwned),
    /// It follows the store's owner and is read-only.
    Follower(Follow),
}

/// The longest pause between two reads of the owner's status.
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
            // Without a heartbeat a live owner looks the same as a dead one, so waiting could not end safely.
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
            // Counted in pauses, not read from a clock: a slow answer of the store must not count as silence.
            silent = silent.saturating_add(interval);
            continue;
        }
        // A changed count shows a live owner. `Wait` begins to count the silence anew.
        if let (OnOwned::Refuse(_), OwnerStatus::Owned(_)) = (on_owned, now) {
            return Err(Error::new(ErrorKind::Locked, "the store has an owner, and that lives"));
        }
        (last, silent) = (now, Duration::ZERO);
    }
}

/// The owner's heartbeat: a task that raises the owner's counter in the store, and marks the owner as gone at the end.
pub(crate) struct Heartbeat {
    end: watch::Sender<bool>,
    ended: watch::Receiver<()>,
}

impl Heartbeat {
    /// Starts the task. It runs until the layer ends or is fenced. The store must support heartbeats.
    pub(crate) fn start(store: Arc<dyn Store>, core: Arc<Core>, tasks: &Tasks) -> Heartbeat {
        let (end, ending) = watch::channel(false);
        let (alive, ended) = watch::channel(());
        tasks.spawn(async move {
            keep_alive(&*store, &core, ending).await;
            drop(alive);
        });
        Heartbeat { end, ended }
    }

    /// Marks the owner as gone in the store, so that a waiting process can claim at once.
    pub(crate) async fn end(&self) {
        self.end.send_replace(true);
        let mut ended = self.ended.clone();
        // The task drops its end of this channel after the last renewal.
        while ended.changed().await.is_ok() {}
    }
}

async fn keep_alive(store: &dyn Store, core: &Core, mut ending: watch::Receiver<bool>) {
    loop {
        let ends = *ending.borrow_and_update();
        // Read before the renewal is sent: an apply that ends meanwhile may not be part of the answer.
        let confirmed = core.status.borrow().watermark;
        match store.renew(core.tenure, ends).await {
            // An owner that writes nothing learns only here that its store was replaced by an older copy.
            Ok(Some(watermark)) if watermark < confirmed => {
                let error = StoreError::WentBack { tenure: core.tenure, watermark };
                return core.fail(HealthState::Failed, error.into_error());
            }
            Ok(_) => {}
            Err(error @ StoreError::WentBack { .. }) => {
                return core.fail(HealthState::Failed, error.into_error());
            }
            Err(error @ StoreError::Fenced { .. }) => {
                return core.fail(HealthState::Fenced, error.into_error());
            }
            // No reason to stop: if it lasts, a waiting process takes it for silence, and its claim fences this layer.
            Err(error) => core.warn(Some(error.into_error())),
        }
        if ends {
            return;
        }
        tokio::select! {
            biased;
            // The layer was dropped without a close. The owner is not marked as gone then; its silence shows it.
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
        // The receiver may be gone, because the opening was cancelled.
        let _nobody_waits = sender.send(());
    };
    let spawned = thread::Builder::new().name("forebay-wait".into()).spawn(waiting);
    spawned.map_err(|error| Error::io("starting the thread that waits for the store's owner", error))?;
    done.await.map_err(|_| Error::new(ErrorKind::Closed, "waiting for the store's owner was interrupted"))
}
