//! What a person wants of one part of `up`, and how far it is: written by the controls and by the supervisor, each its own
//! half, and read by both.

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// One part that can be switched off and on. The supervisor acts on it; whoever switches does not wait.
#[derive(Debug)]
pub(super) struct Control {
    /// What the controls call it.
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    /// What stopping it does.
    pub(super) note: &'static str,
    condition: watch::Sender<Condition>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Condition {
    wanted: bool,
    phase: Phase,
}

/// How far the supervisor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Up,
    /// On its way to what is wanted, or about to be.
    Between,
    /// Ended, because a person wanted it.
    Down,
}

/// What is told of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    Running,
    Stopping,
    Stopped,
    Starting,
}

impl Control {
    /// Of a part that runs.
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

    /// Waits until the part is wanted, or is not.
    pub(super) async fn until(&self, wanted: bool) {
        // This value is the sender, so there is always one.
        let _ = self.condition.subscribe().wait_for(|condition| condition.wanted == wanted).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_says_what_it_is_on_its_way_to() {
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
    fn one_that_died_is_starting() {
        let control = Control::new("s3", "S3", "");
        control.reached(Phase::Between);
        assert_eq!(control.state(), State::Starting);
    }
}
