//! Exports the findings of the monitor to the recorder of the `metrics` facade. Names and units are listed in the
//! manual, on its page on the monitor.

use ::metrics::{Unit, counter, describe_counter, describe_gauge, gauge};

use crate::monitor::report::{FollowerReport, MonitorReport, Reason, Share};

/// The description of every figure.
const DESCRIPTION: &str = "see the manual's page on the monitor";

/// Exports a report. The structures are taken apart without `..`, so that a new field is not left out.
pub(super) fn record(report: &MonitorReport) {
    let MonitorReport {
        writes,
        sampled,
        skipped,
        abandoned,
        in_flight,
        late_max,
        overall,
        followers,
        offenders: _,
    } = report;
    total("forebay_monitor_writes_total", *writes, &[]);
    total("forebay_monitor_sampled_total", *sampled, &[]);
    total("forebay_monitor_skipped_total", *skipped, &[]);
    total("forebay_monitor_abandoned_total", *abandoned, &[]);
    describe_gauge!("forebay_monitor_in_flight", Unit::Count, DESCRIPTION);
    gauge!("forebay_monitor_in_flight").set(*in_flight as f64);
    describe_gauge!("forebay_monitor_late_max_seconds", Unit::Seconds, DESCRIPTION);
    gauge!("forebay_monitor_late_max_seconds").set(late_max.as_secs_f64());
    let names = ["forebay_monitor_writes_asked_total", "forebay_monitor_writes_consistent_total"];
    record_shares(names, overall, None);
    for FollowerReport { name, shares, reasons } in followers {
        let names = ["forebay_monitor_asked_total", "forebay_monitor_consistent_total"];
        record_shares(names, shares, Some(name));
        let unknown = shares.iter().map(|share| share.unknown).sum();
        total("forebay_monitor_unknown_total", unknown, &[("follower", name.clone())]);
        for reason in Reason::ALL {
            let count = reasons.iter().find(|(found, _)| found == reason).map_or(0, |(_, count)| *count);
            let labels = [("follower", name.clone()), ("reason", reason.as_str().to_owned())];
            total("forebay_monitor_inconsistent_total", count, &labels);
        }
    }
}

fn record_shares([asked, consistent]: [&'static str; 2], shares: &[Share], follower: Option<&str>) {
    for share in shares {
        let mut labels = vec![("delay_seconds", share.delay.as_secs_f64().to_string())];
        labels.extend(follower.map(|follower| ("follower", follower.to_owned())));
        total(asked, share.asked, &labels);
        total(consistent, share.consistent, &labels);
    }
}

fn total(name: &'static str, value: u64, labels: &[(&'static str, String)]) {
    describe_counter!(name, Unit::Count, DESCRIPTION);
    counter!(name, labels).absolute(value);
}
