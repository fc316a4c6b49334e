//! Classifies an error of Postgres by its SQLSTATE (<https://www.postgresql.org/docs/current/errcodes-appendix.html>):
//! either it concerns the whole server, or it may concern the refused statement alone.

use sqlx::postgres::{PgDatabaseError, PgSeverity};

/// The scope of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Concerns every statement, whatever its content; see [`WHOLE_SERVER`].
    Server,
    /// The statement collided with another one and was rolled back. A retry may succeed.
    Collision,
    /// The plan was made for columns that a migration has changed since. The server refused the statement before it
    /// ran. A retry with a new plan may succeed.
    StalePlan,
    /// The connection has ended or is about to end. It is unknown whether the statement was committed.
    Connection,
    /// The rows or values of this statement may be the cause: a constraint, a trigger, a policy, a limit, a permission.
    Statement,
}

/// Errors that no row can cause, by class or code, with the reason.
const WHOLE_SERVER: [(&str, &str); 4] = [
    ("25006", "read-only: a standby, or default_transaction_read_only"),
    ("53", "resources: disk full, out of memory, too many connections"),
    ("57", "an operator, or a limit of time, ended the statement"),
    ("58", "the operating system: an I/O error, a file that is gone"),
];

impl Refusal {
    /// Classifies an error. Returns `None` if the error is not an answer of the server.
    pub fn from_error(error: &sqlx::Error) -> Option<Self> {
        let sqlx::Error::Database(error) = error else { return None };
        let error = error.try_downcast_ref::<PgDatabaseError>()?;
        let is_fatal = matches!(error.severity(), PgSeverity::Fatal | PgSeverity::Panic);
        Some(Self::from_code(error.code(), error.routine(), is_fatal))
    }

    /// Returns true if every other statement would fail as well.
    pub fn is_of_server(self) -> bool {
        matches!(self, Self::Server | Self::Connection)
    }

    fn from_code(code: &str, routine: Option<&str>, is_fatal: bool) -> Self {
        match code {
            // FATAL ends the session and does not say whether before or after a commit.
            _ if is_fatal => Self::Connection,
            code if code.starts_with("08") || code.starts_with("57P") || code == "40003" => Self::Connection,
            "40001" | "40P01" => Self::Collision,
            // The code alone means only `feature_not_supported`, and the message is translated.
            "0A000" if routine == Some("RevalidateCachedQuery") => Self::StalePlan,
            // The prepared statement no longer exists, for example because a pooler switched to another session.
            "26000" => Self::StalePlan,
            code if WHOLE_SERVER.iter().any(|(whole, _)| code.starts_with(whole)) => Self::Server,
            _ => Self::Statement,
        }
    }
}

/// Returns the SQLSTATE of an error of Postgres.
pub fn sqlstate(error: &sqlx::Error) -> Option<String> {
    error.as_database_error()?.code().map(Into::into)
}

/// Returns true if the same statement may succeed with a new plan.
pub fn is_stale_plan(error: &sqlx::Error) -> bool {
    Refusal::from_error(error) == Some(Refusal::StalePlan)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_a_statement_differ_from_errors_of_the_server() {
        let classify = |code| Refusal::from_code(code, None, false);
        for code in ["22001", "23505", "P0001", "42501", "44000", "54000", "54001", "42P01", "XX000", "55P03", "0A000"]
        {
            assert_eq!(classify(code), Refusal::Statement, "{code}");
        }
        for code in ["25006", "53100", "53200", "53300", "57014", "58030"] {
            assert_eq!(classify(code), Refusal::Server, "{code}");
        }
        for code in ["08006", "57P01", "57P03", "40003"] {
            assert_eq!(classify(code), Refusal::Connection, "{code}");
        }
        assert_eq!(
            [classify("40001"), classify("40P01"), classify("26000")],
            [Refusal::Collision, Refusal::Collision, Refusal::StalePlan]
        );
        assert_eq!(Refusal::from_code("P0001", None, true), Refusal::Connection);
        assert_eq!(Refusal::from_code("0A000", Some("RevalidateCachedQuery"), false), Refusal::StalePlan);
        assert!(WHOLE_SERVER.iter().all(|(_, reason)| !reason.is_empty()));
    }
}
