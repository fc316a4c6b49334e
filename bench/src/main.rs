//! `orderflow-bench`: measures each part of OrderFlow beside its yardstick, on real services, in turns, several times.
//! Compare figures only within one run on one machine, because machines and their disks differ.

mod backing;
mod cost;
mod drain;
mod footprint;
mod growth;
mod handler;
mod hostile;
mod latency;
mod linear;
mod machine;
mod operator;
mod overload;
mod pgbench;
mod plot;
mod post;
mod reads;
mod report;
mod series;
mod soak;
mod traces;
mod usage;
mod writer;

use std::{collections::BTreeSet, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use orderflow_testbed::folder;

use backing::{Backing, Disk};
use report::Report;

/// Measures each part of OrderFlow beside its yardstick, in turns, and writes a report.
///
/// Starts all that it needs, on loopback. Release builds of the programs must be beside it.
#[derive(Debug, Parser)]
#[command(name = "orderflow-bench", version, max_term_width = 120)]
struct Settings {
    /// Number of rounds of each comparison
    #[arg(long, env = "ROUNDS", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Length of one measurement, in seconds, after a second of warm-up
    #[arg(long, env = "SECONDS", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Parts to measure; absent: all but `soak`
    #[arg(long, env = "ONLY", value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// File of the report, with its plots beside it; absent: the terminal only
    #[arg(long, env = "REPORT")]
    report: Option<PathBuf>,
    /// Folder for data and logs; absent: one below the temp folder. Data is removed at the end
    #[arg(long, env = "FOLDER")]
    folder: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Part {
    /// Memory, CPU when idle, time to start
    Footprint,
    /// POST beside pgbench, acceptance alone, on the disk as it is
    Post,
    /// POST beside pgbench on a disk that is 3 ms slower
    PostSlow,
    /// The writer's statement beside COPY
    Writer,
    /// POST while all parts keep up
    Whole,
    /// CPU of the producer beside a bare handler
    Handler,
    /// CPU of the producer with every tenth order traced, beside none
    Traces,
    /// Latency from the 201 to the notification
    Latency,
    /// Three times more orders than can be accepted
    Overload,
    /// An honest client beside 4,096 hostile connections
    Hostile,
    /// Relay, consumer and receipts on a backlog
    Drain,
    /// GET beside pgbench
    Reads,
    /// CPU per order as the load grows
    Linear,
    /// More shards, more producers
    Growth,
    /// The operator with 200 resources
    Operator,
    /// Ten minutes at 1,000 orders/s; runs only if named
    Soak,
}

impl Part {
    fn is_with_kafka(self) -> bool {
        !matches!(
            self,
            Self::Footprint | Self::Post | Self::PostSlow | Self::Writer | Self::Hostile | Self::Reads | Self::Operator
        )
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The yardstick of `handler`, as a process of its own
    #[command(hide = true)]
    Handler { port: u16 },
}

/// The length and number of measurements.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    pub rounds: u32,
    pub length: Duration,
}

impl Effort {
    /// Returns a shorter effort, for parts that compare many of our own figures.
    fn shorter(self) -> Self {
        Self { rounds: self.rounds.div_ceil(2), ..self }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let settings = Settings::parse();
    let result = match settings.command {
        Some(Command::Handler { port }) => handler::serve(port).await,
        None => run(settings).await,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("orderflow-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(settings: Settings) -> Result<()> {
    let folder =
        settings.folder.unwrap_or_else(|| std::env::temp_dir().join(format!("orderflow-bench-{}", std::process::id())));
    folder::create(&folder)?;
    eprintln!("in {}", folder.display());
    let parts: BTreeSet<Part> = if settings.only.is_empty() {
        Part::value_variants().iter().copied().filter(|part| *part != Part::Soak).collect()
    } else {
        settings.only.into_iter().collect()
    };
    let effort = Effort { rounds: settings.rounds, length: Duration::from_secs(settings.seconds) };
    let mut report = Report::new(machine::describe(effort)?);
    // A failure of one part must not lose the others' results.
    let mut failed = Vec::new();
    let mut note = |part: Part, measured: Result<()>| {
        if let Err(error) = measured {
            eprintln!("{part:?}: {error:#}");
            failed.push(part);
        }
    };

    // The other parts start their own services.
    let on_shared: Vec<Part> =
        parts.iter().copied().filter(|part| !matches!(part, Part::PostSlow | Part::Operator)).collect();
    if !on_shared.is_empty() {
        let as_it_is = folder.join("as-it-is");
        let backing = Backing::start(&as_it_is, Disk::AsItIs).await.context("start the backing services")?;
        let mut warm = false;
        for part in on_shared {
            eprintln!("{part:?}");
            if part.is_with_kafka() && !warm {
                let warmed = post::warm(&backing).await.context("warm Kafka up");
                warm = warmed.is_ok();
                if !warm {
                    note(part, warmed);
                    continue;
                }
            }
            let measured = match part {
                Part::Post => post::acceptance(&backing, effort, &mut report).await,
                Part::Writer => writer::compare(&backing, effort, &mut report).await,
                Part::Whole => post::whole(&backing, effort, &mut report).await,
                Part::Handler => handler::compare(&backing, effort, &mut report).await,
                Part::Traces => traces::compare(&backing, effort, &mut report).await,
                Part::Latency => latency::measure(&backing, effort, &mut report).await,
                Part::Overload => overload::measure(&backing, effort, &mut report).await,
                Part::Hostile => hostile::measure(&backing, effort, &mut report).await,
                Part::Drain => drain::measure(&backing, effort, &mut report).await,
                Part::Reads => reads::compare(&backing, effort, &mut report).await,
                Part::Linear => linear::measure(&backing, effort.shorter(), &mut report).await,
                Part::Growth => growth::measure(&backing, effort.shorter(), &mut report).await,
                Part::Footprint => footprint::measure(&backing, &mut report).await,
                Part::Soak => soak::measure(&backing, &mut report).await,
                Part::PostSlow | Part::Operator => unreachable!("not on shared services"),
            };
            note(part, measured);
        }
        drop(backing);
        let _ = std::fs::remove_dir_all(as_it_is.join("data"));
    }
    if parts.contains(&Part::PostSlow) {
        eprintln!("{:?}", Part::PostSlow);
        let slow = folder.join("slow");
        let measure = async |report: &mut Report| {
            let backing =
                Backing::start(&slow, Disk::Slow).await.context("start the backing services on a slow disk")?;
            post::acceptance(&backing, effort, report).await
        };
        note(Part::PostSlow, measure(&mut report).await);
        let _ = std::fs::remove_dir_all(slow.join("data"));
    }
    if parts.contains(&Part::Operator) {
        eprintln!("{:?}", Part::Operator);
        note(Part::Operator, operator::measure(&folder.join("operator"), &mut report).await);
    }
    report.publish(settings.report.as_deref())?;
    ensure!(failed.is_empty(), "parts that failed: {failed:?}");
    Ok(())
}
