//! The entries of a stream with their numbers, and the position of a listener.

use std::fmt;

use bytes::Bytes;

use crate::bus::contract::Position;
use crate::error::{Error, ErrorKind, Result};

/// The names of the fields of an entry, in the order in which the script writes them. They are part of the format.
pub(super) const INCARNATION_FIELD: &str = "in";
pub(super) const NUMBER_FIELD: &str = "no";
pub(super) const BODY_FIELD: &str = "body";

/// The ID that Redis gave an entry: milliseconds and a counter.
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

/// The number of an entry, and the incarnation of the channel in which it was counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct EntryNumber {
    pub(super) incarnation: String,
    pub(super) number: u64,
}

impl EntryNumber {
    pub(super) fn next(&self) -> EntryNumber {
        EntryNumber { incarnation: self.incarnation.clone(), number: self.number.saturating_add(1) }
    }

    pub(super) fn before(&self) -> EntryNumber {
        EntryNumber { incarnation: self.incarnation.clone(), number: self.number.saturating_sub(1) }
    }
}

/// The position of a listener, behind an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct EntryPosition {
    pub(super) mark: EntryNumber,
    /// The ID behind which to read. Zero is before all entries.
    pub(super) id: EntryId,
}

impl EntryPosition {
    /// Parses the text of [`EntryPosition::position`].
    pub(super) fn parse(position: &Position) -> Result<EntryPosition> {
        let parsed = || {
            let mut parts = position.as_str().split(':');
            let (incarnation, number, id) = (parts.next()?, parts.next()?, parts.next()?);
            // The position of another bus may have three parts as well.
            let hexadecimal = incarnation.len() == 16 && incarnation.chars().all(|c| c.is_ascii_hexdigit());
            let mark = EntryNumber { incarnation: incarnation.into(), number: number.parse().ok()? };
            let place = EntryPosition { mark, id: EntryId::parse(id)? };
            // Text with more parts is a position of another bus.
            (hexadecimal && parts.next().is_none()).then_some(place)
        };
        parsed().ok_or_else(|| {
            let shown: String = position.as_str().chars().take(80).flat_map(char::escape_default).collect();
            Error::new(ErrorKind::BusFailed, format!("a redis bus has no position \"{shown}\""))
        })
    }

    /// Returns the text of the position: incarnation, number and ID.
    pub(super) fn position(&self) -> Position {
        Position::new(format!("{}:{}:{}", self.mark.incarnation, self.mark.number, self.id))
    }
}

/// An entry and the position behind it.
pub(super) struct ChannelEntry {
    pub(super) place: EntryPosition,
    pub(super) body: Bytes,
}

impl ChannelEntry {
    /// Parses ID and fields; `None` if the entry was not written by this bus.
    pub(super) fn of(id: &str, fields: &[Bytes]) -> Option<ChannelEntry> {
        // The order is part of the format, so an entry with other fields was written by another program.
        let [incarnation_name, incarnation, number_name, number, body_name, body] = fields else {
            return None;
        };
        let named =
            incarnation_name == INCARNATION_FIELD && number_name == NUMBER_FIELD && body_name == BODY_FIELD;
        let incarnation = std::str::from_utf8(incarnation).ok().filter(|_| named)?.into();
        let number = std::str::from_utf8(number).ok()?.parse().ok()?;
        let place = EntryPosition { mark: EntryNumber { incarnation, number }, id: EntryId::parse(id)? };
        Some(ChannelEntry { place, body: body.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_read_as_it_was_written_and_nothing_else_is() {
        let mark = EntryNumber { incarnation: "00ff00ff00ff00ff".into(), number: 17 };
        let place = EntryPosition { mark, id: EntryId(1_700_000_000_000, 3) };
        assert_eq!(place.position().as_str(), "00ff00ff00ff00ff:17:1700000000000-3");
        assert_eq!(EntryPosition::parse(&place.position()).unwrap(), place);
        let bad = [
            "",
            "17",
            "00ff00ff00ff00ff:17",
            "00ff00ff00ff00ff:17:1-2:",
            "00ff:17:1-2",
            "00ff00ff00ff00ff:17:1",
        ];
        for bad in bad {
            let error = EntryPosition::parse(&Position::new(bad)).expect_err(bad);
            assert_eq!(error.kind(), ErrorKind::BusFailed);
        }
        assert!(EntryId(2, 0) > EntryId(1, 9) && EntryId(1, 10) > EntryId(1, 9));
    }

    #[test]
    fn only_an_entry_of_this_bus_is_one() {
        let fields = |fields: &[&'static str]| -> Vec<Bytes> {
            fields.iter().map(|field| Bytes::from_static(field.as_bytes())).collect()
        };
        let entry = ChannelEntry::of("5-1", &fields(&["in", "ab", "no", "3", "body", "b"])).unwrap();
        assert!(entry.place.mark.number == 3 && entry.place.id == EntryId(5, 1) && entry.body == "b");
        for bad in [
            vec![],
            vec!["a", "b"],
            vec!["in", "ab", "no", "x", "body", "b"],
            vec!["in", "ab", "no", "3", "c", "b"],
        ] {
            assert!(ChannelEntry::of("5-1", &fields(&bad)).is_none());
        }
    }
}
