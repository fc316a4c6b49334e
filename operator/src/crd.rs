//! The `OrderFlow` resource: spec and status. The rules for a valid spec are CEL beside the fields, so that the API
//! server refuses an invalid spec before the operator sees it.

mod rules;
mod spec;
mod status;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{CustomResourceExt, ResourceExt};

pub use spec::*;
pub use status::*;

/// The annotation that pauses a resource while it is `true`.
pub const PAUSED: &str = "orderflow.dev/paused";

/// The annotation that takes over databases, bucket and topics from the owner that it names, `<namespace>/<name>`.
pub const ADOPT_FROM: &str = "orderflow.dev/adopt-from";

/// The annotation that took them over from any owner. It no longer has an effect, and the status reports that.
pub const ADOPT: &str = "orderflow.dev/adopt";

/// The finalizer that keeps a resource with `deletionPolicy: Delete` until what it created is removed.
pub const FINALIZER: &str = "orderflow.dev/cleanup";

/// Returns whether an annotation, such as [`PAUSED`], is `true`.
pub fn is_set(flow: &impl ResourceExt, annotation: &str) -> bool {
    flow.annotations().get(annotation).is_some_and(|value| value == "true")
}

/// Returns the definition that is installed.
pub fn definition() -> CustomResourceDefinition {
    OrderFlow::crd()
}

/// Returns the definition as YAML.
pub fn definition_yaml() -> String {
    serde_saphyr::to_string(&definition()).expect("a definition of plain values is YAML")
}
