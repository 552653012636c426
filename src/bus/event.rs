//! The events that a bus carries, and their format, which programs in other languages can write as well.
//!
//! An *event* covers a range of the owner's sequence numbers, from after one number up to another, and contains all
//! changes in this range. So the events of an owner form a chain, and a missing link shows whichever bus carried them.
//! An event of a program that is no layer has no such numbers and is outside the chain: both numbers are zero.
//!
//! | bytes, little-endian | |
//! | --- | --- |
//! | 1 | version of the format, 1 |
//! | 1 | kind: 1 directives, 2 heartbeat, 3 the position of a follower |
//! | 8 | the owner's epoch |
//! | 8, 8 | the sequence numbers after which and up to which the event covers all changes |
//! | 8 | the time when the store held nothing newer, in microseconds of Unix time; zero if unknown |
//! | ... | the directives, as below; or the name of the follower |
//! | 4 | CRC-32C (Castagnoli) of all of the above |
//!
//! A directive is its kind (1 byte), its version (8), and its parts, each preceded by its length (4). The version is
//! the sequence number of the change.
//!
//! | kind | | parts |
//! | --- | --- | --- |
//! | 1 | the value of the key has changed | namespace, encoded key |
//! | 2 | the key has this value | namespace, encoded key, encoded value |
//! | 3 | the key was removed | namespace, encoded key |
//! | 4 | everything in the namespace and below it was invalidated | namespace |
//! | 6 | all entries with the tag were invalidated; a group's tag is `namespace:group` | tag |
//! | 7 | the values of the namespace have this schema version now (one byte) | namespace, schema version |
//! | 8 | anything may have changed up to this version | |
//!
//! The numbers of the format are never reused. A reader refuses unknown ones.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::bus::contract::BODY_BYTES_MAX;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{Epoch, Key, NamespaceName, Seq};
use crate::invalidation::Invalidation;

const FORMAT: u8 = 1;
const DIRECTIVES: u8 = 1;
const HEARTBEAT: u8 = 2;
const SEEN: u8 = 3;
/// The length of an event without its payload and checksum.
const HEADER_BYTES: usize = 1 + 1 + 8 + 8 + 8 + 8;
const CHECKSUM_BYTES: usize = 4;
/// The longest name of a follower, in bytes.
pub const FOLLOWER_BYTES_MAX: usize = 64;

/// A message of an owner or of a follower to the other processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The epoch of the owner.
    pub epoch: Epoch,
    /// The sequence number up to which the previous event covers all changes.
    pub after: Seq,
    /// The sequence number up to which this event covers all changes.
    pub until: Seq,
    /// The time when the store was known to hold nothing beyond `until`, in microseconds of Unix time; zero if unknown.
    pub as_of_us: u64,
    /// The contents.
    pub payload: Payload,
}

/// The contents of an event. Later versions may add kinds.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Payload {
    /// The changes. May be empty.
    Directives(Vec<Directive>),
    /// No change: the owner is alive.
    Heartbeat,
    /// The follower of this name has processed everything up to `until`.
    Seen(String),
}

/// A precise invalidation. Later versions may add kinds.
///
/// Decoded keys and values share the buffers of their event; copy them if you keep them for long.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Directive {
    /// The key has this value since this version.
    Put(Key, Seq, Bytes),
    /// The key has no value since this version.
    Remove(Key, Seq),
    /// The named entries may have changed up to this version.
    Invalidate(Invalidation, Seq),
}

impl Directive {
    /// Returns the version: the sequence number of the change.
    #[must_use]
    pub fn version(&self) -> Seq {
        match self {
            Directive::Put(_, version, _)
            | Directive::Remove(_, version)
            | Directive::Invalidate(_, version) => *version,
        }
    }

    /// Returns the encoded length in bytes.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        let key_len = |key: &Key| 8 + key.as_bytes().len() - 1;
        let parts = match self {
            Directive::Put(key, _, value) => key_len(key) + 4 + value.len(),
            Directive::Remove(key, _) => key_len(key),
            Directive::Invalidate(what, _) => match what {
                Invalidation::Key(key) => key_len(key),
                Invalidation::Namespace(name) => 4 + name.as_str().len(),
                Invalidation::Tag(tag) => 4 + tag.len(),
                Invalidation::Schema(name, _) => 9 + name.as_str().len(),
                Invalidation::Everything => 0,
            },
        };
        1 + 8 + parts
    }

    fn encode(&self, out: &mut BytesMut) {
        type Parts<'a> = [Option<&'a [u8]>; 3];
        fn key_parts(key: &Key) -> Parts<'_> {
            [Some(key.namespace().as_bytes()), Some(key.key()), None]
        }
        let (kind, parts): (u8, Parts<'_>) = match self {
            Directive::Put(key, _, value) => {
                (2, [Some(key.namespace().as_bytes()), Some(key.key()), Some(value)])
            }
            Directive::Remove(key, _) => (3, key_parts(key)),
            // Kind 5 was a group's, which is a tag now.
            Directive::Invalidate(what, _) => match what {
                Invalidation::Key(key) => (1, key_parts(key)),
                Invalidation::Namespace(name) => (4, [Some(name.as_str().as_bytes()), None, None]),
                Invalidation::Tag(tag) => (6, [Some(tag.as_bytes()), None, None]),
                Invalidation::Schema(name, version) => {
                    (7, [Some(name.as_str().as_bytes()), Some(std::slice::from_ref(version)), None])
                }
                Invalidation::Everything => (8, [None, None, None]),
            },
        };
        out.put_u8(kind);
        out.put_u64_le(self.version().0);
        for part in parts.into_iter().flatten() {
            out.put_u32_le(u32::try_from(part.len()).expect("keys and values are shorter than 4 GiB"));
            out.put_slice(part);
        }
    }

    /// Decodes the directive at the start of `rest`, which is a part of `whole`, and removes it from `rest`.
    fn decode(whole: &Bytes, rest: &mut &[u8], keys: &mut KeyDecoder) -> Result<Directive> {
        let short = || refused("ends within a directive");
        let kind = rest.try_get_u8().map_err(|_| short())?;
        let version = Seq(rest.try_get_u64_le().map_err(|_| short())?);
        let mut part = || {
            let length = rest.try_get_u32_le().map_err(|_| short())?;
            // Too large for this machine is also too large for the event.
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            // The length comes from outside, so it is compared with the bytes that are there before any memory is
            // taken.
            let (part, behind) = rest.split_at_checked(length).ok_or_else(short)?;
            *rest = behind;
            Ok(part)
        };
        let what = match kind {
            1 => Invalidation::Key(keys.key(part()?, part()?)?),
            2 => return Ok(Directive::Put(keys.key(part()?, part()?)?, version, whole.slice_ref(part()?))),
            3 => return Ok(Directive::Remove(keys.key(part()?, part()?)?, version)),
            4 => Invalidation::Namespace(name(part()?)?),
            6 => Invalidation::Tag(text(part()?)?),
            7 => match (name(part()?)?, part()?) {
                (name, &[schema]) => Invalidation::Schema(name, schema),
                _ => return Err(refused("names a schema version that is not one byte")),
            },
            8 => Invalidation::Everything,
            // Skipping it would keep a value that it was to drop.
            _ => return Err(refused("holds a directive of an unknown kind")),
        };
        Ok(Directive::Invalidate(what, version))
    }
}

impl Event {
    /// Encodes the event.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`] beyond [`BODY_BYTES_MAX`]; [`ErrorKind::InvalidName`] for a follower's name that is
    /// empty or longer than 64 bytes.
    pub fn encode(&self) -> Result<Bytes> {
        let mut out = BytesMut::with_capacity(HEADER_BYTES + CHECKSUM_BYTES + 64);
        let kind = match &self.payload {
            Payload::Directives(_) => DIRECTIVES,
            Payload::Heartbeat => HEARTBEAT,
            Payload::Seen(_) => SEEN,
        };
        out.put_slice(&[FORMAT, kind]);
        for number in [self.epoch.0, self.after.0, self.until.0, self.as_of_us] {
            out.put_u64_le(number);
        }
        match &self.payload {
            Payload::Directives(directives) => {
                directives.iter().for_each(|directive| directive.encode(&mut out))
            }
            Payload::Heartbeat => {}
            Payload::Seen(follower) if (1..=FOLLOWER_BYTES_MAX).contains(&follower.len()) => {
                out.put_slice(follower.as_bytes());
            }
            Payload::Seen(follower) => {
                let context = format!("a follower's name of {} bytes; allowed are 1 to 64", follower.len());
                return Err(Error::new(ErrorKind::InvalidName, context));
            }
        }
        out.put_u32_le(crc32c::crc32c(&out));
        // Refused at the publisher: a listener would refuse it too, again and again at the same position.
        if out.len() > BODY_BYTES_MAX {
            let context = format!("an event of {} bytes; the limit is {BODY_BYTES_MAX}", out.len());
            return Err(Error::new(ErrorKind::TooLarge, context));
        }
        Ok(out.freeze())
    }

    /// Decodes an event.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] if the bytes are not an event, or of a format or kind that this version does not know.
    pub fn decode(bytes: &Bytes) -> Result<Event> {
        // Before the checksum is computed, which would cost time for whatever a stranger sends.
        if bytes.len() > BODY_BYTES_MAX {
            return Err(refused("is larger than any event"));
        }
        let parts = bytes.split_last_chunk::<CHECKSUM_BYTES>().filter(|(rest, _)| rest.len() >= HEADER_BYTES);
        let Some((mut rest, checksum)) = parts else {
            return Err(refused("is shorter than any event"));
        };
        let checksum = u32::from_le_bytes(*checksum);
        // The format comes before the checksum: another format may have another checksum.
        if rest.first() != Some(&FORMAT) {
            return Err(refused("is of an unknown format"));
        }
        if crc32c::crc32c(rest) != checksum {
            return Err(refused("fails its checksum"));
        }
        rest.advance(1);
        let kind = rest.get_u8();
        let (epoch, after) = (Epoch(rest.get_u64_le()), Seq(rest.get_u64_le()));
        let (until, as_of_us) = (Seq(rest.get_u64_le()), rest.get_u64_le());
        // A range that runs backwards has no place in a follower's order.
        if after > until {
            return Err(refused("ends before it begins"));
        }
        let payload = match kind {
            DIRECTIVES => {
                let (mut directives, mut keys) = (Vec::new(), KeyDecoder::within(rest.len()));
                // Bounded by the body: each directive takes at least nine bytes of it.
                while !rest.is_empty() {
                    directives.push(Directive::decode(bytes, &mut rest, &mut keys)?);
                }
                Payload::Directives(directives)
            }
            // Further bytes would be of a later version and may change what the event says.
            HEARTBEAT if rest.is_empty() => Payload::Heartbeat,
            SEEN if (1..=FOLLOWER_BYTES_MAX).contains(&rest.len()) => Payload::Seen(text(rest)?),
            HEARTBEAT | SEEN => return Err(refused("has a body of a wrong length")),
            _ => return Err(refused("is of an unknown kind")),
        };
        Ok(Event { epoch, after, until, as_of_us, payload })
    }

    /// Returns true if the event belongs to the chain of an owner.
    #[must_use]
    pub fn is_chained(&self) -> bool {
        self.until > Seq::ZERO
    }
}

fn refused(why: &str) -> Error {
    Error::new(ErrorKind::Refused, format!("what a bus delivered {why}"))
}

fn text(bytes: &[u8]) -> Result<String> {
    utf8(bytes).map(str::to_owned)
}

fn utf8(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(|_| refused("holds a name that is not UTF-8"))
}

fn name(bytes: &[u8]) -> Result<NamespaceName> {
    NamespaceName::parse(utf8(bytes)?)
        .map_err(|error| error.wrap(ErrorKind::Refused, "what a bus delivered holds a bad name"))
}

/// Decodes the keys of an event. Most keys of an event share a namespace, so the last name is kept and not validated
/// again; and all keys share one buffer.
struct KeyDecoder {
    last: Option<NamespaceName>,
    shared: BytesMut,
}

impl KeyDecoder {
    /// Makes a decoder for so many bytes of directives, which is more than their keys take.
    fn within(bytes: usize) -> KeyDecoder {
        KeyDecoder { last: None, shared: BytesMut::with_capacity(bytes) }
    }

    fn key(&mut self, namespace: &[u8], encoded: &[u8]) -> Result<Key> {
        let refused = |error: Error| error.wrap(ErrorKind::Refused, "what a bus delivered holds a bad key");
        // Validating the same name again for each key would cost more than decoding the key.
        let known = self.last.take().filter(|known| known.as_str().as_bytes() == namespace);
        let name = self.last.insert(known.map_or_else(|| name(namespace), Ok)?);
        Key::new_within(&mut self.shared, name, encoded).map_err(refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> NamespaceName {
        NamespaceName::parse(name).unwrap()
    }

    fn event(payload: Payload) -> Event {
        Event { epoch: Epoch(3), after: Seq(41), until: Seq(42), as_of_us: 7, payload }
    }

    fn all() -> Vec<Event> {
        let key = Key::new(&name("products"), b"\x7b\0").unwrap();
        let other = Key::new(&name("products/eu"), b"").unwrap();
        let directives = vec![
            Directive::Invalidate(Invalidation::Key(key.clone()), Seq(42)),
            Directive::Invalidate(Invalidation::Key(other), Seq(42)),
            Directive::Put(key.clone(), Seq(42), Bytes::from_static(b"value")),
            Directive::Remove(key, Seq(42)),
            Directive::Invalidate(Invalidation::Namespace(name("products/eu")), Seq(42)),
            Directive::Invalidate(Invalidation::group(&name("products"), "tenant-7"), Seq(42)),
            Directive::Invalidate(Invalidation::Tag("home".into()), Seq(42)),
            Directive::Invalidate(Invalidation::Schema(name("products"), 2), Seq(42)),
            Directive::Invalidate(Invalidation::Everything, Seq(42)),
        ];
        [
            Payload::Directives(directives),
            Payload::Directives(vec![]),
            Payload::Heartbeat,
            Payload::Seen("eu-1".into()),
        ]
        .map(event)
        .into()
    }

    #[test]
    fn an_event_survives_its_encoding_and_every_flip_is_noticed() {
        for event in all() {
            let bytes = event.encode().unwrap();
            assert_eq!(Event::decode(&bytes).unwrap(), event);
            for at in 0..bytes.len() {
                assert!(Event::decode(&bytes.slice(..at)).is_err(), "cut at {at}");
                let mut flipped = bytes.to_vec();
                flipped[at] ^= 1;
                let error = Event::decode(&Bytes::from(flipped)).expect_err("a flip");
                assert_eq!(error.kind(), ErrorKind::Refused, "at {at}");
            }
        }
    }

    #[test]
    fn the_bytes_are_the_documented_ones_and_their_length_is_known() {
        let key = Key::new(&name("products"), b"123").unwrap();
        let directive = Directive::Invalidate(Invalidation::Key(key), Seq(42));
        let bytes = event(Payload::Directives(vec![directive.clone()])).encode().unwrap();
        let mut expected = vec![1, 1];
        [3_u64, 41, 42, 7].iter().for_each(|number| expected.extend(number.to_le_bytes()));
        expected.push(1);
        expected.extend(42_u64.to_le_bytes());
        expected.extend(8_u32.to_le_bytes());
        expected.extend(b"products");
        expected.extend(3_u32.to_le_bytes());
        expected.extend(b"123");
        assert_eq!(bytes[..bytes.len() - 4], expected);
        assert_eq!(directive.encoded_len(), bytes.len() - HEADER_BYTES - CHECKSUM_BYTES);
        for event in all() {
            let Payload::Directives(directives) = &event.payload else { continue };
            let length: usize = directives.iter().map(Directive::encoded_len).sum();
            assert_eq!(event.encode().unwrap().len(), HEADER_BYTES + length + CHECKSUM_BYTES);
        }
    }

    #[test]
    fn what_is_too_large_or_badly_named_is_refused() {
        let key = Key::new(&name("n"), b"k").unwrap();
        let large = Directive::Put(key, Seq(1), Bytes::from(vec![0; BODY_BYTES_MAX]));
        let error = event(Payload::Directives(vec![large])).encode().expect_err("large");
        assert_eq!(error.kind(), ErrorKind::TooLarge);
        assert!(event(Payload::Seen(String::new())).encode().is_err());
        let backwards = Event { after: Seq(43), ..event(Payload::Heartbeat) };
        assert!(Event::decode(&backwards.encode().unwrap()).is_err());
        // A name that no cache can have, with a checksum that holds.
        let mut bytes = event(Payload::Directives(vec![Directive::Invalidate(
            Invalidation::Namespace(name("ab")),
            Seq(1),
        )]))
        .encode()
        .unwrap()
        .to_vec();
        let end = bytes.len() - 4;
        bytes[end - 1] = b'!';
        let checksum = crc32c::crc32c(&bytes[..end]);
        bytes[end..].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(Event::decode(&Bytes::from(bytes)).expect_err("bad name").kind(), ErrorKind::Refused);
    }
}
