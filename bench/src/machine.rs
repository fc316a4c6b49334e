//! What this is measured on: the machine, its disk, and the versions.

use std::{fs, process::Command};

use anyhow::{Context, Result};
use orderflow_testbed::tools;

/// Lines of a table: what, and what it is.
pub fn describe() -> Result<Vec<[String; 2]>> {
    let row = |what: &str, is: String| [what.to_owned(), is];
    let cpu = field("/proc/cpuinfo", "model name");
    let cores = std::thread::available_parallelism().context("count the cores")?;
    let kibibytes: f64 = field("/proc/meminfo", "MemTotal").trim_end_matches(" kB").parse().unwrap_or_default();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let postgres = output(Command::new(tools::postgres_program("postgres")?).arg("--version"))?;
    let commit = output(Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=10"]))
        .unwrap_or_else(|_| "unknown".to_owned());
    Ok(vec![
        row("processor", format!("{cpu}, {cores} cores for everything, the load included")),
        row("memory", format!("{:.0} GiB", kibibytes / 1024.0 / 1024.0)),
        row("kernel", kernel.trim().to_owned()),
        row("disk", sync_time()?),
        row("versions", format!("{}, Kafka {}", postgres.trim(), tools::KAFKA_VERSION)),
        row("commit", commit.trim().to_owned()),
    ])
}

/// How long one `fdatasync` of 8 KiB takes, as Postgres's own tool measures it.
fn sync_time() -> Result<String> {
    let file = std::env::temp_dir().join(format!("orderflow-bench-sync-{}", std::process::id()));
    let program = tools::postgres_program("pg_test_fsync")?;
    let told = output(Command::new(program).args(["-s", "1", "-f"]).arg(&file));
    let _ = fs::remove_file(&file);
    let told = told?;
    let line = told.lines().find(|line| line.trim_start().starts_with("fdatasync")).unwrap_or_default();
    let figures =
        line.split_once("fdatasync").map_or("", |(_, figures)| figures).split_whitespace().collect::<Vec<_>>();
    Ok(format!("fdatasync: {}", figures.join(" ")))
}

fn field(file: &str, name: &str) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    anyhow::ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
