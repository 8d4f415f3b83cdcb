//! Users, the scheduler, kubelets and misfortune: random histories, and what must hold in them.

use std::time::Duration;

use k8s_openapi::jiff::SignedDuration;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::check::is_live;
use super::faults::Faults;
use super::store::{Key, Snapshot};
use super::world::{Counts, NS, Shared};

/// Prefixes of the link's pool: of a /60 in /64s, without the first.
pub const POOL_SIZE: usize = 15;
/// For how long the API server answers nobody when it is started again, in milliseconds. It takes
/// seconds; this is longer than a request may be on its way.
const RESTART: u64 = 1000;
const NODES: [&str; 4] = ["n1", "n2", "n3", "n4"];

/// What kind of history.
#[derive(Debug, Clone)]
pub struct Kind {
    pub seed: u64,
    pub steps: u32,
    pub faults: Faults,
    /// At times a second operator believes that it leads.
    pub two: bool,
    /// At times the store is put back to an older state.
    pub restore: bool,
    /// Operators' clocks are up to this far from the right time.
    pub skew: SignedDuration,
}

impl Kind {
    pub fn of(seed: u64) -> Self {
        Self {
            seed,
            steps: 60,
            faults: Faults::many(),
            two: false,
            restore: false,
            skew: SignedDuration::ZERO,
        }
    }
}

/// How a history went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub breach: Option<String>,
    pub history: Vec<String>,
    pub counts: Counts,
    /// Virtual time.
    pub millis: u64,
}

impl Outcome {
    /// Fails with the history unless all has held.
    #[track_caller]
    pub fn expect(self, what: &str) -> Self {
        if let Some(breach) = &self.breach {
            // The whole of it goes into a file, the end of it onto the screen.
            let file =
                format!("{}/history-{}.txt", env!("CARGO_TARGET_TMPDIR"), what.replace(' ', "-"));
            let _ = std::fs::write(&file, self.history.join("\n"));
            let last = &self.history[self.history.len().saturating_sub(100)..];
            panic!("{what}\n{}\n(all of it: {file})\n{what}: {breach}", last.join("\n"));
        }
        self
    }
}

/// Runs a future in a runtime of its own, in virtual time.
pub fn in_virtual_time<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime can be made");
    runtime.block_on(tokio::task::LocalSet::new().run_until(future))
}

/// Runs one history.
pub fn history(kind: &Kind) -> Outcome {
    in_virtual_time(async {
        let shared = Shared::new(kind.seed, kind.faults.clone());
        let mut driver = Driver::new(shared.clone(), kind);
        driver.run(kind).await;
        outcome(&shared)
    })
}

pub fn outcome(shared: &Shared) -> Outcome {
    let mut world = shared.lock();
    Outcome {
        breach: world.checker.breach.clone(),
        counts: world.counts.clone(),
        millis: world.millis(),
        history: std::mem::take(&mut world.history),
    }
}

/// The driver.
pub struct Driver {
    pub shared: Shared,
    rng: StdRng,
    serial: u32,
    snapshot: Option<Snapshot>,
}

fn client_spec(app: &str) -> Value {
    let (keep, cool) = match app {
        "web" => ("40s", "30s"),
        "db" => ("2m", "60s"),
        _ => ("20s", "30s"),
    };
    json!({"podSelector": {"matchLabels": {"app": app}}, "linkRef": {"name": "default"},
        "families": ["IPv6"], "keepFor": keep, "coolDown": cool})
}

impl Driver {
    pub fn new(shared: Shared, kind: &Kind) -> Self {
        let rng = StdRng::seed_from_u64(kind.seed ^ 0x5eed);
        shared.lock().checker.clocks_differ = !kind.skew.is_zero();
        let driver = Self { shared, rng, serial: 0, snapshot: None };
        driver.create(
            "aerolinks",
            "",
            "default",
            json!({"kind": "AeroLink",
            "apiVersion": "aerolink.dev/v1alpha1",
            "spec": {"pools": [{"prefix": "2001:db8:a::/60", "clientPrefixLength": 64}]}}),
        );
        for (n, node) in NODES.iter().enumerate() {
            let address = format!("192.0.2.1{n}");
            driver.create(
                "nodes",
                "",
                node,
                json!({"kind": "Node", "apiVersion": "v1",
                "status": {"addresses": [{"type": "InternalIP", "address": address}]}}),
            );
        }
        driver
    }

    pub fn create(&self, plural: &str, namespace: &str, name: &str, object: Value) {
        let mut world = self.shared.lock();
        let mut object = object;
        if object["metadata"].is_null() {
            object["metadata"] = json!({});
        }
        let (key, now) = (Key::new(plural, namespace, name), world.wall_text());
        let done = world.store.create(&key, object, &now).ok();
        world.by_others("created", &key, done);
    }

    pub fn edit(&self, what: &str, key: &Key, change: impl FnOnce(&mut Value)) {
        let mut world = self.shared.lock();
        let done = world.store.edit(key, change);
        world.by_others(what, key, done);
    }

    pub fn remove(&self, key: &Key) {
        let mut world = self.shared.lock();
        let done = world.store.remove(key);
        world.by_others("removed", key, done);
    }

    pub fn client(&self, name: &str, app: &str) {
        self.create(
            "aeroclients",
            NS,
            name,
            json!({"kind": "AeroClient",
            "apiVersion": "aerolink.dev/v1alpha1", "spec": client_spec(app)}),
        );
    }

    /// A pod of a StatefulSet (`web-0`) or of a Deployment.
    pub fn pod(&self, name: &str, app: &str, stateful: bool) {
        let owner = if stateful { "StatefulSet" } else { "ReplicaSet" };
        self.create(
            "pods",
            NS,
            name,
            json!({"kind": "Pod", "apiVersion": "v1",
            "metadata": {"labels": {"app": app}, "ownerReferences": [{"apiVersion": "apps/v1",
                "kind": owner, "name": app, "uid": "o", "controller": true}]},
            "spec": {"containers": []}, "status": {"phase": "Pending"}}),
        );
    }

    pub fn schedule(&self, name: &str, node: &str) {
        self.edit("scheduled", &Key::new("pods", NS, name), |p| {
            p["spec"]["nodeName"] = json!(node);
            p["status"]["phase"] = json!("Running");
        });
    }

    fn keys(&self, plural: &str, fits: impl Fn(&Value) -> bool) -> Vec<Key> {
        let world = self.shared.lock();
        world.store.list(plural, "").filter(|(_, o)| fits(o)).map(|(k, _)| k.clone()).collect()
    }

    fn any(&mut self, plural: &str, fits: impl Fn(&Value) -> bool) -> Option<Key> {
        self.keys(plural, fits).choose(&mut self.rng).cloned()
    }

    fn skew(&mut self, kind: &Kind) -> SignedDuration {
        let most = kind.skew.as_secs();
        if most == 0 {
            kind.skew
        } else {
            SignedDuration::from_secs(self.rng.random_range(-most..=most))
        }
    }

    pub async fn run(&mut self, kind: &Kind) {
        self.client("web", "web");
        self.client("dep", "dep");
        for _ in 0..kind.steps {
            let pause = if self.rng.random_bool(0.2) { 12_000 } else { 2500 };
            sleep(Duration::from_millis(self.rng.random_range(0..pause))).await;
            self.operators(kind);
            self.misfortune(kind);
            self.cluster();
            if !self.look() {
                return;
            }
        }
        self.settle(kind).await;
    }

    /// Looks for a breach; whether all is well.
    fn look(&self) -> bool {
        let mut guard = self.shared.lock();
        let world = &mut *guard;
        let now = world.millis();
        let awake = |o: &super::world::Operator| {
            !o.dead && o.frozen.is_none_or(|t| t <= tokio::time::Instant::now())
        };
        let healthy = world.operators.iter().any(awake);
        world.checker.watch_over(&world.store, now, healthy);
        world.checker.breach.is_none()
    }

    fn operators(&mut self, kind: &Kind) {
        let alive = self.shared.alive();
        match alive.len() {
            0 if self.rng.random_bool(0.6) => {
                let skew = self.skew(kind);
                self.shared.start(skew, None);
            }
            1 if kind.two && self.rng.random_bool(0.15) => {
                let skew = self.skew(kind);
                self.shared.start(skew, None);
            }
            2 if self.rng.random_bool(0.1) => {
                let id = *alive.choose(&mut self.rng).expect("two are there");
                self.shared.crash(id, "as it has lost the Lease");
            }
            _ => {}
        }
    }

    fn misfortune(&mut self, kind: &Kind) {
        let alive = self.shared.alive();
        match self.rng.random_range(0..100) {
            0..3 => {
                if let Some(id) = alive.choose(&mut self.rng) {
                    self.shared.crash(*id, "for no reason");
                }
            }
            3..7 => self.shared.break_watches(),
            7..9 => {
                let mut world = self.shared.lock();
                world.store.compact();
                world.watch_generation += 1;
                world.log("cluster:", "the log is compacted and all watches break");
            }
            9..14 if kind.two => {
                if let Some(id) = alive.choose(&mut self.rng) {
                    let time = Duration::from_millis(self.rng.random_range(500..25_000));
                    self.shared.freeze(*id, time);
                }
            }
            14..18 if kind.restore => self.snapshot = Some(self.shared.lock().store.snapshot()),
            18..22 if kind.restore => {
                if let Some(snapshot) = self.snapshot.clone() {
                    self.restore(snapshot);
                }
            }
            _ => {}
        }
    }

    /// Puts the store back. The API server is stopped for it, so all watches break, and nothing
    /// that was asked for before is done after.
    pub fn restore(&self, snapshot: Snapshot) {
        let mut world = self.shared.lock();
        world.log("cluster:", "the store is put back to an older state");
        world.store.restore(snapshot);
        world.watch_generation += 1;
        world.down_until = world.millis() + RESTART;
        world.checker.restored = true;
        world.checker.forgotten |= world.operators.iter().all(|o| o.dead);
    }

    fn cluster(&mut self) {
        let running = |p: &Value| {
            p["spec"]["nodeName"].is_string() && p["metadata"]["deletionTimestamp"].is_null()
        };
        match self.rng.random_range(0..100) {
            0..30 => {
                let n = self.rng.random_range(0..6);
                match self.rng.random_range(0..3) {
                    0 => self.pod(&format!("web-{n}"), "web", true),
                    1 => self.pod(&format!("db-{n}"), "db", true),
                    _ => {
                        self.serial += 1;
                        let count = self.keys("pods", |p| p["metadata"]["labels"]["app"] == "dep");
                        if count.len() < 6 {
                            self.pod(&format!("dep-x{}", self.serial), "dep", false);
                        }
                    }
                }
            }
            30..55 => {
                for key in self.keys("pods", |p| p["spec"]["nodeName"].is_null()) {
                    if self.rng.random_bool(0.7) {
                        let node = *NODES.choose(&mut self.rng).expect("there are nodes");
                        self.schedule(&key.name, node);
                    }
                }
            }
            55..65 => {
                if let Some(key) = self.any("pods", running) {
                    let now = self.shared.lock().wall_text();
                    let ends = |p: &mut Value| p["metadata"]["deletionTimestamp"] = json!(now);
                    self.edit("is to end:", &key, ends);
                }
            }
            65..73 => {
                let ending = |p: &Value| p["metadata"]["deletionTimestamp"].is_string();
                for key in self.keys("pods", ending) {
                    self.remove(&key);
                }
            }
            73..80 => {
                // Deleted by force, and another of its name is there at once.
                if let Some(key) = self.any("pods", running) {
                    self.remove(&key);
                    if let Some((app, _)) = key.name.split_once('-').filter(|(a, _)| *a != "dep") {
                        self.pod(&key.name, app, true);
                        let node = *NODES.choose(&mut self.rng).expect("there are nodes");
                        self.schedule(&key.name, node);
                    }
                }
            }
            80..83 => {
                if let Some(key) = self.any("pods", |p| running(p) && is_live(p)) {
                    self.edit("finished", &key, |p| p["status"]["phase"] = json!("Failed"));
                }
            }
            83..85 => {
                let n = self.rng.random_range(20..99);
                if let Some(key) = self.any("nodes", |_| true) {
                    self.edit("has another address:", &key, |o| {
                        o["status"]["addresses"][0]["address"] = json!(format!("192.0.2.{n}"));
                    });
                }
            }
            85..90 => {
                let name = *["web", "db", "dep", "thief"].choose(&mut self.rng).expect("four");
                let app = if name == "thief" { "db" } else { name };
                self.client(name, app);
            }
            90..92 => {
                if let Some(key) = self.any("aeroclients", |_| true) {
                    self.remove(&key);
                }
            }
            92..97 => {
                let mut asked: Vec<String> = Vec::new();
                for _ in 0..self.rng.random_range(0..3) {
                    asked.push(format!("2001:db8:a:{:x}::/64", self.rng.random_range(1..16)));
                }
                if let Some(key) = self.any("aeroclients", |_| true) {
                    let what = format!("asks for {asked:?}:");
                    self.edit(&what, &key, |c| c["spec"]["prefixes"] = json!(asked));
                }
            }
            _ => {
                if let Some(key) = self.any("acpmappings", |_| true) {
                    self.shared.lock().touch(&key);
                }
            }
        }
    }

    /// Trouble ends; everything must come right.
    async fn settle(&mut self, kind: &Kind) {
        self.shared.thaw_all();
        self.shared.lock().faults = Faults::none();
        let alive = self.shared.alive();
        let fresh = alive.is_empty() || self.rng.random_bool(0.5);
        for id in alive.iter().skip(usize::from(!fresh)) {
            self.shared.crash(*id, "at the end of trouble");
        }
        self.shared.break_watches();
        if fresh {
            let skew = self.skew(kind);
            self.shared.start(skew, None);
        }
        sleep(Duration::from_secs(20)).await;
        if !self.comes_to_rest().await {
            return;
        }
        let clients_too = self.rng.random_bool(0.5);
        for key in self.keys("pods", |_| true) {
            self.remove(&key);
        }
        if clients_too {
            for key in self.keys("aeroclients", |_| true) {
                self.remove(&key);
            }
        }
        // Grace, the longest keepFor or the grace of orphans, the longest cool-down; and with clocks
        // that differ, the difference twice.
        let skew = Duration::from_secs(2 * kind.skew.as_secs().unsigned_abs());
        sleep(Duration::from_secs(5 + 120 + 180 + 15) + skew).await;
        let mut guard = self.shared.lock();
        let world = &mut *guard;
        world.checker.no_orphans(&world.store);
    }

    /// Whether all is right within some seconds.
    pub async fn comes_to_rest(&self) -> bool {
        let mut last = None;
        for _ in 0..20 {
            {
                let mut guard = self.shared.lock();
                let world = &mut *guard;
                if world.checker.breach.is_some() {
                    return false;
                }
                world.checker.at_rest(&world.store);
                last = world.checker.breach.take();
            }
            if last.is_none() {
                return true;
            }
            sleep(Duration::from_secs(1)).await;
        }
        self.shared.lock().checker.breach = last.map(|b| format!("at rest: {b}"));
        false
    }
}
