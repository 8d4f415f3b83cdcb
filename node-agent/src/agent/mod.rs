//! The agent role: one Client per enrolled pod of this node.

mod assignment;
mod debug;
mod enrolment;
#[cfg(test)]
mod fake_api;
mod handler;
mod journal;
mod tell;
mod turns;
mod watch;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aero_dataplane::underlay::Underlay;
use aero_dataplane::userspace::{self, Forwarder};
use aero_dataplane::{ForwardingTable, PodInterface, interface_mtu, tun};
use aero_protocol::address::{Duid, Epoch, LinkLayerAddress};
use aero_protocol::client::{ClientSpec, Config, Node};
use aero_protocol::wire::aero_options::Claim;
use aero_telemetry::admin::{self, Readiness, ReadyHandle};
use aero_telemetry::shutdown;
use anyhow::Context as _;
use clap::Args;
use ipnet::{IpNet, Ipv6Net};
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::{Api, Client};
use prometheus_client::registry::Registry;
use rand::Rng;
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::attach;
use crate::cni::{conflist, server as cni_server};
use crate::driver::{Driver, PathMtu};
use crate::endpoints::Servers;
use crate::forwarding::{ForwarderArgs, Role};
use crate::{metrics, paths, sysctl};
use enrolment::Enrolment;
use journal::Journal;
use watch::Watches;

/// Control packets that wait for the engine at most.
const CONTROL_QUEUE: usize = 4096;
/// Servers to register at: one, and another for when it dies.
pub(crate) const USE_SERVERS: u8 = 2;
/// How often the installed plugin, the journal and the attachments are looked over.
const LOOK_OVER: Duration = Duration::from_secs(2);

/// Flags of `aero-node-agent agent`.
#[derive(Debug, Clone, Args)]
pub struct AgentArgs {
    /// The AeroLink of this node.
    #[arg(long, env = "AERO_LINK", default_value = "default")]
    link: String,
    /// Name of this node.
    #[arg(long, env = "NODE_NAME")]
    node_name: String,
    /// Namespace of the Servers.
    #[arg(long, env = "POD_NAMESPACE", default_value = "aero-system")]
    namespace: String,
    /// Underlay addresses of this node, separated by commas.
    #[arg(long, env = "HOST_IPS", value_delimiter = ',', required = true)]
    host_ips: Vec<IpAddr>,
    /// UDP port on the underlay.
    #[arg(long, env = "AERO_PORT", default_value_t = 8061)]
    port: u16,
    /// MTU of the AERO interface and of pods; the underlay's less the encapsulation if 0. Up to
    /// 1500 works over any underlay: what does not fit goes in two fragments of the tunnel.
    #[arg(long, env = "AERO_MTU", default_value_t = 0)]
    mtu: u16,
    /// What is known about the paths of the underlay.
    #[arg(long, env = "AERO_PATH_MTU", value_enum, default_value_t)]
    path_mtu: PathMtu,
    /// Name of the AERO interface.
    #[arg(long, default_value = "aero0")]
    device: String,
    /// Socket for the CNI plugin.
    #[arg(long, default_value = "/run/aero/agent.sock")]
    socket: PathBuf,
    /// Where attachments are kept.
    #[arg(long, default_value = "/var/lib/aero")]
    state_dir: PathBuf,
    /// Directory of the node's CNI configurations.
    #[arg(long, default_value = "/host/etc/cni/net.d")]
    cni_conf_dir: PathBuf,
    /// Directory of the node's CNI plugins.
    #[arg(long, default_value = "/host/opt/cni/bin")]
    cni_bin_dir: PathBuf,
    /// The CNI plugin, to be copied there.
    #[arg(long, default_value = "/bin/aero-cni")]
    cni_plugin: PathBuf,
    /// Where /proc/sys/net can be written.
    #[arg(long, default_value = "/host/proc/sys/net")]
    proc_sys_net: PathBuf,
    /// This agent's DaemonSet: when it is gone at the end, everything is taken off the node.
    #[arg(long, env = "AERO_DAEMONSET", default_value = "aero-agent")]
    daemonset: String,
    /// Look for direct paths to other nodes, and let them send straight to this one.
    #[arg(long, env = "AERO_OPTIMIZE", default_value_t = true, action = clap::ArgAction::Set)]
    optimize: bool,
    /// How many Servers to register at where Relays join them all: the nearest, and others when
    /// they go. Servers that no Relay joins are all used.
    #[arg(long, env = "AERO_USE_SERVERS", default_value_t = USE_SERVERS, value_name = "NUMBER",
          value_parser = clap::value_parser!(u8).range(1..))]
    use_servers: u8,
    /// Address of /healthz, /readyz, /metrics, and of /debug/node, /debug/probe and
    /// /debug/correspondents for callers on this node.
    #[arg(long, env = "AERO_ADMIN", default_value = "[::]:9061")]
    admin: SocketAddr,
    #[command(flatten)]
    forwarding: ForwarderArgs,
}

impl AgentArgs {
    fn conflist(&self) -> conflist::Paths {
        conflist::Paths {
            conf_dir: self.cni_conf_dir.clone(),
            bin_dir: self.cni_bin_dir.clone(),
            plugin: self.cni_plugin.clone(),
            socket: self.socket.display().to_string(),
        }
    }
}

/// The agent's parts.
pub struct Agent {
    args: AgentArgs,
    mtu: u16,
    driver: Arc<Driver<Node>>,
    table: Arc<dyn ForwardingTable>,
    watches: Arc<Watches>,
    enrolment: Enrolment,
    journal: Journal,
    routed: Mutex<BTreeSet<IpNet>>,
    underlay: Vec<LinkLayerAddress>,
    requests: metrics::CniRequests,
    turns: turns::Turns,
}

fn duid(client: Uuid) -> Duid {
    Duid::from_uuid(client)
}

/// Runs the agent until SIGTERM.
///
/// # Errors
/// If the node cannot be set up or a part breaks.
pub async fn run(args: AgentArgs) -> anyhow::Result<()> {
    let token = shutdown::token()?;
    let first = *args.host_ips.first().context("HOST_IPS is empty")?;
    sysctl::enable_forwarding(&args.proc_sys_net)?;
    let underlay = Arc::new(Underlay::bind(&args.host_ips, args.port)?);
    let underlay_mtu = attach::underlay_mtu(first).await?;
    let mtu = match args.mtu {
        0 => interface_mtu(underlay_mtu),
        mtu => mtu,
    };
    let device = tun::open(&args.device, mtu)?;
    attach::route_asps(&args.device, &[], attach::METRIC_OF_CLIENT).await?;
    let (control_sender, control) = mpsc::channel(CONTROL_QUEUE);
    let (errors, reported) = paths::underlay_errors();
    let config = userspace::Config {
        paths: args.path_mtu.config(underlay_mtu),
        underlay_errors: Some(errors),
        ..Default::default()
    };
    let userspace =
        Forwarder::with_config(Arc::clone(&underlay), Some(device), control_sender, config);
    let sender = Arc::clone(&userspace);
    let triggers = userspace.triggers();
    // Traffic goes on while no agent is there, with the leases that the Servers know.
    let role = Role { name: "agent", device: Some(&args.device), mtu, ttl_step: 0, outlives: None };
    let forwarder = args.forwarding.open(&role, &underlay, userspace)?;
    let engine = Node::new(Config {
        asps: Vec::new(),
        link_id: 0,
        node: args.node_name.clone(),
        seed: rand::rng().random(),
        optimize: args.optimize,
    });
    let table = forwarder.table();
    let mut registry = Registry::default();
    let teller = Arc::new(tell::Teller::new(metrics::Refusals::new(&mut registry)));
    let told = Arc::clone(&teller);
    let (driver, outgoing) =
        Driver::new(engine, Arc::clone(&table), move |event| told.report(event));
    driver.with(paths::set_clock);
    driver.with(|node, now| node.use_servers(Some(args.use_servers.into()), now));
    let readiness = Readiness::default();
    let (cni_ready, servers_ready) = (readiness.register("cni"), readiness.register("servers"));
    let requests = metrics::CniRequests::new(&mut registry);
    debug::register(&mut registry, &driver, Arc::clone(&table));
    let about = debug::About::default();
    let stop = tokio_util::sync::CancellationToken::new();
    let correspondents = Arc::clone(&driver);
    let extra = debug::router(about.clone()).route(
        "/debug/correspondents",
        axum::routing::get(move || async move { axum::Json(paths::list(&correspondents)) }),
    );
    let mut admin =
        tokio::spawn(admin::serve(args.admin, readiness, registry, extra, stop.clone()));
    let client = Client::try_default().await.context("there is no way to an API server")?;
    let families = args.host_ips.iter().map(IpAddr::is_ipv6).collect();
    let of_servers = Arc::clone(&driver);
    let remembered = args.state_dir.join("servers.json");
    std::fs::create_dir_all(&args.state_dir)?;
    recall_servers(&driver, &remembered);
    let ending = token.clone();
    let watches = Watches::start(
        client.clone(),
        &args.node_name,
        &args.namespace,
        &args.link,
        families,
        move |servers| {
            // An agent that takes everything off its node writes nothing any more.
            if !ending.is_cancelled() {
                set_servers(&of_servers, &servers, &remembered, &servers_ready);
            }
        },
    );
    let journal = Journal::open(&args.state_dir.join("attachments"))?;
    let agent = Arc::new(Agent {
        mtu,
        driver: Arc::clone(&driver),
        enrolment: Enrolment::new(client.clone(), watches.pods.clone()),
        watches,
        journal,
        routed: Mutex::default(),
        underlay: underlay.addresses().collect(),
        table: Arc::clone(&table),
        requests,
        turns: turns::Turns::default(),
        args: args.clone(),
    });
    about.is(&agent);
    teller.is(&agent, client.clone());
    let surveyor = Arc::clone(&agent);
    tokio::spawn(async move { surveyor.enrolment.survey().await });
    agent.recover().await;
    let listener = cni_server::listen(&args.socket)
        .with_context(|| format!("the socket {}", args.socket.display()))?;
    tracing::info!(node = args.node_name, mtu, "serving {:?} port {}", args.host_ips, args.port);
    let mut forwarding = tokio::spawn(forwarder.clone().run());
    tokio::select! {
        () = driver.run(&sender, control, outgoing) => {}
        () = paths::watch(&driver, &*table, triggers) => {}
        () = paths::heed(&driver, reported) => {}
        ended = &mut forwarding => ended??,
        ended = &mut admin => ended??,
        () = cni_server::serve(listener, Arc::clone(&agent)) => {}
        () = agent.look_over(&cni_ready) => {}
        () = token.cancelled() => {}
    }
    stop.cancel();
    if agent.uninstalled(client).await {
        agent.uninstall().await;
        forwarder.remove();
    } else {
        tracing::info!("attachments and configuration stay for the next agent");
    }
    Ok(())
}

/// Tells the engine which Servers there are. No Server at all is no news to act on: leases go on
/// with the ones that are known. One that is there and does not serve any more is left, so that it
/// is told where its clients are; one that is gone is forgotten.
fn set_servers(
    driver: &Driver<Node>,
    servers: &Servers,
    remembered: &std::path::Path,
    ready: &ReadyHandle,
) {
    let wanted = &servers.ready;
    if wanted.is_empty() {
        ready.not_ready("the link has no ready Server");
        return;
    }
    ready.ready();
    driver.with(|node, now| {
        let known: BTreeSet<_> = node.servers().map(|(l2, _)| l2).collect();
        // Those that are known, too: one that was being left may be back.
        node.add_servers(wanted.iter().copied(), now);
        for server in known.difference(wanted) {
            if servers.unready.contains(server) {
                node.leave_server(*server, now);
            } else {
                node.remove_server(*server, now);
            }
        }
    });
    let list: Vec<SocketAddr> = wanted.iter().map(|l2| (*l2).into()).collect();
    let saved = serde_json::to_vec(&list)
        .map_err(std::io::Error::other)
        .and_then(|bytes| conflist::replace(remembered, &bytes, 0o600));
    if let Err(e) = saved {
        tracing::warn!("the list of Servers cannot be kept: {e}");
    }
}

/// The Servers of the last run, so that a restart needs no API server.
fn recall_servers(driver: &Driver<Node>, remembered: &std::path::Path) {
    let list: Vec<SocketAddr> = std::fs::read(remembered)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default();
    let list = list.into_iter().map(LinkLayerAddress::from);
    driver.with(|node, now| node.add_servers(list, now));
}

impl Agent {
    /// Claims a prefix for a pod.
    fn speak_for(&self, client: Uuid, epoch: u64, holder: Uuid, prefix: Ipv6Net) -> Duid {
        let spec = ClientSpec {
            client: duid(client),
            claim: Some(Claim { epoch: Epoch(epoch), holder }),
            prefixes: vec![prefix.into()],
        };
        self.driver.with(|node, now| node.attach(spec, now));
        duid(client)
    }

    /// Tells the forwarder where a pod is, once its interfaces are made.
    fn connect(&self, spec: &attach::AttachSpec) {
        self.table.connect(&PodInterface {
            name: &spec.host_ifname,
            prefix: spec.prefix.into(),
            mac: attach::POD_MAC,
            node_mac: attach::HOST_MAC,
        });
    }

    fn stop_speaking_for(&self, client: Uuid) {
        self.driver.with(|node, now| node.detach(&duid(client), now));
    }

    /// Routes service prefixes to the AERO interface, each once.
    async fn routes_for(&self, asps: &[IpNet]) {
        let new: Vec<IpNet> = {
            let routed = self.routed.lock().unwrap_or_else(PoisonError::into_inner);
            asps.iter().filter(|p| !routed.contains(p)).copied().collect()
        };
        if new.is_empty() {
            return;
        }
        // Pods have IPv6 prefixes only; an IPv4 service prefix is none of this node's.
        let v6 = |p: &&IpNet| matches!(p, IpNet::V6(_));
        let routes: Vec<IpNet> = new.iter().filter(v6).copied().collect();
        match attach::route_asps(&self.args.device, &routes, attach::METRIC_OF_CLIENT).await {
            Ok(()) => {
                self.driver.with(|node, _| node.add_asps(&new));
                self.routed.lock().unwrap_or_else(PoisonError::into_inner).extend(new);
            }
            Err(e) => tracing::warn!("service prefixes cannot be routed: {e}"),
        }
    }

    /// Takes up the attachments of the run before.
    async fn recover(&self) {
        for record in self.journal.all() {
            if let Err(e) = attach::attach(&record.spec).await {
                tracing::info!(pod = record.pod, "not recovered, its pod is gone: {e}");
                if let Err(e) = self.drop_attachment(&record, false).await {
                    tracing::warn!("left behind: {}", e.msg);
                }
                continue;
            }
            self.connect(&record.spec);
            self.routes_for(&record.spec.asps).await;
            self.speak_for(record.client_id, record.epoch, record.pod_uid, record.spec.prefix);
            tracing::info!(pod = record.pod, prefix = %record.spec.prefix, "recovered");
        }
        let known: BTreeSet<String> =
            self.journal.all().into_iter().map(|r| r.spec.host_ifname).collect();
        for stray in attach::host_interfaces().await.unwrap_or_default() {
            if !known.contains(&stray) {
                tracing::info!(stray, "an interface without an attachment is removed");
                self.table.disconnect(&stray);
                let _ = attach::detach(&stray).await;
            }
        }
    }

    /// Keeps the node as it should be: the plugin installed, DELs made up for that came while
    /// the agent was away, attachments of pods that are gone removed, claims up to date.
    async fn look_over(&self, cni_ready: &ReadyHandle) {
        let paths = self.args.conflist();
        let mut changes = self.watches.changes();
        loop {
            match conflist::install(&paths) {
                Ok(changed) => {
                    cni_ready.ready();
                    if changed {
                        tracing::info!("the chained network configuration is installed");
                    }
                }
                Err(e) => cni_ready.not_ready(e.to_string()),
            }
            match journal::take_missed(&self.args.state_dir.join("cni-del")) {
                Ok(missed) => {
                    for del in missed {
                        tracing::info!(container = del.container_id, "a DEL is made up for");
                        let _ = self.del(&del.container_id, &del.ifname).await;
                    }
                }
                Err(e) => tracing::warn!("DELs written down by the plugin cannot be read: {e}"),
            }
            self.refresh().await;
            tokio::select! {
                () = tokio::time::sleep(LOOK_OVER) => {}
                _ = changes.changed() => {
                    // A burst of changes is one.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }

    async fn refresh(&self) {
        for record in self.journal.all() {
            if handler::pod_is_gone(self, &record) {
                // Its namespace goes last; before that the runtime still sends a DEL.
                if !record.spec.netns.exists() {
                    tracing::info!(pod = record.pod, "its pod is gone without a DEL");
                    let _ = self.drop_attachment(&record, true).await;
                }
                continue;
            }
            let Some(pod) = self.watches.pod(&record.namespace, &record.pod) else { continue };
            if let assignment::Verdict::Assigned(a) = assignment::read(&pod)
                && a.epoch != record.epoch
                && a.prefix == record.spec.prefix
            {
                tracing::info!(pod = record.pod, epoch = a.epoch, "claimed under its new epoch");
                self.speak_for(a.client_id, a.epoch, a.pod_uid, a.prefix);
                let mut renewed = record.clone();
                renewed.epoch = a.epoch;
                if let Err(e) = self.journal.put(renewed) {
                    tracing::warn!("the journal: {e}");
                }
            }
        }
    }

    /// Whether the agent is being removed, not restarted: its DaemonSet is gone or going, or the
    /// right to look has gone with the rest of the release.
    async fn uninstalled(&self, client: Client) -> bool {
        let api: Api<DaemonSet> = Api::namespaced(client, &self.args.namespace);
        match tokio::time::timeout(Duration::from_secs(3), api.get(&self.args.daemonset)).await {
            Ok(Ok(set)) => set.metadata.deletion_timestamp.is_some(),
            Ok(Err(kube::Error::Api(e))) => matches!(e.code, 401 | 403 | 404),
            _ => false,
        }
    }

    /// Takes everything off the node.
    async fn uninstall(&self) {
        tracing::info!("the release is gone: taking everything off the node");
        if let Err(e) = conflist::uninstall(&self.args.conflist()) {
            tracing::warn!("the CNI plugin cannot be removed: {e}");
        }
        for record in self.journal.all() {
            let _ = self.drop_attachment(&record, false).await;
        }
        for stray in attach::host_interfaces().await.unwrap_or_default() {
            let _ = attach::detach(&stray).await;
        }
        if let Err(e) = attach::remove_device(&self.args.device).await {
            tracing::warn!("the AERO interface cannot be removed: {e}");
        }
        // A mount point itself stays; what is in it goes.
        for entry in std::fs::read_dir(&self.args.state_dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let _ = if path.is_dir() {
                std::fs::remove_dir_all(path)
            } else {
                std::fs::remove_file(path)
            };
        }
        let _ = std::fs::remove_file(&self.args.socket);
    }
}
