//! The options of all Kafka clients. Every client is bounded in memory, creates no topics implicitly, and hashes keys
//! as Kafka's Java clients do.

mod broker_error;
pub mod header;
pub mod reader;
pub mod transaction;

use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use rdkafka::{
    ClientConfig, ClientContext,
    config::RDKafkaLogLevel,
    consumer::ConsumerContext,
    error::{KafkaError, RDKafkaErrorCode},
    producer::{BaseProducer, Producer, ProducerContext},
};
use secrecy::{ExposeSecret, SecretString};

use crate::secret::{self, Secrets};

pub use broker_error::{
    BrokerError, HasLastError, LastError, Unanswered, diagnose, error_counts, explain, fetch_metadata,
};
pub use reader::is_transient;

const PASSWORD: &str = "KAFKA_SASL_PASSWORD";

#[derive(Args, Clone, Debug)]
#[group(skip)]
#[command(next_help_heading = "Kafka")]
pub struct Settings {
    /// Kafka's brokers, HOST:PORT[,HOST:PORT…]
    #[arg(long, env = "KAFKA_BROKERS", default_value = "localhost:9092")]
    pub kafka_brokers: String,

    /// Topic of the order events; the other topics are named after it
    #[arg(long, env = "KAFKA_TOPIC", default_value = "orders")]
    pub kafka_topic: String,

    /// Connect to the brokers with TLS
    #[arg(long, env = "KAFKA_TLS", default_value_t = false)]
    pub kafka_tls: bool,

    /// PEM file of the authorities that may sign the brokers' certificates; absent: those of the system
    #[arg(long, env = "KAFKA_CA_FILE", requires = "kafka_tls")]
    pub kafka_ca_file: Option<String>,

    /// PEM text of the authorities, instead of the file, for a process that has the text. It has no flag
    #[arg(skip)]
    pub kafka_ca_pem: Option<String>,

    /// SASL mechanism of the login; absent: no login. The password is in KAFKA_SASL_PASSWORD, or in the file that
    /// KAFKA_SASL_PASSWORD_FILE names; it has no flag
    #[arg(long, env = "KAFKA_SASL_MECHANISM", value_enum, requires = "kafka_sasl_username")]
    pub kafka_sasl_mechanism: Option<SaslMechanism>,

    /// User name of the login
    #[arg(long, env = "KAFKA_SASL_USERNAME")]
    pub kafka_sasl_username: Option<String>,

    /// Password of the login, which [`read_secrets`](Secrets::read_secrets) reads
    #[arg(skip)]
    pub kafka_sasl_password: Option<SecretString>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum SaslMechanism {
    #[value(name = "PLAIN")]
    Plain,
    #[value(name = "SCRAM-SHA-256")]
    ScramSha256,
    #[value(name = "SCRAM-SHA-512")]
    ScramSha512,
}

impl Secrets for Settings {
    fn read_secrets(&mut self) -> Result<(), String> {
        self.kafka_sasl_password = secret::read(PASSWORD)?;
        match (self.kafka_sasl_mechanism, &self.kafka_sasl_password) {
            (Some(_), None) => Err(format!("KAFKA_SASL_MECHANISM: needs {PASSWORD} or {PASSWORD}_FILE")),
            _ => Ok(()),
        }
    }
}

impl Settings {
    /// Returns the options that all clients share.
    pub fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.kafka_brokers)
            .set("client.id", program())
            .set("allow.auto.create.topics", "false")
            .set("reconnect.backoff.max.ms", "1000")
            // Only this timeout detects a broker that is frozen rather than gone. The default is 60 s.
            .set("socket.timeout.ms", "10000")
            .set("socket.connection.setup.timeout.ms", "3000")
            .set("socket.keepalive.enable", "true")
            // The contexts need these lines: a broker that requires TLS or a login only closes the connection.
            .set("log.connection.close", "true")
            .set_log_level(RDKafkaLogLevel::Info);
        let protocol = match (self.kafka_tls, self.kafka_sasl_mechanism) {
            (false, None) => "PLAINTEXT",
            (true, None) => "SSL",
            (false, Some(_)) => "SASL_PLAINTEXT",
            (true, Some(_)) => "SASL_SSL",
        };
        config.set("security.protocol", protocol);
        // Only one of them, because librdkafka would trust both.
        match (&self.kafka_ca_pem, &self.kafka_ca_file) {
            (Some(pem), _) => config.set("ssl.ca.pem", pem),
            (None, Some(file)) => config.set("ssl.ca.location", file),
            (None, None) => &mut config,
        };
        if let (Some(mechanism), Some(username), Some(password)) =
            (self.kafka_sasl_mechanism, &self.kafka_sasl_username, &self.kafka_sasl_password)
        {
            let mechanism = match mechanism {
                SaslMechanism::Plain => "PLAIN",
                SaslMechanism::ScramSha256 => "SCRAM-SHA-256",
                SaslMechanism::ScramSha512 => "SCRAM-SHA-512",
            };
            config
                .set("sasl.mechanisms", mechanism)
                .set("sasl.username", username)
                .set("sasl.password", password.expose_secret());
        }
        config
    }

    /// Returns the options of a transactional producer. At most one process may use a `transactional.id`: the last one
    /// that calls `init_transactions` with it fences all earlier ones.
    pub fn transactional_producer(&self, transactional_id: &str) -> ClientConfig {
        let mut config = self.client();
        config
            .set("transactional.id", transactional_id)
            // The longest time that a killed process can block readers of committed records.
            .set("transaction.timeout.ms", "10000")
            .set("message.timeout.ms", "10000")
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("partitioner", "murmur2_random")
            .set("compression.type", "lz4")
            // A flush sends each transaction, so lingering would only delay it.
            .set("linger.ms", "1")
            .set("batch.num.messages", "10000")
            .set("queue.buffering.max.kbytes", "16384")
            .set("queue.buffering.max.messages", "100000");
        config
    }

    /// Returns the options of a consumer of committed records. librdkafka needs a `group`, even for a consumer that
    /// does not join one.
    pub fn consumer(&self, group: &str) -> ClientConfig {
        let mut config = self.client();
        config
            .set("group.id", group)
            .set("isolation.level", "read_committed")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            // Our code chooses the start offset. A silent reset would skip or repeat records.
            .set("auto.offset.reset", "error")
            // Does not count the last fetched batch, which is compressed. In memory both need several times their
            // bytes. A larger record is delivered nevertheless.
            .set("queued.max.messages.kbytes", "1024")
            // The wait after that queue was full. The default is 1 s.
            .set("fetch.queue.backoff.ms", "5")
            .set("fetch.max.bytes", "1048576")
            .set("fetch.message.max.bytes", "262144")
            .set("fetch.wait.max.ms", "100")
            .set("check.crcs", "true");
        config
    }
}

/// Returns the name of the running program, which identifies its clients in the brokers' logs and quotas.
fn program() -> String {
    let path = std::env::current_exe().unwrap_or_default();
    path.file_name().map_or_else(|| "orderflow".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// Waits until all produced records are delivered, and serves delivery reports. Returns false if a record is still in
/// flight at the deadline.
///
/// It avoids two problems of rdkafka. `flush`, and therefore `commit_transaction`, waits in polls of 100 ms while a
/// record is in flight. `poll` spins during the last millisecond of its timeout, since librdkafka counts whole
/// milliseconds; polls of 1 ms took a third of the producer's CPU. So this function polls without a timeout and sleeps
/// in between.
pub fn drain<C: ProducerContext>(producer: &BaseProducer<C>, deadline: Instant) -> bool {
    /// Pause between two polls of a producer.
    const PAUSE: Duration = Duration::from_micros(200);
    loop {
        let before = producer.in_flight_count();
        if before == 0 {
            return true;
        }
        producer.poll(Duration::ZERO);
        if producer.in_flight_count() == before {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(PAUSE);
        }
    }
}

/// Returns the timeout for a consumer's `poll`: the remaining time, rounded up to whole milliseconds. rdkafka spins
/// through a fraction of a millisecond.
pub fn poll_timeout(left: Duration) -> Duration {
    Duration::from_millis(left.as_micros().div_ceil(1000) as u64)
}

/// The possible reaction to an error of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionError {
    /// Call the same function again.
    Retriable,
    /// Abort the transaction, then begin another.
    Abortable,
    /// Replace the producer.
    Fatal,
}

impl TransactionError {
    pub fn from_kafka(error: &KafkaError) -> Self {
        match error {
            KafkaError::Transaction(error) if error.is_fatal() => Self::Fatal,
            KafkaError::Transaction(error) if error.txn_requires_abort() => Self::Abortable,
            KafkaError::Transaction(error) if error.is_retriable() => Self::Retriable,
            // rdkafka flushes first, and did not reach the commit.
            KafkaError::Flush(RDKafkaErrorCode::OperationTimedOut) => Self::Retriable,
            _ => Self::Fatal,
        }
    }
}

/// A client's context that logs librdkafka's lines and errors at the level debug, and records the last error. The code
/// that uses the client reports that error.
#[derive(Debug, Default)]
pub struct LogContext(LastError);

impl ClientContext for LogContext {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(facility, message, "librdkafka");
        self.0.record_line(message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka");
        self.0.record(&error, reason);
    }
}

impl ConsumerContext for LogContext {}

impl HasLastError for LogContext {
    fn last_error(&self) -> &LastError {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use rdkafka::consumer::BaseConsumer;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        kafka: Settings,
    }

    fn settings(pem: &str) -> Settings {
        let arguments = ["test", "--kafka-tls", "--kafka-ca-file", "/nowhere/ca.crt"];
        Settings { kafka_ca_pem: Some(pem.to_owned()), ..Command::parse_from(arguments).kafka }
    }

    #[test]
    fn an_authority_given_as_text_replaces_the_file() {
        let config = settings("text").client();
        assert_eq!((config.get("ssl.ca.pem"), config.get("ssl.ca.location")), (Some("text"), None));
        let from_file = Settings { kafka_ca_pem: None, ..settings("") }.client();
        assert_eq!((from_file.get("ssl.ca.pem"), from_file.get("ssl.ca.location")), (None, Some("/nowhere/ca.crt")));
    }

    #[test]
    fn librdkafka_reads_the_authority_when_a_client_is_created() {
        let create = |pem: &str| {
            settings(pem).client().create_with_context::<_, BaseConsumer<LogContext>>(LogContext::default()).map(drop)
        };
        create(CA).unwrap();
        let error = create("-----BEGIN CERTIFICATE-----\nsecret\n-----END CERTIFICATE-----\n").unwrap_err();
        assert!(!format!("{error} {error:?}").contains("secret"), "{error:?}");
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
}
