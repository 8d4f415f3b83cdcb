//! For tests: what an agent asks of an API server, and answers to it.

use std::sync::{Arc, Mutex};

use axum::body::Body;
use http::{Request, Response};
use kube::Client;
use serde_json::{Value, json};

/// An API server that has AeroClients and nothing else, and watches in which nothing happens.
#[derive(Clone, Default)]
pub struct FakeApi {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    clients: Vec<Value>,
    away: bool,
    asked: Vec<String>,
}

impl FakeApi {
    pub fn client(&self) -> Client {
        let this = self.clone();
        let service = tower::service_fn(move |request| {
            let this = this.clone();
            async move { this.answer(&request) }
        });
        Client::new(service, "default")
    }

    /// An AeroClient of namespace `default`; one of its name is replaced.
    pub fn set_client(&self, name: &str, app: &str, generation: i64) {
        let mut state = self.state.lock().unwrap();
        state.clients.retain(|c| c["metadata"]["name"] != name);
        state.clients.push(json!({
            "apiVersion": "aerolink.dev/v1alpha1", "kind": "AeroClient",
            "metadata": {"name": name, "namespace": "default", "uid": name,
                "generation": generation},
            "spec": {"podSelector": {"matchLabels": {"app": app}}},
        }));
    }

    pub fn remove_client(&self, name: &str) {
        self.state.lock().unwrap().clients.retain(|c| c["metadata"]["name"] != name);
    }

    /// From now on no request is answered, or all are again.
    pub fn set_away(&self, away: bool) {
        self.state.lock().unwrap().away = away;
    }

    /// Paths and queries asked for since this was last called, each once.
    pub fn asked(&self) -> Vec<String> {
        let mut asked = std::mem::take(&mut self.state.lock().unwrap().asked);
        asked.sort();
        asked.dedup();
        asked
    }

    fn answer(
        &self,
        request: &Request<kube::client::Body>,
    ) -> Result<Response<Body>, std::io::Error> {
        let mut state = self.state.lock().unwrap();
        let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
        let accept = request.headers().get("accept").and_then(|a| a.to_str().ok());
        let metadata = accept.is_some_and(|a| a.contains("PartialObjectMetadataList"));
        let what = if metadata { "metadata of " } else { "" };
        state.asked.push(format!("{what}{path}?{query}"));
        if state.away {
            return Err(std::io::Error::other("it is away"));
        }
        if query.contains("watch=true") {
            return Ok(Response::new(Body::from_stream(futures::stream::pending::<
                Result<Vec<u8>, std::io::Error>,
            >())));
        }
        let all = match path.rsplit_once("/aeroclients") {
            Some((_, "")) => &state.clients,
            Some((_, name)) => {
                let one = state.clients.iter().find(|c| c["metadata"]["name"] == name[1..]);
                let missing = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure",
                    "message": "not found", "reason": "NotFound", "code": 404});
                let mut response = Response::new(Body::from(one.unwrap_or(&missing).to_string()));
                if one.is_none() {
                    *response.status_mut() = http::StatusCode::NOT_FOUND;
                }
                return Ok(response);
            }
            None => &Vec::new(),
        };
        let shown = |o: &Value| {
            if metadata {
                json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
                    "metadata": o["metadata"]})
            } else {
                o.clone()
            }
        };
        let items: Vec<Value> = all.iter().map(shown).collect();
        let list = json!({"kind": "List", "apiVersion": "v1",
            "metadata": {"resourceVersion": "7"}, "items": items});
        Ok(Response::new(Body::from(list.to_string())))
    }
}
