//! Refuses addresses of databases, brokers and S3 that the author of a spec cannot reach but the operator can: its own
//! pod, the node's metadata service, the API server. Addresses in the spec and in Secrets are checked when they are
//! read, and the addresses of a name before a connection. Not covered: a name that resolves differently a moment later,
//! and the broker addresses that Kafka returns.

use std::{net::IpAddr, time::Duration};

use sqlx::postgres::PgConnectOptions;

use super::dereference::place;
use crate::{
    condition::{Problem, Reason},
    pipeline::{Bucket, Part, Shard, Topic},
};

/// The timeout of a name's resolution. Without an answer nothing is refused, because the connection fails as well.
const RESOLUTION: Duration = Duration::from_secs(5);

/// Names of the API server in any cluster. Names below the last one are refused as well.
const API_SERVER: [&str; 3] = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"];

/// Parameters of a DSN that name a file, as libpq and sqlx spell them.
const FILES: [&str; 12] = [
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcrl",
    "sslcrldir",
    "passfile",
    "service",
    "servicefile",
];

/// The rules for addresses that the operator may connect to.
#[derive(Clone, Debug, Default)]
pub struct Backends {
    pub allow_loopback: bool,
    /// The host and port of the API server.
    pub api_server: Option<(String, u16)>,
}

/// The reason why an address is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(
        "on loopback, which is the operator's own pod (--allow-loopback-backends allows it): use the server's own address"
    )]
    Loopback,
    #[error("link-local, where a node has its metadata service: use the server's own address")]
    LinkLocal,
    #[error("the Kubernetes API server: use the address of the backend")]
    ApiServer,
    #[error("a socket in the operator's own file system: use a host")]
    Socket,
}

impl Backends {
    /// Checks a host in the form in which it is written.
    pub fn require(&self, host: &str, port: u16) -> Result<(), Refusal> {
        let host = host.trim_matches(['[', ']']).trim_end_matches('.').to_ascii_lowercase();
        let host = host.split('%').next().unwrap_or_default();
        let is_api_server = self.api_server.as_ref().is_some_and(|(name, at)| (name.as_str(), *at) == (host, port));
        if is_api_server || API_SERVER.contains(&host) || host.starts_with("kubernetes.default.svc.") {
            return Err(Refusal::ApiServer);
        }
        let is_local = ["localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback"].contains(&host);
        if host.is_empty() || host.starts_with('/') {
            Err(Refusal::Socket)
        } else if is_local || host.ends_with(".localhost") {
            if self.allow_loopback { Ok(()) } else { Err(Refusal::Loopback) }
        } else if let Ok(address) = host.parse() {
            self.require_address(address, port)
        } else {
            Ok(())
        }
    }

    pub fn require_database(&self, options: &PgConnectOptions) -> Result<(), Refusal> {
        match options.get_socket() {
            Some(_) => Err(Refusal::Socket),
            None => self.require(options.get_host(), options.get_port()),
        }
    }

    fn require_address(&self, address: IpAddr, port: u16) -> Result<(), Refusal> {
        let address = address.to_canonical();
        let is_api_server =
            |(host, at): &(String, u16)| *at == port && host.parse::<IpAddr>().is_ok_and(|host| host == address);
        let is_link_local = match address {
            IpAddr::V4(address) => address.is_link_local(),
            IpAddr::V6(address) => address.is_unicast_link_local(),
        };
        if self.api_server.as_ref().is_some_and(is_api_server) {
            Err(Refusal::ApiServer)
        } else if is_link_local {
            Err(Refusal::LinkLocal)
        } else if !self.allow_loopback && (address.is_loopback() || address.is_unspecified()) {
            Err(Refusal::Loopback)
        } else {
            Ok(())
        }
    }

    /// Checks the addresses that the host resolves to.
    async fn require_resolved(&self, host: &str, port: u16) -> Result<(), Refusal> {
        let host = host.trim_matches(['[', ']']);
        match tokio::time::timeout(RESOLUTION, tokio::net::lookup_host((host, port))).await {
            Ok(Ok(mut addresses)) => addresses.try_for_each(|address| self.require_address(address.ip(), port)),
            _ => Ok(()),
        }
    }

    /// Checks the addresses that the name of a shard's server resolves to.
    pub async fn require_allowed_database(&self, shard: &Shard, options: &PgConnectOptions) -> Part<()> {
        let allowed = self.require_resolved(options.get_host(), options.get_port()).await;
        allowed.map_err(|refusal| unusable_dsn(&place(&shard.dsn), refusal).in_part(&shard.name))
    }

    /// Checks the addresses that the name of the bucket's endpoint resolves to.
    pub async fn require_allowed_endpoint(&self, bucket: &Bucket) -> Part<()> {
        let url = bucket.endpoint.as_ref().and_then(|endpoint| endpoint.parse::<url::Url>().ok());
        let Some(host) = url.as_ref().and_then(url::Url::host_str) else { return Ok(()) };
        self.require_resolved(host, bucket.port).await.map_err(|refusal| unusable_endpoint(host, refusal))
    }

    /// Checks the addresses that the brokers' names resolve to.
    pub async fn require_allowed_brokers(&self, topic: &Topic) -> Part<()> {
        for (host, port) in brokers(&topic.brokers) {
            self.require_resolved(host, port).await.map_err(|refusal| unusable_broker(host, refusal))?;
        }
        Ok(())
    }
}

/// Splits a list of brokers into host and port. Skips a broker without a valid port.
pub fn brokers(list: &str) -> impl Iterator<Item = (&str, u16)> {
    list.split(',').filter_map(|broker| {
        let (host, port) = broker.rsplit_once(':')?;
        Some((host, port.parse().ok()?))
    })
}

/// Refuses a DSN with a parameter that names a file: the file would be in the operator's container or in the pods'.
pub fn refuse_files(dsn: &str) -> Result<(), String> {
    let Ok(url) = dsn.parse::<url::Url>() else { return Ok(()) };
    let named = url.query_pairs().map(|(name, _)| name.to_ascii_lowercase());
    match named.into_iter().find(|name| FILES.contains(&name.as_str())) {
        Some(name) => Err(format!(
            "its parameter {name} names a file, which is not allowed: remove it, and set an authority as caSecretRef"
        )),
        None => Ok(()),
    }
}

/// Reports a refused DSN. The message omits the host, because it is part of a Secret.
pub fn unusable_dsn(place: &str, refusal: Refusal) -> Problem {
    Problem::new(Reason::SecretInvalid, format!("{place}: its host is {refusal}"))
}

pub fn unusable_endpoint(host: &str, refusal: Refusal) -> Problem {
    Problem::new(Reason::SpecInvalid, format!("bucket: spec.bucket.endpoint: {host} is {refusal}"))
}

pub fn unusable_broker(host: &str, refusal: Refusal) -> Problem {
    Problem::new(Reason::SpecInvalid, format!("topic: spec.topic.bootstrapServers: {host} is {refusal}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backends(allow_loopback: bool) -> Backends {
        Backends { allow_loopback, api_server: Some(("10.96.0.1".to_owned(), 443)) }
    }

    #[test]
    fn addresses_that_only_the_operator_reaches_are_refused() {
        use Refusal::{ApiServer, LinkLocal, Loopback, Socket};
        for (host, refusal) in [
            ("127.0.0.1", Some(Loopback)),
            ("127.8.8.8", Some(Loopback)),
            ("0.0.0.0", Some(Loopback)),
            ("[::1]", Some(Loopback)),
            ("::ffff:127.0.0.1", Some(Loopback)),
            ("LocalHost", Some(Loopback)),
            ("localhost.", Some(Loopback)),
            ("db.localhost", Some(Loopback)),
            ("169.254.169.254", Some(LinkLocal)),
            ("[fe80::1]", Some(LinkLocal)),
            ("fe80::1%eth0", Some(LinkLocal)),
            ("::ffff:169.254.169.254", Some(LinkLocal)),
            ("10.96.0.1", Some(ApiServer)),
            ("kubernetes", Some(ApiServer)),
            ("Kubernetes.Default.", Some(ApiServer)),
            ("kubernetes.default.svc.cluster.local", Some(ApiServer)),
            ("/var/run/postgresql", Some(Socket)),
            ("", Some(Socket)),
            ("10.96.0.2", None),
            ("postgres-shard1", None),
            ("kubernetes.shop.svc", None),
            ("notlocalhost", None),
            ("fd00::1", None),
        ] {
            assert_eq!(backends(false).require(host, 443).err(), refusal, "{host:?}");
            let allowed = refusal.filter(|refusal| *refusal != Loopback);
            assert_eq!(backends(true).require(host, 443).err(), allowed, "{host:?} with loopback allowed");
        }
        // Another server on the API server's host is allowed.
        assert_eq!(backends(false).require("10.96.0.1", 5432), Ok(()));
    }

    /// Covers a laptop, where the API server and the backends share a host.
    #[test]
    fn an_api_server_on_loopback_is_refused_even_where_loopback_is_allowed() {
        let backends = Backends { allow_loopback: true, api_server: Some(("127.0.0.1".to_owned(), 6443)) };
        assert_eq!(backends.require("127.0.0.1", 6443), Err(Refusal::ApiServer));
        assert_eq!(backends.require("127.0.0.1", 5432), Ok(()));
    }

    #[tokio::test]
    async fn a_name_is_refused_by_its_addresses() {
        // Resolvers accept forms of an address that parsers do not.
        for host in ["127.1", "2130706433", "0x7f000001"] {
            assert_eq!(backends(false).require(host, 5432), Ok(()));
            assert_eq!(backends(false).require_resolved(host, 5432).await, Err(Refusal::Loopback), "{host}");
        }
        assert_eq!(backends(false).require_resolved("does-not-exist.invalid", 5432).await, Ok(()));
    }

    #[test]
    fn a_parameter_that_names_a_file_is_refused_without_showing_its_value() {
        for name in FILES.iter().copied().chain(["SslCert"]) {
            let error =
                refuse_files(&format!("postgres://o:hunter2@db/orders?sslmode=require&{name}=/hunter2")).unwrap_err();
            assert!(error.contains(&name.to_ascii_lowercase()) && !error.contains("hunter2"), "{error}");
        }
        for fine in ["postgres://db/orders", "postgres://db/o?sslmode=verify-full&application_name=sslcert", "nonsense"]
        {
            refuse_files(fine).unwrap();
        }
    }
}
