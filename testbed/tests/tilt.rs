//! The Tiltfile and kind's configuration, on machines that have neither Tilt nor kind: checked in Go, the language of
//! both parsers, with the real Helm.

use std::path::Path;

use anyhow::Result;
use orderflow_testbed::{command, tools};

#[tokio::test]
async fn tilt_and_kind_accept_their_files() -> Result<()> {
    let mut go = command::command(&tools::go()?);
    // The machine's own variables configure how it reaches the module proxy.
    go.envs(std::env::vars_os()).env("HELM", tools::helm()?).env("GOTOOLCHAIN", "local").env("GOWORK", "off");
    // Go caches results, and does not see that files outside of its module have changed.
    go.args(["test", "-count=1", "./..."]).current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tilt"));
    println!("{}", command::output(go).await?);
    Ok(())
}
