//! The events that a store writes to its outbox for each batch that it applies. They match those of a publisher.
//!
//! A batch makes exactly one event. A layer applies only the last of several changes of a key, so no part of a batch
//! covers all changes up to a number within it, as an event of the owner's chain must. A batch that does not fit is
//! shortened instead: values are left out first, then keys are replaced by their namespaces, then all by "everything".

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use crate::bus::contract::{BODY_BYTES_MAX, Channel};
use crate::bus::event::{Directive, Event, Payload};
use crate::error::Result;
use crate::ids::{NamespaceName, Seq, StoredKind};
use crate::invalidation::Invalidation;
use crate::store::contract::Op;
use crate::store::postgres::{Applying, PostgresStoreOptions};

/// The bytes of directives that fit into one event.
const DIRECTIVES_BYTES_MAX: usize = BODY_BYTES_MAX - 64;

/// The directive that an outbox event holds for a key that was put. Later versions may add kinds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OutboxPuts {
    /// An invalidation of the key. Followers load the value from the store when they need it.
    #[default]
    Invalidate,
    /// The new value, as far as the values of a batch fit into one event of 512 KiB. An invalidation for the others.
    Value,
}

impl PostgresStoreOptions {
    /// Writes an event to this channel of the schema's outbox with each apply, in the same transaction.
    ///
    /// Subscribers of a [`PostgresBus`](crate::PostgresBus) over the same schema receive every change that is in the
    /// database, and no other.
    #[must_use]
    pub fn outbox(self, channel: &Channel, puts: OutboxPuts) -> PostgresStoreOptions {
        self.outbox_events(channel.as_str(), Arc::new(move |applying| events(applying, puts)))
    }
}

/// Returns the event of a batch, encoded.
///
/// # Errors
/// None that a layer's batch could cause.
pub fn events(applying: &Applying<'_>, puts: OutboxPuts) -> Result<Vec<Bytes>> {
    let directives = said(applying, puts);
    // The row of the watermark is locked, so at this time the store holds nothing beyond this batch.
    let as_of_us = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros());
    let event = Event {
        epoch: applying.epoch,
        after: applying.after,
        until: applying.until,
        as_of_us: u64::try_from(as_of_us).unwrap_or_default(),
        payload: Payload::Directives(directives),
    };
    Ok(vec![event.encode()?])
}

/// Returns the directives of a batch, shortened until they fit into one event.
fn said(applying: &Applying<'_>, puts: OutboxPuts) -> Vec<Directive> {
    let bytes_of = |said: &[Directive]| said.iter().map(Directive::encoded_len).sum::<usize>();
    let (ops, mut said): (Vec<_>, Vec<_>) =
        applying.ops.iter().filter_map(|op| directive(op).map(|said| (*op, said))).unzip();
    let bytes = bytes_of(&said);
    if bytes > DIRECTIVES_BYTES_MAX {
        // Less exact directives are safe: they only cost followers reloads.
        let names: BTreeMap<NamespaceName, Seq> = said.iter().filter_map(named).collect();
        said.retain(|directive| named(directive).is_none());
        said.extend(
            names.into_iter().map(|(name, last)| Directive::Invalidate(Invalidation::Namespace(name), last)),
        );
        return match bytes_of(&said) <= DIRECTIVES_BYTES_MAX {
            true => said,
            false => vec![Directive::Invalidate(Invalidation::Everything, applying.until)],
        };
    }
    let mut room = if puts == OutboxPuts::Value { DIRECTIVES_BYTES_MAX - bytes } else { 0 };
    for (op, directive) in ops.into_iter().zip(&mut said) {
        let is_of_key =
            matches!(directive, Directive::Invalidate(Invalidation::Key(key), _) if *key == op.key);
        // Neither a token nor a version may travel as the value of a key.
        let Some(value) = op.value.as_ref().filter(|_| is_of_key) else { continue };
        let with_value = Directive::Put(op.key.clone(), op.seq, value.clone());
        let more = with_value.encoded_len() - directive.encoded_len();
        if more <= room {
            room -= more;
            *directive = with_value;
        }
    }
    said
}

/// Returns the namespace of a directive's key and its version, if the directive is about one key.
fn named(directive: &Directive) -> Option<(NamespaceName, Seq)> {
    let (Directive::Invalidate(Invalidation::Key(key), seq) | Directive::Remove(key, seq)) = directive else {
        return None;
    };
    NamespaceName::parse(key.namespace()).ok().map(|name| (name, *seq))
}

/// Returns the directive of a change, without its value; `None` if no reader can have cached the key.
fn directive(op: &Op) -> Option<Directive> {
    let key = match op.key.stored_kind() {
        StoredKind::Value => op.key.clone(),
        // A version is reported as a change of its key. If a plain read returns it, a change of the key itself follows.
        StoredKind::Version(key, _) => key,
        StoredKind::VersionList => return None,
    };
    let value = op.value.as_deref().unwrap_or_default();
    let what = match Invalidation::of_token(&key, value) {
        Some(what) => what,
        // No cache can have such a namespace, and this is no token of a known kind. It may be a newer version's token.
        None if NamespaceName::parse(key.namespace()).is_err() => Invalidation::Everything,
        None if op.value.is_none() && key == op.key => return Some(Directive::Remove(key, op.seq)),
        None => Invalidation::Key(key),
    };
    Some(Directive::Invalidate(what, op.seq))
}

#[cfg(test)]
mod tests {
    use super::*;
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
        let said = events.iter().map(|event| match &event.payload {
            Payload::Directives(directives) => directives.clone(),
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
        let expected =
            [Directive::Invalidate(Invalidation::Key(a.clone()), Seq(8)), Directive::Remove(b, Seq(9))];
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
            op(4, &tokens(b"\x03shop:blue"), Some(&[1])),
            op(5, &tokens(b"\x09?"), Some(&[1])),
        ];
        let name = |name| NamespaceName::parse(name).unwrap();
        let expected = [
            Directive::Invalidate(Invalidation::Key(a), Seq(1)),
            Directive::Invalidate(Invalidation::Namespace(name("shop/eu")), Seq(3)),
            Directive::Invalidate(Invalidation::group(&name("shop"), "blue"), Seq(4)),
            Directive::Invalidate(Invalidation::Everything, Seq(5)),
        ];
        assert_eq!(directives(&told(0, 5, &ops, OutboxPuts::Value)), expected);
    }

    /// Values are sent as far as they fit; what does not fit is said exactly, or of more.
    #[test]
    fn what_does_not_fit_is_said_more_shortly() {
        let large = vec![0; 200 << 10];
        let ops: Vec<Op> =
            (1..=7).map(|seq| op(10 + seq, &key("shop", &[seq as u8]), Some(&large))).collect();
        let events = told(10, 20, &ops, OutboxPuts::Value);
        assert_eq!((events.len(), events[0].after, events[0].until), (1, Seq(10), Seq(20)));
        let said = directives(&events);
        let with_value = said.iter().filter(|said| matches!(said, Directive::Put(..))).count();
        let without =
            said.iter().filter(|said| matches!(said, Directive::Invalidate(Invalidation::Key(_), _))).count();
        assert_eq!((with_value, without), (2, 5));
        assert!(said.iter().map(Directive::version).eq((11..=17).map(Seq)));

        let long = vec![b'k'; 30 << 10];
        let many = |name: &dyn Fn(u64) -> String, count| {
            let ops: Vec<Op> = (1..=count).map(|seq| op(seq, &key(&name(seq), &long), None)).collect();
            directives(&told(0, count, &ops, OutboxPuts::Value))
        };
        let name = |name: &str| NamespaceName::parse(name).unwrap();
        let expected = [
            Directive::Invalidate(Invalidation::Namespace(name("s0")), Seq(40)),
            Directive::Invalidate(Invalidation::Namespace(name("s1")), Seq(39)),
        ];
        assert_eq!(many(&|seq| format!("s{}", seq % 2), 40), expected);
        let names = many(&|seq| format!("{seq:0200}"), 3000);
        assert_eq!(names, [Directive::Invalidate(Invalidation::Everything, Seq(3000))]);
        let huge = [op(11, &key("shop", b"a"), Some(&vec![0; BODY_BYTES_MAX]))];
        assert!(matches!(
            directives(&told(10, 11, &huge, OutboxPuts::Value))[..],
            [Directive::Invalidate(Invalidation::Key(_), _)]
        ));
    }
}
