//! Hands the number of pods over to an autoscaler. The API server removes a field that we no longer apply, and a
//! Deployment without a number of replicas has one pod: all others would stop until the autoscaler acts. So a second
//! field manager claims the number first, until the autoscaler writes its own.
//!
//! The way back needs no such step, because `spec.replicas` is applied with force.

use k8s_openapi::api::apps::v1::Deployment;
use kube::{
    ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::{Applier, Child, problem};
use crate::{cache::trim::sets_replicas, pipeline::Part};

/// The field manager that holds the number of replicas in between.
pub const SECOND_MANAGER: &str = "orderflow-operator-autoscaling";

impl Applier<'_> {
    /// Hands over the number of replicas, unless we no longer set it. A new Deployment starts with `least`.
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
        // The watch may be behind the autoscaler's last write, which this would undo.
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
        let patched = self.api::<Deployment>().patch(&name, &parameters, &Patch::Apply(patch)).await;
        patched.map_err(|error| problem::<Deployment>(&name, &error))?;
        tracing::info!(name, replicas, "handed the number of replicas over to the autoscaler");
        Ok(())
    }
}
