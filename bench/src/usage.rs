//! CPU and memory of processes, from `/proc`.

use std::{collections::HashMap, fs};

use anyhow::{Context, Result};

/// The kernel tells times to programs in hundredths of a second (`USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;

/// Seconds of CPU that a process, its descendants, and those of them that have ended, have used so far.
pub fn cpu(pid: u32) -> Result<f64> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    let mut ticks = HashMap::new();
    for entry in fs::read_dir("/proc").context("list the processes")? {
        let Some(pid) = entry.ok().and_then(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) else { continue };
        // One that has ended meanwhile counts with its parent.
        let Some(stat) = fs::read_to_string(format!("/proc/{pid}/stat")).ok() else { continue };
        // The name, in brackets, may hold anything.
        let Some((_, fields)) = stat.rsplit_once(") ") else { continue };
        let fields: Vec<u64> = fields.split(' ').skip(1).map(|field| field.parse().unwrap_or_default()).collect();
        // From proc(5), less the three that are gone: parent, user, system, and the same of children that were waited for.
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

/// Seconds of CPU that the compilers of a JVM have used so far.
pub fn compilers(pid: u32) -> Result<f64> {
    let mut ticks = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task")).context("list the threads of a JVM")? {
        // One that has ended meanwhile compiles nothing.
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

/// Memory that a process has in RAM, in MiB.
pub fn resident(pid: u32) -> Result<f64> {
    status(pid, "VmRSS:")
}

/// The most of it that there was so far, in MiB.
pub fn resident_at_most(pid: u32) -> Result<f64> {
    status(pid, "VmHWM:")
}

/// The part of it that is no file's, in MiB.
pub fn private(pid: u32) -> Result<f64> {
    status(pid, "RssAnon:")
}

fn status(pid: u32, name: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("read the status of a process")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("find {name}"))?;
    let kibibytes: f64 = line.trim().trim_end_matches(" kB").parse().with_context(|| format!("read {name}"))?;
    Ok(kibibytes / 1024.0)
}
