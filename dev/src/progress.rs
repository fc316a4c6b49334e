//! Shows the start: a spinner for each part on a terminal, one line for each finished part elsewhere.

use std::{
    future::Future,
    io::IsTerminal,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use indicatif::{MultiProgress, ProgressBar, ProgressFinish, ProgressStyle};

#[derive(Debug)]
pub(super) struct Progress {
    spinners: Option<MultiProgress>,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self { spinners: std::io::stderr().is_terminal().then(MultiProgress::new) }
    }

    /// Runs one part and shows when it has finished.
    pub(super) async fn part<T>(&self, name: &str, part: impl Future<Output = Result<T>>) -> Result<T> {
        let started = Instant::now();
        let spinner = self.spinners.as_ref().map(|spinners| spinners.add(spinner(name)));
        let outcome = part.await.with_context(|| format!("start {name}"));
        let seconds = started.elapsed().as_secs_f64();
        let line = match &outcome {
            Ok(_) => format!("✓ {name} ({seconds:.1} s)"),
            Err(_) => format!("✗ {name}"),
        };
        match spinner {
            Some(spinner) => {
                spinner.set_style(
                    ProgressStyle::with_template("  {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner()),
                );
                spinner.finish_with_message(line);
            }
            None => eprintln!("  {line}"),
        }
        outcome
    }
}

fn spinner(name: &str) -> ProgressBar {
    let spinner = ProgressBar::new_spinner().with_message(name.to_owned()).with_finish(ProgressFinish::AndLeave);
    spinner.set_style(
        ProgressStyle::with_template("  {spinner} {msg} ({elapsed})")
            .unwrap_or_else(|_| ProgressStyle::default_spinner()),
    );
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}
