//! The system calls of a traced process, as `strace` tells them.
//!
//! Understands the calls that the embedded stores make on their files, and panics at one that it does not know: a call
//! that was passed over would make the files that are rebuilt from the others wrong.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// One system call that had, or may have had, an effect.
#[derive(Debug)]
pub struct Call {
    pub begin: usize,
    /// For a call that never returned, the end of its process.
    pub end: usize,
    pub action: Action,
}

#[derive(Debug)]
pub enum Action {
    Create {
        path: PathBuf,
        truncate: bool,
    },
    Write {
        path: PathBuf,
        /// [`APPENDED`] until [`resolve_appends`] knows better.
        offset: usize,
        data: Vec<u8>,
    },
    Truncate {
        path: PathBuf,
        len: usize,
    },
    Sync {
        path: PathBuf,
    },
    MakeDir {
        path: PathBuf,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    Unlink {
        path: PathBuf,
    },
    /// The traced program's own word on its standard output.
    Said {
        text: String,
    },
}

impl std::fmt::Display for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.action {
            Action::Write { path, offset, data } => {
                write!(f, "write of {} bytes at {offset} to {path:?}", data.len())
            }
            other => write!(f, "{other:?}"),
        }
    }
}

/// The offset of a write to a file that was opened for appending.
pub const APPENDED: usize = usize::MAX;

/// The options of `strace` whose output [`parse`] understands.
pub const STRACE: [&str; 6] = [
    "-f",
    "-y",
    "-s",
    "100000000",
    "-e",
    "trace=openat,lseek,write,pwrite64,writev,pwritev,pwritev2,ftruncate,truncate,fallocate,fsync,fdatasync,\
     sync_file_range,mkdir,mkdirat,rename,renameat,renameat2,unlink,unlinkat,rmdir,link,linkat,symlink,msync",
];

/// Reads the trace of one process. Its lines are counted from `first`; returns the next free line too.
pub fn parse(log: &str, first: usize) -> (Vec<Call>, usize) {
    let mut texts: Vec<(usize, Option<usize>, String)> = Vec::new();
    let mut open: HashMap<&str, usize> = HashMap::new();
    let mut next = first;
    for (line, text) in (first..).zip(log.lines()) {
        next = line + 1;
        let (thread, text) = text.trim_start().split_once(' ').expect("strace -f -o starts with the thread");
        let text = text.trim_start();
        if let Some(begun) = text.strip_suffix("<unfinished ...>") {
            open.insert(thread, texts.len());
            texts.push((line, None, begun.trim_end().to_owned()));
        } else if text.starts_with("<... ") {
            let (_, rest) = text.split_once("resumed>").expect("strace names what it resumes");
            // A thread that the end of its process caught has nothing to resume.
            if let Some(at) = open.remove(thread) {
                texts[at].2.push_str(rest);
                texts[at].1 = Some(line);
            }
        } else if !text.starts_with("+++") && !text.starts_with("---") {
            texts.push((line, Some(line), text.to_owned()));
        }
    }
    let mut positions: HashMap<String, usize> = HashMap::new();
    let calls = texts.into_iter().filter_map(|(begin, end, text)| {
        let action = action(&text, &mut positions)?;
        Some(Call { begin, end: end.unwrap_or(next), action })
    });
    (calls.collect(), next)
}

/// Gives each appended write its place: behind what its file held when the write began.
pub fn resolve_appends(calls: &mut [Call]) {
    let mut lens: HashMap<PathBuf, usize> = HashMap::new();
    for call in calls {
        match &mut call.action {
            Action::Create { path, truncate } => {
                let len = lens.entry(path.clone()).or_default();
                *len = if *truncate { 0 } else { *len };
            }
            Action::Write { path, offset, data } => {
                let len = lens.entry(path.clone()).or_default();
                if *offset == APPENDED {
                    *offset = *len;
                }
                *len = (*len).max(*offset + data.len());
            }
            Action::Truncate { path, len } => {
                lens.insert(path.clone(), *len);
            }
            Action::Rename { from, to } => {
                let moved = lens.extract_if(|path, _| path.starts_with(&*from));
                let moved: Vec<_> = moved.map(|(path, len)| (moved_path(&path, from, to), len)).collect();
                lens.extend(moved);
            }
            Action::Unlink { path } => {
                lens.remove(path);
            }
            _ => {}
        }
    }
}

/// Where `path` is once `from`, which it is or lies in, has become `to`.
pub fn moved_path(path: &Path, from: &Path, to: &Path) -> PathBuf {
    let below = path.strip_prefix(from).expect("it is or lies in what was moved");
    if below.as_os_str().is_empty() { to.to_owned() } else { to.join(below) }
}

/// `None` for a call that failed, or that changes nothing here. `positions` is where each descriptor stands.
fn action(text: &str, positions: &mut HashMap<String, usize>) -> Option<Action> {
    let (name, arguments) = text.split_once('(').expect("a call has arguments");
    // What was cut off by the end of its process has no result, and may have happened.
    let result: Option<i64> = text.rsplit_once(" = ").and_then(|(_, result)| {
        let digits: String = result.chars().take_while(|c| c.is_ascii_digit() || *c == '-').collect();
        digits.parse().ok()
    });
    if result.is_some_and(|result| result < 0) {
        return None;
    }
    let descriptor = || {
        let (number, rest) = arguments.split_once('<').expect("strace -y shows descriptors with paths");
        let (path, rest) = rest.split_once('>').expect("strace closes what it opens");
        (number.to_owned(), PathBuf::from(path), rest)
    };
    Some(match name {
        "openat" => {
            let path = quoted_path(arguments);
            let number = result?.to_string();
            positions.insert(number, if arguments.contains("O_APPEND") { APPENDED } else { 0 });
            if !arguments.contains("O_CREAT") && !arguments.contains("O_TRUNC") {
                return None;
            }
            Action::Create { path, truncate: arguments.contains("O_TRUNC") }
        }
        "write" => {
            let (number, path, rest) = descriptor();
            let (mut data, _) = quoted(rest);
            data.truncate(result.map_or(usize::MAX, |result| result as usize));
            if number == "1" {
                return Some(Action::Said { text: String::from_utf8_lossy(&data).trim().to_owned() });
            }
            let position = positions.entry(number).or_default();
            let offset = *position;
            if offset != APPENDED {
                *position += data.len();
            }
            Action::Write { path, offset, data }
        }
        "pwrite64" => {
            let (_, path, rest) = descriptor();
            let (mut data, rest) = quoted(rest);
            data.truncate(result.map_or(usize::MAX, |result| result as usize));
            let offset = rest.split(", ").nth(2).and_then(|offset| offset.split(')').next());
            let offset = offset.and_then(|offset| offset.parse().ok()).expect("pwrite64 has an offset");
            Action::Write { path, offset, data }
        }
        "lseek" => {
            let position = positions.entry(descriptor().0).or_default();
            if *position != APPENDED {
                *position = usize::try_from(result?).expect("not negative");
            }
            return None;
        }
        "ftruncate" => {
            let (_, path, rest) = descriptor();
            let len = rest.trim_start_matches(", ").split(')').next().and_then(|len| len.parse().ok());
            Action::Truncate { path, len: len.expect("ftruncate has a length") }
        }
        "fsync" | "fdatasync" => {
            result?;
            Action::Sync { path: descriptor().1 }
        }
        "mkdir" => Action::MakeDir { path: quoted_path(arguments) },
        "unlink" | "rmdir" => Action::Unlink { path: quoted_path(arguments) },
        // The standard library removes trees by descriptors of their directories.
        "unlinkat" => {
            let (_, directory, rest) = descriptor();
            let name = quoted_path(rest);
            Action::Unlink { path: if name.is_absolute() { name } else { directory.join(name) } }
        }
        "rename" | "renameat" => {
            let (from, rest) = quoted(arguments);
            let (from, to) = (path(from), quoted_path(rest));
            assert!(
                from.is_absolute() && to.is_absolute(),
                "a rename that this model does not cover: {text}"
            );
            Action::Rename { from, to }
        }
        "sync_file_range" => return None,
        other => panic!("the traced process made a call that this model does not cover: {other}"),
    })
}

fn path(bytes: Vec<u8>) -> PathBuf {
    PathBuf::from(String::from_utf8(bytes).expect("the tests' paths are text"))
}

fn quoted_path(text: &str) -> PathBuf {
    path(quoted(text).0)
}

/// The bytes of the first quoted string, and what follows it.
fn quoted(text: &str) -> (Vec<u8>, &str) {
    let (_, mut rest) = text.split_once('"').expect("a string argument");
    let mut bytes = Vec::new();
    loop {
        let end = rest.find(['\\', '"']).expect("strace closes its strings");
        bytes.extend_from_slice(&rest.as_bytes()[..end]);
        if rest.as_bytes()[end] == b'"' {
            let after = &rest[end + 1..];
            assert!(!after.starts_with("..."), "strace cut a string off");
            return (bytes, after);
        }
        // Zeros come in millions.
        let after = rest[end..].trim_start_matches("\\0");
        // A digit would belong to the last of them.
        let digit = after.starts_with(|c: char| c.is_ascii_digit());
        let zeros = ((rest.len() - end - after.len()) / 2).saturating_sub(usize::from(digit));
        if zeros > 0 {
            bytes.resize(bytes.len() + zeros, 0);
            rest = &rest[end + 2 * zeros..];
            continue;
        }
        let escape = rest.as_bytes()[end + 1];
        let digits = rest[end + 1..].bytes().take(3).take_while(|byte| (b'0'..=b'7').contains(byte)).count();
        if digits > 0 {
            let value = u32::from_str_radix(&rest[end + 1..end + 1 + digits], 8).expect("octal digits");
            bytes.push(u8::try_from(value).expect("strace escapes bytes"));
            rest = &rest[end + 1 + digits..];
            continue;
        }
        bytes.push(match escape {
            b'n' => b'\n',
            b't' => b'\t',
            b'r' => b'\r',
            b'v' => 0x0b,
            b'f' => 0x0c,
            b'"' | b'\\' => escape,
            other => panic!("strace escaped a byte in an unknown way: {other}"),
        });
        rest = &rest[end + 2..];
    }
}
