//! What the monitor found, for the recorder of the `metrics` facade. Names and units are the manual's, on its page on
//! the monitor.

use ::metrics::{Unit, counter, describe_counter, describe_gauge, gauge};

use crate::monitor::report::{MonitorReport, Share};
use crate::monitor::sampling::Monitor;

const SEE: &str = "see the manual's page on the monitor";
const ASKED: &str = "forebay_monitor_asked_total";
const CONSISTENT: &str = "forebay_monitor_consistent_total";
const WRITES_ASKED: &str = "forebay_monitor_writes_asked_total";
const WRITES_CONSISTENT: &str = "forebay_monitor_writes_consistent_total";
const UNKNOWN: &str = "forebay_monitor_unknown_total";
const INCONSISTENT: &str = "forebay_monitor_inconsistent_total";

type OfMonitor = (&'static str, fn(&MonitorReport) -> u64);

const OF_MONITOR: &[OfMonitor] = &[
    ("forebay_monitor_writes_total", |report| report.writes),
    ("forebay_monitor_sampled_total", |report| report.sampled),
    ("forebay_monitor_skipped_total", |report| report.skipped),
    ("forebay_monitor_abandoned_total", |report| report.abandoned),
];

impl Monitor {
    /// Hands what was found so far to the recorder that is installed for the `metrics` facade.
    ///
    /// Counters are told as totals: call it before each scrape, or every few seconds.
    pub fn record_metrics(&self) {
        let report = self.report();
        for (name, pick) in OF_MONITOR {
            describe_counter!(*name, Unit::Count, SEE);
            counter!(*name).absolute(pick(&report));
        }
        describe_gauge!("forebay_monitor_in_flight", Unit::Count, SEE);
        gauge!("forebay_monitor_in_flight").set(report.in_flight as f64);
        describe_gauge!("forebay_monitor_late_max_seconds", Unit::Seconds, SEE);
        gauge!("forebay_monitor_late_max_seconds").set(report.late_max.as_secs_f64());
        record_shares([WRITES_ASKED, WRITES_CONSISTENT], &report.overall, None);
        for follower in &report.followers {
            record_shares([ASKED, CONSISTENT], &follower.shares, Some(&follower.name));
            describe_counter!(UNKNOWN, Unit::Count, SEE);
            let unknown = follower.shares.iter().map(|share| share.unknown).sum();
            counter!(UNKNOWN, "follower" => follower.name.clone()).absolute(unknown);
            describe_counter!(INCONSISTENT, Unit::Count, SEE);
            for (reason, count) in &follower.reasons {
                let labels = [("follower", follower.name.clone()), ("reason", reason.as_str().to_owned())];
                counter!(INCONSISTENT, &labels).absolute(*count);
            }
        }
    }
}

fn record_shares([asked, consistent]: [&'static str; 2], shares: &[Share], follower: Option<&str>) {
    describe_counter!(asked, Unit::Count, SEE);
    describe_counter!(consistent, Unit::Count, SEE);
    for share in shares {
        let mut labels = vec![("delay_seconds", share.delay.as_secs_f64().to_string())];
        labels.extend(follower.map(|follower| ("follower", follower.to_owned())));
        counter!(asked, &labels).absolute(share.asked);
        counter!(consistent, &labels).absolute(share.consistent);
    }
}
