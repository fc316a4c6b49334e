//! One supervised child process: started, watched, frozen, killed, started again.
//!
//! Promises that no child outlives the process that started it, even one that dies by `kill -9`, and that its output is
//! in a log file. Every service and every binary of the product runs through this type.

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io::{Read, Seek, SeekFrom},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        LazyLock, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::Duration,
};

use anyhow::{Context, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{folder, process_tree, wait::eventually};

/// Lines of a log that are shown when something fails.
pub const TAIL: usize = 40;

/// The end of a log is searched for its last lines within this many bytes.
const TAIL_BYTES: u64 = 64 * 1024;

/// Variables that a child inherits. It sees nothing else that it was not given, so a test runs the same in every shell.
const INHERITED: [&str; 6] = ["PATH", "HOME", "USER", "TMPDIR", "JAVA_HOME", "RUST_BACKTRACE"];

/// The way a program is started; kept, so that the same program can be started again.
#[derive(Debug, Clone)]
pub struct Launch {
    name: String,
    program: PathBuf,
    log: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    folder: Option<PathBuf>,
    user: Option<String>,
}

impl Launch {
    /// Creates a launch. Messages use `name`; stdout and stderr are appended to `log`.
    pub fn new(name: impl Into<String>, program: impl Into<PathBuf>, log: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            program: program.into(),
            log: log.into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            folder: None,
            user: None,
        }
    }

    #[must_use]
    pub fn argument(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    #[must_use]
    pub fn arguments<A: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Sets a variable; the later of two values counts.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Sets the working folder.
    #[must_use]
    pub fn folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = Some(folder.into());
        self
    }

    /// Sets the user to run as; the caller must be root.
    #[must_use]
    pub fn user(mut self, user: Option<String>) -> Self {
        self.user = user;
        self
    }

    fn command(&self) -> Result<Command> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("open log {}", self.log.display()))?;
        // setpriv becomes the program (exec), so the pid is the program's own.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]);
        if let Some(user) = &self.user {
            command.arg(format!("--reuid={user}")).arg(format!("--regid={user}")).arg("--init-groups");
        }
        command.arg("--").arg(&self.program).args(&self.arguments);
        command.env_clear();
        command.envs(INHERITED.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        if let Some(folder) = &self.folder {
            command.current_dir(folder);
        }
        command.stdin(Stdio::null()).stderr(log.try_clone().context("share log file")?).stdout(log);
        // A Ctrl-C in the terminal is for the supervising process, which stops its children in order.
        command.process_group(0);
        Ok(command)
    }
}

/// A running program. Dropping it kills it and all its descendants.
#[derive(Debug)]
pub struct Process {
    launch: Launch,
    child: Mutex<Child>,
    /// Length of the log, in bytes, when the program was last started.
    log_start: AtomicU64,
}

impl Process {
    /// Starts the program; returns before the program is ready for anything.
    pub fn start(launch: Launch) -> Result<Self> {
        let log_start = length(&launch.log);
        let child = spawn(&launch)?;
        Ok(Self { launch, child: Mutex::new(child), log_start: AtomicU64::new(log_start) })
    }

    /// Starts the same program again, killing it first if it still runs.
    pub fn start_again(&self) -> Result<()> {
        self.kill();
        self.log_start.store(length(&self.launch.log), Ordering::Relaxed);
        *self.child() = spawn(&self.launch)?;
        Ok(())
    }

    pub fn name(&self) -> &str {
        &self.launch.name
    }

    /// Returns the pid of the program as it was last started.
    pub fn pid(&self) -> u32 {
        self.child().id()
    }

    /// Returns whether the program runs; a frozen program does, too.
    pub fn is_running(&self) -> bool {
        self.exit_status().is_none()
    }

    /// Returns how the program ended, if it has.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.child().try_wait().ok().flatten()
    }

    /// Sends SIGTERM, and kills the program when `grace` has passed.
    pub async fn terminate(&self, grace: Duration) -> Result<ExitStatus> {
        self.end(Signal::SIGTERM, grace).await
    }

    /// Sends SIGINT, and kills the program when `grace` has passed.
    pub async fn interrupt(&self, grace: Duration) -> Result<ExitStatus> {
        self.end(Signal::SIGINT, grace).await
    }

    /// Ends the program and its descendants by `kill -9`; returns when all are gone. A program that has ended is left
    /// alone.
    pub fn kill(&self) {
        let mut child = self.child();
        if matches!(child.try_wait(), Ok(Some(_))) {
            return;
        }
        // Frozen first: a Postgres backend that survives its postmaster by a moment could still answer a client.
        let tree = process_tree::freeze(child.id().cast_signed());
        process_tree::kill_each(&tree);
        let _ = child.wait();
        process_tree::await_gone(&tree);
    }

    /// Freezes the program and its descendants (SIGSTOP); returns when all have stopped.
    pub fn pause(&self) {
        let mut child = self.child();
        if matches!(child.try_wait(), Ok(None)) {
            process_tree::freeze(child.id().cast_signed());
        }
    }

    /// Resumes a frozen program and its descendants.
    pub fn resume(&self) {
        let mut child = self.child();
        if matches!(child.try_wait(), Ok(None)) {
            process_tree::thaw(child.id().cast_signed());
        }
    }

    /// Waits until the program has ended without a signal of ours.
    pub async fn wait_for_exit(&self, deadline: Duration) -> Result<ExitStatus> {
        let what = format!("{} to end", self.name());
        eventually(&what, deadline, || async { self.exit_status() }).await
    }

    pub fn log_path(&self) -> &Path {
        &self.launch.log
    }

    /// Returns the last `count` lines of the log.
    pub fn log_tail(&self, count: usize) -> String {
        let text = read_from(&self.launch.log, length(&self.launch.log).saturating_sub(TAIL_BYTES));
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(count)..].join("\n")
    }

    /// Returns what the program has logged since it was last started.
    pub fn log_since_start(&self) -> String {
        read_from(&self.launch.log, self.log_start.load(Ordering::Relaxed))
    }

    /// Returns what the program and its descendants are doing, a line each.
    pub fn describe(&self) -> String {
        process_tree::describe(self.pid().cast_signed())
    }

    /// Prints the end of the log and the path of the whole.
    pub fn show_log(&self) {
        eprintln!("--- {}: last lines of {}\n{}", self.name(), self.log_path().display(), self.log_tail(TAIL));
    }

    async fn end(&self, signal: Signal, grace: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.exit_status() {
            return Ok(status);
        }
        kill(Pid::from_raw(self.pid().cast_signed()), signal).with_context(|| format!("signal {}", self.name()))?;
        if let Ok(status) = self.wait_for_exit(grace).await {
            return Ok(status);
        }
        self.kill();
        self.exit_status().with_context(|| format!("{} did not even end by SIGKILL", self.name()))
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if folder::is_test() {
            self.show_log();
        }
    }
}

/// Starts a child on a thread that lives as long as this process. The kernel sends a child its parent-death signal when
/// the THREAD that started it ends, and a test's own thread ends with the test.
fn spawn(launch: &Launch) -> Result<Child> {
    type Request = (Command, mpsc::Sender<std::io::Result<Child>>);
    static SPAWNER: LazyLock<mpsc::Sender<Request>> = LazyLock::new(|| {
        let (requests, received) = mpsc::channel::<Request>();
        std::thread::spawn(move || {
            for (mut command, answer) in received {
                // If the request was dropped, nothing receives the child; so the child is ended here.
                if let Err(mpsc::SendError(Ok(mut unclaimed))) = answer.send(command.spawn()) {
                    let _ = unclaimed.kill();
                    let _ = unclaimed.wait();
                }
            }
        });
        requests
    });
    let (answer, answered) = mpsc::channel();
    SPAWNER.send((launch.command()?, answer)).context("reach the thread that starts processes")?;
    answered
        .recv()
        .context("receive from the thread that starts processes")?
        .with_context(|| format!("start {} ({} through setpriv)", launch.name, launch.program.display()))
}

fn length(file: &Path) -> u64 {
    file.metadata().map_or(0, |metadata| metadata.len())
}

fn read_from(file: &Path, offset: u64) -> String {
    let mut bytes = Vec::new();
    let _ = File::open(file).and_then(|mut file| {
        file.seek(SeekFrom::Start(offset))?;
        file.read_to_end(&mut bytes)
    });
    String::from_utf8_lossy(&bytes).into_owned()
}
