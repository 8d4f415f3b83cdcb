//! The Relays' file of a Kubernetes cluster: a ConfigMap, watched and written to the file that all
//! containers of the pod read. (A mounted ConfigMap comes to be the same, up to a minute later.)

use std::path::Path;

use aero_crds::bgp::ROUTES_KEY;
use anyhow::Context as _;
use clap::Args;
use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client};

/// Flags of the programs that get the Relays' file from a ConfigMap.
#[derive(Debug, Clone, Args)]
pub struct ConfigMapArgs {
    /// Write the Relays' file (--routes) from this ConfigMap, whenever that changes.
    #[arg(long, env = "AERO_ROUTES_CONFIG_MAP", value_name = "NAME", requires = "routes")]
    routes_config_map: Option<String>,
    /// Namespace of that ConfigMap.
    #[arg(long, env = "POD_NAMESPACE", default_value = "aero-system")]
    namespace: String,
}

impl ConfigMapArgs {
    /// Whether the file comes from a ConfigMap.
    pub fn is_set(&self) -> bool {
        self.routes_config_map.is_some()
    }

    /// Keeps the file as the ConfigMap says until the future is dropped; without a ConfigMap there
    /// is nothing to do.
    ///
    /// # Errors
    /// If there is no way to an API server.
    pub async fn follow(&self, file: Option<&Path>) -> anyhow::Result<()> {
        let (Some(name), Some(file)) = (&self.routes_config_map, file) else {
            return std::future::pending().await;
        };
        let client = Client::try_default().await.context("there is no way to an API server")?;
        let api: Api<ConfigMap> = Api::namespaced(client, &self.namespace);
        let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let mut stream = std::pin::pin!(aero_crds::watch(api, config));
        let mut written = None;
        while let Some(event) = stream.next().await {
            match event {
                Ok(Event::Apply(map) | Event::InitApply(map)) => {
                    let text = map.data.and_then(|mut data| data.remove(ROUTES_KEY));
                    let Some(text) = text.filter(|t| written.as_ref() != Some(t)) else { continue };
                    match write(file, &text).await {
                        Ok(()) => written = Some(text),
                        Err(e) => tracing::error!("{} cannot be written: {e}", file.display()),
                    }
                }
                // Without the ConfigMap the file stays, as it does while the API server is away.
                Ok(_) => {}
                Err(e) => tracing::debug!("the watch of {name} broke and is tried again: {e}"),
            }
        }
        Ok(())
    }
}

/// Writes a file such that its readers see all of it or what was there before.
async fn write(file: &Path, text: &str) -> std::io::Result<()> {
    let new = file.with_extension("new");
    tokio::fs::write(&new, text).await?;
    tokio::fs::rename(&new, file).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_file_is_replaced_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("routes.yaml");
        for text in ["one", "another"] {
            write(&file, text).await.unwrap();
            assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
    }
}
