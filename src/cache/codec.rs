//! Codecs: from keys and values to bytes and back. The rest of the crate sees only bytes.
//!
//! Every encoded value starts with two bytes: the codec that wrote it, and its schema version. The upper bit of the
//! second is set if tags follow: their number `u8`, and of each its length `u8` and its bytes. A value of another codec
//! is an error that says so, never garbage; one of another schema goes through the cache's upgrade, or is an error,
//! too.

#[cfg(feature = "bincode")]
use std::any::Any;
use std::cell::RefCell;
use std::error::Error as StdError;
use std::fmt;
use std::hash::Hash;

#[cfg(feature = "bincode")]
use bincode::Options;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
use crate::memory::advice::CompareValues;
use crate::safeguard::Safeguard;

/// The schema version of a cache that says nothing else.
pub(crate) const SCHEMA_DEFAULT: u8 = 1;
/// The highest schema version.
pub(crate) const SCHEMA_MAX: u8 = TAGGED - 1;
const TAGGED: u8 = 1 << 7;

/// The most tags of a value.
pub const TAGS_MAX: usize = 16;
/// The longest tag, in bytes.
pub const TAG_BYTES_MAX: usize = 255;

/// A way to turn values into bytes and back.
///
/// Equal keys have to encode to equal bytes, in every release of the program: the store finds them by these bytes.
pub trait Codec: Send + Sync + 'static {
    /// The number in each value's first byte by which this codec's values are known. Up to 127 they are this crate's.
    const ID: u8;

    /// Appends the encoded value: at most `bytes_max` bytes.
    ///
    /// # Errors
    /// [`EncodeError::TooLong`] if it takes more; else the reason why `value` cannot be encoded.
    fn encode<T: Serialize + 'static>(
        value: &T,
        bytes_max: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), EncodeError>;

    /// Decodes all of `bytes`; bytes left over are an error.
    ///
    /// # Errors
    /// The reason why `bytes` are not a `T`. It is kept as the source of the read's error.
    fn decode<T: DeserializeOwned + 'static>(bytes: &[u8]) -> Result<T, BoxError>;
}

/// An error of any type, as a codec or an upgrade returns it.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// The reason why a codec could not encode a key or a value.
#[derive(Debug)]
#[non_exhaustive]
pub enum EncodeError {
    /// It takes more bytes than are allowed.
    TooLong,
    /// Another reason, which is kept as the source of the write's error.
    Failed(BoxError),
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EncodeError::TooLong => f.write_str("it takes more bytes than are allowed"),
            EncodeError::Failed(_) => f.write_str("it could not be encoded"),
        }
    }
}

impl StdError for EncodeError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            EncodeError::TooLong => None,
            EncodeError::Failed(source) => Some(&**source),
        }
    }
}

/// The bounds of a cache's keys. Every type that meets them is one.
pub trait CacheKey: Serialize + DeserializeOwned + Hash + Eq + Clone + Send + Sync + 'static {}
impl<K: Serialize + DeserializeOwned + Hash + Eq + Clone + Send + Sync + 'static> CacheKey for K {}

/// The bounds of a cache's values. Every type that meets them is one.
pub trait CacheValue: Serialize + DeserializeOwned + Clone + Send + Sync + 'static {}
impl<V: Serialize + DeserializeOwned + Clone + Send + Sync + 'static> CacheValue for V {}

/// bincode 1.3: fixed-width integers, little-endian, no bytes left over, bounded.
#[cfg(feature = "bincode")]
#[derive(Clone, Copy, Debug)]
pub struct Bincode;

#[cfg(feature = "bincode")]
impl Codec for Bincode {
    const ID: u8 = 1;

    fn encode<T: Serialize + 'static>(
        value: &T,
        bytes_max: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), EncodeError> {
        // Keys and values that are bytes already: see `append_vector`.
        if let Some(bytes) = (value as &dyn Any).downcast_ref::<Vec<u8>>() {
            return append_vector(bytes, bytes_max, out);
        }
        let limit = u64::try_from(bytes_max).unwrap_or(u64::MAX);
        // The limit stops the encoder early: a value that is refused anyway must not fill memory first.
        let options = bincode::DefaultOptions::new().with_fixint_encoding().with_limit(limit);
        options.serialize_into(out, value).map_err(|error| match &*error {
            bincode::ErrorKind::SizeLimit => EncodeError::TooLong,
            _ => EncodeError::Failed(error),
        })
    }

    fn decode<T: DeserializeOwned + 'static>(bytes: &[u8]) -> Result<T, BoxError> {
        let mut decoded: Option<T> = None;
        if let Some(vector) = (&mut decoded as &mut dyn Any).downcast_mut::<Option<Vec<u8>>>() {
            *vector = vector_in(bytes);
        }
        if let Some(vector) = decoded {
            return Ok(vector);
        }
        // A damaged length must not allocate more than the bytes that are there.
        let limit = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let options = bincode::DefaultOptions::new().with_fixint_encoding().with_limit(limit);
        // A longer type may begin like a shorter one, and would decode to a wrong value.
        options.reject_trailing_bytes().deserialize(bytes).map_err(|error| error as BoxError)
    }
}

/// Appends a vector of bytes as bincode would, in one copy. bincode itself would go byte by byte, since serde cannot
/// tell a vector of bytes from another sequence, and that would be most of what a put of a long value costs.
#[cfg(feature = "bincode")]
fn append_vector(bytes: &[u8], bytes_max: usize, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    // The prefix counts towards the limit, as it does for bincode; a test compares the two.
    if bytes.len().checked_add(LENGTH_BYTES).is_none_or(|all| all > bytes_max) {
        return Err(EncodeError::TooLong);
    }
    out.reserve(LENGTH_BYTES + bytes.len());
    out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    out.extend_from_slice(bytes);
    Ok(())
}

/// Returns the vector that these bytes encode; `None` if they encode none, and then bincode finds out why.
#[cfg(feature = "bincode")]
fn vector_in(bytes: &[u8]) -> Option<Vec<u8>> {
    // What does not fit is left to bincode, so that both ways fail with the same error.
    let (length, vector) = bytes.split_first_chunk::<LENGTH_BYTES>()?;
    (u64::from_le_bytes(*length) == vector.len() as u64).then(|| vector.to_vec())
}

/// The bytes of the length that bincode puts before a sequence.
#[cfg(feature = "bincode")]
const LENGTH_BYTES: usize = 8;

/// postcard 1: compact, variable-width integers.
#[cfg(feature = "postcard")]
#[derive(Clone, Copy, Debug)]
pub struct Postcard;

#[cfg(feature = "postcard")]
impl Codec for Postcard {
    const ID: u8 = 2;

    fn encode<T: Serialize + 'static>(
        value: &T,
        bytes_max: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), EncodeError> {
        let start = out.len();
        // postcard extends a vector that it owns. If it fails, the bytes before are lost, and so is the whole write.
        let taken = std::mem::take(out);
        *out = postcard::to_extend(value, taken).map_err(|error| EncodeError::Failed(error.into()))?;
        // postcard knows no limit, so the length is looked at afterwards.
        if out.len() - start > bytes_max {
            return Err(EncodeError::TooLong);
        }
        Ok(())
    }

    fn decode<T: DeserializeOwned + 'static>(bytes: &[u8]) -> Result<T, BoxError> {
        match postcard::take_from_bytes(bytes) {
            Ok((value, [])) => Ok(value),
            // postcard ignores them, so a longer type would decode to a wrong value.
            Ok((_, left)) => Err(format!("{} bytes are left over", left.len()).into()),
            Err(error) => Err(error.into()),
        }
    }
}

/// The codec of one cache, for its types, with its schema version.
pub(crate) struct Coder<K, V> {
    codec: u8,
    encode_key: Encode<K>,
    decode_key: fn(&[u8]) -> Result<K, BoxError>,
    encode_value: Encode<V>,
    decode_value: fn(&[u8]) -> Result<V, BoxError>,
    schema: u8,
    upgrade: Option<Upgrade<V>>,
}

/// Converts a stored value of another schema version, of which it gets the version and the bytes.
pub(crate) type Upgrade<V> = Box<dyn Fn(u8, &[u8]) -> Result<V, BoxError> + Send + Sync>;

/// A value as it is stored, decoded.
pub(crate) struct Decoded<'a, V> {
    pub(crate) value: V,
    pub(crate) tags: Vec<&'a str>,
}

type Encode<T> = fn(&T, usize, &mut Vec<u8>) -> Result<(), EncodeError>;

impl<K: Serialize + DeserializeOwned + 'static, V: Serialize + DeserializeOwned + 'static> Coder<K, V> {
    pub(crate) fn of<C: Codec>() -> Coder<K, V> {
        Coder {
            codec: C::ID,
            encode_key: C::encode::<K>,
            decode_key: C::decode::<K>,
            encode_value: C::encode::<V>,
            decode_value: C::decode::<V>,
            schema: SCHEMA_DEFAULT,
            upgrade: None,
        }
    }

    /// The codec of a cache that names none, where there is one.
    pub(crate) fn of_default() -> Option<Coder<K, V>> {
        #[cfg(feature = "bincode")]
        return Some(Coder::of::<Bincode>());
        #[cfg(not(feature = "bincode"))]
        None
    }
}

/// The longest encoded value that is compared with another.
const COMPARED_BYTES_MAX: usize = 64 << 10;

impl<K, V: 'static> Coder<K, V> {
    /// Returns a comparison of two values by their encoded bytes; `None` for long ones and for those that do not
    /// encode.
    pub(crate) fn comparison(&self) -> CompareValues<V> {
        let encode = self.encode_value;
        Box::new(move |one, other| {
            let (mut first, mut second) = (Vec::new(), Vec::new());
            // Longer values give no answer, and their reload no advice: comparing them would cost too much.
            encode(one, COMPARED_BYTES_MAX, &mut first).ok()?;
            encode(other, COMPARED_BYTES_MAX, &mut second).ok()?;
            Some(first == second)
        })
    }
}

impl<K, V> Coder<K, V> {
    /// The codec's number.
    pub(crate) fn id(&self) -> u8 {
        self.codec
    }

    /// Sets the schema version, and the conversion of values of other ones.
    pub(crate) fn with_schema(self, schema: u8, upgrade: Option<Upgrade<V>>) -> Self {
        Coder { schema, upgrade, ..self }
    }

    /// The schema version that it writes.
    pub(crate) fn schema(&self) -> u8 {
        self.schema
    }

    /// Appends the encoded key.
    pub(crate) fn key(&self, key: &K, out: &mut Vec<u8>) -> Result<()> {
        (self.encode_key)(key, KEY_BYTES_MAX, out).map_err(|error| not_encoded("a key", error, KEY_BYTES_MAX))
    }

    /// Decodes a key that [`Coder::key`] encoded.
    pub(crate) fn decode_key(&self, bytes: &[u8]) -> Result<K> {
        (self.decode_key)(bytes).map_err(|error| {
            let context = format!("a key of {} bytes does not decode", bytes.len());
            Error::with_source(ErrorKind::Decode, context, error)
        })
    }

    /// Replaces `out` by the encoded value with its prefix and its tags, which [`check_tags`] accepts.
    pub(crate) fn value(&self, value: &V, tags: &[String], out: &mut Vec<u8>) -> Result<()> {
        out.clear();
        let tagged = !tags.is_empty() && Safeguard::TagsAreStored.holds();
        out.extend_from_slice(&[self.codec, self.schema | if tagged { TAGGED } else { 0 }]);
        if tagged {
            out.push(check_tags(tags)?);
            for tag in tags {
                // `check_tags` refuses longer tags, so the fallback is never written.
                out.push(u8::try_from(tag.len()).unwrap_or(u8::MAX));
                out.extend_from_slice(tag.as_bytes());
            }
        }
        (self.encode_value)(value, VALUE_BYTES_MAX, out)
            .map_err(|error| not_encoded("a value", error, VALUE_BYTES_MAX))
    }

    /// Decodes what [`Coder::value`] wrote.
    pub(crate) fn decode<'a>(&self, bytes: &'a [u8]) -> Result<Decoded<'a, V>> {
        let refused = |context: String| Error::new(ErrorKind::Decode, context);
        let Some((&[codec, schema], rest)) = bytes.split_first_chunk() else {
            return Err(refused(format!("the stored value of {} bytes lacks its prefix", bytes.len())));
        };
        // Another codec's bytes may decode without an error, to a wrong value.
        if codec != self.codec {
            return Err(refused(format!(
                "the stored value was written by codec {codec}, and the cache was opened with codec {}",
                self.codec
            )));
        }
        let (tags, body) = match schema & TAGGED {
            0 => (Vec::new(), rest),
            _ => match split_tags(rest) {
                Some(split) => split,
                None => {
                    return Err(refused(format!(
                        "the tags of a stored value of {} bytes are cut",
                        bytes.len()
                    )));
                }
            },
        };
        let schema = schema & !TAGGED;
        let value = match &self.upgrade {
            _ if schema == self.schema || !Safeguard::SchemaIsCompared.holds() => (self.decode_value)(body)
                .map_err(|error| {
                Error::with_source(ErrorKind::Decode, "the stored value does not decode", error)
            })?,
            // The user's error stays the source, so that it can be downcast.
            Some(upgrade) => upgrade(schema, body).map_err(|error| {
                let context =
                    format!("upgrading a stored value from schema version {schema} to {}", self.schema);
                Error::with_source(ErrorKind::Decode, context, error)
            })?,
            // Bytes of another schema may decode without an error, so they are refused, not tried.
            None => {
                return Err(refused(format!(
                    "the stored value has schema version {schema}; the cache was opened with {}, and without an \
                     upgrade",
                    self.schema
                )));
            }
        };
        Ok(Decoded { value, tags })
    }
}

/// The tags at the beginning of `bytes`, and what follows them.
fn split_tags(bytes: &[u8]) -> Option<(Vec<&str>, &[u8])> {
    let (&count, mut rest) = bytes.split_first()?;
    // A damaged count must not allocate more than a valid one could.
    let mut tags = Vec::with_capacity(usize::from(count).min(TAGS_MAX));
    for _ in 0..count {
        let (&length, after) = rest.split_first()?;
        let (tag, after) = after.split_at_checked(usize::from(length))?;
        tags.push(std::str::from_utf8(tag).ok()?);
        rest = after;
    }
    Some((tags, rest))
}

/// Checks a value's tags; returns how many there are.
///
/// # Errors
/// [`ErrorKind::InvalidName`], [`ErrorKind::TooLarge`].
pub(crate) fn check_tags(tags: &[String]) -> Result<u8> {
    tags.iter().try_for_each(|tag| check_name("a tag", tag, TAG_BYTES_MAX))?;
    let count = u8::try_from(tags.len()).ok().filter(|_| tags.len() <= TAGS_MAX);
    count.ok_or_else(|| {
        Error::new(ErrorKind::TooLarge, format!("{} tags; a value may have {TAGS_MAX}", tags.len()))
    })
}

/// Checks the name of a tag or a group.
pub(crate) fn check_name(what: &str, name: &str, bytes_max: usize) -> Result<()> {
    if (1..=bytes_max).contains(&name.len()) {
        return Ok(());
    }
    let context = format!("{what} of {} bytes; allowed are 1 to {bytes_max}", name.len());
    Err(Error::new(ErrorKind::InvalidName, context))
}

fn not_encoded(what: &str, error: EncodeError, bytes_max: usize) -> Error {
    match error {
        EncodeError::TooLong => {
            let context = format!("{what} takes more than {bytes_max} bytes when encoded");
            Error::new(ErrorKind::TooLarge, context)
        }
        EncodeError::Failed(source) => {
            Error::with_source(ErrorKind::Encode, format!("{what} could not be encoded"), source)
        }
    }
}

/// The largest scratch buffer that a thread keeps.
const SCRATCH_BYTES_MAX: usize = 1 << 20;

thread_local! {
    /// Buffers for encoding, reused from write to write.
    static SCRATCH: RefCell<(Vec<u8>, Vec<u8>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// Runs `work` with two empty buffers, which this thread keeps for the next call.
pub(crate) fn with_scratch<T>(work: impl FnOnce(&mut Vec<u8>, &mut Vec<u8>) -> T) -> T {
    SCRATCH.with(|scratch| match scratch.try_borrow_mut() {
        Ok(mut scratch) => {
            let (key, value) = &mut *scratch;
            key.clear();
            value.clear();
            let result = work(key, value);
            // Or every thread that ever wrote a very long value would keep as much memory.
            if value.capacity() > SCRATCH_BYTES_MAX {
                *value = Vec::new();
            }
            result
        }
        // The `Serialize` of a user's value writes to a cache itself.
        Err(_) => work(&mut Vec::new(), &mut Vec::new()),
    })
}

#[cfg(test)]
#[cfg(feature = "bincode")]
mod tests {
    use super::*;

    #[test]
    fn a_value_of_another_codec_schema_or_length_is_an_error_not_garbage() {
        let bincode = Coder::<u8, (u32, String)>::of::<Bincode>();
        let mut bytes = Vec::new();
        bincode.value(&(7, "x".into()), &[], &mut bytes).unwrap();
        assert_eq!(bincode.decode(&bytes).unwrap().value, (7, "x".to_string()));
        for (at, what) in [(0, "written by codec"), (1, "schema version")] {
            let mut other = bytes.clone();
            other[at] = 99;
            let error = bincode.decode(&other).err().expect(what);
            assert!(error.kind() == ErrorKind::Decode && format!("{error:#}").contains(what), "{error}");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(bincode.decode(&longer).is_err(), "bytes left over");
        assert!(bincode.decode(&bytes[..bytes.len() - 1]).is_err(), "bytes missing");
        assert!(bincode.decode(&[]).is_err());
    }

    #[test]
    fn a_vector_of_bytes_is_encoded_as_bincode_encodes_it_and_fails_as_it_does() {
        /// The same to serde, and not what is told apart.
        #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        struct Wrapped(Vec<u8>);
        fn text(error: impl fmt::Debug) -> String {
            format!("{error:?}")
        }
        for length in [0, 1, 7, 100, 5_000] {
            let vector: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            let wrapped = Wrapped(vector.clone());
            for bytes_max in [0, 7, 8, length + 7, length + 8, usize::MAX] {
                let (mut one, mut other) = (vec![9], vec![9]);
                let encoded = Bincode::encode(&vector, bytes_max, &mut one).map_err(text);
                let as_bincode_does = Bincode::encode(&wrapped, bytes_max, &mut other).map_err(text);
                assert_eq!(encoded, as_bincode_does, "{length} {bytes_max}");
                assert_eq!(one, other, "{length} {bytes_max}");
            }
            let mut bytes = Vec::new();
            Bincode::encode(&vector, usize::MAX, &mut bytes).unwrap();
            bytes.push(0);
            for cut in [0, 4, 8, bytes.len() - 2, bytes.len() - 1, bytes.len()] {
                let decoded = Bincode::decode::<Vec<u8>>(&bytes[..cut]).map_err(text);
                assert_eq!(decoded.is_ok(), cut == bytes.len() - 1, "{length} {cut}");
                assert_eq!(decoded, Bincode::decode::<Wrapped>(&bytes[..cut]).map(|of| of.0).map_err(text));
            }
        }
    }

    #[test]
    fn tags_come_back_and_cut_ones_are_an_error() {
        let coder = Coder::<u8, u64>::of::<Bincode>().with_schema(3, None);
        let tags = ["red".to_owned(), "é".repeat(127)];
        let mut bytes = Vec::new();
        coder.value(&7, &tags, &mut bytes).unwrap();
        let decoded = coder.decode(&bytes).unwrap();
        assert_eq!((decoded.value, decoded.tags), (7, tags.iter().map(String::as_str).collect()));
        for end in 0..bytes.len() {
            assert!(coder.decode(&bytes[..end]).is_err(), "{end}");
        }
        let many = vec!["x".to_owned(); TAGS_MAX + 1];
        assert_eq!(check_tags(&many).unwrap_err().kind(), ErrorKind::TooLarge);
        for bad in [String::new(), "x".repeat(TAG_BYTES_MAX + 1)] {
            assert_eq!(check_tags(&[bad]).unwrap_err().kind(), ErrorKind::InvalidName);
        }
    }

    #[test]
    fn a_value_of_another_schema_goes_through_the_upgrade() {
        let (old, mut bytes) = (Coder::<u8, u32>::of::<Bincode>(), Vec::new());
        old.value(&7, &["red".into()], &mut bytes).unwrap();
        let upgrade: Upgrade<u64> = Box::new(|from, bytes| match from {
            1 => Ok(u64::from(Bincode::decode::<u32>(bytes)?) * 10),
            other => Err(format!("no schema of ours: {other}").into()),
        });
        let new = Coder::<u8, u64>::of::<Bincode>().with_schema(2, Some(upgrade));
        let decoded = new.decode(&bytes).unwrap();
        assert_eq!((decoded.value, decoded.tags), (70, vec!["red"]));
        bytes[1] = TAGGED | 9;
        let error = new.decode(&bytes).err().expect("another schema");
        assert!(
            error.kind() == ErrorKind::Decode && format!("{error:#}").contains("no schema of ours"),
            "{error}"
        );
    }

    #[cfg(feature = "postcard")]
    #[test]
    fn the_codecs_do_not_read_each_other() {
        let (one, other) = (Coder::<u8, u64>::of::<Bincode>(), Coder::<u8, u64>::of::<Postcard>());
        let mut bytes = Vec::new();
        other.value(&7, &[], &mut bytes).unwrap();
        assert_eq!(other.decode(&bytes).unwrap().value, 7);
        assert!(one.decode(&bytes).is_err());
    }

    #[test]
    fn encoding_within_an_encoding_has_buffers_of_its_own() {
        with_scratch(|key, value| {
            key.push(1);
            with_scratch(|other_key, other_value| {
                assert!(other_key.is_empty() && other_value.is_empty());
                other_value.push(2);
            });
            assert_eq!((key.as_slice(), value.is_empty()), (&[1][..], true));
        });
        with_scratch(|key, value| assert!(key.is_empty() && value.is_empty()));
    }

    #[test]
    fn a_value_beyond_the_limit_is_too_large() {
        let coder = Coder::<Vec<u8>, u8>::of::<Bincode>();
        let error = coder.key(&vec![0; KEY_BYTES_MAX], &mut Vec::new()).expect_err("too large");
        assert_eq!(error.kind(), ErrorKind::TooLarge);
    }
}
