//! The control of one part of `up`: what a person wants of it, written by the controls, and its phase, written by the
//! supervisor. Both read both.

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// The control of one part. The supervisor acts on it; a request to switch does not wait.
#[derive(Debug)]
pub(super) struct Control {
    /// The part's name in the API of the controls.
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    /// The effect of stopping the part.
    pub(super) note: &'static str,
    condition: watch::Sender<Condition>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Condition {
    wanted: bool,
    phase: Phase,
}

/// The supervisor's progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Up,
    /// The supervisor is about to start or stop the part, or is doing so.
    Between,
    /// The part has stopped, because a person wanted that.
    Down,
}

/// The state of a part, as the API of the controls reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    Running,
    Stopping,
    Stopped,
    Starting,
}

impl Control {
    /// Creates the control of a part that runs.
    pub(super) fn new(name: &'static str, title: &'static str, note: &'static str) -> Self {
        let condition = watch::Sender::new(Condition { wanted: true, phase: Phase::Up });
        Self { name, title, note, condition }
    }

    pub(super) fn state(&self) -> State {
        let Condition { wanted, phase } = *self.condition.borrow();
        match (wanted, phase) {
            (true, Phase::Up) => State::Running,
            (true, Phase::Between | Phase::Down) => State::Starting,
            (false, Phase::Down) => State::Stopped,
            (false, Phase::Up | Phase::Between) => State::Stopping,
        }
    }

    pub(super) fn set(&self, wanted: bool) {
        self.condition.send_modify(|condition| condition.wanted = wanted);
    }

    pub(super) fn reached(&self, phase: Phase) {
        self.condition.send_modify(|condition| condition.phase = phase);
    }

    pub(super) fn is_wanted(&self) -> bool {
        self.condition.borrow().wanted
    }

    /// Waits until the part is wanted, or no longer is.
    pub(super) async fn until(&self, wanted: bool) {
        // The sender is this value, so it exists.
        let _ = self.condition.subscribe().wait_for(|condition| condition.wanted == wanted).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_names_the_wanted_change_until_it_is_reached() {
        let control = Control::new("s3", "S3", "");
        assert_eq!(control.state(), State::Running);
        control.set(false);
        assert_eq!(control.state(), State::Stopping);
        control.reached(Phase::Down);
        assert_eq!(control.state(), State::Stopped);
        control.set(true);
        assert_eq!(control.state(), State::Starting);
        control.reached(Phase::Up);
        assert_eq!(control.state(), State::Running);
    }

    #[test]
    fn a_part_that_died_is_starting() {
        let control = Control::new("s3", "S3", "");
        control.reached(Phase::Between);
        assert_eq!(control.state(), State::Starting);
    }
}
