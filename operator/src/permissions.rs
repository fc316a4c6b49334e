//! The operator's permissions in a cluster, each with its reason. The installed roles are generated from this table,
//! and `check` asks the API server for each of its lines.

use k8s_openapi::api::rbac::v1::PolicyRule;

pub struct Permission {
    pub group: &'static str,
    /// The resource, with its subresource if any: `pods`, `orderflows/status`.
    pub resource: &'static str,
    pub verbs: &'static [&'static str],
    pub reason: &'static str,
}

const WATCH: &[&str] = &["get", "list", "watch"];
const MANAGE: &[&str] = &["get", "list", "watch", "create", "patch", "delete"];

/// Permissions in each namespace whose resources are watched.
pub const WATCHED: &[Permission] = &[
    permission(
        "orderflow.dev",
        "orderflows",
        &["get", "list", "watch", "patch"],
        "watch the resources and set their finalizer",
    ),
    permission("orderflow.dev", "orderflows/status", &["patch"], "report the state of a resource"),
    permission(
        "orderflow.dev",
        "orderflows/finalizers",
        &["update"],
        "set owner references, where the cluster requires a permission for that",
    ),
    permission("", "secrets", WATCH, "read DSNs, keys and certificates, and watch for changes"),
    permission("", "services", MANAGE, "manage the producers' Services"),
    permission("", "serviceaccounts", MANAGE, "manage the pods' ServiceAccounts"),
    permission("apps", "deployments", MANAGE, "run producers and consumers"),
    permission("autoscaling", "horizontalpodautoscalers", MANAGE, "manage the producers' autoscaler"),
    permission("policy", "poddisruptionbudgets", MANAGE, "allow node drains without an outage"),
    permission("networking.k8s.io", "networkpolicies", MANAGE, "manage the pods' NetworkPolicies"),
    permission("", "pods", &["list"], "check that no pod runs before data are removed"),
    permission("events.k8s.io", "events", &["create"], "emit Events"),
];

/// Permissions in the operator's own namespace.
pub const OWN: &[Permission] = &[
    permission("coordination.k8s.io", "leases", &["get", "create", "update"], "elect one leader"),
    permission("", "secrets", &["get", "create"], "store the key of the config hashes"),
];

const fn permission(
    group: &'static str,
    resource: &'static str,
    verbs: &'static [&'static str],
    reason: &'static str,
) -> Permission {
    Permission { group, resource, verbs, reason }
}

/// Returns the rules of a Role or ClusterRole.
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

/// Returns the rules as YAML, each under its reason.
pub fn rules_yaml(permissions: &[Permission]) -> String {
    use std::fmt::Write;
    let mut text = String::from("# Generated from operator/src/permissions.rs; a test compares this file with it.\n");
    for Permission { group, resource, verbs, reason } in permissions {
        let verbs = verbs.join(", ");
        let _ =
            write!(text, "# {reason}\n- apiGroups: [\"{group}\"]\n  resources: [\"{resource}\"]\n  verbs: [{verbs}]\n");
    }
    text
}
