//! The corpus that is committed: a few small inputs for each target, made here so that anybody can make them again.

use std::path::Path;
use std::sync::Arc;

use forebay::disk::{Disk, SimDisk};
use forebay::journal::Journal;
use forebay::{Bincode, Codec, Durability, JournalOptions, Postcard};

/// The inputs of a target by name.
///
/// # Panics
/// If a journal in memory cannot be written.
#[must_use]
pub fn of(target: &str) -> Vec<(String, Vec<u8>)> {
    let named = |(number, bytes): (usize, Vec<u8>)| (format!("seed-{number}"), bytes);
    let inputs = match target {
        "frames" => frames(),
        "recovery" => recovery(),
        "codec" => codec(),
        _ => options(),
    };
    inputs.into_iter().enumerate().map(named).collect()
}

/// One sound frame; several; and each of the fields wrong in turn.
fn frames() -> Vec<Vec<u8>> {
    let frame = |how: u8, body: &[u8]| {
        let mut bytes = vec![how, body.len() as u8, 1, 1, 1, 100, 0, 0];
        bytes.extend_from_slice(&[0xff; 16]);
        bytes.extend_from_slice(body);
        bytes
    };
    let sound = frame(0, b"a record");
    let mut inputs = vec![sound.clone(), sound.repeat(3)];
    for how in [1, 2, 4, 8, 16, 32, 64, 0x82, 0x84, 0x88, 0x90, 0xa0] {
        inputs.push([sound.clone(), frame(how, b"another"), sound.clone()].concat());
    }
    inputs
}

/// A journal of two segments, whole, cut, and with each a byte changed; and what is none at all.
fn recovery() -> Vec<Vec<u8>> {
    let disk = SimDisk::new();
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let mut options = JournalOptions::default();
    options.segment_bytes = 64 << 10;
    options.zero_fill = false;
    options.spares_max = 0;
    for _ in 0..2 {
        let journal = Journal::open_on(Arc::clone(&shared), "/journal", options.clone(), Durability::Sync)
            .expect("a journal");
        journal.append_batch([b"one".as_slice(), b"two"]).expect("room");
        journal.append(&[b"three"]).expect("room");
        journal.close().expect("a clean end");
    }
    let mut files: Vec<(u8, Vec<u8>)> = Vec::new();
    for number in 1..=2 {
        let file = disk.open(&Path::new("/journal").join(format!("{number:020}.seg"))).expect("a segment");
        let mut bytes = vec![0; usize::try_from(file.len().expect("a length")).expect("small")];
        file.read_at(&mut bytes, 0).expect("readable");
        files.push((number, bytes));
    }
    let pack = |files: &[(u8, Vec<u8>)]| {
        let mut packed = Vec::new();
        for (name, bytes) in files {
            packed.push(*name);
            packed.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
            packed.extend_from_slice(bytes);
        }
        packed
    };
    let mut inputs = vec![pack(&files), pack(&files[..1]), pack(&files[1..]), b"nothing".to_vec()];
    for (file, at) in [(0, 9), (0, 60), (0, 4100), (0, 4160), (1, 70), (1, 4100), (1, 4130)] {
        let mut changed = files.clone();
        changed[file].1[at] ^= 0x11;
        inputs.push(pack(&changed));
        changed[file].0 |= 0x40;
        inputs.push(pack(&changed));
    }
    for spare in [0x31, 0x39] {
        inputs.push(pack(&[files[0].clone(), (spare, vec![1; 10])]));
    }
    inputs
}

fn codec() -> Vec<Vec<u8>> {
    let mut bincode = vec![1];
    Bincode::encode(&vec![("key".to_owned(), vec![1_u8, 2, 3])], 1 << 10, &mut bincode).expect("small");
    let mut everything = vec![0];
    let value = (7_u64, true, "text", vec![Some(3_i16), None], [(1_u8, "one")].as_slice(), 1_u32, 9_u32, 'x');
    // The same bytes as the target's struct: fields in order, a map as its length and pairs, a variant by number.
    Bincode::encode(&value, 1 << 10, &mut everything).expect("small");
    let mut postcard = vec![2];
    Postcard::encode(&value, 1 << 10, &mut postcard).expect("small");
    let record = [&[3, 1, 0, 4, 0][..], b"ns\0kvalue"].concat();
    let huge = [&[1][..], &u64::MAX.to_le_bytes()].concat();
    vec![bincode, everything, postcard, record, huge, vec![3, 9, 9], vec![3]]
}

fn options() -> Vec<Vec<u8>> {
    let numbers =
        |numbers: &[u64]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
    vec![
        vec![4, 0],
        [&[0x3f, 0][..], &numbers(&[64 << 10, 1])].concat(),
        [&[0x3f, 0][..], &numbers(&[1, 0])].concat(),
        [&[4, 0][..], &numbers(&[64 << 10, 0, u64::MAX, u64::MAX, 0, 0, 0, 0])].concat(),
        [&[0x08, 0][..], &numbers(&[64 << 10, 0])].concat(),
        [&[4, 0][..], &numbers(&[64 << 10, 0, 1 << 30, 1 << 20, 0, 10, 1 << 20, 10, 0, 1, 1, 1, 0]), b"a/b"]
            .concat(),
        [&[4, 0][..], &numbers(&[64 << 10, 0, 1 << 30, 1 << 20, 0, 10, 1 << 20, 10, 0, 1, 1, 1, 0]), b"../x"]
            .concat(),
    ]
}
