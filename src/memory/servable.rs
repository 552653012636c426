//! The one place that decides whether something found in memory may be served.
//!
//! A pure function of what was found and of what has been invalidated since.

/// A cache's count of bulk invalidations. An entry carries the count at which its value was known to be current.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Generation(pub u64);

/// The decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Servable {
    /// Serve it.
    Fresh,
    /// Look elsewhere.
    Miss(MissReason),
}

/// Why something that was found is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MissReason {
    /// Everything of its generation was invalidated.
    Invalidated,
}

/// Whether an entry of the generation `entry` may be served when `floor` is the oldest generation that may.
#[must_use]
pub fn servable(entry: Generation, floor: Generation) -> Servable {
    if entry < floor { Servable::Miss(MissReason::Invalidated) } else { Servable::Fresh }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_generation_is_a_miss_and_every_other_is_fresh() {
        assert_eq!(servable(Generation(1), Generation(2)), Servable::Miss(MissReason::Invalidated));
        assert_eq!(servable(Generation(2), Generation(2)), Servable::Fresh);
        assert_eq!(servable(Generation(3), Generation(2)), Servable::Fresh);
    }
}
