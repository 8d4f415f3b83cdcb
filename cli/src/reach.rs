//! Reads the debug pages of agents and Servers. They answer only on their own node, so a port is
//! forwarded into the pod: whoever may do that by RBAC (`pods/portforward`) may read them, and it
//! works wherever `kubectl logs` does, through no other firewall.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// How long a page may take.
const TIME: Duration = Duration::from_secs(8);

/// A page of a pod's admin port.
///
/// # Errors
/// Says, for people, what stood in the way.
pub async fn page(
    client: &Client,
    namespace: &str,
    pod: &str,
    port: u16,
    path: &str,
) -> Result<String, String> {
    let fetched = tokio::time::timeout(TIME, fetch(client, namespace, pod, port, path)).await;
    fetched.unwrap_or_else(|_| Err(format!("no answer in {TIME:?}")))
}

/// As [`page`], read as JSON.
///
/// # Errors
/// As there.
pub async fn json<T: DeserializeOwned>(
    client: &Client,
    namespace: &str,
    pod: &str,
    port: u16,
    path: &str,
) -> Result<T, String> {
    let text = page(client, namespace, pod, port, path).await?;
    serde_json::from_str(&text).map_err(|e| format!("not understood ({e}); are versions the same?"))
}

async fn fetch(
    client: &Client,
    namespace: &str,
    pod: &str,
    port: u16,
    path: &str,
) -> Result<String, String> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let mut forward = api.portforward(pod, &[port]).await.map_err(|e| match e {
        kube::Error::Api(s) if s.code == 403 => {
            format!("you may not forward ports into namespace {namespace} (pods/portforward)")
        }
        e => format!("no port can be forwarded: {e}"),
    })?;
    let mut stream = forward.take_stream(port).ok_or("no stream to the port")?;
    let failed = forward.take_error(port);
    // HTTP/1.0: the answer ends where the connection ends, and is never in chunks.
    let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await.map_err(|e| e.to_string())?;
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer).await;
    drop(stream);
    if answer.is_empty() {
        let said = match failed {
            Some(error) => tokio::time::timeout(Duration::from_secs(1), error).await.ok().flatten(),
            None => None,
        };
        let said = said.or(read.err().map(|e| e.to_string()));
        return Err(said.unwrap_or_else(|| "the connection was closed".into()));
    }
    forward.abort();
    body(&answer)
}

/// The body of an HTTP answer.
fn body(answer: &[u8]) -> Result<String, String> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n").ok_or("not an HTTP answer")?;
    let code = head.split(' ').nth(1).unwrap_or_default();
    if code == "200" { Ok(body.to_string()) } else { Err(body.trim().to_string()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_is_not_200_is_an_error_with_its_text() {
        assert_eq!(body(b"HTTP/1.0 200 OK\r\na: b\r\n\r\n{}\r\n\r\n"), Ok("{}\r\n\r\n".into()));
        assert_eq!(body(b"HTTP/1.0 404 Not Found\r\n\r\nno pod\n"), Err("no pod".into()));
        assert!(body(b"SSH-2.0").is_err());
    }
}
