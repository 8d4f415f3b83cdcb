//! etcd, API server, controller manager, scheduler: one of each, in a namespace of their own.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use anyhow::bail;

use super::{Lab, cgroup, pki, process};

/// Group of the API server, apart from the others so that it can be stopped alone.
const API_GROUP: &str = "cp/api";

/// URL of the API server inside the lab.
pub(super) fn api_url(lab: &Lab) -> String {
    format!("https://{}:6443", lab.options.underlay.first("192.0.2.1", "[2001:db8:77::1]"))
}

fn start(lab: &Lab, group: &str, program: &str, args: Vec<String>) -> anyhow::Result<()> {
    let netns = lab.scoped("cp");
    let path = lab.program(program);
    process::spawn(Some(&netns), &lab.scoped(group), &lab.log(program), &path, &args).map(drop)
}

fn flags(all: &[(&str, String)]) -> Vec<String> {
    all.iter().map(|(name, value)| format!("--{name}={value}")).collect()
}

/// Starts all of it, and the way in from outside.
pub(super) fn up(lab: &Lab) -> anyhow::Result<()> {
    let data = lab.dir().join("etcd").display().to_string();
    let client = "http://127.0.0.1:2379";
    start(
        lab,
        "cp/rest",
        "etcd",
        flags(&[
            ("data-dir", data),
            ("listen-client-urls", client.into()),
            ("advertise-client-urls", client.into()),
            ("listen-peer-urls", "http://127.0.0.1:2380".into()),
            ("unsafe-no-fsync", "true".into()),
            ("log-level", "warn".into()),
        ]),
    )?;
    forward(lab)?;
    start_api(lab)?;
    let pki = |name: &str| lab.dir().join("pki").join(name).display().to_string();
    let family = lab.options.underlay;
    let mut controllers = vec![
        ("kubeconfig", pki("controller-manager.kubeconfig")),
        ("service-account-private-key-file", pki("sa.key")),
        ("root-ca-file", pki("ca.crt")),
        ("use-service-account-credentials", "true".into()),
        ("allocate-node-cidrs", "true".into()),
        ("cluster-cidr", family.pick("198.18.0.0/16", "2001:db8:1000::/48")),
        ("service-cluster-ip-range", services(lab)),
        // A dead node is seen within ten seconds instead of a minute.
        ("node-monitor-grace-period", "8s".into()),
        ("node-monitor-period", "1s".into()),
        ("leader-elect", "false".into()),
    ];
    match family {
        super::Underlay::Dual => controllers.push(("node-cidr-mask-size-ipv6", "64".into())),
        super::Underlay::Ipv6 => controllers.push(("node-cidr-mask-size", "64".into())),
        super::Underlay::Ipv4 => {}
    }
    start(lab, "cp/rest", "kube-controller-manager", flags(&controllers))?;
    let scheduler = [("kubeconfig", pki("scheduler.kubeconfig")), ("leader-elect", "false".into())];
    start(lab, "cp/rest", "kube-scheduler", flags(&scheduler))
}

fn services(lab: &Lab) -> String {
    lab.options.underlay.pick("203.0.113.0/24", "2001:db8:5::/112")
}

/// Starts the API server and waits until it is ready.
pub(super) fn start_api(lab: &Lab) -> anyhow::Result<()> {
    let pki = |name: &str| lab.dir().join("pki").join(name).display().to_string();
    let args = [
        ("etcd-servers", "http://127.0.0.1:2379".to_string()),
        ("secure-port", "6443".into()),
        ("bind-address", "::".into()),
        ("advertise-address", lab.options.underlay.first("192.0.2.1", "2001:db8:77::1").into()),
        ("service-cluster-ip-range", services(lab)),
        ("tls-cert-file", pki("apiserver.crt")),
        ("tls-private-key-file", pki("apiserver.key")),
        ("client-ca-file", pki("ca.crt")),
        ("kubelet-client-certificate", pki("admin.crt")),
        ("kubelet-client-key", pki("admin.key")),
        ("kubelet-preferred-address-types", "InternalIP".into()),
        ("service-account-issuer", "https://kubernetes.default.svc".into()),
        ("service-account-key-file", pki("sa.pub")),
        ("service-account-signing-key-file", pki("sa.key")),
        ("authorization-mode", "Node,RBAC".into()),
        ("enable-admission-plugins", "NodeRestriction".into()),
        ("allow-privileged", "true".into()),
    ];
    start(lab, API_GROUP, "kube-apiserver", flags(&args))?;
    let deadline = Instant::now() + Duration::from_secs(60);
    while lab.kubectl(&["get", "--raw", "/readyz"]).is_err() {
        if Instant::now() > deadline {
            bail!("the API server did not become ready; {}", lab.tail("kube-apiserver"));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Stops the API server.
pub(super) fn stop_api(lab: &Lab) -> anyhow::Result<()> {
    let group = lab.scoped(API_GROUP);
    if cgroup::kill_members(&group)? == 0 {
        bail!("the API server is not running");
    }
    Ok(())
}

/// The way in from outside: a port of the loopback that leads to the API server.
fn forward(lab: &Lab) -> anyhow::Result<()> {
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let target = api_url(lab);
    let target = target.trim_start_matches("https://");
    let args = [
        "forward",
        "--listen",
        &format!("127.0.0.1:{port}"),
        "--netns",
        &lab.scoped("cp"),
        "--to",
        target,
    ];
    let args: Vec<String> = args.iter().map(ToString::to_string).collect();
    let own = process::helper()?;
    process::spawn(None, &lab.scoped("cp/rest"), &lab.log("forward"), &own, &args)?;
    pki::kubeconfig(lab, "admin", &format!("https://127.0.0.1:{port}"), &lab.kubeconfig())
}
