//! The tests, by subject.

pub mod api;
pub mod cli;
pub mod cni;
pub mod direct;
pub mod faults;
pub mod lab;
pub mod moves;
pub mod pods;
pub mod relays;
pub mod services;
pub mod underlay;
pub mod upgrade;

use std::path::PathBuf;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use aero_e2e::lab::{Lab, Options, Progress, Underlay, images};
use aero_e2e::scenario::observer::Observer;
use aero_e2e::scenario::{Cluster, talk};
use relays::Backbone;

/// Name of the shared lab.
pub const NAME: &str = "test";

/// What the tests share.
pub struct Context {
    other: Option<PathBuf>,
    shared: OnceLock<Result<Shared, String>>,
    backbone: OnceLock<Result<Backbone, String>>,
    /// One line per finding, printed at the end.
    notes: Mutex<Vec<String>>,
}

/// The lab with AERO, two web pods and their correspondents.
pub struct Shared {
    pub lab: Option<Lab>,
    pub cluster: Cluster,
    pub observer: Observer,
}

impl Shared {
    pub fn lab(&self) -> &Lab {
        self.lab.as_ref().expect("this test needs the lab")
    }

    /// Nodes of the Servers that are ready.
    pub fn server_nodes(&self) -> Vec<String> {
        let seen = self.observer.seen();
        seen.ready("aerolink.dev/component", "server").iter().map(|p| p.node.clone()).collect()
    }
}

/// The product's image archives, packed once.
pub fn archives() -> anyhow::Result<&'static [PathBuf]> {
    static ARCHIVES: OnceLock<Vec<PathBuf>> = OnceLock::new();
    if let Some(done) = ARCHIVES.get() {
        return Ok(done);
    }
    let packed = images::product()?;
    Ok(ARCHIVES.get_or_init(|| packed))
}

impl Context {
    pub fn new(other: Option<PathBuf>) -> Self {
        Self { other, shared: OnceLock::new(), backbone: OnceLock::new(), notes: Mutex::default() }
    }

    pub fn note(&self, text: String) {
        self.notes.lock().unwrap().push(text);
    }

    /// The shared cluster, made if there is none yet. If it cannot be made, it is not tried again.
    pub fn shared(&self) -> anyhow::Result<&Shared> {
        let made = self.shared.get_or_init(|| self.make().map_err(|e| format!("{e:#}")));
        made.as_ref().map_err(|e| anyhow::anyhow!("the shared cluster could not be made: {e}"))
    }

    /// The lab with Relays, made if there is none yet. One lab at a time is enough for this machine:
    /// the shared one is taken away.
    pub fn backbone(&self) -> anyhow::Result<&Backbone> {
        let made = self.backbone.get_or_init(|| {
            self.end();
            Backbone::start().map_err(|e| format!("{e:#}"))
        });
        made.as_ref().map_err(|e| anyhow::anyhow!("the lab with Relays could not be made: {e}"))
    }

    fn make(&self) -> anyhow::Result<Shared> {
        if let Some(kubeconfig) = &self.other {
            let observer = Observer::start(kubeconfig)?;
            return Ok(Shared { lab: None, cluster: Cluster::other(kubeconfig.clone()), observer });
        }
        let lab = start(NAME, 3, Underlay::Dual)?;
        let cluster = Cluster::of(&lab);
        let observer = Observer::start(&cluster.kubeconfig)?;
        web(&lab, &cluster, &observer)?;
        Ok(Shared { lab: Some(lab), cluster, observer })
    }

    /// Takes the labs away and prints what was found.
    pub fn end(&self) {
        for note in self.notes.lock().unwrap().drain(..) {
            println!("  {note}");
        }
        for name in [NAME, relays::NAME] {
            if self.other.is_none()
                && let Err(e) = Lab::down(name)
            {
                eprintln!("the lab {name} could not be taken away: {e:#}");
            }
        }
    }
}

/// A lab with AERO installed and ready.
pub fn start(name: &str, nodes: u8, underlay: Underlay) -> anyhow::Result<Lab> {
    let archives = archives()?;
    let options = Options { name: name.into(), nodes, underlay };
    let lab = Lab::up(options, &Progress { quiet: true })?;
    lab.load_images(archives)?;
    let cluster = Cluster::of(&lab);
    cluster.install(&[])?;
    cluster.wait_for_aero(Duration::from_secs(60))?;
    Ok(lab)
}

/// Two web pods, and a correspondent on every node that has answers of both. Returns the web
/// pods' names, prefixes and nodes.
pub fn web(
    lab: &Lab,
    cluster: &Cluster,
    observer: &Observer,
) -> anyhow::Result<Vec<(String, String, String)>> {
    cluster.apply_file("examples/client.yaml")?;
    cluster.apply_file("examples/web.yaml")?;
    let web = talk::wait_for_web(observer)?;
    let pairs: Vec<_> = web.iter().map(|(n, p, _)| (n.clone(), p.clone())).collect();
    talk::start(cluster, observer, &pairs, lab.nodes().len())?;
    Ok(web)
}
