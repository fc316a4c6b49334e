//! The operator with many resources on a real API server: its costs during their creation and at rest, and the time
//! until it acts on a change.

mod audit;
mod world;

use std::{path::Path, time::Duration};

use anyhow::{Result, ensure};
use orderflow_testbed::{Operator, Service, folder, http};
use tokio::time::{Instant, sleep};

use crate::{backing::PATIENCE, report::Report, series::short, usage};
use audit::Audit;
use world::{RESOURCES, World};

const CHANGES: usize = 100;

/// Values of `PROBE_SECONDS`: the default, and one longer than the whole measurement.
const EACH_MINUTE: u32 = 60;
const EACH_HOUR: u32 = 3600;

/// The time at rest: each resource is probed once within it.
const QUIET: Duration = Duration::from_secs(60);
/// The time without a write after which the operator has settled.
const SETTLED: Duration = Duration::from_secs(3);
/// The longest wait until all resources are ready.
const MAKING: Duration = Duration::from_secs(900);
/// The pause between two reads of the operator's metrics, each of which costs it some CPU, too.
const TICK: Duration = Duration::from_millis(250);

/// Starts all that it needs below `folder`, which keeps the logs.
pub async fn measure(folder: &Path, report: &mut Report) -> Result<()> {
    folder::create(folder)?;
    let measured = with_services(folder, report).await;
    let _ = std::fs::remove_dir_all(folder.join("data"));
    measured
}

async fn with_services(folder: &Path, report: &mut Report) -> Result<()> {
    report.section(
        "The operator with 200 resources",
        "In one namespace of a real API server, with etcd and controllers on the same machine. Each resource has a database of its own, gets \
         a bucket and topics of its own, and becomes ready; it has no pods (`replicas: 0`), since there is no node. A reconcile after a change \
         also queries database, bucket and brokers. CPU and memory are the operator's alone; requests are those that the API server's audit \
         log has of it. `after`, CPU and requests count from when the first resource was made, or the operator was started.",
    );
    let world = World::start(folder).await?;
    let mut audit = Audit::new(world.kubernetes.audit_log());
    let (mut work, mut rest) = (Vec::new(), Vec::new());

    let operator = world.operator(EACH_MINUTE).await?;
    rest.push(at_rest("no resource", &operator, &mut audit).await?);
    let cpu = usage::cpu(operator.pid())?;
    let mut meter = Meter::new(&operator, &mut audit, Instant::now(), cpu);
    let reconciled = meter.until("created: each was reconciled once", |reconciled, _| reconciled == RESOURCES);
    let ((), reconciled) = tokio::try_join!(world.create_resources(), reconciled)?;
    work.push(reconciled);
    work.push(meter.until("created: all are ready", |_, ready| ready == RESOURCES).await?);
    world.expect_all_observed().await?;
    rest.push(at_rest("200 resources, each probed once a minute (the default)", &operator, &mut audit).await?);

    let (mut acted, mut observed) = (Vec::new(), Vec::new());
    for number in 0..CHANGES {
        let [acted_after, observed_after] = world.change(number).await?;
        acted.push(acted_after);
        observed.push(observed_after);
    }

    operator.stop().await?;
    audit.take()?;
    let began = Instant::now();
    let operator = world.operator(EACH_HOUR).await?;
    let mut meter = Meter::new(&operator, &mut audit, began, 0.0);
    work.push(meter.until("operator started again: all are ready", |_, ready| ready == RESOURCES).await?);
    rest.push(at_rest("200 resources, none probed in that time", &operator, &mut audit).await?);

    report.head(&["", "after", "CPU, s", "memory at most, MiB", "requests"]);
    for row in work {
        report.row(row);
    }
    report.head(&[
        "left alone for 60 s",
        "CPU, % of a core (goal: 0.5)",
        "memory, MiB (goal: 25)",
        "requests/s",
        "of them for its Lease",
    ]);
    for row in rest {
        report.row(row);
    }
    report.head(&["a resource's image is changed, 100 times, one after the other", "p50", "p99"]);
    for (what, mut times) in [("its Deployment has it", acted), ("its status has the new generation", observed)] {
        times.sort_unstable();
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
        let [p50, p99] = [0.5, 0.99].map(|share| format!("{} ms", short(at(share).as_secs_f64() * 1e3)));
        report.row([what.to_owned(), p50, p99]);
    }
    Ok(())
}

/// Measures the operator at rest, and returns a row of the report.
async fn at_rest(what: &str, operator: &Operator, audit: &mut Audit) -> Result<[String; 5]> {
    settled(audit).await?;
    audit.take()?;
    let before = usage::cpu(operator.pid())?;
    sleep(QUIET).await;
    let share = (usage::cpu(operator.pid())? - before) / QUIET.as_secs_f64() * 100.0;
    let requests = audit.take()?;
    let for_lease = requests.iter().filter(|request| request.is_for_lease()).count();
    let per_second = |count: usize| short(count as f64 / QUIET.as_secs_f64());
    let memory = short(usage::resident(operator.pid())?);
    Ok([what.to_owned(), short(share), memory, per_second(requests.len()), per_second(for_lease)])
}

/// Waits until the operator has nothing left to write.
async fn settled(audit: &mut Audit) -> Result<()> {
    let began = Instant::now();
    loop {
        audit.take()?;
        sleep(SETTLED).await;
        let writes = audit.take()?.iter().filter(|request| request.is_write()).count();
        if writes == 0 {
            return Ok(());
        }
        ensure!(began.elapsed() < PATIENCE, "the operator still writes: {writes} times within {SETTLED:?}");
    }
}

/// The costs of a step to the operator.
struct Meter<'a> {
    operator: &'a Operator,
    /// The audit log; earlier requests were taken before.
    audit: &'a mut Audit,
    began: Instant,
    /// Seconds of CPU that it had used before.
    cpu: f64,
    /// The most memory that was seen, in MiB.
    memory: f64,
    requests: usize,
}

impl<'a> Meter<'a> {
    fn new(operator: &'a Operator, audit: &'a mut Audit, began: Instant, cpu: f64) -> Self {
        Self { operator, audit, began, cpu, memory: 0.0, requests: 0 }
    }

    /// Waits until enough resources were reconciled and are ready. Returns a row with the costs since the beginning.
    async fn until(&mut self, what: &str, enough: impl Fn(usize, usize) -> bool) -> Result<[String; 5]> {
        loop {
            let (reconciled, ready) = states(self.operator).await?;
            self.memory = self.memory.max(usage::resident(self.operator.pid())?);
            if enough(reconciled, ready) {
                break;
            }
            ensure!(self.began.elapsed() < MAKING, "{reconciled} of {RESOURCES} were reconciled, {ready} are ready");
            sleep(TICK).await;
        }
        let after = format!("{} s", short(self.began.elapsed().as_secs_f64()));
        let cpu = short(usage::cpu(self.operator.pid())? - self.cpu);
        self.requests += self.audit.take()?.len();
        Ok([what.to_owned(), after, cpu, short(self.memory), self.requests.to_string()])
    }
}

/// Returns for how many resources the operator reports readiness, which it does after each reconcile, and how many are
/// ready.
async fn states(operator: &Operator) -> Result<(usize, usize)> {
    let metrics = http::client().get(format!("{}/metrics", operator.admin_url()?)).send().await?.text().await?;
    let states: Vec<&str> = metrics.lines().filter(|line| line.starts_with("orderflow_operator_ready{")).collect();
    Ok((states.len(), states.iter().filter(|state| state.ends_with(" 1")).count()))
}
