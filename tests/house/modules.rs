//! Files as modules: no two of them import each other, not by way of others either, and a type's methods stand in one.

use std::collections::{BTreeMap, BTreeSet};

use crate::text::{Source, code_only, identifier, line_of, sources};

/// Types whose inherent `impl`s may stand in several files, and why.
const IN_SEVERAL_FILES: &[(&str, &str)] = &[
    ("Forebay", "`Forebay::builder` stands with the builder, which imports the handle"),
    ("Layer", "by subject: its calls, invalidations, the export of its metrics"),
    (
        "PostgresStoreOptions",
        "a store knows no events; the outbox's option stands with the outbox, in a higher rank",
    ),
];

#[test]
fn files_import_in_no_circle() {
    let circles = circles(&library());
    assert!(circles.is_empty(), "{} circles:\n{}", circles.len(), circles.join("\n"));
}

#[test]
fn the_methods_of_a_type_stand_in_one_file() {
    let library = library();
    let scattered = scattered(&library);
    let unargued =
        |line: &&String| !IN_SEVERAL_FILES.iter().any(|(name, _)| line.starts_with(&format!("`{name}`")));
    let faults: Vec<&String> = scattered.iter().filter(unargued).collect();
    assert!(faults.is_empty(), "{} types in several files: {faults:#?}", faults.len());
    for (name, _) in IN_SEVERAL_FILES {
        let is_in_use = scattered.iter().any(|line| line.starts_with(&format!("`{name}`")));
        assert!(is_in_use, "`{name}` stands in one file now; take it off the list");
    }
}

#[test]
fn the_checks_find_what_they_are_for() {
    let file = |path: &str, text: &str| Source { path: path.into(), text: text.into() };
    let found = |sources: &[Source]| circles(sources).join("\n");
    let two = [
        file("src/a/one.rs", "use crate::a::two::Two;"),
        file("src/a/two.rs", "fn f() { super::one::g() }"),
        file("src/a/mod.rs", "pub mod one; pub mod two;"),
    ];
    assert_eq!(found(&two), "src/a/one.rs, src/a/two.rs");
    let three = [
        file("src/a.rs", "use crate::{ids, b::{self, x}};"),
        file("src/b.rs", "use crate::c::d::E;"),
        file("src/c/d.rs", "use crate::a::*;"),
        file("src/ids.rs", ""),
    ];
    assert_eq!(found(&three), "src/a.rs, src/b.rs, src/c/d.rs");
    let fine = [
        file("src/a.rs", "mod inner; use self::inner::Inner; pub struct A;"),
        file("src/a/inner.rs", "use super::A; use crate::ids::Seq;"),
        file("src/ids.rs", "// crate::a\nfn f() {}\n#[cfg(test)]\nmod tests { use crate::a::A; }"),
    ];
    assert_eq!(found(&fine), "", "a module and its own submodule, and tests");

    let apart = [
        file("src/a.rs", "pub struct A<T>(T);\nimpl<T: Into<u8>> A<T> {}\nimpl Drop for A<u8> {}"),
        file("src/b.rs", "use crate::a::A;\nimpl A<u8> {}"),
        file("src/c.rs", "struct A;\nimpl A {}"),
        file(
            "src/d.rs",
            "use crate::a::A;\nimpl From<A<u8>> for u8 {}\n#[cfg(test)]\nmod tests { impl A<u8> {} }",
        ),
    ];
    assert_eq!(scattered(&apart), ["`A` of src/a.rs: src/a.rs:2, src/b.rs:2"]);
}

/// The library's files. A binary is a crate of its own.
fn library() -> Vec<Source> {
    let mut library = sources("src");
    library.retain(|file| !file.path.starts_with("src/bin/"));
    library
}

/// The code of a file before its tests.
fn code_of(file: &Source) -> String {
    let mut code = code_only(&file.text);
    code.truncate(code.find("#[cfg(test)]").unwrap_or(code.len()));
    code
}

/// The names of a file's module, from the crate's root: of `src/a/b.rs` and of `src/a/b/mod.rs` `[a, b]`.
fn module_of(path: &str) -> Vec<&str> {
    let mut names: Vec<&str> = path.trim_start_matches("src/").trim_end_matches(".rs").split('/').collect();
    if matches!(names.last(), Some(&"mod" | &"lib")) {
        names.pop();
    }
    names
}

/// Each path of names that the code mentions, from the crate's root, groups in braces taken apart.
fn paths(code: &str, module: &[&str]) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let in_word = |at: usize| code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':');
    for (start, depth) in ["crate::", "self::", "super::"].into_iter().zip([None, Some(0), Some(1)]) {
        for (at, _) in code.match_indices(start).filter(|(at, _)| !in_word(*at)) {
            let mut rest = &code[at + start.len()..];
            let mut above = depth;
            while let (Some(depth), Some(higher)) = (above.as_mut(), rest.strip_prefix("super::")) {
                (*depth, rest) = (*depth + 1, higher);
            }
            let kept = above.map_or(0, |depth| module.len().saturating_sub(depth));
            let base: Vec<String> = module[..kept].iter().map(|name| (*name).to_owned()).collect();
            expand(rest, base, &mut found);
        }
    }
    found
}

/// Adds the paths that begin with `base` and go on with `rest`; returns what is left of `rest`.
fn expand<'a>(rest: &'a str, mut base: Vec<String>, found: &mut Vec<Vec<String>>) -> &'a str {
    let mut rest = rest.trim_start();
    loop {
        if let Some(mut group) = rest.strip_prefix('{') {
            loop {
                group = group.trim_start();
                if group.is_empty() {
                    return group;
                }
                if let Some(left) = group.strip_prefix('}') {
                    return left;
                }
                group = group
                    .strip_prefix(',')
                    .unwrap_or_else(|| expand(group, base.clone(), found))
                    .trim_start();
                if let Some(renamed) = group.strip_prefix("as ") {
                    group = renamed.trim_start();
                    group = &group[identifier(group).len()..];
                }
            }
        }
        let name = identifier(rest);
        if name.is_empty() {
            // A `*`, or what no path goes on with; one character less in any case, so that this ends.
            found.push(base);
            return rest.get(rest.chars().next().map_or(0, char::len_utf8)..).unwrap_or_default();
        }
        base.push(name.to_owned());
        rest = &rest[name.len()..];
        match rest.strip_prefix("::") {
            Some(more) => rest = more.trim_start(),
            None => {
                found.push(base);
                return rest;
            }
        }
    }
}

/// The file that holds the module which a path leads into.
fn target<'a>(files: &BTreeMap<Vec<&str>, &'a str>, path: &[String]) -> Option<&'a str> {
    let names: Vec<&str> = path.iter().map(String::as_str).collect();
    (1..=names.len()).rev().find_map(|len| files.get(&names[..len]).copied())
}

/// Groups of files each of which imports all others of its group, by way of others or directly. A module and those
/// within it are one thing.
fn circles(library: &[Source]) -> Vec<String> {
    let files: BTreeMap<Vec<&str>, &str> =
        library.iter().map(|file| (module_of(&file.path), file.path.as_str())).collect();
    let mut imports: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for file in library {
        let own = module_of(&file.path);
        let code = code_of(file);
        let targets =
            paths(&code, &own).iter().filter_map(|path| target(&files, path)).collect::<BTreeSet<_>>();
        let is_apart = |other: &&str| {
            let other = module_of(other);
            !other.starts_with(&own) && !own.starts_with(&other)
        };
        imports.insert(&file.path, targets.into_iter().filter(is_apart).collect());
    }
    let reached: BTreeMap<&str, BTreeSet<&str>> = imports
        .keys()
        .map(|file| {
            let (mut reached, mut open) = (BTreeSet::new(), vec![*file]);
            while let Some(next) = open.pop() {
                open.extend(imports[next].iter().filter(|other| reached.insert(**other)));
            }
            (*file, reached)
        })
        .collect();
    let circle = |file: &str| -> Vec<&str> {
        reached[file].iter().copied().filter(|other| reached[other].contains(file)).collect()
    };
    let circles: BTreeSet<Vec<&str>> =
        imports.keys().map(|file| circle(file)).filter(|circle| !circle.is_empty()).collect();
    circles.into_iter().map(|circle| circle.join(", ")).collect()
}

/// The types with inherent `impl`s in several files, and where those are.
fn scattered(library: &[Source]) -> Vec<String> {
    let files: BTreeMap<Vec<&str>, &str> =
        library.iter().map(|file| (module_of(&file.path), file.path.as_str())).collect();
    let mut places: BTreeMap<(String, String), BTreeMap<&str, usize>> = BTreeMap::new();
    for file in library {
        let own = module_of(&file.path);
        let code = code_of(file);
        let mentioned = paths(&code, &own);
        for (name, at) in inherent_impls(&code) {
            let declares = |word: &&str| {
                code.match_indices(&format!("{word} {name}"))
                    .any(|(at, found)| identifier(&code[at + found.len()..]).is_empty())
            };
            let imported = mentioned.iter().find(|path| path.last().is_some_and(|last| last == name));
            let home = if ["struct", "enum", "union", "trait"].iter().any(declares) {
                file.path.as_str()
            } else {
                // What is imported with a `*` is taken for its module's own.
                imported.and_then(|path| target(&files, path)).unwrap_or(&file.path)
            };
            places
                .entry((name.to_owned(), home.to_owned()))
                .or_default()
                .entry(&file.path)
                .or_insert(line_of(&code, at));
        }
    }
    places
        .into_iter()
        .filter(|(_, places)| places.len() > 1)
        .map(|((name, home), places)| {
            let places: Vec<String> = places.iter().map(|(path, line)| format!("{path}:{line}")).collect();
            format!("`{name}` of {home}: {}", places.join(", "))
        })
        .collect()
}

/// The type of each `impl` without a trait, with its place.
fn inherent_impls(code: &str) -> Vec<(&str, usize)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("impl") {
        if code[..at].ends_with(|c: char| !c.is_whitespace() && c != '}') {
            continue;
        }
        // `impl Trait` in a function's signature stands behind one of these, or within its line.
        let line_begin = code[..at].rfind('\n').map_or(0, |newline| newline + 1);
        if !code[line_begin..at].trim().is_empty() {
            continue;
        }
        let mut rest = &code[at + 4..];
        if rest.starts_with('<') {
            let mut depth = 0;
            let mut before = ' ';
            let end = rest.find(|c| {
                depth += match c {
                    '<' => 1,
                    '>' if before != '-' => -1,
                    _ => 0,
                };
                before = c;
                depth == 0
            });
            rest = end.map_or("", |end| &rest[end + 1..]);
        } else if !rest.starts_with(char::is_whitespace) {
            continue;
        }
        let Some(head) = rest.find('{').map(|end| &rest[..end]) else { continue };
        if head.split_whitespace().any(|word| word == "for") {
            continue;
        }
        let path = head.trim_start();
        let path =
            &path[..path.find(|c: char| !c.is_alphanumeric() && c != '_' && c != ':').unwrap_or(path.len())];
        found.push((path.rsplit("::").next().unwrap_or(path), at));
    }
    found
}
