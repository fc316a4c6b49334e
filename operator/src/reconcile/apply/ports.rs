//! Server-side apply identifies ports by their number. If a user changes a number, applying ours adds a second port
//! with the same name, which the API server refuses. So the list is replaced as a whole before the next apply.

use k8s_openapi::serde::Serialize;
use serde_json::{Value, json};

/// Returns a strategic merge patch after which the child has exactly its own ports, or `None` for a child without
/// ports.
pub fn replaced(child: &impl Serialize) -> Option<Value> {
    let child = serde_json::to_value(child).ok()?;
    let spec = match child["kind"].as_str()? {
        "Service" => json!({ "ports": whole(&child["spec"]["ports"])? }),
        "Deployment" => {
            let containers = child.pointer("/spec/template/spec/containers")?.as_array()?;
            let containers: Option<Vec<Value>> = containers
                .iter()
                .map(|container| Some(json!({ "name": container["name"], "ports": whole(&container["ports"])? })))
                .collect();
            json!({ "template": { "spec": { "containers": containers? } } })
        }
        _ => return None,
    };
    Some(json!({ "metadata": { "uid": child["metadata"]["uid"] }, "spec": spec }))
}

fn whole(ports: &Value) -> Option<Value> {
    let ports = ports.as_array()?.iter().cloned();
    Some([json!({ "$patch": "replace" })].into_iter().chain(ports).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::fixture;

    #[test]
    fn only_the_lists_of_ports_are_replaced() {
        let producer = fixture::build(&fixture::pipeline(&json!({}))).producer;
        let all = json!({ "$patch": "replace" });
        let service = replaced(&producer.service).unwrap();
        let http = json!({ "name": "http", "port": 8080, "targetPort": "http", "protocol": "TCP" });
        assert_eq!(service["spec"], json!({ "ports": [all, http] }));
        let deployment = replaced(&producer.deployment).unwrap();
        let ports = json!([
            all,
            { "name": "http", "containerPort": 8080, "protocol": "TCP" },
            { "name": "internal", "containerPort": 8081, "protocol": "TCP" },
            { "name": "metrics", "containerPort": 9464, "protocol": "TCP" },
        ]);
        let container = json!({ "name": "producer", "ports": ports });
        assert_eq!(deployment["spec"], json!({ "template": { "spec": { "containers": [container] } } }));
        assert_eq!(replaced(&producer.disruption_budget), None);
    }
}
