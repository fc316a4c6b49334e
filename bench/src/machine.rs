//! The machine: its hardware, its disk, and the versions of the services.

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use orderflow_testbed::tools;

use crate::{
    Effort,
    series::{Series, short},
};

/// The delay of the emulated slow disk before each sync.
const REST: Duration = Duration::from_millis(3);

/// Returns the lines of a table: name and value.
pub fn describe(effort: Effort) -> Result<Vec<[String; 2]>> {
    let row = |what: &str, is: String| [what.to_owned(), is];
    let cpu = field("/proc/cpuinfo", "model name");
    let cores = thread::available_parallelism().context("count the cores")?;
    let kibibytes: f64 = field("/proc/meminfo", "MemTotal").trim_end_matches(" kB").parse().unwrap_or_default();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let postgres = output(Command::new(tools::postgres_program("postgres")?).arg("--version"))?;
    let commit = output(Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=10"]))
        .unwrap_or_else(|_| "unknown".to_owned());
    Ok(vec![
        row("processor", format!("{cpu}, {cores} cores for everything, the load included")),
        row("memory", format!("{:.0} GiB", kibibytes / 1024.0 / 1024.0)),
        row("kernel", kernel.trim().to_owned()),
        row("disk", format!("{}; after a rest of {} ms each {}", sync_time()?, REST.as_millis(), rested_sync_time()?)),
        row("versions", format!("{}, Kafka {}", postgres.trim(), tools::KAFKA_VERSION)),
        row("commit", commit.trim().to_owned()),
        row("measured", format!("in {} rounds of {} s", effort.rounds, effort.length.as_secs())),
    ])
}

/// Measures one `fdatasync` of 8 KiB with Postgres's own tool.
fn sync_time() -> Result<String> {
    let file = std::env::temp_dir().join(format!("orderflow-bench-sync-{}", std::process::id()));
    let program = tools::postgres_program("pg_test_fsync")?;
    let printed = output(Command::new(program).args(["-s", "1", "-f"]).arg(&file));
    let _ = fs::remove_file(&file);
    let printed = printed?;
    let line = printed.lines().find(|line| line.trim_start().starts_with("fdatasync")).unwrap_or_default();
    let figures =
        line.split_once("fdatasync").map_or("", |(_, figures)| figures).split_whitespace().collect::<Vec<_>>();
    Ok(format!("fdatasync: {}", figures.join(" ")))
}

/// Measures one `fdatasync` on a disk that was idle before: the case of a commit that follows no other at once, as on
/// the slow disk, which delays each sync by as much.
fn rested_sync_time() -> Result<String> {
    const SYNCS: usize = 200;
    let path = std::env::temp_dir().join(format!("orderflow-bench-rested-{}", std::process::id()));
    let times = rested_syncs(&path, SYNCS).with_context(|| format!("write and sync {}", path.display()));
    let _ = fs::remove_file(&path);
    Ok(format!("{} ms", short(times?.median())))
}

/// Returns the times in milliseconds.
fn rested_syncs(path: &Path, count: usize) -> Result<Series> {
    let mut file = File::create(path)?;
    let mut times = Series::default();
    for _ in 0..count {
        file.write_all(&[0; 8192])?;
        thread::sleep(REST);
        let began = Instant::now();
        file.sync_data()?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
    }
    Ok(times)
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
