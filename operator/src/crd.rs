//! The `OrderFlow` resource: what people write, and what the operator answers in its status. The rules that a spec must
//! keep stand beside the fields, as CEL, so that the API server refuses a broken one before anybody acts on it.

mod rules;
mod spec;
mod status;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{CustomResourceExt, ResourceExt};

pub use spec::*;
pub use status::*;

/// Not reconciled while this annotation is `true`.
pub const PAUSED: &str = "orderflow.dev/paused";

/// Takes databases and bucket over from the owner that this annotation names, `<namespace>/<name>`.
pub const ADOPT_FROM: &str = "orderflow.dev/adopt-from";

/// Took them over from any owner. It has no effect any more, and the status says so.
pub const ADOPT: &str = "orderflow.dev/adopt";

/// Keeps a resource with `deletionPolicy: Delete` until what it made is removed.
pub const FINALIZER: &str = "orderflow.dev/cleanup";

/// Returns whether an annotation, such as [`PAUSED`], is `true`.
pub fn is_set(flow: &impl ResourceExt, annotation: &str) -> bool {
    flow.annotations().get(annotation).is_some_and(|value| value == "true")
}

/// The definition as it is installed.
pub fn definition() -> CustomResourceDefinition {
    OrderFlow::crd()
}

/// The same as YAML.
pub fn definition_yaml() -> String {
    serde_saphyr::to_string(&definition()).expect("a definition of plain values is YAML")
}
