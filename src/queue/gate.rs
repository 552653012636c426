//! Admission: the bound on the records and bytes that are not in the store yet, those in flight included.
//!
//! A write enters before it is submitted to the committer and leaves when the store holds it, so this bounds the
//! committer's queue, too. Waiting is first come, first served.

use tokio::sync::Semaphore;

use crate::seam::sync::atomic::{AtomicU64, Ordering};

/// The room in the queue.
#[derive(Debug)]
pub(crate) struct Gate {
    records: Budget,
    bytes: Budget,
}

/// The reason why a write did not enter.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotEntered {
    /// There is no room now.
    Full,
    /// The layer accepts no more writes.
    Shut,
}

#[derive(Debug)]
struct Budget {
    permits: Semaphore,
    /// The part of a recovered backlog beyond the bound, which has to leave before a write may enter.
    debt: AtomicU64,
}

impl Budget {
    fn new(max: u64, taken: u64) -> Budget {
        let free = usize::try_from(max.saturating_sub(taken)).unwrap_or(Semaphore::MAX_PERMITS);
        let permits = Semaphore::new(free.min(Semaphore::MAX_PERMITS));
        Budget { permits, debt: AtomicU64::new(taken.saturating_sub(max)) }
    }

    fn give_back(&self, count: u64) {
        // A debt is paid before permits come back: until then the queue is beyond its bound.
        let mut paid = 0;
        let update = |debt: u64| {
            paid = debt.min(count);
            (paid > 0).then(|| debt - paid)
        };
        // An error means that there was no debt to pay.
        if self.debt.fetch_update(Ordering::SeqCst, Ordering::SeqCst, update).is_err() {
            paid = 0;
        }
        self.permits.add_permits(usize::try_from(count - paid).unwrap_or(0));
    }
}

impl Gate {
    /// Makes a gate with these bounds, behind which a recovered backlog is already.
    pub(crate) fn new(records_max: u64, bytes_max: u64, records: u64, bytes: u64) -> Gate {
        Gate { records: Budget::new(records_max, records), bytes: Budget::new(bytes_max, bytes) }
    }

    /// Enters if there is room now. A write that does not enter takes nothing.
    pub(crate) fn try_enter(&self, records: u32, bytes: u32) -> Result<(), NotEntered> {
        use tokio::sync::TryAcquireError;
        let refused = |error| match error {
            TryAcquireError::NoPermits => NotEntered::Full,
            TryAcquireError::Closed => NotEntered::Shut,
        };
        // Both or neither: the permits of the first return if the second is refused.
        let one = self.records.permits.try_acquire_many(records).map_err(refused)?;
        let other = self.bytes.permits.try_acquire_many(bytes).map_err(refused)?;
        // Given back by `leave`, when the frame ends.
        one.forget();
        other.forget();
        Ok(())
    }

    /// Enters as soon as there is room. Dropping the future takes nothing.
    pub(crate) async fn enter(&self, records: u32, bytes: u32) -> Result<(), NotEntered> {
        let shut = |_| NotEntered::Shut;
        // In the same order for all, so that two writers cannot each hold what the other waits for.
        let one = self.records.permits.acquire_many(records).await.map_err(shut)?;
        let other = self.bytes.permits.acquire_many(bytes).await.map_err(shut)?;
        one.forget();
        other.forget();
        Ok(())
    }

    /// Gives room back.
    pub(crate) fn leave(&self, records: u64, bytes: u64) {
        self.records.give_back(records);
        self.bytes.give_back(bytes);
    }

    /// Shuts the gate for good; writes that wait fail with [`NotEntered::Shut`].
    pub(crate) fn shut(&self) {
        self.records.permits.close();
        self.bytes.permits.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_gate_refuses_until_a_write_leaves() {
        let gate = Gate::new(2, 100, 0, 0);
        assert_eq!(gate.try_enter(1, 60), Ok(()));
        assert_eq!(gate.try_enter(1, 60), Err(NotEntered::Full));
        assert_eq!(gate.try_enter(1, 40), Ok(()), "a refused entry must not have taken a record");
        gate.leave(2, 100);
        assert_eq!(gate.try_enter(2, 100), Ok(()));
        gate.shut();
        assert_eq!(gate.try_enter(1, 1), Err(NotEntered::Shut));
    }

    #[test]
    fn a_backlog_beyond_the_bound_is_paid_back_first() {
        let gate = Gate::new(2, 100, 5, 100);
        gate.leave(3, 50);
        assert_eq!(gate.try_enter(1, 1), Err(NotEntered::Full));
        gate.leave(2, 50);
        assert_eq!(gate.try_enter(2, 100), Ok(()));
        assert_eq!(gate.try_enter(1, 0), Err(NotEntered::Full));
    }
}
