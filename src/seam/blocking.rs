//! The blocking face of an async type: each blocking method is made from the signature of the async one.
//!
//! A type `BlockingX` holds its async `X` in the field `inner` and has a private `fn run(&self, future)` that drives a
//! future on the calling thread. [`blocking_calls`] writes the wrappers. The test below reads the sources and fails if
//! a public async method of a public type has no blocking counterpart.

/// Makes a blocking method of each async method that is listed, within an `impl` block of the blocking type.
///
/// The list repeats signatures without `&self`: the compiler notices where they differ from the async methods'.
macro_rules! blocking_calls {
    ($of:ident: $(fn $name:ident($($arg:ident: $kind:ty),* $(,)?) -> $output:ty;)+) => {
        $(
            #[doc = concat!(
                "Calls [`", stringify!($of), "::", stringify!($name), "`] and blocks until it is done. ",
                "Result, errors and cost are the same."
            )]
            pub fn $name(&self, $($arg: $kind),*) -> $output {
                self.run(self.inner.$name($($arg),*))
            }
        )+
    };
}

pub(crate) use blocking_calls;

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::fs;
    use std::path::Path;

    /// Blocking counterparts that do not have the async method's name on the blocking type.
    const ELSEWHERE: &[(&str, &str)] = &[
        ("Builder::open", "Builder::open_blocking"),
        ("ChangeStream::next", "Iterator for BlockingChangeStream"),
        ("DeadLetterList::discard", "BlockingForebay::discard_dead_letters"),
        ("DeadLetterList::replay", "BlockingForebay::replay_dead_letters"),
        ("WriteBatch::commit", "BlockingForebay::commit"),
    ];

    /// Types that need tokio in any case: their connections and their tasks live on a runtime.
    const ASYNC_ONLY: &[&str] = &["Monitor", "PostgresBus", "PostgresStore"];

    /// Six calls were missing when the two faces were written by hand.
    #[test]
    fn every_public_async_call_has_a_blocking_counterpart() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut sources = Vec::new();
        read_sources(&root, &mut sources);
        let exported = exported_names(&fs::read_to_string(root.join("lib.rs")).unwrap());
        let mut methods = Methods::default();
        sources.iter().for_each(|source| methods.add(source));
        let calls = |name: &str| methods.async_calls.get(name).map_or(0, BTreeSet::len);
        assert!(
            calls("Cache") >= 20 && calls("Forebay") >= 11,
            "the sources are not read as they are written"
        );
        let mut missing = Vec::new();
        let is_to_have = |name: &str| exported.contains(name) && !ASYNC_ONLY.contains(&name);
        for (name, calls) in methods.async_calls.iter().filter(|(name, _)| is_to_have(name)) {
            for call in calls {
                let full = format!("{name}::{call}");
                let found = match ELSEWHERE.iter().find(|(known, _)| *known == full) {
                    Some((_, elsewhere)) => methods.has(elsewhere),
                    None => methods.has(&format!("Blocking{name}::{call}")),
                };
                if !found {
                    missing.push(full);
                }
            }
        }
        assert!(missing.is_empty(), "without a blocking counterpart: {missing:?}");
    }

    /// The public methods of the crate by type, as far as their headers are written the usual way.
    #[derive(Default)]
    struct Methods {
        async_calls: BTreeMap<String, BTreeSet<String>>,
        plain_calls: BTreeMap<String, BTreeSet<String>>,
        traits: BTreeSet<String>,
    }

    impl Methods {
        fn add(&mut self, source: &str) {
            let mut owner = None;
            for line in source.lines() {
                if line.starts_with("impl") {
                    owner = inherent_type(line);
                    self.traits.extend(trait_impl(line));
                } else if line == "}" {
                    owner = None;
                }
                let Some(owner) = &owner else { continue };
                let line = line.trim_start();
                let (calls, rest) = match line {
                    _ if line.starts_with("pub async fn ") => (&mut self.async_calls, &line[13..]),
                    // A future that is written by hand.
                    _ if line.starts_with("pub fn ") && line.contains("-> impl Future") => {
                        (&mut self.async_calls, &line[7..])
                    }
                    _ if line.starts_with("pub fn ") => (&mut self.plain_calls, &line[7..]),
                    // An item of `blocking_calls!`.
                    _ if line.starts_with("fn ") && line.ends_with(';') => {
                        (&mut self.plain_calls, &line[3..])
                    }
                    _ => continue,
                };
                calls.entry(owner.clone()).or_default().insert(identifier(rest).to_owned());
            }
        }

        fn has(&self, name: &str) -> bool {
            match name.split_once("::") {
                Some((owner, call)) => self.plain_calls.get(owner).is_some_and(|calls| calls.contains(call)),
                None => self.traits.contains(name),
            }
        }
    }

    /// `Cache` of `impl<K: CacheKey, V: CacheValue> Cache<K, V> {`; nothing of a trait's implementation.
    fn inherent_type(line: &str) -> Option<String> {
        (!line.contains(" for ")).then(|| identifier(after_generics(line)).to_owned())
    }

    /// `Iterator for BlockingChangeStream` of its header.
    fn trait_impl(line: &str) -> Option<String> {
        let (name, rest) = after_generics(line).split_once(" for ")?;
        Some(format!("{} for {}", identifier(name), identifier(rest)))
    }

    /// The header behind `impl<..> `.
    fn after_generics(line: &str) -> &str {
        let rest = line.trim_start_matches("impl");
        let mut nesting = 0_u32;
        for (at, c) in rest.char_indices() {
            match c {
                '<' => nesting += 1,
                '>' => nesting -= 1,
                _ if nesting == 0 => return rest[at..].trim_start(),
                _ => {}
            }
        }
        rest
    }

    fn identifier(text: &str) -> &str {
        let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
        &text[..end]
    }

    /// All names within the `pub use` items.
    fn exported_names(lib: &str) -> BTreeSet<String> {
        let uses = lib.split("pub use ").skip(1).filter_map(|text| text.split(';').next());
        let names = uses.flat_map(|text| text.split(|c: char| !c.is_alphanumeric() && c != '_'));
        names.map(str::to_owned).collect()
    }

    fn read_sources(directory: &Path, sources: &mut Vec<String>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                read_sources(&path, sources);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                sources.push(fs::read_to_string(path).unwrap());
            }
        }
    }
}
