//! Is there an order of a register's operations that explains what was read?
//!
//! The search of Wing and Gong ("Testing and verifying concurrent objects", 1993) with the memory of Lowe ("Testing for
//! linearizability", 2017): operations are put into an order one by one, each only while no other has to come first,
//! and no state (which operations are placed, what the register holds) is searched twice.

use std::collections::HashSet;

pub type Value = Option<u64>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Write(Value),
    Read(Value),
}

/// An operation of one register, between two moments.
#[derive(Clone, Copy, Debug)]
pub struct Timed {
    pub from: u64,
    /// `u64::MAX` if it may take effect at any later time.
    pub to: u64,
    pub action: Action,
    /// True if it may not have happened at all.
    pub doubtful: bool,
}

/// True if the operations can be put into an order in which every read returns what was written last.
pub fn linearizable(initial: Value, ops: &[Timed]) -> bool {
    let mut search = Search { ops, seen: HashSet::new(), placed: vec![0; ops.len().div_ceil(64)] };
    search.goes_on(initial, 0)
}

struct Search<'a> {
    ops: &'a [Timed],
    seen: HashSet<(Vec<u64>, Value)>,
    placed: Vec<u64>,
}

impl Search<'_> {
    fn is_placed(&self, at: usize) -> bool {
        self.placed[at / 64] & (1 << (at % 64)) != 0
    }

    /// True if what is not placed can follow on `value`; the latest operation placed began at `began`.
    fn goes_on(&mut self, value: Value, began: u64) -> bool {
        let left = (0..self.ops.len()).filter(|at| !self.is_placed(*at) && !self.ops[*at].doubtful);
        // Nothing may be placed that began after the end of something that is not placed yet.
        let Some(first_end) = left.map(|at| self.ops[at].to).min() else { return true };
        if !self.seen.insert((self.placed.clone(), value)) {
            return false;
        }
        for at in 0..self.ops.len() {
            let op = self.ops[at];
            if self.is_placed(at) || op.from > first_end || op.to < began {
                continue;
            }
            let next = match op.action {
                Action::Read(read) if read != value => continue,
                Action::Read(_) => value,
                Action::Write(written) => written,
            };
            self.placed[at / 64] |= 1 << (at % 64);
            if self.goes_on(next, began.max(op.from)) {
                return true;
            }
            self.placed[at / 64] &= !(1 << (at % 64));
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(from: u64, to: u64, action: Action) -> Timed {
        Timed { from, to, action, doubtful: false }
    }

    #[test]
    fn the_checker_tells_histories_apart() {
        use Action::{Read, Write};
        let (one, two) = (Some(1), Some(2));
        let concurrent =
            [op(1, 9, Write(one)), op(2, 8, Write(two)), op(3, 4, Read(two)), op(5, 6, Read(one))];
        assert!(linearizable(None, &concurrent));
        let back = [op(1, 2, Write(one)), op(3, 9, Write(two)), op(4, 5, Read(two)), op(6, 7, Read(one))];
        assert!(!linearizable(None, &back), "nothing is read that was overwritten before");
        assert!(!linearizable(None, &[op(1, 2, Write(one)), op(3, 4, Read(None))]), "a write is lost");
        assert!(
            !linearizable(None, &[op(1, 2, Read(one)), op(3, 4, Write(one))]),
            "read before it was written"
        );

        let doubtful = Timed { doubtful: true, ..op(1, u64::MAX, Write(one)) };
        assert!(
            linearizable(None, &[doubtful, op(2, 3, Read(None)), op(4, 5, Read(one))]),
            "it took effect late"
        );
        assert!(linearizable(None, &[doubtful, op(2, 3, Read(None))]), "it never took effect");
        assert!(
            !linearizable(None, &[doubtful, op(2, 3, Read(one)), op(4, 5, Read(None))]),
            "it was taken back"
        );
        let bounded = Timed { to: 3, ..doubtful };
        assert!(
            !linearizable(None, &[bounded, op(4, 5, Read(None)), op(6, 7, Read(one))]),
            "it came too late"
        );
    }
}
