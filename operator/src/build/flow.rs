//! Decides, as a network does, whether NetworkPolicies allow a connection at the pod's end. For tests. It has tests
//! itself, because a checker that allows or denies everything would prove nothing.

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::{
    api::networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec},
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};

/// A connection of a pod of ours, from the pod's point of view.
pub struct Flow<'a> {
    pub namespace: &'a str,
    pub labels: &'a BTreeMap<String, String>,
    pub direction: Direction,
    pub other: End<'a>,
    pub protocol: Protocol,
    /// The port of the server: the pod's own port on ingress.
    pub port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Ingress.
    From,
    /// Egress.
    To,
}

/// The other end of a connection.
#[derive(Clone, Copy, Debug)]
pub enum End<'a> {
    /// An address outside the cluster.
    Address(&'a str),
    /// A pod. Its namespace has only the label that every namespace has. No `ipBlock` matches it.
    Pod { namespace: &'a str, labels: &'a [(&'a str, &'a str)] },
}

#[derive(Clone, Copy, Debug)]
pub enum Protocol {
    Tcp,
    Udp,
}

type Rule<'a> = (Option<&'a Vec<NetworkPolicyPeer>>, Option<&'a Vec<NetworkPolicyPort>>);

impl Flow<'_> {
    /// Returns whether the policies allow the connection. A pod that no policy selects for a direction is open; a
    /// selected one is closed except for what any of the policies allows.
    pub fn is_allowed(&self, policies: &[NetworkPolicy]) -> bool {
        let own: Vec<(&str, &str)> = self.labels.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let mut selecting = policies
            .iter()
            .filter(|policy| policy.metadata.namespace.as_deref() == Some(self.namespace))
            .filter_map(|policy| policy.spec.as_ref())
            .filter(|spec| selects(spec.pod_selector.as_ref().expect("policies select pods"), &own))
            .filter(|spec| self.is_governed_by(spec))
            .peekable();
        selecting.peek().is_none() || selecting.any(|spec| self.rules(spec).into_iter().any(|rule| self.matches(rule)))
    }

    fn is_governed_by(&self, spec: &NetworkPolicySpec) -> bool {
        let wanted = match self.direction {
            Direction::From => "Ingress",
            Direction::To => "Egress",
        };
        spec.policy_types.iter().flatten().any(|kind| kind == wanted)
    }

    fn rules<'a>(&self, spec: &'a NetworkPolicySpec) -> Vec<Rule<'a>> {
        match self.direction {
            Direction::From => {
                spec.ingress.iter().flatten().map(|rule| (rule.from.as_ref(), rule.ports.as_ref())).collect()
            }
            Direction::To => spec.egress.iter().flatten().map(|rule| (rule.to.as_ref(), rule.ports.as_ref())).collect(),
        }
    }

    /// Returns whether a rule matches. A rule without peers matches all peers, one without ports all ports.
    fn matches(&self, (peers, ports): Rule<'_>) -> bool {
        let named = |peers: &Vec<_>| peers.is_empty() || peers.iter().any(|peer| self.matches_peer(peer));
        let numbered = |ports: &Vec<_>| ports.is_empty() || ports.iter().any(|port| self.matches_port(port));
        peers.is_none_or(named) && ports.is_none_or(numbered)
    }

    fn matches_peer(&self, peer: &NetworkPolicyPeer) -> bool {
        let NetworkPolicyPeer { ip_block, namespace_selector, pod_selector } = peer;
        match (self.other, ip_block) {
            (End::Address(address), Some(block)) => is_within(address, block),
            (End::Pod { namespace, labels }, None) => {
                let in_namespace = match namespace_selector {
                    // Pods of the policy's own namespace.
                    None => namespace == self.namespace,
                    Some(selector) => selects(selector, &[("kubernetes.io/metadata.name", namespace)]),
                };
                in_namespace && pod_selector.as_ref().is_none_or(|selector| selects(selector, labels))
            }
            (End::Address(_), None) | (End::Pod { .. }, Some(_)) => false,
        }
    }

    fn matches_port(&self, port: &NetworkPolicyPort) -> bool {
        let protocol = match self.protocol {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
        };
        let number = i32::from(self.port);
        let in_range = match (&port.port, port.end_port) {
            (None, _) => true,
            (Some(IntOrString::Int(first)), last) => (*first..=last.unwrap_or(*first)).contains(&number),
            (Some(IntOrString::String(name)), _) => panic!("named ports such as {name} are not supported"),
        };
        port.protocol.as_deref().unwrap_or("TCP") == protocol && in_range
    }
}

fn selects(selector: &LabelSelector, labels: &[(&str, &str)]) -> bool {
    let expressions = selector.match_expressions.as_ref();
    assert!(expressions.is_none_or(Vec::is_empty), "matchExpressions are not supported");
    selector.match_labels.iter().flatten().all(|(name, value)| labels.contains(&(name.as_str(), value.as_str())))
}

fn is_within(address: &str, IPBlock { cidr, except }: &IPBlock) -> bool {
    let address: IpAddr = address.parse().expect("an IP address");
    let within = |cidr: &str| {
        let (network, length) = cidr.split_once('/').expect("a CIDR");
        let length: u32 = length.parse().expect("a CIDR");
        match (network.parse().expect("a CIDR"), address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                (network.to_bits() ^ address.to_bits()).checked_shr(32 - length).unwrap_or(0) == 0
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                (network.to_bits() ^ address.to_bits()).checked_shr(128 - length).unwrap_or(0) == 0
            }
            _ => false,
        }
    };
    within(cidr) && !except.iter().flatten().any(|cidr| within(cidr))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Returns whether a pod `app: ours` of namespace `here` may connect, given a policy there with this spec.
    fn may_connect(spec: &Value, other: End<'_>, protocol: Protocol, port: u16) -> bool {
        let policy = json!({"metadata": {"name": "policy", "namespace": "here"}, "spec": spec});
        let labels = BTreeMap::from([("app".to_owned(), "ours".to_owned())]);
        let flow = Flow { namespace: "here", labels: &labels, direction: Direction::To, other, protocol, port };
        flow.is_allowed(&[serde_json::from_value(policy).unwrap()])
    }

    fn egress(rules: &Value) -> Value {
        json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": rules})
    }

    const SOMEWHERE: End<'static> = End::Address("192.0.2.1");

    #[test]
    fn a_pod_that_no_policy_selects_is_open() {
        for (spec, expected) in [
            (json!({"podSelector": {"matchLabels": {"app": "theirs"}}, "policyTypes": ["Egress"]}), true),
            (json!({"podSelector": {}, "policyTypes": ["Ingress"]}), true),
            (json!({"podSelector": {}, "policyTypes": ["Egress"]}), false),
            (json!({"podSelector": {"matchLabels": {"app": "ours"}}, "policyTypes": ["Egress"]}), false),
        ] {
            assert_eq!(may_connect(&spec, SOMEWHERE, Protocol::Tcp, 80), expected, "{spec}");
        }
    }

    #[test]
    fn a_policy_of_another_namespace_has_no_effect() {
        let policy =
            json!({"metadata": {"namespace": "there"}, "spec": {"podSelector": {}, "policyTypes": ["Egress"]}});
        let (labels, direction) = (BTreeMap::new(), Direction::To);
        let flow =
            Flow { namespace: "here", labels: &labels, direction, other: SOMEWHERE, protocol: Protocol::Tcp, port: 80 };
        assert!(flow.is_allowed(&[serde_json::from_value(policy).unwrap()]));
    }

    #[test]
    fn a_rule_allows_its_ports() {
        for (ports, protocol, port, expected) in [
            (json!([]), Protocol::Udp, 1, true),
            (json!([{"protocol": "TCP"}]), Protocol::Tcp, 1, true),
            (json!([{"port": 80}]), Protocol::Tcp, 80, true),
            (json!([{"port": 80}]), Protocol::Udp, 80, false),
            (json!([{"port": 80}]), Protocol::Tcp, 81, false),
            (json!([{"port": 80}, {"port": 81, "protocol": "UDP"}]), Protocol::Udp, 81, true),
            (json!([{"port": 80, "endPort": 90}]), Protocol::Tcp, 80, true),
            (json!([{"port": 80, "endPort": 90}]), Protocol::Tcp, 90, true),
            (json!([{"port": 80, "endPort": 90}]), Protocol::Tcp, 91, false),
        ] {
            let allowed = may_connect(&egress(&json!([{"ports": ports}])), SOMEWHERE, protocol, port);
            assert_eq!(allowed, expected, "{ports} {protocol:?} {port}");
        }
        assert!(!may_connect(&egress(&json!([])), SOMEWHERE, Protocol::Tcp, 80), "no rule allows nothing");
        assert!(may_connect(&egress(&json!([{}])), SOMEWHERE, Protocol::Tcp, 80), "an empty rule allows all");
    }

    #[test]
    fn a_rule_allows_its_peers() {
        let here = End::Pod { namespace: "here", labels: &[("app", "kafka"), ("pod", "0")] };
        let there = End::Pod { namespace: "there", labels: &[("app", "kafka")] };
        let kafka = json!({"matchLabels": {"app": "kafka"}});
        let in_there = json!({"matchLabels": {"kubernetes.io/metadata.name": "there"}});
        for (peer, other, expected) in [
            (json!({"podSelector": kafka}), here, true),
            (json!({"podSelector": kafka}), there, false),
            (json!({"podSelector": {"matchLabels": {"app": "postgres"}}}), here, false),
            (json!({"podSelector": {}}), here, true),
            (json!({"podSelector": kafka}), SOMEWHERE, false),
            (json!({"namespaceSelector": {}}), there, true),
            (json!({"namespaceSelector": in_there}), there, true),
            (json!({"namespaceSelector": in_there}), here, false),
            (json!({"namespaceSelector": in_there, "podSelector": kafka}), there, true),
            (json!({"namespaceSelector": in_there, "podSelector": {"matchLabels": {"pod": "0"}}}), there, false),
            (json!({"ipBlock": {"cidr": "192.0.2.0/24"}}), SOMEWHERE, true),
            (json!({"ipBlock": {"cidr": "192.0.2.0/24"}}), here, false),
            (json!({"ipBlock": {"cidr": "192.0.2.0/31"}}), SOMEWHERE, true),
            (json!({"ipBlock": {"cidr": "192.0.2.2/31"}}), SOMEWHERE, false),
            (json!({"ipBlock": {"cidr": "0.0.0.0/0"}}), SOMEWHERE, true),
            (json!({"ipBlock": {"cidr": "0.0.0.0/0", "except": ["192.0.2.1/32"]}}), SOMEWHERE, false),
            (json!({"ipBlock": {"cidr": "::/0"}}), SOMEWHERE, false),
            (json!({"ipBlock": {"cidr": "::/0"}}), End::Address("2001:db8::1"), true),
        ] {
            let allowed = may_connect(&egress(&json!([{"to": [peer]}])), other, Protocol::Tcp, 80);
            assert_eq!(allowed, expected, "{peer} {other:?}");
        }
    }
}
