//! The numbers that a batch accounts for: a store may set its watermark to a number only if everything up to there is
//! applied, superseded, parked or refused.

use crate::error::{Error, ErrorKind, Result};
use crate::ids::Seq;
use crate::queue::queued::QueuedFrame;
use crate::safeguard::Safeguard;

/// Consecutive sequence numbers that are accounted for together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Numbers {
    /// The number before the first one.
    pub(crate) after: Seq,
    pub(crate) last: Seq,
}

impl Numbers {
    /// Returns the numbers that a frame accounts for.
    pub(crate) fn of(frame: &QueuedFrame) -> Numbers {
        Numbers { after: frame.after, last: frame.last() }
    }
}

/// Joins the numbers of a batch, in any order, to the range that the batch accounts for; `None` if there are none.
///
/// # Errors
/// [`ErrorKind::Damaged`] if some number between the first and the last is missing or is there twice: memory is corrupt
/// then, and the store must not be told that it has everything up to the last one.
pub(crate) fn join(numbers: impl Iterator<Item = Numbers>) -> Result<Option<Numbers>> {
    let mut joined: Option<(Numbers, u64)> = None;
    for one in numbers {
        let count = one.last.0.saturating_sub(one.after.0);
        joined = Some(match joined {
            None => (one, count),
            Some((all, counted)) => {
                let all = Numbers { after: all.after.min(one.after), last: all.last.max(one.last) };
                (all, counted.saturating_add(count))
            }
        });
    }
    let Some((all, counted)) = joined else { return Ok(None) };
    if counted != all.last.0.saturating_sub(all.after.0) && Safeguard::BatchIsDense.holds() {
        let context = format!(
            "a batch that ends with record {} accounts for {counted} of the records after {}; none of it was applied",
            all.last, all.after
        );
        return Err(Error::new(ErrorKind::Damaged, context));
    }
    Ok(Some(all))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(after: u64, last: u64) -> Numbers {
        Numbers { after: Seq(after), last: Seq(last) }
    }

    #[test]
    fn a_batch_accounts_for_each_number_once() {
        assert_eq!(join([].into_iter()).unwrap(), None);
        let parts = [numbers(4, 5), numbers(8, 9), numbers(5, 8)];
        assert_eq!(join(parts.into_iter()).unwrap(), Some(numbers(4, 9)));
        for broken in [[numbers(4, 5), numbers(6, 9)], [numbers(4, 6), numbers(5, 9)]] {
            let error = join(broken.into_iter()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Damaged);
            assert!(error.to_string().contains("record 9"), "{error}");
        }
    }
}
