//! What a store writes in its outbox of a batch that it applies: the same as a publisher tells of a layer's changes.
//!
//! A batch becomes one event, or several if one would be too long. All of them become visible at once, with the data.
//! Where there are several, the one that follows on what was told before comes *last*, and those before it lie behind
//! a gap until then. For a layer applies only the last of several changes of a key: so the first part of a batch does
//! not say all that happened up to its own last number, and a listener must not take it to. Once the last part is heard,
//! everything is.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use crate::bus::contract::{BODY_BYTES_MAX, Channel};
use crate::bus::event::{Directive, Event, Said};
use crate::engine::directives::{Token, token_of};
use crate::error::Result;
use crate::ids::{Holding, NamespaceName, Seq};
use crate::store::contract::Op;
use crate::store::postgres::{Applying, PostgresStoreOptions};

/// How many bytes of directives fit into one event.
const DIRECTIVES_BYTES_MAX: usize = BODY_BYTES_MAX - 64;

/// What is said of a key that was put. New kinds may come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OutboxPuts {
    /// That it has another value: whoever needs it reads the store.
    #[default]
    Invalidate,
    /// The value, if it fits into an event.
    Value,
}

impl PostgresStoreOptions {
    /// Has each apply say, in its own transaction, on this channel of the schema's outbox what it did: who listens to a
    /// [`PostgresBus`](crate::PostgresBus) over the same schema hears of every change that is in the database, and of no
    /// other.
    #[must_use]
    pub fn outbox(self, channel: &Channel, puts: OutboxPuts) -> PostgresStoreOptions {
        self.outbox_events(channel.as_str(), Arc::new(move |applying| events(applying, puts)))
    }
}

/// The events of a batch, in the order in which they are published.
///
/// # Errors
/// None that a layer's batch could cause.
pub fn events(applying: &Applying<'_>, puts: OutboxPuts) -> Result<Vec<Bytes>> {
    let said = divided(applying, puts)
        .or_else(|| divided(applying, OutboxPuts::Invalidate))
        .unwrap_or_else(|| vec![vec![Directive::Everything(applying.until)]]);
    // The store's watermark is locked: it holds nothing beyond what it held before.
    let as_of_us = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros());
    let as_of_us = u64::try_from(as_of_us).unwrap_or_default();
    let count = said.len() as u64;
    let events = (0..).zip(said).map(|(at, directives)| {
        let until = Seq(applying.until.0.saturating_sub(at));
        let after = if at + 1 == count { applying.after } else { Seq(until.0.saturating_sub(1)) };
        Event { epoch: applying.epoch, after, until, as_of_us, said: Said::Directives(directives) }.encode()
    });
    events.collect()
}

/// The directives, for one event each; nothing if there would be more events than numbers for them.
fn divided(applying: &Applying<'_>, puts: OutboxPuts) -> Option<Vec<Vec<Directive>>> {
    let mut parts = vec![Vec::new()];
    let mut bytes = 0;
    for directive in applying.ops.iter().filter_map(|op| directive(op, puts)) {
        let size = directive.encoded_len();
        if bytes + size > DIRECTIVES_BYTES_MAX {
            parts.push(Vec::new());
            bytes = 0;
        }
        bytes += size;
        if let Some(last) = parts.last_mut() {
            last.push(directive);
        }
    }
    let numbers = applying.until.0.saturating_sub(applying.after.0);
    (parts.len() as u64 <= numbers).then_some(parts)
}

/// What a change says to whoever has read the key; nothing if nobody can have.
fn directive(op: &Op, puts: OutboxPuts) -> Option<Directive> {
    let key = match op.key.holding() {
        Holding::Value => op.key.clone(),
        // Of a version nothing can be said but that its key is another. If a plain read returns it, that follows.
        Holding::Version(key, _) => return Some(named(Directive::Invalidate(key, op.seq))),
        Holding::VersionList => return None,
    };
    let directive = match (token_of(&key), &op.value) {
        (Some(Token::Namespace(name)), _) => return Some(Directive::Namespace(name, op.seq)),
        (Some(Token::Group(namespace, group)), _) => return Some(Directive::Group(namespace, group, op.seq)),
        (Some(Token::Tag(tag)), _) => return Some(Directive::Tag(tag, op.seq)),
        (Some(Token::Schema(name)), value) => {
            return Some(match value.as_ref().and_then(|value| value.get(1)) {
                Some(schema) => Directive::Schema(name, *schema, op.seq),
                None => Directive::Namespace(name, op.seq),
            });
        }
        (None, Some(value)) if puts == OutboxPuts::Value => Directive::Put(key, op.seq, value.clone()),
        (None, Some(_)) => Directive::Invalidate(key, op.seq),
        (None, None) => Directive::Remove(key, op.seq),
    };
    Some(named(directive))
}

/// The same if it can be sent: a value that is too large is left out, and a key of a name that no cache has is said to
/// be anything.
fn named(directive: Directive) -> Directive {
    let fits = directive.encoded_len() <= DIRECTIVES_BYTES_MAX;
    match directive {
        Directive::Put(key, seq, _) | Directive::Invalidate(key, seq) | Directive::Remove(key, seq)
            if NamespaceName::parse(key.namespace()).is_err() =>
        {
            drop(key);
            Directive::Everything(seq)
        }
        Directive::Put(key, seq, _) if !fits => Directive::Invalidate(key, seq),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::tracker::{Heard, Tracker};
    use crate::ids::{Epoch, Key};

    fn key(namespace: &str, key: &[u8]) -> Key {
        Key::new(&NamespaceName::parse(namespace).unwrap(), key).unwrap()
    }

    fn op(seq: u64, key: &Key, value: Option<&[u8]>) -> Op {
        Op { seq: Seq(seq), key: key.clone(), value: value.map(Bytes::copy_from_slice) }
    }

    fn told(after: u64, until: u64, ops: &[Op], puts: OutboxPuts) -> Vec<Event> {
        let ops: Vec<&Op> = ops.iter().collect();
        let applying = Applying { epoch: Epoch(3), after: Seq(after), until: Seq(until), ops: &ops };
        events(&applying, puts).unwrap().iter().map(|body| Event::decode(body).unwrap()).collect()
    }

    fn directives(events: &[Event]) -> Vec<Directive> {
        let said = events.iter().map(|event| match &event.said {
            Said::Directives(directives) => directives.clone(),
            other => panic!("{other:?}"),
        });
        said.collect::<Vec<_>>().concat()
    }

    #[test]
    fn a_batch_is_one_event_of_what_it_did() {
        let (a, b) = (key("shop", b"a"), key("shop", b"b"));
        let ops = [op(8, &a, Some(b"1")), op(9, &b, None)];
        let events = told(7, 12, &ops, OutboxPuts::Invalidate);
        assert_eq!(events.len(), 1);
        assert_eq!((events[0].epoch, events[0].after, events[0].until), (Epoch(3), Seq(7), Seq(12)));
        assert!(events[0].as_of_us > 0);
        let expected = [Directive::Invalidate(a.clone(), Seq(8)), Directive::Remove(b, Seq(9))];
        assert_eq!(directives(&events), expected);
        let value = directives(&told(7, 12, &ops[..1], OutboxPuts::Value));
        assert_eq!(value, [Directive::Put(a, Seq(8), Bytes::from_static(b"1"))]);
        assert_eq!(directives(&told(7, 8, &[], OutboxPuts::Value)), []);
    }

    #[test]
    fn what_the_layer_keeps_for_itself_is_told_as_the_change_stream_tells_it() {
        let a = key("shop", b"a");
        let tokens =
            |rest: &[u8]| Key::from_bytes(Bytes::from([b"!tokens\0".as_slice(), rest].concat())).unwrap();
        let ops = [
            op(1, &a.version(7).unwrap(), Some(b"v")),
            op(2, &a.version_list().unwrap(), Some(b"l")),
            op(3, &tokens(b"\x01shop/eu"), Some(&[1])),
            op(4, &tokens(b"\x02shop\0blue"), Some(&[1])),
            op(5, &tokens(b"\x09?"), Some(&[1])),
        ];
        let name = |name| NamespaceName::parse(name).unwrap();
        let expected = [
            Directive::Invalidate(a, Seq(1)),
            Directive::Namespace(name("shop/eu"), Seq(3)),
            Directive::Group(name("shop"), "blue".to_owned(), Seq(4)),
            Directive::Everything(Seq(5)),
        ];
        assert_eq!(directives(&told(0, 5, &ops, OutboxPuts::Value)), expected);
    }

    /// A batch whose first part was heard and whose second was not has not been heard up to any number: the key of
    /// the second may have had an earlier change that the layer left out.
    #[test]
    fn of_a_divided_batch_nothing_counts_as_heard_before_all_of_it_is() {
        let large = vec![0; 200 << 10];
        let ops: Vec<Op> =
            (1..=7).map(|seq| op(10 + seq, &key("shop", &[seq as u8]), Some(&large))).collect();
        let events = told(10, 20, &ops, OutboxPuts::Value);
        assert_eq!(events.len(), 4);
        assert_eq!(directives(&events).len(), 7);
        let mut tracker = Tracker::new(Epoch(3), Seq(10));
        for (at, event) in events.iter().enumerate() {
            let heard = tracker.hear(event.epoch, event.after, event.until);
            let is_last = at == events.len() - 1;
            assert_eq!(heard, if is_last { Heard::InOrder } else { Heard::Gap });
            assert_eq!(tracker.position(), if is_last { Seq(20) } else { Seq(10) });
        }
        for missing in 0..events.len() {
            let mut tracker = Tracker::new(Epoch(3), Seq(10));
            for (_, event) in events.iter().enumerate().filter(|(at, _)| *at != missing) {
                let _ = tracker.hear(event.epoch, event.after, event.until);
            }
            assert!(tracker.position() < Seq(20), "part {missing} was missed");
        }
    }

    #[test]
    fn where_the_numbers_or_the_room_do_not_suffice_less_is_said_exactly() {
        let large = vec![0; 400 << 10];
        let ops: Vec<Op> = (0..5).map(|at| op(11, &key("shop", &[at]), Some(&large))).collect();
        let events = told(10, 11, &ops, OutboxPuts::Value);
        assert!(directives(&events).iter().all(|directive| matches!(directive, Directive::Invalidate(..))));
        let long = vec![b'k'; 30 << 10];
        let ops: Vec<Op> = (0..40).map(|at| op(11, &key(&format!("s{at}"), &long), None)).collect();
        assert_eq!(directives(&told(10, 11, &ops, OutboxPuts::Value)), [Directive::Everything(Seq(11))]);
        let huge = [op(11, &key("shop", b"a"), Some(&vec![0; BODY_BYTES_MAX]))];
        assert!(matches!(
            directives(&told(10, 11, &huge, OutboxPuts::Value))[..],
            [Directive::Invalidate(..)]
        ));
    }
}
