//! Frames that are not what was written, under checksums that are right: lengths that lie, and bodies exchanged.

use std::path::Path;

use forebay::disk::CrashPolicy;

use super::{OPENING_BYTES_MAX, sweep, u32_at};
use crate::ALLOCATOR;
use crate::journal_run::{self, DIR};
use crate::support::child::alone;

/// Lengths and counts that lie under good checksums: whoever wrote them, they are checked before they are believed.
#[test]
fn lengths_that_lie_under_good_checksums() {
    alone(module_path!(), "lengths_that_lie_under_good_checksums", || {
        sweep("lengths that lie", |samples, tally| {
            for sample in samples {
                for (name, frames) in &sample.frames {
                    for frame in frames {
                        let at = frame.bytes.start;
                        for (field, value) in [
                            (4, 0x7fff_ffff_u32),
                            (4, u32::MAX),
                            (4, 1 << 28),
                            (4, 70_000),
                            (12, u32::MAX),
                            (12, 0),
                            (12, 1 << 20),
                        ] {
                            let mut head = sample.files[name][at..at + 56].to_vec();
                            head[field..field + 4].copy_from_slice(&value.to_le_bytes());
                            let crc = crc32c::crc32c(&head[4..56]);
                            head[..4].copy_from_slice(&crc.to_le_bytes());
                            let disk = sample.disk.crash(CrashPolicy::ProcessKilled);
                            disk.overwrite(&Path::new(DIR).join(name), at as u64, &head).unwrap();
                            tally.tried += 1;
                            ALLOCATOR.reset_peak_usage();
                            let start = ALLOCATOR.current_usage();
                            let read = journal_run::open(&disk, &sample.options)
                                .map_err(|error| format!("{error:?}"))
                                .and_then(|opened| {
                                    sample
                                        .history
                                        .unpromised()
                                        .verify(&opened, true)
                                        .map(|()| opened.last.get())
                                });
                            let needed = ALLOCATOR.peak_usage().saturating_sub(start);
                            assert!(
                                needed < OPENING_BYTES_MAX,
                                "{name} at {at}: {needed} bytes for a length that lies"
                            );
                            match read {
                                Ok(last) if last == sample.all() => tally.whole += 1,
                                Ok(last) => {
                                    assert!(
                                        last >= sample.least(name, &frame.bytes),
                                        "{name} at {at}: ends at {last}"
                                    );
                                    tally.cut += 1;
                                }
                                Err(_) => tally.told += 1,
                            }
                        }
                    }
                }
            }
        });
    });
}

/// A frame with another body under good checksums is what a lost write leaves of a file: sound in itself, and not
/// what the next segment's header says of it.
#[test]
fn other_sound_frames_in_a_sealed_segment() {
    alone(module_path!(), "other_sound_frames_in_a_sealed_segment", || {
        sweep("sealed frames exchanged", |samples, tally| {
            for sample in samples {
                for (name, frames) in sample.frames.iter().filter(|(name, _)| *name != sample.last_name()) {
                    for frame in frames.iter().filter(|frame| frame.bytes.len() > 64) {
                        let mut bytes = sample.files[name][frame.bytes.clone()].to_vec();
                        let body = 56..56 + u32_at(&bytes, 4) as usize;
                        bytes[body.end - 1] ^= 1;
                        let crc = crc32c::crc32c(&bytes[body]);
                        bytes[8..12].copy_from_slice(&crc.to_le_bytes());
                        let crc = crc32c::crc32c(&bytes[4..56]);
                        bytes[..4].copy_from_slice(&crc.to_le_bytes());
                        sample.with(name, frame.bytes.start, &bytes, tally);
                    }
                }
            }
        });
    });
}
