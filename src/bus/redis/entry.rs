//! What an entry of a stream says of itself, and a listener's place among the entries.

use std::fmt;

use bytes::Bytes;

use crate::bus::contract::Position;
use crate::error::{Error, ErrorKind, Result};

/// The names of an entry's fields, which the script writes in this order. They are part of the format.
pub(super) const INCARNATION_FIELD: &str = "in";
pub(super) const NUMBER_FIELD: &str = "no";
pub(super) const BODY_FIELD: &str = "body";

/// The name that Redis gave an entry: milliseconds and a counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct EntryId(u64, u64);

impl EntryId {
    pub(super) fn parse(text: &str) -> Option<EntryId> {
        let (milliseconds, counter) = text.split_once('-')?;
        Some(EntryId(milliseconds.parse().ok()?, counter.parse().ok()?))
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0, self.1)
    }
}

/// Which entry of a channel: a number, and the incarnation that counts it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) incarnation: String,
    pub(super) number: u64,
}

impl Mark {
    pub(super) fn next(&self) -> Mark {
        Mark { incarnation: self.incarnation.clone(), number: self.number.saturating_add(1) }
    }

    pub(super) fn before(&self) -> Mark {
        Mark { incarnation: self.incarnation.clone(), number: self.number.saturating_sub(1) }
    }
}

/// Behind which entry a listener stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) mark: Mark,
    /// Where to read on. Zero stands before all entries.
    pub(super) id: EntryId,
}

impl Place {
    /// Reads what [`Place::position`] wrote.
    pub(super) fn parse(position: &Position) -> Result<Place> {
        let parsed = || {
            let mut parts = position.as_str().split(':');
            let (incarnation, number, id) = (parts.next()?, parts.next()?, parts.next()?);
            let hexadecimal = incarnation.len() == 16 && incarnation.chars().all(|c| c.is_ascii_hexdigit());
            let mark = Mark { incarnation: incarnation.into(), number: number.parse().ok()? };
            let place = Place { mark, id: EntryId::parse(id)? };
            (hexadecimal && parts.next().is_none()).then_some(place)
        };
        parsed().ok_or_else(|| {
            let shown: String = position.as_str().chars().take(80).flat_map(char::escape_default).collect();
            Error::new(ErrorKind::BusFailed, format!("a redis bus has no position \"{shown}\""))
        })
    }

    /// What the bus calls it: the incarnation, the number and the entry's name.
    pub(super) fn position(&self) -> Position {
        Position::new(format!("{}:{}:{}", self.mark.incarnation, self.mark.number, self.id))
    }
}

/// An entry as it was read.
pub(super) struct Entry {
    pub(super) place: Place,
    pub(super) body: Bytes,
}

impl Entry {
    /// Of its name and its fields; `None` if it is not of this bus.
    pub(super) fn of(id: &str, fields: &[Bytes]) -> Option<Entry> {
        let [incarnation_name, incarnation, number_name, number, body_name, body] = fields else {
            return None;
        };
        let named =
            incarnation_name == INCARNATION_FIELD && number_name == NUMBER_FIELD && body_name == BODY_FIELD;
        let incarnation = std::str::from_utf8(incarnation).ok().filter(|_| named)?.into();
        let number = std::str::from_utf8(number).ok()?.parse().ok()?;
        let place = Place { mark: Mark { incarnation, number }, id: EntryId::parse(id)? };
        Some(Entry { place, body: body.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_read_as_it_was_written_and_nothing_else_is() {
        let mark = Mark { incarnation: "00ff00ff00ff00ff".into(), number: 17 };
        let place = Place { mark, id: EntryId(1_700_000_000_000, 3) };
        assert_eq!(place.position().as_str(), "00ff00ff00ff00ff:17:1700000000000-3");
        assert_eq!(Place::parse(&place.position()).unwrap(), place);
        let bad = [
            "",
            "17",
            "00ff00ff00ff00ff:17",
            "00ff00ff00ff00ff:17:1-2:",
            "00ff:17:1-2",
            "00ff00ff00ff00ff:17:1",
        ];
        for bad in bad {
            let error = Place::parse(&Position::new(bad)).expect_err(bad);
            assert_eq!(error.kind(), ErrorKind::BusFailed);
        }
        assert!(EntryId(2, 0) > EntryId(1, 9) && EntryId(1, 10) > EntryId(1, 9));
    }

    #[test]
    fn only_an_entry_of_this_bus_is_one() {
        let fields = |fields: &[&'static str]| -> Vec<Bytes> {
            fields.iter().map(|field| Bytes::from_static(field.as_bytes())).collect()
        };
        let entry = Entry::of("5-1", &fields(&["in", "ab", "no", "3", "body", "b"])).unwrap();
        assert!(entry.place.mark.number == 3 && entry.place.id == EntryId(5, 1) && entry.body == "b");
        for bad in [
            vec![],
            vec!["a", "b"],
            vec!["in", "ab", "no", "x", "body", "b"],
            vec!["in", "ab", "no", "3", "c", "b"],
        ] {
            assert!(Entry::of("5-1", &fields(&bad)).is_none());
        }
    }
}
