//! `e2e`: the lab and the demo.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use aero_e2e::lab::{self, Lab, Options, Progress, Underlay};
use aero_e2e::scenario::demo::{self, DemoArgs};
use anyhow::bail;
use clap::{Parser, Subcommand};

/// A real Kubernetes of several nodes in network namespaces of this machine, and what is shown
/// and tested on it.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Set up, use and take away a lab.
    Lab {
        /// Name of the lab.
        #[arg(long, default_value = "demo", global = true)]
        name: String,
        #[command(subcommand)]
        command: LabVerb,
    },
    /// Show it: a cluster, AERO, two servers whose prefixes stay while everything moves them.
    Demo(DemoArgs),
    /// Build the programs of the lab (Kubernetes, etcd, containerd, helm, CNI plugins), or say
    /// that they are cached.
    Programs,
    /// Build the product's binaries and pack them into target/images.
    Images,
    /// For the lab's own use: become a program in a namespace and a cgroup.
    #[command(hide = true)]
    Start {
        #[arg(long)]
        netns: Option<String>,
        #[arg(long)]
        cgroup: String,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// For the lab's own use: the first process of a node.
    #[command(hide = true)]
    Node {
        #[arg(long)]
        lab: String,
        #[arg(long)]
        node: String,
    },
    /// For the lab's own use: a port that leads into a namespace.
    #[command(hide = true)]
    Forward {
        #[arg(long)]
        listen: String,
        #[arg(long)]
        netns: String,
        #[arg(long)]
        to: String,
    },
}

#[derive(Debug, Subcommand)]
enum LabVerb {
    /// Set up and start a cluster.
    Up {
        /// Number of nodes.
        #[arg(long, default_value_t = 3)]
        nodes: u8,
        /// Families of the underlay.
        #[arg(long, value_enum, default_value = "dual")]
        underlay: Underlay,
    },
    /// Take the lab away with all that it made.
    Down,
    /// Say what is on.
    Status,
    /// Run a command on a node: `lab exec n1 -- ip addr`.
    Exec {
        /// The node.
        node: String,
        /// The command.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Run kubectl.
    #[command(trailing_var_arg = true)]
    Kubectl {
        /// Its arguments.
        #[arg(allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Power a node off.
    KillNode {
        /// The node.
        node: String,
    },
    /// Power it on again.
    RestoreNode {
        /// The node.
        node: String,
    },
    /// Stop the API server.
    StopApi,
    /// Start it again.
    StartApi,
    /// Load image archives on all nodes.
    LoadImage {
        /// The archives.
        archives: Vec<PathBuf>,
    },
    /// Print the path of the kubeconfig.
    Kubeconfig,
}

fn main() -> ExitCode {
    match run(Args::parse().command) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("\nerror: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn status_of(status: std::process::ExitStatus) -> ExitCode {
    ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1))
}

fn run(verb: Verb) -> anyhow::Result<ExitCode> {
    let progress = Progress::default();
    match verb {
        Verb::Start { netns, cgroup, command } => {
            lab::process::start(netns.as_deref(), &cgroup, &command)?;
        }
        Verb::Node { lab, node } => lab::node::init(&lab, &node)?,
        Verb::Forward { listen, netns, to } => lab::forward::run(&listen, &netns, &to)?,
        Verb::Demo(args) => demo::run(&args)?,
        Verb::Programs => drop(lab::programs::ensure(&progress)?),
        Verb::Images => {
            for archive in lab::images::product_with(&progress)? {
                println!("  {}", archive.display());
            }
        }
        Verb::Lab { name, command } => return lab_verb(&name, command, &progress),
    }
    Ok(ExitCode::SUCCESS)
}

fn lab_verb(name: &str, verb: LabVerb, progress: &Progress) -> anyhow::Result<ExitCode> {
    lab::require_root()?;
    let attach = || Lab::attach(name);
    match verb {
        LabVerb::Up { nodes, underlay } => {
            let lab = Lab::up(Options { name: name.into(), nodes, underlay }, progress)?;
            println!("  export KUBECONFIG={}", lab.kubeconfig().display());
        }
        LabVerb::Down => {
            let removed = Lab::down(name)?;
            if removed.is_empty() {
                println!("there is nothing of a lab {name:?}");
            } else {
                println!("removed: {}", removed.join(", "));
            }
        }
        LabVerb::Status => {
            let lab = attach()?;
            for node in lab.nodes() {
                let on = if lab.enter(&node).is_ok() { "on" } else { "off" };
                println!("{node:<6} {on:<4} {:?}", lab.node_addresses(&node));
            }
            print!("{}", lab.kubectl(&["get", "nodes,pods", "-A", "-o", "wide"])?);
        }
        LabVerb::Exec { node, command } => {
            return Ok(status_of(attach()?.enter(&node)?.args(command).status()?));
        }
        LabVerb::Kubectl { args } => {
            return Ok(status_of(attach()?.kubectl_command().args(args).status()?));
        }
        LabVerb::KillNode { node } => attach()?.kill_node(&known(&attach()?, node)?)?,
        LabVerb::RestoreNode { node } => attach()?.restore_node(&known(&attach()?, node)?)?,
        LabVerb::StopApi => attach()?.stop_api()?,
        LabVerb::StartApi => attach()?.start_api()?,
        LabVerb::LoadImage { archives } => attach()?.load_images(&archives)?,
        LabVerb::Kubeconfig => println!("{}", attach()?.kubeconfig().display()),
    }
    Ok(ExitCode::SUCCESS)
}

fn known(lab: &Lab, node: String) -> anyhow::Result<String> {
    if lab.nodes().contains(&node) {
        return Ok(node);
    }
    bail!("there is no node {node:?}; there are {}", lab.nodes().join(", "))
}
