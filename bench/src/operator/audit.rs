//! What the operator asked the API server for, from the log that this keeps of all requests.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use orderflow_testbed::operator::ACCOUNT;
use serde_json::Value;

use super::world::NAMESPACE;

/// The API server's log of requests, which is complete.
pub struct Audit {
    log: PathBuf,
    /// Bytes.
    read: u64,
}

/// One that the operator made, and that was answered.
pub struct Request {
    verb: String,
    /// The kind of object, in the plural.
    of: String,
}

impl Audit {
    /// Nothing of it was taken yet.
    pub fn of(log: &Path) -> Self {
        Self { log: log.to_owned(), read: 0 }
    }

    /// What the operator has asked for since the last call. A watch counts when it ends.
    pub fn take(&mut self) -> Result<Vec<Request>> {
        let user = format!("system:serviceaccount:{NAMESPACE}:{ACCOUNT}");
        let mut log = File::open(&self.log).context("open the audit log")?;
        log.seek(SeekFrom::Start(self.read)).context("find where the audit log was read to")?;
        let mut new = String::new();
        log.read_to_string(&mut new).context("read the audit log")?;
        // A line that is being written is read next time.
        new.truncate(new.rfind('\n').map_or(0, |end| end + 1));
        self.read += new.len() as u64;
        let lines = new.lines().filter(|line| line.contains(&user));
        let requests = lines
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|line| line["stage"] == "ResponseComplete" && line["user"]["username"] == user.as_str());
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(requests
            .map(|line| Request { verb: text(&line["verb"]), of: text(&line["objectRef"]["resource"]) })
            .collect())
    }
}

impl Request {
    /// Its Lease aside.
    pub fn is_write(&self) -> bool {
        !matches!(self.verb.as_str(), "get" | "list" | "watch") && !self.is_for_lease()
    }

    pub fn is_for_lease(&self) -> bool {
        self.of == "leases"
    }
}
