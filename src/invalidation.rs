//! The one list of what can become stale, and the token that makes each of it durable.
//!
//! Rules, events between processes, change streams and the layer's own calls all say it with [`Invalidation`], so a new
//! kind is added here, and the compiler names each place that has to know it.
//!
//! A token is an ordinary record in a namespace that no cache can have. It goes through the journal to the store like
//! every other record, so it is as durable as they are, and its sequence number tells when the invalidation happened.

use crate::error::Result;
use crate::ids::{Key, NamespaceName};

/// The namespace of all tokens. No cache can have this name.
const TOKENS: &str = "!tokens";
const NAMESPACE_TOKEN: u8 = 1;
const TAG_TOKEN: u8 = 3;
const SCHEMA_TOKEN: u8 = 4;
/// The format of a token's value. The rest is in its key and its sequence number.
const TOKEN_FORMAT: u8 = 1;

/// The longest name of a group, in bytes.
pub(crate) const GROUP_BYTES_MAX: usize = 255;

/// A set of entries that have become stale. Memory no longer serves older entries of it. Later versions may add kinds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Invalidation {
    /// One key.
    Key(Key),
    /// All keys of the namespace and of the namespaces below it.
    Namespace(NamespaceName),
    /// All entries with the tag. A group is a tag, too: the one named by [`Invalidation::group`].
    Tag(String),
    /// All keys of the namespace, whose values are written with this schema version from now on.
    Schema(NamespaceName, u8),
    /// All keys of all namespaces.
    Everything,
}

impl Invalidation {
    /// All entries of a group of a namespace, by the tag `namespace:group`.
    #[must_use]
    pub fn group(namespace: &NamespaceName, group: &str) -> Invalidation {
        Invalidation::Tag(group_tag(namespace, group))
    }

    /// The record that makes it durable; `None` for what has no token.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`](crate::ErrorKind::TooLarge) if the name is too long for a key.
    pub(crate) fn token(&self) -> Result<Option<(Key, Vec<u8>)>> {
        let (kind, name, value) = match self {
            Invalidation::Namespace(name) => (NAMESPACE_TOKEN, name.as_str(), vec![TOKEN_FORMAT]),
            Invalidation::Tag(tag) => (TAG_TOKEN, tag.as_str(), vec![TOKEN_FORMAT]),
            Invalidation::Schema(name, schema) => (SCHEMA_TOKEN, name.as_str(), vec![TOKEN_FORMAT, *schema]),
            Invalidation::Key(_) | Invalidation::Everything => return Ok(None),
        };
        let key = Key::new(&NamespaceName::reserved(TOKENS), &[&[kind], name.as_bytes()].concat())?;
        Ok(Some((key, value)))
    }

    /// Reads a token back; `None` if the key is not one, or one of an unknown kind.
    pub(crate) fn of_token(key: &Key, value: &[u8]) -> Option<Invalidation> {
        if key.namespace() != TOKENS {
            return None;
        }
        let (&kind, name) = key.key().split_first()?;
        let name = std::str::from_utf8(name).ok()?;
        let namespace = || NamespaceName::parse(name).ok();
        match (kind, value.get(1)) {
            (NAMESPACE_TOKEN, _) => namespace().map(Invalidation::Namespace),
            (TAG_TOKEN, _) => Some(Invalidation::Tag(name.to_owned())),
            (SCHEMA_TOKEN, Some(schema)) => namespace().map(|name| Invalidation::Schema(name, *schema)),
            // A notice of a write-through holds no value, so the schema is unknown; its keys are stale all the same.
            (SCHEMA_TOKEN, None) => namespace().map(Invalidation::Namespace),
            _ => None,
        }
    }
}

/// The tag that all entries of a group have. A namespace's name holds no colon, so two groups never share one.
pub(crate) fn group_tag(namespace: &NamespaceName, group: &str) -> String {
    format!("{}:{group}", namespace.as_str())
}

/// Returns true if this is the value of a token that names no schema, as this version writes it.
pub(crate) fn is_token_value(value: &[u8]) -> bool {
    value == [TOKEN_FORMAT]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_says_what_it_was_made_of() {
        let name = NamespaceName::parse("shop/eu").unwrap();
        let with_tokens = [
            Invalidation::Namespace(name.clone()),
            Invalidation::Tag("sale".to_owned()),
            Invalidation::group(&name, "tenant-7"),
            Invalidation::Schema(name.clone(), 3),
        ];
        for what in with_tokens {
            let (key, value) = what.token().unwrap().expect("it has a token");
            assert_eq!(is_token_value(&value), !matches!(what, Invalidation::Schema(..)));
            assert_eq!(Invalidation::of_token(&key, &value), Some(what));
        }
        let key = Key::new(&name, b"k").unwrap();
        assert_eq!(Invalidation::of_token(&key, &[TOKEN_FORMAT]), None);
        for without in [Invalidation::Key(key), Invalidation::Everything] {
            assert!(without.token().unwrap().is_none());
        }
    }
}
