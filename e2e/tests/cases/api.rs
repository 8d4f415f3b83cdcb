//! What users may write, and what they are told.

use std::time::{Duration, Instant};

use aero_e2e::lab::workspace;
use aero_e2e::scenario::Cluster;
use anyhow::{bail, ensure};

use super::Context;

/// The product promises a second; polling and a busy machine take their share.
const SOON: Duration = Duration::from_secs(2);

pub fn chart(context: &Context) -> anyhow::Result<()> {
    let cluster = &context.shared()?.cluster;
    let chart = workspace().join("charts/aero").display().to_string();
    cluster.helm(&["lint", "--strict", &chart])?;
    for (value, word) in [
        ("operator.replica=3", "replica"),
        ("agent.port=seventy", "port"),
        ("link.pools[0].prefix=x", "clientPrefixLength"),
    ] {
        let refused = cluster.helm(&["template", "x", &chart, "--set", value]);
        let text = refused.err().map(|e| format!("{e:#}")).unwrap_or_default();
        ensure!(text.contains(word), "--set {value} gave {text:?}");
    }
    Ok(())
}

fn client(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: aerolink.dev/v1alpha1\nkind: AeroClient\nmetadata: {{name: {name}}}\nspec: {spec}\n"
    )
}

fn refused(cluster: &Cluster, manifest: &str, sentence: &str) -> anyhow::Result<()> {
    match cluster.apply(manifest) {
        Ok(_) => bail!("accepted: {manifest}"),
        Err(e) => {
            let text = format!("{e:#}");
            ensure!(text.contains(sentence), "expected {sentence:?} in {text}");
            Ok(())
        }
    }
}

pub fn bad_clients(context: &Context) -> anyhow::Result<()> {
    let cluster = &context.shared()?.cluster;
    let one_of = "exactly one of podSelector and host must be set";
    refused(cluster, &client("bad", "{}"), one_of)?;
    refused(cluster, &client("bad", "{podSelector: {}, host: {publicKey: abc}}"), one_of)?;
    let prefix = "must be a prefix such as 2001:db8:a:1::/64";
    refused(cluster, &client("bad", "{podSelector: {}, prefixes: ['2001:db8::/x']}"), prefix)?;
    refused(
        cluster,
        &client("bad", "{podSelector: {}, prefixes: ['2001:db8:a:1::7/64']}"),
        prefix,
    )?;
    refused(
        cluster,
        &client("bad", "{podSelector: {}, keepFor: soon}"),
        "must be a duration such as 24h",
    )?;
    let server = "apiVersion: aerolink.dev/v1alpha1\nkind: AeroServer\nmetadata: {name: bad, namespace: default}\nspec: {discoveryDomain: 'example .com'}\n";
    refused(cluster, server, "discoveryDomain is a DNS domain, such as example.com")?;
    let labels = "podSelector: {matchLabels: {app: nobody}}";
    cluster.apply(&client("fixed", &format!("{{{labels}}}")))?;
    let moved = client("fixed", &format!("{{{labels}, linkRef: {{name: other}}}}"));
    let outcome = refused(cluster, &moved, "linkRef cannot be changed");
    cluster.kubectl(&["delete", "aeroclient/fixed"])?;
    outcome?;
    let link = "apiVersion: aerolink.dev/v1alpha1\nkind: AeroLink\nmetadata: {name: bad}\nspec: {pools: [POOL]}\n";
    let pool = |p: &str| link.replace("POOL", p);
    refused(
        cluster,
        &pool("{prefix: '2001:db8:b::1/48', clientPrefixLength: 64}"),
        "no bits set behind its length",
    )?;
    refused(
        cluster,
        &pool("{prefix: '2001:db8:b::/48', clientPrefixLength: 40}"),
        "clientPrefixLength must be",
    )?;
    let mapping = "apiVersion: aerolink.dev/v1alpha1\nkind: AcpMapping\nmetadata: {name: another}\nspec: {prefix: '2001:db8:a:ff::/64', linkRef: {name: default}, clientId: 8c1f0000-0000-5000-8000-00000000000a, clientRef: {namespace: a, name: b}, identity: c}\n";
    refused(cluster, mapping, "metadata.name must be the prefix")
}

/// A client that asks for a prefix that it cannot have: the condition and the Event, soon, and
/// the same words from a pod that wants to start.
fn refusal(
    context: &Context,
    name: &str,
    prefix: &str,
    (event, reason): (&str, &str),
    words: &[&str],
) -> anyhow::Result<()> {
    let cluster = &context.shared()?.cluster;
    let spec = format!("{{podSelector: {{matchLabels: {{app: {name}}}}}, prefixes: ['{prefix}']}}");
    cluster.apply(&client(name, &spec))?;
    let pod = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers: [{{name: c, image: 'aerolink.dev/aero-talk:0.1.0', args: [serve]}}]\n"
    );
    let outcome = (|| {
        let began = Instant::now();
        let object = format!("aeroclient/{name}");
        let mut said = String::new();
        cluster.wait_until("the condition names the reason", SOON, || {
            let condition = "{.status.conditions[?(@.type==\"Ready\")]}";
            said = cluster.get(&object, condition)?;
            Ok(said.contains(reason) && words.iter().all(|w| said.contains(w)))
        })?;
        context.note(format!("{reason}: condition after {} ms", began.elapsed().as_millis()));
        cluster.apply(&pod)?;
        let events = || {
            let field = format!("involvedObject.name={name}");
            let path = "jsonpath={range .items[*]}{.reason}: {.message}{\"\\n\"}{end}";
            cluster.kubectl(&["get", "events", "--field-selector", &field, "-o", path])
        };
        cluster.wait_until(
            "an Event names the reason and the words",
            Duration::from_secs(10),
            || {
                let text = events()?;
                Ok(text
                    .lines()
                    .any(|l| l.starts_with(event) && words.iter().all(|w| l.contains(w))))
            },
        )?;
        cluster.wait_until("the pod's start says the same", Duration::from_secs(20), || {
            let text = events()?;
            Ok(text.lines().any(|l| {
                l.starts_with("FailedCreatePodSandBox")
                    && l.contains(reason)
                    && words.iter().all(|w| l.contains(w))
            }))
        })
    })();
    let _ = cluster.kubectl(&[
        "delete",
        &format!("pod/{name}"),
        &format!("aeroclient/{name}"),
        "--ignore-not-found",
        "--wait=false",
    ]);
    outcome
}

pub fn outside(context: &Context) -> anyhow::Result<()> {
    refusal(
        context,
        "outside",
        "2001:db8:b::/64",
        ("Rejected: PrefixOutsideLink", "PrefixOutsideLink"),
        &["2001:db8:b::/64 is in no pool of link", "2001:db8:a::/48 in /64s"],
    )
}

pub fn held(context: &Context) -> anyhow::Result<()> {
    let prefix = context
        .shared()?
        .cluster
        .get("pod/web-0", "{.metadata.annotations.aerolink\\.dev/prefix}")?;
    refusal(
        context,
        "thief",
        &prefix,
        ("Conflict: PrefixHeld", "PrefixHeld"),
        &[&prefix, "default/web/web-0", "pod web-0 on n"],
    )
}

pub fn annotations(context: &Context) -> anyhow::Result<()> {
    let cluster = &context.shared()?.cluster;
    let outcome = cluster.kubectl(&[
        "annotate",
        "--overwrite",
        "pod/web-0",
        "aerolink.dev/prefix=2001:db8:a:9::/64",
    ]);
    let text = outcome.err().map(|e| format!("{e:#}")).unwrap_or_default();
    ensure!(text.contains("are written by the AERO operator"), "{text:?}");
    cluster.kubectl(&["annotate", "--overwrite", "pod/web-0", "example.test/mine=1"]).map(drop)
}
