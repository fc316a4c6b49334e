//! What the clients did and what they were told: the only witness against the system. Written to a file as it happens, one
//! JSON object a line, so that it is there whatever else dies.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::Path,
    sync::{Mutex, PoisonError},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use serde::Serialize;
use uuid::Uuid;

use crate::workload::Plan;

/// Microseconds since 1970, by a clock that never goes back during a run.
pub type Time = i64;

#[derive(Debug, Clone, Copy)]
pub struct Clock {
    started: Instant,
    at: Time,
}

impl Clock {
    pub fn start() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { started: Instant::now(), at: since.as_micros() as Time }
    }

    pub fn now(&self) -> Time {
        self.at + self.started.elapsed().as_micros() as Time
    }

    /// When the run began.
    pub fn beginning(&self) -> Time {
        self.at
    }
}

/// One request.
#[derive(Debug, Clone, Serialize)]
pub struct Try {
    /// Number of the plan that it belongs to.
    pub attempt: u64,
    /// Whether it had the plan's key and other fields than the plan says.
    pub conflicting: bool,
    /// Which producer was asked.
    pub producer: String,
    pub sent: Time,
    pub answered: Time,
    pub outcome: Outcome,
}

/// How a request ended, as far as its client knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// 201.
    Acked { id: Uuid, replayed: bool },
    /// 4xx, or a 500 that says that nothing was stored.
    Refused { status: u16, problem: String },
    /// Definite: 503 `not-accepted`, or there was no connection to send it over.
    NotAccepted,
    /// 503 `outcome-unknown` (which names an order), a lost connection, or no answer in time.
    Unknown { id: Option<Uuid>, why: String },
}

/// All that was done.
#[derive(Debug, Default)]
pub struct History {
    pub plans: Vec<Plan>,
    pub tries: Vec<Try>,
}

/// Takes what happens from all clients at once.
#[derive(Debug)]
pub struct Recorder {
    inner: Mutex<(History, BufWriter<File>)>,
}

impl Recorder {
    pub fn create(file: &Path) -> Result<Self> {
        let out = File::create(file).with_context(|| format!("create {}", file.display()))?;
        Ok(Self { inner: Mutex::new((History::default(), BufWriter::new(out))) })
    }

    pub fn plan(&self, plan: Plan) -> Result<()> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        write(&mut inner.1, "plan", &plan)?;
        inner.0.plans.push(plan);
        Ok(())
    }

    pub fn tried(&self, tried: Try) -> Result<()> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        write(&mut inner.1, "try", &tried)?;
        inner.0.tries.push(tried);
        Ok(())
    }

    /// Requests answered 201 so far.
    pub fn acked(&self) -> usize {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.0.tries.iter().filter(|tried| matches!(tried.outcome, Outcome::Acked { .. })).count()
    }

    /// Ends the file; every client must have ended before.
    pub fn finish(self) -> Result<History> {
        let (history, mut out) = self.inner.into_inner().unwrap_or_else(PoisonError::into_inner);
        out.flush().context("write the history")?;
        Ok(history)
    }
}

fn write(out: &mut impl Write, what: &str, entry: &impl Serialize) -> Result<()> {
    let line =
        serde_json::to_string(&std::collections::BTreeMap::from([(what, entry)])).context("print the history")?;
    writeln!(out, "{line}").context("write the history")
}
