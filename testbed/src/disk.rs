//! A small disk of its own: a file system in a file, for tests of a full disk.
//!
//! Only root may mount one. Dropping it unmounts it, with all its files.

use std::{
    fs::{File, OpenOptions},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, fallocate},
    unistd::geteuid,
};

use crate::{command, folder};

/// Bytes by which a disk is filled, halved each time that they do not fit.
const FIRST_STEP: i64 = 1 << 30;
const LAST_STEP: i64 = 1 << 12;

/// A mounted disk. The file that it is in stays beside it.
#[derive(Debug)]
pub struct SmallDisk {
    mounted_at: PathBuf,
    ballast: PathBuf,
}

impl SmallDisk {
    /// Mounts a new disk of so many MiB at `at`. Returns `None` where mounting is not allowed: without root, and in
    /// most containers.
    pub async fn mount(at: &Path, mebibytes: u64) -> Result<Option<Self>> {
        if !geteuid().is_root() {
            return Ok(None);
        }
        folder::create(at)?;
        let image = at.with_extension("img");
        // The file takes as much room as is used of it.
        File::create(&image)
            .and_then(|file| file.set_len(mebibytes * 1024 * 1024))
            .with_context(|| format!("make {}", image.display()))?;
        let mut format = command::command(Path::new("/sbin/mkfs.ext4"));
        format.args(["-q", "-F", "-m", "0"]).arg(&image);
        command::output(format).await?;
        let mut mount = command::command(Path::new("/bin/mount"));
        mount.args(["-o", "loop"]).arg(&image).arg(at);
        if command::output(mount).await.is_err() {
            return Ok(None);
        }
        folder::create(at)?;
        Ok(Some(Self { mounted_at: at.to_owned(), ballast: at.join("ballast") }))
    }

    /// Fills the disk until no room is left.
    pub fn fill(&self) -> Result<()> {
        let fill = || {
            let ballast = OpenOptions::new().create(true).append(true).open(&self.ballast)?;
            let mut step = FIRST_STEP;
            while step >= LAST_STEP {
                let length = ballast.metadata()?.len().cast_signed();
                match fallocate(&ballast, FallocateFlags::empty(), length, step) {
                    Ok(()) => {}
                    Err(Errno::ENOSPC) => step /= 2,
                    Err(error) => return Err(error.into()),
                }
            }
            std::io::Result::Ok(())
        };
        fill().with_context(|| format!("fill the disk at {}", self.mounted_at.display()))
    }

    /// Makes room again.
    pub fn clear(&self) -> Result<()> {
        match std::fs::remove_file(&self.ballast) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", self.ballast.display()))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily, because a process that still has a file open on it is being killed at this moment.
        let _ = std::process::Command::new("umount").arg("--lazy").arg(&self.mounted_at).status();
    }
}
