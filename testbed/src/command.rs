//! Commands that run to their end: with a deadline, with `PATH` as the only variable of this shell, and with an error
//! that includes their output. A program that keeps running is a [`Process`](crate::Process).

use std::{
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

/// Seconds until a command is ended. Half a gigabyte of images takes one minute on a slow disk.
const DEADLINE: u16 = 300;

/// Returns a command to which the caller adds arguments and variables.
pub fn command(program: &Path) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", &DEADLINE.to_string()]).arg(program);
    command.env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path))).stdin(Stdio::null());
    command
}

/// Runs a command and returns what it printed.
///
/// # Errors
/// Shows the command line and all its output if it failed or did not end.
pub async fn output(mut command: Command) -> Result<String> {
    let arguments: Vec<_> =
        command.get_args().skip(2).map(|argument| argument.to_string_lossy().into_owned()).collect();
    let line = arguments.join(" ");
    let output = tokio::task::spawn_blocking(move || command.output())
        .await
        .context("wait for a command")?
        .with_context(|| format!("start {line}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (printed, errors) = (text(&output.stdout), text(&output.stderr));
    match output.status.code() {
        Some(0) => Ok(printed),
        // `timeout` ended it, or killed it when it ignored that.
        Some(124) | None => bail!("{line}: did not end within {DEADLINE} s: {errors}{printed}"),
        _ => bail!("{line} ({}): {errors}{printed}", output.status),
    }
}
