//! The producer's children. The producer serves the API, publishes the events and writes the receipts.

use std::time::Duration;

use k8s_openapi::{
    api::{
        autoscaling::v2::{
            CrossVersionObjectReference, HorizontalPodAutoscaler, HorizontalPodAutoscalerSpec, MetricSpec,
            MetricTarget, ResourceMetricSource,
        },
        core::v1::{Service, ServicePort, ServiceSpec},
    },
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};

use super::{
    Component, ProducerChildren, config_hash, environment, network_policy,
    pod::{self, Program},
    ports::{HTTP, HTTP_PORT, INTERNAL, INTERNAL_PORT, METRICS, METRICS_PORT},
};
use crate::pipeline::{Identity, Pipeline, Scale};

const PRODUCER: Component = Component::Producer;

/// The time that every node has to learn that the pod left its Service. The listener closes at the signal, when
/// `/readyz` turns unready, so that no connection may come later.
const SLEEP_BEFORE_STOP: Duration = Duration::from_secs(5);

pub fn build(pipeline: &Pipeline, key: &config_hash::Key) -> ProducerChildren {
    let (identity, producer) = (&pipeline.identity, &pipeline.producer);
    let program = Program {
        component: PRODUCER,
        pods: &producer.pods,
        replicas: match producer.scale {
            Scale::Fixed(replicas) => Some(replicas),
            // A number here would undo the autoscaler's work.
            Scale::Automatic { .. } => None,
        },
        ports: vec![pod::port(HTTP, HTTP_PORT), pod::port(INTERNAL, INTERNAL_PORT), pod::port(METRICS, METRICS_PORT)],
        environment: environment::producer(pipeline),
        config_hash: config_hash::producer(key, pipeline),
        sleep_before_stop: Some(SLEEP_BEFORE_STOP),
    };
    ProducerChildren {
        service_account: PRODUCER.service_account(identity, &producer.pods),
        service: service(identity, PRODUCER.name(identity), HTTP, HTTP_PORT),
        internal_service: service(identity, internal_name(identity), INTERNAL, INTERNAL_PORT),
        deployment: pod::deployment(identity, program),
        disruption_budget: PRODUCER.disruption_budget(identity),
        autoscaler: autoscaler(identity, producer.scale),
        network_policy: pipeline.network_policy.as_ref().map(|peers| network_policy::producer(pipeline, peers)),
    }
}

/// Returns the name of the Service of the dashboard and the whole API.
pub fn internal_name(identity: &Identity) -> String {
    format!("{}-internal", identity.name)
}

/// Builds a Service with one port, so that one can be exposed without the other. None has the admin port: the kubelet
/// and Prometheus connect to the pods directly.
fn service(identity: &Identity, name: String, port_name: &str, number: u16) -> Service {
    let port = ServicePort {
        name: Some(port_name.to_owned()),
        port: i32::from(number),
        target_port: Some(IntOrString::String(port_name.to_owned())),
        protocol: Some("TCP".to_owned()),
        ..ServicePort::default()
    };
    let spec = ServiceSpec {
        type_: Some("ClusterIP".to_owned()),
        selector: Some(PRODUCER.selector_labels(identity)),
        ports: Some(vec![port]),
        ..ServiceSpec::default()
    };
    let metadata = ObjectMeta { name: Some(name), ..PRODUCER.metadata(identity) };
    Service { metadata, spec: Some(spec), ..Service::default() }
}

fn autoscaler(identity: &Identity, scale: Scale) -> Option<HorizontalPodAutoscaler> {
    let Scale::Automatic { min, max, target_cpu_percent } = scale else { return None };
    let target = MetricTarget {
        type_: "Utilization".to_owned(),
        average_utilization: Some(target_cpu_percent),
        ..MetricTarget::default()
    };
    let cpu = MetricSpec {
        type_: "Resource".to_owned(),
        resource: Some(ResourceMetricSource { name: "cpu".to_owned(), target }),
        ..MetricSpec::default()
    };
    let spec = HorizontalPodAutoscalerSpec {
        scale_target_ref: CrossVersionObjectReference {
            api_version: Some("apps/v1".to_owned()),
            kind: "Deployment".to_owned(),
            name: PRODUCER.name(identity),
        },
        min_replicas: Some(min),
        max_replicas: max,
        metrics: Some(vec![cpu]),
        behavior: None,
    };
    Some(HorizontalPodAutoscaler {
        metadata: PRODUCER.metadata(identity),
        spec: Some(spec),
        ..HorizontalPodAutoscaler::default()
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::build::fixture;

    fn children(changes: &Value) -> ProducerChildren {
        fixture::build(&fixture::pipeline(changes)).producer
    }

    #[test]
    fn a_fixed_number_of_pods_is_set_on_the_deployment() {
        for replicas in [0, 1, 7] {
            let children = children(&json!({"producer": {"replicas": replicas}}));
            assert_eq!(children.deployment.spec.unwrap().replicas, Some(replicas));
            assert_eq!(children.autoscaler, None);
        }
    }

    #[test]
    fn autoscaling_leaves_the_number_of_pods_to_the_autoscaler() {
        let scale = json!({"min": 3, "max": 9, "targetCPUUtilizationPercentage": 55});
        let children = children(&json!({"producer": {"replicas": null, "autoscaling": scale}}));
        assert_eq!(children.deployment.spec.unwrap().replicas, None);
        let spec = serde_json::to_value(children.autoscaler.unwrap().spec).unwrap();
        let cpu = json!({"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 55}});
        let expected = json!({
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "shop-producer"},
            "minReplicas": 3,
            "maxReplicas": 9,
            "metrics": [{"type": "Resource", "resource": cpu}],
        });
        assert_eq!(spec, expected);
    }

    #[test]
    fn each_service_has_one_port() {
        let children = children(&json!({}));
        let summary = |service: &Service| {
            let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref()).unwrap();
            assert_eq!(ports.len(), 1);
            (service.metadata.name.clone().unwrap(), ports[0].port, ports[0].name.clone().unwrap())
        };
        assert_eq!(summary(&children.service), ("shop-producer".to_owned(), 8080, "http".to_owned()));
        assert_eq!(summary(&children.internal_service), ("shop-internal".to_owned(), 8081, "internal".to_owned()));
        let pod = children.deployment.spec.unwrap().template.spec.unwrap();
        let container_ports: Vec<_> =
            pod.containers[0].ports.iter().flatten().map(|port| (port.name.as_deref(), port.container_port)).collect();
        assert_eq!(container_ports, [(Some("http"), 8080), (Some("internal"), 8081), (Some("metrics"), 9464)]);
    }

    #[test]
    fn the_container_follows_the_spec() {
        let producer = json!({"image": "registry/producer:2", "imagePullPolicy": "Always",
            "resources": {"requests": {"cpu": "2"}, "limits": {"memory": "1Gi"}}});
        let pod = children(&json!({"producer": producer})).deployment.spec.unwrap().template.spec.unwrap();
        let container = serde_json::to_value(&pod.containers[0]).unwrap();
        assert_eq!(container["name"], "producer");
        assert_eq!(container["image"], "registry/producer:2");
        assert_eq!(container["imagePullPolicy"], "Always");
        assert_eq!(container["resources"], json!({"requests": {"cpu": "2"}, "limits": {"memory": "1Gi"}}));
    }
}
