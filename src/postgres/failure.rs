//! Failures of a Postgres server, classified by what the caller can do about them.
//!
//! A message of the server may quote the name of a user or a value (`invalid input syntax: "..."`, or the text that a
//! trigger raises), and the details of an error quote whole rows. So texts always contain the SQLSTATE, the message
//! only in classes whose messages name nothing but objects of the database, and never the details. The log of the
//! server has them all, and [`PostgresError`] gives them to a caller that asks for them.

use std::error::Error as _;
use std::fmt;
use std::io;
use std::sync::Arc;

use tokio_postgres::error::DbError;

use crate::error::{Error, ErrorKind};

/// The length up to which a message of the server is repeated, in characters.
const MESSAGE_CHARS_MAX: usize = 200;

/// The text of the client for a failed TLS handshake, which has no other mark.
const TLS: &str = "error performing TLS handshake";

/// The class of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ErrorClass {
    /// The failure may pass by itself. It is unknown whether the call was carried out.
    Transient,
    /// The server refuses the data of the call, for example because of a constraint.
    Rejected,
    /// The failure does not pass by itself.
    Permanent,
}

/// An error of a Postgres server or of the connection to it, as the source of an [`Error`].
///
/// Get it with [`Error::downcast_ref`]. Its text, also that of `Debug`, contains no values of rows and no credentials.
#[derive(Clone)]
pub struct PostgresError(Arc<tokio_postgres::Error>);

impl PostgresError {
    /// Returns the SQLSTATE, if the server answered.
    #[must_use]
    pub fn sqlstate(&self) -> Option<&str> {
        self.0.code().map(|code| code.code())
    }

    /// Returns the server's message, if the server answered. It may quote values of rows.
    #[must_use]
    pub fn server_message(&self) -> Option<&str> {
        self.0.as_db_error().map(DbError::message)
    }

    /// Returns the server's details of the error, if it gave any. They may quote whole rows.
    #[must_use]
    pub fn server_detail(&self) -> Option<&str> {
        self.0.as_db_error().and_then(DbError::detail)
    }

    fn io_error(&self) -> Option<&io::Error> {
        self.0.source().and_then(|source| source.downcast_ref())
    }

    fn class(&self) -> ErrorClass {
        match (self.0.code(), self.io_error()) {
            // The server's code is exact. Texts and I/O errors are looked at only if it never answered.
            (Some(code), _) => class_of_sqlstate(code.code()),
            (None, failed) if self.0.to_string() == TLS => class_of_tls(failed.map(io::Error::kind)),
            (None, Some(_)) => ErrorClass::Transient,
            (None, None) => class_of_client(&self.0.to_string()),
        }
    }
}

impl fmt::Display for PostgresError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let error = &self.0;
        match (error.as_db_error(), self.io_error()) {
            (Some(answer), _) => write_answer(answer, f),
            // The texts below a handshake's failure name certificates at most.
            (None, _) if error.to_string() == TLS => match error.source() {
                Some(source) => write!(f, "{error}: {source}"),
                None => write!(f, "{error}"),
            },
            // Only the kind, which cannot quote anything that was sent.
            (None, Some(failed)) => write!(f, "{error}: {}", failed.kind()),
            (None, None) => write!(f, "{error}"),
        }
    }
}

impl fmt::Debug for PostgresError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PostgresError({self})")
    }
}

// The driver's error is not the source: its text contains the details.
impl std::error::Error for PostgresError {}

/// A failure of a call, with the error of the driver if there is one.
#[derive(Clone, Debug)]
pub(crate) struct CallFailure {
    pub(crate) class: ErrorClass,
    context: String,
    cause: Option<PostgresError>,
}

impl CallFailure {
    /// Makes a failure without an error of the driver.
    pub(crate) fn new(class: ErrorClass, context: impl Into<String>) -> CallFailure {
        CallFailure { class, context: context.into(), cause: None }
    }

    /// Classifies an error of the driver.
    pub(crate) fn of(doing: &str, error: tokio_postgres::Error) -> CallFailure {
        let cause = PostgresError(Arc::new(error));
        CallFailure { class: cause.class(), context: doing.to_owned(), cause: Some(cause) }
    }

    /// Puts a prefix before the context.
    pub(crate) fn within(self, place: &str) -> CallFailure {
        CallFailure { context: format!("{place}: {}", self.context), ..self }
    }

    /// Turns a rejection into a permanent failure, for statements whose data is not a record's.
    pub(crate) fn not_rejected(self) -> CallFailure {
        match self.class {
            // No record is to blame, and none may be parked for it.
            ErrorClass::Rejected => CallFailure { class: ErrorClass::Permanent, ..self },
            ErrorClass::Transient | ErrorClass::Permanent => self,
        }
    }

    /// Marks the failure as transient.
    pub(crate) fn transient(self) -> CallFailure {
        CallFailure { class: ErrorClass::Transient, ..self }
    }

    /// Converts the failure into an error of this kind, with the driver's error as its source.
    pub(crate) fn into_error(self, kind: ErrorKind) -> Error {
        match self.cause {
            Some(cause) => Error::with_source(kind, self.context, cause),
            None => Error::new(kind, self.context),
        }
    }
}

/// Classifies a failure that the server never saw: a refused authentication, or a wrong use of the client. The client
/// has no kinds, so this compares its texts.
fn class_of_client(text: &str) -> ErrorClass {
    let permanent =
        ["authentication error", "invalid configuration", "error serializing", "error deserializing"];
    match permanent.iter().any(|start| text.starts_with(start)) {
        true => ErrorClass::Permanent,
        false => ErrorClass::Transient,
    }
}

/// Classifies a failed handshake. rustls reports a certificate that is not trusted as invalid data, and without an I/O
/// error the server does not offer TLS; all other failures are of the connection.
fn class_of_tls(failed: Option<io::ErrorKind>) -> ErrorClass {
    match failed {
        None | Some(io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput) => ErrorClass::Permanent,
        Some(_) => ErrorClass::Transient,
    }
}

/// Classifies by the SQLSTATE (the manual of Postgres, appendix A).
fn class_of_sqlstate(code: &str) -> ErrorClass {
    match code {
        // The database was dropped.
        "57P04" => ErrorClass::Permanent,
        // The server is a standby: a later connection finds the primary.
        "25006" => ErrorClass::Transient,
        // An idle transaction was ended, or a lock was not available.
        "25P03" | "55P03" | "55006" => ErrorClass::Transient,
        _ => match code.get(..2).unwrap_or_default() {
            // Connection, rollback (deadlock, serialization), resources (disk full), operator, system.
            "08" | "40" | "53" | "57" | "58" => ErrorClass::Transient,
            // Data, constraints, the check of a view, an exception of a trigger, a limit of the program.
            "22" | "23" | "44" | "P0" | "54" => ErrorClass::Rejected,
            _ => ErrorClass::Permanent,
        },
    }
}

fn write_answer(answer: &DbError, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let code = answer.code().code();
    match code.get(..2).unwrap_or_default() {
        // The server's message names the role, which no error may show.
        "28" => write!(f, "the server refuses the credentials (SQLSTATE {code})")?,
        // Messages of these classes quote values.
        "22" | "P0" => write!(f, "the server refuses what was sent (SQLSTATE {code}; its log says why)")?,
        _ => {
            // Bounded, because a message may be as long as the statement that it quotes.
            let message: String = answer.message().chars().take(MESSAGE_CHARS_MAX).collect();
            write!(f, "the server says \"{message}\" (SQLSTATE {code})")?;
        }
    }
    // The name of a constraint is part of the schema and no user's value.
    match answer.constraint() {
        Some(constraint) => write!(f, ", constraint \"{constraint}\""),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_sorted_by_whether_they_may_pass() {
        for code in ["08006", "40001", "40P01", "53100", "53300", "57014", "57P01", "57P03", "58030", "25006"]
        {
            assert_eq!(class_of_sqlstate(code), ErrorClass::Transient, "{code}");
        }
        for code in ["22P02", "23514", "23505", "54000", "P0001", "44000"] {
            assert_eq!(class_of_sqlstate(code), ErrorClass::Rejected, "{code}");
        }
        for code in ["28P01", "28000", "3D000", "42P01", "42501", "57P04", "XX001", ""] {
            assert_eq!(class_of_sqlstate(code), ErrorClass::Permanent, "{code}");
        }
    }
}
