//! Triggers that fill the outbox when another program changes a table.

use crate::error::{Error, ErrorKind, Result};
use crate::postgres::outbox::script_sql;

/// The longest identifier of Postgres, in bytes.
const IDENTIFIER_BYTES_MAX: usize = 63;

/// The column of a table with the keys of a cache, and the type of the key in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyColumn<'a> {
    /// A `String` key, from a column that can be cast to text. The cache uses the default codec.
    Text(&'a str),
    /// A `u64` or `i64` key, from an integer column. The cache uses the default codec.
    Number(&'a str),
    /// A key in the encoding of the cache, from a `bytea` column.
    Bytes(&'a str),
}

impl KeyColumn<'_> {
    fn name(&self) -> &str {
        match self {
            KeyColumn::Text(name) | KeyColumn::Number(name) | KeyColumn::Bytes(name) => name,
        }
    }

    /// Returns the column of the outbox for such a key, and its type.
    fn target(&self) -> (&'static str, &'static str) {
        match self {
            KeyColumn::Text(_) => ("key_text", "text"),
            KeyColumn::Number(_) => ("key_number", "int8"),
            KeyColumn::Bytes(_) => ("key_bytes", "bytea"),
        }
    }
}

/// Returns the script. The names of namespace and channel are validated types and need no quoting.
pub(crate) fn trigger_sql(
    schema: &str,
    table: &str,
    key: KeyColumn<'_>,
    namespace: &str,
    channel: &str,
) -> Result<String> {
    // Each part is quoted by itself, because a dot within quotes would be a part of the name.
    let parts: Vec<String> = table.split('.').map(quoted).collect::<Result<_>>()?;
    if parts.len() > 2 {
        return Err(refused("a table is named by itself or with its schema in front"));
    }
    let (on, column, (target, kind)) = (parts.join("."), quoted(key.name())?, key.target());
    let identity = [table, key.name(), target, namespace, channel].join("\n");
    // Derived from what the trigger does: the same script again replaces its triggers, and one for another key
    // adds its own.
    let tag = format!("{:08x}", crc32c::crc32c(identity.as_bytes()));
    let function = format!("\"{schema}\".told_{tag}");
    let insert = format!(
        "INSERT INTO \"{schema}\".outbox (channel, operation, namespace, {target})\n    \
         SELECT '{channel}', 'invalidate', '{namespace}', c.key FROM"
    );
    let of = |rows: &str| format!("SELECT {column}::{kind} AS key FROM {rows}");
    let (old, new) = (of("forebay_old"), of("forebay_new"));
    let mut script = script_sql(schema);
    // `SECURITY DEFINER`, because those who write the table need no right to the outbox. The fixed `search_path`
    // keeps them from putting functions of their own in place of ours.
    script.push_str(&format!(
        "CREATE OR REPLACE FUNCTION {function}() RETURNS trigger\n\
         LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $told$\n\
         BEGIN\n  \
         IF TG_OP = 'TRUNCATE' THEN\n    \
         INSERT INTO \"{schema}\".outbox (channel, operation, namespace)\n    \
         VALUES ('{channel}', 'namespace', '{namespace}');\n  \
         ELSIF TG_OP = 'INSERT' THEN\n    \
         {insert} (SELECT DISTINCT key FROM ({new}) n) c WHERE c.key IS NOT NULL;\n  \
         ELSIF TG_OP = 'UPDATE' THEN\n    \
         {insert} ({old} UNION {new}) c WHERE c.key IS NOT NULL;\n  \
         ELSE\n    \
         {insert} (SELECT DISTINCT key FROM ({old}) o) c WHERE c.key IS NOT NULL;\n  \
         END IF;\n  \
         RETURN NULL;\n\
         END $told$;\n"
    ));
    // One trigger for each event: Postgres allows transition tables only for a trigger of a single event.
    for (event, rows) in [
        ("INSERT", "REFERENCING NEW TABLE AS forebay_new "),
        ("UPDATE", "REFERENCING OLD TABLE AS forebay_old NEW TABLE AS forebay_new "),
        ("DELETE", "REFERENCING OLD TABLE AS forebay_old "),
        ("TRUNCATE", ""),
    ] {
        let name = format!("forebay_{}_{tag}", event.to_ascii_lowercase());
        script.push_str(&format!(
            "DROP TRIGGER IF EXISTS {name} ON {on};\n\
             CREATE TRIGGER {name} AFTER {event} ON {on} {rows}\
             FOR EACH STATEMENT EXECUTE FUNCTION {function}();\n"
        ));
    }
    Ok(format!("BEGIN;\n{script}COMMIT;\n"))
}

fn quoted(name: &str) -> Result<String> {
    // Postgres would cut a longer name, and the rest may name another column.
    if !(1..=IDENTIFIER_BYTES_MAX).contains(&name.len()) || name.contains('\0') {
        return Err(refused("a name has 1 to 63 bytes"));
    }
    Ok(format!("\"{}\"", name.replace('"', "\"\"")))
}

fn refused(why: &str) -> Error {
    Error::new(ErrorKind::InvalidName, format!("the table or the column of a trigger: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_and_checked() {
        let sql = |table, key| trigger_sql("forebay", table, key, "products", "shop");
        let script = sql("Sales.Pro\"ducts", KeyColumn::Text("a\"; DROP TABLE x; --")).unwrap();
        assert!(
            script.contains(" ON \"Sales\".\"Pro\"\"ducts\" ")
                && script.contains("\"a\"\"; DROP TABLE x; --\"")
        );
        let long = "t".repeat(64);
        for bad in ["", "a.b.c", ".a", "a.", &long] {
            assert_eq!(sql(bad, KeyColumn::Number("id")).expect_err(bad).kind(), ErrorKind::InvalidName);
        }
        assert!(sql("t", KeyColumn::Number("")).is_err());
    }
}
