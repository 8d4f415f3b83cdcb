//! `wireguard-go`: the best known tunnel in user space, for comparison.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::net::{Netns, run};
use super::topology::pod_address;

/// Both ends' processes; they end with it.
pub struct Wireguard(Vec<Child>);

impl Drop for Wireguard {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A device's name decides the name of its control socket, which all namespaces share.
fn device(n: usize) -> String {
    format!("aero-wg{n}")
}

impl Wireguard {
    /// A tunnel between the nodes that carries the pods' packets.
    pub fn start(nodes: &[Netns; 2], mtu: u16) -> anyhow::Result<Self> {
        let mut this = Self(Vec::new());
        let directory = std::env::temp_dir().join(format!("aero-wg-{}", std::process::id()));
        std::fs::create_dir_all(&directory)?;
        let outcome = this.set_up(nodes, mtu, &directory);
        let _ = std::fs::remove_dir_all(&directory);
        outcome.map(|()| this)
    }

    fn set_up(
        &mut self,
        nodes: &[Netns; 2],
        mtu: u16,
        directory: &std::path::Path,
    ) -> anyhow::Result<()> {
        let mut keys = Vec::new();
        for (n, node) in nodes.iter().enumerate() {
            let child = Command::new("ip")
                .args(["netns", "exec", &node.name, "wireguard-go", "-f", &device(n)])
                .env("WG_PROCESS_FOREGROUND", "1")
                .env("LOG_LEVEL", "error")
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .context("wireguard-go cannot be run; install the Debian package wireguard-go")?;
            self.0.push(child);
            let private = run("wg", &["genkey"])?;
            let file = directory.join(n.to_string());
            std::fs::write(&file, &private)?;
            let public = Command::new("wg")
                .arg("pubkey")
                .stdin(std::fs::File::open(&file)?)
                .output()?
                .stdout;
            keys.push((file, String::from_utf8(public)?.trim().to_string()));
        }
        for (n, node) in nodes.iter().enumerate() {
            let (name, other) = (device(n), 1 - n);
            let end = Instant::now() + Duration::from_secs(10);
            while node.exec("wg", &["show", &name]).is_err() {
                ensure!(Instant::now() < end, "{name} does not come up");
                std::thread::sleep(Duration::from_millis(20));
            }
            let (file, _) = keys.get(n).context("no key")?;
            let (_, peer) = keys.get(other).context("no key")?;
            let endpoint = format!("192.0.2.{}:51820", other + 1);
            let key = file.to_str().context("a path that is no text")?;
            let words = ["set", &name, "listen-port", "51820", "private-key", key, "peer", peer];
            let allowed = ["endpoint", &endpoint, "allowed-ips", "::/0"];
            node.exec("wg", &[&words[..], &allowed[..]].concat())?;
            node.ip(&format!("link set {name} mtu {mtu} up"))?;
            let far = pod_address(other);
            node.ip(&format!("route add {far}/128 dev {name}"))?;
        }
        Ok(())
    }
}
