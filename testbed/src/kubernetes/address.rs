//! Names and addresses inside the cluster.

/// The node's name in the cluster.
pub const NODE: &str = "node";

/// The node's address for pods, outside of the ranges of pods and Services.
pub const NODE_ADDRESS: &str = "10.245.0.1";

/// The address of the API server's Service.
pub(super) const API_SERVER_ADDRESS: &str = "10.96.0.1";
