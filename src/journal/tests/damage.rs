//! Damage is found and reported, a torn tail is cut, and nothing else changes.

use super::*;
use crate::journal::frame::FrameHeader;

/// Three segments, because each open begins one: records 1 to 6, 7 to 9, and 10 to 12, closed cleanly.
pub(super) fn closed_journal() -> SimDisk {
    let disk = SimDisk::new();
    let mut opened = open(&disk, &growing()).unwrap();
    for first in [1, 4, 7, 10] {
        append(&mut opened.writer, &[frame(first, 2)]);
        opened.writer.sync().unwrap();
        append(&mut opened.writer, &[frame(first + 2, 1)]);
        if first == 4 || first == 7 {
            opened.writer.sync().unwrap();
            drop(opened);
            opened = open(&disk, &growing()).unwrap();
        }
    }
    opened.writer.close().unwrap();
    disk
}

/// Gives the first frame of a segment another body under good checksums, as a lost write would leave it.
pub(super) fn give_another_sound_body(disk: &SimDisk, name: &str) {
    let mut content = disk.content(name);
    let (header, _) = FrameHeader::decode(&content[4096..]).unwrap();
    let body = 4096 + 56..4096 + 56 + header.body_len as usize;
    content[body.end - 1] ^= 1;
    let header = FrameHeader { body_crc: crc32c::crc32c(&content[body.clone()]), ..header };
    let mut head = Vec::new();
    header.encode(&mut head);
    content[4096..body.start].copy_from_slice(&head);
    disk.put(name, content);
}

pub(super) fn image_of(files: &Files) -> SimDisk {
    let disk = SimDisk::new();
    for (name, content) in files {
        disk.put(name, content.clone());
    }
    disk
}

/// Opens what was tampered with: an error that is one of ours and changed nothing, or a dense prefix.
fn open_tampered(files: &Files, what: &str) -> Result<u64> {
    let disk = image_of(files);
    match open(&disk, &growing()) {
        Ok(opened) => Ok(assert_dense(&opened)),
        Err(error) => {
            let expected = matches!(error.kind(), ErrorKind::Damaged | ErrorKind::UnknownFormat);
            assert!(expected, "{what}: {error:?}");
            assert!(format!("{error:#}").contains(".seg"), "{what}: {error}");
            assert_eq!(&disk.image(), files, "{what}: changed although the open failed");
            Err(error)
        }
    }
}

#[test]
fn every_flipped_byte_yields_everything_or_an_error() {
    let disk = closed_journal();
    let mut files = disk.image();
    assert_eq!(open_tampered(&files, "untouched").unwrap(), 12);
    let names: Vec<String> = files.keys().cloned().collect();
    assert_eq!(names.len(), 3);
    for name in names {
        for at in 0..files[&name].len() {
            files.get_mut(&name).unwrap()[at] ^= 0x40;
            // After a clean close no record at all may be missing: padding and the promise may be wrong.
            if let Ok(last) = open_tampered(&files, &format!("{name} at {at}")) {
                assert_eq!(last, 12, "{name} at {at}");
            }
            files.get_mut(&name).unwrap()[at] ^= 0x40;
        }
    }
}

#[test]
fn every_truncation_of_the_last_segment_reopens_to_a_prefix() {
    let disk = SimDisk::new();
    let mut opened = open(&disk, &growing()).unwrap();
    for first in 1..=6 {
        append(&mut opened.writer, &[frame(first, 1)]);
    }
    drop(opened);
    let (name, mut files) = (segment_name(1), disk.image());
    let mut last = 6;
    while !files[&name].is_empty() {
        files.get_mut(&name).unwrap().pop();
        let header_is_whole = files[&name].len() >= 4096;
        match open_tampered(&files, &format!("{} bytes", files[&name].len())) {
            Ok(now) => {
                assert!(header_is_whole && now <= last);
                last = now;
            }
            Err(error) => assert!(!header_is_whole, "{error}"),
        }
    }
    assert_eq!(last, 0);
}

/// A sealed segment that was cut within a frame was told as an input/output error, "unexpected end of file", without an
/// offset and without what is at stake.
#[test]
fn a_sealed_segment_that_is_cut_short_is_damage_with_its_place() {
    let disk = closed_journal();
    let mut files = disk.image();
    let name = segment_name(1);
    for cut in 1..200 {
        let content = files.get_mut(&name).unwrap();
        content.pop();
        let left = content.len();
        // Up to seven bytes of padding may be missing: a frame is whole without them.
        if let Err(error) = open_tampered(&files, &format!("{cut} bytes cut")) {
            assert!(left >= 4096 && format!("{error:#}").contains("damaged at byte"), "{error}");
        } else {
            assert!(cut < 8, "{cut} bytes cut");
        }
    }
}

#[test]
fn a_file_that_was_prepared_whole_and_is_shorter_now_is_damage() {
    let disk = SimDisk::new();
    drop(open(&disk, &filled()).unwrap());
    let mut content = disk.content(&segment_name(1));
    content.pop();
    disk.put(&segment_name(1), content);
    let error = error_of(open(&disk, &filled()));
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert!(format!("{error:#}").contains("65535 bytes long and was 65536"), "{error}");
}

#[test]
fn a_torn_tail_is_cut_and_a_hole_below_a_promise_is_damage() {
    let disk = SimDisk::new();
    let mut opened = open(&disk, &filled()).unwrap();
    append(&mut opened.writer, &[frame(1, 1)]);
    let at = append(&mut opened.writer, &[frame(2, 1)])[0].offset as usize;
    append(&mut opened.writer, &[frame(3, 1)]);
    drop(opened);
    let name = segment_name(1);
    let flip = |disk: &SimDisk| {
        let mut content = disk.content(&name);
        content[at + 60] ^= 1;
        disk.put(&name, content);
    };
    // Nothing was synced, so record 2 may be torn though record 3 is whole: both are cut.
    let torn = image_of(&disk.image());
    flip(&torn);
    let opened = open(&torn, &filled()).unwrap();
    assert_eq!(assert_dense(&opened), 1);
    assert!(opened.torn_bytes > 0);

    // The same bytes, but a later frame promises that a sync had covered them.
    let disk = SimDisk::new();
    let mut opened = open(&disk, &filled()).unwrap();
    append(&mut opened.writer, &[frame(1, 1), frame(2, 1), frame(3, 1)]);
    opened.writer.sync().unwrap();
    append(&mut opened.writer, &[frame(4, 1)]);
    drop(opened);
    flip(&disk);
    let error = error_of(open(&disk, &filled()));
    assert_eq!(error.kind(), ErrorKind::Damaged);
    let sentence = format!("{error:#}");
    for part in [
        name.as_str(),
        &format!("byte {at}"),
        "records after 1 cannot be trusted",
        "bytes",
        "had been synced",
    ] {
        assert!(sentence.contains(part), "{part}: {sentence}");
    }
}

#[test]
fn the_last_frame_is_torn_after_a_crash_and_damaged_after_a_clean_close() {
    for clean in [false, true] {
        let disk = SimDisk::new();
        let mut opened = open(&disk, &filled()).unwrap();
        append(&mut opened.writer, &[frame(1, 1)]);
        let at = append(&mut opened.writer, &[frame(2, 1)])[0].offset as usize;
        if clean {
            opened.writer.close().unwrap();
        }
        drop(opened);
        let mut content = disk.content(&segment_name(1));
        content[at] ^= 1;
        disk.put(&segment_name(1), content);
        match open(&disk, &filled()) {
            Ok(opened) => assert_eq!((clean, assert_dense(&opened)), (false, 1)),
            Err(error) => assert_eq!((clean, error.kind()), (true, ErrorKind::Damaged)),
        }
    }
}

/// A frame that is sound and of this very use of the file, but does not continue the one before it: records between
/// the two are gone. No torn write looks like this, though nothing promises what lies there.
#[test]
fn a_sound_frame_that_does_not_continue_the_one_before_is_damage_at_the_very_end_too() {
    for prev in [1, 2, 3] {
        let disk = SimDisk::new();
        let mut opened = open(&disk, &filled()).unwrap();
        let last = frame(2, 1);
        let at = append(&mut opened.writer, &[frame(1, 1), last.clone()])[1].offset;
        drop(opened);
        let mut content = disk.content(&segment_name(1));
        let (header, _) = FrameHeader::decode(&content[at as usize..]).unwrap();
        let crafted = frame(4, 1);
        let mut bytes = Vec::new();
        crafted
            .body
            .header(Seq(4), Seq(prev), header.nonce, header.synced_offset, header.applied)
            .encode(&mut bytes);
        bytes.extend_from_slice(crafted.body.padded());
        let end = (at + last.body.len_on_disk()) as usize;
        content[end..end + bytes.len()].copy_from_slice(&bytes);
        disk.put(&segment_name(1), content);
        match open(&disk, &filled()) {
            Ok(opened) => assert_eq!((prev, opened.last), (2, Seq(4)), "it continues record 2"),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
                assert!(
                    prev != 2 && format!("{error:#}").contains(&end.to_string()),
                    "file and offset: {error}"
                );
            }
        }
    }
}

#[test]
fn a_missing_a_foreign_and_a_swapped_segment_are_told() {
    let disk = closed_journal();
    let missing = image_of(&disk.image());
    missing.delete(&segment_name(2));
    let error = error_of(open(&missing, &growing()));
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert!(format!("{error:#}").contains(&segment_name(2)), "{error}");

    let foreign = image_of(&disk.image());
    foreign.put(&segment_name(2), closed_journal().content(&segment_name(2)));
    let error = error_of(open(&foreign, &growing()));
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert!(format!("{error:#}").contains("belongs to journal"), "{error}");

    let swapped = image_of(&disk.image());
    swapped.put(&segment_name(2), disk.content(&segment_name(3)));
    let error = error_of(open(&swapped, &growing()));
    assert!(format!("{error:#}").contains("this is segment 3"), "{error}");

    // A sealed segment that lost its last frame wholly is sound in itself, but not what its successor says.
    let short = image_of(&disk.image());
    let mut content = short.content(&segment_name(1));
    let from = content.len() - 100;
    content[from..].fill(0);
    short.put(&segment_name(1), content);
    assert_eq!(error_of(open(&short, &growing())).kind(), ErrorKind::Damaged);
}

#[test]
fn a_sealed_segment_with_other_sound_frames_than_its_successor_recorded_is_damage() {
    // A frame of the same size and place with other content and good checksums, as a lost write would leave it.
    let disk = closed_journal();
    let name = segment_name(1);
    give_another_sound_body(&disk, &name);
    let error = error_of(open(&disk, &growing()));
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert!(format!("{error:#}").contains("its successor says"), "{error}");
}

#[test]
fn an_unknown_version_is_refused_and_nothing_is_touched() {
    let disk = closed_journal();
    disk.put("spare-7.tmp", vec![1; 10]);
    disk.put("spare-8.seg", vec![1; 10]);
    let mut content = disk.content(&segment_name(3));
    content[8] = 3;
    disk.put(&segment_name(3), content);
    let before = disk.image();
    let error = error_of(open(&disk, &growing()));
    assert_eq!(error.kind(), ErrorKind::UnknownFormat);
    assert!(format!("{error:#}").contains("format version 3"), "{error}");
    assert_eq!(disk.image(), before);
}

#[test]
fn leftovers_are_removed_and_other_files_are_left_alone() {
    let disk = closed_journal();
    disk.put("spare-7.tmp", vec![1; 10]);
    disk.put("spare-8.seg", vec![1; 10]);
    disk.put("spare-9.seg", vec![1; SEGMENT as usize + 1]);
    disk.put("publisher.cursor", vec![1]);
    drop(open(&disk, &growing()).unwrap());
    let names = disk.names();
    assert!(!names.contains(&"spare-7.tmp".to_owned()) && !names.contains(&"spare-9.seg".to_owned()));
    assert!(names.contains(&"spare-8.seg".to_owned()) && names.contains(&"publisher.cursor".to_owned()));
}

#[test]
fn damage_behind_the_back_of_a_running_reader_is_an_error_and_never_a_value() {
    let disk = SimDisk::new();
    let Opened { log, mut writer, .. } = open(&disk, &growing()).unwrap();
    let at = append(&mut writer, &[frame(1, 2)])[0];
    let file = crate::disk::contract::Disk::open(&disk, &path_of(&segment_name(1))).unwrap();
    for place in [0, 32, 60] {
        let mut byte = [0];
        file.read_at(&mut byte, at.offset + place).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at.offset + place).unwrap();
        assert_eq!(error_of(log.read_frame(at)).kind(), ErrorKind::Damaged);
        assert_eq!(error_of(read_all(&log, 0)).kind(), ErrorKind::Damaged);
        file.write_all_at(&byte, at.offset + place).unwrap();
    }
    assert_eq!(read_all(&log, 0).unwrap().len(), 2);
}

/// Every later version must open what version 2 wrote, the first that may be released. Run with
/// `FOREBAY_WRITE_FIXTURES=1` to make it anew.
#[test]
fn the_fixture_of_format_version_2_opens() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/journal-v2");
    if std::env::var_os("FOREBAY_WRITE_FIXTURES").is_some() {
        std::fs::create_dir_all(&dir).unwrap();
        for (name, content) in closed_journal().image() {
            std::fs::write(dir.join(name), content).unwrap();
        }
    }
    let disk = SimDisk::new();
    for entry in std::fs::read_dir(&dir).unwrap() {
        let entry = entry.unwrap();
        disk.put(entry.file_name().to_str().unwrap(), std::fs::read(entry.path()).unwrap());
    }
    assert_eq!(disk.names().len(), 3);
    let mut opened = open(&disk, &growing()).unwrap();
    assert_eq!(assert_dense(&opened), 12);
    append(&mut opened.writer, &[frame(13, 1)]);
    assert_eq!(read_all(&opened.log, 0).unwrap().len(), 13);
}
