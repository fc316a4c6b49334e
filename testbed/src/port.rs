//! Loopback ports: free ones to keep, and the process that holds a busy one.
//!
//! A service that is killed and started again must find its port still free. So ports are taken from below the range
//! that the kernel gives to outgoing connections: a reconnecting client could otherwise get the very port it is trying
//! to reach.

use std::{
    collections::{HashSet, hash_map::RandomState},
    hash::BuildHasher,
    net::{Ipv4Addr, TcpListener},
    sync::{Mutex, PoisonError},
};

use anyhow::{Result, bail};

use crate::process_tree;

/// The first port. Linux gives outgoing connections 32768 and up; well-known services are below 20000.
const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;

/// Ports that this process has handed out and on which nothing may listen yet.
static HANDED_OUT: Mutex<Option<HashSet<u16>>> = Mutex::new(None);

/// Returns a free loopback port that this process hands out only once.
///
/// # Errors
/// If no port of the range is free.
pub fn free() -> Result<u16> {
    let mut handed_out = HANDED_OUT.lock().unwrap_or_else(PoisonError::into_inner);
    let handed_out = handed_out.get_or_insert_default();
    // A random start keeps test processes that run at the same time apart.
    let start = (RandomState::new().hash_one(std::process::id()) % u64::from(COUNT)) as u16;
    for step in 0..COUNT {
        let port = FIRST + (start + step) % COUNT;
        if !handed_out.contains(&port) && is_free(port) {
            handed_out.insert(port);
            return Ok(port);
        }
    }
    bail!("find a free port: all of {FIRST}..{} are taken", FIRST + COUNT)
}

/// Returns whether `127.0.0.1:port` can be listened on at this moment.
pub fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// Returns name and pid of the process that listens on `port`, if this user may see it.
pub fn holder(port: u16) -> Option<String> {
    let sockets: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|table| std::fs::read_to_string(table).ok())
        .flat_map(|table| listening_sockets(&table, port))
        .collect();
    let pid = process_tree::all().into_iter().map(|process| process.pid).find(|pid| {
        std::fs::read_dir(format!("/proc/{pid}/fd")).is_ok_and(|open| {
            open.flatten()
                .filter_map(|file| std::fs::read_link(file.path()).ok())
                .any(|target| sockets.iter().any(|socket| target.as_os_str() == socket.as_str()))
        })
    })?;
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(format!("{} (pid {pid})", name.trim()))
}

/// Returns the `socket:[inode]` names of the listening rows (state 0A) of `port` in a `/proc/net/tcp` table.
fn listening_sockets(table: &str, port: u16) -> Vec<String> {
    table
        .lines()
        .skip(1)
        .filter_map(|row| {
            let columns: Vec<&str> = row.split_whitespace().collect();
            let (local, state, inode) = (columns.get(1)?, columns.get(3)?, columns.get(9)?);
            let local_port = u16::from_str_radix(local.rsplit(':').next()?, 16).ok()?;
            (local_port == port && *state == "0A").then(|| format!("socket:[{inode}]"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holder_names_the_process_that_listens_on_a_port() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
        let port = listener.local_addr().expect("read address").port();
        assert!(!is_free(port));
        let holder = holder(port).expect("find our own socket");
        assert!(holder.contains(&std::process::id().to_string()), "{holder}");
    }

    #[test]
    fn a_port_is_handed_out_once() {
        let ports: HashSet<u16> = (0..20).map(|_| free().expect("find a port")).collect();
        assert_eq!(ports.len(), 20);
    }
}
