//! Identifiers: sequence numbers, epochs, identities, names and keys. Plain values; nothing here does I/O.

use std::borrow::Borrow;
use std::fmt;

use bytes::{Bytes, BytesMut};

use crate::error::{Error, ErrorKind};

/// The longest namespace name, in bytes.
pub const NAMESPACE_BYTES_MAX: usize = 255;
/// The longest stored key, namespace and separator included, in bytes.
pub const KEY_BYTES_MAX: usize = 32 * 1024;
/// The largest encoded value, in bytes.
pub const VALUE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The most bytes of a key that an error or a log line may show.
const KEY_SHOWN_BYTES_MAX: usize = 48;
const SEPARATOR: u8 = 0;
/// Suffixes of a namespace's name for the stored versions of its values, and for the lists of versions. No name can
/// hold an `@`, so neither can be mistaken for a value, nor a value for them.
const VERSION_MARK: &str = "@version";
const VERSION_LIST_MARK: &str = "@versions";

/// The sequence number of a record in its layer's one order, and the version of the value that the record wrote.
///
/// Zero stands for "before the first write". A number is never used twice.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct Seq(pub(crate) u64);

impl Seq {
    /// The number before the first write.
    pub const ZERO: Seq = Seq(0);

    /// Makes the sequence number with this value.
    #[must_use]
    pub const fn new(number: u64) -> Seq {
        Seq(number)
    }

    /// Returns it as a plain number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Returns the next number. 64 bits do not run out: a billion records a second last 584 years.
    #[must_use]
    pub fn next(self) -> Seq {
        Seq(self.0.saturating_add(1))
    }

    /// Returns the number before it; zero before the first.
    pub(crate) fn before(self) -> Seq {
        Seq(self.0.saturating_sub(1))
    }

    /// Returns the number `count` further on.
    #[must_use]
    pub fn plus(self, count: u64) -> Seq {
        Seq(self.0.saturating_add(count))
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The number of a tenure of a store's owner. A store refuses the writes of an older epoch.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct Epoch(pub(crate) u64);

impl Epoch {
    /// Makes the epoch with this number.
    #[must_use]
    pub const fn new(number: u64) -> Epoch {
        Epoch(number)
    }

    /// Returns it as a plain number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Returns the next epoch.
    pub(crate) fn next(self) -> Epoch {
        Epoch(self.0.saturating_add(1))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Defines identities of 16 random bytes, shown as hexadecimal digits.
macro_rules! random_ids {
    ($($(#[$doc:meta])+ $name:ident,)+) => {$(
        $(#[$doc])+
        #[derive(Clone, Copy, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
        pub struct $name(pub(crate) [u8; 16]);

        impl $name {
            /// Makes the identity with these bytes.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; 16]) -> $name {
                $name(bytes)
            }

            /// Returns its bytes.
            #[must_use]
            pub const fn to_bytes(self) -> [u8; 16] {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    )+};
}

random_ids! {
    /// The identity of a journal, drawn at random when the journal is created.
    JournalId,
    /// The identity of a tenure, drawn at random by the layer that claims the store. An epoch can be given twice, by a
    /// store that lost a claim; an identity cannot.
    TenureId,
}

/// A tenure: the time in which one opened layer owns a store.
///
/// The default stands for the time before the first claim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Tenure {
    /// Its number, greater than that of each tenure before it in the same history.
    pub epoch: Epoch,
    /// Its identity.
    pub id: TenureId,
}

impl fmt::Display for Tenure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (epoch {})", self.id, self.epoch)
    }
}

/// The name of a namespace: segments of `a-z A-Z 0-9 _ . -`, joined by `/`, none of them `.` or `..`.
///
/// A value of this type cannot hold a bad name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamespaceName(Box<str>);

impl NamespaceName {
    /// Checks `name` and wraps it.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidName`] if it is empty, longer than [`NAMESPACE_BYTES_MAX`], or has a segment that
    /// is empty, `.`, `..`, or holds another character.
    pub fn parse(name: &str) -> Result<NamespaceName, Error> {
        let refuse = |why: &str| {
            // Cut and escaped, because a name may come from a stranger and end in a log.
            let shown = escape_prefix(name.as_bytes());
            Err(Error::new(ErrorKind::InvalidName, format!("namespace name \"{shown}\": {why}")))
        };
        // First, so that no more than this is ever scanned or shown.
        if name.len() > NAMESPACE_BYTES_MAX {
            return refuse("longer than 255 bytes");
        }
        for segment in name.split('/') {
            if segment.is_empty() {
                return refuse("a segment is empty");
            }
            // A store may keep a namespace as a directory, which a name must not leave.
            if segment == "." || segment == ".." {
                return refuse("a segment is a relative path");
            }
            let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
            if !segment.chars().all(allowed) {
                return refuse("only a-z A-Z 0-9 _ . - and the separator / are allowed");
            }
        }
        Ok(NamespaceName(name.into()))
    }

    /// Makes a name that [`NamespaceName::parse`] refuses, for data of the layer's own.
    pub(crate) fn reserved(name: &'static str) -> NamespaceName {
        debug_assert!(NamespaceName::parse(name).is_err(), "no user can choose it");
        NamespaceName(name.into())
    }

    /// Returns the name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True if it is `other` or lies below it.
    #[must_use]
    pub fn is_within(&self, other: &NamespaceName) -> bool {
        let rest = self.0.strip_prefix(other.as_str());
        // "products2" does not lie below "products".
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// Iterates over the names above it and itself, from the top: `a`, `a/b`, `a/b/c`.
    pub fn path(&self) -> impl Iterator<Item = NamespaceName> + '_ {
        let ends = self.0.match_indices('/').map(|(at, _)| at).chain([self.0.len()]);
        // Cut at separators only, so each part is a sound name and needs no check.
        ends.filter_map(|end| self.0.get(..end).map(|name| NamespaceName(name.into())))
    }
}

/// Names compare and hash as their text.
impl Borrow<str> for NamespaceName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl serde::Serialize for NamespaceName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl fmt::Display for NamespaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A stored key: the namespace's name, a zero byte, and the encoded key, in one buffer. Cheap to clone.
///
/// Keys of one namespace lie next to each other in byte order, so a store can scan a namespace by prefix.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(Bytes);

impl Key {
    /// Joins a namespace and an encoded key.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`] if the whole is longer than [`KEY_BYTES_MAX`].
    pub fn new(namespace: &NamespaceName, key: &[u8]) -> Result<Key, Error> {
        let mut joined = Vec::with_capacity(namespace.as_str().len() + 1 + key.len());
        Key::write_prefix(namespace, &mut joined);
        joined.extend_from_slice(key);
        // On the whole, because the limit is that of a stored key.
        check_key_length(joined.len())?;
        Ok(Key(Bytes::from(joined)))
    }

    /// As [`Key::new`], in a part of a buffer that it shares with other keys.
    pub(crate) fn new_within(
        shared: &mut BytesMut,
        namespace: &NamespaceName,
        key: &[u8],
    ) -> Result<Key, Error> {
        // Checked before anything is appended: the buffer holds other keys already.
        check_key_length(namespace.as_str().len() + 1 + key.len())?;
        shared.extend_from_slice(namespace.as_str().as_bytes());
        shared.extend_from_slice(&[SEPARATOR]);
        shared.extend_from_slice(key);
        Ok(Key(shared.split().freeze()))
    }

    /// Appends the prefix of every key of `namespace`.
    pub(crate) fn write_prefix(namespace: &NamespaceName, out: &mut Vec<u8>) {
        out.extend_from_slice(namespace.as_str().as_bytes());
        out.push(SEPARATOR);
    }

    /// Wraps the bytes of a key, and checks their form.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`] or [`ErrorKind::InvalidName`] if they cannot be a key.
    pub fn from_bytes(bytes: Bytes) -> Result<Key, Error> {
        Key::check(&bytes)?;
        Ok(Key(bytes))
    }

    /// Checks that bytes can be a key.
    pub(crate) fn check(bytes: &[u8]) -> Result<(), Error> {
        check_key_length(bytes.len())?;
        // Bytes from a journal or a bus need not have been made by this crate.
        if !bytes.contains(&SEPARATOR) {
            let shown = escape_prefix(bytes);
            return Err(Error::new(ErrorKind::InvalidName, format!("key \"{shown}\" names no namespace")));
        }
        Ok(())
    }

    /// Returns the whole key, as a store keeps it.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the namespace's name. Empty only if the bytes are not UTF-8; every name is.
    #[must_use]
    pub fn namespace(&self) -> &str {
        let end = self.0.iter().position(|&byte| byte == SEPARATOR).unwrap_or(0);
        self.0.get(..end).and_then(|name| std::str::from_utf8(name).ok()).unwrap_or("")
    }

    /// Returns the encoded key within its namespace.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        let start = self.0.iter().position(|&byte| byte == SEPARATOR).map_or(0, |at| at + 1);
        self.0.get(start..).unwrap_or(&[])
    }

    /// Returns the key under which a version of this key's value is stored.
    pub(crate) fn version(&self, version: u64) -> Result<Key, Error> {
        self.with_suffix(VERSION_MARK, &version.to_le_bytes())
    }

    /// Returns the key under which the list of this key's versions is stored.
    pub(crate) fn version_list(&self) -> Result<Key, Error> {
        self.with_suffix(VERSION_LIST_MARK, &[])
    }

    /// Returns the kind of data that is stored under this key.
    pub(crate) fn stored_kind(&self) -> StoredKind {
        // No user's namespace holds an `@`, so a key of a cache never takes the first two ways.
        let namespace = self.namespace();
        if let Some(name) = namespace.strip_suffix(VERSION_MARK)
            && let Some((key, version)) = self.key().split_last_chunk::<8>()
        {
            return StoredKind::Version(Key::joined(&[name], &[key]), u64::from_le_bytes(*version));
        }
        if namespace.ends_with(VERSION_LIST_MARK) { StoredKind::VersionList } else { StoredKind::Value }
    }

    /// Returns a key in the namespace whose name has this suffix.
    fn with_suffix(&self, mark: &str, tail: &[u8]) -> Result<Key, Error> {
        let key = Key::joined(&[self.namespace(), mark], &[self.key(), tail]);
        // The suffix may bring a long key above the limit.
        check_key_length(key.0.len())?;
        Ok(key)
    }

    fn joined(namespace: &[&str], key: &[&[u8]]) -> Key {
        let mut bytes = namespace.concat().into_bytes();
        bytes.push(SEPARATOR);
        key.iter().for_each(|part| bytes.extend_from_slice(part));
        Key(Bytes::from(bytes))
    }

    /// The same key in a buffer of its own, so that it does not keep a larger one alive.
    #[must_use]
    pub(crate) fn detached(&self) -> Key {
        Key(Bytes::copy_from_slice(&self.0))
    }
}

/// Keys compare and hash as their bytes.
impl Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

/// The kind of data that is stored under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StoredKind {
    /// A value.
    Value,
    /// One version of the value of that key.
    Version(Key, u64),
    /// The list of a value's versions.
    VersionList,
}

impl fmt::Display for Key {
    /// Writes a bounded, escaped prefix: a key may be personal data, and it may be 32 KiB.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace(), escape_prefix(self.key()))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// Checks the length of a stored key in bytes.
pub(crate) fn check_key_length(length: usize) -> Result<(), Error> {
    if length <= KEY_BYTES_MAX {
        return Ok(());
    }
    Err(Error::new(ErrorKind::TooLarge, format!("a key of {length} bytes; the limit is {KEY_BYTES_MAX}")))
}

/// Returns at most [`KEY_SHOWN_BYTES_MAX`] bytes of `bytes`, printable, and marked where they were cut.
fn escape_prefix(bytes: &[u8]) -> String {
    let shown = bytes.get(..KEY_SHOWN_BYTES_MAX).unwrap_or(bytes);
    // Escaped, because a key may hold line breaks that would forge lines of a log.
    let mut text = shown.escape_ascii().to_string();
    if shown.len() < bytes.len() {
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_leave_its_directory() {
        for bad in ["", "/", "a/", "/a", "a//b", ".", "..", "a/../b", "a b", "a\0b", "ä", "a\\b"] {
            let error = NamespaceName::parse(bad).expect_err(bad);
            assert_eq!(error.kind(), ErrorKind::InvalidName, "{bad}");
        }
        assert!(NamespaceName::parse(&"n".repeat(256)).is_err());
        assert_eq!(NamespaceName::parse("products/eu-1.b_2").unwrap().as_str(), "products/eu-1.b_2");
    }

    #[test]
    fn a_name_lies_below_whole_segments_only() {
        let name = |name| NamespaceName::parse(name).unwrap();
        assert!(name("products/eu").is_within(&name("products")) && name("a").is_within(&name("a")));
        assert!(!name("products2").is_within(&name("products")) && !name("a").is_within(&name("a/b")));
        assert!(name("a/b/c").path().eq(["a", "a/b", "a/b/c"].map(name)));
    }

    #[test]
    fn a_key_shows_only_a_bounded_escaped_prefix() {
        let name = NamespaceName::parse("users").unwrap();
        let key = Key::new(&name, &[b'x', b'\n', 0].repeat(100)).unwrap();
        let shown = key.to_string();
        assert!(shown.starts_with("users/x\\n\\x00x"), "{shown}");
        assert!(shown.ends_with("...") && shown.len() < 250 && !shown.contains('\n'), "{shown}");
        assert_eq!(key.namespace(), "users");
        assert_eq!(key.key().len(), 300);
        assert!(Key::new(&name, &vec![0; KEY_BYTES_MAX]).is_err());
    }

    #[test]
    fn what_is_kept_beside_a_value_cannot_be_taken_for_one() {
        let name = NamespaceName::parse("a/b").unwrap();
        for bytes in [&b""[..], b"k", b"\0", b"@version\0\0\0\0\0\0\0\0", &[b'@'; 300]] {
            let key = Key::new(&name, bytes).unwrap();
            assert_eq!(key.stored_kind(), StoredKind::Value, "{key}");
            let version = key.version(u64::MAX - 7).unwrap();
            assert_eq!(version.stored_kind(), StoredKind::Version(key.clone(), u64::MAX - 7));
            assert_eq!(key.version_list().unwrap().stored_kind(), StoredKind::VersionList);
            assert!(NamespaceName::parse(version.namespace()).is_err(), "no cache can have it");
        }
        let longest = Key::new(&name, &vec![1; KEY_BYTES_MAX - 4]).unwrap();
        assert_eq!(longest.version(1).expect_err("too long").kind(), ErrorKind::TooLarge);
    }
}
