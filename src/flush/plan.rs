//! The ops of one apply, coalesced from queued frames. Does no I/O.

use std::collections::HashMap;

use crate::error::Result;
use crate::ids::{Key, Seq};
use crate::queue::queued::QueuedFrame;
use crate::seam::random::HashBuilder;
use crate::store::contract::Op;

/// Builds the ops of one apply, in order.
#[derive(Default)]
pub(crate) struct Ops {
    ops: Vec<Option<Op>>,
    /// The index of each key's last op that a newer one may replace.
    replaceable: HashMap<Key, usize, HashBuilder>,
}

impl Ops {
    /// Adds an op. If it may be coalesced, it replaces an earlier one of its key: an apply is atomic, so nobody can
    /// tell that the earlier one never happened.
    pub(crate) fn push(&mut self, op: Op, coalesce: bool) {
        let at = self.ops.len();
        // An op that must be applied also bars later ones from replacing what came before it.
        let earlier = if coalesce {
            self.replaceable.insert(op.key.clone(), at)
        } else {
            self.replaceable.remove(&op.key)
        };
        if let (true, Some(slot)) = (coalesce, earlier.and_then(|at| self.ops.get_mut(at))) {
            *slot = None;
        }
        self.ops.push(Some(op));
    }

    /// Adds a frame's updates. Notices and commands are none.
    pub(crate) fn push_frame(&mut self, frame: &QueuedFrame) -> Result<()> {
        for numbered in frame.records() {
            let (seq, record) = numbered?;
            if !record.is_update() {
                continue;
            }
            let value = record.stored();
            self.push(Op { seq, key: record.key, value }, record.coalesce);
        }
        Ok(())
    }

    /// Returns the ops that are left.
    pub(crate) fn finish(self) -> Vec<Op> {
        self.ops.into_iter().flatten().collect()
    }
}

/// Returns the index of the frame that has the record `seq`.
pub(crate) fn frame_of(frames: &[QueuedFrame], seq: Seq) -> Option<usize> {
    frames.iter().position(|frame| frame.first <= seq && seq <= frame.last())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::NamespaceName;
    use bytes::Bytes;

    fn op(seq: u64, key: &str, value: Option<&'static str>) -> Op {
        let key = Key::new(&NamespaceName::parse("n").unwrap(), key.as_bytes()).unwrap();
        Op { seq: Seq(seq), key, value: value.map(Bytes::from) }
    }

    #[test]
    fn only_the_last_op_of_a_key_is_left_and_the_order_stays() {
        let mut ops = Ops::default();
        for op in [op(1, "a", Some("1")), op(2, "b", Some("2")), op(3, "a", None), op(4, "c", Some("4"))] {
            ops.push(op, true);
        }
        let left: Vec<u64> = ops.finish().iter().map(|op| op.seq.0).collect();
        assert_eq!(left, [2, 3, 4]);
    }

    #[test]
    fn an_op_that_must_be_seen_is_neither_replaced_nor_replaces() {
        let mut ops = Ops::default();
        ops.push(op(1, "a", Some("1")), true);
        ops.push(op(2, "a", Some("2")), false);
        ops.push(op(3, "a", Some("3")), true);
        let left: Vec<u64> = ops.finish().iter().map(|op| op.seq.0).collect();
        assert_eq!(left, [1, 2, 3]);
    }
}
