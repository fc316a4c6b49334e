//! The history: what the clients sent and received, the only evidence against the system. It is written to a file at
//! once, one JSON object a line, so that it survives whatever else dies.

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

    /// Returns when the run began.
    pub fn beginning(&self) -> Time {
        self.at
    }
}

/// One request.
#[derive(Debug, Clone, Serialize)]
pub struct Try {
    /// The number of its plan.
    pub attempt: u64,
    /// True if it had the plan's key but other fields.
    pub conflicting: bool,
    /// The producer that received it.
    pub producer: String,
    pub sent: Time,
    pub answered: Time,
    pub outcome: Outcome,
}

/// The outcome of a request, as far as its client knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Status 201.
    Acked { id: Uuid, replayed: bool },
    /// Status 4xx, or a 500 that reports that nothing was stored.
    Refused { status: u16, problem: String },
    /// Certainly not stored: 503 `not-accepted`, or no connection to send it over.
    NotAccepted,
    /// Possibly stored: 503 `outcome-unknown` (which names an order), a lost connection, or no response in time.
    Unknown { id: Option<Uuid>, why: String },
}

/// The plans and requests of a run.
#[derive(Debug, Default)]
pub struct History {
    pub plans: Vec<Plan>,
    pub tries: Vec<Try>,
}

/// Records the requests of all clients.
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

    /// Returns how many requests were answered 201 so far.
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
        serde_json::to_string(&std::collections::BTreeMap::from([(what, entry)])).context("serialize the history")?;
    writeln!(out, "{line}").context("write the history")
}
