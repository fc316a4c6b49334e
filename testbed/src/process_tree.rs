//! The descendants of a process, read from `/proc`.
//!
//! A process group is not enough to freeze or kill a service: each Postgres backend leads a group of its own. The tree
//! by parent pid contains them all.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// A row of the process table.
pub(crate) struct Row {
    pub(crate) pid: i32,
    parent: i32,
    /// The kernel's letter: `T` is stopped, `Z` is dead and not yet reaped.
    state: char,
}

/// Returns every process that this user can see.
pub(crate) fn all() -> Vec<Row> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries.flatten().filter_map(|entry| row(entry.file_name().to_str()?.parse().ok()?)).collect()
}

/// Describes `root` and its descendants, for messages about one that does not answer: pid, the kernel's letter for the
/// state, the kernel function it waits in (`0`: none, or hidden from this user), and the command.
pub(crate) fn describe(root: i32) -> String {
    let read = |pid: i32, file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let line = |pid| {
        let state = row(pid).map_or('-', |process| process.state);
        let command = read(pid, "cmdline").replace('\0', " ");
        format!("{pid} {state} {} {}", read(pid, "wchan"), command.chars().take(80).collect::<String>())
    };
    tree(root).into_iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Returns whether a process has `folder` as its working folder. A dead process that is not yet reaped has none.
pub(crate) fn works_in(folder: &Path) -> bool {
    all()
        .iter()
        .any(|process| std::fs::read_link(format!("/proc/{}/cwd", process.pid)).is_ok_and(|working| working == folder))
}

/// Stops `root` and all its descendants and returns them, parents first. Repeats until no new child appears, because a
/// process may fork until it stops, and until all have stopped: the kernel stops a running thread a moment after it
/// accepts the signal.
pub(crate) fn freeze(root: i32) -> Vec<i32> {
    let mut frozen = Vec::new();
    loop {
        let new: Vec<i32> = tree(root).into_iter().filter(|pid| !frozen.contains(pid)).collect();
        if new.is_empty() {
            await_each(&frozen, |process| matches!(process.state, 'T' | 't' | 'Z' | 'X'));
            return frozen;
        }
        signal_each(&new, Signal::SIGSTOP);
        frozen.extend(new);
    }
}

/// Resumes `root` and its descendants, children first, so that no parent resumes before a child that still stands.
pub(crate) fn thaw(root: i32) {
    let mut tree = tree(root);
    tree.reverse();
    signal_each(&tree, Signal::SIGCONT);
}

/// Kills the frozen processes of one tree.
pub(crate) fn kill_each(pids: &[i32]) {
    signal_each(pids, Signal::SIGKILL);
}

/// Waits until none of `pids` runs; the first is our own child and reaped by its owner.
pub(crate) fn await_gone(pids: &[i32]) {
    await_each(pids, |process| matches!(process.state, 'Z' | 'X'));
}

fn tree(root: i32) -> Vec<i32> {
    let all = all();
    let mut tree = vec![root];
    let mut next = 0;
    while let Some(&parent) = tree.get(next) {
        tree.extend(all.iter().filter(|process| process.parent == parent).map(|process| process.pid));
        next += 1;
    }
    tree
}

fn signal_each(pids: &[i32], signal: Signal) {
    for &pid in pids {
        // A process that has just ended needs no signal.
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// Waits until each process is gone or `settled`; 5 s are far more than the kernel needs unless a disk hangs.
fn await_each(pids: &[i32], settled: impl Fn(&Row) -> bool) {
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end && !pids.iter().all(|&pid| row(pid).is_none_or(|process| settled(&process))) {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn row(pid: i32) -> Option<Row> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second column is the name in parentheses and may hold spaces and parentheses itself.
    let mut columns = stat.rsplit_once(')')?.1.split_whitespace();
    let state = columns.next()?.chars().next()?;
    let parent = columns.next()?.parse().ok()?;
    Some(Row { pid, parent, state })
}
