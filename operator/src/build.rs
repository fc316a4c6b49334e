//! Turns a [`Pipeline`] into all its Kubernetes objects. Pure: the same pipeline always gives the same bytes, in the
//! form in which the API server stores them, so that applying them again changes nothing. A part that was not resolved
//! is left out.

pub mod config_hash;
mod consumer;
mod environment;
mod network_policy;
mod pod;
mod ports;
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
pub use ports::{HTTP_PORT, INTERNAL_PORT};
pub use producer::internal_name;

use crate::{
    crd::OrderFlow,
    pipeline::{Identity, Pipeline, Pods},
};

/// The label that all children carry with the value [`MANAGED_BY`]. The watches of children select by it.
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
pub const MANAGED_BY: &str = "orderflow-operator";

/// The label with the name of the OrderFlow that a child belongs to.
pub const INSTANCE_LABEL: &str = "app.kubernetes.io/instance";

/// All children of an OrderFlow. `apply` destructures them without `..`, so that a child that is not applied does not
/// compile.
#[derive(Clone, Debug, PartialEq)]
pub struct Children {
    pub producer: ProducerChildren,
    pub consumer: ConsumerChildren,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ProducerChildren {
    pub service_account: ServiceAccount,
    /// The Service for clients of the API.
    pub service: Service,
    /// The Service for operators: the dashboard and the whole API.
    pub internal_service: Service,
    pub deployment: Deployment,
    pub disruption_budget: PodDisruptionBudget,
    /// The autoscaler, unless the spec sets a number of pods.
    pub autoscaler: Option<HorizontalPodAutoscaler>,
    /// The policy, unless the spec turns policies off.
    pub network_policy: Option<NetworkPolicy>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ConsumerChildren {
    pub service_account: ServiceAccount,
    pub deployment: Deployment,
    pub disruption_budget: PodDisruptionBudget,
    /// The policy, unless the spec turns policies off.
    pub network_policy: Option<NetworkPolicy>,
}

pub fn build(pipeline: &Pipeline, key: &config_hash::Key) -> Children {
    Children { producer: producer::build(pipeline, key), consumer: consumer::build(pipeline, key) }
}

/// Returns the name of all producer children except the internal Service.
pub fn producer_name(identity: &Identity) -> String {
    Component::Producer.name(identity)
}

/// Returns the name of all consumer children.
pub fn consumer_name(identity: &Identity) -> String {
    Component::Consumer.name(identity)
}

/// A program of an OrderFlow.
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

    /// Returns the labels that select the pods. A Deployment's selector is immutable, so it contains nothing that may
    /// change.
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

    /// Builds a ServiceAccount for the component. Neither program uses the API server, but cloud roles are bound to
    /// accounts.
    fn service_account(self, identity: &Identity, pods: &Pods) -> ServiceAccount {
        let annotations = &pods.service_account_annotations;
        let metadata = ObjectMeta {
            annotations: (!annotations.is_empty()).then(|| annotations.clone()),
            ..self.metadata(identity)
        };
        ServiceAccount { metadata, automount_service_account_token: Some(false), ..ServiceAccount::default() }
    }

    /// Builds a budget that lets a node drain evict one pod at a time, even the last one. An evicted pod loses nothing,
    /// while a stricter budget would block drains. Pods that do not work never block a drain.
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

    /// Returns all children of a pipeline that uses every option, as they are sent.
    fn everything() -> Vec<Value> {
        fixture::objects(&fixture::build(&fixture::everything()))
    }

    #[test]
    fn the_same_pipeline_is_built_to_the_same_bytes() {
        let bytes = || serde_json::to_string(&everything()).unwrap();
        assert_eq!(bytes(), bytes());
    }

    #[test]
    fn every_child_has_its_name_labels_and_owner() {
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
    fn every_selector_matches_the_pods_of_its_own_component_only() {
        let children = fixture::build(&fixture::everything());
        let pods =
            |deployment: &Deployment| deployment.spec.clone().unwrap().template.metadata.unwrap().labels.unwrap();
        let producer = pods(&children.producer.deployment);
        let consumer = pods(&children.consumer.deployment);
        let selectors = |object: &Value| {
            let spec = &object["spec"];
            let by_labels = [&spec["selector"]["matchLabels"], &spec["podSelector"]["matchLabels"]];
            let service_selector = (object["kind"] == "Service").then_some(&spec["selector"]);
            let found = by_labels.into_iter().chain(service_selector).filter(|selector| selector.is_object());
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
    fn children_contain_no_empty_values() {
        fn find(value: &Value, path: &str, empty: &mut Vec<String>) {
            match value {
                // An empty selector selects all pods of the namespace, and the API server stores it.
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
    fn no_child_contains_a_value_of_a_secret() {
        let children = serde_json::to_string(&everything()).unwrap();
        for (secret, key, value) in fixture::SECRETS {
            let line = value.lines().find(|line| !line.starts_with("-----")).unwrap();
            assert!(!children.contains(line), "{secret}, key {key}");
        }
        assert!(children.contains("postgres-shard1"), "the children name the Secrets");
    }

    #[test]
    fn accounts_have_the_annotations_of_the_spec_and_no_token() {
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
    fn an_unresolved_part_is_left_out_without_a_panic() {
        let pipeline = fixture::pipeline_with(&json!({}), &crate::reconcile::dereference::Secrets::default());
        assert!(pipeline.unresolved().is_some());
        fixture::build(&pipeline);
    }
}
