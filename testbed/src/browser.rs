//! A headless Chromium with an empty profile, and the chromedriver on loopback through which a test controls it.
//!
//! Promises that each browser is a new one, that it requests only the pages a test opens, and that neither it nor its
//! profile outlives the value. What a test does with it is up to the test's WebDriver client.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use crate::{
    folder, http, port,
    process::{Launch, Process},
    service::{Service, wait_until_answered},
    tools,
};

/// The longest a driver takes to listen; the browser itself starts with the session.
const START_DEADLINE: Duration = Duration::from_secs(30);

const FLAGS: [&str; 14] = [
    "--headless",
    // Chromium refuses to run as root with it, and a container may not allow it. The browser shows our own page only.
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    // A container's /dev/shm may be too small for a page.
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    // Timers of a background tab stay as fast as in front, or a test of two tabs would wait for minutes.
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--force-color-profile=srgb",
    "--lang=en-US",
    // The pipe breaks with the driver. A browser that is controlled over a port outlives a killed driver.
    "--remote-debugging-pipe",
];

/// A running chromedriver; its Chromium runs while a session is open.
#[derive(Debug)]
pub struct Browser {
    process: Process,
    port: u16,
    profile: PathBuf,
    chromium: PathBuf,
}

impl Browser {
    /// Starts a browser below `folder`, on a free port.
    pub async fn start(folder: &Path) -> Result<Self> {
        static STARTED: AtomicUsize = AtomicUsize::new(1);
        let name = format!("browser-{}", STARTED.fetch_add(1, Ordering::Relaxed));
        let profile = folder::data(folder, &name)?;
        folder::create(&profile)?;
        let port = port::free()?;
        let launch = Launch::new(&name, tools::chromedriver()?, folder::log(folder, &name)?)
            .argument(format!("--port={port}"))
            // Chromium keeps some files in the home folder, whatever its profile is.
            .env("HOME", &profile);
        let browser = Self { process: Process::start(launch)?, port, profile, chromium: tools::chromium()? };
        browser.wait_until_up().await?;
        Ok(browser)
    }

    /// Returns the address of the WebDriver protocol.
    pub fn driver_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Returns the capabilities to request a session with. The log `browser` keeps the page's console, `performance`
    /// its requests.
    pub fn capabilities(&self) -> Value {
        let profile = format!("--user-data-dir={}", self.profile.join("profile").display());
        let arguments: Vec<&str> = FLAGS.into_iter().chain([profile.as_str()]).collect();
        json!({
            "browserName": "chrome",
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
            "goog:chromeOptions": {"binary": self.chromium, "args": arguments},
        })
    }
}

impl Service for Browser {
    fn process(&self) -> &Process {
        &self.process
    }

    fn wait_until_up(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(wait_until_answered(&self.process, "take a session", START_DEADLINE, || async {
            let answer = http::client().get(format!("{}/status", self.driver_url())).send().await;
            let status: Value = answer.context("query chromedriver")?.json().await.context("read its status")?;
            ensure!(status["value"]["ready"] == true, "chromedriver is not ready: {status}");
            Ok(())
        }))
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        self.process.kill();
        let _ = std::fs::remove_dir_all(&self.profile);
    }
}
