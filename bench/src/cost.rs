//! The CPU per order of each part.

use anyhow::Result;
use orderflow_testbed::{Postgres, Service};

use crate::{backing::Backing, series::Series, usage};

/// The parts, in the order of [`Processes`].
pub const PARTS: [&str; 5] = ["producer", "Postgres", "Kafka", "consumer", "S3"];

/// The process ids of each part.
pub struct Processes([Vec<u32>; 5]);

/// The seconds of CPU that each part has used so far.
pub struct Used([f64; 5]);

impl Processes {
    pub fn new(backing: &Backing, shards: &[Postgres], producers: Vec<u32>, consumers: Vec<u32>) -> Self {
        let shards = shards.iter().map(Service::pid).collect();
        Self([producers, shards, vec![backing.kafka.pid()], consumers, vec![backing.s3.pid()]])
    }

    pub fn used(&self) -> Result<Used> {
        let mut used = [0.0; 5];
        for (used, processes) in used.iter_mut().zip(&self.0) {
            *used = processes.iter().map(|process| usage::cpu(*process)).sum::<Result<f64>>()?;
        }
        Ok(Used(used))
    }

    /// Adds the CPU used since `before`, in µs per order, to the figures of each part.
    pub fn add_since(&self, before: &Used, orders: f64, figures: &mut [Series; 5]) -> Result<()> {
        for (series, (before, after)) in figures.iter_mut().zip(before.0.iter().zip(self.used()?.0)) {
            series.push((after - before) * 1e6 / orders);
        }
        Ok(())
    }
}
