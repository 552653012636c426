//! Source files as text, and the same without comments and literals.

use std::fs;
use std::path::{Path, PathBuf};

pub struct Source {
    pub path: String,
    pub text: String,
}

/// All Rust files under `directory`, by paths from the top of the repository.
pub fn sources(directory: &str) -> Vec<Source> {
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

pub fn report(directory: &str, sources: &[Source], check: impl Fn(&Source) -> Vec<String>) {
    assert!(!sources.is_empty(), "{directory}/ holds no Rust file, so nothing was checked");
    let faults: Vec<String> = sources.iter().flat_map(check).collect();
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

pub fn identifier(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

pub fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

/// `text` with every comment and literal blanked out, line breaks kept.
pub fn code_only(text: &str) -> String {
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
