//! The CNI verbs.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use aero_protocol::client::Liveness;
use ipnet::Ipv6Net;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use super::Agent;
use super::assignment::{self, Assignment, Verdict};
use super::journal::Record;
use crate::attach::{self, AttachError, AttachSpec, host_ifname};
use crate::cni::protocol::{Attachment, CniError, Done, Interface, Ip, Request, Route, code};
use crate::cni::server::Handler;

/// An ADD ends within this time; the plugin waits a little longer.
const ADD_TIME: Duration = Duration::from_secs(8);
/// Once one Server has given the lease, the others are waited for this long.
const OTHERS_TIME: Duration = Duration::from_millis(500);
/// Name of the interface in a pod that has a primary one already.
const CHAINED_IFNAME: &str = "aero0";

impl Handler for Agent {
    async fn handle(&self, request: Request) -> Result<Done, CniError> {
        match request.verb.as_str() {
            "ADD" => self.add(&request).await.map(|attachment| Done { attachment }),
            "DEL" => self.del(&request.container_id, &request.ifname).await,
            "CHECK" => self.check(&request).await,
            "GC" => self.gc(&request).await,
            "STATUS" => self.status().await,
            other => Err(CniError::new(
                code::INVALID_ENVIRONMENT,
                format!("the agent knows no verb {other:?}"),
            )),
        }
    }

    fn handled(&self, verb: &str, outcome: &Result<Done, CniError>, took: Duration) {
        self.requests.observe(verb, outcome.is_ok(), took);
    }
}

/// The interface that an ADD makes: as a delegate the one it names, chained our own beside the
/// primary one.
fn interface_name(request: &Request) -> String {
    if chained(&request.config) { CHAINED_IFNAME.into() } else { request.ifname.clone() }
}

/// Chained: the configuration is a list's member with a network before it. Of an ADD only; to the
/// other verbs the runtime passes the whole list's result, ours too.
fn chained(config: &Value) -> bool {
    config.get("prevResult").is_some_and(|p| !p.is_null())
}

/// True if the result before ours gives the pod an address of this family.
fn has_family(config: &Value, v6: bool) -> bool {
    let ips = config.pointer("/prevResult/ips").and_then(Value::as_array);
    ips.into_iter().flatten().any(|ip| {
        let address = ip.get("address").and_then(Value::as_str).unwrap_or_default();
        let address = address.split('/').next().and_then(|a| a.parse::<IpAddr>().ok());
        address.is_some_and(|a| a.is_ipv6() == v6)
    })
}

fn io_error(e: &AttachError) -> CniError {
    CniError::new(code::IO_FAILURE, e.to_string())
}

impl Agent {
    async fn add(&self, request: &Request) -> Result<Option<Attachment>, CniError> {
        let began = Instant::now();
        let deadline = began + ADD_TIME;
        let arg = |name: &str| request.args.get(name).filter(|v| !v.is_empty()).cloned();
        let (Some(namespace), Some(name)) = (arg("K8S_POD_NAMESPACE"), arg("K8S_POD_NAME")) else {
            return Err(CniError::new(
                code::INVALID_ENVIRONMENT,
                "CNI_ARGS names no pod (K8S_POD_NAMESPACE, K8S_POD_NAME)",
            )
            .details("aero-cni attaches pods of Kubernetes; the runtime has to pass their names"));
        };
        let place = self.turns.place(&format!("{namespace}/{name}"));
        let container = self.turns.place(&request.container_id);
        let _container = container.turn().await;
        let uid = arg("K8S_POD_UID");
        let pod = self.wait_for_pod(&namespace, &name, uid.as_deref(), deadline).await?;
        let assigned = self.assignment_of(&namespace, &name, &pod, deadline).await?;
        let Some(assignment) = assigned else { return Ok(None) };
        let told = Instant::now();
        let spec = AttachSpec {
            host_ifname: host_ifname(&request.container_id, &interface_name(request)),
            netns: request.netns.clone().into(),
            ifname: interface_name(request),
            prefix: assignment.prefix,
            asps: assignment.asps.clone(),
            mtu: u32::from(self.mtu),
            also_on: (chained(&request.config) && !has_family(&request.config, true))
                .then(|| request.ifname.clone()),
        };
        let record = Record {
            container_id: request.container_id.clone(),
            network: network_of(&request.config),
            namespace,
            pod: name,
            pod_uid: assignment.pod_uid,
            client_id: assignment.client_id,
            epoch: assignment.epoch,
            spec,
        };
        let text =
            format!("another sandbox of pod {}/{} is being attached", record.namespace, record.pod);
        let waiting = timeout_at(deadline, place.turn());
        let Ok(Some(_turn)) = waiting.await else {
            return Err(CniError::new(code::TRY_AGAIN_LATER, text));
        };
        // Another sandbox of the same pod, left by a try that failed.
        for older in self.journal.all() {
            if older.client_id == record.client_id && older.container_id != record.container_id {
                self.drop_attachment(&older, false).await?;
            }
        }
        self.journal
            .put(record.clone())
            .map_err(|e| CniError::new(code::IO_FAILURE, format!("the journal: {e}")))?;
        let ((interfaces, made), (lease, leased)) = tokio::join!(
            timed(attach::attach(&record.spec)),
            timed(self.associate(&assignment, deadline))
        );
        if let Err(e) = interfaces.as_ref().map_err(io_error).and(lease) {
            self.drop_attachment(&record, true).await?;
            return Err(e);
        }
        self.connect(&record.spec);
        self.routes_for(&assignment.asps).await;
        tracing::info!(
            pod = format!("{}/{}", record.namespace, record.pod),
            identity = assignment.identity,
            prefix = %assignment.prefix,
            epoch = assignment.epoch,
            operator = ?told - began,
            interfaces = ?made,
            servers = ?leased,
            "attached"
        );
        Ok(Some(describe(&record.spec)))
    }

    async fn wait_for_pod(
        &self,
        namespace: &str,
        name: &str,
        uid: Option<&str>,
        deadline: Instant,
    ) -> Result<Arc<Pod>, CniError> {
        let mut changes = self.watches.changes();
        loop {
            let found = self.watches.pod(namespace, name);
            if let Some(pod) = found
                && uid.is_none_or(|u| pod.metadata.uid.as_deref() == Some(u))
            {
                return Ok(pod);
            }
            if timeout_at(deadline, changes.changed()).await.is_err() {
                let what = format!("pod {namespace}/{name} is not known on this node");
                return Err(self.explain(what).await);
            }
        }
    }

    /// What the operator has written, or writes, on a pod; `None` if it is not enrolled. One that
    /// it has written on is; the others are asked about while it may still write.
    async fn assignment_of(
        &self,
        namespace: &str,
        name: &str,
        pod: &Arc<Pod>,
        deadline: Instant,
    ) -> Result<Option<Assignment>, CniError> {
        let assignment = self.wait_for_assignment(namespace, name, pod, deadline);
        tokio::pin!(assignment);
        tokio::select! {
            biased;
            assignment = &mut assignment => return assignment.map(Some),
            enrolled = self.enrolment.enrolled(pod, deadline) => match enrolled {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(why) => return Err(CniError::new(code::TRY_AGAIN_LATER, why)),
            },
        }
        assignment.await.map(Some)
    }

    async fn wait_for_assignment(
        &self,
        namespace: &str,
        name: &str,
        pod: &Arc<Pod>,
        deadline: Instant,
    ) -> Result<Assignment, CniError> {
        let mut changes = self.watches.changes();
        loop {
            let latest = self.watches.pod(namespace, name).unwrap_or_else(|| Arc::clone(pod));
            match assignment::read(&latest) {
                Verdict::Assigned(a) if a.link == self.args.link => return Ok(a),
                Verdict::Assigned(a) => {
                    let text = format!(
                        "the pod's prefix is of link {:?}, and this node serves link {:?}",
                        a.link, self.args.link
                    );
                    return Err(CniError::new(code::TRY_AGAIN_LATER, text));
                }
                Verdict::Refused(why) => {
                    return Err(CniError::new(code::TRY_AGAIN_LATER, why));
                }
                Verdict::Unreadable(why) => {
                    let text = format!("the operator's annotations make no sense: {why}");
                    return Err(CniError::new(code::TRY_AGAIN_LATER, text));
                }
                Verdict::Nothing => {}
            }
            if timeout_at(deadline, changes.changed()).await.is_err() {
                let what = format!(
                    "the operator has not given pod {namespace}/{name} a prefix within {ADD_TIME:?}"
                );
                return Err(self
                    .explain(what)
                    .await
                    .details("kubectl get aeroclients -A; kubectl -n aero-system get pods"));
            }
        }
    }

    /// An error of waiting in vain, with the API server's state if that explains it.
    async fn explain(&self, what: String) -> CniError {
        let text = match self.watches.api_health().await {
            Ok(()) => what,
            Err(why) => format!("{what}; {why}"),
        };
        CniError::new(code::TRY_AGAIN_LATER, text)
    }

    /// Gets the lease: from one Server, and a moment later from all that answer.
    async fn associate(&self, assignment: &Assignment, deadline: Instant) -> Result<(), CniError> {
        let client = self.speak_for(
            assignment.client_id,
            assignment.epoch,
            assignment.pod_uid,
            assignment.prefix,
        );
        let mut changes = self.driver.changes();
        let mut deadline = deadline;
        let mut first = true;
        loop {
            let standing = self.driver.with(|n, _| n.standing(&client)).unwrap_or_default();
            if !standing.bound.is_empty() {
                if standing.prefixes != [assignment.prefix.into()] {
                    let text = format!(
                        "the Servers delegate {:?} where the operator says {}; they lag behind",
                        standing.prefixes, assignment.prefix
                    );
                    return Err(CniError::new(code::TRY_AGAIN_LATER, text));
                }
                if standing.pending.is_empty() {
                    return Ok(());
                }
                if std::mem::take(&mut first) {
                    deadline = deadline.min(Instant::now() + OTHERS_TIME);
                }
            }
            if timeout_at(deadline, changes.changed()).await.is_err() {
                if !standing.bound.is_empty() {
                    return Ok(());
                }
                let text = match standing.refusal {
                    Some(why) => format!("the Servers refuse {}: {why}", assignment.prefix),
                    None => self.no_server(),
                };
                return Err(CniError::new(code::TRY_AGAIN_LATER, text)
                    .details("kubectl -n aero-system get aeroservers,pods -o wide"));
            }
        }
    }

    fn no_server(&self) -> String {
        let servers: Vec<String> =
            self.driver.with(|n, _| n.servers().map(|(l2, _)| l2.to_string()).collect());
        if servers.is_empty() {
            format!("link {:?} has no ready Server", self.args.link)
        } else {
            format!("no Server answers on UDP (asked: {})", servers.join(", "))
        }
    }

    /// What was attached for an interface: under its own name as a delegate, else under ours.
    fn records(&self, container: &str, ifname: &str) -> Vec<Record> {
        let exact = self.journal.find(container, ifname);
        if exact.is_empty() { self.journal.find(container, CHAINED_IFNAME) } else { exact }
    }

    pub(super) async fn del(&self, container: &str, ifname: &str) -> Result<Done, CniError> {
        // Of an ADD whose plugin has ended there may be nothing to see yet.
        let place = self.turns.place(container);
        let _turn = place.turn().await;
        let found = self.records(container, ifname);
        for record in found {
            self.drop_attachment(&record, true).await?;
        }
        Ok(Done::default())
    }

    /// Takes an attachment away; its lease too, unless another attachment needs it.
    pub(super) async fn drop_attachment(
        &self,
        record: &Record,
        release: bool,
    ) -> Result<(), CniError> {
        self.table.disconnect(&record.spec.host_ifname);
        attach::detach(&record.spec.host_ifname).await.map_err(|e| io_error(&e))?;
        self.journal
            .remove(record)
            .map_err(|e| CniError::new(code::IO_FAILURE, format!("the journal: {e}")))?;
        let needed = self.journal.all().iter().any(|r| r.client_id == record.client_id);
        if release && !needed {
            self.stop_speaking_for(record.client_id);
        }
        Ok(())
    }

    async fn check(&self, request: &Request) -> Result<Done, CniError> {
        let records = self.records(&request.container_id, &request.ifname);
        let names = |name: &str| host_ifname(&request.container_id, name);
        let ours = [names(&request.ifname), names(CHAINED_IFNAME)];
        let interfaces = request.config.pointer("/prevResult/interfaces").and_then(Value::as_array);
        let promised = interfaces.into_iter().flatten().find_map(|i| {
            let name = i.get("name").and_then(Value::as_str)?;
            ours.iter().any(|o| o == name).then(|| name.to_string())
        });
        if let (true, Some(name)) = (records.is_empty(), promised) {
            let text = format!("the attachment behind {name} is not known to the agent any more");
            return Err(CniError::new(code::IO_FAILURE, text));
        }
        for record in &records {
            attach::check(&record.spec).await.map_err(|e| io_error(&e))?;
            let served = self
                .driver
                .with(|n, _| n.standing(&super::duid(record.client_id)).is_some_and(|s| s.served));
            if !served {
                let text = format!("no Server delegates {} to this pod", record.spec.prefix);
                return Err(CniError::new(code::IO_FAILURE, text));
            }
        }
        Ok(Done::default())
    }

    /// Removes what is not in the runtime's list of valid attachments, of this network only.
    async fn gc(&self, request: &Request) -> Result<Done, CniError> {
        let valid = request.config.get("cni.dev/valid-attachments").and_then(Value::as_array);
        let Some(valid) = valid else {
            return Err(CniError::new(
                code::INVALID_CONFIG,
                "cni.dev/valid-attachments is missing",
            ));
        };
        let keep: BTreeSet<&str> =
            valid.iter().filter_map(|v| v.get("containerID").and_then(Value::as_str)).collect();
        let network = network_of(&request.config);
        for record in self.journal.all() {
            if record.network == network && !keep.contains(record.container_id.as_str()) {
                self.drop_attachment(&record, true).await?;
            }
        }
        Ok(Done::default())
    }

    async fn status(&self) -> Result<Done, CniError> {
        let unavailable = |text: String| Err(CniError::new(code::NOT_AVAILABLE, text));
        if let Err(why) = self.watches.api_health().await {
            return unavailable(format!("pods cannot be given prefixes: {why}"));
        }
        let servers: Vec<_> = self.driver.with(|n, _| n.servers().collect());
        let silent = |(_, l): &(_, Liveness)| *l == Liveness::Silent;
        if !servers.is_empty() && servers.iter().all(silent) {
            return unavailable(self.no_server());
        }
        Ok(Done::default())
    }
}

/// What comes of a future, and how long that takes.
async fn timed<T>(future: impl Future<Output = T>) -> (T, Duration) {
    let began = Instant::now();
    (future.await, began.elapsed())
}

fn network_of(config: &Value) -> String {
    config.get("name").and_then(Value::as_str).unwrap_or_default().to_string()
}

fn describe(spec: &AttachSpec) -> Attachment {
    let address = Ipv6Net::new(spec.address(), spec.prefix.prefix_len());
    let address = address.map_or_else(|_| spec.address().to_string(), |n| n.to_string());
    let host = Interface {
        name: spec.host_ifname.clone(),
        mac: AttachSpec::host_mac(),
        mtu: spec.mtu,
        sandbox: None,
    };
    let pod = Interface {
        name: spec.ifname.clone(),
        mac: AttachSpec::pod_mac(),
        mtu: spec.mtu,
        sandbox: Some(spec.netns.display().to_string()),
    };
    let mut ips = vec![Ip { address, interface: 1, gateway: None }];
    if spec.also_on.is_some() {
        let address = format!("{}/128", spec.address());
        ips.push(Ip { address, interface: -1, gateway: None });
    }
    let routes = spec.asps.iter().map(|asp| Route {
        dst: asp.to_string(),
        gw: Some("fe80::1".into()),
        mtu: None,
    });
    Attachment { interfaces: vec![host, pod], ips, routes: routes.collect() }
}

/// The record's pod, as it stands in the cache, is another pod or none.
pub(super) fn pod_is_gone(agent: &Agent, record: &Record) -> bool {
    let pod = agent.watches.pod(&record.namespace, &record.pod);
    pod.is_none_or(|p| p.uid().as_deref() != Some(&record.pod_uid.to_string()))
}
