//! What the agent watches: the pods of its node and the Servers of its link. Neither changes when
//! something moves between other nodes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::{self, Store};
use kube::runtime::watcher;
use kube::{Api, Client};
use tokio::sync::watch as channel;

use crate::endpoints::{self, Servers};

/// How long an answer about the API server's health is believed.
const HEALTH_AGE: Duration = Duration::from_secs(3);
/// How long the API server may take to say that it is well.
const HEALTH_TIME: Duration = Duration::from_secs(2);

/// Caches of the agent.
pub struct Watches {
    client: Client,
    /// Pods of this node.
    pub pods: Store<Pod>,
    changed: channel::Sender<u64>,
    health: Mutex<Option<(Instant, Result<(), String>)>>,
}

impl Watches {
    /// Starts the watches. `on_servers` gets the Servers of the link, whenever they change.
    pub fn start(
        client: Client,
        node: &str,
        namespace: &str,
        link: &str,
        families: Vec<bool>,
        on_servers: impl Fn(Servers) + Send + Sync + 'static,
    ) -> Arc<Self> {
        let (pods, pod_writer) = reflector::store();
        let changed = channel::channel(0).0;
        let (namespace, link) = (namespace.to_string(), link.to_string());
        let watches =
            Arc::new(Self { client: client.clone(), pods, changed, health: Mutex::new(None) });
        let own = watcher::Config::default().fields(&format!("spec.nodeName={node}"));
        let all: Api<Pod> = Api::all(client.clone());
        watches.follow(aero_crds::watch(all, own).reflect(pod_writer));
        tokio::spawn(async move {
            endpoints::follow(client, Some(namespace.as_str()), &link, &families, on_servers).await;
        });
        watches
    }

    /// Tells of every event, the end of a list among them: only then the cache holds what was
    /// listed.
    fn follow<K>(
        self: &Arc<Self>,
        stream: impl futures::Stream<Item = Result<watcher::Event<K>, watcher::Error>> + Send + 'static,
    ) where
        K: Send + 'static,
    {
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let mut stream = std::pin::pin!(stream);
            while let Some(event) = stream.next().await {
                if event.is_ok() {
                    this.changed.send_modify(|n| *n = n.wrapping_add(1));
                }
            }
        });
    }

    /// Tells when a pod has changed.
    pub fn changes(&self) -> channel::Receiver<u64> {
        self.changed.subscribe()
    }

    /// A pod of this node.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        self.pods.get(&reflector::ObjectRef::new(name).within(namespace))
    }

    /// Asks the API server whether it is well; an answer is believed for some seconds.
    ///
    /// # Errors
    /// Says what it, or the way to it, answered.
    pub async fn api_health(&self) -> Result<(), String> {
        let cached = self.health.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((at, answer)) = cached
            && at.elapsed() < HEALTH_AGE
        {
            return answer;
        }
        let request = http::Request::get("/readyz").body(Vec::new()).map_err(|e| e.to_string())?;
        let answer =
            match tokio::time::timeout(HEALTH_TIME, self.client.request_text(request)).await {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(e)) => Err(format!("the API server cannot be reached: {e}")),
                Err(_) => Err(format!("the API server has not answered for {HEALTH_TIME:?}")),
            };
        *self.health.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((Instant::now(), answer.clone()));
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::fake_api::FakeApi;

    /// What a node hears of, and so what a move costs with many nodes, follows from this list
    /// (operator/tests/model/scale.rs counts with it).
    #[tokio::test(start_paused = true)]
    async fn an_agent_watches_the_pods_of_its_node_and_its_links_servers_and_nothing_else() {
        let api = FakeApi::default();
        let watches = Watches::start(api.client(), "n7", "aero-system", "blue", vec![true], drop);
        watches.pods.wait_until_ready().await.unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
        let asked = api.asked();
        let watched: Vec<&String> = asked.iter().filter(|a| a.contains("watch=true")).collect();
        let [pods, slices] = watched[..] else { panic!("{watched:?}") };
        assert!(pods.starts_with("/api/v1/pods?"), "{pods}");
        assert!(pods.contains("fieldSelector=spec.nodeName%3Dn7"), "{pods}");
        let of = "/apis/discovery.k8s.io/v1/namespaces/aero-system/endpointslices?";
        assert!(slices.starts_with(of), "{slices}");
        assert!(slices.contains("link%3Dblue"), "{slices}");
        assert!(asked.iter().all(|a| !a.contains("aeroclients")), "{asked:?}");
    }
}
