//! Codecs: any bytes decode to a value that encodes to the same bytes, or to an error; so do a layer's records.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use forebay::disk::{Disk, SimDisk};
use forebay::inspect;
use forebay::journal::Journal;
use forebay::{Bincode, Codec, Durability, JournalOptions, Key, Postcard, Seq};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

const BYTES_MAX: usize = 1 << 20;

/// Something of each kind that values are made of.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Everything {
    number: u64,
    flag: bool,
    text: String,
    list: Vec<Option<i16>>,
    map: BTreeMap<u8, String>,
    choice: Choice,
    letter: char,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Choice {
    Nothing,
    One(u32),
    Named { inner: Box<Option<Choice>> },
}

/// Input: one byte that says what is decoded, then the bytes.
pub fn codec(data: &[u8]) {
    let Some((what, bytes)) = data.split_first() else { return };
    match what % 4 {
        0 => canonical::<Bincode, Everything>(bytes),
        1 => canonical::<Bincode, Vec<(String, Vec<u8>)>>(bytes),
        2 => decodes::<Postcard, Everything>(bytes),
        _ => record(bytes),
    }
}

/// bincode with fixed-width integers has one encoding for each value.
fn canonical<C: Codec, T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug + 'static>(
    bytes: &[u8],
) {
    if let Ok(value) = C::decode::<T>(bytes) {
        let mut again = Vec::new();
        C::encode(&value, BYTES_MAX, &mut again).expect("what was decoded can be encoded");
        assert_eq!(again, bytes, "{value:?}");
    }
}

/// Variable-width integers may be padded, so only the value has to come back.
fn decodes<C: Codec, T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug + 'static>(bytes: &[u8]) {
    if let Ok(value) = C::decode::<T>(bytes) {
        let mut again = Vec::new();
        C::encode(&value, BYTES_MAX, &mut again).expect("what was decoded can be encoded");
        assert_eq!(C::decode::<T>(&again).expect("what was encoded can be decoded"), value);
    }
}

/// A journal's record, and a key, of any bytes.
fn record(bytes: &[u8]) {
    if let Ok(key) = Key::from_bytes(Bytes::copy_from_slice(bytes)) {
        let shown = key.to_string();
        assert!(shown.len() <= bytes.len() + 256, "a key is shown bounded");
        assert!(key.namespace().len() + key.key().len() < bytes.len() + 1);
    }
    let mut options = JournalOptions::default();
    options.segment_bytes = 64 << 10;
    options.zero_fill = false;
    options.spares_max = 0;
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::new());
    let journal = Journal::open_on(disk, "/journal", options, Durability::Sync).expect("a new one");
    journal.append(&[bytes]).expect("there is room");
    let mut reader = journal.read_after(Seq::ZERO);
    let frame = reader.next_frame().expect("it can be read").expect("it is there");
    if let Ok(records) = inspect::records_of(&frame) {
        let record = records.first().expect("a frame has a record");
        let told = 4 + record.key.as_bytes().len() as u64 + record.value_bytes;
        assert_eq!((records.len(), told), (1, bytes.len() as u64), "every byte has its meaning");
    }
}
