//! Reads a block trace: `version,time,op,size,lbn`, one operation per line.
//!
//! A line that is not an operation is an error that names the file, the line and the field; nothing is
//! skipped.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

const HEADER: &str = "version,time,op,size,lbn";

/// The operation of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
}

/// One line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Operation {
    pub(crate) kind: Kind,
    /// The size of the transfer in bytes.
    pub(crate) bytes: usize,
    /// The logical block number: the key.
    pub(crate) block: u64,
}

/// Reads at most `limit` operations.
pub(crate) fn read(path: &Path, limit: usize) -> Result<Vec<Operation>> {
    let file = File::open(path).with_context(|| format!("{}: cannot be opened", path.display()))?;
    let mut operations = Vec::new();
    let mut saw_header = false;
    for (line, number) in BufReader::new(file).lines().zip(1_u64..) {
        let place = || format!("{}:{number}", path.display());
        let line = line.with_context(|| format!("{}: cannot be read", place()))?;
        if !saw_header {
            ensure!(line.trim_end() == HEADER, "{}: the first line has to be \"{HEADER}\"", place());
            saw_header = true;
            continue;
        }
        if operations.len() == limit {
            break;
        }
        operations.push(parse(line.trim_end()).with_context(place)?);
    }
    ensure!(!operations.is_empty(), "{}: holds no operation", path.display());
    Ok(operations)
}

fn parse(line: &str) -> Result<Operation> {
    let fields: Vec<&str> = line.split(',').collect();
    let &[_version, _time, op, size, block] = fields.as_slice() else {
        bail!("{} fields; there have to be 5: {HEADER}", fields.len());
    };
    // The SCSI operation codes READ(10) and WRITE(10).
    let kind = match op {
        "28" => Kind::Read,
        "2a" => Kind::Write,
        _ => bail!("op is {op:?}; it has to be 28 (read) or 2a (write)"),
    };
    let bytes = size.parse().with_context(|| format!("size is {size:?}; it has to be a number of bytes"))?;
    let block = block.parse().with_context(|| format!("lbn is {block:?}; it has to be a block number"))?;
    Ok(Operation { kind, bytes, block })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Vec<Operation>> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("trace.csv");
        std::fs::write(&path, text).unwrap();
        read(&path, 10)
    }

    #[test]
    fn reads_what_is_there() {
        let operations = read_text("version,time,op,size,lbn\n1,5,2a,512,42\n1,6,28,4096,7\n").unwrap();
        let write = Operation { kind: Kind::Write, bytes: 512, block: 42 };
        assert_eq!(operations, [write, Operation { kind: Kind::Read, bytes: 4096, block: 7 }]);
    }

    #[test]
    fn a_bad_line_is_named() {
        let cases = [
            ("", "holds no operation"),
            ("version,time,op,size,lbn\n", "holds no operation"),
            ("a,b\n", "trace.csv:1: the first line"),
            ("version,time,op,size,lbn\n1,5,2a,512,42\n1,5,2a,512\n", "trace.csv:3: 4 fields"),
            ("version,time,op,size,lbn\n1,5,zz,512,42\n", "trace.csv:2: op is \"zz\""),
            ("version,time,op,size,lbn\n1,5,28,-1,42\n", "trace.csv:2: size is \"-1\""),
            ("version,time,op,size,lbn\n1,5,28,1,x\n", "trace.csv:2: lbn is \"x\""),
        ];
        for (text, expected) in cases {
            let error = format!("{:#}", read_text(text).unwrap_err());
            assert!(error.contains(expected), "{text:?} gave {error:?}");
        }
        let missing = format!("{:#}", read(Path::new("no/such/trace.csv"), 1).unwrap_err());
        assert!(missing.contains("no/such/trace.csv: cannot be opened"), "{missing}");
    }
}
