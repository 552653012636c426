//! The look of a file: what it is for at its head, lines that fit, a length that can be read, nothing unfinished.

use crate::text::{code_only, line_of, report, sources};

const LINE_CHARS_MAX: usize = 120;
const FILE_LINES_MAX: usize = 900;
/// Words that no finished file holds.
const UNFINISHED: &[&str] = &["todo!", "unimplemented!", "dbg!"];
/// A table of contents declares and re-exports; these words define or do something.
const LOGIC: &[&str] =
    &["fn", "impl", "struct", "enum", "trait", "union", "static", "const", "type", "macro_rules"];

#[test]
fn every_file_is_finished_and_can_be_read() {
    for directory in ["src", "tests", "examples", "benches"] {
        report(directory, &sources(directory), |file| style_faults(&file.path, &file.text));
    }
}

#[test]
fn the_checks_find_what_they_are_for() {
    let style = |path: &str, text: &str| style_faults(path, text).join("\n");
    assert!(style("src/a.rs", "use x;\n").contains("a.rs:1: opens without `//!`"));
    assert!(style("src/a.rs", &format!("//! {}\n", "x".repeat(117))).contains("a.rs:1: 121 characters wide"));
    assert!(style("src/a.rs", "//! a\nfn f() { todo!() }\n").contains("a.rs:2: `todo!`"));
    assert!(style("src/a.rs", &"//! a\n".repeat(901)).contains("a.rs:901: 901 lines"));
    assert!(style("src/a/mod.rs", "//! a\npub mod b;\nfn f() {}\n").contains("mod.rs:3: `fn`"));
    assert_eq!(style("src/a.rs", &format!("//! a\n#[cfg(test)]\n{}", "//! a\n".repeat(901))), "");
    assert_eq!(style("src/a.rs", &format!("//! a\n//! | {} |\n", "x".repeat(110))), "");
    assert_eq!(style("src/lib.rs", "//! a fn in words\npub mod b;\npub use b::{c, function};\n"), "");
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
    if lines > FILE_LINES_MAX {
        faults.push(format!("{path}:{lines}: {lines} lines before its tests; {FILE_LINES_MAX} are allowed"));
    }
    // The manual's pages are named by a macro, because each is a module with a file of its own as its text.
    let is_contents = path == "src/lib.rs" || path.ends_with("/mod.rs") && path.starts_with("src/");
    if is_contents && path != "src/manual/mod.rs" {
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
