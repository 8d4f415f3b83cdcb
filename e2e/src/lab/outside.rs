//! What is beside the cluster, on the same underlay: routers of others with hosts behind them, in
//! network namespaces and a cgroup of the lab, so that they go with it; and the way into pods.

use std::path::{Path, PathBuf};

use super::process::{run, spawn};
use super::{Lab, cgroup, network};

impl Lab {
    /// A host on the underlay that is no node, with the addresses that end in `last` (in both
    /// families the same digits); it forwards.
    ///
    /// # Errors
    /// With what `ip` printed.
    pub fn join(&self, host: &str, last: &str) -> anyhow::Result<()> {
        network::port(self, host, last)
    }

    /// A host behind one that has joined: its own IPv6 address and its gateway's, with lengths.
    ///
    /// # Errors
    /// With what `ip` printed.
    pub fn behind(&self, host: &str, router: &str, own: &str, gateway: &str) -> anyhow::Result<()> {
        let (netns, router) = (self.scoped(host), self.scoped(router));
        run("ip", &["netns", "add", &netns])?;
        let cable = format!("to-{host}");
        let there = |args: &[&str]| run("ip", &[&["-n", &router], args].concat());
        let here = |args: &[&str]| run("ip", &[&["-n", &netns], args].concat());
        there(&["link", "add", &cable, "type", "veth", "peer", "name", "eth0", "netns", &netns])?;
        there(&["link", "set", &cable, "up"])?;
        there(&["addr", "add", gateway, "dev", &cable, "nodad"])?;
        here(&["link", "set", "lo", "up"])?;
        here(&["link", "set", "eth0", "up"])?;
        here(&["addr", "add", own, "dev", "eth0", "nodad"])?;
        let via = gateway.split('/').next().unwrap_or_default();
        here(&["-6", "route", "add", "default", "via", via]).map(drop)
    }

    /// Starts a program of this machine on such a host; it ends with the lab. Its log is named as
    /// the program, and the host.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start_outside(&self, host: &str, program: &Path, args: &[String]) -> anyhow::Result<()> {
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        let log = self.log(&format!("{name}-{host}"));
        spawn(Some(&self.scoped(host)), &self.scoped("outside"), &log, program, args).map(drop)
    }

    /// What a program on such a host has written so far.
    pub fn log_outside(&self, host: &str, program: &str) -> String {
        let text = std::fs::read(self.log(&format!("{program}-{host}"))).unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Runs a command on a host beside the cluster.
    ///
    /// # Errors
    /// With what it printed.
    pub fn run_outside(&self, host: &str, command: &[&str]) -> anyhow::Result<String> {
        run("ip", &[&["netns", "exec", &self.scoped(host)], command].concat())
    }

    /// The network namespace of such a host, as a file to enter it by.
    pub fn netns_outside(&self, host: &str) -> PathBuf {
        Path::new("/run/netns").join(self.scoped(host))
    }

    /// The processes of a pod, by its UID, as this machine counts them; none where its node is off.
    ///
    /// # Errors
    /// If there are no cgroups.
    pub fn processes_of_pod(&self, node: &str, uid: &str) -> anyhow::Result<Vec<i32>> {
        let mut all = cgroup::members_below(&self.scoped(node), uid)?;
        all.sort_unstable();
        all.dedup();
        Ok(all)
    }
}
