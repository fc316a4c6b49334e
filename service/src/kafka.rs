//! The one place where Kafka's clients get their options. Every client here is bounded in memory, makes no topic by
//! itself, and hashes keys as Kafka's Java clients do.

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

pub use broker_error::{BrokerError, HasLastError, LastError, Unanswered, diagnose, explain, fetch_metadata};
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

    /// Speak TLS to the brokers
    #[arg(long, env = "KAFKA_TLS", default_value_t = false)]
    pub kafka_tls: bool,

    /// PEM file of the authorities that may sign the brokers' certificates; absent: the system's
    #[arg(long, env = "KAFKA_CA_FILE", requires = "kafka_tls")]
    pub kafka_ca_file: Option<String>,

    /// The same as PEM text, instead of the file, for a process that was given the text: it has no flag
    #[arg(skip)]
    pub kafka_ca_pem: Option<String>,

    /// How to log in; absent: not at all. The password is KAFKA_SASL_PASSWORD, or in the file that KAFKA_SASL_PASSWORD_FILE
    /// names: it has no flag
    #[arg(long, env = "KAFKA_SASL_MECHANISM", value_enum, requires = "kafka_sasl_username")]
    pub kafka_sasl_mechanism: Option<SaslMechanism>,

    /// Name to log in with
    #[arg(long, env = "KAFKA_SASL_USERNAME")]
    pub kafka_sasl_username: Option<String>,

    /// Password to log in with, which [`read_secrets`](Secrets::read_secrets) reads
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
    /// What all clients share.
    pub fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.kafka_brokers)
            .set("client.id", program())
            .set("allow.auto.create.topics", "false")
            .set("reconnect.backoff.max.ms", "1000")
            // A broker that is frozen rather than gone is noticed by this alone; the default is 60 s.
            .set("socket.timeout.ms", "10000")
            .set("socket.connection.setup.timeout.ms", "3000")
            .set("socket.keepalive.enable", "true")
            // The lines are heard by the contexts alone: a broker that wants TLS, or a log-in, only hangs up.
            .set("log.connection.close", "true")
            .set_log_level(RDKafkaLogLevel::Info);
        let protocol = match (self.kafka_tls, self.kafka_sasl_mechanism) {
            (false, None) => "PLAINTEXT",
            (true, None) => "SSL",
            (false, Some(_)) => "SASL_PLAINTEXT",
            (true, Some(_)) => "SASL_SSL",
        };
        config.set("security.protocol", protocol);
        // One of them: librdkafka would trust both.
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

    /// A producer of Kafka transactions. `transactional.id` names the one role that at most one process may hold: whoever
    /// calls `init_transactions` with it last fences all before.
    pub fn transactional_producer(&self, transactional_id: &str) -> ClientConfig {
        let mut config = self.client();
        config
            .set("transactional.id", transactional_id)
            // The longest that a killed process can hold up readers of committed records.
            .set("transaction.timeout.ms", "10000")
            .set("message.timeout.ms", "10000")
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("partitioner", "murmur2_random")
            .set("compression.type", "lz4")
            // Flushing is what sends a transaction; lingering would only delay it.
            .set("linger.ms", "1")
            .set("batch.num.messages", "10000")
            .set("queue.buffering.max.kbytes", "16384")
            .set("queue.buffering.max.messages", "100000");
        config
    }

    /// A reader of what was committed. A caller that has no group sets one nevertheless, as librdkafka wants a name.
    pub fn consumer(&self, group: &str) -> ClientConfig {
        let mut config = self.client();
        config
            .set("group.id", group)
            .set("isolation.level", "read_committed")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            // Where to begin is decided and written down by us; a silent jump is never right.
            .set("auto.offset.reset", "error")
            // Beside what waits there is what was fetched last, as it was compressed; in memory both are several times their bytes. A record
            // that is larger comes all the same.
            .set("queued.max.messages.kbytes", "1024")
            // When that is full; by default it is not looked at again for a second.
            .set("fetch.queue.backoff.ms", "5")
            .set("fetch.max.bytes", "1048576")
            .set("fetch.message.max.bytes", "262144")
            .set("fetch.wait.max.ms", "100")
            .set("check.crcs", "true");
        config
    }
}

/// Name of the running program: what the brokers' logs and quotas know a client by.
fn program() -> String {
    let path = std::env::current_exe().unwrap_or_default();
    path.file_name().map_or_else(|| "orderflow".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// Waits for all that was produced, serving delivery reports. Returns false if something was still in flight at the
/// deadline.
///
/// Two traps of rdkafka lie here. Its `flush` (and so its `commit_transaction`) sits in polls of 100 ms while anything is in
/// flight. And its `poll` spins: it asks again and again during the last millisecond of its timeout, since librdkafka counts
/// in whole ones; with polls of 1 ms that took a third of the producer's CPU. So: poll without waiting, and wait in between.
pub fn drain<C: ProducerContext>(producer: &BaseProducer<C>, deadline: Instant) -> bool {
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

/// What a consumer's `poll` should be given of the time that is left: whole milliseconds, rounded up. rdkafka waits in those, and
/// asks again and again without a pause through what is left of the last one.
pub fn poll_timeout(left: Duration) -> Duration {
    Duration::from_millis(left.as_micros().div_ceil(1000) as u64)
}

/// What may be done about an error of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionError {
    /// Call the same function again.
    Retriable,
    /// Abort the transaction, then begin another.
    Abortable,
    /// Nothing more can be done with this producer.
    Fatal,
}

impl TransactionError {
    pub fn from_kafka(error: &KafkaError) -> Self {
        match error {
            KafkaError::Transaction(error) if error.is_fatal() => Self::Fatal,
            KafkaError::Transaction(error) if error.txn_requires_abort() => Self::Abortable,
            KafkaError::Transaction(error) if error.is_retriable() => Self::Retriable,
            // rdkafka flushes before it asks for the commit, and did not come that far.
            KafkaError::Flush(RDKafkaErrorCode::OperationTimedOut) => Self::Retriable,
            _ => Self::Fatal,
        }
    }
}

/// A context for clients whose last_error are reported by their user: librdkafka's own lines go to debug, and what it told
/// last is kept.
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
    fn an_authority_given_as_text_is_the_only_one() {
        let config = settings("text").client();
        assert_eq!((config.get("ssl.ca.pem"), config.get("ssl.ca.location")), (Some("text"), None));
        let from_file = Settings { kafka_ca_pem: None, ..settings("") }.client();
        assert_eq!((from_file.get("ssl.ca.pem"), from_file.get("ssl.ca.location")), (None, Some("/nowhere/ca.crt")));
    }

    #[test]
    fn librdkafka_reads_the_authority_when_a_client_is_made() {
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
