//! A subject of a measurement: something that takes puts, opened in a directory of its own.
//!
//! A [`Subject`] hands out one [`Writer`] per thread, so that a peer with a connection per thread has its due. What
//! async tasks can call besides gives them a [`TaskPut`].

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::ValueEnum;

use crate::figures::Taken;
use crate::load::Load;

/// The length of a key, the same with every peer.
pub(crate) const KEY_BYTES: usize = 8;

/// The durability of a put when its call returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Class {
    /// It survives a power cut.
    Synced,
    /// It does not; how much it does survive differs and stands in the report.
    Unsynced,
}

impl Class {
    pub(crate) const ALL: [Class; 2] = [Class::Synced, Class::Unsynced];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Class::Synced => "synced",
            Class::Unsynced => "unsynced",
        }
    }

    pub(crate) fn sentence(self) -> &'static str {
        match self {
            Class::Synced => "durable when the call returns",
            Class::Unsynced => "not synced when the call returns",
        }
    }
}

/// The kind of caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Face {
    /// Threads of the operating system, each waiting in its own call.
    Threads,
    /// Async tasks on a runtime with as many threads as there are cores.
    Tasks,
}

impl Face {
    pub(crate) const ALL: [Face; 2] = [Face::Threads, Face::Tasks];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Face::Threads => "threads",
            Face::Tasks => "tasks",
        }
    }
}

/// One of the things that are compared, before it is opened.
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) name: &'static str,
    /// The durabilities that it has, each with the settings it is opened with.
    pub(crate) classes: &'static [(Class, &'static str)],
    pub(crate) faces: &'static [Face],
    pub(crate) open: fn(&Path, Class) -> Result<Box<dyn Subject>>,
}

impl Entry {
    pub(crate) fn settings(&self, class: Class) -> Option<&'static str> {
        self.classes.iter().find(|(of, _)| *of == class).map(|(_, settings)| *settings)
    }
}

pub(crate) trait Subject: Send + Sync {
    /// The handle with which one thread puts.
    ///
    /// # Errors
    /// Where a connection cannot be made.
    fn writer(&self) -> Result<Box<dyn Writer + '_>>;

    /// Async tasks that put, if there is an async call.
    ///
    /// # Errors
    /// The first put that failed; there is no async call.
    fn measure_tasks(&self, _load: &Load) -> Result<Taken> {
        bail!("there is no async call")
    }

    /// Ends what still goes on behind the puts, so that nobody else pays for it.
    ///
    /// # Errors
    /// The peer's own.
    fn settle(&self) -> Result<()>;

    /// Ends it in an orderly way.
    ///
    /// # Errors
    /// The peer's own.
    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

pub(crate) trait Writer {
    /// Returns when the put has the durability of the class.
    ///
    /// # Errors
    /// The peer's own; nothing is repeated.
    fn put(&mut self, key: u64, value: Vec<u8>) -> Result<()>;
}

/// The handle of async tasks.
pub(crate) trait TaskPut: Clone + Send + Sync + 'static {
    /// As [`Writer::put`].
    fn put(&self, key: u64, value: Vec<u8>) -> impl Future<Output = Result<()>> + Send;
}

/// The load of a measurement: its duration, its writers and its values.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measure {
    pub(crate) writers: usize,
    pub(crate) value_bytes: usize,
    pub(crate) warm_up: Duration,
    pub(crate) measure: Duration,
}
