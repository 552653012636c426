//! The ranks of the modules: a module imports from ranks below its own, never from one above and never from a
//! sibling.

use crate::text::{code_only, identifier, line_of, report, sources};

/// Every module directly under `src/`, with its rank. A new module has to be given a rank here. `error` is a
/// leaf under the other leaves: whatever checks its input needs it.
const RANKS: &[(&str, u32)] = &[
    ("error", 0),
    ("ids", 0),
    ("clock", 0),
    ("metrics", 0),
    ("safeguard", 0),
    ("seam", 0),
    ("invalidation", 1),
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
    ("forebay", 9),
    ("builder", 10),
    ("monitor", 9),
    ("lib", 11),
    ("manual", 11),
    ("testkit", 11),
];

#[test]
fn imports_point_down_the_ranks() {
    let mut library = sources("src");
    // A binary is a crate of its own: it sees only what the library makes public.
    library.retain(|file| !file.path.starts_with("src/bin/"));
    report("src", &library, |file| import_faults(&file.path, &file.text));
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
}

const UP_FAULT: &str =
    "src/journal/log.rs:1: `journal` (rank 2) imports `queue` (rank 4), which is not below it";

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
