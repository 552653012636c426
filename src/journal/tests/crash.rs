//! The power is cut at every operation, also while recovering: what was synced is there, and all is a prefix.

use super::*;

/// What a run was told before it stopped.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    /// The last record that a sync covered.
    synced: u64,
    /// The last record that may have been trimmed.
    trimmed: u64,
}

/// Writes on behind what is there, through rotation, an oversize frame, trimming and recycling, until the end
/// or the first error.
fn work(disk: &MemDisk, options: &JournalOptions, told: &mut Told) -> Result<()> {
    let Opened { log, mut writer, last, .. } = open(disk, options)?;
    let mut next = last.0 + 1;
    for group in [1, 1600, 3, 700, 2, 900] {
        // Three frames in a group; some groups fill a segment, one needs a segment of its own.
        let frames = [frame(next, group), frame(next + group, 1), frame(next + group + 1, 2)];
        writer.append(&frames, &mut Vec::new())?;
        next += group + 3;
        writer.publish(Seq(next - 1));
        if group != 3 {
            writer.sync()?;
            told.synced = next - 1;
        }
        if group == 700 || group == 2 {
            told.trimmed = told.trimmed.max(told.synced.saturating_sub(100));
            log.trim(Seq(told.trimmed))?;
        }
    }
    writer.close()?;
    told.synced = next - 1;
    Ok(())
}

fn check(disk: &MemDisk, options: &JournalOptions, told: Told, what: &str) {
    match open(disk, options) {
        Ok(opened) => {
            let last = assert_dense(&opened);
            assert!(last >= told.synced, "{what}: {last} records of {told:?}");
            assert!(opened.first_prev.0 <= told.trimmed, "{what}: {:?} of {told:?}", opened.first_prev);
        }
        Err(error) => panic!("{what}: {error:?} of {told:?}"),
    }
}

fn keeps() -> impl Iterator<Item = Keep> {
    [Keep::Nothing, Keep::Everything].into_iter().chain((1..=6).map(Keep::Some))
}

#[test]
fn a_power_cut_at_every_operation_loses_nothing_that_was_synced() {
    for options in [growing(), filled()] {
        let whole = MemDisk::default();
        work(&whole, &options, &mut Told::default()).unwrap();
        let operations = whole.log().len();
        assert!(operations > 40, "the work is worth cutting: {operations}");
        for cut in 0..operations {
            let disk = MemDisk::default();
            let mut told = Told::default();
            disk.cut_after(cut);
            assert!(work(&disk, &options, &mut told).is_err());
            for keep in keeps() {
                check(&disk.crash(keep), &options, told, &format!("cut after {cut}, {keep:?}"));
            }
        }
    }
}

#[test]
fn a_power_cut_while_recovering_from_a_power_cut_loses_nothing_either() {
    for options in [growing(), filled()] {
        let whole = MemDisk::default();
        work(&whole, &options, &mut Told::default()).unwrap();
        for cut in (0..whole.log().len()).step_by(3) {
            let disk = MemDisk::default();
            let mut told = Told::default();
            disk.cut_after(cut);
            assert!(work(&disk, &options, &mut told).is_err());
            for again in (0..24).step_by(2) {
                let keep = Keep::Some((cut * 31 + again) as u64);
                let disk = disk.crash(keep);
                let mut told = told;
                disk.cut_after(again);
                let end = work(&disk, &options, &mut told);
                assert!(end.is_err(), "the work takes more than 24 operations");
                let disk = disk.crash(Keep::Some((cut * 17 + again) as u64));
                check(&disk, &options, told, &format!("cut after {cut}, then after {again}, {keep:?}"));
            }
        }
    }
}

#[test]
fn what_a_process_left_unsynced_is_synced_before_it_is_served() {
    // A process was killed and another recovers its writes; they are served, and then the power fails.
    let disk = MemDisk::default();
    let mut opened = open(&disk, &growing()).unwrap();
    append(&mut opened.writer, &[frame(1, 5)]);
    drop(opened);
    let opened = open(&disk, &growing()).unwrap();
    assert_eq!(assert_dense(&opened), 5);
    drop(opened);
    check(&disk.crash(Keep::Nothing), &growing(), Told { synced: 5, trimmed: 0 }, "after serving");
}

/// A sync failed, the process said so and ended, and the machine stayed up. The kernel had marked the pages clean, so
/// the next process read the records from memory, its own sync brought nothing to the disk, and it sealed them with the
/// next segment and acknowledged more behind them. Then the power failed: what the seal vouched for was not there, and
/// the journal could not be opened any more, with everything acknowledged since.
#[test]
fn what_a_failed_sync_left_readable_is_written_again_before_it_is_served() {
    for options in [growing(), filled()] {
        // The sync that fails is that of a record, or that of the promise at a clean end.
        for closing in [false, true] {
            let disk = MemDisk::default();
            let mut opened = open(&disk, &options).unwrap();
            append(&mut opened.writer, &[frame(1, 2)]);
            opened.writer.sync().unwrap();
            if !closing {
                append(&mut opened.writer, &[frame(3, 1)]);
            }
            disk.fail("sync", 0, std::io::ErrorKind::Other, true);
            let failed = if closing { opened.writer.close() } else { opened.writer.sync() };
            assert_eq!(error_of(failed).kind(), ErrorKind::Poisoned);
            drop(opened);

            let mut opened = open(&disk, &options).unwrap();
            let served = assert_dense(&opened);
            assert_eq!(served, if closing { 2 } else { 3 }, "still in memory");
            let told = Told { synced: served, trimmed: 0 };
            check(&disk.crash(Keep::Nothing), &options, told, "after serving");
            append(&mut opened.writer, &[frame(served + 1, 1)]);
            opened.writer.sync().unwrap();
            drop(opened);
            let told = Told { synced: served + 1, trimmed: 0 };
            check(&disk.crash(Keep::Nothing), &options, told, "after going on");
        }
    }
}

#[test]
fn opening_and_closing_without_writes_leaves_nothing_behind() {
    let disk = MemDisk::default();
    let mut opened = open(&disk, &growing()).unwrap();
    append(&mut opened.writer, &[frame(1, 5)]);
    opened.writer.close().unwrap();
    drop(opened);
    let before = disk.image();
    for _ in 0..3 {
        let mut opened = open(&disk, &growing()).unwrap();
        opened.writer.close().unwrap();
    }
    assert_eq!(disk.image(), before);
}
