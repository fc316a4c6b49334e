//! Starts the logs: text for people or JSON for collectors, on stdout, or on stderr for a command with a result on
//! stdout. Writing a log line never blocks an order.

mod rate_limit;

use std::{
    backtrace::Backtrace,
    fmt,
    io::{IsTerminal, Write, stderr, stdout},
    panic::{self, PanicHookInfo},
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use clap::{Args, ValueEnum};
use tracing::{Event, Subscriber};
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder};
use tracing_subscriber::{
    EnvFilter,
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::{JsonFields, Writer},
    },
    layer::SubscriberExt,
    registry::LookupSpan,
    util::SubscriberInitExt,
};

use rate_limit::RateLimit;

use crate::supervisor::message_of;

pub use tracing_appender::non_blocking::WorkerGuard;

/// The most lines that wait for a slow stdout. Their buffer of 32 bytes each is allocated at the start; the library's
/// default is 128,000.
const BUFFERED_LINES: usize = 8192;

#[derive(Args, Clone, Debug)]
#[group(skip)]
#[command(next_help_heading = "Logs")]
pub struct Settings {
    /// Format of log lines
    #[arg(long, env = "LOG_FORMAT", value_enum, default_value = "text")]
    pub log_format: Format,

    /// Filter of log lines, such as `info,orderflow_producer=debug`
    #[arg(long, env = "LOG", default_value = "info")]
    pub log: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Format {
    Text,
    Json,
}

/// Starts logging for the whole process. A separate thread writes the lines from a bounded buffer. Lines are dropped if
/// stdout does not keep up, because a stuck terminal must not stop orders. Keep the guard until the end of `main`;
/// dropping it flushes the buffer.
pub fn start(settings: &Settings) -> anyhow::Result<WorkerGuard> {
    start_on(stdout(), settings)
}

/// Starts logging to stderr, for a command with its result on stdout.
pub fn start_on_stderr(settings: &Settings) -> anyhow::Result<WorkerGuard> {
    start_on(stderr(), settings)
}

fn start_on(output: impl Write + IsTerminal + Send + 'static, settings: &Settings) -> anyhow::Result<WorkerGuard> {
    let filter = EnvFilter::try_new(&settings.log)
        .map_err(|error| anyhow::anyhow!("LOG: {:?} is not a log filter: {error}", settings.log))?;
    let is_terminal = output.is_terminal();
    let (writer, guard) = buffered(output);
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    let limit = RateLimit::default();
    match settings.log_format {
        Format::Text => lines.with_ansi(is_terminal).with_target(false).finish().with(limit).init(),
        Format::Json => {
            let format = tracing_subscriber::fmt::format().json();
            let format = format.flatten_event(true).with_current_span(true).with_span_list(false);
            let lines = lines.fmt_fields(JsonFields::new()).event_format(WithTraceIds(format));
            lines.finish().with(limit).init();
        }
    }
    panic::set_hook(Box::new(log_panic));
    Ok(guard)
}

/// Formats a line as JSON, which begins with the ids of the current trace and span, if there are any.
struct WithTraceIds<F>(F);

impl<S, N, F> FormatEvent<S, N> for WithTraceIds<F>
where
    S: Subscriber + for<'lookup> LookupSpan<'lookup>,
    N: for<'writer> FormatFields<'writer> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        #[cfg(feature = "traces")]
        if let Some((trace_id, span_id)) = crate::traces::current_ids() {
            let mut line = String::new();
            self.0.format_event(context, Writer::new(&mut line), event)?;
            let rest = line.strip_prefix('{').ok_or(fmt::Error)?;
            return write!(writer, "{{\"trace_id\":\"{trace_id}\",\"span_id\":\"{span_id}\",{rest}");
        }
        self.0.format_event(context, writer.by_ref(), event)
    }
}

fn buffered(output: impl Write + Send + 'static) -> (NonBlocking, WorkerGuard) {
    let (writer, guard) = NonBlockingBuilder::default().buffered_lines_limit(BUFFERED_LINES).finish(output);
    let _ = UNWRITTEN.set(writer.error_counter());
    (writer, guard)
}

static UNWRITTEN: OnceLock<ErrorCounter> = OnceLock::new();

/// Returns the number of log lines that were dropped since the start of the process, by reason.
pub fn dropped_lines() -> [(&'static str, u64); 2] {
    let unwritten = UNWRITTEN.get().map_or(0, ErrorCounter::dropped_lines);
    [("slow_output", unwritten as u64), ("rate_limit", rate_limit::dropped())]
}

/// Returns the number of panics since the start of the process.
pub fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

static PANICS: AtomicU64 = AtomicU64::new(0);

/// Logs each panic as one line with its span. The default hook writes several lines to stderr, which no collector
/// reads.
fn log_panic(panic: &PanicHookInfo<'_>) {
    PANICS.fetch_add(1, Ordering::Relaxed);
    let message = message_of(panic.payload());
    let location = panic.location().map(ToString::to_string).unwrap_or_default();
    let thread = std::thread::current();
    let backtrace = Backtrace::force_capture();
    tracing::error!(panic = message, location, thread = thread.name(), %backtrace, "panicked");
}

#[cfg(test)]
mod tests {
    use std::{io, sync::mpsc};

    use super::*;

    /// An output that blocks until it is released.
    struct Stuck(mpsc::Receiver<()>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_a_blocked_output_drops_are_counted() {
        let (release, stuck) = mpsc::channel();
        let (mut writer, guard) = buffered(Stuck(stuck));
        // The writing thread may or may not have taken one line already.
        for _ in 0..BUFFERED_LINES + 11 {
            writer.write_all(b"line\n").unwrap();
        }
        let dropped = dropped_lines().iter().find(|(reason, _)| *reason == "slow_output").unwrap().1;
        assert!((10..=11).contains(&dropped), "{dropped}");
        drop(release);
        drop(guard);
    }
}
