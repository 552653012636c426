//! Holds the shape of the source: which module may import which, and how a file has to look.
//!
//! The module ranks are those of the manual: a module imports from ranks below its own, never from one above
//! and never from a sibling. The checks read the files as text, without comments and literals, so that they
//! name a file and a line. Each check is itself tested on sources that break it.

#![allow(clippy::panic, clippy::unwrap_used, clippy::indexing_slicing, reason = "these are tests")]

use std::fs;
use std::path::{Path, PathBuf};

/// Every module directly under `src/`, with its rank. A new module has to be given a rank here. `error` is a
/// leaf under the other leaves: whatever checks its input needs it.
const RANKS: &[(&str, u32)] = &[
    ("error", 0),
    ("ids", 0),
    ("clock", 0),
    ("metrics", 0),
    ("safeguard", 0),
    ("seam", 0),
    ("disk", 1),
    ("postgres", 1),
    ("journal", 2),
    ("memory", 2),
    ("store", 2),
    ("bus", 2),
    ("options", 3),
    ("queue", 4),
    ("flush", 5),
    ("feed", 6),
    ("layer", 7),
    ("cache", 8),
    ("builder", 9),
    ("monitor", 9),
    ("lib", 10),
    ("manual", 10),
    ("testkit", 10),
];

const LINE_CHARS_MAX: usize = 120;
const FILE_LINES_MAX: usize = 900;
/// Files that may be longer, how long, and so for as long as nobody finds where to divide them.
const LONGER_FILES: &[(&str, usize)] = &[
    ("src/testkit/conformance.rs", 560),
    ("src/journal/tests/survey.rs", 545),
    ("tests/cli.rs", 540),
    ("tests/layer_failures.rs", 525),
    ("tests/monitor.rs", 515),
    ("tests/layer_writes.rs", 560),
];
/// What a finished file does not hold.
const UNFINISHED: &[&str] = &["todo!", "unimplemented!", "dbg!"];
/// A table of contents declares and re-exports; these words define or do something.
const LOGIC: &[&str] =
    &["fn", "impl", "struct", "enum", "trait", "union", "static", "const", "type", "macro_rules"];

#[test]
fn imports_point_down_the_ranks() {
    let mut library = sources("src");
    // A binary is a crate of its own: it sees only what the library makes public.
    library.retain(|file| !file.path.starts_with("src/bin/"));
    report("src", &library, |file| import_faults(&file.path, &file.text));
}

#[test]
fn every_file_is_finished_and_can_be_read() {
    for directory in ["src", "tests", "examples", "benches"] {
        report(directory, &sources(directory), |file| style_faults(&file.path, &file.text));
    }
}

#[test]
fn the_checks_find_what_they_are_for() {
    let imports = |path: &str, text: &str| import_faults(path, text).join("\n");
    assert_eq!(imports("src/journal/log.rs", "use crate::queue::state::Core;"), UP_FAULT);
    let sideways =
        imports("src/memory/fence.rs", "\n\nuse crate::{\n    ids::Seq,\n    store::contract::Op,\n};");
    assert!(sideways.starts_with("src/memory/fence.rs:5: `memory` (rank 2) imports `store`"), "{sideways}");
    let inline = imports("src/disk/os.rs", "fn f() { crate::options::check() }");
    assert!(inline.contains("`disk` (rank 1) imports `options`"), "{inline}");
    let root = imports("src/layer/layer.rs", "use crate::Forebay;");
    assert!(root.contains("names `Forebay` by the crate's root"), "{root}");
    let climbing = imports("src/disk/os.rs", "use super::super::queue::state::Core;");
    assert!(climbing.contains("climbs out of `disk`"), "{climbing}");
    assert!(imports("src/ids.rs", "use super::error::Error;").contains("climbs out of `ids`"));
    assert!(
        imports("src/error.rs", "use crate::ids::Seq;")
            .contains("imports `ids` (rank 0), which is a sibling")
    );
    assert!(imports("src/attic.rs", "").contains("has no rank"));

    let fine = [
        ("src/journal/log.rs", "use crate::{disk::contract::Disk, journal::{frame::Frame, options}};"),
        ("src/ids.rs", "use crate::error::Error;"),
        ("src/lib.rs", "pub use crate::layer::layer::Forebay;"),
        ("src/disk/os.rs", "// crate::layer\n/* crate::cache */ fn f() -> &'static str { \"crate::layer\" }"),
        (
            "src/store/sled.rs",
            "#[cfg(test)]\nmod tests { use super::super::contract; use crate::testkit::x; }",
        ),
    ];
    for (path, text) in fine {
        assert_eq!(imports(path, text), "", "{path}: {text}");
    }
    let unit_test = imports("src/store/sled.rs", "#[cfg(test)]\nmod tests { use crate::queue::state; }");
    assert!(unit_test.contains("sled.rs:2: `store` (rank 2) imports `queue`"), "{unit_test}");

    let style = |path: &str, text: &str| style_faults(path, text).join("\n");
    assert!(style("src/a.rs", "use x;\n").contains("a.rs:1: opens without `//!`"));
    assert!(style("src/a.rs", &format!("//! {}\n", "x".repeat(117))).contains("a.rs:1: 121 characters wide"));
    assert!(style("src/a.rs", "//! a\nfn f() { todo!() }\n").contains("a.rs:2: `todo!`"));
    assert!(style("src/a.rs", &"//! a\n".repeat(501)).contains("a.rs:501: 501 lines"));
    assert!(style("src/a/mod.rs", "//! a\npub mod b;\nfn f() {}\n").contains("mod.rs:3: `fn`"));
    assert_eq!(style("src/a.rs", &format!("//! a\n#[cfg(test)]\n{}", "//! a\n".repeat(501))), "");
    assert_eq!(style("src/a.rs", &format!("//! a\n//! | {} |\n", "x".repeat(110))), "");
    assert_eq!(style("src/lib.rs", "//! a fn in words\npub mod b;\npub use b::{c, function};\n"), "");
}

const UP_FAULT: &str =
    "src/journal/log.rs:1: `journal` (rank 2) imports `queue` (rank 4), which is not below it";

struct Source {
    path: String,
    text: String,
}

/// All Rust files under `directory`, by paths from the top of the repository.
fn sources(directory: &str) -> Vec<Source> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = vec![top.join(directory)];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(&next).unwrap_or_else(|error| panic!("{}: {error}", next.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                // A crate of its own under `benches/` is built there, and what its dependencies generate is not ours.
                if !path.ends_with("target") {
                    open.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let path = path.strip_prefix(top).unwrap().to_str().unwrap().replace('\\', "/");
                found.push(Source { path, text });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn report(directory: &str, sources: &[Source], check: impl Fn(&Source) -> Vec<String>) {
    assert!(!sources.is_empty(), "{directory}/ holds no Rust file, so nothing was checked");
    let faults: Vec<String> = sources.iter().flat_map(check).collect();
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

fn rank_of(module: &str) -> Option<u32> {
    RANKS.iter().find(|(name, _)| *name == module).map(|(_, rank)| *rank)
}

fn import_faults(path: &str, text: &str) -> Vec<String> {
    let inside: Vec<&str> = path.trim_start_matches("src/").trim_end_matches(".rs").split('/').collect();
    let own = inside[0];
    let Some(own_rank) = rank_of(own) else {
        return vec![format!(
            "{path}:1: module `{own}` has no rank; give it one in this test and in the manual"
        )];
    };
    // How many `super` lead out of the top-level module.
    let depth = inside.iter().filter(|part| **part != "mod").count();
    let code = code_only(text);
    let tests_start = code.find("#[cfg(test)]").unwrap_or(code.len());
    let mut faults = Vec::new();
    let mut fault = |at: usize, what: String| faults.push(format!("{path}:{}: {what}", line_of(&code, at)));

    for (at, target) in crate_paths(&code) {
        let in_tests = at >= tests_start;
        match rank_of(target) {
            _ if target == own || own == "lib" || target == "error" => {}
            // The unit tests of a module may use the testkit, which no built code may.
            Some(_) if in_tests && target == "testkit" => {}
            Some(rank) if rank < own_rank => {}
            // Being cut: change streams and publishers take what they need of a layer instead of the layer.
            Some(_) if (own, target) == ("feed", "layer") => {}
            Some(rank) => {
                let which = if rank == own_rank { "a sibling" } else { "not below it" };
                let what =
                    format!("`{own}` (rank {own_rank}) imports `{target}` (rank {rank}), which is {which}");
                fault(at, what);
            }
            None => {
                fault(at, format!("names `{target}` by the crate's root; name the module that defines it"))
            }
        }
    }
    for (at, _) in code.match_indices("super::") {
        if code[..at].ends_with("super::") {
            continue;
        }
        let climbed = code[at..].split("::").take_while(|part| *part == "super").count();
        if climbed >= depth + usize::from(at >= tests_start) {
            fault(at, format!("climbs out of `{own}` by `super`; write the path from `crate::`"));
        }
    }
    faults
}

/// The first name after each `crate::`, those of a `crate::{..}` group included, with its place.
fn crate_paths(code: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    for (at, matched) in code.match_indices("crate::") {
        let start = at + matched.len();
        let rest = &code[start..];
        if !rest.trim_start().starts_with('{') {
            found.push((at, identifier(rest)));
            continue;
        }
        let mut nesting = 0;
        let mut expects_name = false;
        for (offset, c) in rest.char_indices() {
            match c {
                '{' => nesting += 1,
                '}' => nesting -= 1,
                _ => {}
            }
            if nesting == 0 && c == '}' {
                break;
            }
            if nesting == 1 && matches!(c, '{' | ',') {
                expects_name = true;
            } else if expects_name && (c.is_alphanumeric() || c == '_') {
                found.push((start + offset, identifier(&rest[offset..])));
                expects_name = false;
            }
        }
    }
    found
}

fn identifier(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

fn style_faults(path: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if !text.starts_with("//!") {
        faults.push(format!("{path}:1: opens without `//!`: what is it for, what does it guarantee?"));
    }
    for (number, line) in text.lines().enumerate() {
        let width = line.chars().count();
        // A table's row cannot be broken.
        let is_row = ["//! |", "/// |"].iter().any(|row| line.trim_start().starts_with(row));
        if width > LINE_CHARS_MAX && !is_row {
            faults.push(format!("{path}:{}: {width} characters wide; {LINE_CHARS_MAX} fit", number + 1));
        }
    }
    let code = code_only(text);
    for word in UNFINISHED {
        let places = code.match_indices(word).map(|(at, _)| line_of(&code, at));
        faults
            .extend(places.map(|line| format!("{path}:{line}: `{word}` in a file that should be finished")));
    }
    let lines = text.lines().take_while(|line| line.trim() != "#[cfg(test)]").count();
    let allowed =
        LONGER_FILES.iter().find(|(longer, _)| *longer == path).map_or(FILE_LINES_MAX, |(_, max)| *max);
    if lines > allowed {
        faults.push(format!("{path}:{lines}: {lines} lines before its tests; {allowed} are allowed"));
    }
    if path == "src/lib.rs" || path.ends_with("/mod.rs") && path.starts_with("src/") {
        for (number, line) in code.lines().enumerate() {
            let mut words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
            if let Some(word) = words.find(|word| LOGIC.contains(word)) {
                let line = number + 1;
                faults.push(format!(
                    "{path}:{line}: `{word}` in a table of contents; logic has files of its own"
                ));
            }
        }
    }
    faults
}

/// `text` with every comment and literal blanked out, line breaks kept.
fn code_only(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let literal = literal_len(rest, code.chars().next_back());
        if literal > 0 {
            let (gone, left) = rest.split_at(literal);
            code.extend(gone.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            rest = left;
        } else {
            code.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    code
}

/// The length of the comment or literal that `text` starts with; 0 if it starts with neither.
fn literal_len(text: &str, before: Option<char>) -> usize {
    if text.starts_with("//") {
        return text.find('\n').unwrap_or(text.len());
    }
    if text.starts_with("/*") {
        let mut nesting = 0;
        for at in 0..text.len() {
            match text.as_bytes().get(at..at + 2) {
                Some(b"/*") => nesting += 1,
                Some(b"*/") => nesting -= 1,
                _ => {}
            }
            if nesting == 0 && text[..at].ends_with('*') && text.as_bytes()[at] == b'/' {
                return at + 1;
            }
        }
        return text.len();
    }
    let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let prefix = if in_word { 0 } else { identifier(text).len() };
    if matches!(&text[..prefix], "r" | "br" | "cr") {
        let hashes = text[prefix..].chars().take_while(|c| *c == '#').count();
        if text[prefix + hashes..].starts_with('"') {
            let end = format!("\"{}", "#".repeat(hashes));
            let start = prefix + hashes + 1;
            return text[start..].find(&end).map_or(text.len(), |at| start + at + end.len());
        }
        return 0;
    }
    let prefix = if matches!(&text[..prefix], "b" | "c") { prefix } else { 0 };
    if text[prefix..].starts_with('"') {
        return quoted_len(text, prefix, '"');
    }
    if text[prefix..].starts_with('\'') {
        // A character literal, not a lifetime: a backslash, or a quote right after one character.
        let mut inside = text[prefix + 1..].chars();
        if inside.next() == Some('\\') || inside.next() == Some('\'') {
            return quoted_len(text, prefix, '\'');
        }
    }
    0
}

fn quoted_len(text: &str, prefix: usize, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip_while(|(at, _)| *at <= prefix) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}
