//! The API server as the operator's client sees it: HTTP requests in, answers and watches out.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::http::{Method, Request, Response, Uri};
use futures::stream;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::faults::Fate;
use super::store::{Done, Key, Preconditions, Refused};
use super::world::Shared;

/// A request, understood.
#[derive(Debug)]
struct Call {
    method: Method,
    key: Key,
    status: bool,
    query: BTreeMap<String, String>,
    content: String,
}

impl Call {
    fn of(method: Method, uri: &Uri, content: String) -> Self {
        let steps: Vec<&str> = uri.path().trim_matches('/').split('/').collect();
        // api/v1/... or apis/GROUP/VERSION/...
        let rest = if steps[0] == "api" { &steps[2..] } else { &steps[3..] };
        let (namespace, rest) = match rest {
            ["namespaces", ns, rest @ ..] if !rest.is_empty() => (*ns, rest),
            rest => ("", rest),
        };
        let name = rest.get(1).copied().unwrap_or_default();
        let query = uri.query().unwrap_or_default();
        let query = query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(k, v)| {
                (k.to_string(), v.replace("%3D", "=").replace("%2F", "/").replace("%2C", ","))
            })
            .collect();
        Self {
            method,
            key: Key::new(rest[0], namespace, name),
            status: rest.get(2) == Some(&"status"),
            query,
            content,
        }
    }

    fn is_write(&self) -> bool {
        self.method != Method::GET
    }

    fn is_watch(&self) -> bool {
        self.query.get("watch").is_some_and(|w| w == "true" || w == "1")
    }

    fn selects(&self, object: &Value) -> bool {
        selects(&self.query, object)
    }

    /// The identity that a request is about, and what it is, where a test may decide when it goes.
    fn subject(&self, shared: &Shared, body: &Value) -> Option<(String, String)> {
        let world = shared.lock();
        world.gates.as_ref()?;
        let Key { plural, name, .. } = &self.key;
        let of = match (plural.as_str(), &self.method) {
            ("pods", _) if !name.is_empty() => name.clone(),
            ("acpmappings", &Method::POST) => identity_of(body).to_string(),
            ("acpmappings", _) if !name.is_empty() => {
                identity_of(world.store.get(&self.key)?).to_string()
            }
            _ => return None,
        };
        let manager = self.query.get("fieldManager").map_or("", String::as_str);
        let status = &body["status"];
        let phase = if !self.status {
            ""
        } else if status["phase"] == "Cooling" {
            " cools"
        } else if status["releasedAt"].is_string() {
            " is kept"
        } else {
            " is bound"
        };
        Some((of, format!("{} {plural}{phase} {manager}", self.method)))
    }

    fn text(&self) -> String {
        let Key { plural, namespace, name } = &self.key;
        let sub = if self.status { "/status" } else { "" };
        // The name of an Event holds the time of this machine, which a history must not depend on.
        let name = if plural == "events" { "..." } else { name };
        format!("{} {plural} {namespace}/{name}{sub}", self.method)
    }
}

fn identity_of(mapping: &Value) -> &str {
    mapping["spec"]["identity"].as_str().unwrap_or_default()
}

/// Label and field selectors, as far as the operator uses them.
fn selects(query: &BTreeMap<String, String>, object: &Value) -> bool {
    let each = |name: &str, has: &dyn Fn(&str, &str) -> bool| {
        let selector = query.get(name).map(String::as_str).unwrap_or_default();
        selector.split(',').filter(|s| !s.is_empty()).all(|term| {
            let (field, value) = term.split_once('=').unwrap_or((term, ""));
            has(field, value.trim_start_matches('='))
        })
    };
    each("labelSelector", &|label, value| object["metadata"]["labels"][label] == value)
        && each("fieldSelector", &|path, value| {
            path.split('.').fold(object, |v, step| &v[step]) == value
        })
}

/// One request of operator `id`, with all that can befall it.
pub async fn serve(
    shared: Shared,
    id: usize,
    request: Request<kube::client::Body>,
) -> Result<Response<Body>, io::Error> {
    let (parts, body) = request.into_parts();
    let content = parts.headers.get("content-type");
    let content = content.and_then(|c| c.to_str().ok()).unwrap_or_default().to_string();
    let call = Call::of(parts.method, &parts.uri, content);
    let bytes = to_bytes(Body::new(body), usize::MAX).await.map_err(io::Error::other)?;
    let body: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    let fate = shared.lock().arrives(id, call.is_write());
    let gated = call.subject(&shared, &body);
    if let Some((of, what)) = &gated {
        shared.gate(of, || format!("{what} arrives")).await;
    }
    tokio::time::sleep(fate.there).await;
    shared.thawed(id).await;
    if fate.crash_before {
        shared.crash(id, &format!("before {}", call.text()));
        return std::future::pending().await;
    }
    let answer = carry_out(&shared, id, &call, &body, &fate);
    if fate.crash_after {
        shared.crash(id, &format!("after {}", call.text()));
        return std::future::pending().await;
    }
    if fate.lost {
        shared.lock().tell(id, &format!("  the answer to {} is lost", call.text()));
        return Err(io::Error::new(io::ErrorKind::ConnectionReset, "the answer is lost"));
    }
    if let Some((of, what)) = &gated {
        shared.gate(of, || format!("{what} is answered")).await;
    }
    tokio::time::sleep(fate.back).await;
    shared.thawed(id).await;
    if call.is_watch() && answer.is_ok() {
        return Ok(Response::new(watch(shared, id, call)));
    }
    let (code, value) = match answer {
        Ok(value) => (200, value),
        Err(e) => (e.code, e.status()),
    };
    let mut response = Response::new(Body::from(value.to_string()));
    *response.status_mut() = code.try_into().unwrap_or_default();
    Ok(response)
}

fn carry_out(
    shared: &Shared,
    id: usize,
    call: &Call,
    body: &Value,
    fate: &Fate,
) -> Result<Value, Refused> {
    let mut world = shared.lock();
    let now = world.wall_text();
    let key = if call.method == Method::POST {
        let name = body["metadata"]["name"].as_str().unwrap_or_default();
        Key { name: name.into(), ..call.key.clone() }
    } else {
        call.key.clone()
    };
    if world.millis() < world.down_until {
        world.tell(id, &format!("{} -> 503", call.text()));
        return Err(Refused::new(503, "ServiceUnavailable", "the API server starts"));
    }
    if fate.refused {
        world.tell(id, &format!("{} -> 500, by chance", call.text()));
        return Err(Refused::new(500, "InternalError", "by chance"));
    }
    if world.no_events && key.plural == "events" {
        return Err(Refused::new(403, "Forbidden", "no Events here"));
    }
    if fate.touched && key.plural != "events" {
        world.touch(&key);
    }
    let store = &mut world.store;
    let object = |done: Done| (done.after.as_deref().cloned().unwrap_or(Value::Null), done);
    let outcome = match call.method {
        // A version that is too old is told in the watch, not instead of it.
        Method::GET if call.is_watch() => return Ok(Value::Null),
        Method::GET if key.name.is_empty() => {
            let items: Vec<Value> = store
                .list(&key.plural, &key.namespace)
                .filter(|(_, o)| call.selects(o))
                .map(|(_, o)| (**o).clone())
                .collect();
            let version = store.revision().to_string();
            world.count_list(id, &items);
            return Ok(json!({"kind": "List", "apiVersion": "v1",
                "metadata": {"resourceVersion": version}, "items": items}));
        }
        Method::GET => {
            let missing = || Refused::new(404, "NotFound", key.name.clone());
            let found = store.get(&key).map(|o| (**o).clone()).ok_or_else(missing);
            let outcome = if found.is_ok() { "found" } else { "not found" };
            world.tell(id, &format!("{} -> {outcome}", call.text()));
            return found;
        }
        Method::POST => store.create(&key, body.clone(), &now).map(object),
        Method::PUT => store.replace(&key, body).map(object),
        Method::PATCH if call.content.contains("apply-patch") => {
            let manager = call.query.get("fieldManager").cloned().unwrap_or_default();
            store.apply(&key, call.status, &manager, body, &now).map(object)
        }
        Method::PATCH => store.merge(&key, call.status, body).map(object),
        Method::DELETE => {
            let text = |v: &Value| v.as_str().map(String::from);
            let only = &body["preconditions"];
            let only =
                Preconditions { uid: text(&only["uid"]), version: text(&only["resourceVersion"]) };
            let gone = json!({"kind": "Status", "apiVersion": "v1", "status": "Success"});
            store.delete(&key, &only).map(|done| (gone, done))
        }
        _ => Err(Refused::new(405, "MethodNotAllowed", call.text())),
    };
    match outcome {
        Ok((value, done)) => {
            let made =
                if call.method == Method::POST && key.plural != "events" { &key.name } else { "" };
            world.tell(id, &format!("{}{made} -> ok {}", call.text(), brief(&key, &value)));
            world.written(Some(id), &key, &done);
            Ok(value)
        }
        Err(e) => {
            world.tell(id, &format!("{} -> {} {}", call.text(), e.code, e.message));
            world.refused(id, e.code);
            Err(e)
        }
    }
}

/// What a history says of an object that was written.
fn brief(key: &Key, object: &Value) -> String {
    let (spec, status, metadata) = (&object["spec"], &object["status"], &object["metadata"]);
    match key.plural.as_str() {
        "acpmappings" => format!(
            "rv {} {} of {} holder {} {} epoch {} {} free at {}",
            metadata["resourceVersion"],
            spec["identity"],
            spec["clientRef"]["name"],
            spec["holder"]["podName"],
            spec["holder"]["podUid"],
            spec["epoch"],
            status["phase"],
            status["freeAt"]
        ),
        "pods" => format!("{} {}", metadata["uid"], metadata["annotations"]),
        "events" => format!("{} {}", object["reason"], object["note"]),
        _ => status["conditions"].to_string(),
    }
}

/// Events of a watch, each as late as its watch lags.
struct Watch {
    shared: Shared,
    id: usize,
    call: Call,
    at: u64,
    lag: Duration,
    rng: StdRng,
    /// No event comes before the one before it.
    last: Instant,
    until: Instant,
    generation: u64,
    over: bool,
}

fn watch(shared: Shared, id: usize, call: Call) -> Body {
    let number = |name: &str| call.query.get(name).and_then(|v| v.parse::<u64>().ok());
    let timeout = Duration::from_secs(number("timeoutSeconds").unwrap_or(290));
    let (lag, seed, generation) = shared.lock().draw_watch();
    let watch = Watch {
        at: number("resourceVersion").unwrap_or(0),
        lag,
        rng: StdRng::seed_from_u64(seed),
        last: Instant::now(),
        until: Instant::now() + timeout,
        generation,
        over: false,
        shared,
        id,
        call,
    };
    Body::from_stream(stream::unfold(watch, |mut w| async move {
        let item = w.next().await?;
        Some((item, w))
    }))
}

/// What a watch does next. An event is its type and its object; it is for all watches one object.
enum Step {
    Deliver(&'static str, Arc<Value>, Instant, u64),
    Skip(u64),
    Nothing,
    Expired(Refused),
}

impl Watch {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        let changes = self.shared.lock().store.changes();
        loop {
            if self.over {
                return None;
            }
            let mut changed = std::pin::pin!(changes.notified());
            changed.as_mut().enable();
            if self.shared.lock().watch_generation != self.generation {
                self.over = true;
                let text = "the connection broke";
                return Some(Err(io::Error::new(io::ErrorKind::UnexpectedEof, text)));
            }
            let step = self.step();
            match step {
                Step::Skip(version) => self.at = version,
                Step::Deliver(type_, object, written, version) => {
                    use rand::Rng;
                    let lag = self.rng.random_range(Duration::ZERO..=self.lag);
                    self.last = self.last.max(written + lag);
                    tokio::time::sleep_until(self.last).await;
                    let plural = &self.call.key.plural;
                    let of = match plural.as_str() {
                        "pods" => object["metadata"]["name"].as_str(),
                        "acpmappings" => object["spec"]["identity"].as_str(),
                        _ => None,
                    };
                    if let Some(of) = of {
                        let what = || format!("{type_:?} {plural} is seen");
                        self.shared.gate(of, what).await;
                    }
                    self.shared.thawed(self.id).await;
                    self.at = version;
                    let line = format!("{{\"type\":\"{type_}\",\"object\":{object}}}\n");
                    self.shared.lock().count_event(self.id, line.len());
                    return Some(Ok(Bytes::from(line)));
                }
                Step::Expired(e) => {
                    self.over = true;
                    let event = json!({"type": "ERROR", "object": e.status()});
                    return Some(Ok(Bytes::from(format!("{event}\n"))));
                }
                Step::Nothing => {
                    let bookmark = Instant::now() + Duration::from_secs(60);
                    let _ = tokio::time::timeout_at(self.until.min(bookmark), changed).await;
                    if Instant::now() >= self.until {
                        return None;
                    }
                    if Instant::now() >= bookmark {
                        let world = self.shared.lock();
                        if matches!(world.store.since(&self.call.key.plural, self.at), Ok([])) {
                            self.at = world.store.revision();
                        }
                        drop(world);
                        return Some(Ok(self.bookmark()));
                    }
                }
            }
        }
    }

    fn step(&self) -> Step {
        let world = self.shared.lock();
        let namespace = &self.call.key.namespace;
        let all = match world.store.since(&self.call.key.plural, self.at) {
            Ok(all) => all,
            Err(e) => return Step::Expired(e),
        };
        let Some(logged) = all.first() else { return Step::Nothing };
        let fits = |o: &Option<Arc<Value>>| {
            o.as_deref().is_some_and(|o| {
                let here = namespace.is_empty() || o["metadata"]["namespace"] == namespace.as_str();
                here && self.call.selects(o)
            })
        };
        let (type_, object) = match (fits(&logged.before), fits(&logged.after)) {
            (false, false) => return Step::Skip(logged.version),
            (false, true) => ("ADDED", logged.after.clone()),
            (true, true) => ("MODIFIED", logged.after.clone()),
            (true, false) => {
                // Its last state, under the version at which it went.
                let mut gone = logged.before.as_deref().cloned().unwrap_or_default();
                gone["metadata"]["resourceVersion"] = json!(logged.version.to_string());
                ("DELETED", Some(Arc::new(gone)))
            }
        };
        Step::Deliver(type_, object.unwrap_or_default(), logged.at, logged.version)
    }

    fn bookmark(&self) -> Bytes {
        let (version, kind) = match &self.call.key.plural[..] {
            "pods" | "nodes" => ("v1", if self.call.key.plural == "pods" { "Pod" } else { "Node" }),
            "deployments" => ("apps/v1", "Deployment"),
            "configmaps" => ("v1", "ConfigMap"),
            other => ("aerolink.dev/v1alpha1", other),
        };
        let event = json!({"type": "BOOKMARK", "object": {"apiVersion": version, "kind": kind,
            "metadata": {"resourceVersion": self.at.to_string(), "creationTimestamp": null},
            "spec": {}}});
        Bytes::from(format!("{event}\n"))
    }
}
