//! What the agent watches: the pods of its node, the AeroClients, the Servers of its link.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aero_crds::{AeroClient, annotations};
use aero_protocol::address::LinkLayerAddress;
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::{self, Store};
use kube::runtime::watcher;
use kube::{Api, Client};
use tokio::sync::watch as channel;

/// How long an answer about the API server's health is believed.
const HEALTH_AGE: Duration = Duration::from_secs(3);
/// How long the API server may take to say that it is well.
const HEALTH_TIME: Duration = Duration::from_secs(2);

/// Caches of the agent.
pub struct Watches {
    client: Client,
    /// Pods of this node.
    pub pods: Store<Pod>,
    /// All AeroClients.
    pub clients: Store<AeroClient>,
    changed: channel::Sender<u64>,
    health: Mutex<Option<(Instant, Result<(), String>)>>,
}

impl Watches {
    /// Starts the watches. `on_servers` gets the addresses of the Servers that serve.
    pub fn start(
        client: Client,
        node: &str,
        namespace: &str,
        link: &str,
        families: Vec<bool>,
        on_servers: impl Fn(BTreeSet<LinkLayerAddress>) + Send + Sync + 'static,
    ) -> Arc<Self> {
        let (pods, pod_writer) = reflector::store();
        let (clients, client_writer) = reflector::store();
        let (slices, slice_writer) = reflector::store::<EndpointSlice>();
        let changed = channel::channel(0).0;
        let watches = Arc::new(Self {
            client: client.clone(),
            pods,
            clients,
            changed,
            health: Mutex::new(None),
        });
        let own = watcher::Config::default().fields(&format!("spec.nodeName={node}"));
        let all: Api<Pod> = Api::all(client.clone());
        watches.follow(aero_crds::watch(all, own).reflect(pod_writer));
        let all: Api<AeroClient> = Api::all(client.clone());
        let all_of_them = watcher::Config::default();
        watches.follow(aero_crds::watch(all, all_of_them).reflect(client_writer));
        let labels = format!(
            "{}={},{}={link}",
            annotations::COMPONENT_LABEL,
            annotations::COMPONENT_SERVER,
            annotations::LINK_LABEL
        );
        let of_servers: Api<EndpointSlice> = Api::namespaced(client, namespace);
        let config = watcher::Config::default().labels(&labels);
        let stream = aero_crds::watch(of_servers, config).reflect(slice_writer);
        tokio::spawn(async move {
            let mut stream = std::pin::pin!(stream);
            while let Some(event) = stream.next().await {
                if event.is_ok() {
                    on_servers(servers_of(&slices.state(), &families));
                }
            }
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

    /// Tells when a pod or a client has changed.
    pub fn changes(&self) -> channel::Receiver<u64> {
        self.changed.subscribe()
    }

    /// A pod of this node.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        self.pods.get(&reflector::ObjectRef::new(name).within(namespace))
    }

    /// Whether an AeroClient selects a pod.
    pub fn enrolled(&self, pod: &Pod) -> bool {
        self.clients.state().iter().any(|c| c.selects(pod))
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

/// The addresses of Servers that serve, one for each, all of one family: the first of this node
/// that any Server has. `families`: for each family of the node in its order, whether it is IPv6.
///
/// The slices of the two families change one after the other, so a Server that goes is for a
/// moment in one of them only; it must not be taken for a Server of that family.
fn servers_of(slices: &[Arc<EndpointSlice>], families: &[bool]) -> BTreeSet<LinkLayerAddress> {
    let mut serving = BTreeSet::new();
    let mut any = BTreeSet::new();
    for slice in slices {
        let port = slice.ports.iter().flatten().find_map(|p| p.port);
        let Some(port) = port.and_then(|p| u16::try_from(p).ok()) else { continue };
        for endpoint in &slice.endpoints {
            let ready = endpoint
                .conditions
                .as_ref()
                .is_none_or(|c| c.ready.unwrap_or(true) && !c.terminating.unwrap_or(false));
            for ip in endpoint.addresses.iter().filter_map(|a| a.parse::<IpAddr>().ok()) {
                any.insert(ip.is_ipv6());
                if ready {
                    serving.insert(LinkLayerAddress::new(ip, port));
                }
            }
        }
    }
    let family = families.iter().find(|v6| any.contains(v6));
    serving.into_iter().filter(|l2| Some(&l2.ip.is_ipv6()) == family).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(family: &str, address: &str, uid: &str, ready: bool) -> Arc<EndpointSlice> {
        Arc::new(
            serde_json::from_value(serde_json::json!({
                "metadata": {"name": format!("s-{family}-{uid}")}, "addressType": family,
                "ports": [{"port": 8060, "protocol": "UDP"}],
                "endpoints": [{"addresses": [address], "conditions": {"ready": ready},
                    "targetRef": {"uid": uid}}],
            }))
            .unwrap(),
        )
    }

    #[test]
    fn servers_are_taken_at_the_first_family_that_the_node_shares_with_any_of_them() {
        let slices = [
            slice("IPv4", "192.0.2.11", "a", true),
            slice("IPv6", "2001:db8:77::11", "a", true),
            slice("IPv4", "192.0.2.12", "b", false),
            slice("IPv6", "2001:db8:77::13", "c", true),
        ];
        let text = |slices: &[Arc<EndpointSlice>], families: &[bool]| {
            servers_of(slices, families).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(text(&slices, &[false]), ["192.0.2.11:8060"]);
        assert_eq!(
            text(&slices, &[true, false]),
            ["[2001:db8:77::11]:8060", "[2001:db8:77::13]:8060"]
        );
        // c has left the one slice already: it is not a Server of the other family.
        assert_eq!(text(&slices, &[false, true]), ["192.0.2.11:8060"]);
        assert_eq!(text(&slices[1..2], &[false, true]), ["[2001:db8:77::11]:8060"]);
        assert!(text(&slices[2..3], &[false]).is_empty());
    }
}
