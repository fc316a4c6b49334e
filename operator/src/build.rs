//! From a [`Pipeline`] to every object that it is made of in the cluster. No client, no clock, no chance: the same pipeline
//! becomes the same bytes, and bytes as the API server would keep them, so that applying them again changes nothing.
//! Called once everything that the pipeline names was resolved; a part that was not is left out.

pub mod config_hash;
mod consumer;
mod environment;
mod network_policy;
mod pod;
mod producer;

#[cfg(test)]
pub mod fixture;
#[cfg(test)]
mod flow;

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        autoscaling::v2::HorizontalPodAutoscaler,
        core::v1::{Service, ServiceAccount},
        networking::v1::NetworkPolicy,
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    },
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference},
        util::intstr::IntOrString,
    },
};
use kube::Resource;
pub use pod::{HTTP_PORT, INTERNAL_PORT};
pub use producer::internal_name;

use crate::{
    crd::OrderFlow,
    pipeline::{Identity, Pipeline, Pods},
};

/// The label that all children carry with the value [`MANAGED_BY`]: what a watch of them selects by.
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
pub const MANAGED_BY: &str = "orderflow-operator";

/// The label with the name of the OrderFlow that a child belongs to.
pub const INSTANCE_LABEL: &str = "app.kubernetes.io/instance";

/// Everything that one OrderFlow is made of. Whoever applies it takes it apart without `..`, so that a child that nobody
/// applies does not compile.
#[derive(Clone, Debug, PartialEq)]
pub struct Children {
    pub producer: ProducerChildren,
    pub consumer: ConsumerChildren,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ProducerChildren {
    pub service_account: ServiceAccount,
    /// For clients of the API.
    pub service: Service,
    /// For operators: the dashboard and all of the API.
    pub internal_service: Service,
    pub deployment: Deployment,
    pub disruption_budget: PodDisruptionBudget,
    /// None: the spec gives a number of pods.
    pub autoscaler: Option<HorizontalPodAutoscaler>,
    /// None: the spec turns policies off.
    pub network_policy: Option<NetworkPolicy>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ConsumerChildren {
    pub service_account: ServiceAccount,
    pub deployment: Deployment,
    pub disruption_budget: PodDisruptionBudget,
    /// None: the spec turns policies off.
    pub network_policy: Option<NetworkPolicy>,
}

pub fn build(pipeline: &Pipeline, key: &config_hash::Key) -> Children {
    Children { producer: producer::build(pipeline, key), consumer: consumer::build(pipeline, key) }
}

/// Name of all of the producer's children.
pub fn producer_name(identity: &Identity) -> String {
    Component::Producer.name(identity)
}

/// Name of all of the consumer's children.
pub fn consumer_name(identity: &Identity) -> String {
    Component::Consumer.name(identity)
}

/// One of the two programs that an OrderFlow runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Component {
    Producer,
    Consumer,
}

impl Component {
    fn as_str(self) -> &'static str {
        match self {
            Self::Producer => "producer",
            Self::Consumer => "consumer",
        }
    }

    fn name(self, identity: &Identity) -> String {
        format!("{}-{}", identity.name, self.as_str())
    }

    fn metadata(self, identity: &Identity) -> ObjectMeta {
        ObjectMeta {
            name: Some(self.name(identity)),
            namespace: Some(identity.namespace.clone()),
            labels: Some(self.labels(identity)),
            owner_references: Some(vec![owner_reference(identity)]),
            ..ObjectMeta::default()
        }
    }

    fn labels(self, identity: &Identity) -> BTreeMap<String, String> {
        let more = [(MANAGED_BY_LABEL, MANAGED_BY), ("app.kubernetes.io/part-of", "orderflow")];
        let more = more.map(|(name, value)| (name.to_owned(), value.to_owned()));
        self.selector_labels(identity).into_iter().chain(more).collect()
    }

    /// What a pod is found by. A Deployment's selector can never be changed, so nothing that may change stands here.
    fn selector_labels(self, identity: &Identity) -> BTreeMap<String, String> {
        let labels = [
            ("app.kubernetes.io/name", "orderflow"),
            (INSTANCE_LABEL, identity.name.as_str()),
            ("app.kubernetes.io/component", self.as_str()),
        ];
        labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
    }

    fn selector(self, identity: &Identity) -> LabelSelector {
        LabelSelector { match_labels: Some(self.selector_labels(identity)), ..LabelSelector::default() }
    }

    /// An account of its own even though neither program speaks to the API server: cloud roles are bound to one.
    fn service_account(self, identity: &Identity, pods: &Pods) -> ServiceAccount {
        let annotations = &pods.service_account_annotations;
        let metadata = ObjectMeta {
            annotations: (!annotations.is_empty()).then(|| annotations.clone()),
            ..self.metadata(identity)
        };
        ServiceAccount { metadata, automount_service_account_token: Some(false), ..ServiceAccount::default() }
    }

    /// Lets a drain of nodes take one pod at a time, however few there are: one that was evicted loses nothing, while a
    /// budget that never lets go of the last pod blocks every drain. Pods that do not work are no reason to wait either.
    fn disruption_budget(self, identity: &Identity) -> PodDisruptionBudget {
        let spec = PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(self.selector(identity)),
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        };
        PodDisruptionBudget { metadata: self.metadata(identity), spec: Some(spec), ..PodDisruptionBudget::default() }
    }
}

fn owner_reference(identity: &Identity) -> OwnerReference {
    OwnerReference {
        api_version: OrderFlow::api_version(&()).into_owned(),
        kind: OrderFlow::kind(&()).into_owned(),
        name: identity.name.clone(),
        uid: identity.uid.clone(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{fixture, *};

    /// All children of a pipeline that uses everything there is, as they are sent.
    fn everything() -> Vec<Value> {
        fixture::objects(&fixture::build(&fixture::everything()))
    }

    #[test]
    fn the_same_pipeline_is_built_to_the_same_bytes() {
        let bytes = || serde_json::to_string(&everything()).unwrap();
        assert_eq!(bytes(), bytes());
    }

    #[test]
    fn every_child_says_what_it_is_and_whose() {
        let objects = everything();
        let names: Vec<String> = objects
            .iter()
            .map(|object| {
                format!("{} {}", object["kind"].as_str().unwrap(), object["metadata"]["name"].as_str().unwrap())
            })
            .collect();
        let expected = [
            "ServiceAccount shop-producer",
            "Service shop-producer",
            "Service shop-internal",
            "Deployment shop-producer",
            "PodDisruptionBudget shop-producer",
            "HorizontalPodAutoscaler shop-producer",
            "NetworkPolicy shop-producer",
            "ServiceAccount shop-consumer",
            "Deployment shop-consumer",
            "PodDisruptionBudget shop-consumer",
            "NetworkPolicy shop-consumer",
        ];
        assert_eq!(names, expected);
        for object in &objects {
            let metadata = &object["metadata"];
            let component = metadata["name"].as_str().unwrap().strip_prefix("shop-").unwrap();
            let component = if component == "internal" { "producer" } else { component };
            assert!(object["apiVersion"].is_string());
            assert_eq!(metadata["namespace"], "store");
            let labels = json!({
                "app.kubernetes.io/name": "orderflow",
                "app.kubernetes.io/instance": "shop",
                "app.kubernetes.io/component": component,
                "app.kubernetes.io/managed-by": "orderflow-operator",
                "app.kubernetes.io/part-of": "orderflow",
            });
            assert_eq!(metadata["labels"], labels);
            let owner = json!([{
                "apiVersion": "orderflow.dev/v1alpha1",
                "kind": "OrderFlow",
                "name": "shop",
                "uid": "4f3c0c2e-6a52-4c0f-9b0e-0d3a6f1f2b11",
                "controller": true,
                "blockOwnerDeletion": true,
            }]);
            assert_eq!(metadata["ownerReferences"], owner);
        }
    }

    #[test]
    fn every_selector_finds_the_pods_of_its_own_component_only() {
        let children = fixture::build(&fixture::everything());
        let pods =
            |deployment: &Deployment| deployment.spec.clone().unwrap().template.metadata.unwrap().labels.unwrap();
        let producer = pods(&children.producer.deployment);
        let consumer = pods(&children.consumer.deployment);
        let selectors = |object: &Value| {
            let spec = &object["spec"];
            let by_labels = [&spec["selector"]["matchLabels"], &spec["podSelector"]["matchLabels"]];
            let of_service = (object["kind"] == "Service").then_some(&spec["selector"]);
            let found = by_labels.into_iter().chain(of_service).filter(|selector| selector.is_object());
            found.cloned().collect::<Vec<_>>()
        };
        let finds = |selector: &Value, labels: &BTreeMap<String, String>| {
            selector
                .as_object()
                .unwrap()
                .iter()
                .all(|(name, value)| labels.get(name).map(String::as_str) == value.as_str())
        };
        let mut seen = 0;
        for object in fixture::objects(&children) {
            let (own, other) = if object["metadata"]["name"] == "shop-consumer" {
                (&consumer, &producer)
            } else {
                (&producer, &consumer)
            };
            for selector in selectors(&object) {
                seen += 1;
                assert!(finds(&selector, own) && !finds(&selector, other), "{}: {selector}", object["kind"]);
            }
        }
        assert_eq!(seen, 8, "2 Services, 2 Deployments, 2 budgets, 2 policies");
    }

    #[test]
    fn nothing_empty_is_sent() {
        fn find(value: &Value, path: &str, empty: &mut Vec<String>) {
            match value {
                // A selector that selects all pods of the namespace, which the API server keeps.
                Value::Object(selector) if selector.is_empty() && path.ends_with("from[].podSelector") => {}
                Value::Null => empty.push(path.to_owned()),
                Value::Array(values) if values.is_empty() => empty.push(path.to_owned()),
                Value::Object(values) if values.is_empty() => empty.push(path.to_owned()),
                Value::String(text) if text.is_empty() => empty.push(path.to_owned()),
                Value::Array(values) => values.iter().for_each(|value| find(value, &format!("{path}[]"), empty)),
                Value::Object(values) => {
                    values.iter().for_each(|(name, value)| find(value, &format!("{path}.{name}"), empty));
                }
                _ => {}
            }
        }
        let plain = json!({"producer": {"resources": {}}, "consumer": {"resources": {}}});
        for pipeline in [fixture::pipeline(&plain), fixture::everything()] {
            for object in fixture::objects(&fixture::build(&pipeline)) {
                let mut empty = Vec::new();
                find(&object, object["kind"].as_str().unwrap(), &mut empty);
                assert!(empty.is_empty(), "{empty:?}");
            }
        }
    }

    #[test]
    fn no_value_of_a_secret_stands_in_any_child() {
        let children = serde_json::to_string(&everything()).unwrap();
        for (secret, key, value) in fixture::SECRETS {
            let line = value.lines().find(|line| !line.starts_with("-----")).unwrap();
            assert!(!children.contains(line), "{secret}, key {key}");
        }
        assert!(children.contains("postgres-shard1"), "the Secrets' names do");
    }

    #[test]
    fn accounts_carry_the_annotations_of_the_spec_and_no_token() {
        let role = json!({"producer": {"serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/r"}}}});
        let children = fixture::build(&fixture::pipeline(&role));
        let producer = children.producer.service_account;
        assert_eq!(producer.metadata.annotations.unwrap()["eks.amazonaws.com/role-arn"], "arn:aws:iam::1:role/r");
        assert_eq!(producer.automount_service_account_token, Some(false));
        assert_eq!(children.consumer.service_account.metadata.annotations, None);
    }

    #[test]
    fn what_the_spec_turns_off_is_not_built() {
        let children = fixture::build(&fixture::pipeline(&json!({"networkPolicy": {"enabled": false}})));
        assert!(children.producer.network_policy.is_none() && children.consumer.network_policy.is_none());
        assert!(children.producer.autoscaler.is_none());
    }

    #[test]
    fn a_part_that_was_not_resolved_is_left_out_without_a_panic() {
        let pipeline = fixture::pipeline_with(&json!({}), &crate::reconcile::dereference::Secrets::default());
        assert!(pipeline.unresolved().is_some());
        fixture::build(&pipeline);
    }
}
