//! The dead-letter list, which is all that is left of records that the store has rejected: it is whole, or it is told.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use forebay::disk::{CrashPolicy, Disk, SimDisk};
use forebay::journal::Journal;
use forebay::{Durability, ErrorKind, JournalOptions, WritePolicy};

use super::{Tally, frames_of};
use crate::history_store::HistoryStore;
use crate::layer_run::{DISCARDED, Kind, PLAIN, REPLAYED, Run, Shared, key_of};
use crate::support::watchdog::within;

const LETTERS: &str = "/journal/dead-letters";

/// A layer with three letters, closed.
struct Sample {
    disk: SimDisk,
    store: HistoryStore,
    kind: Kind,
    history: Shared,
}

impl Sample {
    fn make() -> Sample {
        let (disk, store, history) = (SimDisk::new(), HistoryStore::default(), Shared::default());
        let kind = Kind { durability: Durability::Sync, recycle: false, zero_fill: false, spares_max: 0 };
        store.reject([key_of(REPLAYED), key_of(DISCARDED)]);
        let run = Run::open(&disk, &store, &kind, &history).unwrap();
        for (serial, place) in (1..).zip([REPLAYED, DISCARDED, REPLAYED]) {
            run.write(vec![(place, Some(serial))], 100, WritePolicy::Behind).unwrap();
        }
        run.write(vec![((PLAIN, 0), Some(4))], 100, WritePolicy::Behind).unwrap();
        run.close().unwrap();
        Sample { disk, store, kind, history }
    }

    /// Returns the number of letters that a layer on this disk lists.
    fn open(&self, disk: &SimDisk) -> Result<usize, forebay::Error> {
        let run = Run::open(disk, &self.store.copy(), &self.kind, &self.history)?;
        Ok(run.bay.dead_letters().list()?.len())
    }

    fn copy(&self) -> SimDisk {
        self.disk.crash(CrashPolicy::ProcessKilled)
    }

    /// The one file with letters and what it holds.
    fn file(&self) -> (String, Vec<u8>) {
        let dir = Path::new(LETTERS);
        let name = self.disk.list(dir).unwrap().into_iter().find(|name| name.starts_with('0')).unwrap();
        let file = self.disk.open(&dir.join(&name)).unwrap();
        let mut content = vec![0; file.len().unwrap() as usize];
        file.read_at(&mut content, 0).unwrap();
        (name, content)
    }
}

#[test]
fn damaged_dead_letters() {
    let began = Instant::now();
    let tally = within("dead letters", move || {
        let (sample, mut tally) = (Sample::make(), Tally::default());
        assert_eq!(sample.open(&sample.copy()).unwrap(), 3);
        let (name, content) = sample.file();
        let used = frames_of(&content).last().unwrap().bytes.end;
        let path = Path::new(LETTERS).join(&name);
        // The header's fields, a part of its padding, and every byte of the frames.
        for at in (0..96).chain((96..4096).step_by(200)).chain(4096..used + 8) {
            let disk = sample.copy();
            disk.overwrite(&path, at as u64, &[content[at] ^ (1 << (at % 8))]).unwrap();
            tally.tried += 1;
            match sample.open(&disk) {
                Ok(letters) => {
                    assert_eq!(letters, 3, "byte {at}: a letter is missing in silence");
                    tally.whole += 1;
                }
                Err(error) => {
                    let text = format!("{error:#}");
                    let named = text.contains(&format!("{LETTERS}/{name}"));
                    let placed = error.kind() == ErrorKind::UnknownFormat || text.contains("at byte ");
                    assert!(named && placed, "byte {at}: {error:?}");
                    tally.told += 1;
                }
            }
        }
        tally
    });
    tally.print("dead letters, every byte flipped by one bit", began);
}

/// A record of the list that is sound in its frame and nonsense in itself was told as "a record of the dead-letter
/// list has an unknown kind", and nobody could know which file to look at.
#[test]
fn damage_under_the_checksum_of_a_dead_letter() {
    within("nonsense letters", || {
        let sample = Sample::make();
        let lengths = [[0xff; 4], [0, 0, 0, 0x7f], [200, 0, 0, 0]];
        let mut nonsense =
            vec![vec![], vec![0], vec![9], vec![1], vec![2, 0, 0], [&[1; 9][..], &[3, 0]].concat()];
        for length in lengths {
            // A letter, its reason and its records; a resolution and its letters.
            nonsense.push([&[1][..], &[7; 8], &length].concat());
            nonsense.push([&[1][..], &[7; 8], &[0; 4], &length].concat());
            nonsense.push([&[2][..], &[7; 8], &length].concat());
        }
        for record in nonsense {
            let disk = sample.copy();
            let shared: Arc<dyn Disk> = Arc::new(disk.clone());
            let mut options = JournalOptions::default();
            (options.segment_bytes, options.spares_max) = (1 << 20, 0);
            let queue = Journal::open_on(shared, LETTERS, options, Durability::Sync).unwrap();
            queue.append(&[&record]).unwrap();
            queue.close().unwrap();
            let error = sample.open(&disk).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Damaged, "{error:?}");
            let text = format!("{error:#}");
            assert!(
                text.contains(LETTERS) && text.contains(".seg: damaged at byte 4096"),
                "{record:?}: {text}"
            );
        }
    });
}
