//! What a browser has to complain about a page: errors on its console, breaches of its policy, requests to other origins.

use anyhow::{Context, Result};
use serde_json::Value;
use thirtyfour::{BrowserLogEntry, WebDriver};

/// What a browser says about requests that failed, on the console and by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failures {
    /// All of them should have succeeded.
    None,
    /// The test made some fail.
    Provoked,
}

/// Everything since the browser was started or was asked last, of all its tabs.
pub async fn of(driver: &WebDriver, url: &str, failures: Failures) -> Result<Vec<String>> {
    let console = driver.get_log("browser").await.context("read the console")?;
    let traffic = driver.get_log("performance").await.context("read what was requested")?;
    let mut complaints: Vec<String> =
        console.iter().filter(|entry| is_complaint(entry, failures)).map(|entry| entry.message.clone()).collect();
    for entry in &traffic {
        complaints.extend(foreign(&serde_json::from_str(&entry.message)?, url));
    }
    Ok(complaints)
}

fn is_complaint(entry: &BrowserLogEntry, failures: Failures) -> bool {
    let is_failed_request = entry.source.as_deref() == Some("network");
    matches!(entry.level.as_str(), "WARNING" | "SEVERE") && !(is_failed_request && failures == Failures::Provoked)
}

/// The request of this event, if it went to another origin than the page's.
fn foreign(entry: &Value, url: &str) -> Option<String> {
    let event = &entry["message"];
    let requested = match event["method"].as_str()? {
        "Network.requestWillBeSent" => event["params"]["request"]["url"].as_str()?,
        "Network.webSocketCreated" => event["params"]["url"].as_str()?,
        _ => return None,
    };
    // What a new tab shows before it is sent anywhere.
    let is_local = ["data:", "about:", "blob:", "chrome:"].iter().any(|scheme| requested.starts_with(scheme));
    let is_own = requested.strip_prefix(url).is_some_and(|rest| rest.starts_with('/'));
    (!is_local && !is_own).then(|| format!("a request to {requested}"))
}
