//! From values to bytes and back. The rest of the crate sees only bytes.
//!
//! Every encoded value starts with two bytes: which codec wrote it, and which schema version it has (one, until
//! caches can say otherwise). A value of another codec is an error that says so, never garbage.

use std::cell::Cell;

use bincode::Options;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::{KEY_BYTES_MAX, VALUE_BYTES_MAX};

const SCHEMA_VERSION: u8 = 1;
const PREFIX_BYTES: usize = 2;

/// A way to turn values into bytes.
///
/// The same value must always give the same bytes where it is used for keys.
pub trait Codec: Send + Sync + 'static {
    /// Tells this codec's values from others'. Numbers up to 127 belong to this crate.
    const ID: u8;

    /// Appends the encoded value; at most `bytes_max` bytes.
    ///
    /// # Errors
    /// A sentence saying why `value` cannot be encoded.
    fn encode<T: Serialize>(value: &T, bytes_max: usize, out: &mut Vec<u8>) -> Result<(), String>;

    /// Decodes all of `bytes`; bytes left over are an error.
    ///
    /// # Errors
    /// A sentence saying why `bytes` are not a `T`.
    fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String>;
}

/// bincode 1.3: fixed-width integers, little-endian, no bytes left over, bounded.
#[derive(Clone, Copy, Debug)]
pub struct Bincode;

impl Codec for Bincode {
    const ID: u8 = 1;

    fn encode<T: Serialize>(value: &T, bytes_max: usize, out: &mut Vec<u8>) -> Result<(), String> {
        let limit = u64::try_from(bytes_max).unwrap_or(u64::MAX);
        let options = bincode::DefaultOptions::new().with_fixint_encoding().with_limit(limit);
        options.serialize_into(out, value).map_err(|error| error.to_string())
    }

    fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
        let limit = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let options = bincode::DefaultOptions::new().with_fixint_encoding().with_limit(limit);
        options.reject_trailing_bytes().deserialize(bytes).map_err(|error| error.to_string())
    }
}

/// postcard 1: compact, variable-width integers.
#[cfg(feature = "postcard")]
#[derive(Clone, Copy, Debug)]
pub struct Postcard;

#[cfg(feature = "postcard")]
impl Codec for Postcard {
    const ID: u8 = 2;

    fn encode<T: Serialize>(value: &T, bytes_max: usize, out: &mut Vec<u8>) -> Result<(), String> {
        let start = out.len();
        let taken = std::mem::take(out);
        *out = postcard::to_extend(value, taken).map_err(|error| error.to_string())?;
        if out.len() - start > bytes_max {
            return Err(format!("it takes {} bytes; the limit is {bytes_max}", out.len() - start));
        }
        Ok(())
    }

    fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
        match postcard::take_from_bytes(bytes) {
            Ok((value, [])) => Ok(value),
            Ok((_, left)) => Err(format!("{} bytes are left over", left.len())),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// A codec chosen at run time for the types of one cache.
pub(crate) struct Coder<K, V> {
    codec: u8,
    encode_key: Encode<K>,
    encode_value: Encode<V>,
    decode_value: fn(&[u8]) -> Result<V, String>,
}

type Encode<T> = fn(&T, usize, &mut Vec<u8>) -> Result<(), String>;

impl<K: Serialize, V: Serialize + DeserializeOwned> Coder<K, V> {
    pub(crate) fn of<C: Codec>() -> Coder<K, V> {
        Coder {
            codec: C::ID,
            encode_key: C::encode::<K>,
            encode_value: C::encode::<V>,
            decode_value: C::decode::<V>,
        }
    }
}

impl<K, V> Coder<K, V> {
    /// Which codec this is.
    pub(crate) fn id(&self) -> u8 {
        self.codec
    }

    /// Appends the encoded key.
    pub(crate) fn key(&self, key: &K, out: &mut Vec<u8>) -> Result<()> {
        (self.encode_key)(key, KEY_BYTES_MAX, out).map_err(|why| not_encoded("a key", &why, KEY_BYTES_MAX))
    }

    /// Replaces `out` by the encoded value with its prefix.
    pub(crate) fn value(&self, value: &V, out: &mut Vec<u8>) -> Result<()> {
        out.clear();
        out.extend_from_slice(&[self.codec, SCHEMA_VERSION]);
        (self.encode_value)(value, VALUE_BYTES_MAX, out)
            .map_err(|why| not_encoded("a value", &why, VALUE_BYTES_MAX))
    }

    /// Decodes what [`Coder::value`] wrote.
    pub(crate) fn decode(&self, bytes: &[u8]) -> Result<V> {
        let refused = |context: String| Err(Error::new(ErrorKind::Decode, context));
        match bytes.get(..PREFIX_BYTES) {
            Some(&[codec, _]) if codec != self.codec => refused(format!(
                "the stored value was written by codec {codec}, and the cache was opened with codec {}",
                self.codec
            )),
            Some(&[_, schema]) if schema != SCHEMA_VERSION => refused(format!(
                "the stored value has schema version {schema}, which this cache does not know"
            )),
            Some(_) => {
                let body = bytes.get(PREFIX_BYTES..).unwrap_or(&[]);
                (self.decode_value)(body)
                    .or_else(|why| refused(format!("the stored value does not decode: {why}")))
            }
            None => refused(format!("the stored value of {} bytes lacks its prefix", bytes.len())),
        }
    }
}

fn not_encoded(what: &str, why: &str, bytes_max: usize) -> Error {
    if why.contains("limit") {
        return Error::new(
            ErrorKind::TooLarge,
            format!("{what} takes more than {bytes_max} bytes when encoded"),
        );
    }
    Error::new(ErrorKind::Encode, format!("{what} could not be encoded: {why}"))
}

/// The largest scratch buffer that a thread keeps.
const SCRATCH_BYTES_MAX: usize = 1 << 20;

thread_local! {
    /// Buffers for encoding, reused from write to write.
    static SCRATCH: Cell<(Vec<u8>, Vec<u8>)> = const { Cell::new((Vec::new(), Vec::new())) };
}

/// Runs `work` with two empty buffers of this thread.
pub(crate) fn with_scratch<T>(work: impl FnOnce(&mut Vec<u8>, &mut Vec<u8>) -> T) -> T {
    let (mut key, mut value) = SCRATCH.take();
    key.clear();
    value.clear();
    let result = work(&mut key, &mut value);
    if value.capacity() <= SCRATCH_BYTES_MAX {
        SCRATCH.set((key, value));
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_of_another_codec_schema_or_length_is_an_error_not_garbage() {
        let bincode = Coder::<u8, (u32, String)>::of::<Bincode>();
        let mut bytes = Vec::new();
        bincode.value(&(7, "x".into()), &mut bytes).unwrap();
        assert_eq!(bincode.decode(&bytes).unwrap(), (7, "x".to_string()));
        for (at, what) in [(0, "written by codec"), (1, "schema version")] {
            let mut other = bytes.clone();
            other[at] = 99;
            let error = bincode.decode(&other).expect_err(what);
            assert!(error.kind() == ErrorKind::Decode && error.to_string().contains(what), "{error}");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(bincode.decode(&longer).is_err(), "bytes left over");
        assert!(bincode.decode(&bytes[..bytes.len() - 1]).is_err(), "bytes missing");
        assert!(bincode.decode(&[]).is_err());
    }

    #[cfg(feature = "postcard")]
    #[test]
    fn the_codecs_do_not_read_each_other() {
        let (one, other) = (Coder::<u8, u64>::of::<Bincode>(), Coder::<u8, u64>::of::<Postcard>());
        let mut bytes = Vec::new();
        other.value(&7, &mut bytes).unwrap();
        assert_eq!(other.decode(&bytes).unwrap(), 7);
        assert!(one.decode(&bytes).is_err());
    }

    #[test]
    fn a_value_beyond_the_limit_is_too_large() {
        let coder = Coder::<Vec<u8>, u8>::of::<Bincode>();
        let error = coder.key(&vec![0; KEY_BYTES_MAX], &mut Vec::new()).expect_err("too large");
        assert_eq!(error.kind(), ErrorKind::TooLarge);
    }
}
