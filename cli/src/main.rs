//! `kubectl-aero`.

#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use aero_cli::explain::{explain, explain_client, explain_pod};
use aero_cli::observe::{self, AGENT_PORT, System};
use aero_cli::report::Report;
use aero_cli::target::{Target, targets};
use aero_cli::{bundle, connectivity, moves, reach, status, trace};
use aero_crds::parse_duration;
use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use k8s_openapi::api::core::v1::Pod;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, ResourceExt};
use serde::Serialize;

/// How often a live view looks.
const EVERY: Duration = Duration::from_secs(1);

/// Looks at AERO in a Kubernetes cluster: how it is, why a prefix is or is not reachable, which
/// way packets go, what moved.
///
/// Put the program into a directory of PATH under the name kubectl-aero and call it as `kubectl
/// aero`. The pages of agents and Servers are read by forwarding a port into their pods, so it
/// needs the right `pods/portforward` in their namespace. Exits with 1 if something is wrong with
/// what it looked at, with 2 if it could not look.
#[derive(Debug, Parser)]
#[command(name = "kubectl-aero", bin_name = "kubectl aero", version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct Common {
    /// Namespace of AeroClients and pods that are named without one; the context's if not given.
    #[arg(short, long, global = true)]
    namespace: Option<String>,
    /// Namespace of AERO itself.
    #[arg(long, global = true, env = "AERO_NAMESPACE", default_value = "aero-system")]
    aero_namespace: String,
    /// Kubeconfig; $KUBECONFIG, ~/.kube/config or the pod's own account if not given.
    #[arg(long, global = true)]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig.
    #[arg(long, global = true)]
    context: Option<String>,
    /// Form of what is said.
    #[arg(short, long, global = true, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// The whole system on one screen.
    Status {
        /// Wait until all is well, for at most this long, for example 60s.
        #[arg(long, value_name = "DURATION")]
        wait: Option<String>,
    },
    /// Why a prefix is or is not reachable: mapping, holder, agent, Server, tunnel and neighbour,
    /// counters, in the order in which each needs the one before.
    ///
    /// Examples: `kubectl aero explain web`, `kubectl aero explain pod/web-0`,
    /// `kubectl aero explain 2001:db8:a:1::/64`, `kubectl aero explain 2001:db8:a:1::1`.
    Explain {
        /// An AeroClient, a pod, a prefix or an address.
        target: String,
    },
    /// Probes between all nodes, each way: between the nodes, and between enrolled pods on them.
    Connectivity {
        /// Only from this node.
        #[arg(long)]
        from: Option<String>,
    },
    /// The way of a packet from an enrolled pod to an address, and a probe that goes it.
    ///
    /// Example: `kubectl aero trace web-0 2001:db8:a:2::1`.
    Trace {
        /// The pod: `web-0`, `pod/web-0` or `namespace/web-0`.
        pod: String,
        /// The address.
        address: IpAddr,
    },
    /// Moves as they happen, with the time that each left its prefix without a place at the
    /// Servers. Begins with those that the Servers remember; ends with Ctrl-C.
    Moves {
        /// Only those that were; do not wait for more.
        #[arg(long)]
        once: bool,
    },
    /// Everything that somebody else needs to find a fault, as a tar.gz, without secrets.
    Bundle {
        /// The file to write; aero-bundle-TIME.tar.gz here if not given.
        #[arg(short, long)]
        file: Option<PathBuf>,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::from(2)
        }
    }
}

/// A client, and the namespace of the context.
async fn connect(common: &Common) -> anyhow::Result<(Client, String)> {
    let options = KubeConfigOptions { context: common.context.clone(), ..Default::default() };
    let config = match &common.kubeconfig {
        Some(path) => {
            let kubeconfig = Kubeconfig::read_from(path)
                .with_context(|| format!("{} is no kubeconfig", path.display()))?;
            Config::from_custom_kubeconfig(kubeconfig, &options).await?
        }
        None if common.context.is_some() => Config::from_kubeconfig(&options).await?,
        None => Config::infer()
            .await
            .context("there is no way to a cluster; set KUBECONFIG, or name one by --kubeconfig")?,
    };
    let namespace = common.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
    Ok((Client::try_from(config)?, namespace))
}

fn say<T: Serialize>(
    output: Output,
    value: &T,
    text: impl FnOnce() -> String,
) -> anyhow::Result<()> {
    match output {
        Output::Text => print!("{}", text()),
        Output::Json => println!("{}", serde_json::to_string_pretty(value)?),
    }
    Ok(())
}

async fn run(arguments: Arguments) -> anyhow::Result<bool> {
    let common = &arguments.common;
    let (client, namespace) = connect(common).await?;
    let aero = common.aero_namespace.as_str();
    match arguments.verb {
        Verb::Status { wait } => say_status(&client, common, wait.as_deref()).await,
        Verb::Explain { target } => say_explain(&client, common, &namespace, &target).await,
        Verb::Connectivity { from } => {
            let system = observe::system(&client, aero).await?;
            if let Some(node) = &from
                && !system.agents.contains_key(node)
            {
                let known: Vec<&str> = system.agents.keys().map(String::as_str).collect();
                bail!("no agent runs on {node}; there are agents on {}", known.join(", "));
            }
            let wanted = connectivity::plan(&system, from.as_deref());
            let pairs = connectivity::probe(&client, &system, wanted).await;
            let judged = connectivity::judge(&system, pairs);
            say(common.output, &judged, || judged.text())?;
            Ok(judged.healthy())
        }
        Verb::Trace { pod, address } => {
            let rest = pod.strip_prefix("pod/").unwrap_or(&pod);
            let (ns, name) = rest.split_once('/').unwrap_or((&namespace, rest));
            let system = observe::system(&client, aero).await?;
            let probe = probe(&client, &system, ns, name, address).await;
            let report = trace::trace(&system, (ns, name), address, probe.as_ref());
            say(common.output, &report, || report.to_string())?;
            Ok(report.healthy())
        }
        Verb::Moves { once } => say_moves(&client, common, once).await,
        Verb::Bundle { file } => {
            let system = observe::system(&client, aero).await?;
            let time = k8s_openapi::jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S").to_string();
            let root = format!("aero-bundle-{time}");
            let path = file.unwrap_or_else(|| format!("{root}.tar.gz").into());
            let files = bundle::gather(&client, &system).await.write(&path, &root)?;
            println!("{} holds {files} files; look it over before you pass it on", path.display());
            Ok(true)
        }
    }
}

async fn say_status(client: &Client, common: &Common, wait: Option<&str>) -> anyhow::Result<bool> {
    let wait = match wait {
        Some(text) => parse_duration(text).context("--wait takes a duration such as 60s or 5m")?,
        None => Duration::ZERO,
    };
    let give_up = Instant::now() + wait;
    loop {
        let seen = observe::system(client, &common.aero_namespace).await;
        let over = Instant::now() >= give_up;
        let status = match seen {
            Err(e) if over => return Err(e),
            Err(_) => None,
            Ok(system) => Some(status::status(&system)),
        };
        if let Some(status) = status
            && (over || status::healthy(&status))
        {
            say(common.output, &status, || status.text())?;
            return Ok(status::healthy(&status));
        }
        tokio::time::sleep(EVERY).await;
    }
}

async fn say_explain(
    client: &Client,
    common: &Common,
    namespace: &str,
    target: &str,
) -> anyhow::Result<bool> {
    let system = observe::system(client, &common.aero_namespace).await?;
    let targets = targets(&system, target, namespace).map_err(anyhow::Error::msg)?;
    let mut reports: Vec<Report> = Vec::new();
    for target in targets {
        reports.push(match target {
            Target::Mapping(m) => {
                let holder = match &m.spec.holder {
                    Some(h) => {
                        observe::pod(client, &m.spec.client_ref.namespace, &h.pod_name).await?
                    }
                    None => None,
                };
                explain(&system, &m, holder.as_ref())
            }
            Target::Client(c) => explain_client(&c),
            Target::Pod(ns, name) => {
                let api: Api<Pod> = Api::namespaced(client.clone(), &ns);
                let Some(pod) = api.get_opt(&name).await? else {
                    bail!(
                        "there is no AeroClient, identity or pod {name:?} in namespace {ns}; -n names another"
                    );
                };
                let selects = system.clients.iter().filter(|c| c.selects(&pod));
                let selects: Vec<String> = selects.map(ResourceExt::name_any).collect();
                explain_pod(&observe::PodView::of(&pod), &selects)
            }
        });
    }
    say(common.output, &reports, || {
        reports.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    })?;
    Ok(reports.iter().all(Report::healthy))
}

/// Sends the probe of a trace, if the pod is attached and the address is the link's.
async fn probe(
    client: &Client,
    system: &System,
    namespace: &str,
    pod: &str,
    to: IpAddr,
) -> Option<Result<aero_telemetry::debug::ProbeReport, String>> {
    let (node, _) = trace::source(system, namespace, pod)?;
    if !trace::on_link(system, to) {
        return None;
    }
    let agent = system.pods_of("agent").find(|p| p.node == node && !p.terminating)?;
    let path = format!("/debug/probe?pod={namespace}/{pod}&to={to}");
    Some(reach::json(client, &system.namespace, &agent.name, AGENT_PORT, &path).await)
}

async fn say_moves(client: &Client, common: &Common, once: bool) -> anyhow::Result<bool> {
    let mut shown = moves::Shown::default();
    let mut waited = BTreeSet::new();
    let mut first = true;
    loop {
        let seen = observe::servers(client, &common.aero_namespace).await;
        let system = match seen {
            Ok(system) => system,
            Err(e) if first => return Err(e),
            // A live view outlasts an outage of the API server.
            Err(_) => {
                tokio::time::sleep(EVERY).await;
                continue;
            }
        };
        let asked = system.server_reports.values().filter(|p| p.is_ok()).count();
        if first && asked == 0 {
            let why = system.server_reports.values().find_map(|p| p.as_ref().err().cloned());
            bail!("no Server could be asked: {}", why.unwrap_or_else(|| "none runs".into()));
        }
        let servers = if once { 0 } else { asked };
        for m in shown.new_of(moves::moves(&system), servers, &mut waited) {
            match common.output {
                Output::Text => println!("{}", m.text()),
                Output::Json => println!("{}", serde_json::to_string(&m)?),
            }
        }
        if once {
            return Ok(true);
        }
        if std::mem::take(&mut first) && common.output == Output::Text {
            eprintln!("watching; Ctrl-C ends");
        }
        tokio::time::sleep(EVERY).await;
    }
}
