//! Exports the figures of a layer and of its caches to the recorder of the `metrics` facade. The manual's page on
//! figures lists names and units.
//!
//! Counters are exported as totals. So nothing is lost or counted twice, however often this is called, and no read or
//! write pays for it. The structures are destructured without `..`, so that a new field does not compile until it is
//! exported or listed here as left out.

use ::metrics::{Label, Unit, counter, describe_counter, describe_gauge, gauge};

use crate::feed::change::ChangeLag;
use crate::feed::follow::FollowStatus;
use crate::feed::publisher::{FollowerStatus, PublishStatus};
use crate::layer::layer::Layer;
use crate::metrics::{Figure, FigureValue};
use crate::queue::health::Health;

/// The description of every figure.
const DESCRIPTION: &str = "see the manual's page on figures";

impl Layer {
    /// Exports all figures of the layer and of its caches to the installed recorder.
    pub(crate) fn record_metrics(&self) {
        for (namespace, stats) in self.views.stats() {
            record(&stats.figures(), &[Label::new("namespace", namespace.as_str().to_owned())]);
        }
        record(&self.stats().figures(), &[]);
        record(&health_figures(&self.health()), &[]);
        for (status, followers) in self.publishers.list() {
            let publisher = Label::new("publisher", status.name.clone());
            record(&publisher_figures(&status), std::slice::from_ref(&publisher));
            for follower in followers {
                let labels = [publisher.clone(), Label::new("follower", follower.name.clone())];
                record(&follower_figures(&follower), &labels);
            }
        }
        if let Some(follower) = &self.follower {
            record(&following_figures(&follower.status()), &[]);
        }
    }
}

fn health_figures(health: &Health) -> Vec<Figure> {
    // The queue's figures are exported with the counters. The other fields have no unit that an alert could use.
    let Health {
        state: _,
        error: _,
        attempts: _,
        epoch: _,
        watermark: _,
        refeeding_until,
        committed: _,
        queued_records: _,
        queued_bytes: _,
        dead_letters,
        journal_bytes,
    } = *health;
    vec![
        plain("forebay_journal_bytes", FigureValue::Bytes(journal_bytes)),
        plain("forebay_dead_letters", FigureValue::Number(dead_letters)),
        plain("forebay_refeeding", FigureValue::Number(u64::from(refeeding_until.is_some()))),
    ]
}

/// The figures of a publisher.
fn publisher_figures(status: &PublishStatus) -> Vec<Figure> {
    let PublishStatus { name: _, published: _, lag, error, events, directives, places_lost } = status;
    let ChangeLag { records, bytes, age } = *lag;
    vec![
        plain("forebay_publisher_events_total", FigureValue::Total(*events)),
        plain("forebay_publisher_directives_total", FigureValue::Total(*directives)),
        plain("forebay_publisher_places_lost_total", FigureValue::Total(*places_lost)),
        plain("forebay_publisher_lag_records", FigureValue::Number(records)),
        plain("forebay_publisher_lag_bytes", FigureValue::Bytes(bytes)),
        plain("forebay_publisher_lag_seconds", FigureValue::Time(age)),
        plain("forebay_publisher_failing", FigureValue::Number(u64::from(error.is_some()))),
    ]
}

/// The figures of a follower, as its owner last received them.
fn follower_figures(status: &FollowerStatus) -> Vec<Figure> {
    let FollowerStatus { name: _, seen: _, lag, silent_for } = status;
    let ChangeLag { records, bytes, age } = *lag;
    vec![
        plain("forebay_follower_lag_records", FigureValue::Number(records)),
        plain("forebay_follower_lag_bytes", FigureValue::Bytes(bytes)),
        plain("forebay_follower_lag_seconds", FigureValue::Time(age)),
        plain("forebay_follower_silent_seconds", FigureValue::Time(*silent_for)),
    ]
}

/// The figures of a layer that follows another process.
fn following_figures(status: &FollowStatus) -> Vec<Figure> {
    let FollowStatus {
        listening: _,
        position: _,
        epoch: _,
        unverified_for,
        behind_records,
        behind_bytes,
        silent_for: _,
        error,
        events,
        directives,
        rules_failed,
        directives_elsewhere,
        refused,
        refused_owner,
        has_gap: _,
        gaps,
        positions_lost,
        places_lost,
    } = status;
    let totals = [
        ("forebay_following_events_total", events),
        ("forebay_following_directives_total", directives),
        ("forebay_following_directives_elsewhere_total", directives_elsewhere),
        ("forebay_following_rules_failed_total", rules_failed),
        ("forebay_following_refused_total", refused),
        ("forebay_following_refused_owner_total", refused_owner),
        ("forebay_following_gaps_total", gaps),
        ("forebay_following_positions_lost_total", positions_lost),
        ("forebay_following_places_lost_total", places_lost),
    ];
    let mut figures: Vec<Figure> =
        totals.into_iter().map(|(name, total)| plain(name, FigureValue::Total(*total))).collect();
    figures.extend([
        plain("forebay_following_lag_records", FigureValue::Number(*behind_records)),
        plain("forebay_following_lag_bytes", FigureValue::Bytes(*behind_bytes)),
        plain("forebay_following_lag_seconds", FigureValue::Time(*unverified_for)),
        plain("forebay_following_failing", FigureValue::Number(u64::from(error.is_some()))),
    ]);
    figures
}

fn plain(name: &'static str, value: FigureValue) -> Figure {
    Figure { name, label: None, value }
}

/// Exports figures under the given labels and each figure's own.
fn record(figures: &[Figure], labels: &[Label]) {
    for Figure { name, label, value } in figures {
        let own = label.map(|(key, value)| Label::from_static_parts(key, value));
        let labels: Vec<Label> = labels.iter().cloned().chain(own).collect();
        let (number, unit) = match *value {
            FigureValue::Total(total) => {
                describe_counter!(*name, Unit::Count, DESCRIPTION);
                // Absolute, because an increment would count everything again with each export.
                counter!(*name, labels).absolute(total);
                continue;
            }
            FigureValue::Number(number) => (number as f64, Unit::Count),
            FigureValue::Bytes(bytes) => (bytes as f64, Unit::Bytes),
            FigureValue::Time(time) => (time.as_secs_f64(), Unit::Seconds),
        };
        describe_gauge!(*name, unit, DESCRIPTION);
        gauge!(*name, labels).set(number);
    }
}
