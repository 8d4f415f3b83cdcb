//! `aero-node-agent`.

#![forbid(unsafe_code)]

use aero_node_agent::{agent, bgp, client, forwarding_agent, relay, server};
use aero_telemetry::logs;
use clap::{Parser, Subcommand};

/// The AERO node agent. Runs as a DaemonSet (`agent`): attaches the pods of its node that an
/// AeroClient selects, and carries their packets to wherever their correspondents run. Runs as
/// the Servers of an AeroServer (`server`): leases prefixes and forwards between nodes. Runs on a
/// host outside Kubernetes (`client`): keeps its prefix wherever it goes. Runs between Servers
/// (`relay`): joins the link to other networks.
#[derive(Debug, Parser)]
#[command(version = concat!(env!("CARGO_PKG_VERSION"), " (AERO: draft-templin-aerolink-48)"))]
struct Args {
    #[command(subcommand)]
    role: Role,
    #[command(flatten)]
    logs: logs::LogArgs,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Serve the pods of this node.
    Agent(Box<agent::AgentArgs>),
    /// Serve the nodes of a link.
    Server(Box<server::ServerArgs>),
    /// Keep a prefix on this host, wherever its underlay address goes.
    Client(Box<client::ClientArgs>),
    /// Forward between Servers, and between the link and this node's network.
    Relay(Box<relay::RelayArgs>),
    /// Forward data as a Server beside it says.
    ForwardingAgent(Box<forwarding_agent::ForwardingAgentArgs>),
    /// Print the configuration of BIRD 2 for the Server or Relay of this node.
    BirdConfig(Box<bgp::bird_config::BirdConfigArgs>),
    /// Run BIRD 2 beside the Server or Relay of this node.
    Bird(Box<bgp::daemon::BirdArgs>),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    logs::init(&args.logs)?;
    match args.role {
        Role::Agent(args) => agent::run(*args).await,
        Role::Server(args) => server::run(*args).await,
        Role::Client(args) => client::run(*args).await,
        Role::Relay(args) => relay::run(*args).await,
        Role::ForwardingAgent(args) => forwarding_agent::run(*args).await,
        Role::Bird(args) => bgp::daemon::run(*args).await,
        Role::BirdConfig(args) => bgp::bird_config::run(*args).await,
    }
}
