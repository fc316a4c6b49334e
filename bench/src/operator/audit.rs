//! The operator's requests, from the API server's audit log.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use orderflow_testbed::operator::ACCOUNT;
use serde_json::Value;

use super::world::NAMESPACE;

/// The API server's audit log, which is complete.
pub struct Audit {
    log: PathBuf,
    /// The bytes of the log that were read.
    read: u64,
}

/// A request of the operator that was answered.
pub struct Request {
    verb: String,
    /// The kind of object, in the plural.
    resource: String,
}

impl Audit {
    /// Starts at the beginning of the log.
    pub fn new(log: &Path) -> Self {
        Self { log: log.to_owned(), read: 0 }
    }

    /// Returns the operator's requests since the last call. A watch counts when it ends.
    pub fn take(&mut self) -> Result<Vec<Request>> {
        let user = format!("system:serviceaccount:{NAMESPACE}:{ACCOUNT}");
        let mut log = File::open(&self.log).context("open the audit log")?;
        log.seek(SeekFrom::Start(self.read)).context("seek in the audit log")?;
        let mut new = String::new();
        log.read_to_string(&mut new).context("read the audit log")?;
        // An incomplete line is read next time.
        new.truncate(new.rfind('\n').map_or(0, |end| end + 1));
        self.read += new.len() as u64;
        let lines = new.lines().filter(|line| line.contains(&user));
        let requests = lines
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|line| line["stage"] == "ResponseComplete" && line["user"]["username"] == user.as_str());
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(requests
            .map(|line| Request { verb: text(&line["verb"]), resource: text(&line["objectRef"]["resource"]) })
            .collect())
    }
}

impl Request {
    /// Returns whether it writes; requests for the Lease do not count.
    pub fn is_write(&self) -> bool {
        !matches!(self.verb.as_str(), "get" | "list" | "watch") && !self.is_for_lease()
    }

    pub fn is_for_lease(&self) -> bool {
        self.resource == "leases"
    }
}
