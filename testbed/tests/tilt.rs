//! The Tiltfile and kind's configuration, on machines that have neither Tilt nor kind: checked in Go, the language that both
//! are read by, with the real Helm.

use std::path::Path;

use anyhow::Result;
use orderflow_testbed::{command, tools};

#[tokio::test]
async fn tilt_and_kind_can_read_what_they_are_given() -> Result<()> {
    let mut go = command::command(&tools::go()?);
    // How this machine reaches modules is for its own variables to say.
    go.envs(std::env::vars_os()).env("HELM", tools::helm()?).env("GOTOOLCHAIN", "local").env("GOWORK", "off");
    // Go keeps results, and does not see that files outside of its module have changed.
    go.args(["test", "-count=1", "./..."]).current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tilt"));
    println!("{}", command::output(go).await?);
    Ok(())
}
