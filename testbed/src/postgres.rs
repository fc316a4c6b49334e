//! One real Postgres on loopback, with its default durability: fsync and synchronous_commit stay on.
//!
//! Promises the same port and data across stop, kill and start, and that "up" means a query was answered. As root it
//! runs as the system user `postgres`, because `initdb` and `postgres` refuse root. A secured one takes connections
//! over TLS only.

use std::{
    os::unix::fs::chown,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use futures_util::future::BoxFuture;
use nix::unistd::{User, geteuid};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::{
    certificates::Pair,
    folder, port,
    process::{Launch, Process},
    process_tree,
    service::{STOP_GRACE, Service, wait_until_answered},
    tools,
    wait::eventually,
};

/// The superuser of every Postgres started here.
pub const USER: &str = "orderuser";
pub const PASSWORD: &str = "orderpass";

/// The longest a start takes: a recovery after `kill -9` replays at most what tests write, which takes seconds.
const START_DEADLINE: Duration = Duration::from_mins(1);

/// The `pg_hba.conf` of a secured Postgres: no line allows connections without TLS.
const TLS_ONLY: &str = "hostssl all all 127.0.0.1/32 scram-sha-256\n";

/// A running Postgres.
#[derive(Debug)]
pub struct Postgres {
    process: Process,
    port: u16,
    tls: Option<Tls>,
}

/// The files of a secured Postgres.
#[derive(Debug)]
struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    /// The authority that clients trust; the server does not use it.
    ca: PathBuf,
}

impl Postgres {
    /// Starts `name` below `folder` on a free port; creates its cluster if none exists.
    pub async fn start(folder: &Path, name: &str) -> Result<Self> {
        Self::start_on(folder, name, port::free()?).await
    }

    /// Starts a Postgres on a chosen port.
    pub async fn start_on(folder: &Path, name: &str, port: u16) -> Result<Self> {
        Self::start_with(folder, name, port, None, None).await
    }

    /// Starts a Postgres whose processes preload a shared library.
    pub async fn start_preloading(folder: &Path, name: &str, library: &Path) -> Result<Self> {
        Self::start_with(folder, name, port::free()?, None, Some(library)).await
    }

    /// Starts a secured Postgres; the certificate must name 127.0.0.1.
    pub async fn start_secured(folder: &Path, name: &str, identity: &Pair) -> Result<Self> {
        Self::start_with(folder, name, port::free()?, Some(identity), None).await
    }

    async fn start_with(
        folder: &Path,
        name: &str,
        port: u16,
        identity: Option<&Pair>,
        preloaded: Option<&Path>,
    ) -> Result<Self> {
        let cluster = cluster(folder, name).await?;
        remove_stale_lock(&cluster).await?;
        let tls = identity.map(|_| Tls::in_folder(&cluster));
        if let (Some(tls), Some(identity)) = (&tls, identity) {
            tls.write(identity)?;
            write(&cluster.join("pg_hba.conf"), TLS_ONLY)?;
        }
        let launch = Launch::new(name, tools::postgres_program("postgres")?, folder::log(folder, name)?)
            .argument("-D")
            .argument(&cluster)
            .arguments(["-p", &port.to_string()])
            .arguments(["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="])
            .arguments(["-c", "max_connections=300", "-c", "log_line_prefix=%m [%p] %d "])
            .arguments(tls.iter().flat_map(Tls::arguments))
            .folder(&cluster)
            .user(system_user()?.map(|user| user.name));
        let launch = preloaded.into_iter().fold(launch, |launch, library| launch.env("LD_PRELOAD", library));
        let postgres = Self { process: Process::start(launch)?, port, tls };
        postgres.wait_until_up().await?;
        Ok(postgres)
    }

    /// Replaces the certificate of a secured Postgres; the next start uses it.
    pub fn renew(&self, identity: &Pair) -> Result<()> {
        self.tls.as_ref().context("renew the certificate of a Postgres without TLS")?.write(identity)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the PEM file with the authority of a secured Postgres.
    pub fn ca_file(&self) -> Option<&Path> {
        self.tls.as_ref().map(|tls| tls.ca.as_path())
    }

    /// Returns the DSN of `database`, whether it exists or not.
    pub fn dsn(&self, database: &str) -> String {
        dsn(self.port, database)
    }

    /// Creates `database` unless it exists, and returns its DSN.
    pub async fn create_database(&self, database: &str) -> Result<String> {
        let mut connection = connect(&self.dsn("postgres")).await?;
        let exists: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM pg_database WHERE datname = $1)")
            .bind(database)
            .fetch_one(&mut connection)
            .await
            .with_context(|| format!("find database {database}"))?;
        if !exists {
            // A name cannot be a bind parameter; it is quoted as an identifier.
            let statement = format!("CREATE DATABASE \"{}\"", database.replace('"', "\"\""));
            sqlx::raw_sql(AssertSqlSafe(statement))
                .execute(&mut connection)
                .await
                .with_context(|| format!("create database {database}"))?;
        }
        connection.close().await.context("close connection")?;
        Ok(self.dsn(database))
    }
}

impl Tls {
    fn in_folder(cluster: &Path) -> Self {
        let file = |name| cluster.join(name);
        Self { certificate: file("server.crt"), key: file("server.key"), ca: file("ca.crt") }
    }

    fn arguments(&self) -> [String; 3] {
        let file = |setting, file: &Path| format!("--{setting}={}", file.display());
        ["--ssl=on".to_owned(), file("ssl_cert_file", &self.certificate), file("ssl_key_file", &self.key)]
    }

    fn write(&self, identity: &Pair) -> Result<()> {
        write(&self.certificate, &identity.certificate)?;
        write(&self.key, &identity.key)?;
        write(&self.ca, &identity.authority)
    }
}

impl Service for Postgres {
    fn process(&self) -> &Process {
        &self.process
    }

    fn wait_until_up(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(wait_until_answered(&self.process, "answer a query", START_DEADLINE, || probe(self.port)))
    }

    /// Stops with a fast shutdown: clients are disconnected, and everything is written.
    fn stop(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { self.process.interrupt(STOP_GRACE).await.map(drop) })
    }
}

/// Checks that the Postgres on `port` answers a query.
pub async fn probe(port: u16) -> Result<()> {
    let mut connection = connect(&dsn(port, "postgres")).await?;
    sqlx::query("SELECT 1").execute(&mut connection).await.context("query Postgres")?;
    connection.close().await.context("close connection")
}

/// Opens a connection.
pub async fn connect(dsn: &str) -> Result<PgConnection> {
    PgConnection::connect(dsn).await.context("connect to Postgres")
}

fn dsn(port: u16, database: &str) -> String {
    format!("postgres://{USER}:{PASSWORD}@127.0.0.1:{port}/{database}")
}

/// Returns the cluster's folder. It is created under another name first, so that an interrupted `initdb` never counts
/// as a cluster.
async fn cluster(folder: &Path, name: &str) -> Result<PathBuf> {
    let cluster = folder::data(folder, name)?;
    if cluster.join("PG_VERSION").exists() {
        return Ok(cluster);
    }
    let unfinished = folder::data(folder, &format!("{name}.unfinished"))?;
    let password = folder::data(folder, &format!("{name}.password"))?;
    let _ = std::fs::remove_dir_all(&unfinished);
    std::fs::create_dir(&unfinished).with_context(|| format!("create folder {}", unfinished.display()))?;
    std::fs::write(&password, PASSWORD).with_context(|| format!("write {}", password.display()))?;
    let user = system_user()?;
    if let Some(user) = &user {
        for path in [&unfinished, &password] {
            give(path, user)?;
        }
    }
    let launch = Launch::new("initdb", tools::postgres_program("initdb")?, folder::log(folder, name)?)
        .argument("-D")
        .argument(&unfinished)
        .argument("--pwfile")
        .argument(&password)
        .arguments(["-U", USER, "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8"])
        .folder(&unfinished)
        .user(user.map(|user| user.name));
    let initdb = Process::start(launch)?;
    let status = initdb.wait_for_exit(START_DEADLINE).await?;
    let _ = std::fs::remove_file(&password);
    ensure!(status.success(), "create cluster {name} ({status}):\n{}", initdb.log_tail(crate::process::TAIL));
    std::fs::rename(&unfinished, &cluster).with_context(|| format!("rename cluster {}", cluster.display()))?;
    Ok(cluster)
}

/// Writes a file that only the server may read: Postgres refuses a key that others may read.
fn write(file: &Path, text: &str) -> Result<()> {
    folder::write_private(file, text)?;
    match system_user()? {
        Some(user) => give(file, &user),
        None => Ok(()),
    }
}

fn give(file: &Path, user: &User) -> Result<()> {
    chown(file, Some(user.uid.as_raw()), Some(user.gid.as_raw()))
        .with_context(|| format!("give {} to {}", file.display(), user.name))
}

/// Removes the lock file of a postmaster that was killed together with its parent. Postgres takes the pid in it for
/// alive until init has reaped it, or when another process reuses it. A process that still runs in the cluster has it
/// as its working folder; while one does, the file stays.
async fn remove_stale_lock(cluster: &Path) -> Result<()> {
    let lock = cluster.join("postmaster.pid");
    if !lock.exists() {
        return Ok(());
    }
    let cluster = cluster.canonicalize().with_context(|| format!("find {}", cluster.display()))?;
    let what = format!("the last Postgres in {} to end", cluster.display());
    eventually(&what, START_DEADLINE, || async { !process_tree::works_in(&cluster) }).await?;
    std::fs::remove_file(&lock).with_context(|| format!("remove {}", lock.display()))
}

/// Returns the user that Postgres must run as if the caller is root.
fn system_user() -> Result<Option<User>> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    let user = User::from_name("postgres").context("find user postgres")?;
    user.map(Some).context("user postgres does not exist, and Postgres started by root needs it: run scripts/prepare")
}
