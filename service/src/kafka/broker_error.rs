//! Explains why Kafka's brokers cannot be used. Calls of librdkafka only fail with a timeout. The cause, such as the
//! login or the certificate, is in events and log lines, which the client delivers when it is polled. This module
//! converts them to a few texts for people, without any part that changes from one try to the next.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig,
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::{KafkaError, RDKafkaErrorCode as Code},
    metadata::Metadata,
};

use super::LogContext;

/// The longest age of an error that counts. librdkafka reports the same error of a broker once in 30 s, and its
/// consequences in between.
const REMEMBERED: Duration = Duration::from_secs(60);

/// The time to poll a client for its pending events.
const SERVE: Duration = Duration::from_millis(20);

/// A cause for which the brokers cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BrokerError {
    /// The brokers refuse the name, password or mechanism. Has their message.
    LogIn(String),
    /// The client refuses the brokers' certificate. librdkafka does not report the exact reason.
    Certificate,
    /// The brokers close the connection of a client without TLS.
    PerhapsTls,
    /// The brokers close the connection of a client with TLS.
    PerhapsNoTls,
    /// The brokers close the connection of a client that does not log in.
    PerhapsLogIn,
    Unresolved,
    /// Any other error of librdkafka.
    Other(String),
}

impl BrokerError {
    /// Returns true if a person has to fix the cause. Any other error may come from a broker that stops or starts.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::LogIn(_) | Self::Certificate)
    }

    fn from_event(error: &KafkaError, text: &str) -> Option<Self> {
        Some(match error.rdkafka_error_code()? {
            // A consequence of an earlier error.
            Code::AllBrokersDown => return None,
            // "Local:" means that the connection failed during the login.
            Code::Authentication if !text.contains("Local: ") && !text.contains("Disconnected") => {
                Self::LogIn(login_message(text).to_owned())
            }
            Code::SSL if text.contains("certificate verify failed") => Self::Certificate,
            Code::Resolve => Self::Unresolved,
            _ => Self::from_disconnect(text).unwrap_or_else(|| Self::Other(without_place(text).to_owned())),
        })
    }

    /// Guesses why a broker closed the connection, from the time and the state in which it did so.
    fn from_disconnect(text: &str) -> Option<Self> {
        /// The longest life of a connection that the broker refused.
        const AT_ONCE: Duration = Duration::from_secs(2);
        let (before, after) = text.split_once(" (after ")?;
        let (time, state) = after.split_once("ms in state ")?;
        let at_once = time.parse().is_ok_and(|time| Duration::from_millis(time) < AT_ONCE);
        if !at_once || !before.contains("Disconnected") {
            return None;
        }
        let state = state.trim_end_matches(')').split(',').next()?;
        match state {
            "SSL_HANDSHAKE" => Some(Self::PerhapsNoTls),
            "APIVERSION_QUERY" if !before.contains("ssl://") => Some(Self::PerhapsTls),
            "UP" if !before.contains("sasl_") => Some(Self::PerhapsLogIn),
            _ => None,
        }
    }
}

impl fmt::Display for BrokerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LogIn(reason) => write!(f, "the brokers refuse the login: {reason}"),
            Self::Certificate => f.write_str(
                "the brokers' certificate is not accepted: it is signed by none of the trusted authorities, does not name \
                 the host, or has expired",
            ),
            Self::PerhapsTls => f.write_str("the brokers close the connection at once: they may require TLS"),
            Self::PerhapsNoTls => {
                f.write_str("the brokers close the connection during the TLS handshake: they may not speak TLS")
            }
            Self::PerhapsLogIn => f.write_str("the brokers close the connection at once: they may require a login"),
            Self::Unresolved => f.write_str("the host name cannot be resolved"),
            Self::Other(text) => f.write_str(text),
        }
    }
}

/// Removes the broker and the time from a text such as `sasl_ssl://10.0.0.1:9093/bootstrap: Disconnected (after 12ms in
/// state UP)`.
fn without_place(text: &str) -> &str {
    let text = text.split_once(" (after ").map_or(text, |(text, _)| text);
    match text.split_once(": ") {
        Some((place, rest)) if place.contains("://") => rest,
        _ => text,
    }
}

/// Returns the brokers' message about a login, without the signatures, which differ each time.
fn login_message(text: &str) -> &str {
    let text = without_place(text);
    text.split_once(" (server's ").map_or(text, |(text, _)| text)
}

/// The last error that librdkafka reported to a client.
#[derive(Debug, Default)]
pub struct LastError(Mutex<Option<(Instant, BrokerError)>>);

/// Errors by librdkafka's name of their code, of all clients since the start of the process. The names bound it.
static COUNTS: Mutex<BTreeMap<String, u64>> = Mutex::new(BTreeMap::new());

/// The codes of an unusable broker. Their series exist from the start, so that `increase` sees the first error of each.
const USUAL: [Code; 5] =
    [Code::AllBrokersDown, Code::Authentication, Code::BrokerTransportFailure, Code::Resolve, Code::SSL];

fn count(error: &KafkaError) {
    // The end of a partition is no error.
    if error.rdkafka_error_code() == Some(Code::PartitionEOF) {
        return;
    }
    let code = error.rdkafka_error_code().map_or_else(|| "other".to_owned(), |code| format!("{code:?}"));
    *COUNTS.lock().unwrap_or_else(PoisonError::into_inner).entry(code).or_default() += 1;
}

/// Returns the number of errors that librdkafka has reported, by its name of their code.
pub fn error_counts() -> BTreeMap<String, u64> {
    let mut counts: BTreeMap<String, u64> = USUAL.iter().map(|code| (format!("{code:?}"), 0)).collect();
    counts.extend(COUNTS.lock().unwrap_or_else(PoisonError::into_inner).clone());
    counts
}

/// A client's context with a [`LastError`].
pub trait HasLastError {
    fn last_error(&self) -> &LastError;
}

impl LastError {
    /// Records an error. The client's [`rdkafka::ClientContext::error`] has to call this.
    pub fn record(&self, error: &KafkaError, text: &str) {
        count(error);
        if let Some(error) = BrokerError::from_event(error, text) {
            self.set(error);
        }
    }

    /// Records a log line. The client's [`rdkafka::ClientContext::log`] has to call this, because librdkafka logs a
    /// closed connection and reports no error.
    pub fn record_line(&self, line: &str) {
        if let Some(error) = BrokerError::from_disconnect(line) {
            self.set(error);
        }
    }

    fn set(&self, error: BrokerError) {
        let mut last = self.lock();
        // A refusal counts more than a failed connection: a host may have two addresses, one of which is not listened
        // on.
        let is_refused = last
            .as_ref()
            .is_some_and(|(when, before)| before.is_refusal() && !error.is_refusal() && when.elapsed() < REMEMBERED);
        if !is_refused {
            *last = Some((Instant::now(), error));
        }
    }

    pub fn get(&self) -> Option<BrokerError> {
        self.lock().as_ref().filter(|(when, _)| when.elapsed() < REMEMBERED).map(|(_, error)| error.clone())
    }

    /// Forgets the error, after an answer of the brokers.
    pub fn clear(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> MutexGuard<'_, Option<(Instant, BrokerError)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A failed request to Kafka, with the cause if that is known.
#[derive(Clone, Debug)]
pub struct Unanswered {
    pub error: KafkaError,
    pub broker_error: Option<BrokerError>,
}

impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&explain(&self.error, self.broker_error.as_ref()))
    }
}

impl std::error::Error for Unanswered {}

/// Explains a failed call: by `cause` if Kafka did not answer, else by the error itself.
pub fn explain(error: &KafkaError, cause: Option<&BrokerError>) -> String {
    let no_answer = matches!(
        error.rdkafka_error_code(),
        Some(Code::AllBrokersDown | Code::BrokerTransportFailure | Code::OperationTimedOut | Code::Resolve)
    );
    match cause.filter(|_| no_answer) {
        Some(cause) => format!("Kafka cannot be used: {cause}"),
        None => error.to_string(),
    }
}

/// Fetches the metadata of `topic`. The consumer must read nothing yet, because this polls it. Otherwise its events
/// would stay in the queue and be delivered much later.
pub fn fetch_metadata<C: ConsumerContext + HasLastError>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    timeout: Duration,
) -> Result<Metadata, Unanswered> {
    let last_error = consumer.context().last_error();
    let answer = consumer.fetch_metadata(Some(topic), timeout);
    serve(consumer);
    answer.inspect(|_| last_error.clear()).map_err(|error| Unanswered { error, broker_error: last_error.get() })
}

/// Finds the reason why the brokers do not answer with a client of its own, for clients that cannot be polled. Blocks
/// for at most `timeout`.
pub fn diagnose(config: &ClientConfig, timeout: Duration) -> Option<BrokerError> {
    let deadline = Instant::now() + timeout;
    let mut config = config.clone();
    config.set("group.id", "orderflow.probe");
    let consumer: BaseConsumer<LogContext> = config.create_with_context(LogContext::default()).ok()?;
    // A broker that closes the connection ends the request at once, maybe before the cause was reported.
    loop {
        consumer.fetch_metadata(None, deadline.saturating_duration_since(Instant::now())).err()?;
        serve(&consumer);
        let cause = consumer.context().last_error().get();
        if cause.is_some() || Instant::now() >= deadline {
            return cause;
        }
    }
}

/// Polls the client's pending events.
fn serve<C: ConsumerContext>(consumer: &BaseConsumer<C>) {
    let deadline = Instant::now() + SERVE;
    loop {
        // An event that is an error ends the call early.
        consumer.poll(SERVE);
        if Instant::now() >= deadline {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HANDSHAKE: &str = "sasl_ssl://localhost:9093/bootstrap: SSL handshake failed: ";

    fn read(code: Code, text: &str) -> Option<BrokerError> {
        BrokerError::from_event(&KafkaError::Global(code), text)
    }

    #[test]
    fn a_refusal_differs_from_a_broker_that_goes_away() {
        let text = "sasl_ssl://10.0.0.1:9093/bootstrap: SASL authentication error: Authentication failed (after 12ms in \
                    state AUTH_REQ, 3 identical error(s) suppressed)";
        let refused = read(Code::Authentication, text).unwrap();
        assert_eq!(refused, BrokerError::LogIn("SASL authentication error: Authentication failed".to_owned()));
        let other = "sasl_ssl://10.0.0.1:9093/1: SASL SCRAM server authentication failed: ServerSignature mismatch (server's \
                     aGVsbG8= != ours d29ybGQ=)";
        let words = "SASL SCRAM server authentication failed: ServerSignature mismatch";
        assert_eq!(read(Code::Authentication, other), Some(BrokerError::LogIn(words.to_owned())));
        let gone = "sasl_ssl://10.0.0.1:9093/1: SASL SCRAM-SHA-512 mechanism handshake failed: Local: Broker transport \
                    failure: broker's supported mechanisms: ";
        assert!(!read(Code::Authentication, gone).unwrap().is_refusal());
        let verify = format!("{HANDSHAKE}error:0A000086:SSL routines::certificate verify failed: broker certificate …");
        assert_eq!(read(Code::SSL, &verify), Some(BrokerError::Certificate));
        let hung_up = format!("{HANDSHAKE}Disconnected: connecting to … (after 3ms in state SSL_HANDSHAKE)");
        assert_eq!(read(Code::BrokerTransportFailure, &hung_up), Some(BrokerError::PerhapsNoTls));
        assert_eq!(read(Code::AllBrokersDown, "1/1 brokers are down"), None);
    }

    #[test]
    fn the_cause_of_a_closed_connection_is_guessed_from_its_time_and_state() {
        let guess = |place: &str, state: &str| {
            let last_error = LastError::default();
            last_error.record_line(&format!("[thrd:{place}]: {place}: Disconnected: closed by peer (after {state})"));
            last_error.get()
        };
        assert_eq!(guess("b:9092/bootstrap", "34ms in state APIVERSION_QUERY"), Some(BrokerError::PerhapsTls));
        assert_eq!(
            guess("b:9092/1", "7ms in state UP, 1 identical error(s) suppressed"),
            Some(BrokerError::PerhapsLogIn)
        );
        assert_eq!(guess("ssl://b:9092/1", "7ms in state UP"), Some(BrokerError::PerhapsLogIn));
        assert_eq!(guess("b:9092/1", "7000ms in state UP"), None);
        assert_eq!(guess("sasl_ssl://b:9092/1", "7ms in state UP"), None);
        assert_eq!(guess("ssl://b:9092/1", "7ms in state APIVERSION_QUERY"), None);
    }

    #[test]
    fn errors_that_follow_a_refusal_do_not_hide_it() {
        let last_error = LastError::default();
        let refused = || last_error.record(&KafkaError::Global(Code::Authentication), "a://b: no");
        let closed =
            || last_error.record(&KafkaError::Global(Code::BrokerTransportFailure), "a://b: Connection refused");
        closed();
        assert_eq!(last_error.get(), Some(BrokerError::Other("Connection refused".to_owned())));
        refused();
        closed();
        assert_eq!(last_error.get(), Some(BrokerError::LogIn("no".to_owned())));
        last_error.clear();
        assert_eq!(last_error.get(), None);
    }
}
