//! The parts that the pods of both programs share: rollout, spreading, security, probes and shutdown.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment},
        core::v1::{
            Capabilities, Container, ContainerPort, HTTPGetAction, Lifecycle, LifecycleHandler, PodSecurityContext,
            PodSpec, PodTemplateSpec, Probe, ResourceRequirements, SeccompProfile, SecurityContext, SleepAction,
            TopologySpreadConstraint,
        },
    },
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};
use orderflow_service::shutdown;

use super::{Component, environment::Environment, ports::METRICS};
use crate::pipeline::{Identity, Pods};

/// The annotation with the hash of the values that a pod gets from Secrets; see [`super::config_hash`].
const CONFIG_HASH: &str = "orderflow.dev/config-hash";

/// User and group of the images (`USER 65532:65532`).
const NONROOT: i64 = 65532;

/// The time from the end of a process's own shutdown deadline to its kill: logs are flushed and the container ends.
const MARGIN: Duration = Duration::from_secs(5);

/// The differences between the Deployments of the two programs.
pub struct Program<'a> {
    pub component: Component,
    pub pods: &'a Pods,
    /// The number of pods, unless an autoscaler sets it.
    pub replicas: Option<i32>,
    pub ports: Vec<ContainerPort>,
    pub environment: Environment,
    pub config_hash: String,
    /// The time between the removal of a pod from its Service and the signal to its process.
    pub sleep_before_stop: Option<Duration>,
}

pub fn deployment(identity: &Identity, program: Program<'_>) -> Deployment {
    let component = program.component;
    let spec = DeploymentSpec {
        replicas: program.replicas,
        selector: component.selector(identity),
        strategy: Some(strategy()),
        // A pod that is ready only for a moment must not cause the removal of the next old pod.
        min_ready_seconds: Some(5),
        progress_deadline_seconds: Some(600),
        revision_history_limit: Some(3),
        template: template(identity, program),
        ..DeploymentSpec::default()
    };
    Deployment { metadata: component.metadata(identity), spec: Some(spec), ..Deployment::default() }
}

pub fn port(name: &str, number: u16) -> ContainerPort {
    ContainerPort {
        name: Some(name.to_owned()),
        container_port: i32::from(number),
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    }
}

/// Builds a strategy that stops no old pod before a new one is ready: an update that cannot start leaves all pods
/// running. It starts one pod at a time, because each consumer that joins or leaves makes its group rebalance.
fn strategy() -> DeploymentStrategy {
    let rolling_update =
        RollingUpdateDeployment { max_unavailable: Some(IntOrString::Int(0)), max_surge: Some(IntOrString::Int(1)) };
    DeploymentStrategy { type_: Some("RollingUpdate".to_owned()), rolling_update: Some(rolling_update) }
}

fn template(identity: &Identity, program: Program<'_>) -> PodTemplateSpec {
    let Program { component, pods, replicas: _, ports, environment, config_hash, sleep_before_stop } = program;
    let Environment { variables, volumes, mounts } = environment;
    let grace = sleep_before_stop.unwrap_or_default() + shutdown::DEADLINE + MARGIN;
    let container = Container {
        name: component.as_str().to_owned(),
        image: Some(pods.image.clone()),
        image_pull_policy: Some(pods.image_pull_policy.to_owned()),
        ports: Some(ports),
        env: Some(variables),
        resources: Some(pods.resources.clone()).filter(|resources| *resources != ResourceRequirements::default()),
        volume_mounts: (!mounts.is_empty()).then_some(mounts),
        startup_probe: Some(probe("/livez", Times { period: 1, timeout: 1, failures: 60 })),
        liveness_probe: Some(probe("/livez", Times { period: 10, timeout: 5, failures: 3 })),
        readiness_probe: Some(probe("/readyz", Times { period: 5, timeout: 3, failures: 2 })),
        lifecycle: sleep_before_stop.map(sleep),
        security_context: Some(container_security()),
        ..Container::default()
    };
    let spec = PodSpec {
        service_account_name: Some(component.name(identity)),
        // Neither program uses the API server.
        automount_service_account_token: Some(false),
        // Service links would add variables for each Service of the namespace, and one named `kafka` or `pg-shard1`
        // would override ours.
        enable_service_links: Some(false),
        security_context: Some(pod_security()),
        topology_spread_constraints: Some(spread(component, identity)),
        termination_grace_period_seconds: Some(grace.as_secs() as i64),
        containers: vec![container],
        volumes: (!volumes.is_empty()).then_some(volumes),
        ..PodSpec::default()
    };
    let metadata = ObjectMeta {
        labels: Some(component.labels(identity)),
        annotations: Some(BTreeMap::from([(CONFIG_HASH.to_owned(), config_hash)])),
        ..ObjectMeta::default()
    };
    PodTemplateSpec { metadata: Some(metadata), spec: Some(spec) }
}

/// The timing of a probe: seconds, and consecutive failures.
struct Times {
    period: i32,
    timeout: i32,
    failures: i32,
}

/// Builds a probe. `/livez` succeeds while the process runs, whatever else is down, because a restart repairs no
/// database.
fn probe(path: &str, Times { period, timeout, failures }: Times) -> Probe {
    let get = HTTPGetAction {
        path: Some(path.to_owned()),
        port: IntOrString::String(METRICS.to_owned()),
        ..HTTPGetAction::default()
    };
    Probe {
        http_get: Some(get),
        period_seconds: Some(period),
        timeout_seconds: Some(timeout),
        failure_threshold: Some(failures),
        ..Probe::default()
    }
}

/// Builds a hook with the kubelet's own sleep, because the images have no shell.
fn sleep(duration: Duration) -> Lifecycle {
    let action = SleepAction { seconds: duration.as_secs() as i64 };
    let handler = LifecycleHandler { sleep: Some(action), ..LifecycleHandler::default() };
    Lifecycle { pre_stop: Some(handler), ..Lifecycle::default() }
}

/// Builds the pod's half of Pod Security's `restricted` profile; [`container_security`] is the other.
fn pod_security() -> PodSecurityContext {
    PodSecurityContext {
        run_as_non_root: Some(true),
        run_as_user: Some(NONROOT),
        run_as_group: Some(NONROOT),
        // Files from Secrets and a cloud's tokens belong to this group.
        fs_group: Some(NONROOT),
        seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }),
        ..PodSecurityContext::default()
    }
}

fn container_security() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
        read_only_root_filesystem: Some(true),
        ..SecurityContext::default()
    }
}

/// Spreads the pods over nodes and zones where possible: two pods on one node are better than one pod. Counts per
/// ReplicaSet, because the old pods of an update are about to end.
fn spread(component: Component, identity: &Identity) -> Vec<TopologySpreadConstraint> {
    let over = |key: &str| TopologySpreadConstraint {
        topology_key: key.to_owned(),
        max_skew: 1,
        when_unsatisfiable: "ScheduleAnyway".to_owned(),
        label_selector: Some(component.selector(identity)),
        match_label_keys: Some(vec!["pod-template-hash".to_owned()]),
        ..TopologySpreadConstraint::default()
    };
    vec![over("kubernetes.io/hostname"), over("topology.kubernetes.io/zone")]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::build::fixture;

    fn both() -> [(Component, Deployment); 2] {
        let children = fixture::build(&fixture::everything());
        [(Component::Producer, children.producer.deployment), (Component::Consumer, children.consumer.deployment)]
    }

    fn pod_of(deployment: &Deployment) -> PodSpec {
        deployment.spec.clone().unwrap().template.spec.unwrap()
    }

    #[test]
    fn both_pods_satisfy_the_restricted_profile() {
        for (component, deployment) in both() {
            let pod = pod_of(&deployment);
            let security = serde_json::to_value(&pod.security_context).unwrap();
            let expected = json!({
                "runAsNonRoot": true,
                "runAsUser": 65532,
                "runAsGroup": 65532,
                "fsGroup": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            });
            assert_eq!(security, expected, "{component:?}");
            assert_eq!(pod.containers.len(), 1);
            assert_eq!(
                (&pod.init_containers, &pod.host_network, &pod.host_pid, &pod.host_ipc),
                (&None, &None, &None, &None)
            );
            let security = serde_json::to_value(&pod.containers[0].security_context).unwrap();
            let expected = json!({
                "allowPrivilegeEscalation": false,
                "capabilities": {"drop": ["ALL"]},
                "readOnlyRootFilesystem": true,
            });
            assert_eq!(security, expected, "{component:?}");
            let volumes = pod.volumes.unwrap();
            assert!(volumes.iter().all(|volume| volume.secret.is_some()), "{volumes:?}");
        }
    }

    #[test]
    fn no_pod_gets_a_token_or_the_variables_of_services() {
        for (component, deployment) in both() {
            let pod = pod_of(&deployment);
            assert_eq!(pod.automount_service_account_token, Some(false));
            assert_eq!(pod.enable_service_links, Some(false));
            assert_eq!(pod.service_account_name.as_deref(), Some(format!("shop-{}", component.as_str()).as_str()));
        }
    }

    #[test]
    fn the_grace_period_exceeds_the_sleep_and_the_shutdown_deadline() {
        for (component, deployment) in both() {
            let pod = pod_of(&deployment);
            let before = pod.containers[0].lifecycle.as_ref().and_then(|hooks| hooks.pre_stop.as_ref()?.sleep.as_ref());
            let slept = before.map_or(0, |sleep| sleep.seconds);
            assert_eq!(slept > 0, component == Component::Producer, "only the producer has clients to wait for");
            let needed = slept + shutdown::DEADLINE.as_secs() as i64;
            assert!(pod.termination_grace_period_seconds.unwrap() > needed, "{component:?}");
        }
    }

    #[test]
    fn every_probe_uses_a_port_of_the_container() {
        for (component, deployment) in both() {
            let container = &pod_of(&deployment).containers[0];
            let ports: Vec<_> = container.ports.iter().flatten().filter_map(|port| port.name.as_deref()).collect();
            let probes = [&container.startup_probe, &container.liveness_probe, &container.readiness_probe];
            let asked = probes.map(|probe| probe.as_ref().unwrap().http_get.as_ref().unwrap());
            assert_eq!(asked.map(|get| get.path.as_deref().unwrap()), ["/livez", "/livez", "/readyz"]);
            for get in asked {
                assert_eq!(get.port, IntOrString::String("metrics".to_owned()));
                assert!(ports.contains(&"metrics"), "{component:?}: {ports:?}");
            }
        }
    }

    #[test]
    fn no_old_pod_stops_before_a_new_one_is_ready() {
        for (_, deployment) in both() {
            let strategy = deployment.spec.unwrap().strategy.unwrap();
            assert_eq!(strategy.type_.as_deref(), Some("RollingUpdate"));
            let rolling = strategy.rolling_update.unwrap();
            assert_eq!(rolling.max_unavailable, Some(IntOrString::Int(0)));
            assert_eq!(rolling.max_surge, Some(IntOrString::Int(1)));
        }
    }

    #[test]
    fn every_volume_is_mounted() {
        for (component, deployment) in both() {
            let pod = pod_of(&deployment);
            let volumes: Vec<String> = pod.volumes.into_iter().flatten().map(|volume| volume.name).collect();
            let mounts: Vec<String> =
                pod.containers[0].volume_mounts.iter().flatten().map(|mount| mount.name.clone()).collect();
            assert_eq!(volumes, mounts, "{component:?}");
        }
    }
}
