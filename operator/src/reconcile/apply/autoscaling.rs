//! The way from a fixed number of pods to autoscaling. A field that we set and then leave out is removed by the API server,
//! and without a number of replicas there is one pod: all others would be stopped until the autoscaler starts them again. So
//! the number is first given to a second field manager, whose claim lasts until the autoscaler writes its own.
//!
//! The way back needs nothing: `spec.replicas` is applied with force.

use k8s_openapi::api::apps::v1::Deployment;
use kube::{
    ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::{Applier, Child, problem};
use crate::{cache::trim::sets_replicas, pipeline::Part};

/// Has the number of replicas in the meantime.
pub const SECOND_MANAGER: &str = "orderflow-operator-autoscaling";

impl Applier<'_> {
    /// Does nothing if the number is not ours any more. `least`: what a new Deployment has.
    pub(super) async fn hand_over_replicas(&mut self, wanted: &Deployment, least: i32, exists: bool) -> Part<()> {
        let name = wanted.name_any();
        if exists {
            let live = self.context.stores.deployments.get(&self.identity.child(&name));
            if live.is_some_and(|live| !sets_replicas(&live.metadata)) {
                return Ok(());
            }
        } else {
            let mut first = wanted.clone();
            first.spec.get_or_insert_default().replicas = Some(least);
            self.apply(first).await?;
        }
        // What the watch knows may be older than the autoscaler's last write, and would undo it.
        let live = self.api::<Deployment>().get(&name).await.map_err(|error| problem::<Deployment>(&name, &error))?;
        if !sets_replicas(&live.metadata) {
            return Ok(());
        }
        let replicas = live.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(least).max(1);
        let patch = json!({
            "apiVersion": "apps/v1",
            "kind": Deployment::KIND,
            "metadata": { "name": name, "uid": live.metadata.uid },
            "spec": { "replicas": replicas },
        });
        let parameters = PatchParams::apply(SECOND_MANAGER).force();
        let handed = self.api::<Deployment>().patch(&name, &parameters, &Patch::Apply(patch)).await;
        handed.map_err(|error| problem::<Deployment>(&name, &error))?;
        tracing::info!(name, replicas, "the number of replicas is the autoscaler's now");
        Ok(())
    }
}
