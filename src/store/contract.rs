//! The contract of a system of record: the trait [`Store`] and the types of its calls.
//!
//! Beside the data, a store keeps the point of its history at which it [stands](Standing), and changes both together in
//! one transaction. This makes an apply take effect exactly once, however often it is
//! repeated. A store that cannot do this cannot be a system of record of a layer.
//!
//! `testkit::conformance` tests an implementation.

use std::fmt;

use bytes::Bytes;

use crate::error::{Error, ErrorKind};
use crate::ids::{Epoch, JournalId, Key, Seq, Tenure, TenureId};
use crate::safeguard::Safeguard;
pub use crate::seam::future::BoxFuture;
use crate::seam::random;

/// The sequence numbers up to which a store holds the effects of a layer's writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Progress {
    /// The watermark: the last sequence number whose effect the store holds.
    pub applied: Seq,
    /// The last sequence number at or below the watermark that went through the journal. Writes that were written
    /// through have none in the journal, so this distinguishes a journal that was lost from one that never held them.
    pub journaled: Seq,
}

/// The point of its history at which a store stands. A store keeps it beside the data.
///
/// The default is that of a store that no layer has ever claimed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Standing {
    /// The newest tenure.
    pub tenure: Tenure,
    /// The journal from which the newest owner feeds the store, if it has one.
    pub journal: Option<JournalId>,
    /// The progress of all owners so far.
    pub progress: Progress,
    /// The [number](Batch::number) of the last batch of the newest tenure that was applied; zero before the first.
    pub batch: u64,
}

/// The claim of a layer that opens, or whose store has gone back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Claim {
    /// The identity of the new tenure, drawn at random for this claim.
    pub tenure: TenureId,
    /// The journal from which the new owner feeds the store, if it has one.
    pub journal: Option<JournalId>,
    /// The tenure of a layer that claims anew because its store has gone back. The claim is then accepted only over
    /// this tenure or one of a lower epoch, so that it never ends the tenure of a newer owner.
    pub instead_of: Option<Tenure>,
}

/// The place of a batch in a store's history, if it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Placement {
    /// It continues the history: its changes after the watermark are applied.
    Next,
    /// It is the last batch that was applied, sent again.
    Repeated,
}

/// The answer of [`Store::owner_status`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OwnerStatus {
    /// The store has no heartbeat, for example because only one process can have it open.
    Unknown,
    /// The store has no owner, or its last owner has ended properly.
    Free,
    /// The store has an owner. The number counts claims and heartbeats: as long as it grows, the owner is alive.
    Owned(u64),
}

/// A stored value and its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// The value, as the cache encoded it.
    pub value: Bytes,
    /// The sequence number of the write that stored it.
    pub version: Seq,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    /// The sequence number of the record, which becomes the version of the value.
    pub seq: Seq,
    /// The key.
    pub key: Key,
    /// The new value; `None` removes the key.
    pub value: Option<Bytes>,
}

/// The changes of one [`Store::apply`], which take effect together or not at all.
///
/// It accounts for every number after `after` up to `until`: each is one of its changes, was superseded by a later one,
/// was parked or refused, or was never given to a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The tenure of the sender.
    pub tenure: Tenure,
    /// The number of the batch within the tenure, greater than those of all earlier ones. A batch that is sent again
    /// keeps it.
    pub number: u64,
    /// The number before the first one that the batch accounts for.
    pub after: Seq,
    /// The watermark once the batch is applied. At least the number of the last change.
    pub until: Seq,
    /// The last number up to `until` that went through the journal; see [`Progress::journaled`].
    pub journaled: Seq,
    /// The changes, in the order of their numbers. A key may occur more than once, and its last change wins. May be
    /// empty.
    pub ops: Vec<Op>,
}

impl Claim {
    /// Makes a claim with a new identity, for an owner that feeds the store from `journal`.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if the system has no random numbers.
    pub fn new(journal: Option<JournalId>) -> Result<Claim, Error> {
        let tenure = TenureId(random::identity("the identity of a tenure")?);
        Ok(Claim { tenure, journal, instead_of: None })
    }

    /// Claims `store`, and returns the point at which it stands then.
    ///
    /// # Errors
    /// Those of [`Store::claim`].
    pub async fn of(&self, store: &dyn Store) -> Result<Standing, StoreError> {
        store.claim(self).await?.claimed(self)
    }
}

impl Standing {
    /// Compares a batch with this history, identities first and numbers second. Every store has to decide like this,
    /// while nobody else can change what it stands at.
    ///
    /// | the store stands at | the answer |
    /// | --- | --- |
    /// | another tenure, of this or a higher epoch | [`StoreError::Fenced`] |
    /// | another tenure, of a lower epoch: it has forgotten the claim | [`StoreError::WentBack`] |
    /// | the same tenure, below `after` | [`StoreError::WentBack`] |
    /// | the same tenure, from `after` to before `until` | [`Placement::Next`] |
    /// | the same tenure, at or above `until`, and this is the last batch that it applied | [`Placement::Repeated`] |
    /// | the same tenure, at or above `until`, after another batch | [`StoreError::Fenced`] |
    ///
    /// # Errors
    /// As in the table; nothing of the batch may be applied then.
    pub fn place(&self, batch: &Batch) -> Result<Placement, StoreError> {
        // Before any number: a fenced owner must not even learn that its batch was applied, and numbers of another
        // history say nothing about this one.
        self.check_owner(batch.tenure)?;
        let watermark = self.progress.applied;
        // What lies between would be missing, and nobody would be told.
        if watermark < batch.after && Safeguard::NoHoleBeforeBatch.holds() {
            return Err(StoreError::WentBack { tenure: self.tenure, watermark });
        }
        if watermark < batch.until {
            return Ok(Placement::Next);
        }
        // A repetition of a batch that was applied, although its sender got an error or no answer. Another one of the
        // same numbers comes from a copy of the owner.
        match self.batch == batch.number || !Safeguard::RepeatByNumber.holds() {
            true => Ok(Placement::Repeated),
            false => Err(StoreError::Fenced { current: self.tenure.epoch }),
        }
    }

    /// Checks that the store stands at this tenure.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] if it stands at another one of the same or a higher epoch, and
    /// [`StoreError::WentBack`] at one of a lower epoch: it has forgotten the claim.
    pub fn check_owner(&self, tenure: Tenure) -> Result<(), StoreError> {
        let fenced = StoreError::Fenced { current: self.tenure.epoch };
        if self.tenure.epoch > tenure.epoch && Safeguard::EpochFence.holds() {
            return Err(fenced);
        }
        if self.tenure.epoch < tenure.epoch {
            return Err(StoreError::WentBack { tenure: self.tenure, watermark: self.progress.applied });
        }
        // An epoch can be given twice, by a store that went back before the first claim of it.
        if self.tenure.id != tenure.id
            && self.tenure.epoch == tenure.epoch
            && Safeguard::TenureIdentity.holds()
        {
            return Err(fenced);
        }
        Ok(())
    }

    /// Returns the changes of a batch that are to be applied: those after the watermark. A doubtful batch may come
    /// again with more of them.
    pub fn unapplied<'a>(&self, batch: &'a Batch) -> impl Iterator<Item = &'a Op> + use<'a> {
        let watermark = self.progress.applied;
        batch.ops.iter().filter(move |op| op.seq > watermark || !Safeguard::ApplyOnce.holds())
    }

    /// Returns the point at which the store stands once a batch is applied.
    #[must_use]
    pub fn after(self, batch: &Batch) -> Standing {
        let progress = Progress { applied: batch.until, journaled: batch.journaled };
        Standing { progress, batch: batch.number, ..self }
    }

    /// Returns a batch that continues this history up to `until`, all of which went through the journal.
    #[must_use]
    pub fn next_batch(&self, until: Seq, ops: Vec<Op>) -> Batch {
        let (tenure, number, after) = (self.tenure, self.batch.saturating_add(1), self.progress.applied);
        Batch { tenure, number, after, until, journaled: until, ops }
    }

    /// Returns the point at which the store stands after a claim.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] if the claim is [instead of](Claim::instead_of) a tenure that another owner has followed.
    pub fn claimed(self, claim: &Claim) -> Result<Standing, StoreError> {
        let mut before = self.tenure.epoch;
        if let Some(old) = claim.instead_of {
            if self.tenure != old && self.tenure.epoch >= old.epoch {
                return Err(StoreError::Fenced { current: self.tenure.epoch });
            }
            // The store may have forgotten the claim of that tenure, and its number must not be given again.
            before = before.max(old.epoch);
        }
        let tenure = Tenure { epoch: before.next(), id: claim.tenure };
        Ok(Standing { tenure, journal: claim.journal, batch: 0, ..self })
    }
}

/// The failure of a call of a store.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum StoreError {
    /// The failure may pass by itself. It is unknown whether the batch was applied. The layer sends the batch again,
    /// unchanged or extended by later records.
    Transient(Error),
    /// The store refuses the record with this sequence number and will always refuse it. Nothing of the batch was
    /// applied.
    Rejected {
        /// The number of the refused record.
        seq: Seq,
        /// The reason.
        error: Error,
    },
    /// Another owner has claimed the store. Nothing of the batch was applied.
    Fenced {
        /// The newest epoch.
        current: Epoch,
    },
    /// The store has gone back: it lacks what this owner has applied, or has forgotten its claim, as after the failover
    /// to a standby that had not received all of it. Nothing of the batch was applied.
    WentBack {
        /// The newest tenure that the store knows.
        tenure: Tenure,
        /// Its watermark.
        watermark: Seq,
    },
    /// The failure will not pass by itself. It is unknown whether the batch was applied.
    Fatal(Error),
}

/// A system of record: the durable data that a layer caches and writes to.
///
/// Implement it to put a layer in front of a database of your own; `testkit::conformance` tests it.
///
/// A layer calls [`Store::apply`] from a thread of its own, so this call alone may block the thread that polls it; the
/// layer cannot be stopped before it returns. All other calls are polled by the caller's threads and must not block.
pub trait Store: Send + Sync + 'static {
    /// Returns true if others are notified of the changes of an apply, such as readers of an outbox that the store
    /// fills.
    ///
    /// A layer then never delays an apply to collect more writes. It asks once, when it opens. A store that wraps
    /// another one returns the answer of that one.
    fn has_change_feed(&self) -> bool {
        false
    }

    /// Reads the point of its history at which the store stands, without changing anything.
    fn standing(&self) -> BoxFuture<'_, Result<Standing, StoreError>>;

    /// Starts a tenure. Durable on return.
    ///
    /// Returns the point at which the store stood before. [`Standing::claimed`] says where it stands now: a claim does
    /// not change the progress.
    ///
    /// Once the claim has taken effect, the store refuses every batch of another tenure, including one that is being
    /// applied at this moment: such a batch is either part of the returned progress or is never applied.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] as in [`Standing::claimed`].
    fn claim<'a>(&'a self, claim: &'a Claim) -> BoxFuture<'a, Result<Standing, StoreError>>;

    /// Records a heartbeat of the owner of this tenure or, if `ends`, that the owner has ended and the store is free.
    /// Returns the store's watermark, by which an owner that writes nothing learns that its store went back.
    ///
    /// Neither has to survive a power cut. A store without heartbeat (see [`OwnerStatus::Unknown`]) does nothing and
    /// returns `None`.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] and [`StoreError::WentBack`] if the store stands at another tenure, as
    /// [`Store::apply`].
    fn renew(&self, tenure: Tenure, ends: bool) -> BoxFuture<'_, Result<Option<Seq>, StoreError>> {
        let _ = (tenure, ends);
        Box::pin(async { Ok(None) })
    }

    /// Returns whether the store has an owner, and a number that grows as long as the owner is alive. A claim counts as
    /// a heartbeat.
    fn owner_status(&self) -> BoxFuture<'_, Result<OwnerStatus, StoreError>> {
        Box::pin(async { Ok(OwnerStatus::Unknown) })
    }

    /// Loads one value, or `None` if the key has none.
    ///
    /// The value may belong to a batch that is still being applied and that a power cut may take back: the layer guards
    /// what is not acknowledged yet.
    fn load<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Versioned>, StoreError>>;

    /// Loads several values; the result has one element for each of `keys`, in their order.
    fn load_many<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<Vec<Option<Versioned>>, StoreError>>;

    /// Applies a batch atomically and exactly once. Durable on return.
    ///
    /// [`Standing::place`] decides, within the same transaction, whether the batch continues the store's history. If it
    /// is the last batch that was applied, returns `Ok` and changes nothing. Changes at or below the watermark are
    /// skipped: after a failure with unknown outcome the layer sends the batch again, possibly extended by later
    /// records.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] and [`StoreError::WentBack`] as in [`Standing::place`]. [`StoreError::Rejected`] names a
    /// record that the store will never accept; with the other errors the layer cannot know which record is to blame.
    ///
    /// # Cancellation
    /// After the future was dropped, the batch is applied as a whole or not at all.
    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<(), StoreError>>;
}

/// Forwards to a store that was chosen at run time.
impl<S: Store + ?Sized> Store for Box<S> {
    fn has_change_feed(&self) -> bool {
        (**self).has_change_feed()
    }

    fn standing(&self) -> BoxFuture<'_, Result<Standing, StoreError>> {
        (**self).standing()
    }

    fn claim<'a>(&'a self, claim: &'a Claim) -> BoxFuture<'a, Result<Standing, StoreError>> {
        (**self).claim(claim)
    }

    fn renew(&self, tenure: Tenure, ends: bool) -> BoxFuture<'_, Result<Option<Seq>, StoreError>> {
        (**self).renew(tenure, ends)
    }

    fn owner_status(&self) -> BoxFuture<'_, Result<OwnerStatus, StoreError>> {
        (**self).owner_status()
    }

    fn load<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Versioned>, StoreError>> {
        (**self).load(key)
    }

    fn load_many<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<Vec<Option<Versioned>>, StoreError>> {
        (**self).load_many(keys)
    }

    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<(), StoreError>> {
        (**self).apply(batch)
    }
}

impl StoreError {
    /// Converts the failure into the error that the layer returns, with the store's own error as its source.
    #[must_use]
    pub fn into_error(self) -> Error {
        // The text is taken before the error moves, so that the caller sees the store's sentence above its cause.
        let context = self.to_string();
        match self {
            StoreError::Transient(error) => error.wrap(ErrorKind::Transient, context),
            StoreError::Rejected { error, .. } => error.wrap(ErrorKind::Rejected, context),
            StoreError::Fenced { .. } => Error::new(ErrorKind::Fenced, context),
            StoreError::WentBack { .. } => Error::new(ErrorKind::WentBack, context),
            StoreError::Fatal(error) => error.wrap(ErrorKind::StoreFailed, context),
        }
    }
}

/// Writes the sentence of the failure without its cause, which is the [source](std::error::Error::source).
impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreError::Transient(_) => f.write_str("the store failed, which may pass"),
            StoreError::Rejected { seq, .. } => write!(f, "the store rejected record {seq}"),
            StoreError::Fenced { current } => {
                write!(
                    f,
                    "another owner holds the store, in epoch {current}; this layer can no longer change it"
                )
            }
            StoreError::WentBack { tenure, watermark } => {
                write!(
                    f,
                    "the store went back to record {watermark} in tenure {tenure}, as after a failover or a restored \
                     copy; it lacks what this layer has applied since"
                )
            }
            StoreError::Fatal(_) => f.write_str("the store failed"),
        }
    }
}

impl std::error::Error for StoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            StoreError::Transient(error) | StoreError::Rejected { error, .. } | StoreError::Fatal(error) => {
                Some(error)
            }
            StoreError::Fenced { .. } | StoreError::WentBack { .. } => None,
        }
    }
}

/// Claims a store for a test, and returns where it stands then.
#[cfg(test)]
pub(crate) async fn claimed(store: &dyn Store, journal: Option<JournalId>) -> Standing {
    let claim = Claim::new(journal).expect("the system has random numbers");
    claim.of(store).await.expect("the store takes the claim")
}
