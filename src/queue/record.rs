//! One update as bytes inside a journal frame: an operation, a key and a value.
//!
//! Layout, little-endian: operation `u8`, flags `u8`, key length `u16`, key, value (the rest).

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::Key;
use crate::journal::frame::{FrameBody, FrameBuilder};

const HEADER_BYTES: usize = 4;
/// Set if every update of the key has to reach the store, not only the last one of a batch.
const FLAG_KEEP_EVERY: u8 = 1;

/// The operation of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Writes the value.
    Put,
    /// Removes the key.
    Remove,
    /// Replays the key's dead letters: sends them to the store again.
    Replay,
    /// Discards the key's dead letters.
    Discard,
    /// Notes that the key is written through under this number; changes nothing.
    Notice,
}

/// A decoded record; key and value are slices of the frame.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) operation: Operation,
    pub(crate) coalesce: bool,
    pub(crate) key: Key,
    pub(crate) value: Bytes,
}

/// A decoded record that borrows its key and value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RecordRef<'a> {
    pub(crate) operation: Operation,
    pub(crate) coalesce: bool,
    pub(crate) key: &'a [u8],
    pub(crate) value: &'a [u8],
}

impl Operation {
    fn is_update(self) -> bool {
        matches!(self, Operation::Put | Operation::Remove)
    }
}

impl Record {
    /// Returns the value that the store is to hold for the key; only for puts and removes.
    pub(crate) fn stored(&self) -> Option<Bytes> {
        (self.operation == Operation::Put).then(|| self.value.clone())
    }

    /// Returns true for a command to the dead-letter list, which updates no key itself.
    pub(crate) fn is_control(&self) -> bool {
        matches!(self.operation, Operation::Replay | Operation::Discard)
    }

    /// Returns true if this updates its key.
    pub(crate) fn is_update(&self) -> bool {
        self.operation.is_update()
    }

    /// Decodes a record that [`push`] wrote.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] if the bytes are no record.
    pub(crate) fn parse(bytes: &Bytes) -> Result<Record> {
        let RecordRef { operation, coalesce, key, value } = RecordRef::parse(bytes)?;
        let key = Key::from_bytes(bytes.slice_ref(key))?;
        Ok(Record { operation, coalesce, key, value: bytes.slice_ref(value) })
    }
}

impl<'a> RecordRef<'a> {
    /// Returns true if this updates its key.
    pub(crate) fn is_update(&self) -> bool {
        self.operation.is_update()
    }

    /// Decodes a record that [`push`] wrote, without checking its key.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] if the bytes are no record.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<RecordRef<'a>> {
        let damaged = |what: &str| {
            let context = format!("a journal record of {} bytes {what}", bytes.len());
            Error::new(ErrorKind::Damaged, context)
        };
        let Some(&[operation, flags, low, high]) = bytes.get(..HEADER_BYTES) else {
            return Err(damaged("is shorter than its header"));
        };
        let operation = match operation {
            1 => Operation::Put,
            2 => Operation::Remove,
            3 => Operation::Replay,
            4 => Operation::Discard,
            5 => Operation::Notice,
            // The frame's checksums hold, so a later version wrote it, or a journal that is used as a queue.
            _ => return Err(damaged("has an unknown operation")),
        };
        // A flag that is ignored could change the meaning of the record.
        if flags & !FLAG_KEEP_EVERY != 0 {
            return Err(damaged("has unknown flags"));
        }
        let key_bytes = usize::from(u16::from_le_bytes([low, high]));
        let behind = bytes.get(HEADER_BYTES..).and_then(|behind| behind.split_at_checked(key_bytes));
        let Some((key, value)) = behind else { return Err(damaged("is shorter than its key")) };
        Ok(RecordRef { operation, coalesce: flags & FLAG_KEEP_EVERY == 0, key, value })
    }
}

/// Appends a record to a frame under construction.
pub(crate) fn push(
    frame: &mut FrameBuilder,
    operation: Operation,
    coalesce: bool,
    key: &[u8],
    value: &[u8],
) -> Result<()> {
    let code = match operation {
        Operation::Put => 1,
        Operation::Remove => 2,
        Operation::Replay => 3,
        Operation::Discard => 4,
        Operation::Notice => 5,
    };
    let length = u16::try_from(key.len())
        .map_err(|_| Error::new(ErrorKind::TooLarge, format!("a key of {} bytes", key.len())))?;
    let [low, high] = length.to_le_bytes();
    let flags = if coalesce { 0 } else { FLAG_KEEP_EVERY };
    frame.push(&[&[code, flags, low, high], key, value])
}

/// Returns what the journal holds of a frame that is written through: a notice for each of its records.
pub(crate) fn notices_of(body: &FrameBody) -> Result<FrameBody> {
    let mut notices = FrameBuilder::new();
    for bytes in body.records() {
        let record = Record::parse(&bytes)?;
        push(&mut notices, Operation::Notice, true, record.key.as_bytes(), &[])?;
    }
    Ok(notices.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::NamespaceName;

    #[test]
    fn a_record_survives_its_encoding() {
        let key = Key::new(&NamespaceName::parse("n").unwrap(), b"k").unwrap();
        let mut frame = FrameBuilder::new();
        push(&mut frame, Operation::Put, false, key.as_bytes(), b"value").unwrap();
        push(&mut frame, Operation::Remove, true, key.as_bytes(), b"").unwrap();
        let body = frame.finish();
        let records: Vec<Record> = body.records().map(|bytes| Record::parse(&bytes).unwrap()).collect();
        assert_eq!((records[0].key.clone(), records[0].stored()), (key, Some(Bytes::from("value"))));
        assert!(!records[0].coalesce && records[1].coalesce);
        assert_eq!((records[1].operation, records[1].stored()), (Operation::Remove, None));
    }

    #[test]
    fn bytes_that_are_no_record_are_damage_not_a_panic() {
        for bad in
            [&b""[..], b"\x01", b"\x01\0\xff\xff", b"\x09\0\x02\0n\0", b"\x01\x80\x02\0n\0", b"\x01\0\x01\0n"]
        {
            assert!(Record::parse(&Bytes::copy_from_slice(bad)).is_err(), "{bad:?}");
        }
    }
}
