//! Named cursors: durable, holding the journal back, and bounded.

use super::*;

#[tokio::test]
async fn a_named_cursor_goes_on_behind_what_was_acknowledged() {
    let layer = Layer::new();
    let bay = open(&layer).await;
    let mut changes = bay.changes("index").await.unwrap();
    for key in 1..=5 {
        cache(&bay).put(&key, vec![1]).await.unwrap();
    }
    assert_eq!(drain(&bay, &mut changes).await.len(), 5);
    changes.acknowledge(Seq::new(3)).await.unwrap();
    changes.acknowledge(Seq::new(2)).await.unwrap();
    let beyond = changes.acknowledge(Seq::new(6)).await.expect_err("it was not told");
    assert_eq!(beyond.kind(), ErrorKind::InvalidOption);
    drop(changes);
    let mut changes = bay.changes("index").await.unwrap();
    assert_eq!(drain(&bay, &mut changes).await, expected(&[(4, "4=1"), (5, "5=1")]));
    bay.close().await.unwrap();
    let error = changes.next().await.expect_err("the layer has ended");
    assert_eq!(error.kind(), ErrorKind::Closed);
    assert_eq!(changes.acknowledge(Seq::new(5)).await.expect_err("ended").kind(), ErrorKind::Closed);

    let bay = open(&layer).await;
    let mut changes = bay.changes("index").await.unwrap();
    assert_eq!(drain(&bay, &mut changes).await, expected(&[(4, "4=1"), (5, "5=1")]), "at least once");
}

#[tokio::test]
async fn a_named_cursor_holds_the_journal_back_until_it_has_passed() {
    let layer = Layer::new();
    let bay = open(&layer).await;
    fill(&bay, 3).await;
    assert!(segments(&layer.disk) <= 2, "nobody needs them");
    let mut changes = bay.changes("index").await.unwrap();
    let first = changes.next().await.unwrap();
    assert!(matches!(first, ChangeOutcome::PlaceLost { after: Seq::ZERO, .. }), "a new cursor: {first:?}");
    drain(&bay, &mut changes).await;
    changes.acknowledge(changes.told()).await.unwrap();
    fill(&bay, 6).await;
    let held = segments(&layer.disk);
    assert!(held >= 6, "{held} segments");
    let all = drain(&bay, &mut changes).await;
    assert_eq!(all.len(), 19);
    assert!(all.iter().all(|(_, what)| what.starts_with("1=")), "nothing was lost: {all:?}");
    assert_eq!(segments(&layer.disk), held, "told is not acknowledged");
    changes.acknowledge(changes.told()).await.unwrap();
    assert!(segments(&layer.disk) <= 2, "let go at once");

    drop(changes);
    bay.close().await.unwrap();
    let bay = layer.open().await;
    fill(&bay, 3).await;
    assert!(segments(&layer.disk) >= 3, "also by a layer that does not tell changes");
    assert_eq!(bay.cursors().unwrap().len(), 1);
    assert!(bay.forget_cursor("index").await.unwrap());
    assert!(segments(&layer.disk) <= 2, "forgotten");
    assert!(!bay.forget_cursor("index").await.unwrap());
    bay.close().await.unwrap();
    let bay = layer.open().await;
    assert!(bay.cursors().unwrap().is_empty(), "durably");
}

#[tokio::test]
async fn a_cursor_that_is_too_far_behind_loses_its_place_and_is_told() {
    let layer = Layer::new();
    let max = 4 * SEGMENT_BYTES;
    let bay = telling(layer.builder()).changes_bytes_max(max).open().await.unwrap();
    let mut changes = bay.changes("slow").await.unwrap();
    fill(&bay, 2).await;
    assert_eq!(drain(&bay, &mut changes).await.len(), 7);
    changes.acknowledge(Seq::new(1)).await.unwrap();
    fill(&bay, 20).await;
    let held = segments(&layer.disk);
    assert!((5..=6).contains(&held), "the bound, and the active one: {held}");
    assert_eq!(changes.lag().records, 61);
    let all = drain(&bay, &mut changes).await;
    // Every number is told or lost: first the rest of the segment in hand, then what was let go, then all the others.
    let mut before = 7;
    for (seq, what) in &all {
        let lost = format!("lost after {before}");
        assert!(*what == lost || *seq == before + 1, "{seq} {what} after {before}");
        before = *seq;
    }
    assert_eq!(before, 68);
    let kept = all.iter().rev().take_while(|(_, what)| !what.starts_with("lost")).count();
    assert!((12..=16).contains(&kept), "four segments and the active one: {kept}");
    assert_eq!(bay.stats().places_lost, 1);
    drop(changes);
    let mut again = bay.changes("slow").await.unwrap();
    let first = told(&again.next().await.unwrap());
    assert_eq!(first, (68 - kept as u64, "lost after 1".to_owned()), "told until it is acknowledged");
}

#[tokio::test]
async fn a_cursor_has_one_subscriber_a_name_and_a_bound() {
    let layer = Layer::new();
    let bay = open(&layer).await;
    let kind = |outcome: Result<ChangeStream, forebay::Error>| outcome.map(drop).expect_err("refused").kind();
    let changes = bay.changes("index").await.unwrap();
    assert_eq!(kind(bay.changes("index").await), ErrorKind::Locked);
    assert_eq!(bay.forget_cursor("index").await.expect_err("in use").kind(), ErrorKind::Locked);
    assert_eq!(kind(bay.changes("../index").await), ErrorKind::InvalidName);
    drop(changes);
    for number in 1..64 {
        bay.changes(format!("c{number}").as_str()).await.unwrap();
    }
    assert_eq!(kind(bay.changes("one-more").await), ErrorKind::InvalidOption);
    assert!(bay.forget_cursor("c7").await.unwrap());
    bay.changes("one-more").await.unwrap();
    let anonymous = bay.changes(Seq::ZERO).await.unwrap();
    assert_eq!(anonymous.acknowledge(Seq::ZERO).await.expect_err("no cursor").kind(), ErrorKind::Unsupported);
}

#[tokio::test]
async fn a_cursor_that_cannot_be_written_stays_where_it_was() {
    for op in [DiskOp::Create, DiskOp::Write, DiskOp::Sync, DiskOp::Rename] {
        let layer = Layer::new();
        let bay = open(&layer).await;
        let mut changes = bay.changes("index").await.unwrap();
        cache(&bay).put(&1, vec![10]).await.unwrap();
        drain(&bay, &mut changes).await;
        layer.disk.plan(Fault::on(op).named("cursors.tmp"));
        let error = changes.acknowledge(Seq::new(1)).await.expect_err("the disk fails");
        assert!(format!("{error:#}").contains("cursors.tmp"), "{error}");
        assert_eq!(bay.cursors().unwrap()[0].acknowledged, Seq::ZERO, "{op:?}");
        layer.disk.heal();
        changes.acknowledge(Seq::new(1)).await.unwrap();
        let cut = power_cut(&layer, &layer.store);
        assert_eq!(open(&cut).await.cursors().unwrap()[0].acknowledged, Seq::new(1), "{op:?}");
    }
}

#[tokio::test]
async fn a_damaged_file_of_cursors_stops_the_opening_and_is_named() {
    let layer = Layer::new();
    let bay = open(&layer).await;
    drop(bay.changes("index").await.unwrap());
    bay.close().await.unwrap();
    let disk: Arc<dyn Disk> = Arc::new(layer.disk.clone());
    let cursors = inspect::cursors(&disk, Path::new("/journal")).unwrap();
    assert_eq!((cursors[0].name.as_str(), cursors[0].acknowledged), ("index", Seq::ZERO));
    layer.disk.overwrite(Path::new("/journal/cursors"), 20, &[0xff]).unwrap();
    let error = telling(layer.builder()).open().await.map(drop).expect_err("damaged");
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert!(format!("{error:#}").contains("/journal/cursors: damaged at byte"), "{error}");
    layer.disk.overwrite(Path::new("/journal/cursors"), 0, &[2]).unwrap();
    let error = telling(layer.builder()).open().await.map(drop).expect_err("of the future");
    assert_eq!(error.kind(), ErrorKind::UnknownFormat);
}
