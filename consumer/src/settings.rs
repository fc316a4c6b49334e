//! The settings of the consumer. Each has a flag, an environment variable, a default and a help text.

use clap::{ArgAction, Args};
use orderflow_service::{admin, kafka, secret::Secrets, telemetry, traces};

/// The settings of a consumer.
#[derive(Args, Clone, Debug)]
pub struct Settings {
    /// Group whose members share the partitions of the events' topic
    #[arg(long, env = "KAFKA_GROUP_ID", default_value = "order-consumer-group", help_heading = "Kafka")]
    pub kafka_group_id: String,

    /// Name of this process, in the name of its transactions; absent: <HOSTNAME>-<PID>. With a stable name, a restarted
    /// process settles its predecessor's open transaction at once, instead of after 10 s. Two live processes must not
    /// share a name: they would fence each other forever
    #[arg(long, env = "INSTANCE", help_heading = "Kafka")]
    pub instance: Option<String>,

    /// Log the ids of each notified order, after the commit. The user, the product and the total are in no log
    #[arg(
        long,
        env = "LOG_NOTIFICATIONS",
        default_value_t = false,
        action = ArgAction::Set,
        value_name = "BOOL",
        help_heading = "Logs"
    )]
    pub log_notifications: bool,

    #[command(flatten)]
    pub kafka: kafka::Settings,

    #[command(flatten)]
    pub admin: admin::Settings,

    #[command(flatten)]
    pub telemetry: telemetry::Settings,

    #[command(flatten)]
    pub traces: traces::Settings,
}

impl Secrets for Settings {
    fn read_secrets(&mut self) -> Result<(), String> {
        self.kafka.read_secrets()
    }
}

impl Settings {
    /// Returns the transactional id, which at most one process may use; see [`Settings::instance`].
    pub fn transactional_id(&self) -> String {
        let instance = self.instance.clone().unwrap_or_else(|| {
            let host = nix::unistd::gethostname().unwrap_or_else(|_| "localhost".into());
            format!("{}-{}", host.to_string_lossy(), std::process::id())
        });
        format!("{}.{instance}", self.kafka_group_id)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        settings: Settings,
    }

    #[test]
    fn an_instance_is_part_of_the_transactional_id() {
        let arguments = ["orderflow-consumer", "--kafka-group-id", "g", "--instance", "pod-1"];
        let Cli { settings } = Cli::parse_from(arguments);
        assert_eq!(settings.transactional_id(), "g.pod-1");
        let other = Settings { instance: None, ..settings };
        assert!(other.transactional_id().ends_with(&format!("-{}", std::process::id())));
    }
}
