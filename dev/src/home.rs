//! The folder of `orderflow-dev`, and the lock that lets one `up` use it at a time.
//!
//! `up` writes only to a folder that it has marked as its own, and `down` removes only what `up` put there.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{ErrorKind, Read, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use nix::unistd::geteuid;
use orderflow_testbed::folder;

use crate::state::State;

/// The file that marks the folder as ours. It contains the pid of the last `up`, and is locked while that runs.
const LOCK: &str = "orderflow-dev.lock";
const STATE: &str = "state.json";

#[derive(Debug, Clone, Args)]
#[group(skip)]
pub(super) struct Location {
    /// Folder for the data and logs of all services
    #[arg(long, env = "ORDERFLOW_DATA", default_value_os_t = default_folder())]
    pub(super) data: PathBuf,
}

impl Location {
    /// Returns true if `make down` uses this folder.
    pub(super) fn is_default(&self) -> bool {
        self.data == default_folder()
    }
}

/// Returns `/var/lib/orderflow` for root, because the user `postgres` cannot reach root's home; else the user's state
/// folder.
fn default_folder() -> PathBuf {
    if geteuid().is_root() {
        return PathBuf::from("/var/lib/orderflow");
    }
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("XDG_STATE_HOME")
        .or_else(|| Some(variable("HOME")?.join(".local/state")))
        .unwrap_or_else(std::env::temp_dir)
        .join("orderflow")
}

/// A folder that is locked by this process until the value is dropped.
#[derive(Debug)]
pub(super) struct Home {
    folder: PathBuf,
    _lock: File,
}

/// The result of [`Home::claim`].
#[derive(Debug)]
pub(super) enum Claim {
    Ours(Home),
    /// Another `orderflow-dev` holds the folder: its pid, if it has written it already.
    Taken(Option<i32>),
}

impl Home {
    /// Locks the folder for this process, and creates it if needed.
    ///
    /// # Errors
    /// Fails if it contains files that are not ours.
    pub(super) fn claim(folder: &Path) -> Result<Claim> {
        if !is_ours(folder)? {
            let is_empty = match std::fs::read_dir(folder) {
                Ok(mut entries) => entries.next().is_none(),
                Err(error) if error.kind() == ErrorKind::NotFound => true,
                Err(error) => return Err(error).with_context(|| unreadable(folder)),
            };
            ensure!(
                is_empty,
                "{} is not empty and was not created by orderflow-dev: choose another folder (ORDERFLOW_DATA)",
                folder.display()
            );
            folder::create(folder)?;
        }
        let folder = folder.canonicalize().with_context(|| format!("find {}", folder.display()))?;
        let path = folder.join(LOCK);
        let mut lock = OpenOptions::new()
            .create(true)
            .read(true)
            .write(true)
            .truncate(false)
            .open(&path)
            .with_context(|| unreadable(&path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let _ = lock.read_to_string(&mut pid);
                return Ok(Claim::Taken(pid.trim().parse().ok()));
            }
            Err(TryLockError::Error(error)) => return Err(error).with_context(|| format!("lock {}", path.display())),
        }
        lock.set_len(0)
            .and_then(|()| write!(lock, "{}", std::process::id()))
            .with_context(|| format!("write {}", path.display()))?;
        Ok(Claim::Ours(Self { folder, _lock: lock }))
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn logs(&self) -> PathBuf {
        self.folder.join("logs")
    }

    /// Starts new logs; those of the last run stay as `logs.previous`.
    pub(super) fn rotate_logs(&self) {
        let previous = self.folder.join("logs.previous");
        let _ = std::fs::remove_dir_all(&previous);
        let _ = std::fs::rename(self.logs(), previous);
    }

    /// Records what runs, for `status` and for a second `up`.
    pub(super) fn write_state(&self, state: &State) -> Result<()> {
        let text = serde_json::to_string_pretty(state).context("print state")?;
        // Renamed into place, so that no reader sees half of it.
        let (new, path) = (self.folder.join("state.json.new"), self.folder.join(STATE));
        std::fs::write(&new, text)
            .and_then(|()| std::fs::rename(&new, &path))
            .with_context(|| format!("write {}", path.display()))
    }

    /// Removes the record of what runs.
    pub(super) fn remove_state(&self) {
        let _ = std::fs::remove_file(self.folder.join(STATE));
    }

    /// Removes the files of `up`, and the folder if nothing else is left in it.
    pub(super) fn remove(self) -> Result<()> {
        self.remove_state();
        for name in ["data", "logs", "logs.previous"] {
            let path = self.folder.join(name);
            if path.exists() {
                std::fs::remove_dir_all(&path).with_context(|| format!("remove {}", path.display()))?;
            }
        }
        // Last, so that the folder still counts as ours after a failure.
        std::fs::remove_file(self.folder.join(LOCK)).context("remove lock file")?;
        let _ = std::fs::remove_dir(&self.folder);
        Ok(())
    }
}

/// Returns whether an `up` has marked the folder as its own.
///
/// # Errors
/// Fails if that cannot be seen, as in a folder of another user.
pub(super) fn is_ours(folder: &Path) -> Result<bool> {
    folder.join(LOCK).try_exists().with_context(|| unreadable(folder))
}

fn unreadable(path: &Path) -> String {
    format!(
        "cannot open {}: run this as the user who started it, or choose another folder (ORDERFLOW_DATA)",
        path.display()
    )
}

/// Returns the pid of the `up` that holds the folder now, if one does.
pub(super) fn holder(folder: &Path) -> Result<Option<i32>> {
    let path = folder.join(LOCK);
    if !is_ours(folder)? {
        return Ok(None);
    }
    let mut lock = File::open(&path).with_context(|| unreadable(&path))?;
    match lock.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            lock.read_to_string(&mut pid).with_context(|| format!("read {}", path.display()))?;
            pid.trim().parse().map(Some).with_context(|| format!("read a pid from {}", path.display()))
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("check the lock {}", path.display())),
    }
}

/// Returns the state that the `up` which holds the folder has recorded; `None` while it still starts.
pub(super) fn read_state(folder: &Path) -> Option<State> {
    serde_json::from_str(&std::fs::read_to_string(folder.join(STATE)).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty_folder(name: &str) -> PathBuf {
        let folder = folder::for_test_process().expect("create a folder").join(name);
        folder::create(&folder).expect("create a folder");
        folder
    }

    #[test]
    fn a_second_claim_returns_the_pid_of_the_first() {
        let folder = empty_folder("claimed-twice");
        let Claim::Ours(_home) = Home::claim(&folder).expect("claim") else { panic!("not ours") };
        let Claim::Taken(pid) = Home::claim(&folder).expect("try to claim") else { panic!("claimed twice") };
        assert_eq!(pid, Some(std::process::id().cast_signed()));
    }

    #[test]
    fn a_folder_with_other_files_is_refused_and_unchanged() {
        let folder = empty_folder("not-ours");
        std::fs::write(folder.join("thesis.txt"), "precious").expect("write");
        let error = Home::claim(&folder).expect_err("claimed a folder with other files").to_string();
        assert!(error.contains("is not empty and was not created by orderflow-dev"), "{error}");
        assert!(!is_ours(&folder).expect("look"));
        let file = folder.join("thesis.txt");
        let error = holder(&file).expect_err("took a file for a folder").to_string();
        assert!(error.contains("choose another folder"), "{error}");
    }

    #[test]
    fn removal_keeps_other_files() {
        let folder = empty_folder("mixed");
        let Claim::Ours(home) = Home::claim(&folder).expect("claim") else { panic!("not ours") };
        std::fs::write(folder.join("notes.txt"), "precious").expect("write");
        std::fs::create_dir(folder.join("data")).expect("create data");
        home.remove().expect("remove");
        assert!(folder.join("notes.txt").exists() && !folder.join("data").exists());
    }
}
