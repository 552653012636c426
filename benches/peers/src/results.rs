//! The figures of all rounds, as they lie in the file.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::calls::Calls;
use crate::figures::{Figures, Summary};
use crate::machine::Machine;
use crate::subject::{Class, Face};

/// A line of the table.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) durability: String,
    pub(crate) face: String,
    pub(crate) writers: usize,
    pub(crate) value_bytes: usize,
    /// The duration of each measurement of a round.
    pub(crate) measure_ms: u64,
    #[serde(flatten)]
    pub(crate) figures: Summary,
}

/// The identity of a row.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Id<'a> {
    pub(crate) what: &'a str,
    pub(crate) class: Class,
    pub(crate) face: Face,
    pub(crate) writers: usize,
    pub(crate) value_bytes: usize,
}

impl Row {
    pub(crate) fn of(id: Id, measure_ms: u64, rounds: &[Figures]) -> Row {
        Row {
            what: id.what.to_owned(),
            durability: id.class.name().to_owned(),
            face: id.face.name().to_owned(),
            writers: id.writers,
            value_bytes: id.value_bytes,
            measure_ms,
            figures: Summary::of(rounds),
        }
    }

    pub(crate) fn is(&self, id: Id) -> bool {
        self.what == id.what
            && self.durability == id.class.name()
            && self.face == id.face.name()
            && self.writers == id.writers
            && self.value_bytes == id.value_bytes
    }

    fn same(&self, other: &Row) -> bool {
        self.what == other.what
            && self.durability == other.durability
            && self.face == other.face
            && self.writers == other.writers
            && self.value_bytes == other.value_bytes
    }
}

/// All that the file holds.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Results {
    pub(crate) machine: Machine,
    pub(crate) rows: Vec<Row>,
    pub(crate) calls: Vec<Calls>,
}

impl Results {
    /// # Errors
    /// The file cannot be read, or is not of this form.
    pub(crate) fn read(path: &Path) -> Result<Results> {
        let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is not of this form", path.display()))
    }

    /// # Errors
    /// The file cannot be written.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))
    }

    /// Takes the rows in that `newer` lacks.
    pub(crate) fn keep_from(&mut self, older: Results) {
        let rows = older.rows.into_iter().filter(|row| !self.rows.iter().any(|newer| newer.same(row)));
        let kept: Vec<Row> = rows.collect();
        self.rows.extend(kept);
        let calls = older.calls.into_iter().filter(|calls| !self.calls.iter().any(|newer| newer.same(calls)));
        let kept: Vec<Calls> = calls.collect();
        self.calls.extend(kept);
    }

    /// Describes in a sentence what the figures are medians of.
    pub(crate) fn lengths(&self) -> String {
        let each: BTreeSet<String> = self
            .rows
            .iter()
            .map(|row| format!("{} rounds of {} ms", row.figures.rounds, row.measure_ms))
            .collect();
        let each: Vec<String> = each.into_iter().collect();
        format!("Medians over {}, with the lowest and highest round.", each.join(", or "))
    }

    pub(crate) fn row(&self, id: Id) -> Option<&Row> {
        self.rows.iter().find(|row| row.is(id))
    }

    /// The system calls of one of them, if they were looked at.
    pub(crate) fn calls(&self, what: &str, class: Class) -> Option<&Calls> {
        self.calls.iter().find(|calls| calls.what == what && calls.durability == class.name())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::figures::Taken;

    /// A row with a map by numbers was written, and could not be read again.
    #[test]
    fn what_is_written_is_read_again() {
        let taken = |slowest_ns| Taken {
            latencies_ns: (1..=999).map(|us| us * 1_000).chain([slowest_ns]).collect(),
            took: Duration::from_millis(500),
        };
        let rounds = [taken(5_000_000), taken(1_000_000), taken(9_000_000)].map(Taken::figures);
        let id = Id { what: "raw", class: Class::Synced, face: Face::Threads, writers: 1, value_bytes: 100 };
        let results = Results { rows: vec![Row::of(id, 500, &rounds)], ..Results::default() };
        let text = serde_json::to_string(&results).unwrap();
        let read: Results = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), text);

        let figures = &read.row(id).unwrap().figures;
        assert_eq!((figures.p50_us, figures.p99_us, figures.p999_us), (500.0, 990.0, 999.0));
        assert_eq!((figures.writes_per_s, figures.rounds), (2_000.0, 3));
        assert_eq!(figures.quantiles_us.first(), Some(&(10, 10.0)));
    }
}
