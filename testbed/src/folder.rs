//! The files of services: `data/<name>` and `logs/<name>.log` below one folder.
//!
//! For tests that folder is `orderflow-test-<pid>` in the temp folder. A new test process removes what dead ones left;
//! their logs stay for a day, because a failing test names them.

use std::{
    fs::OpenOptions,
    io::Write,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Duration,
};

use anyhow::{Context, Result};

const PREFIX: &str = "orderflow-test-";
const KEEP_LOGS: Duration = Duration::from_hours(24);

static FOLDER: OnceLock<PathBuf> = OnceLock::new();

/// Returns the folder of this test process; the first call creates it.
pub fn for_test_process() -> Result<&'static Path> {
    if let Some(folder) = FOLDER.get() {
        return Ok(folder);
    }
    remove_leftovers();
    let folder = std::env::temp_dir().join(format!("{PREFIX}{}", std::process::id()));
    create(&folder)?;
    Ok(FOLDER.get_or_init(|| folder))
}

/// Returns whether this process is a test. A test prints the logs of its services when it drops them: the test harness
/// shows that output only if the test has failed.
pub fn is_test() -> bool {
    FOLDER.get().is_some()
}

/// Returns the data folder of service `name` below `folder`; it need not exist.
pub fn data(folder: &Path, name: &str) -> Result<PathBuf> {
    let parent = folder.join("data");
    create(&parent)?;
    Ok(parent.join(name))
}

/// Returns the log file of process `name` below `folder`.
pub fn log(folder: &Path, name: &str) -> Result<PathBuf> {
    let parent = folder.join("logs");
    create(&parent)?;
    Ok(parent.join(format!("{name}.log")))
}

/// Creates a folder that other users may pass through: as root, Postgres runs as another user.
pub fn create(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("create folder {}", folder.display()))
}

/// Writes a file that only this user may read: the folder is open to all.
pub fn write_private(file: &Path, text: &str) -> Result<()> {
    OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(file)
        .and_then(|mut opened| opened.write_all(text.as_bytes()))
        .with_context(|| format!("write {}", file.display()))
}

/// Removes the files of dead test processes, as far as possible: two processes may do so at once, and neither depends
/// on it.
fn remove_leftovers() {
    let Ok(entries) = std::fs::read_dir(std::env::temp_dir()) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX)).and_then(|pid| pid.parse::<u32>().ok());
        let is_dead = pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists());
        if is_dead {
            remove(&entry.path());
        }
    }
}

fn remove(folder: &Path) {
    let recent = folder
        .metadata()
        .and_then(|metadata| metadata.modified())
        .is_ok_and(|when| when.elapsed().is_ok_and(|age| age < KEEP_LOGS));
    let unneeded = if recent { folder.join("data") } else { folder.to_owned() };
    let _ = std::fs::remove_dir_all(unneeded);
}
