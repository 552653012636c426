//! What the flusher has in hand: the batch under construction, and what it reads back from the journal for it.

use crate::error::Result;
use crate::ids::Seq;
use crate::journal::frame::Frame;
use crate::journal::log::Reader;
use crate::options::LayerOptions;
use crate::queue::queued::QueuedFrame;
use crate::queue::record::{Operation, Record};

/// The journal as a second source beside memory, and the frame read from it last.
pub(crate) struct Source {
    pub(crate) reader: Option<Reader>,
    pub(crate) ahead: Option<Frame>,
    /// The last number in the journal when the layer opened.
    recovered: Seq,
}

impl Source {
    pub(crate) fn new(recovered: Seq) -> Source {
        Source { reader: None, ahead: None, recovered }
    }

    /// Whether a frame of the journal is the notice of one that is written through and comes from memory. (Of one that
    /// an earlier process was to write through, nothing but the notice is left.)
    pub(crate) fn is_of_memory(&self, frame: &Frame) -> Result<bool> {
        match frame.records().next() {
            Some(bytes) if frame.last() > self.recovered => {
                Ok(Record::parse(&bytes)?.operation == Operation::Notice)
            }
            _ => Ok(false),
        }
    }
}

/// A batch under construction.
#[derive(Default)]
pub(crate) struct Hand {
    pub(crate) frames: Vec<QueuedFrame>,
    records: usize,
    bytes: u64,
    pub(crate) full: bool,
}

impl Hand {
    /// Whether the frame fits; if not, the batch is full. A single frame always fits: it is never split. An order to
    /// the dead-letter list is a batch of its own.
    pub(crate) fn admits(&mut self, frame: &QueuedFrame, options: &LayerOptions) -> Result<bool> {
        let control = is_control(frame)?;
        let records = self.records + frame.count as usize;
        let bytes = self.bytes + frame.bytes;
        let over = records > options.batch_records_max || bytes > options.batch_bytes_max;
        if !self.frames.is_empty() && (control || over) {
            self.full = true;
            return Ok(false);
        }
        self.full = control || records >= options.batch_records_max || bytes >= options.batch_bytes_max;
        (self.records, self.bytes) = (records, bytes);
        Ok(true)
    }
}

/// Whether a frame is an order to the dead-letter list.
pub(crate) fn is_control(frame: &QueuedFrame) -> Result<bool> {
    match frame.records().next() {
        Some(numbered) => Ok(numbered?.1.is_control()),
        None => Ok(false),
    }
}
