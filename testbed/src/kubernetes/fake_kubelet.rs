//! THE ONE FAKE of the control plane. Without a node, it marks every pod as running and ready. The real controllers do
//! the rest, such as a Deployment's status.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;
use tokio::task::JoinHandle;

/// The pause between two passes, as a kubelet has them; nothing waits for one.
const INTERVAL: Duration = Duration::from_millis(100);

/// Plays the kubelet until it is dropped.
#[derive(Debug)]
pub struct FakeKubelet(JoinHandle<()>);

impl FakeKubelet {
    /// Starts a kubelet for the pods of one namespace, or of all.
    pub fn start(pods: Api<Pod>) -> Self {
        Self(tokio::spawn(async move {
            loop {
                if let Ok(list) = pods.list(&ListParams::default()).await {
                    for pod in list.iter().filter(|pod| !is_ready(pod)) {
                        let ready = json!({ "status": {
                            "phase": "Running",
                            "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z" }],
                        }});
                        let _ = pods.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(ready)).await;
                    }
                }
                tokio::time::sleep(INTERVAL).await;
            }
        }))
    }
}

impl Drop for FakeKubelet {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
