//! The consumer's children. They include no Service, because nothing connects to the consumer, and no autoscaler,
//! because the useful number of consumers depends on partitions and lag, not on the CPU.

use super::{
    Component, ConsumerChildren, config_hash, environment, network_policy,
    pod::{self, Program},
    ports::{METRICS, METRICS_PORT},
};
use crate::pipeline::Pipeline;

const CONSUMER: Component = Component::Consumer;

pub fn build(pipeline: &Pipeline, key: &config_hash::Key) -> ConsumerChildren {
    let (identity, consumer) = (&pipeline.identity, &pipeline.consumer);
    let program = Program {
        component: CONSUMER,
        pods: &consumer.pods,
        replicas: Some(consumer.replicas),
        ports: vec![pod::port(METRICS, METRICS_PORT)],
        environment: environment::consumer(pipeline),
        config_hash: config_hash::consumer(key, pipeline),
        sleep_before_stop: None,
    };
    ConsumerChildren {
        service_account: CONSUMER.service_account(identity, &consumer.pods),
        deployment: pod::deployment(identity, program),
        disruption_budget: CONSUMER.disruption_budget(identity),
        network_policy: pipeline.network_policy.as_ref().map(|peers| network_policy::consumer(pipeline, peers)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::build::fixture;

    #[test]
    fn the_deployment_follows_the_spec() {
        let changes = json!({"consumer": {"replicas": 4, "groupId": "mailers", "logNotifications": true}});
        let spec = fixture::build(&fixture::pipeline(&changes)).consumer.deployment.spec.unwrap();
        assert_eq!(spec.replicas, Some(4));
        let container = serde_json::to_value(&spec.template.spec.unwrap().containers[0]).unwrap();
        assert_eq!(container["name"], "consumer");
        assert_eq!(container["image"], "orderflow-consumer:0.1.0");
        assert_eq!(container["ports"], json!([{"name": "metrics", "containerPort": 9464, "protocol": "TCP"}]));
        let environment = container["env"].as_array().unwrap();
        for (name, value) in [("KAFKA_GROUP_ID", "mailers"), ("LOG_NOTIFICATIONS", "true")] {
            assert!(environment.contains(&json!({"name": name, "value": value})), "{environment:?}");
        }
    }

    #[test]
    fn notifications_are_not_logged_by_default() {
        let spec = fixture::build(&fixture::pipeline(&json!({}))).consumer.deployment.spec.unwrap();
        let container = serde_json::to_value(&spec.template.spec.unwrap().containers[0]).unwrap();
        let environment = container["env"].as_array().unwrap();
        assert!(environment.contains(&json!({"name": "LOG_NOTIFICATIONS", "value": "false"})), "{environment:?}");
    }
}
