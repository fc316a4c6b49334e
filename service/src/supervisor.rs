//! Owns all long-running tasks. The supervisor restarts a task that ends or panics before the process stops, after a
//! pause. It counts restarts (`orderflow_task_restarts_total`) and names the task in `/readyz`. If a task dies more
//! than [`MOST_RESTARTS`] times within [`WINDOW`], restarts do not help: the process ends, which makes the fault
//! visible.
//!
//! A restart does not make the process unready. The state of a task's work shows in its own dependency or queue. A
//! producer whose receipts wait, for example, still stores orders.

use std::{
    any::Any,
    collections::{BTreeMap, VecDeque},
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::anyhow;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use serde::Serialize;
use tokio::sync::{Notify, oneshot};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};

use crate::Backoff;

/// The most restarts of one task within [`WINDOW`]. One more death ends the process. With the pauses in between, that
/// takes 16 to 32 s.
pub const MOST_RESTARTS: usize = 10;

/// The time in which the restarts of a task count.
pub const WINDOW: Duration = Duration::from_secs(300);

/// Pause before the first restart of a task; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Longest pause before a restart.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Restarts, counts and names the tasks of a process. Cheap to clone; clones share their state.
#[derive(Clone)]
pub struct Supervisor {
    inner: Arc<Inner>,
}

struct Inner {
    /// A token that is cancelled when the process stops. A task that ends after that is not restarted.
    stop: CancellationToken,
    tasks: Mutex<BTreeMap<String, TaskState>>,
    restarts: Family<TaskLabel, Counter>,
    /// The reason why the process has to end.
    failure: Mutex<Option<anyhow::Error>>,
    failed: Notify,
}

/// The state of a task in `/readyz`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "status", rename_all = "lowercase")]
pub enum TaskState {
    Running {
        restarts: u64,
    },
    /// The task died and restarts after a pause.
    Restarting {
        restarts: u64,
        reason: String,
    },
    Stopped {
        restarts: u64,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TaskLabel {
    task: String,
}

/// A group of tasks that are stopped together.
pub struct Stage {
    supervisor: Supervisor,
    stop: CancellationToken,
    running: TaskTracker,
}

impl Supervisor {
    /// Creates a supervisor. A task that ends after the process's `stop` was cancelled is not restarted.
    pub fn new(registry: &mut Registry, stop: CancellationToken) -> Self {
        let restarts = Family::default();
        let help = "Restarts of a long-running task that died, by its name in /readyz";
        registry.register("orderflow_task_restarts", help, restarts.clone());
        let (tasks, failure, failed) = (Mutex::default(), Mutex::default(), Notify::new());
        Self { inner: Arc::new(Inner { stop, tasks, restarts, failure, failed }) }
    }

    pub fn stage(&self) -> Stage {
        Stage { supervisor: self.clone(), stop: CancellationToken::new(), running: TaskTracker::new() }
    }

    /// Returns the state of each task by name.
    pub fn tasks(&self) -> BTreeMap<String, TaskState> {
        lock(&self.inner.tasks).clone()
    }

    /// Waits until the process has to end and returns the reason. Await it beside the process's work.
    pub async fn failed(&self) -> anyhow::Error {
        loop {
            let failed = self.inner.failed.notified();
            if let Some(failure) = self.failure() {
                return failure;
            }
            failed.await;
        }
    }

    /// Takes the reason why the process has to end, if it has to.
    pub fn failure(&self) -> Option<anyhow::Error> {
        lock(&self.inner.failure).take()
    }

    fn fail(&self, failure: anyhow::Error) {
        lock(&self.inner.failure).get_or_insert(failure);
        self.inner.failed.notify_waiters();
        self.inner.failed.notify_one();
    }

    fn set(&self, task: &str, state: TaskState) {
        lock(&self.inner.tasks).insert(task.to_owned(), state);
    }

    /// Runs `life` repeatedly until the process stops.
    async fn supervise<F: Future<Output = Ended>>(self, task: String, mut life: impl FnMut() -> F) {
        let counter = self.inner.restarts.get_or_create_owned(&TaskLabel { task: task.clone() });
        let (mut backoff, mut deaths) = (Backoff::new(FIRST_PAUSE, LONGEST_PAUSE), VecDeque::new());
        loop {
            self.set(&task, TaskState::Running { restarts: counter.get() });
            let reason = match life().await {
                Ended::Failed(error) => {
                    self.set(&task, TaskState::Stopped { restarts: counter.get() });
                    return self.fail(error);
                }
                _ if self.inner.stop.is_cancelled() => break,
                Ended::Finished => "it ended".to_owned(),
                Ended::Panicked(message) => format!("it panicked: {message}"),
            };
            let now = Instant::now();
            deaths.push_back(now);
            while deaths.front().is_some_and(|death| now.duration_since(*death) > WINDOW) {
                deaths.pop_front();
            }
            if deaths.len() > MOST_RESTARTS {
                self.set(&task, TaskState::Stopped { restarts: counter.get() });
                let (times, seconds) = (deaths.len(), WINDOW.as_secs());
                return self
                    .fail(anyhow!("the task {task} died {times} times within {seconds} s; the last time {reason}"));
            }
            if deaths.len() == 1 {
                backoff.reset();
            }
            let pause = backoff.next_delay();
            tracing::error!(task, reason, retry_ms = pause.as_millis() as u64, "task died, restarting");
            counter.inc();
            self.set(&task, TaskState::Restarting { restarts: counter.get(), reason });
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.inner.stop.cancelled() => break,
            }
        }
        self.set(&task, TaskState::Stopped { restarts: counter.get() });
    }
}

/// The end of one life of a task.
enum Ended {
    Finished,
    Panicked(String),
    /// An error that a restart would not fix.
    Failed(anyhow::Error),
}

impl Stage {
    /// Keeps a task running. `start` creates it for each life, with the token that stops it. A task returns `Err` for
    /// an error that a restart would not fix; the process then has to end.
    pub fn run<F>(&self, task: impl Into<String>, mut start: impl FnMut(CancellationToken) -> F + Send + 'static)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let stop = self.stop.clone();
        let life = move || {
            // A separate task, so that a panic becomes a result. It is aborted with its owner.
            let started = catch_unwind(AssertUnwindSafe(|| start(stop.clone())));
            let life = started.map(|life| AbortOnDropHandle::new(tokio::spawn(life)));
            async move {
                let life = match life {
                    Ok(life) => life,
                    Err(panic) => return Ended::Panicked(message_of(&*panic)),
                };
                match life.await {
                    Ok(Ok(())) => Ended::Finished,
                    Ok(Err(error)) => Ended::Failed(error),
                    Err(error) => Ended::Panicked(match error.try_into_panic() {
                        Ok(panic) => message_of(&*panic),
                        Err(error) => error.to_string(),
                    }),
                }
            }
        };
        self.running.spawn(self.supervisor.clone().supervise(task.into(), life));
    }

    /// Keeps a blocking task running, like [`run`](Self::run), on a thread of its own.
    pub fn run_blocking(
        &self,
        task: impl Into<String>,
        body: impl Fn(&CancellationToken) -> anyhow::Result<()> + Send + Sync + 'static,
    ) {
        let (task, stop, body) = (task.into(), self.stop.clone(), Arc::new(body));
        let name = task.clone();
        let life = move || {
            let (body, stop, (report, ended)) = (body.clone(), stop.clone(), oneshot::channel());
            let thread = thread::Builder::new().name(name.clone()).spawn(move || {
                let ended = match catch_unwind(AssertUnwindSafe(|| body(&stop))) {
                    Ok(Ok(())) => Ended::Finished,
                    Ok(Err(error)) => Ended::Failed(error),
                    Err(panic) => Ended::Panicked(message_of(&*panic)),
                };
                // The receiver is gone once the process has stopped waiting.
                let _ = report.send(ended);
            });
            async move {
                match thread {
                    Ok(_) => ended.await.unwrap_or_else(|_| Ended::Panicked("its thread is gone".to_owned())),
                    Err(error) => Ended::Panicked(format!("its thread cannot be started: {error}")),
                }
            }
        };
        self.running.spawn(self.supervisor.clone().supervise(task, life));
    }

    /// Signals all tasks to stop.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Waits until all tasks have ended. Returns false if that takes longer than `longest`. Call it only after the
    /// process began to stop, because tasks are restarted before that.
    pub async fn ended(&self, longest: Duration) -> bool {
        self.running.close();
        tokio::time::timeout(longest, self.running.wait()).await.is_ok()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the message of a panic.
pub fn message_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    struct Process {
        supervisor: Supervisor,
        stage: Stage,
        stop: CancellationToken,
        lives: Arc<AtomicUsize>,
    }

    impl Process {
        fn start() -> Self {
            let stop = CancellationToken::new();
            let supervisor = Supervisor::new(&mut Registry::default(), stop.clone());
            Self { stage: supervisor.stage(), supervisor, stop, lives: Arc::default() }
        }

        /// Starts a task that dies in its first `deaths` lives and then runs until it is stopped.
        fn mortal(&self, deaths: usize, die: fn() -> anyhow::Result<()>) {
            let lives = self.lives.clone();
            self.stage.run("mortal", move |stop| {
                let life = lives.fetch_add(1, Ordering::SeqCst);
                async move {
                    if life < deaths {
                        return die();
                    }
                    stop.cancelled().await;
                    Ok(())
                }
            });
        }

        async fn until(&self, is_reached: impl Fn(&TaskState) -> bool) -> TaskState {
            loop {
                match self.supervisor.tasks().get("mortal") {
                    Some(state) if is_reached(state) => return state.clone(),
                    _ => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_or_ends_is_restarted_and_counted() {
        for die in [|| panic!("out of luck"), || Ok(())] {
            let process = Process::start();
            process.mortal(2, die);
            process.until(|state| matches!(state, TaskState::Restarting { restarts: 1, .. })).await;
            process.until(|state| *state == TaskState::Running { restarts: 2 }).await;
            process.stop.cancel();
            process.stage.stop();
            assert!(process.stage.ended(Duration::from_secs(1)).await);
            assert_eq!(process.supervisor.tasks()["mortal"], TaskState::Stopped { restarts: 2 });
            assert_eq!(process.lives.load(Ordering::SeqCst), 3);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_always_dies_ends_the_process() {
        let process = Process::start();
        process.mortal(usize::MAX, || panic!("out of luck"));
        let failure = process.supervisor.failed().await.to_string();
        assert_eq!(failure, "the task mortal died 11 times within 300 s; the last time it panicked: out of luck");
        assert_eq!(process.lives.load(Ordering::SeqCst), MOST_RESTARTS + 1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_that_a_restart_would_not_fix_ends_the_process_at_once() {
        let process = Process::start();
        process.mortal(1, || Err(anyhow!("a person has to decide")));
        assert_eq!(process.supervisor.failed().await.to_string(), "a person has to decide");
        assert_eq!(process.lives.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_thread_that_panics_is_restarted() {
        let process = Process::start();
        let lives = process.lives.clone();
        process.stage.run_blocking("mortal", move |stop| {
            assert!(lives.fetch_add(1, Ordering::SeqCst) > 0, "out of luck");
            while !stop.is_cancelled() {
                thread::yield_now();
            }
            Ok(())
        });
        process.until(|state| *state == TaskState::Running { restarts: 1 }).await;
        process.stop.cancel();
        process.stage.stop();
        assert!(process.stage.ended(Duration::from_secs(10)).await);
    }
}
