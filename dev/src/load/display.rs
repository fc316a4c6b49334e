//! Shows a load: one line per second, replaced in place on a terminal, and the summary.

use std::{fmt::Write, io::IsTerminal, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};
use orderflow_testbed::load::Tally;

use crate::table::aligned;

/// The quantiles of the accepted orders' latencies; shown only if any order was accepted.
const LATENCIES: &[(&str, f64)] = &[("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0)];

#[derive(Debug)]
pub(super) struct Display {
    line: Option<ProgressBar>,
}

impl Display {
    pub(super) fn new() -> Self {
        let line = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_spinner());
            ProgressBar::new_spinner().with_style(style)
        });
        Self { line }
    }

    /// Shows what was counted in the last `span`.
    pub(super) fn second(&mut self, elapsed: Duration, tally: &Tally, span: Duration) {
        let mut text = format!(
            "{:4.0} s  {:8.0} orders/s  p50 {}  p99 {}",
            elapsed.as_secs_f64(),
            tally.succeeded() as f64 / span.as_secs_f64(),
            milliseconds(tally.latency(0.5)),
            milliseconds(tally.latency(0.99)),
        );
        for (outcome, count) in tally.others() {
            let _ = write!(text, "  {}: {count}", outcome.name());
        }
        match &self.line {
            Some(line) => line.set_message(text),
            None => eprintln!("{text}"),
        }
    }

    /// Shows the summary. `unsent` orders were due and found no free connection before the time was over.
    pub(super) fn summary(&mut self, total: &Tally, elapsed: Duration, unsent: u64) {
        if let Some(line) = self.line.take() {
            line.finish_and_clear();
        }
        let row = |label: &str, value: String| [label.to_owned(), value];
        let mut rows = vec![row("sent", total.sent().to_string()), row("201", total.succeeded().to_string())];
        rows.extend(total.others().map(|(outcome, count)| row(&outcome.name(), count.to_string())));
        if unsent > 0 {
            rows.push(row("due, not sent", format!("{unsent} (every connection was waiting for an answer)")));
        }
        rows.push(row(
            "rate",
            format!(
                "{:.0} orders/s accepted over {:.1} s",
                total.succeeded() as f64 / elapsed.as_secs_f64(),
                elapsed.as_secs_f64()
            ),
        ));
        let shown = if total.succeeded() > 0 { LATENCIES } else { &[] };
        for &(label, share) in shown {
            rows.push(row(label, milliseconds(total.latency(share))));
        }
        println!("{}", aligned(&rows));
    }
}

fn milliseconds(latency: Duration) -> String {
    format!("{:.2} ms", latency.as_secs_f64() * 1000.0)
}
