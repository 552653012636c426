//! In which order keys are asked for: drawn from a Zipf distribution, or as the reads of a block trace.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

/// Keys from 0 up, in some order.
pub(crate) struct Order {
    pub(crate) name: &'static str,
    /// The number of different keys.
    pub(crate) distinct: u64,
    pub(crate) keys: Vec<u64>,
}

/// The generator of SplitMix64 (Steele, Lea, Flood 2014).
pub(crate) struct Draw(pub(crate) u64);

impl Draw {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Evenly from [0, 1).
    pub(crate) fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// `count` keys of `distinct`, the k-th most frequent with a weight of `1 / k^0.99`. Frequency says nothing of a key's
/// number.
pub(crate) fn zipf(distinct: u64, count: usize) -> Order {
    let mut draw = Draw(0x5eed);
    let mut sums = Vec::new();
    let mut sum = 0.0;
    for rank in 1..=distinct {
        sum += (rank as f64).powf(-0.99);
        sums.push(sum);
    }
    let mut names: Vec<u64> = (0..distinct).collect();
    for at in (1..names.len()).rev() {
        let other = usize::try_from(draw.next() % (at as u64 + 1)).unwrap_or(0);
        names.swap(at, other);
    }
    let keys = (0..count).filter_map(|_| {
        let drawn = draw.share() * sum;
        names.get(sums.partition_point(|upto| *upto <= drawn)).copied()
    });
    Order { name: "zipf-0.99", distinct, keys: keys.collect() }
}

/// The reads of a block trace: a header, then `version,time,op,size,lbn`, where the op 28 is a read.
pub(crate) fn trace(path: &Path) -> Result<Order> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let (mut numbers, mut keys) = (HashMap::new(), Vec::new());
    for (line, number) in text.lines().zip(1_u64..).skip(1) {
        let fields: Vec<&str> = line.split(',').collect();
        let &[_, _, op, _, block] = fields.as_slice() else {
            anyhow::bail!("{}:{number}: {} fields instead of 5", path.display(), fields.len());
        };
        if op == "28" {
            let next = numbers.len() as u64;
            keys.push(*numbers.entry(block.to_owned()).or_insert(next));
        }
    }
    ensure!(!keys.is_empty(), "{}: holds no read", path.display());
    Ok(Order { name: "block-trace", distinct: numbers.len() as u64, keys })
}
