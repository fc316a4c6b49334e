//! CPU and memory of processes, from `/proc`.

use std::{collections::HashMap, fs};

use anyhow::{Context, Result};

/// The unit of times in `/proc`: hundredths of a second (`USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;

/// Returns the seconds of CPU that a process and its descendants, including dead ones, have used so far.
pub fn cpu(pid: u32) -> Result<f64> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    let mut ticks = HashMap::new();
    for entry in fs::read_dir("/proc").context("list the processes")? {
        let Some(pid) = entry.ok().and_then(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) else { continue };
        // A process that has ended counts with its parent.
        let Some(stat) = fs::read_to_string(format!("/proc/{pid}/stat")).ok() else { continue };
        // The name, in brackets, may contain any character.
        let Some((_, fields)) = stat.rsplit_once(") ") else { continue };
        let fields: Vec<u64> = fields.split(' ').skip(1).map(|field| field.parse().unwrap_or_default()).collect();
        // From proc(5), without the three fields before: parent, user, system, and the times of reaped children.
        children.entry(fields[0] as u32).or_default().push(pid);
        ticks.insert(pid, fields[10] + fields[11] + fields[12] + fields[13]);
    }
    let (mut sum, mut open) = (0, vec![pid]);
    while let Some(pid) = open.pop() {
        sum += ticks.get(&pid).copied().unwrap_or_default();
        open.extend(children.remove(&pid).unwrap_or_default());
    }
    Ok(sum as f64 / TICKS_PER_SECOND)
}

/// Returns the seconds of CPU that the compilers of a JVM have used so far.
pub fn compilers(pid: u32) -> Result<f64> {
    let mut ticks = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task")).context("list the threads of a JVM")? {
        // A thread that has ended no longer compiles.
        let Some(stat) = thread.ok().and_then(|thread| fs::read_to_string(thread.path().join("stat")).ok()) else {
            continue;
        };
        let Some((name, fields)) = stat.rsplit_once(") ") else { continue };
        if name.contains("(C1 Compiler") || name.contains("(C2 Compiler") {
            let fields = fields.split(' ').skip(11).take(2);
            ticks += fields.map(|field| field.parse().unwrap_or(0)).sum::<u64>();
        }
    }
    Ok(ticks as f64 / TICKS_PER_SECOND)
}

/// Returns the memory that a process has in RAM, in MiB.
pub fn resident(pid: u32) -> Result<f64> {
    status(pid, "VmRSS:")
}

/// Returns the most memory that a process has had in RAM, in MiB.
pub fn resident_at_most(pid: u32) -> Result<f64> {
    status(pid, "VmHWM:")
}

/// Returns the memory that belongs to no file, in MiB.
pub fn private(pid: u32) -> Result<f64> {
    status(pid, "RssAnon:")
}

fn status(pid: u32, name: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("read the status of a process")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("find {name}"))?;
    let kibibytes: f64 = line.trim().trim_end_matches(" kB").parse().with_context(|| format!("read {name}"))?;
    Ok(kibibytes / 1024.0)
}
