//! A tab with the dashboard, as a person uses it: tests read its text and use its fields and buttons.
//!
//! Promises that the error of a failed wait contains what was shown instead, and that the browser's reports of all tabs
//! are known at the end.

use anyhow::{Context, Result, ensure};
use orderflow_testbed::{
    Browser, Service, eventually,
    wait::{PATIENCE, accepted},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use thirtyfour::{By, Capabilities, Key, TypingData, WebDriver, WebElement, WindowHandle};

use crate::console::{self, Failures};

/// The size of the screen, in CSS pixels.
#[derive(Debug, Clone, Copy)]
pub struct Screen {
    pub width: u32,
    pub height: u32,
    /// True if scrollbars take no room, as on a phone.
    pub overlays_scrollbars: bool,
}

pub const DESKTOP: Screen = Screen { width: 1280, height: 900, overlays_scrollbars: false };
pub const PHONE: Screen = Screen { width: 390, height: 844, overlays_scrollbars: true };

/// The finished steps of the listed orders: stored, receipt, published, notified.
pub const DONE: &str = "#orders-list .journey li[data-state=done]";
/// The last of the steps, where it is done.
pub const NOTIFIED: &str = "#orders-list .journey li:nth-child(4)[data-state=done]";
/// The last of the steps, where it is not done or not known.
pub const NOT_NOTIFIED: &str = "#orders-list .journey li:nth-child(4):not([data-state=done])";
/// The receipts that wait for S3.
pub const PENDING: &str = "#orders-list .journey li:nth-child(2)[data-state=waiting]";

/// Returns the visible text of the first element that `arguments[0]` selects; null without one.
const TEXT: &str = "return document.querySelector(arguments[0])?.innerText ?? null";
const TEXTS: &str = "return [...document.querySelectorAll(arguments[0])].map((node) => node.innerText)";

/// Returns true if the last step of an order is shown as not done yet, or as unknown, which it is while Kafka is down.
pub fn is_open(step: &str) -> bool {
    step == "Not notified yet" || step == "Notified unknown"
}

pub struct Page {
    // Dropped first: the driver then has no session left to close.
    browser: Browser,
    driver: WebDriver,
    url: String,
    /// The one other origin that the page may request.
    controls: Option<String>,
}

impl Page {
    /// Opens `url` in a browser of its own.
    pub async fn open(url: &str) -> Result<Self> {
        let browser = Browser::start(orderflow_testbed::folder::for_test_process()?).await?;
        let Value::Object(capabilities) = browser.capabilities() else { unreachable!("capabilities are an object") };
        let driver = WebDriver::new(browser.driver_url(), Capabilities::from(capabilities)).await;
        let driver = driver.with_context(|| format!("open a session:\n{}", browser.process().log_since_start()))?;
        // The process is killed; a dropped driver would only block while it closes its session.
        driver.clone().leak().ok().context("a new driver has been closed")?;
        let page = Self { browser, driver, url: url.to_owned(), controls: None };
        page.show_on(DESKTOP).await?;
        page.load().await?;
        Ok(page)
    }

    /// Allows the page to request the controls at `url` as well.
    pub fn with_controls(self, url: &str) -> Self {
        Self { controls: Some(url.to_owned()), ..self }
    }

    /// Loads the page (again) in this tab.
    pub async fn load(&self) -> Result<()> {
        self.driver.goto(&self.url).await.context("load the page")
    }

    /// Loads another path of the same producer in this tab.
    pub async fn load_path(&self, path: &str) -> Result<()> {
        self.driver.goto(format!("{}{path}", self.url)).await.with_context(|| format!("load {path}"))
    }

    /// Opens the page in another tab, and switches to that.
    pub async fn new_tab(&self) -> Result<WindowHandle> {
        let tab = self.driver.new_tab().await?;
        self.switch_to(&tab).await?;
        self.load().await?;
        Ok(tab)
    }

    pub async fn tab(&self) -> Result<WindowHandle> {
        Ok(self.driver.window().await?)
    }

    pub async fn switch_to(&self, tab: &WindowHandle) -> Result<()> {
        Ok(self.driver.switch_to_window(tab.clone()).await?)
    }

    /// Shows the page on another screen. A window cannot be as narrow as a phone.
    pub async fn show_on(&self, screen: Screen) -> Result<()> {
        let Screen { width, height, overlays_scrollbars } = screen;
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": overlays_scrollbars});
        self.devtools("Emulation.setDeviceMetricsOverride", metrics).await
    }

    /// Sets the preferred color scheme: `light` or `dark`.
    pub async fn prefer(&self, scheme: &str) -> Result<()> {
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.devtools("Emulation.setEmulatedMedia", features).await
    }

    /// Sets the preference for reduced motion.
    pub async fn prefer_reduced_motion(&self) -> Result<()> {
        let features = json!({"features": [{"name": "prefers-reduced-motion", "value": "reduce"}]});
        self.devtools("Emulation.setEmulatedMedia", features).await
    }

    pub async fn scroll_to_top(&self) -> Result<()> {
        self.script("scrollTo({top: 0, behavior: 'instant'})", &[]).await
    }

    async fn devtools(&self, command: &str, parameters: Value) -> Result<()> {
        self.driver.cdp().send_raw(command, parameters).await.map(drop).with_context(|| command.to_owned())
    }

    /// Runs `script` in the page; its arguments are `arguments`.
    pub async fn script<T: DeserializeOwned>(&self, script: &str, arguments: &[Value]) -> Result<T> {
        let answer = self.driver.execute(script, arguments.to_vec()).await.with_context(|| script.to_owned())?;
        answer.convert().with_context(|| format!("{script}: {}", answer.json()))
    }

    /// Runs a script that ends later: its last argument is the function to call with the result.
    pub async fn script_later<T: DeserializeOwned>(&self, script: &str, arguments: &[Value]) -> Result<T> {
        let answer = self.driver.execute_async(script, arguments.to_vec()).await.with_context(|| script.to_owned())?;
        answer.convert().with_context(|| format!("{script}: {}", answer.json()))
    }

    /// Returns the visible text of the first element that `css` selects.
    pub async fn text(&self, css: &str) -> Result<String> {
        let text: Option<String> = self.script(TEXT, &[json!(css)]).await?;
        text.with_context(|| format!("no element {css}"))
    }

    pub async fn texts(&self, css: &str) -> Result<Vec<String>> {
        self.script(TEXTS, &[json!(css)]).await
    }

    /// Waits until `accept` holds for the text of the first `css`.
    pub async fn shows(&self, css: &str, accept: impl Fn(&str) -> bool) -> Result<String> {
        eventually(&format!("{css} to show it"), PATIENCE, async || {
            accepted(self.text(css).await?, |text| accept(text))
        })
        .await
    }

    /// Waits until `accept` holds for the texts of all `css`.
    pub async fn show_all(&self, css: &str, accept: impl Fn(&[String]) -> bool) -> Result<Vec<String>> {
        eventually(&format!("{css} to show them"), PATIENCE, async || {
            accepted(self.texts(css).await?, |texts| accept(texts))
        })
        .await
    }

    pub async fn find(&self, css: &str) -> Result<WebElement> {
        self.driver.find(By::Css(css)).await.with_context(|| format!("find {css}"))
    }

    /// Clicks an element as soon as it exists and takes clicks.
    pub async fn click(&self, css: &str) -> Result<()> {
        eventually(&format!("{css} to take a click"), PATIENCE, async || {
            let element = self.find(css).await?;
            ensure!(element.is_enabled().await?, "disabled");
            Ok(element.click().await?)
        })
        .await
    }

    /// Replaces the text of a field.
    pub async fn fill(&self, css: &str, text: &str) -> Result<()> {
        self.clear(css).await?;
        self.find(css).await?.send_keys(text).await.with_context(|| format!("type into {css}"))
    }

    /// Empties a field as a person does, key by key: clearing its value fires no event.
    pub async fn clear(&self, css: &str) -> Result<()> {
        let field = self.find(css).await?;
        field.send_keys(Key::Control + "a").await.with_context(|| format!("select all in {css}"))?;
        field.send_keys(Key::Backspace).await.with_context(|| format!("clear {css}"))
    }

    /// Fills in the form of an order: two pieces of 149.99.
    pub async fn fill_order(&self, user: &str, product: &str) -> Result<()> {
        for (field, text) in [("#user_id", user), ("#product_name", product), ("#quantity", "2"), ("#price", "149.99")]
        {
            self.fill(field, text).await?;
        }
        Ok(())
    }

    /// Clicks an element twice, faster than a person can.
    pub async fn double_click(&self, css: &str) -> Result<()> {
        let element = self.find(css).await?;
        Ok(self.driver.action_chain().double_click_element(&element).perform().await?)
    }

    pub async fn is_displayed(&self, css: &str) -> Result<bool> {
        Ok(self.find(css).await?.is_displayed().await?)
    }

    pub async fn focus_is_on(&self, css: &str) -> Result<bool> {
        self.script("return document.activeElement?.matches(arguments[0]) ?? false", &[json!(css)]).await
    }

    /// Types where the focus is.
    pub async fn type_keys(&self, keys: impl Into<TypingData>) -> Result<()> {
        Ok(self.driver.action_chain().send_keys(keys).perform().await?)
    }

    /// Moves the focus by the Tab key until it is on `css`; with a bound, in case it never gets there.
    pub async fn tab_to(&self, css: &str) -> Result<()> {
        for _ in 0..100 {
            if self.focus_is_on(css).await? {
                return Ok(());
            }
            self.type_keys(Key::Tab).await?;
        }
        anyhow::bail!("100 times Tab do not lead to {css}")
    }

    pub async fn screenshot(&self) -> Result<Vec<u8>> {
        self.driver.screenshot_as_png().await.context("take a screenshot")
    }

    /// Fails if the browser reported an error, a violation of the policy, or a request to another origin.
    pub async fn expect_clean_console(&self, failures: Failures) -> Result<()> {
        let errors = self.console_errors(&self.url, failures).await?;
        ensure!(errors.is_empty(), "the browser reported:\n{}", errors.join("\n"));
        Ok(())
    }

    /// Returns the browser's reports since the last call, for a page that `url` serves.
    pub async fn console_errors(&self, url: &str, failures: Failures) -> Result<Vec<String>> {
        let origins: Vec<&str> = [url].into_iter().chain(self.controls.as_deref()).collect();
        console::errors(&self.driver, &origins, failures).await
    }

    /// Describes the page of a failed test: its text, and the path of a screenshot.
    pub async fn describe(&self) -> Result<String> {
        let picture = self.browser.process().log_path().with_extension("png");
        std::fs::write(&picture, self.screenshot().await?).context("write the screenshot")?;
        Ok(format!("the page ({}) showed:\n{}", picture.display(), self.text("body").await?))
    }
}
