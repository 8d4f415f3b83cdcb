//! The world of a history: the store, the operators, the clock, the one generator of chance, and
//! what has happened.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aero_operator::context::{Clock, Context, Settings};
use aero_operator::run::{self, Metrics};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use prometheus_client::registry::Registry;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::check::Checker;
use super::faults::{Fate, Faults};
use super::gates::Gates;
use super::server;
use super::store::{Done, Key, Store};

/// Namespace of all users' objects.
pub const NS: &str = "default";
/// When every history begins.
const BEGIN: i64 = 1_800_000_000;

/// An operator that was started at some time.
#[derive(Default)]
pub struct Operator {
    pub dead: bool,
    /// Nothing goes out or comes in before this.
    pub frozen: Option<Instant>,
    /// Requests that it made so far.
    pub requests: u64,
    /// Dies at that request: before it is carried out, or after.
    pub dies_at: Option<(u64, bool)>,
    ctx: Option<Arc<Context>>,
    main: Option<AbortHandle>,
}

/// What was counted.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Counts {
    pub writes: std::collections::BTreeMap<String, u64>,
    pub conflicts: u64,
    pub events: u64,
    pub event_bytes: u64,
    pub listed: u64,
    pub crashes: u64,
    pub steps: u64,
}

/// Everything, behind one lock.
pub struct World {
    pub store: Store,
    pub rng: StdRng,
    pub faults: Faults,
    pub operators: Vec<Operator>,
    pub watch_generation: u64,
    pub history: Vec<String>,
    pub checker: Checker,
    pub counts: Counts,
    /// Events are refused.
    pub no_events: bool,
    /// Until when the API server answers nobody, in milliseconds since the begin.
    pub down_until: u64,
    /// Where a test decides in which order things happen.
    pub gates: Option<Gates>,
    began: Instant,
}

/// The world, shared by all that happens in it.
#[derive(Clone)]
pub struct Shared {
    world: Arc<Mutex<World>>,
    /// Changes when an operator thaws or dies.
    news: Arc<Notify>,
}

impl World {
    pub fn now(&self) -> Timestamp {
        let passed = SignedDuration::try_from(self.began.elapsed()).unwrap_or_default();
        Timestamp::from_second(BEGIN).unwrap_or_default() + passed
    }

    /// Milliseconds since the begin.
    pub fn millis(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(0)
    }

    pub fn wall_text(&self) -> String {
        let whole = Timestamp::from_second(self.now().as_second()).unwrap_or_default();
        whole.to_string()
    }

    pub fn log(&mut self, who: &str, text: &str) {
        let at = self.millis();
        self.history.push(format!("{:>4}.{:03} {who} {text}", at / 1000, at % 1000));
    }

    pub fn tell(&mut self, id: usize, text: &str) {
        self.log(&format!("operator {id}:"), text);
    }

    /// Draws the fate of a request.
    pub fn arrives(&mut self, id: usize, write: bool) -> Fate {
        let mut fate = self.faults.draw(&mut self.rng, write);
        let operator = &mut self.operators[id];
        operator.requests += 1;
        if let Some((at, after)) = operator.dies_at
            && operator.requests == at
        {
            fate.crash_before = !after;
            fate.crash_after = after;
        }
        fate
    }

    pub fn draw_watch(&mut self) -> (Duration, u64, u64) {
        let lag = self.faults.draw_lag(&mut self.rng);
        (lag, self.rng.random(), self.watch_generation)
    }

    pub fn count_list(&mut self, _id: usize, items: &[Value]) {
        self.counts.listed += items.len() as u64;
    }

    pub fn count_event(&mut self, _id: usize, bytes: usize) {
        self.counts.events += 1;
        self.counts.event_bytes += bytes as u64;
    }

    pub fn refused(&mut self, _id: usize, code: u16) {
        if code == 409 {
            self.counts.conflicts += 1;
        }
    }

    /// Somebody else writes an annotation of their own, so that the version is another.
    pub fn touch(&mut self, key: &Key) {
        let n = self.store.revision();
        let change = |o: &mut Value| {
            o["metadata"]["annotations"]["example.test/touched"] = json!(n.to_string());
        };
        if self.store.edit(key, change).is_some() {
            self.log("somebody:", &format!("touched {} {}", key.plural, key.name));
        }
    }

    /// After every change of the store, whoever made it.
    pub fn written(&mut self, by: Option<usize>, key: &Key, done: &Done) {
        self.counts.steps += 1;
        if by.is_some() {
            *self.counts.writes.entry(key.plural.clone()).or_default() += 1;
        }
        let now = self.millis();
        self.checker.step(&self.store, by, key, done, now);
    }

    /// What users, the scheduler and kubelets do.
    pub fn by_others(&mut self, what: &str, key: &Key, done: Option<Done>) {
        if let Some(done) = done {
            self.log("cluster:", &format!("{what} {} {}", key.plural, key.name));
            self.written(None, key, &done);
        }
    }
}

impl Shared {
    pub fn new(seed: u64, faults: Faults) -> Self {
        // The watches' jitter comes from this thread's generator.
        fastrand::seed(seed);
        let world = World {
            store: Store::new(),
            rng: StdRng::seed_from_u64(seed),
            faults,
            operators: Vec::new(),
            watch_generation: 0,
            history: Vec::new(),
            checker: Checker::default(),
            counts: Counts::default(),
            no_events: false,
            down_until: 0,
            gates: None,
            began: Instant::now(),
        };
        let shared = Self { world: Arc::new(Mutex::new(world)), news: Arc::default() };
        let mut w = shared.lock();
        let now = w.wall_text();
        let system = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {}});
        let key = Key::new("namespaces", "", "kube-system");
        assert!(w.store.create(&key, system, &now).is_ok());
        drop(w);
        shared
    }

    pub fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the test lets this step go; does not where it decides about none.
    pub async fn gate(&self, of: &str, what: impl FnOnce() -> String) {
        let opened = self.lock().gates.as_mut().map(|g| g.wait(of, what()));
        if let Some(opened) = opened {
            let _ = opened.await;
        }
    }

    /// Waits until operator `id` is not frozen; for ever if it is dead.
    pub async fn thawed(&self, id: usize) {
        loop {
            let mut news = std::pin::pin!(self.news.notified());
            news.as_mut().enable();
            let (dead, frozen) = {
                let world = self.lock();
                (world.operators[id].dead, world.operators[id].frozen)
            };
            match frozen {
                _ if dead => std::future::pending().await,
                Some(until) if until > Instant::now() => {
                    let _ = tokio::time::timeout_at(until, news).await;
                }
                _ => return,
            }
        }
    }

    fn clock(&self, skew: SignedDuration) -> Clock {
        let shared = self.clone();
        Arc::new(move || shared.lock().now() + skew)
    }

    /// Starts an operator beside those that run.
    pub fn start(&self, skew: SignedDuration, dies_at: Option<(u64, bool)>) -> usize {
        let mut world = self.lock();
        let id = world.operators.len();
        world.operators.push(Operator { dies_at, ..Operator::default() });
        world.tell(id, "starts");
        let shared = self.clone();
        let main = tokio::task::spawn_local(async move { shared.operate(id, skew).await });
        world.operators[id].main = Some(main.abort_handle());
        id
    }

    async fn operate(self, id: usize, skew: SignedDuration) {
        let shared = self.clone();
        let service = tower::service_fn(move |r| server::serve(shared.clone(), id, r));
        let client = kube::Client::new(service, NS);
        let settings = Settings {
            namespace: "aero-system".into(),
            pod: format!("operator-{id}"),
            node_agent_image: "image".into(),
            bird_image: "bird".into(),
            pull_policy: "Never".into(),
            server_service_account: "aero-server".into(),
            relay_service_account: "aero-relay".into(),
            log: ("info".into(), "text"),
            forwarder: "auto".into(),
        };
        loop {
            // As Kubernetes does with an operator that ends: it is started anew.
            match Context::start(client.clone(), settings.clone(), self.clock(skew)).await {
                Ok(ctx) => {
                    self.lock().operators[id].ctx = Some(Arc::clone(&ctx));
                    run::all(ctx, Metrics::new(&mut Registry::default())).await;
                }
                Err(e) => self.lock().tell(id, &format!("cannot start: {e:#}")),
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// The operator dies, between two of its instructions.
    pub fn crash(&self, id: usize, when: &str) {
        let mut world = self.lock();
        let operator = &mut world.operators[id];
        if operator.dead {
            return;
        }
        operator.dead = true;
        let (ctx, main) = (operator.ctx.take(), operator.main.take());
        world.counts.crashes += 1;
        world.checker.forgotten |= world.checker.restored;
        world.tell(id, &format!("dies {when}"));
        drop(world);
        if let Some(main) = main {
            main.abort();
        }
        if let Some(ctx) = ctx {
            ctx.stop();
        }
        self.news.notify_waiters();
    }

    pub fn freeze(&self, id: usize, time: Duration) {
        let mut world = self.lock();
        world.tell(id, &format!("is frozen for {time:?}"));
        world.operators[id].frozen = Some(Instant::now() + time);
    }

    pub fn thaw_all(&self) {
        for operator in &mut self.lock().operators {
            operator.frozen = None;
        }
        self.news.notify_waiters();
    }

    /// Operators that live.
    pub fn alive(&self) -> Vec<usize> {
        let world = self.lock();
        (0..world.operators.len()).filter(|i| !world.operators[*i].dead).collect()
    }

    /// All connections of watches break.
    pub fn break_watches(&self) {
        let mut world = self.lock();
        world.watch_generation += 1;
        world.log("cluster:", "all watches break");
        world.store.changes().notify_waiters();
    }
}
