//! A node: containerd, kubelet and kube-proxy in network, mount and host name namespaces of
//! their own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::mount::{MntFlags, MsFlags, mount};
use serde_json::json;

use super::{Lab, cgroup, process};

/// What a node has on its own disk, by its path there.
const DISK: [(&str, &str); 6] = [
    ("kubelet", "/var/lib/kubelet"),
    ("containerd", "/var/lib/containerd"),
    ("etc-cni", "/etc/cni"),
    ("opt-cni", "/opt/cni"),
    ("log-pods", "/var/log/pods"),
    ("aero", "/var/lib/aero"),
];
/// What it has in memory, and loses with its power.
const MEMORY: [&str; 5] =
    ["/run/containerd", "/run/netns", "/run/aero", "/var/lib/cni", "/var/log/containers"];

/// Starts a node.
pub(super) fn boot(lab: &Lab, node: &str) -> anyhow::Result<()> {
    let dir = lab.node_dir(node);
    for (name, _) in DISK {
        std::fs::create_dir_all(dir.join(name))?;
    }
    let bin = dir.join("opt-cni/bin");
    std::fs::create_dir_all(&bin)?;
    std::fs::create_dir_all(dir.join("etc-cni/net.d"))?;
    for plugin in ["bridge", "host-local", "loopback", "ptp"] {
        std::fs::copy(lab.program(plugin), bin.join(plugin))?;
    }
    write_configuration(lab, node, &dir)?;
    for group in ["", "/system", "/kubepods"] {
        cgroup::make(&lab.scoped(&format!("{node}{group}")))?;
    }
    let own = process::helper()?;
    let args = ["node", "--lab", &lab.options.name, "--node", node].map(String::from);
    let group = lab.scoped(&format!("{node}/system"));
    let netns = lab.scoped(node);
    let pid = process::spawn(Some(&netns), &group, &lab.log(&format!("node-{node}")), &own, &args)?;
    std::fs::write(dir.join("pid"), pid.to_string())?;
    let socket = Path::new("/run/containerd/containerd.sock");
    let deadline = Instant::now() + Duration::from_secs(30);
    while !in_root(pid, socket).exists() {
        if Instant::now() > deadline {
            bail!(
                "containerd of {node} did not start; {}",
                lab.tail(&format!("containerd-{node}"))
            );
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn in_root(pid: u32, path: &Path) -> PathBuf {
    let inside = path.strip_prefix("/").unwrap_or(path);
    PathBuf::from(format!("/proc/{pid}/root")).join(inside)
}

/// The process that holds the namespaces of a node, if it is on.
pub(super) fn init_pid(lab: &Lab, node: &str) -> Option<u32> {
    let text = std::fs::read_to_string(lab.node_dir(node).join("pid")).ok()?;
    let pid = text.trim().parse().ok()?;
    // Another process may have the number by now.
    let group = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    group.contains(&lab.scoped(&format!("{node}/system"))).then_some(pid)
}

/// Ends everything on a node at once.
pub(super) fn kill(lab: &Lab, node: &str) -> anyhow::Result<()> {
    if cgroup::kill_members(&lab.scoped(node))? == 0 {
        bail!("node {node} is off already");
    }
    // Nothing of a kernel outlives its power; a kubelet that finds old groups looks for the
    // containers that were in them.
    cgroup::remove_all(&lab.scoped(node))?;
    let _ = std::fs::remove_file(lab.node_dir(node).join("pid"));
    Ok(())
}

/// Loads image archives.
pub(super) fn load_images(lab: &Lab, node: &str, archives: &[PathBuf]) -> anyhow::Result<()> {
    for archive in archives {
        let archive = std::fs::canonicalize(archive)
            .with_context(|| format!("there is no image archive {}", archive.display()))?;
        let ctr = lab.program("ctr").display().to_string();
        let path = archive.display().to_string();
        lab.run(node, &[&ctr, "-n", "k8s.io", "images", "import", "--no-unpack=false", &path])?;
    }
    Ok(())
}

/// The primary network: the reference plugin `ptp`.
pub(super) fn write_primary_network(
    lab: &Lab,
    node: &str,
    ranges: &[String],
) -> anyhow::Result<()> {
    let ranges: Vec<_> = ranges.iter().map(|r| json!([{"subnet": r}])).collect();
    let mut routes = Vec::new();
    if lab.options.underlay.v4() {
        routes.push(json!({"dst": "0.0.0.0/0"}));
    }
    if lab.options.underlay.v6() {
        routes.push(json!({"dst": "::/0"}));
    }
    let list = json!({
        "cniVersion": "1.0.0", "name": "ptp",
        "plugins": [{
            "type": "ptp", "mtu": 1500,
            "ipam": {"type": "host-local", "ranges": ranges, "routes": routes},
        }],
    });
    let path = lab.node_dir(node).join("etc-cni/net.d/10-ptp.conflist");
    std::fs::write(path, serde_json::to_vec_pretty(&list)?)?;
    Ok(())
}

fn write_configuration(lab: &Lab, node: &str, dir: &Path) -> anyhow::Result<()> {
    let pki = |name: &str| lab.dir().join("pki").join(name).display().to_string();
    // This kernel lets nobody lower an out-of-memory score below its own without
    // CAP_SYS_RESOURCE, so containerd must not try.
    let containerd = r#"version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ["/opt/cni/bin"]
    conf_dir = "/etc/cni/net.d"
  [plugins.'io.containerd.cri.v1.runtime'.containerd]
    default_runtime_name = "runc"
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.images']
  snapshotter = "overlayfs"
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = "box.test/pause:1"
"#;
    std::fs::write(dir.join("containerd.toml"), containerd)?;
    let v1 = !Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let mut kubelet = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": false}, "webhook": {"enabled": true},
            "x509": {"clientCAFile": pki("ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": pki(&format!("{node}.crt")),
        "tlsPrivateKeyFile": pki(&format!("{node}.key")),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{}", lab.scoped(node)),
        "failSwapOn": false,
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"nodefs.available": "0%", "imagefs.available": "0%"},
        "nodeStatusUpdateFrequency": "2s",
        "nodeLeaseDurationSeconds": 4,
        "syncFrequency": "5s",
        "maxPods": 250,
        "clusterDomain": "cluster.local",
        "clusterDNS": lab.options.underlay.pick("203.0.113.10", "2001:db8:5::a").split(',').collect::<Vec<_>>(),
    });
    if v1 && let Some(object) = kubelet.as_object_mut() {
        object.insert("failCgroupV1".into(), false.into());
    }
    std::fs::write(dir.join("kubelet.yaml"), serde_yaml::to_string(&kubelet)?)?;
    let proxy = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": pki("proxy.kubeconfig")},
        "hostnameOverride": node,
        // Both modes that kube-proxy has are there, in any lab of three.
        "mode": if node.ends_with('3') { "iptables" } else { "nftables" },
        "clusterCIDR": lab.options.underlay.pick("198.18.0.0/16", "2001:db8:1000::/48"),
        // The limits are the machine's, which the lab leaves alone.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "nodePortAddresses": [],
    });
    std::fs::write(dir.join("kube-proxy.yaml"), serde_yaml::to_string(&proxy)?)?;
    Ok(())
}

/// The node's first process, already in its network namespace and cgroup: makes the rest of the
/// node, starts its daemons, and holds the namespaces until it is killed.
///
/// # Errors
/// If the node cannot be made.
pub fn init(name: &str, node: &str) -> anyhow::Result<()> {
    use nix::sched::{CloneFlags, unshare};
    let lab = Lab::attach(name)?;
    let dir = lab.node_dir(node);
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS)?;
    nix::unistd::sethostname(node)?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    for (name, path) in DISK {
        std::fs::create_dir_all(path)?;
        mount(Some(&dir.join(name)), path, none, MsFlags::MS_BIND, none)?;
    }
    for path in MEMORY {
        std::fs::create_dir_all(path)?;
        mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), none)?;
    }
    // /sys shows the devices of the namespace that mounted it.
    remount_sys()?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SHARED, none)?;
    let own = lab.programs.display().to_string();
    let path = std::env::var("PATH").unwrap_or_default();
    let start = |program: &str, args: &[String]| -> anyhow::Result<()> {
        let log = lab.log(&format!("{program}-{node}"));
        let out = std::fs::File::options().create(true).append(true).open(log)?;
        Command::new(lab.program(program))
            .args(args)
            .env("PATH", format!("{own}:{path}"))
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("{program} cannot be started"))?;
        Ok(())
    };
    let file = |name: &str| dir.join(name).display().to_string();
    start("containerd", &["-c".into(), file("containerd.toml")])?;
    let socket = Path::new("/run/containerd/containerd.sock");
    while !socket.exists() {
        std::thread::sleep(Duration::from_millis(20));
    }
    let addresses: Vec<String> = lab.node_addresses(node).iter().map(ToString::to_string).collect();
    let kubeconfig = lab.dir().join("pki").join(format!("{node}.kubeconfig"));
    let kubelet = [
        format!("--config={}", file("kubelet.yaml")),
        format!("--kubeconfig={}", kubeconfig.display()),
        format!("--hostname-override={node}"),
        format!("--node-ip={}", addresses.join(",")),
    ];
    start("kubelet", &kubelet)?;
    start("kube-proxy", &[format!("--config={}", file("kube-proxy.yaml"))])?;
    loop {
        // Collects daemons that end; their logs say why.
        match nix::sys::wait::wait() {
            Ok(status) => eprintln!("{status:?}"),
            Err(_) => std::thread::sleep(Duration::from_secs(1)),
        }
    }
}

/// Mounts a /sys of this network namespace, with the machine's cgroups in it.
fn remount_sys() -> anyhow::Result<()> {
    let none: Option<&str> = None;
    let keep = "/run/aero/.cgroup";
    std::fs::create_dir_all(keep)?;
    mount(Some("/sys/fs/cgroup"), keep, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none)?;
    mount(Some(keep), "/sys/fs/cgroup", none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
    nix::mount::umount2(keep, MntFlags::MNT_DETACH)?;
    std::fs::remove_dir(keep)?;
    // Pins of one node are not those of another.
    if mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), none).is_err() {
        eprintln!("no BPF file system on this node");
    }
    Ok(())
}
