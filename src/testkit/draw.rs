//! Reproducible random numbers for tests.

/// A SplitMix64 generator (Steele, Lea and Flood, OOPSLA 2014): small, and every seed is good.
#[derive(Clone, Debug)]
pub(crate) struct Draw(u64);

impl Draw {
    /// Starts with a seed.
    pub(crate) fn new(seed: u64) -> Draw {
        Draw(seed)
    }

    /// Returns the next number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number from `1..=max`; 1 if `max` is zero.
    pub(crate) fn up_to(&mut self, max: u64) -> u64 {
        1 + self.next() % max.max(1)
    }

    /// Returns true with this probability.
    pub(crate) fn hits(&mut self, percent: u8) -> bool {
        self.next() % 100 < u64::from(percent)
    }
}
