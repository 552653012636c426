//! The journal in use: round trips, rotation, recycling, trimming beside a reader, full disks, failed syncs.

use super::*;

#[test]
fn what_was_appended_is_read_back_before_and_after_a_reopen() {
    let disk = SimDisk::new();
    let Opened { log, mut writer, id, created, first_prev, last, torn_bytes, .. } =
        open(&disk, &growing()).unwrap();
    assert!(created && first_prev == Seq::ZERO && last == Seq::ZERO && torn_bytes == 0);
    let locations = append(&mut writer, &[frame(1, 3), frame(4, 1)]);
    writer.sync().unwrap();
    let frame = log.read_frame(locations[1]).unwrap().unwrap();
    assert_eq!((frame.first, frame.last(), frame.prev), (Seq(4), Seq(4), Seq(3)));
    writer.close().unwrap();
    writer.close().unwrap();
    assert_eq!(try_append(&mut writer, &[super::frame(5, 1)]).1.unwrap().kind(), ErrorKind::Closed);
    drop((log, writer));

    let opened = open(&disk, &growing()).unwrap();
    assert!(!opened.created && opened.id == id && opened.log.id() == id);
    assert_eq!(assert_dense(&opened), 4);
    assert_eq!(opened.log.read_frame(locations[0]).unwrap().unwrap().records().count(), 3);
    assert_eq!(read_all(&opened.log, 2).unwrap().first().unwrap().0, 1, "whole frames only");
    assert_eq!(read_all(&opened.log, 3).unwrap().len(), 1);
}

#[test]
fn holes_of_writes_that_bypass_the_journal_are_kept() {
    let disk = SimDisk::new();
    let mut opened = open(&disk, &growing()).unwrap();
    append(&mut opened.writer, &[frame(10, 2), frame(20, 1)]);
    let (none, error) = try_append(&mut opened.writer, &[frame(21, 1), frame(21, 1)]);
    assert!(none.is_empty() && error.unwrap().kind() == ErrorKind::Unsupported);
    drop(opened);
    let opened = open(&disk, &growing()).unwrap();
    let numbers: Vec<u64> = read_all(&opened.log, 0).unwrap().iter().map(|(seq, _)| *seq).collect();
    assert_eq!(numbers, [10, 11, 20]);
}

#[test]
fn a_reader_sees_what_is_published_and_no_more() {
    let disk = SimDisk::new();
    let Opened { log, mut writer, .. } = open(&disk, &growing()).unwrap();
    let mut reader = log.read_after(Seq::ZERO);
    assert!(reader.next_frame().unwrap().is_none());
    assert!(try_append(&mut writer, &[frame(1, 1), frame(2, 1)]).1.is_none());
    assert!(reader.next_frame().unwrap().is_none(), "written and not published");
    writer.publish(Seq(1));
    assert_eq!(reader.next_frame().unwrap().unwrap().first, Seq(1));
    assert!(reader.next_frame().unwrap().is_none());
    writer.publish(Seq(2));
    assert_eq!(reader.next_frame().unwrap().unwrap().first, Seq(2));
    // The first frame of all may replace the empty segment that the reader stands in.
    let disk = SimDisk::new();
    let Opened { log, mut writer, .. } = open(&disk, &growing()).unwrap();
    let mut reader = log.read_after(Seq::ZERO);
    assert!(reader.next_frame().unwrap().is_none());
    append(&mut writer, &[large(1, 100_000)]);
    assert_eq!(reader.next_frame().unwrap().unwrap().first, Seq(1));
}

#[test]
fn segments_rotate_and_large_frames_get_one_of_their_own() {
    for options in [growing(), filled()] {
        let disk = SimDisk::new();
        let Opened { log, mut writer, .. } = open(&disk, &options).unwrap();
        let sizes = [30_000, 30_000, 200_000, 300_000, 10, 60_000, 20, 3_000_000];
        let frames: Vec<_> = (1..).zip(sizes).map(|(first, len)| large(first, len)).collect();
        let locations = append(&mut writer, &frames);
        writer.sync().unwrap();
        let numbers: Vec<u64> = locations.iter().map(|location| location.segment).collect();
        assert_eq!(numbers, [1, 1, 2, 3, 4, 4, 4, 5]);
        let total: u64 = disk.image().values().map(|content| content.len() as u64).sum();
        assert_eq!(log.bytes_on_disk(), total);
        writer.close().unwrap();
        drop((log, writer));
        let opened = open(&disk, &options).unwrap();
        let all = read_all(&opened.log, 0).unwrap();
        for ((seq, content), len) in all.iter().zip(sizes) {
            assert!(content.len() == len && content.iter().all(|byte| *byte == *seq as u8), "{seq}");
        }
        assert_eq!(all.len(), sizes.len());
    }
}

#[test]
fn a_group_is_one_write_and_a_steady_sync_touches_no_metadata() {
    let disk = SimDisk::new();
    let mut opened = open(&disk, &filled()).unwrap();
    let changes = disk.record_changes();
    append(&mut opened.writer, &[frame(1, 2), frame(3, 1), frame(4, 5)]);
    opened.writer.sync().unwrap();
    opened.writer.sync().unwrap();
    let file = segment_name(1);
    assert_eq!(*changes.lock().unwrap(), [format!("Write {file}"), format!("Sync {file}")]);
    assert_eq!(disk.content(&file).len() as u64, SEGMENT, "the file was there in full already");
}

#[test]
fn a_recycled_file_serves_again_and_its_old_frames_never_do() {
    let disk = SimDisk::new();
    let Opened { log, mut writer, .. } = open(&disk, &growing()).unwrap();
    // 57 frames of the same size fill a segment.
    append(&mut writer, &(1..=114).map(|first| large(first, 1000)).collect::<Vec<_>>());
    append(&mut writer, &[large(115, 60_000)]);
    writer.sync().unwrap();
    log.trim(Seq(114)).unwrap();
    assert_eq!(disk.names().len(), 3, "{:?}", disk.names());
    assert_eq!(disk.names()[0], segment_name(3));
    assert!(disk.names()[1..].iter().all(|name| name.starts_with("spare-")));
    // One frame of that size in a file where 56 old ones follow, all of them whole and sound.
    let before = disk.count(DiskOp::Create);
    append(&mut writer, &[large(116, 2000), large(117, 1000)]);
    writer.sync().unwrap();
    assert_eq!(disk.count(DiskOp::Create), before, "a spare was used");
    assert_eq!(disk.content(&segment_name(4)).len(), 4096 + 57 * 1064);
    drop((log, writer));
    let opened = open(&disk, &growing()).unwrap();
    assert_eq!((opened.first_prev, opened.last, opened.torn_bytes), (Seq(114), Seq(117), 0));
    let numbers: Vec<u64> = read_all(&opened.log, 0).unwrap().iter().map(|(seq, _)| *seq).collect();
    assert_eq!(numbers, [115, 116, 117]);
}

#[test]
fn trimming_goes_oldest_first_and_each_step_is_durable() {
    let disk = SimDisk::new();
    let Opened { log, mut writer, .. } = open(&disk, &growing()).unwrap();
    append(&mut writer, &(1..=5).map(|first| large(first, 60_000)).collect::<Vec<_>>());
    let changes = disk.record_changes();
    log.trim(Seq(99)).unwrap();
    let steps: Vec<String> =
        changes.lock().unwrap().iter().map(|line| line.replace(char::is_numeric, "")).collect();
    let (rename, remove, sync) = ("Rename .seg", "Remove .seg", "SyncDir journal");
    assert_eq!(steps, [rename, sync, rename, sync, remove, sync, remove, sync], "two spares are enough");
    let spares = disk.names().iter().filter(|name| name.starts_with("spare-")).count();
    assert_eq!((spares, disk.names().len()), (2, 3), "{:?}", disk.names());
    assert!(disk.names().contains(&segment_name(5)), "the last segment stays");
}

#[test]
fn a_reader_in_a_trimmed_segment_finishes_it_and_locations_tell_that_they_are_gone() {
    // Frames larger than what a reader reads ahead, so that it comes back to the file after the trim.
    let options = JournalOptions { segment_bytes: 1024 * 1024, ..growing() };
    let disk = SimDisk::new();
    let Opened { log, mut writer, .. } = open(&disk, &options).unwrap();
    let locations = append(&mut writer, &(1..=9).map(|first| large(first, 300_000)).collect::<Vec<_>>());
    let mut reader = log.read_after(Seq::ZERO);
    assert_eq!(reader.next_frame().unwrap().unwrap().first, Seq(1));
    log.trim(Seq(6)).unwrap();
    // Overwrites what was recycled, at the same offsets.
    append(&mut writer, &(10..=18).map(|first| large(first, 300_000)).collect::<Vec<_>>());
    for expected in [2, 3] {
        let frame = reader.next_frame().unwrap().unwrap();
        assert_eq!(frame.first, Seq(expected));
        assert!(frame.records().all(|record| record.iter().all(|byte| u64::from(*byte) == expected)));
    }
    let jumped = reader.next_frame().unwrap().unwrap();
    assert_eq!((jumped.first, jumped.prev), (Seq(7), Seq(6)), "the jump over what was trimmed shows");
    for location in &locations[..6] {
        assert!(log.read_frame(*location).unwrap().is_none());
    }
    assert!(log.read_frame(locations[6]).unwrap().is_some());
}

#[test]
fn a_thread_keeps_a_spare_ready_and_ends_with_the_log() {
    let disk = SimDisk::new();
    let options = JournalOptions { segment_bytes: SEGMENT, ..JournalOptions::default() };
    let Opened { log, mut writer, .. } = open(&disk, &options).unwrap();
    for first in 1..=40 {
        append(&mut writer, &[large(first, 60_000)]);
        writer.sync().unwrap();
        log.trim(Seq(first - 1)).unwrap();
    }
    log.shutdown();
    log.shutdown();
    writer.close().unwrap();
    drop((log, writer));
    assert!(disk.names().iter().all(|name| !name.ends_with(".tmp")), "{:?}", disk.names());
    let opened = open(&disk, &options).unwrap();
    assert_eq!((opened.first_prev, opened.last), (Seq(39), Seq(40)));
}

#[test]
fn the_lock_refuses_a_second_owner_until_the_first_is_gone() {
    let disk = SimDisk::new();
    let opened = open(&disk, &growing()).unwrap();
    assert_eq!(error_of(open(&disk, &growing())).kind(), ErrorKind::Locked);
    let Opened { log, writer, .. } = opened;
    drop(log);
    assert_eq!(error_of(open(&disk, &growing())).kind(), ErrorKind::Locked);
    drop(writer);
    assert!(open(&disk, &growing()).is_ok());
}

#[test]
fn a_full_disk_refuses_the_frames_that_do_not_fit_and_heals() {
    // The first write is that of a frame, and the first sync that of its segment; the second ones are a spare's.
    for operation in
        [(DiskOp::Create, 0), (DiskOp::Write, 1), (DiskOp::Write, 0), (DiskOp::Sync, 1), (DiskOp::Rename, 0)]
    {
        let disk = SimDisk::new();
        let Opened { log, mut writer, .. } = open(&disk, &growing()).unwrap();
        append(&mut writer, &[large(1, 60_000)]);
        disk.fail(operation.0, operation.1, io::ErrorKind::StorageFull, false);
        let (written, error) = try_append(&mut writer, &[frame(2, 1), large(3, 60_000)]);
        let error = error.unwrap();
        assert_eq!(error.kind(), ErrorKind::DiskFull, "{operation:?}: {error}");
        let (again, error) = try_append(&mut writer, &[large(10, 50_000)]);
        assert!(again.is_empty() && error.unwrap().kind() == ErrorKind::DiskFull, "{operation:?}");
        disk.heal();
        let next = 2 + written.len() as u64;
        append(&mut writer, &[frame_of(next, &[b"healed".to_vec()])]);
        writer.sync().unwrap();
        writer.close().unwrap();
        drop((log, writer));
        let opened = open(&disk, &growing()).unwrap();
        let all = read_all(&opened.log, 0).unwrap();
        assert_eq!(all.len() as u64, next, "{operation:?}");
        assert_eq!(all.last().unwrap().1, "healed");
    }
}

#[test]
fn the_part_of_a_group_that_a_full_disk_took_counts_and_the_rest_never_comes_back() {
    // Half of the group reached the file, its first frame wholly, before the disk was full.
    for options in [growing(), filled()] {
        let disk = SimDisk::new();
        let mut opened = open(&disk, &options).unwrap();
        append(&mut opened.writer, &[frame(1, 1)]);
        disk.fail(DiskOp::Write, 0, io::ErrorKind::StorageFull, true);
        let (written, error) = try_append(&mut opened.writer, &[frame(2, 1), large(3, 9_000), frame(4, 1)]);
        assert_eq!((written.len(), error.unwrap().kind()), (1, ErrorKind::DiskFull));
        assert_eq!(opened.writer.last(), Seq(2));
        assert!(opened.log.read_frame(written[0]).unwrap().is_some());
        for policy in [CrashPolicy::Everything, CrashPolicy::OnlySynced] {
            let crashed = open(&disk.crash(policy), &options).unwrap();
            assert!(assert_dense(&crashed) <= 2, "{policy:?}");
        }
        // The next frame seals the segment where its last whole frame ends.
        append(&mut opened.writer, &[frame(3, 2)]);
        opened.writer.sync().unwrap();
        drop(opened);
        let opened = open(&disk.crash(CrashPolicy::OnlySynced), &options).unwrap();
        assert_eq!(assert_dense(&opened), 4);
    }
}

#[test]
fn a_failed_sync_poisons_for_ever_and_says_so() {
    for point in [false, true] {
        let disk = SimDisk::new();
        let Opened { log, mut writer, .. } = open(&disk, &growing()).unwrap();
        append(&mut writer, &[frame(1, 1)]);
        disk.fail(DiskOp::Sync, 0, io::ErrorKind::StorageFull, true);
        let error = if point { error_of(writer.sync_point().sync()) } else { error_of(writer.sync()) };
        assert_eq!(error.kind(), ErrorKind::Poisoned, "a full disk is no excuse for a sync");
        assert!(format!("{error:#}").contains("outcome of those in flight is unknown"), "{error}");
        // The disk works again, but nobody knows what it forgot.
        assert_eq!(error_of(writer.sync()).kind(), ErrorKind::Poisoned);
        assert_eq!(try_append(&mut writer, &[frame(2, 1)]).1.unwrap().kind(), ErrorKind::Poisoned);
        assert_eq!(error_of(writer.close()).kind(), ErrorKind::Poisoned);
        assert_eq!(error_of(writer.sync_point().sync()).kind(), ErrorKind::Poisoned);
        assert_eq!(read_all(&log, 0).unwrap().len(), 1, "reading goes on");
    }
}

#[test]
fn other_failures_of_a_write_or_a_rotation_poison_too() {
    for (operation, kind) in [
        (DiskOp::Write, io::ErrorKind::Other),
        (DiskOp::SyncDir, io::ErrorKind::StorageFull),
        (DiskOp::Sync, io::ErrorKind::Other),
        (DiskOp::Rename, io::ErrorKind::Other),
    ] {
        let disk = SimDisk::new();
        let mut opened = open(&disk, &growing()).unwrap();
        append(&mut opened.writer, &[frame(1, 1)]);
        disk.fail(operation, 0, kind, true);
        let (written, error) = try_append(&mut opened.writer, &[large(2, 61_200), large(3, 60_000)]);
        assert!(written.is_empty(), "{operation:?}");
        assert_eq!(error.unwrap().kind(), ErrorKind::Poisoned, "{operation:?}");
        assert_eq!(
            try_append(&mut opened.writer, &[frame(4, 1)]).1.unwrap().kind(),
            ErrorKind::Poisoned,
            "{operation:?}"
        );
    }
}

#[test]
fn a_sync_beside_the_writer_covers_what_was_appended_before_it() {
    let disk = SimDisk::new();
    let mut opened = open(&disk, &growing()).unwrap();
    append(&mut opened.writer, &[frame(1, 2)]);
    let point = opened.writer.sync_point();
    append(&mut opened.writer, &[frame(3, 1)]);
    point.sync().unwrap();
    opened.writer.synced(point);
    append(&mut opened.writer, &[frame(4, 1)]);
    let before = disk.changes();
    opened.writer.sync().unwrap();
    assert_eq!(disk.changes(), before + 1, "what was appended meanwhile is not taken for synced");
}

#[test]
fn readers_and_a_trimmer_beside_the_writer_see_whole_records_in_order() {
    const LAST: u64 = 3000;
    let disk = SimDisk::new();
    let Opened { log, mut writer, .. } = open(&disk, &growing()).unwrap();
    let check = |seq: u64, content: &Bytes| assert_eq!(content, &record(seq), "record {seq}");
    std::thread::scope(|scope| {
        let (written_at, locations) = std::sync::mpsc::channel();
        for trims in [false, true] {
            let log = Arc::clone(&log);
            scope.spawn(move || {
                let mut reader = log.read_after(Seq::ZERO);
                let mut last = 0;
                while last < LAST {
                    let Some(frame) = reader.next_frame().unwrap() else {
                        std::thread::yield_now();
                        continue;
                    };
                    assert!(
                        frame.prev.0 >= last && (!trims || frame.prev.0 == last),
                        "{frame:?} after {last}"
                    );
                    (frame.first.0..).zip(frame.records()).for_each(|(seq, content)| check(seq, &content));
                    last = frame.last().0;
                    if trims {
                        log.trim(Seq(last)).unwrap();
                    }
                }
            });
        }
        let by_location = Arc::clone(&log);
        scope.spawn(move || {
            for (first, location) in locations {
                if let Some(frame) = by_location.read_frame(location).unwrap() {
                    assert_eq!(frame.first, Seq(first));
                    (first..).zip(frame.records()).for_each(|(seq, content)| check(seq, &content));
                }
            }
        });
        let mut first = 1;
        while first <= LAST {
            let group = [frame(first, 1), frame(first + 1, 2), frame(first + 3, 3)];
            let written = append(&mut writer, &group);
            written_at.send((first + 1, written[1])).unwrap();
            first += 6;
        }
    });
    assert!(log.segment(1).is_none(), "something was trimmed");
}
