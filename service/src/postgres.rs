//! The options of all Postgres connections.

mod pool;
mod refusal;

use std::{fmt, path::PathBuf, time::Duration};

use anyhow::Context;
use orderflow_core::{Shard, ShardMap};
use rustls::{
    CertificateError, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use secrecy::{ExposeSecret, SecretString};
use sqlx::{
    ConnectOptions, Connection, PgConnection,
    postgres::{PgConnectOptions, PgSslMode},
};

use crate::{plain, secret};

pub use pool::{AskError, Pool};
pub use refusal::{Refusal, is_stale_plan, sqlstate};

/// Implements [`sqlx::FromRow`] for a struct whose fields are named like the columns. sqlx's derive would compile the
/// whole Postgres driver a second time, for the compiler.
#[macro_export]
macro_rules! from_row {
    ($type:ident { $($field:ident),+ $(,)? }) => {
        impl<'row> sqlx::FromRow<'row, sqlx::postgres::PgRow> for $type {
            fn from_row(row: &'row sqlx::postgres::PgRow) -> Result<Self, sqlx::Error> {
                Ok(Self { $($field: sqlx::Row::try_get(row, stringify!($field))?),+ })
            }
        }
    };
}

/// The longest wait for a connection: TCP, TLS and login together.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The address of a database, and the authorities that verify its server.
#[derive(Clone, Debug)]
pub struct Dsn {
    /// `postgres://USER:PASSWORD@HOST:PORT/DATABASE[?sslmode=…]`
    pub url: SecretString,
    pub ca: Option<Ca>,
}

/// The authorities, usually private, that may sign a server's certificate: PEM with at least one certificate.
#[derive(Clone)]
pub enum Ca {
    /// A file that is read for each connection, so that a renewed authority is trusted without a restart.
    File(PathBuf),
    /// A text, for a process that has no file.
    Pem(Vec<u8>),
}

/// Returns the environment variable with the DSN of a shard, such as `PG_SHARD1_DSN`.
pub fn dsn_variable(shard: &Shard) -> String {
    format!("PG_SHARD{}_DSN", shard.number.get())
}

/// Returns the environment variable with the path of the PEM file that verifies a shard's server, such as
/// `PG_SHARD1_CA_FILE`.
pub fn ca_variable(shard: &Shard) -> String {
    format!("PG_SHARD{}_CA_FILE", shard.number.get())
}

/// Reads the DSN of each shard, or the file that `PG_SHARD1_DSN_FILE` names, and the optional path of the CA file from
/// the environment, in the order of the map. The error names every missing variable.
pub fn shard_dsns(map: &ShardMap) -> anyhow::Result<Vec<Dsn>> {
    read_shard_dsns(map, |variable| std::env::var(variable).ok())
}

fn read_shard_dsns(map: &ShardMap, read: impl Fn(&str) -> Option<String>) -> anyhow::Result<Vec<Dsn>> {
    let environment = |variable: &str| read(variable).map(Ok);
    let (mut dsns, mut missing) = (Vec::new(), Vec::new());
    for shard in map {
        let variable = dsn_variable(shard);
        let authority = ca_variable(shard);
        let ca = read(&authority).filter(|path| !path.trim().is_empty());
        ca.iter().try_for_each(|path| plain::check_plain(&authority, path, false)).map_err(anyhow::Error::msg)?;
        let ca = ca.map(|path| Ca::File(path.into()));
        match secret::read_from(&variable, environment).map_err(anyhow::Error::msg)? {
            Some(url) => dsns.push(Dsn { url, ca }),
            None => missing.push(format!("{variable} ({})", shard.info())),
        }
    }
    anyhow::ensure!(missing.is_empty(), "not set: {}", missing.join(", "));
    Ok(dsns)
}

/// Parses `postgres://user:password@host:port/database[?sslmode=…&sslrootcert=…]`. The error names `variable` and never
/// shows its value.
///
/// With a `ca` the server's certificate is verified: an `sslmode` weaker than `verify-ca`, such as the default
/// `prefer`, becomes `verify-full`, and the `ca` replaces an `sslrootcert` of the URL. The public authorities stay
/// trusted. An unusable `ca` is an error at once. The error never shows its text.
pub fn options(
    variable: &str,
    url: &SecretString,
    ca: Option<&Ca>,
    application: &str,
) -> anyhow::Result<PgConnectOptions> {
    let url = url.expose_secret();
    let is_postgres = url.starts_with("postgres://") || url.starts_with("postgresql://");
    if is_postgres {
        require_known_parameters(variable, url)?;
    }
    let options: Option<PgConnectOptions> = is_postgres.then(|| url.parse().ok()).flatten();
    let options =
        options.with_context(|| format!("{variable}: not a URL like postgres://USER:PASSWORD@HOST/DATABASE"))?;
    let options = match ca {
        Some(ca) => verified_by(ca, options).with_context(|| variable.to_owned())?,
        None => options,
    };
    // The server drops a session after about 5 s if its client has vanished (frozen node, cut cable), so that its locks
    // and its open transaction end soon.
    let server_side = [
        ("tcp_keepalives_idle", "2"),
        ("tcp_keepalives_interval", "1"),
        ("tcp_keepalives_count", "3"),
        ("tcp_user_timeout", "5000"),
    ];
    Ok(options.application_name(application).options(server_side).disable_statement_logging())
}

/// Refuses a parameter that sqlx does not know. sqlx would log its value, which may be a misspelled password, and
/// ignore it.
fn require_known_parameters(variable: &str, url: &str) -> anyhow::Result<()> {
    const KNOWN: [&str; 18] = [
        "sslmode",
        "ssl-mode",
        "sslrootcert",
        "ssl-root-cert",
        "ssl-ca",
        "sslcert",
        "ssl-cert",
        "sslkey",
        "ssl-key",
        "statement-cache-capacity",
        "host",
        "hostaddr",
        "port",
        "dbname",
        "user",
        "password",
        "application_name",
        "options",
    ];
    let query = url.split_once('?').map_or("", |(_, query)| query);
    let query = query.split_once('#').map_or(query, |(query, _)| query);
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        let name = parameter.split_once('=').map_or(parameter, |(name, _)| name);
        // Encoders escape the brackets of `options[NAME]`.
        let name = &name.replace("%5B", "[").replace("%5b", "[").replace("%5D", "]").replace("%5d", "]");
        let is_known = KNOWN.contains(&name.as_str()) || (name.starts_with("options[") && name.ends_with(']'));
        // Any other text may be part of a password with a question mark.
        let is_name =
            name.len() <= 40 && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
        anyhow::ensure!(
            is_known,
            "{variable}: the parameter {} is unknown. Known are {}",
            if is_name && parameter.contains('=') { name } else { "behind the question mark" },
            KNOWN.join(", ")
        );
    }
    Ok(())
}

fn verified_by(ca: &Ca, options: PgConnectOptions) -> anyhow::Result<PgConnectOptions> {
    let options = match options.get_ssl_mode() {
        PgSslMode::VerifyCa | PgSslMode::VerifyFull => options,
        PgSslMode::Disable | PgSslMode::Allow | PgSslMode::Prefer | PgSslMode::Require => {
            options.ssl_mode(PgSslMode::VerifyFull)
        }
    };
    match ca {
        Ca::File(path) => {
            let what = || format!("its CA file {}", path.display());
            let pem = std::fs::read(path).with_context(what)?;
            require_certificates(&pem).with_context(what)?;
            Ok(options.ssl_root_cert(path))
        }
        Ca::Pem(pem) => {
            require_certificates(pem).context("its CA")?;
            Ok(options.ssl_root_cert_from_pem(pem.clone()))
        }
    }
}

/// Checks that a PEM text has certificates. sqlx would accept a text without any, and show a wrong text in its error.
fn require_certificates(pem: &[u8]) -> anyhow::Result<()> {
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        // Drops the cause, which may show a line of the text.
        let certificate = certificate.ok().context("not well-formed PEM")?;
        store.add(certificate).ok().context("a certificate in it cannot be read")?;
    }
    anyhow::ensure!(!store.is_empty(), "no certificate in it (-----BEGIN CERTIFICATE-----)");
    Ok(())
}

/// Returns true if both lead to the same database and schema, as far as their text shows. Users do not matter.
pub fn same_database(one: &PgConnectOptions, other: &PgConnectOptions) -> bool {
    let place = |options: &PgConnectOptions| {
        let server = (options.get_host().to_owned(), options.get_port(), options.get_socket().cloned());
        // The options may have a search path: two schemas of one database are two places.
        (server, options.get_database().map(ToOwned::to_owned), options.get_options().map(ToOwned::to_owned))
    };
    place(one) == place(other)
}

/// A reason for a failed connection. Its text never has a DSN.
#[derive(Debug, thiserror::Error)]
#[error("cannot connect to Postgres: {}", self.reason())]
pub enum ConnectError {
    /// The server did not answer within [`CONNECT_TIMEOUT`].
    NoAnswer,
    /// The client does not accept the server's certificate.
    Certificate(CertificateError),
    Other(sqlx::Error),
}

impl ConnectError {
    fn from_sqlx(error: sqlx::Error) -> Self {
        // rustls reports a failed handshake as an I/O error of the connection.
        let tls = match &error {
            sqlx::Error::Io(error) => error.get_ref().and_then(|error| error.downcast_ref()),
            _ => None,
        };
        match tls {
            Some(rustls::Error::InvalidCertificate(certificate)) => Self::Certificate(certificate.clone()),
            _ => Self::Other(error),
        }
    }

    fn reason(&self) -> String {
        match self {
            Self::NoAnswer => format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()),
            Self::Certificate(error) => format!("the server's certificate is not accepted: {}", explain_tls(error)),
            Self::Other(error) => explain(error),
        }
    }
}

fn explain_tls(error: &CertificateError) -> String {
    match error {
        CertificateError::UnknownIssuer => "it is signed by none of the trusted authorities".to_owned(),
        // rustls would add the current time.
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "it has expired".to_owned(),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "it is not valid yet".to_owned(),
        other => other.to_string(),
    }
}

/// Explains an error in a short text: the server's message for a refusal, and the cause alone for an I/O error, which
/// sqlx would wrap in its own words.
pub fn explain(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(error) => error.message().to_owned(),
        sqlx::Error::Io(error) => error.to_string(),
        other => other.to_string(),
    }
}

/// Connects, or returns an error within [`CONNECT_TIMEOUT`].
pub async fn connect(options: &PgConnectOptions) -> Result<PgConnection, ConnectError> {
    match tokio::time::timeout(CONNECT_TIMEOUT, PgConnection::connect_with(options)).await {
        Ok(connection) => connection.map_err(ConnectError::from_sqlx),
        Err(_) => Err(ConnectError::NoAnswer),
    }
}

/// Formats without the text, which may have a private key beside the certificate.
impl fmt::Debug for Ca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Pem(_) => f.debug_tuple("Pem").finish_non_exhaustive(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_missing_dsn_is_named() {
        let map: ShardMap = "shard1=A-H,shard2=I-P,shard3=Q-Z".parse().unwrap();
        let read = |variable: &str| match variable {
            "PG_SHARD1_DSN" => Some("postgres://one/orders".to_owned()),
            "PG_SHARD3_DSN" => Some(" ".to_owned()),
            _ => None,
        };
        let error = read_shard_dsns(&map, read).unwrap_err().to_string();
        assert_eq!(error, "not set: PG_SHARD2_DSN (shard2 (I-P)), PG_SHARD3_DSN (shard3 (Q-Z))");
        let all = |variable: &str| variable.ends_with("_DSN").then(|| variable.to_owned());
        assert_eq!(read_shard_dsns(&map, all).unwrap().len(), 3);
    }

    #[test]
    fn a_dsn_may_be_in_a_file() {
        let map: ShardMap = "shard1=A-Z".parse().unwrap();
        let read = |variable: &str| (variable == "PG_SHARD1_DSN_FILE").then(|| "/nowhere/dsn".to_owned());
        let error = read_shard_dsns(&map, read).unwrap_err().to_string();
        assert!(error.starts_with("PG_SHARD1_DSN_FILE: read /nowhere/dsn: "), "{error}");
    }

    #[test]
    fn a_dsn_with_an_invisible_character_is_named_and_not_shown() {
        let map: ShardMap = "shard1=A-Z".parse().unwrap();
        let refused = |variable: &'static str, value: &'static str| {
            let read = |name: &str| match name {
                name if name == variable => Some(value.to_owned()),
                "PG_SHARD1_DSN" => Some("postgres://db".to_owned()),
                _ => None,
            };
            read_shard_dsns(&map, read).unwrap_err().to_string()
        };
        let error = refused("PG_SHARD1_DSN", "postgres://o:hunter2@db/orders\n");
        assert!(error.starts_with("PG_SHARD1_DSN: ") && error.contains(r"'\n' as character 31"), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
        assert!(refused("PG_SHARD1_CA_FILE", "/etc/ca.crt\r").ends_with(r#""/etc/ca.crt\r""#));
    }

    #[test]
    fn each_dsn_may_have_a_ca_file() {
        let map: ShardMap = "shard1=A-H,shard2=I-P,shard3=Q-Z".parse().unwrap();
        let read = |variable: &str| match variable {
            "PG_SHARD2_CA_FILE" => Some("/etc/ca.crt".to_owned()),
            "PG_SHARD3_CA_FILE" => Some(" ".to_owned()),
            other => other.ends_with("_DSN").then(|| "postgres://db/orders".to_owned()),
        };
        let dsns = read_shard_dsns(&map, read).unwrap();
        assert!(matches!(&dsns[1].ca, Some(Ca::File(path)) if path.as_os_str() == "/etc/ca.crt"), "{dsns:?}");
        assert!(dsns[0].ca.is_none() && dsns[2].ca.is_none(), "{dsns:?}");
    }

    fn with_ca(query: &str, ca: Option<&Ca>) -> anyhow::Result<PgConnectOptions> {
        let url = SecretString::from(format!("postgres://a:secret@db/orders{query}"));
        options("PG_SHARD1_DSN", &url, ca, "test")
    }

    const CA: &str = "\
-----BEGIN CERTIFICATE-----
MIIBiTCCAS+gAwIBAgIUDcbBR3emqHUuQ60rwM4ODZVT9OQwCgYIKoZIzj0EAwIw
GTEXMBUGA1UEAwwOdGVzdCBhdXRob3JpdHkwIBcNMjYxMTIyMjI0ODQ1WhgPMjEy
NjEwMjkyMjQ4NDVaMBkxFzAVBgNVBAMMDnRlc3QgYXV0aG9yaXR5MFkwEwYHKoZI
zj0CAQYIKoZIzj0DAQcDQgAEybKSs1wqyJrIbA5n1rNujx+mnTWaOPJXgYAppAkV
kj0vRP4rnNbT5LZxHy9DYSCFfuodMD9DbIzQpYImoX6dQ6NTMFEwHQYDVR0OBBYE
FH9Z6GvecWnePgq5BbzfDNJcKkuWMB8GA1UdIwQYMBaAFH9Z6GvecWnePgq5Bbzf
DNJcKkuWMA8GA1UdEwEB/wQFMAMBAf8wCgYIKoZIzj0EAwIDSAAwRQIhALMtiWVx
2nUUN4+7olBdgdKbKi2x8fGeRM10mWXVZyxtAiAbqKoi7GgAosK7UP9j898UlNg4
J4HHx47MHH9Owv3Jhw==
-----END CERTIFICATE-----
";

    #[test]
    fn an_unusable_authority_is_refused_at_once_and_never_shown() {
        with_ca("", Some(&Ca::Pem(CA.into()))).unwrap();
        with_ca("", Some(&Ca::Pem(format!("Our authorities\n{CA}{CA}").into()))).unwrap();
        let error = |ca: &Ca| format!("{:#}", with_ca("", Some(ca)).map(drop).unwrap_err());

        let (cut, other) = (CA.replace("-----END CERTIFICATE-----", ""), CA.replace("MIIB", "MIIC"));
        let key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        for wrong in ["", "secret", key, &cut, &other, &format!("{CA}-----BEGIN secret\nsecret\n")] {
            let ca = Ca::Pem(wrong.into());
            let shown = format!("{ca:?} {}", error(&ca));
            assert!(shown.contains("PG_SHARD1_DSN: its CA: "), "{shown}");
            assert!(["secret", "AAAA", "MII", "45, 45"].iter().all(|text| !shown.contains(text)), "{shown}");
        }
        let missing = error(&Ca::File("/nowhere/ca.crt".into()));
        assert!(missing.starts_with("PG_SHARD1_DSN: its CA file /nowhere/ca.crt: "), "{missing}");
        let none = error(&Ca::File(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml").into()));
        assert!(none.ends_with("Cargo.toml: no certificate in it (-----BEGIN CERTIFICATE-----)"), "{none}");
    }

    #[test]
    fn an_unknown_parameter_is_refused_by_name_without_its_value() {
        for known in [
            "?sslmode=require&options[search_path]=shop",
            "?options%5Bsearch_path%5D=shop",
            "?application_name=a&",
            "",
            "#x",
        ] {
            with_ca(known, None).unwrap();
        }
        for (query, shown) in [
            ("?pasword=hunter2", "PG_SHARD1_DSN: the parameter pasword is unknown. Known are sslmode, "),
            ("?sslmode=require&passfile=/etc/hunter2", "the parameter passfile is unknown"),
            ("?hunter2", "the parameter behind the question mark is unknown"),
            ("?hunter2@db/orders?sslmode=require", "the parameter behind the question mark is unknown"),
        ] {
            let error = with_ca(query, None).unwrap_err().to_string();
            assert!(error.contains(shown) && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn with_an_authority_the_certificate_of_the_server_is_verified() {
        let ca = Ca::Pem(CA.into());
        let mode = |query: &str, ca: Option<&Ca>| with_ca(query, ca).unwrap().get_ssl_mode();
        for weak in ["", "?sslmode=disable", "?sslmode=allow", "?sslmode=prefer", "?sslmode=require"] {
            let strengthened = mode(weak, Some(&ca));
            assert!(matches!(strengthened, PgSslMode::VerifyFull), "{weak:?}: {strengthened:?}");
        }
        assert!(matches!(mode("?sslmode=verify-ca", Some(&ca)), PgSslMode::VerifyCa));
        assert!(matches!(mode("?sslmode=require", None), PgSslMode::Require));
    }
}
