//! What went wrong with a server, sorted, and in words that hold nothing secret.
//!
//! A server's own words may quote a user's name or a value (`invalid input syntax: "..."`, what a trigger raises), and
//! the details of an error quote whole rows. So of an error the code is told always, the message only in classes
//! whose messages name nothing but the database's own objects, and the details never. The server's log has them all.

use std::error::Error as _;
use std::io;

use tokio_postgres::error::DbError;

use crate::error::{Error, ErrorKind};

/// The longest message of a server that is repeated, in characters.
const MESSAGE_CHARS_MAX: usize = 200;

/// How the client calls a failure of TLS.
const TLS: &str = "error performing TLS handshake";

/// What kind of failure it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sort {
    /// It may pass. Whether what was asked for was done is unknown.
    Passing,
    /// What was sent is refused for what it says, as a constraint does it.
    Content,
    /// It does not pass by itself.
    Lasting,
}

/// A failure with its sentence.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) sort: Sort,
    sentence: String,
}

impl Failure {
    pub(crate) fn new(sort: Sort, sentence: impl Into<String>) -> Failure {
        Failure { sort, sentence: sentence.into() }
    }

    /// What the client said, of what was being done.
    pub(crate) fn of(doing: &str, error: &tokio_postgres::Error) -> Failure {
        let failed = error.source().and_then(|source| source.downcast_ref::<io::Error>());
        let (sort, why) = match (error.as_db_error(), failed) {
            (Some(said), _) => (sort_of(said.code().code()), words_of(said)),
            (None, failed) if error.to_string() == TLS => sort_of_tls(error, failed.map(io::Error::kind)),
            (None, Some(failed)) => (Sort::Passing, format!("{error}: {}", failed.kind())),
            (None, None) => (sort_of_client(error), error.to_string()),
        };
        Failure { sort, sentence: format!("{doing}: {why}") }
    }

    /// The same with this in front.
    pub(crate) fn within(self, place: &str) -> Failure {
        Failure { sentence: format!("{place}: {}", self.sentence), ..self }
    }

    /// The same where no record is to blame for it.
    pub(crate) fn lasting(self) -> Failure {
        match self.sort {
            Sort::Content => Failure { sort: Sort::Lasting, ..self },
            Sort::Passing | Sort::Lasting => self,
        }
    }

    /// The same where it turned out that it passes.
    pub(crate) fn passing(self) -> Failure {
        Failure { sort: Sort::Passing, ..self }
    }

    /// As the crate's error, of this kind.
    pub(crate) fn into_error(self, kind: ErrorKind) -> Error {
        Error::new(kind, self.sentence)
    }
}

/// A failure that the server never saw: a refused authentication, or a client that was asked nonsense.
fn sort_of_client(error: &tokio_postgres::Error) -> Sort {
    let text = error.to_string();
    let lasting =
        ["authentication error", "invalid configuration", "error serializing", "error deserializing"];
    match lasting.iter().any(|start| text.starts_with(start)) {
        true => Sort::Lasting,
        false => Sort::Passing,
    }
}

/// A handshake that did not come about: the server's certificate is not trusted, which rustls calls invalid data, or it
/// speaks no TLS; or the connection failed meanwhile. What they say names certificates at most.
fn sort_of_tls(error: &tokio_postgres::Error, failed: Option<io::ErrorKind>) -> (Sort, String) {
    let why = error.source().map_or_else(String::new, |source| format!(": {source}"));
    let sort = match failed {
        None | Some(io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput) => Sort::Lasting,
        Some(_) => Sort::Passing,
    };
    (sort, format!("{error}{why}"))
}

/// By the class of the code (the manual of Postgres, appendix A).
fn sort_of(code: &str) -> Sort {
    match code {
        // The database was dropped.
        "57P04" => Sort::Lasting,
        // A standby: a connection that is made later finds the primary.
        "25006" => Sort::Passing,
        // An idle transaction was ended, a lock was not to be had.
        "25P03" | "55P03" | "55006" => Sort::Passing,
        _ => match code.get(..2).unwrap_or_default() {
            // Connection, rollback (deadlock, serialization), resources (disk full), operator, system.
            "08" | "40" | "53" | "57" | "58" => Sort::Passing,
            // Data, constraints, a view's check, what a trigger raised, a limit of the program.
            "22" | "23" | "44" | "P0" | "54" => Sort::Content,
            _ => Sort::Lasting,
        },
    }
}

fn words_of(said: &DbError) -> String {
    let code = said.code().code();
    let mut words = match code.get(..2).unwrap_or_default() {
        "28" => format!("the server refuses the credentials (SQLSTATE {code})"),
        "22" | "P0" => format!("the server refuses what was sent (SQLSTATE {code}; its log says why)"),
        _ => {
            let message: String = said.message().chars().take(MESSAGE_CHARS_MAX).collect();
            format!("the server says \"{message}\" (SQLSTATE {code})")
        }
    };
    if let Some(constraint) = said.constraint() {
        words.push_str(&format!(", constraint \"{constraint}\""));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_sorted_by_whether_they_may_pass() {
        for code in ["08006", "40001", "40P01", "53100", "53300", "57014", "57P01", "57P03", "58030", "25006"]
        {
            assert_eq!(sort_of(code), Sort::Passing, "{code}");
        }
        for code in ["22P02", "23514", "23505", "54000", "P0001", "44000"] {
            assert_eq!(sort_of(code), Sort::Content, "{code}");
        }
        for code in ["28P01", "28000", "3D000", "42P01", "42501", "57P04", "XX001", ""] {
            assert_eq!(sort_of(code), Sort::Lasting, "{code}");
        }
    }
}
