//! `dlq replay`: replays dead letters and prints a line for each.

use std::io::Write;

use orderflow_dead_letters::{COMMAND, DeadLetters, Outcome, Progress, Replay};
use orderflow_service::shutdown::CancellationToken;
use rdkafka::{Message, message::OwnedMessage};

use super::list::printable;

pub fn run(dead_letters: &DeadLetters, limit: usize, out: &mut impl Write) -> anyhow::Result<()> {
    let all = Replay { limit, through: None, deadline: COMMAND, stop: CancellationToken::new() };
    let topic = dead_letters.topic();
    let outcome = dead_letters.replay(&all, &mut |progress| {
        let place = |letter: &OwnedMessage| format!("{topic}/{}@{}", letter.partition(), letter.offset());
        match progress {
            Progress::Expired { partition, offsets } => {
                writeln!(out, "{topic}/{partition}: {offsets} offsets expired before they were replayed")?;
            }
            Progress::Replayed { letter, source } => {
                writeln!(out, "{} -> {}/{}", place(letter), printable(&source.topic), source.partition)?;
            }
            Progress::Skipped { letter, reason } => {
                writeln!(out, "{} skipped: {}", place(letter), printable(reason))?;
            }
        }
        Ok(())
    })?;
    match outcome {
        Outcome { replayed: 0, skipped: 0 } => writeln!(out, "nothing to replay in {topic}")?,
        Outcome { replayed, skipped: 0 } => writeln!(out, "{replayed} replayed")?,
        Outcome { replayed, skipped } => writeln!(out, "{replayed} replayed, {skipped} skipped")?,
    }
    Ok(())
}
