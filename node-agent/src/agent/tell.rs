//! Says what the engine reports: in the log with the client's identity, and as Events of
//! Kubernetes where only this node knows (a Server refused a pod; a Server fell silent).

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use aero_protocol::address::Duid;
use aero_protocol::client::Event;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{self, EventType, Recorder, Reporter};
use tokio::sync::mpsc;

use super::Agent;
use super::journal::Record;
use crate::metrics::Refusals;
use crate::sparing;

/// The same words about the same object are not repeated within this time.
const QUIET: Duration = Duration::from_secs(60);

/// An Event to publish.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Told {
    reason: &'static str,
    note: String,
    about: About,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum About {
    Node,
    Pod { namespace: String, name: String, uid: String },
}

/// Tells.
pub(super) struct Teller {
    refusals: Refusals,
    to: OnceLock<(Weak<Agent>, mpsc::UnboundedSender<Told>)>,
}

impl Teller {
    /// Logs only, until there is an agent.
    pub(super) fn new(refusals: Refusals) -> Self {
        Self { refusals, to: OnceLock::new() }
    }

    /// The agent is there, and so is the API server's client.
    pub(super) fn is(&self, agent: &Arc<Agent>, client: Client) {
        let (sender, told) = mpsc::unbounded_channel();
        if self.to.set((Arc::downgrade(agent), sender)).is_ok() {
            tokio::spawn(publish(client, agent.args.node_name.clone(), told));
        }
    }

    /// Says what the engine reports.
    pub(super) fn report(&self, event: Event) {
        let Some(event) = super::paths::report(event) else { return };
        match event {
            Event::Delegated { client, server, prefixes, new: true } => {
                let pod = self.pod(&client);
                tracing::info!(pod, client_id = %client, %server, ?prefixes, "delegated");
            }
            Event::Delegated { .. } => {}
            Event::Refused { client, server, text } => {
                self.refusals.refused();
                let record = self.record(&client);
                let pod = record.as_ref().map(name);
                if let Some(left_out) = sparing::may_warn("refused") {
                    tracing::warn!(pod, client_id = %client, %server, left_out, "refused: {text}");
                }
                if let Some(record) = record {
                    let about = About::Pod {
                        namespace: record.namespace,
                        name: record.pod,
                        uid: record.pod_uid.to_string(),
                    };
                    let note =
                        format!("Server {server} does not delegate {}: {text}", record.spec.prefix);
                    self.tell(Told { reason: "Rejected", note, about });
                }
            }
            Event::Muted { client, why } => {
                let pod = self.pod(&client);
                tracing::warn!(pod, client_id = %client, ?why, "no longer served here");
            }
            Event::Released { client } => {
                tracing::info!(pod = self.pod(&client), client_id = %client, "released");
            }
            Event::ServerUp(server) => tracing::info!(%server, "Server answers"),
            Event::ServerDown(server) => {
                tracing::warn!(%server, "Server does not answer any more");
                let note = format!("Server {server} does not answer this node any more");
                self.tell(Told { reason: "ServerLost", note, about: About::Node });
            }
            Event::LeftServer { client, server, confirmed } => {
                let pod = self.pod(&client);
                tracing::info!(pod, client_id = %client, %server, confirmed, "left this Server for another");
            }
            Event::LinkUsed(link) => tracing::info!(link, "another underlay link is used"),
            // Reported before.
            Event::PathOpened { .. } | Event::PathLost { .. } | Event::Ignored { .. } => {}
            Event::Dropped { from, why } => {
                self.refusals.dropped(why);
                tracing::debug!(%from, "control packet dropped: {why}");
            }
        }
    }

    fn tell(&self, told: Told) {
        if let Some((_, sender)) = self.to.get() {
            // Ends only with the process.
            let _ = sender.send(told);
        }
    }

    fn record(&self, client: &Duid) -> Option<Record> {
        let agent = self.to.get()?.0.upgrade()?;
        let all = agent.journal.all();
        all.into_iter().find(|r| super::duid(r.client_id) == *client)
    }

    fn pod(&self, client: &Duid) -> Option<String> {
        self.record(client).as_ref().map(name)
    }
}

fn name(record: &Record) -> String {
    format!("{}/{}", record.namespace, record.pod)
}

async fn publish(client: Client, node: String, mut told: mpsc::UnboundedReceiver<Told>) {
    let reporter = Reporter { controller: "aero-agent".into(), instance: Some(node.clone()) };
    let recorder = Recorder::new(client, reporter);
    let mut said: BTreeMap<Told, Instant> = BTreeMap::new();
    while let Some(t) = told.recv().await {
        said.retain(|_, at| at.elapsed() < QUIET);
        if said.contains_key(&t) {
            continue;
        }
        let event = events::Event {
            type_: EventType::Warning,
            reason: t.reason.into(),
            // The recorder takes two Events of one action for one.
            action: t.note.chars().take(128).collect(),
            note: Some(t.note.clone()),
            secondary: None,
        };
        // The API server may be away; what is no news any more then is not told later.
        if let Err(e) = recorder.publish(&event, &reference(&t.about, &node)).await {
            tracing::debug!("an Event cannot be written: {e}");
        }
        said.insert(t, Instant::now());
    }
}

fn reference(about: &About, node: &str) -> ObjectReference {
    let v1 = || Some("v1".to_string());
    match about {
        About::Node => ObjectReference {
            api_version: v1(),
            kind: Some("Node".into()),
            name: Some(node.into()),
            // As the kubelet names its own node, so that `kubectl describe node` shows it.
            uid: Some(node.into()),
            ..ObjectReference::default()
        },
        About::Pod { namespace, name, uid } => ObjectReference {
            api_version: v1(),
            kind: Some("Pod".into()),
            namespace: Some(namespace.clone()),
            name: Some(name.clone()),
            uid: Some(uid.clone()),
            ..ObjectReference::default()
        },
    }
}
