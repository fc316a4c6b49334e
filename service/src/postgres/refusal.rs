//! What an error that Postgres answers with says of the statement that it refused: is it the server as a whole, or may it be
//! this statement alone? By SQLSTATE (<https://www.postgresql.org/docs/current/errcodes-appendix.html>).

use sqlx::postgres::{PgDatabaseError, PgSeverity};

/// Whom an error concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Every statement, whatever is in it; see [`WHOLE_SERVER`].
    Server,
    /// A statement that collided with another, and was undone: the same again may do.
    Collision,
    /// Made for columns that a migration has changed since; refused before it ran. The same again, planned anew, may do.
    StalePlan,
    /// The connection is ended, or on its way to be. Whether the statement was committed is not known.
    Connection,
    /// May be the rows or values of this statement: a constraint, a trigger, a policy, a limit, a permission.
    Statement,
}

/// What no row can cause, by class or by code, and why.
const WHOLE_SERVER: [(&str, &str); 4] = [
    ("25006", "read-only: a standby, or default_transaction_read_only"),
    ("53", "resources: disk full, out of memory, too many connections"),
    ("57", "an operator, or a limit of time, ended the statement"),
    ("58", "the operating system: an I/O error, a file that is gone"),
];

impl Refusal {
    /// `None` if the server did not answer with an error at all.
    pub fn of(error: &sqlx::Error) -> Option<Self> {
        let sqlx::Error::Database(error) = error else { return None };
        let error = error.try_downcast_ref::<PgDatabaseError>()?;
        let is_fatal = matches!(error.severity(), PgSeverity::Fatal | PgSeverity::Panic);
        Some(Self::of_code(error.code(), error.message(), is_fatal))
    }

    /// Whether other statements will do no better.
    pub fn is_of_server(self) -> bool {
        matches!(self, Self::Server | Self::Connection)
    }

    fn of_code(code: &str, message: &str, is_fatal: bool) -> Self {
        match code {
            // FATAL ends the session: whether before or after a commit, it does not say.
            _ if is_fatal => Self::Connection,
            code if code.starts_with("08") || code.starts_with("57P") || code == "40003" => Self::Connection,
            "40001" | "40P01" => Self::Collision,
            // The code means only that something is not supported; the message is the same in every version.
            "0A000" if message.starts_with("cached plan must not change") => Self::StalePlan,
            // The statement that was prepared is gone, as behind a pooler that gave us another session.
            "26000" => Self::StalePlan,
            code if WHOLE_SERVER.iter().any(|(whole, _)| code.starts_with(whole)) => Self::Server,
            _ => Self::Statement,
        }
    }
}

/// The SQLSTATE that Postgres answered with.
pub fn sqlstate(error: &sqlx::Error) -> Option<String> {
    error.as_database_error()?.code().map(Into::into)
}

/// Whether the same statement, planned anew, may be answered.
pub fn is_stale_plan(error: &sqlx::Error) -> bool {
    Refusal::of(error) == Some(Refusal::StalePlan)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_row_can_cause_is_told_from_what_concerns_the_server() {
        let of = |code| Refusal::of_code(code, "", false);
        for code in ["22001", "23505", "P0001", "42501", "44000", "54000", "54001", "42P01", "XX000", "55P03", "0A000"]
        {
            assert_eq!(of(code), Refusal::Statement, "{code}");
        }
        for code in ["25006", "53100", "53200", "53300", "57014", "58030"] {
            assert_eq!(of(code), Refusal::Server, "{code}");
        }
        for code in ["08006", "57P01", "57P03", "40003"] {
            assert_eq!(of(code), Refusal::Connection, "{code}");
        }
        assert_eq!(
            [of("40001"), of("40P01"), of("26000")],
            [Refusal::Collision, Refusal::Collision, Refusal::StalePlan]
        );
        assert_eq!(Refusal::of_code("P0001", "", true), Refusal::Connection);
        assert_eq!(Refusal::of_code("0A000", "cached plan must not change result type", false), Refusal::StalePlan);
        assert!(WHOLE_SERVER.iter().all(|(_, reason)| !reason.is_empty()));
    }
}
