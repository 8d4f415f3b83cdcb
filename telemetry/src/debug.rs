//! What agents and Servers say of themselves under `/debug`, as JSON. `kubectl aero` reads it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Counters of a forwarder since its start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Counters {
    /// Packets handed to the node's network layer.
    pub delivered_packets: u64,
    /// Packets sent into a tunnel.
    pub tunneled_packets: u64,
    /// Control packets received.
    pub control_packets: u64,
    /// Packets that the device or the underlay did not take.
    pub send_errors: u64,
    /// Packets dropped, by reason.
    pub drops: BTreeMap<String, u64>,
}

impl Counters {
    /// Packets dropped, for whatever reason.
    pub fn dropped(&self) -> u64 {
        self.drops.values().sum()
    }
}

/// An agent: `/debug/node`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeReport {
    /// Name of the node.
    pub node: String,
    /// Version of the agent.
    pub version: String,
    /// The link that it serves.
    pub link: String,
    /// Its underlay addresses, with the port.
    pub underlay: Vec<String>,
    /// MTU of pods' AERO interfaces.
    pub mtu: u16,
    /// The Server that packets without a better path go to.
    pub default_server: Option<String>,
    /// All Servers that it knows.
    pub servers: Vec<ServerSeen>,
    /// The Clients that it speaks for.
    pub clients: Vec<ClientReport>,
    /// What it has forwarded and dropped.
    pub counters: Counters,
    /// What went to and from its neighbours, of those that are counted apart.
    pub neighbors: Vec<NeighborTraffic>,
}

/// What went between a node and a neighbour.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NeighborTraffic {
    /// Underlay address and port.
    pub address: String,
    /// Whether its tunnel has no UDP at the moment.
    pub ip_in_ip: bool,
    /// Packets sent into its tunnel.
    pub tunneled_packets: u64,
    /// Their bytes, without encapsulation.
    pub tunneled_bytes: u64,
    /// Packets that came from it and had a right to.
    pub received_packets: u64,
    /// Their bytes, without encapsulation.
    pub received_bytes: u64,
}

/// A Server as an agent sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServerSeen {
    /// Underlay address and port.
    pub address: String,
    /// `answers`, `silent` or `untried`.
    pub state: String,
}

/// A Client as its agent sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientReport {
    /// UUID of its DUID.
    pub client_id: String,
    /// Namespace of its pod.
    pub namespace: String,
    /// Name of its pod.
    pub pod: String,
    /// UID of its pod.
    pub pod_uid: String,
    /// Its prefix.
    pub prefix: String,
    /// Its address.
    pub address: String,
    /// The epoch under which the agent claims it.
    pub epoch: u64,
    /// Interface on the node.
    pub interface: String,
    /// What is not as it should be with its interfaces.
    pub fault: Option<String>,
    /// Packets from and to the prefix are forwarded.
    pub served: bool,
    /// Servers that have given it a lease.
    pub bound: Vec<String>,
    /// Servers that answer and have not (yet).
    pub pending: Vec<String>,
    /// The last refusal.
    pub refusal: Option<String>,
}

/// A Server: `/debug/server`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServerReport {
    /// Version of the Server.
    pub version: String,
    /// The link that it serves.
    pub link: String,
    /// Its underlay addresses, with the port.
    pub underlay: Vec<String>,
    /// Rows of its copy of the shared table.
    pub mappings: usize,
    /// Its neighbour cache.
    pub neighbors: Vec<NeighborReport>,
    /// The last moves, oldest first.
    pub moves: Vec<MoveReport>,
    /// What it has forwarded and dropped.
    pub counters: Counters,
}

/// A neighbour cache entry of a Server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NeighborReport {
    /// The prefix.
    pub acp: String,
    /// DUID of the Client.
    pub client: String,
    /// Where packets for it go.
    pub link_layer: String,
    /// Epoch of the lease.
    pub epoch: u64,
    /// Seconds until the lease ends.
    pub lease_seconds: u64,
}

/// A move as a Server saw it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MoveReport {
    /// Milliseconds of the clock at which packets had a place to go to again.
    pub at_ms: u64,
    /// The prefix.
    pub prefix: String,
    /// Whose it is: `namespace/client/identity`.
    pub identity: String,
    /// Where packets went before.
    pub from: String,
    /// Where they go now.
    pub to: String,
    /// The new holder's epoch.
    pub epoch: u64,
    /// For how long this Server had no place to send them to, in milliseconds.
    pub gap_ms: u64,
}

/// Outcome of a probe of an agent: `/debug/probe`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProbeReport {
    /// Source address.
    pub from: Option<String>,
    /// Destination address.
    pub to: String,
    /// Microseconds until the answer; none: no answer.
    pub round_trip_us: Option<u64>,
    /// What came in the place of an answer.
    pub error: Option<String>,
}
