//! Spans of the long operations: loads, applies, and the opening of a layer.
//!
//! With the feature `tracing` they are that crate's; without it they cost nothing. No span holds a key or a value.

#[cfg(feature = "tracing")]
use tracing::field::Empty;

/// A span, or nothing without the feature `tracing`.
pub(crate) struct Span(#[cfg(feature = "tracing")] tracing::Span);

#[cfg(not(feature = "tracing"))]
impl Span {
    pub(crate) fn load(_namespace: &str, _keys: usize) -> Span {
        Span()
    }

    pub(crate) fn apply(_last: u64, _ops: usize) -> Span {
        Span()
    }

    pub(crate) fn recovery() -> Span {
        Span()
    }

    #[allow(clippy::unused_self, reason = "there is nothing to note it in")]
    pub(crate) fn note(&self, _field: &'static str, _value: u64) {}

    #[allow(clippy::unused_self, reason = "there is nothing to note it in")]
    pub(crate) fn failed(&self, _kind: impl std::fmt::Debug) {}

    #[allow(clippy::unused_self, reason = "there is nothing to be within")]
    pub(crate) fn around<F: Future>(&self, work: F) -> F {
        work
    }
}

#[cfg(feature = "tracing")]
impl Span {
    /// Begins the span of a load of so many keys: `forebay.load`.
    pub(crate) fn load(namespace: &str, keys: usize) -> Span {
        Span(tracing::debug_span!("forebay.load", namespace, keys, found = Empty, error = Empty))
    }

    /// Begins the span of an apply, of a batch that ends with this record and makes so many changes: `forebay.apply`.
    pub(crate) fn apply(last: u64, ops: usize) -> Span {
        Span(tracing::debug_span!("forebay.apply", last, ops, retries = Empty, error = Empty))
    }

    /// Begins the span of the opening of a layer: `forebay.recovery`.
    pub(crate) fn recovery() -> Span {
        Span(tracing::info_span!("forebay.recovery", epoch = Empty, pending = Empty, error = Empty))
    }

    /// Fills in a field that was left open.
    pub(crate) fn note(&self, field: &'static str, value: u64) {
        self.0.record(field, value);
    }

    /// Records the kind of the failure that it ended with.
    pub(crate) fn failed(&self, kind: impl std::fmt::Debug) {
        self.0.record("error", tracing::field::debug(kind));
    }

    /// Runs work within the span.
    pub(crate) fn around<F: Future>(&self, work: F) -> tracing::instrument::Instrumented<F> {
        tracing::Instrument::instrument(work, self.0.clone())
    }
}
