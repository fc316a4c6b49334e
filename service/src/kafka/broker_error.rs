//! Why Kafka's brokers cannot be used. Calls of librdkafka only say that nobody answered; what is wrong (the log-in, the
//! certificate) it tells in events and lines, to whoever polls the client. Here they become a few sentences for people, which hold
//! nothing that changes from one try to the next.

use std::{
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

/// librdkafka tells of the same trouble of a broker once in 30 s, and meanwhile of what follows from it.
const REMEMBERED: Duration = Duration::from_secs(60);

/// Long enough to be handed the events that are there.
const SERVE: Duration = Duration::from_millis(20);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BrokerError {
    /// The brokers refuse name, password or mechanism. With their words.
    LogIn(String),
    /// This side refuses the brokers' certificate. librdkafka does not say for which of the reasons.
    Certificate,
    /// They hang up on a client that speaks no TLS.
    PerhapsTls,
    /// They hang up on a client that speaks TLS.
    PerhapsNoTls,
    /// They hang up on a client that does not log in.
    PerhapsLogIn,
    Unresolved,
    /// Nothing that is known here.
    Other(String),
}

impl BrokerError {
    /// Somebody has to mend it. The others may be the signs of a broker that is just going or coming.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::LogIn(_) | Self::Certificate)
    }

    fn from_event(error: &KafkaError, text: &str) -> Option<Self> {
        Some(match error.rdkafka_error_code()? {
            // It follows from what was told before.
            Code::AllBrokersDown => return None,
            // "Local:" would be an error of the connection during the log-in.
            Code::Authentication if !text.contains("Local: ") && !text.contains("Disconnected") => {
                Self::LogIn(words(text).to_owned())
            }
            Code::SSL if text.contains("certificate verify failed") => Self::Certificate,
            Code::Resolve => Self::Unresolved,
            _ => Self::from_disconnect(text).unwrap_or_else(|| Self::Other(without_place(text).to_owned())),
        })
    }

    /// What a broker may mean by hanging up.
    fn from_disconnect(text: &str) -> Option<Self> {
        /// A connection that stood for longer was of use.
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
            Self::LogIn(reason) => write!(f, "the log-in is refused: {reason}"),
            Self::Certificate => f.write_str(
                "the brokers' certificate is not accepted: it is signed by none of the trusted authorities, does not name \
                 the host, or has expired",
            ),
            Self::PerhapsTls => f.write_str("they hang up at once: do they want TLS?"),
            Self::PerhapsNoTls => f.write_str("they hang up during the TLS handshake: do they speak TLS at all?"),
            Self::PerhapsLogIn => f.write_str("they hang up at once: do they want a log-in?"),
            Self::Unresolved => f.write_str("the name cannot be resolved"),
            Self::Other(text) => f.write_str(text),
        }
    }
}

/// `sasl_ssl://10.0.0.1:9093/bootstrap: Disconnected (after 12ms in state UP)` without the broker, of which there may be
/// many, and without the time.
fn without_place(text: &str) -> &str {
    let text = text.split_once(" (after ").map_or(text, |(text, _)| text);
    match text.split_once(": ") {
        Some((place, rest)) if place.contains("://") => rest,
        _ => text,
    }
}

/// What brokers say of a log-in, without what is new with each: the two signatures that should be one.
fn words(text: &str) -> &str {
    let text = without_place(text);
    text.split_once(" (server's ").map_or(text, |(text, _)| text)
}

/// What a client was told last.
#[derive(Debug, Default)]
pub struct LastError(Mutex<Option<(Instant, BrokerError)>>);

/// A client's context that keeps what it is told.
pub trait HasLastError {
    fn last_error(&self) -> &LastError;
}

impl LastError {
    /// To be called by [`rdkafka::ClientContext::error`].
    pub fn record(&self, error: &KafkaError, text: &str) {
        if let Some(error) = BrokerError::from_event(error, text) {
            self.set(error);
        }
    }

    /// To be called by [`rdkafka::ClientContext::log`]: that a broker has hung up is no error to librdkafka, only a line.
    pub fn record_line(&self, line: &str) {
        if let Some(error) = BrokerError::from_disconnect(line) {
            self.set(error);
        }
    }

    fn set(&self, error: BrokerError) {
        let mut last = self.lock();
        // A host may have two addresses of which only one is listened on.
        let keep = last
            .as_ref()
            .is_some_and(|(when, before)| before.is_refusal() && !error.is_refusal() && when.elapsed() < REMEMBERED);
        if !keep {
            *last = Some((Instant::now(), error));
        }
    }

    pub fn get(&self) -> Option<BrokerError> {
        self.lock().as_ref().filter(|(when, _)| when.elapsed() < REMEMBERED).map(|(_, error)| error.clone())
    }

    /// The brokers answered.
    pub fn clear(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> MutexGuard<'_, Option<(Instant, BrokerError)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A question to Kafka that was not answered, and why if that is known.
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

/// The trouble, if that is what is behind the error; else the error.
pub fn explain(error: &KafkaError, trouble: Option<&BrokerError>) -> String {
    let no_answer = matches!(
        error.rdkafka_error_code(),
        Some(Code::AllBrokersDown | Code::BrokerTransportFailure | Code::OperationTimedOut | Code::Resolve)
    );
    match trouble.filter(|_| no_answer) {
        Some(trouble) => format!("Kafka cannot be used: {trouble}"),
        None => error.to_string(),
    }
}

/// The metadata of `topic`. For a consumer that reads nothing yet: it is polled, since what it is told would else be kept for
/// ever, and told when it is long over.
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

/// Why the brokers do not answer, found out by another client: for one that cannot be polled. Blocks for `timeout` at the most.
pub fn diagnose(config: &ClientConfig, timeout: Duration) -> Option<BrokerError> {
    let deadline = Instant::now() + timeout;
    let mut config = config.clone();
    config.set("group.id", "orderflow.probe");
    let consumer: BaseConsumer<LogContext> = config.create_with_context(LogContext::default()).ok()?;
    // A broker that hangs up ends the question at once, and may do so before anything was told.
    loop {
        consumer.fetch_metadata(None, deadline.saturating_duration_since(Instant::now())).err()?;
        serve(&consumer);
        let trouble = consumer.context().last_error().get();
        if trouble.is_some() || Instant::now() >= deadline {
            return trouble;
        }
    }
}

/// Polls once at least, however late it is.
fn serve<C: ConsumerContext>(consumer: &BaseConsumer<C>) {
    let deadline = Instant::now() + SERVE;
    loop {
        // An event that is an error ends the call, whatever time is left.
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

    fn trouble(code: Code, text: &str) -> Option<BrokerError> {
        BrokerError::from_event(&KafkaError::Global(code), text)
    }

    #[test]
    fn a_refusal_is_told_from_a_broker_that_goes_away() {
        let text = "sasl_ssl://10.0.0.1:9093/bootstrap: SASL authentication error: Authentication failed (after 12ms in \
                    state AUTH_REQ, 3 identical error(s) suppressed)";
        let refused = trouble(Code::Authentication, text).unwrap();
        assert_eq!(refused, BrokerError::LogIn("SASL authentication error: Authentication failed".to_owned()));
        let other = "sasl_ssl://10.0.0.1:9093/1: SASL SCRAM server authentication failed: ServerSignature mismatch (server's \
                     aGVsbG8= != ours d29ybGQ=)";
        let words = "SASL SCRAM server authentication failed: ServerSignature mismatch";
        assert_eq!(trouble(Code::Authentication, other), Some(BrokerError::LogIn(words.to_owned())));
        let gone = "sasl_ssl://10.0.0.1:9093/1: SASL SCRAM-SHA-512 mechanism handshake failed: Local: Broker transport \
                    failure: broker's supported mechanisms: ";
        assert!(!trouble(Code::Authentication, gone).unwrap().is_refusal());
        let verify = format!("{HANDSHAKE}error:0A000086:SSL routines::certificate verify failed: broker certificate …");
        assert_eq!(trouble(Code::SSL, &verify), Some(BrokerError::Certificate));
        let hung_up = format!("{HANDSHAKE}Disconnected: connecting to … (after 3ms in state SSL_HANDSHAKE)");
        assert_eq!(trouble(Code::BrokerTransportFailure, &hung_up), Some(BrokerError::PerhapsNoTls));
        assert_eq!(trouble(Code::AllBrokersDown, "1/1 brokers are down"), None);
    }

    #[test]
    fn a_hang_up_is_understood_by_when_it_comes() {
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
    fn what_follows_from_a_refusal_does_not_hide_it() {
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
