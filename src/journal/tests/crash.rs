//! Cuts the power at every operation, also while recovering: synced records survive, and all that is read is a prefix.

use super::*;

/// The promises that a run was given before it stopped.
#[derive(Clone, Copy, Debug, Default)]
struct Promised {
    /// The last record that a sync covered.
    synced: u64,
    /// The last record that may have been trimmed.
    trimmed: u64,
}

/// Writes on behind what is there, through rotation, an oversize frame, trimming and recycling, until the end
/// or the first error.
fn work(disk: &SimDisk, options: &JournalOptions, promised: &mut Promised) -> Result<()> {
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
            promised.synced = next - 1;
        }
        if group == 700 || group == 2 {
            promised.trimmed = promised.trimmed.max(promised.synced.saturating_sub(100));
            log.trim(Seq(promised.trimmed))?;
        }
    }
    writer.close()?;
    promised.synced = next - 1;
    Ok(())
}

fn check(disk: &SimDisk, options: &JournalOptions, promised: Promised, what: &str) {
    match open(disk, options) {
        Ok(opened) => {
            let last = assert_dense(&opened);
            assert!(last >= promised.synced, "{what}: {last} records of {promised:?}");
            assert!(
                opened.first_prev.0 <= promised.trimmed,
                "{what}: {:?} of {promised:?}",
                opened.first_prev
            );
        }
        Err(error) => panic!("{what}: {error:?} of {promised:?}"),
    }
}

/// Directory changes may survive without those that they depend on, which is harsher than any file system.
fn policies() -> impl Iterator<Item = CrashPolicy> {
    let random = (1..=6).map(|seed| CrashPolicy::Unordered { seed });
    [CrashPolicy::OnlySynced, CrashPolicy::Everything].into_iter().chain(random)
}

#[test]
fn a_power_cut_at_every_operation_loses_nothing_that_was_synced() {
    for options in [growing(), filled()] {
        let whole = SimDisk::new();
        work(&whole, &options, &mut Promised::default()).unwrap();
        let operations = whole.changes();
        assert!(operations > 40, "the work is worth cutting: {operations}");
        for cut in 0..operations {
            let disk = SimDisk::new();
            let mut promised = Promised::default();
            disk.cut_after(cut);
            assert!(work(&disk, &options, &mut promised).is_err());
            for policy in policies() {
                check(&disk.crash(policy), &options, promised, &format!("cut after {cut}, {policy:?}"));
            }
        }
    }
}

#[test]
fn a_power_cut_while_recovering_from_a_power_cut_loses_nothing_either() {
    for options in [growing(), filled()] {
        let whole = SimDisk::new();
        work(&whole, &options, &mut Promised::default()).unwrap();
        for cut in (0..whole.changes()).step_by(3) {
            let disk = SimDisk::new();
            let mut promised = Promised::default();
            disk.cut_after(cut);
            assert!(work(&disk, &options, &mut promised).is_err());
            for again in (0..24).step_by(2) {
                let policy = CrashPolicy::Unordered { seed: cut * 31 + again };
                let disk = disk.crash(policy);
                let mut promised = promised;
                disk.cut_after(again);
                let end = work(&disk, &options, &mut promised);
                assert!(end.is_err(), "the work takes more than 24 operations");
                let disk = disk.crash(CrashPolicy::Unordered { seed: cut * 17 + again });
                check(&disk, &options, promised, &format!("cut after {cut}, then after {again}, {policy:?}"));
            }
        }
    }
}

#[test]
fn what_a_process_left_unsynced_is_synced_before_it_is_served() {
    // A process was killed and another recovers its writes; they are served, and then the power fails.
    let disk = SimDisk::new();
    let mut opened = open(&disk, &growing()).unwrap();
    append(&mut opened.writer, &[frame(1, 5)]);
    drop(opened);
    let opened = open(&disk, &growing()).unwrap();
    assert_eq!(assert_dense(&opened), 5);
    drop(opened);
    check(
        &disk.crash(CrashPolicy::OnlySynced),
        &growing(),
        Promised { synced: 5, trimmed: 0 },
        "after serving",
    );
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
            let disk = SimDisk::new();
            let mut opened = open(&disk, &options).unwrap();
            append(&mut opened.writer, &[frame(1, 2)]);
            opened.writer.sync().unwrap();
            if !closing {
                append(&mut opened.writer, &[frame(3, 1)]);
            }
            disk.fail(DiskOp::Sync, 0, io::ErrorKind::Other, true);
            let failed = if closing { opened.writer.close() } else { opened.writer.sync() };
            assert_eq!(error_of(failed).kind(), ErrorKind::Poisoned);
            drop(opened);

            let mut opened = open(&disk, &options).unwrap();
            let served = assert_dense(&opened);
            assert_eq!(served, if closing { 2 } else { 3 }, "still in memory");
            let promised = Promised { synced: served, trimmed: 0 };
            check(&disk.crash(CrashPolicy::OnlySynced), &options, promised, "after serving");
            append(&mut opened.writer, &[frame(served + 1, 1)]);
            opened.writer.sync().unwrap();
            drop(opened);
            let promised = Promised { synced: served + 1, trimmed: 0 };
            check(&disk.crash(CrashPolicy::OnlySynced), &options, promised, "after going on");
        }
    }
}

#[test]
fn opening_and_closing_without_writes_leaves_nothing_behind() {
    let disk = SimDisk::new();
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
