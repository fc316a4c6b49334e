//! The browser's reports about a page: errors on its console, violations of its policy, requests to other origins.

use anyhow::{Context, Result, ensure};
use orderflow_testbed::{eventually, wait::PATIENCE};
use serde_json::Value;
use thirtyfour::{BrowserLogEntry, WebDriver};

use crate::support::{Shop, on_a_dashboard};

/// The treatment of failed requests, which the browser reports on the console.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failures {
    /// No request may fail.
    None,
    /// The test causes failures.
    Provoked,
}

/// Returns the reports of all tabs since the last call. `origins` are those that the page may request.
pub async fn errors(driver: &WebDriver, origins: &[&str], failures: Failures) -> Result<Vec<String>> {
    let console = driver.get_log("browser").await.context("read the console")?;
    let traffic = driver.get_log("performance").await.context("read the requests")?;
    let mut complaints: Vec<String> =
        console.iter().filter(|entry| is_complaint(entry, failures)).map(|entry| entry.message.clone()).collect();
    for entry in &traffic {
        complaints.extend(foreign(&serde_json::from_str(&entry.message)?, origins));
    }
    Ok(complaints)
}

fn is_complaint(entry: &BrowserLogEntry, failures: Failures) -> bool {
    let is_failed_request = entry.source.as_deref() == Some("network");
    matches!(entry.level.as_str(), "WARNING" | "SEVERE") && !(is_failed_request && failures == Failures::Provoked)
}

/// Returns the request of this event if it went to none of these origins.
fn foreign(entry: &Value, origins: &[&str]) -> Option<String> {
    let event = &entry["message"];
    let requested = match event["method"].as_str()? {
        "Network.requestWillBeSent" => event["params"]["request"]["url"].as_str()?,
        "Network.webSocketCreated" => event["params"]["url"].as_str()?,
        _ => return None,
    };
    // A new tab shows this before it loads a page.
    let is_local = ["data:", "about:", "blob:", "chrome:"].iter().any(|scheme| requested.starts_with(scheme));
    let is_of = |origin: &&str| requested.strip_prefix(*origin).is_some_and(|rest| rest.starts_with('/'));
    let is_own = origins.iter().any(is_of);
    (!is_local && !is_own).then(|| format!("a request to {requested}"))
}

/// A control: each of these is noticed, and no other test would show it.
#[tokio::test(flavor = "multi_thread")]
async fn forbidden_actions_of_a_page_are_noticed() -> Result<()> {
    const ERROR: &str = "setTimeout(() => { throw new Error('a mistake') })";
    const POLICY: &str = "document.head.append(Object.assign(document.createElement('style'), {textContent: '*{}'}))";
    const TYPES: &str = "try { document.body.innerHTML = 'markup' } catch {}";
    const REQUEST: &str = "fetch('http://127.0.0.1:9/elsewhere').catch(() => null)";
    const FAILURE: &str = "return fetch('/api/orders/no-id').then(() => null)";
    on_a_dashboard(async |shop: &Shop| {
        for (script, what) in [
            (ERROR, "a mistake"),
            (POLICY, "style-src"),
            (TYPES, "TrustedHTML"),
            (REQUEST, "connect-src"),
            (FAILURE, "400"),
        ] {
            shop.page.script::<Value>(script, &[]).await?;
            eventually(&format!("{what} to be reported"), PATIENCE, async || {
                let complaint = shop.page.expect_clean_console(Failures::None).await.err();
                let complaint = format!("{:#}", complaint.context("nothing is complained of")?);
                ensure!(complaint.contains(what), "{complaint}");
                Ok(())
            })
            .await?;
        }
        shop.page.script::<Value>(FAILURE, &[]).await?;
        shop.page.expect_clean_console(Failures::Provoked).await?;
        // The policy blocks requests to other origins, so our own origin is treated as another.
        shop.page.load().await?;
        let complaints = shop.page.console_errors("http://127.0.0.1:9", Failures::None).await?;
        ensure!(
            complaints.iter().any(|one| one.contains("a request to") && one.ends_with("/main.js")),
            "{complaints:?}"
        );
        Ok(())
    })
    .await
}
