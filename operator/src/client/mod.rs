//! AeroClient: gives every identity its prefix and says who holds it.

mod doubles;
pub mod identity;
pub mod plan;
mod shell;
mod status;

pub use shell::reconcile;

use aero_crds::AeroClient;
use k8s_openapi::api::core::v1::Pod;

/// Of all clients that select a pod, the one that has it: the oldest, by name if of one age.
pub fn owner<'a>(clients: &'a [std::sync::Arc<AeroClient>], pod: &Pod) -> Option<&'a AeroClient> {
    let age = |c: &AeroClient| {
        let created = c.metadata.creation_timestamp.as_ref().map(|t| t.0.to_string());
        (created, c.metadata.name.clone())
    };
    clients
        .iter()
        .map(AsRef::as_ref)
        .filter(|c| c.metadata.deletion_timestamp.is_none() && c.selects(pod))
        .min_by_key(|c| age(c))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn client(name: &str, created: &str, label: &str) -> Arc<AeroClient> {
        Arc::new(
            serde_json::from_value(serde_json::json!({
                "apiVersion": "aerolink.dev/v1alpha1", "kind": "AeroClient",
                "metadata": {"name": name, "namespace": "default", "creationTimestamp": created},
                "spec": {"podSelector": {"matchLabels": {"app": label}}},
            }))
            .unwrap(),
        )
    }

    fn pod(label: &str, namespace: &str) -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": namespace, "labels": {"app": label}},
        }))
        .unwrap()
    }

    #[test]
    fn of_two_clients_that_select_a_pod_the_older_has_it() {
        let clients = [
            client("young", "2026-01-02T00:00:00Z", "web"),
            client("old", "2026-01-01T00:00:00Z", "web"),
            client("older", "2025-01-01T00:00:00Z", "db"),
        ];
        let name = |p: &Pod| owner(&clients, p).and_then(|c| c.metadata.name.clone());
        assert_eq!(name(&pod("web", "default")).as_deref(), Some("old"));
        assert_eq!(name(&pod("web", "other")), None);
        assert_eq!(name(&pod("none", "default")), None);
    }
}
