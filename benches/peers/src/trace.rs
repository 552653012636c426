//! Reading what `strace -f -y` wrote: the calls on files of one directory, between two marks.
//!
//! Files whose names begin with `spare-` do not count: they are prepared ahead, in whichever put's time, and are used
//! again and again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

/// The calls that make something durable. `sync_file_range` does not, though it sends pages to the disk.
pub(crate) const SYNCS: [&str; 5] = ["fsync", "fdatasync", "msync", "syncfs", "sync"];
/// Those of them that are not of one file.
const SYNCS_OF_ALL: [&str; 3] = ["msync", "syncfs", "sync"];
/// The marks: files that are not there, and that somebody tries to open.
pub(crate) const BEGIN: &str = "puts-begin";
pub(crate) const END: &str = "puts-end";
/// The smallest write of the system, on the machines that this is for.
pub(crate) const PAGE_BYTES: u64 = 4096;

/// The calls of a trace between its marks.
#[derive(Default)]
pub(crate) struct Trace {
    /// Calls by name.
    pub(crate) counts: BTreeMap<String, u64>,
    /// Bytes handed to the system.
    pub(crate) bytes: u64,
    /// Pages that the disk is given for them: each that a file's writes touched since its last sync, once for each
    /// sync. What is not synced until the end counts as if it were synced then.
    pub(crate) pages: u64,
    /// A file is open so that each write is a sync.
    pub(crate) opened_synced: bool,
}

impl Trace {
    /// # Errors
    /// A mark is missing: then the trace is not one of this program.
    pub(crate) fn read(text: &str, directory: &Path) -> Result<Trace> {
        let directory = directory.to_str().context("a path that is not UTF-8")?;
        let mut reader = Reader { directory, ..Reader::default() };
        text.lines().for_each(|line| reader.line(line));
        ensure!(reader.begun && reader.ended, "a mark is missing");
        reader.files.values_mut().for_each(|file| reader.trace.pages += file.synced());
        Ok(reader.trace)
    }
}

#[derive(Default)]
struct Reader<'a> {
    directory: &'a str,
    begun: bool,
    ended: bool,
    trace: Trace,
    files: HashMap<&'a str, Written>,
    /// The write of each thread that strace has told the beginning of.
    unfinished: HashMap<&'a str, Write<'a>>,
}

/// The writes to one file.
#[derive(Default)]
struct Written {
    /// Where the next `write` goes: behind the last one.
    position: u64,
    /// Pages that the next sync sends to the disk.
    pages: BTreeSet<u64>,
}

impl Written {
    fn synced(&mut self) -> u64 {
        let pages = self.pages.len() as u64;
        self.pages.clear();
        pages
    }
}

/// A write that has begun.
#[derive(Clone, Copy)]
struct Write<'a> {
    file: &'a str,
    /// None: at the file's own position.
    at: Option<u64>,
    counts: bool,
}

impl<'a> Reader<'a> {
    fn line(&mut self, line: &'a str) {
        let (thread, call) = line.split_once(' ').unwrap_or((line, ""));
        let call = call.trim_start();
        let result = call.rsplit_once(" = ").and_then(|(_, result)| result.parse::<u64>().ok());
        if call.starts_with("<... ") {
            if let Some(write) = self.unfinished.remove(thread) {
                self.wrote(write, result.unwrap_or(0));
            }
            return;
        }
        let Some((name, arguments)) = call.split_once('(') else { return };
        if name == "openat" {
            self.opened(arguments);
            return;
        }
        let file = arguments.split_once('<').and_then(|(_, rest)| rest.split_once('>')).map(|(path, _)| path);
        let own = file.filter(|path| path.starts_with(self.directory) && !path.contains("/spare-"));
        let counts = self.begun && !self.ended;
        // Two of the syncs have no file to tell them by.
        if counts && (own.is_some() || name == "msync" || name == "sync") {
            *self.trace.counts.entry(name.to_owned()).or_default() += 1;
        }
        if SYNCS_OF_ALL.contains(&name) {
            self.files.values_mut().for_each(|file| self.trace.pages += file.synced());
        } else if name == "sync_file_range" || SYNCS.contains(&name) {
            let written = own.and_then(|file| self.files.get_mut(file));
            self.trace.pages += written.map_or(0, Written::synced);
        } else if let Some(file) = own {
            let write = Write { file, at: place(name, arguments), counts };
            if call.ends_with("<unfinished ...>") {
                self.unfinished.insert(thread, write);
            } else {
                self.wrote(write, result.unwrap_or(0));
            }
        }
    }

    fn opened(&mut self, arguments: &str) {
        if arguments.contains(self.directory) {
            self.begun |= arguments.contains(&format!("{}/{BEGIN}", self.directory));
            self.ended |= arguments.contains(&format!("{}/{END}", self.directory));
            self.trace.opened_synced |= arguments.contains("O_DSYNC") || arguments.contains("O_SYNC");
        }
    }

    fn wrote(&mut self, write: Write<'a>, bytes: u64) {
        let file = self.files.entry(write.file).or_default();
        let at = write.at.unwrap_or(file.position);
        if write.at.is_none() {
            file.position += bytes;
        }
        if write.counts && bytes > 0 {
            self.trace.bytes += bytes;
            file.pages.extend(at / PAGE_BYTES..=(at + bytes - 1) / PAGE_BYTES);
        }
    }
}

/// Where in its file a call writes, if it says so.
fn place(name: &str, arguments: &str) -> Option<u64> {
    let behind = match name {
        "pwrite64" | "pwritev" => 0,
        "pwritev2" => 1,
        _ => return None,
    };
    let arguments = arguments.trim_end_matches(" <unfinished ...>");
    let arguments = arguments.rsplit_once(") = ").map_or(arguments, |(before, _)| before);
    arguments.rsplit(", ").nth(behind)?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sync that strace tells in two parts was counted twice, and a log's lines were taken for the data's.
    #[test]
    fn only_the_calls_between_the_marks_and_on_its_own_files_count() {
        let text = "\
7 write(3</d/log>, \"\"..., 50) = 50
7 openat(AT_FDCWD</>, \"/d/puts-begin\", O_RDONLY) = -1 ENOENT
7 write(3</d/log>, \"\"..., 108) = 108
8 pwrite64(4</d/log>, \"\"..., 16, 0 <unfinished ...>
7 fdatasync(3</d/log> <unfinished ...>
8 <... pwrite64 resumed>) = 16
7 <... fdatasync resumed>) = 0
7 write(1<pipe:[3]>, \"\"..., 9) = 9
7 pwrite64(5</d/spare-1.tmp>, \"\"..., 1048576, 0) = 1048576
7 openat(AT_FDCWD</>, \"/d/puts-end\", O_RDONLY) = -1 ENOENT
7 fdatasync(3</d/log>) = 0
";
        let trace = Trace::read(text, Path::new("/d")).unwrap();
        let counts: Vec<_> = trace.counts.iter().map(|(name, count)| (name.as_str(), *count)).collect();
        assert_eq!(counts, [("fdatasync", 1), ("pwrite64", 1), ("write", 1)]);
        assert_eq!(trace.bytes, 124);
        assert!(!trace.opened_synced);
        assert!(Trace::read("", Path::new("/d")).is_err(), "without the marks it is no trace of ours");
    }

    /// Two small writes that a sync divides take the same page to the disk twice; two that it does not divide, once.
    #[test]
    fn a_page_counts_once_for_each_sync() {
        let pages = |calls: &[&str]| {
            let open = |mark: &str| format!("7 openat(AT_FDCWD</>, \"/d/{mark}\", O_RDONLY) = -1 ENOENT\n");
            let text: String = calls.iter().map(|call| format!("7 {call}\n")).collect();
            Trace::read(&(open(BEGIN) + &text + &open(END)), Path::new("/d")).unwrap().pages
        };
        let (first, second) =
            ("pwrite64(3</d/a>, \"\"..., 100, 0) = 100", "pwrite64(3</d/a>, \"\"..., 100, 100) = 100");
        let sync = "fdatasync(3</d/a>) = 0";
        assert_eq!(pages(&[first, second, sync]), 1);
        assert_eq!(pages(&[first, sync, second, sync]), 2);
        assert_eq!(pages(&[first, "fsync(4</d/b>) = 0", second]), 1, "another file's sync does not send it");
        assert_eq!(pages(&[first, "sync() = 0", second]), 2);
        assert_eq!(pages(&["pwrite64(3</d/a>, \"\"..., 100, 4090) = 100"]), 2, "it lies across an edge");
        let append = "write(3</d/a>, \"\"..., 4000) = 4000";
        assert_eq!(pages(&[append, sync, append, sync]), 3, "the second lies across an edge");
    }
}
