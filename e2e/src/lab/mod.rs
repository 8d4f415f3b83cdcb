//! Sets up, starts, inspects and stops a Kubernetes.
//!
//! A lab has a name. Everything that it makes is found again by that name: network namespaces
//! and cgroups `aero-lab-NAME-*`, files under one directory. Processes are found by the cgroup
//! that they were started in, mounts live in mount namespaces that end with their processes. So
//! `down` needs no memory and works after a crash of anything.

pub mod cgroup;
mod control_plane;
pub mod fabric;
pub mod forward;
pub mod images;
mod network;
pub mod node;
mod outside;
mod pki;
pub mod process;
pub mod programs;
mod progress;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

pub use progress::Progress;

/// Families of the underlay, of pods and of Services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Underlay {
    /// IPv4 only.
    Ipv4,
    /// IPv6 only.
    Ipv6,
    /// Both, IPv4 first.
    Dual,
}

impl Underlay {
    fn v4(self) -> bool {
        self != Self::Ipv6
    }

    fn v6(self) -> bool {
        self != Self::Ipv4
    }

    /// Of two texts those of the families in use, joined.
    fn pick(self, v4: &str, v6: &str) -> String {
        match self {
            Self::Ipv4 => v4.into(),
            Self::Ipv6 => v6.into(),
            Self::Dual => format!("{v4},{v6}"),
        }
    }

    /// Of two texts the first family's.
    fn first<'a>(self, v4: &'a str, v6: &'a str) -> &'a str {
        if self.v4() { v4 } else { v6 }
    }
}

/// What to set up.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Options {
    /// Name of the lab: short, letters and digits.
    pub name: String,
    /// Number of nodes.
    pub nodes: u8,
    /// Families.
    pub underlay: Underlay,
}

/// A lab that was set up.
#[derive(Debug, Clone)]
pub struct Lab {
    /// What it was set up as.
    pub options: Options,
    programs: PathBuf,
}

/// Where labs keep their files.
fn home() -> PathBuf {
    std::env::var_os("AERO_LAB_DIR").map_or_else(|| "/var/lib/aero-lab".into(), PathBuf::from)
}

impl Lab {
    /// Sets up and starts a lab. If that fails, what was started stays for a look; `down` takes
    /// it away.
    ///
    /// # Errors
    /// Says which step failed and what its log says.
    pub fn up(options: Options, progress: &Progress) -> anyhow::Result<Self> {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        if options.name.is_empty() || options.name.len() > 8 || !options.name.chars().all(fits) {
            bail!("the name of a lab is 1 to 8 small letters and digits, not {:?}", options.name);
        }
        if !(1..=9).contains(&options.nodes) {
            bail!("a lab has 1 to 9 nodes, not {}", options.nodes);
        }
        let programs = programs::cached().or_else(|_| programs::ensure(progress))?;
        let lab = Self { options, programs };
        if lab.dir().exists() {
            progress.step("lab", "taking away what an earlier run left", || lab.down_quietly())?;
        }
        std::fs::create_dir_all(lab.dir().join("log"))?;
        std::fs::write(lab.dir().join("lab.json"), serde_json::to_vec_pretty(&lab.options)?)?;
        let text = format!("{} nodes Ready", lab.options.nodes);
        progress.step("cluster", &text, || {
            pki::write(&lab)?;
            network::up(&lab)?;
            control_plane::up(&lab)?;
            for n in lab.nodes() {
                node::boot(&lab, &n)?;
            }
            lab.networks_of_nodes()?;
            lab.load_images(&images::base(&lab)?)?;
            lab.wait_for_nodes(Duration::from_secs(60))
        })?;
        Ok(lab)
    }

    /// A lab that is up.
    ///
    /// # Errors
    /// If there is none of the name.
    pub fn attach(name: &str) -> anyhow::Result<Self> {
        let path = home().join(name).join("lab.json");
        let text = std::fs::read(&path).with_context(|| {
            format!("there is no lab {name:?} ({}); `e2e lab up` makes one", path.display())
        })?;
        let options = serde_json::from_slice(&text)?;
        Ok(Self { options, programs: programs::cached()? })
    }

    /// Takes a lab away, with all that it made, also one that is half up or crashed.
    ///
    /// # Errors
    /// Names what could not be taken away.
    pub fn down(name: &str) -> anyhow::Result<Vec<String>> {
        let options = Options { name: name.into(), nodes: 0, underlay: Underlay::Ipv4 };
        let lab = Self { options, programs: PathBuf::new() };
        let mut removed = Vec::new();
        let killed = cgroup::kill_all(&lab.prefix())?;
        if killed > 0 {
            removed.push(format!("{killed} processes"));
        }
        let namespaces = network::down(&lab)?;
        if namespaces > 0 {
            removed.push(format!("{namespaces} network namespaces"));
        }
        let groups = cgroup::remove_all(&lab.prefix())?;
        if groups > 0 {
            removed.push(format!("{groups} cgroups"));
        }
        if lab.dir().exists() {
            std::fs::remove_dir_all(lab.dir())
                .with_context(|| format!("{} cannot be removed", lab.dir().display()))?;
            removed.push(lab.dir().display().to_string());
        }
        Ok(removed)
    }

    fn down_quietly(&self) -> anyhow::Result<()> {
        Self::down(&self.options.name).map(drop)
    }

    /// Directory of the lab.
    pub fn dir(&self) -> PathBuf {
        home().join(&self.options.name)
    }

    fn log(&self, name: &str) -> PathBuf {
        self.dir().join("log").join(name)
    }

    /// What the names of everything of this lab start with.
    fn prefix(&self) -> String {
        format!("aero-lab-{}-", self.options.name)
    }

    fn scoped(&self, part: &str) -> String {
        format!("{}{part}", self.prefix())
    }

    /// Names of the nodes.
    pub fn nodes(&self) -> Vec<String> {
        (1..=self.options.nodes).map(|n| format!("n{n}")).collect()
    }

    /// Underlay addresses of a node.
    pub fn node_addresses(&self, node: &str) -> Vec<IpAddr> {
        let number = node.trim_start_matches('n');
        let all = self
            .options
            .underlay
            .pick(&format!("192.0.2.1{number}"), &format!("2001:db8:77::1{number}"));
        all.split(',').filter_map(|a| a.parse().ok()).collect()
    }

    /// A kubeconfig for programs outside the lab's namespaces.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir().join("kubeconfig")
    }

    /// Path of a program that the lab has built.
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    /// Runs a command in the namespaces of a node.
    ///
    /// # Errors
    /// If the node is off or the command cannot be started.
    pub fn exec(&self, node: &str, command: &[&str]) -> anyhow::Result<Output> {
        let mut all = self.enter(node)?;
        all.args(command);
        all.output().with_context(|| format!("{command:?} cannot be run on {node}"))
    }

    /// As [`Lab::exec`], but a failure of the command is an error.
    ///
    /// # Errors
    /// With what the command printed.
    pub fn run(&self, node: &str, command: &[&str]) -> anyhow::Result<String> {
        process::text_of(&format!("on {node}: {}", command.join(" ")), &self.exec(node, command)?)
    }

    /// A command that enters the namespaces of a node first.
    ///
    /// # Errors
    /// If the node is off.
    pub fn enter(&self, node: &str) -> anyhow::Result<std::process::Command> {
        let pid = node::init_pid(self, node)
            .with_context(|| format!("node {node} is off (e2e lab restore-node {node})"))?;
        let mut command = std::process::Command::new("nsenter");
        command.args(["--target", &pid.to_string(), "--net", "--mount", "--uts", "--"]);
        Ok(command)
    }

    /// Runs kubectl.
    ///
    /// # Errors
    /// With what it printed.
    pub fn kubectl(&self, args: &[&str]) -> anyhow::Result<String> {
        process::text_of(
            &format!("kubectl {}", args.join(" ")),
            &self.kubectl_command().args(args).output()?,
        )
    }

    /// kubectl with this lab's kubeconfig.
    pub fn kubectl_command(&self) -> std::process::Command {
        let mut command = std::process::Command::new(self.program("kubectl"));
        command.env("KUBECONFIG", self.kubeconfig());
        command
    }

    /// Power off: everything on the node ends at once, and its link goes down.
    ///
    /// # Errors
    /// If something of it survives.
    pub fn kill_node(&self, node: &str) -> anyhow::Result<()> {
        network::link(self, node, false)?;
        node::kill(self, node)
    }

    /// Power on after [`Lab::kill_node`]: the disk is as it was, all else is new.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn restore_node(&self, node: &str) -> anyhow::Result<()> {
        network::link(self, node, true)?;
        network::forget_state(self, node)?;
        node::boot(self, node)
    }

    /// Stops the API server, and nothing else.
    ///
    /// # Errors
    /// If it is not running.
    pub fn stop_api(&self) -> anyhow::Result<()> {
        control_plane::stop_api(self)
    }

    /// Starts it again.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn start_api(&self) -> anyhow::Result<()> {
        control_plane::start_api(self)
    }

    /// Loads image archives into every node that is on.
    ///
    /// # Errors
    /// With what the runtime says.
    pub fn load_images(&self, archives: &[PathBuf]) -> anyhow::Result<()> {
        let nodes = self.nodes();
        std::thread::scope(|scope| {
            let all: Vec<_> = nodes
                .iter()
                .map(|node| scope.spawn(move || node::load_images(self, node, archives)))
                .collect();
            all.into_iter().try_for_each(|t| match t.join() {
                Ok(outcome) => outcome,
                Err(_) => bail!("loading an image panicked"),
            })
        })
    }

    /// Every node gets its primary network as soon as it has its pod ranges, and the others
    /// learn the way there, as a cloud would do it.
    fn networks_of_nodes(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        for node in self.nodes() {
            let ranges = loop {
                let path = "jsonpath={.spec.podCIDRs[*]}";
                let found = self.kubectl(&["get", "node", &node, "-o", path]).unwrap_or_default();
                if !found.trim().is_empty() {
                    break found.split_whitespace().map(String::from).collect::<Vec<_>>();
                }
                if Instant::now() > deadline {
                    bail!(
                        "node {node} did not register; {}",
                        self.tail(&format!("kubelet-{node}"))
                    );
                }
                std::thread::sleep(Duration::from_millis(100));
            };
            node::write_primary_network(self, &node, &ranges)?;
            network::route_pods(self, &node, &ranges)?;
        }
        Ok(())
    }

    /// Waits until all nodes are Ready.
    ///
    /// # Errors
    /// Says which are not, and what their kubelets say.
    pub fn wait_for_nodes(&self, within: Duration) -> anyhow::Result<()> {
        let timeout = format!("--timeout={}s", within.as_secs());
        let outcome = self.kubectl(&["wait", "--for=condition=Ready", "nodes", "--all", &timeout]);
        outcome.map(drop).with_context(|| {
            let nodes = self.nodes();
            let logs = nodes.iter().map(|n| self.tail(&format!("kubelet-{n}")));
            format!("not all nodes became Ready\n{}", logs.collect::<Vec<_>>().join("\n"))
        })
    }

    /// The end of a log, for error messages.
    pub fn tail(&self, name: &str) -> String {
        let text = std::fs::read(self.log(name)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        let from = lines.len().saturating_sub(12);
        let tail = lines.get(from..).unwrap_or_default().join("\n");
        format!("the end of {}:\n{tail}", self.log(name).display())
    }

    /// Directory of a node's disk.
    fn node_dir(&self, node: &str) -> PathBuf {
        self.dir().join("nodes").join(node)
    }
}

/// Whether this process may do all this.
///
/// # Errors
/// If it is not root.
pub fn require_root() -> anyhow::Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    bail!("the lab makes network namespaces and cgroups, so it needs root")
}

/// The workspace's root, for paths that belong to the project.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or_else(|| Path::new("."))
}
