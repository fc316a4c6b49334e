//! What the operator may do in a cluster, each permission with its reason. The roles that are installed are made from this
//! table, and `check` asks the API server for each of its lines.

use k8s_openapi::api::rbac::v1::PolicyRule;

pub struct Permission {
    pub group: &'static str,
    /// `pods`, or with its subresource `orderflows/status`.
    pub resource: &'static str,
    pub verbs: &'static [&'static str],
    pub reason: &'static str,
}

const WATCH: &[&str] = &["get", "list", "watch"];
const KEEP: &[&str] = &["get", "list", "watch", "create", "patch", "delete"];

/// In each namespace whose resources are watched.
pub const WATCHED: &[Permission] = &[
    permission(
        "orderflow.dev",
        "orderflows",
        &["get", "list", "watch", "patch"],
        "see the resources, and keep or drop the finalizer",
    ),
    permission("orderflow.dev", "orderflows/status", &["patch"], "say what is and what is not"),
    permission(
        "orderflow.dev",
        "orderflows/finalizers",
        &["update"],
        "own children, where the cluster asks for a permission to do so",
    ),
    permission("", "secrets", WATCH, "read DSNs, keys and certificates, and notice when they arrive or change"),
    permission("", "services", KEEP, "make the producers' Service"),
    permission("", "serviceaccounts", KEEP, "make the pods' ServiceAccounts"),
    permission("apps", "deployments", KEEP, "run producers and consumers"),
    permission("autoscaling", "horizontalpodautoscalers", KEEP, "let the CPU decide how many producers there are"),
    permission("policy", "poddisruptionbudgets", KEEP, "let a node be drained without an outage"),
    permission("networking.k8s.io", "networkpolicies", KEEP, "close what the pods do not need"),
    permission("", "pods", &["list"], "see that no pod is left before its data are removed"),
    permission("events.k8s.io", "events", &["create"], "tell what went wrong"),
];

/// In the operator's own namespace.
pub const OWN: &[Permission] = &[
    permission("coordination.k8s.io", "leases", &["get", "create", "update"], "elect one leader"),
    permission("", "secrets", &["get", "create"], "keep the key of the config hashes"),
];

const fn permission(
    group: &'static str,
    resource: &'static str,
    verbs: &'static [&'static str],
    reason: &'static str,
) -> Permission {
    Permission { group, resource, verbs, reason }
}

/// As a Role or ClusterRole has it.
pub fn rules(permissions: &[Permission]) -> Vec<PolicyRule> {
    let strings = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect::<Vec<_>>();
    permissions
        .iter()
        .map(|permission| PolicyRule {
            api_groups: Some(strings(&[permission.group])),
            resources: Some(strings(&[permission.resource])),
            verbs: strings(permission.verbs),
            ..PolicyRule::default()
        })
        .collect()
}

/// The rules as YAML, each under its reason.
pub fn rules_yaml(permissions: &[Permission]) -> String {
    use std::fmt::Write;
    let mut text = String::from("# Made from operator/src/permissions.rs, which a test compares with this file.\n");
    for Permission { group, resource, verbs, reason } in permissions {
        let verbs = verbs.join(", ");
        let _ =
            write!(text, "# {reason}\n- apiGroups: [\"{group}\"]\n  resources: [\"{resource}\"]\n  verbs: [{verbs}]\n");
    }
    text
}
