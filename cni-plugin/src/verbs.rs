//! The verbs: what is checked here, and what is asked of the agent.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::agent;
use crate::types::{CniError, NEWEST, VERSIONS, code, result};

/// The agent's own bound is 8 s.
const ADD_TIME: Duration = Duration::from_secs(9);
const DEL_TIME: Duration = Duration::from_secs(4);
const CHECK_TIME: Duration = Duration::from_secs(9);
const STATUS_TIME: Duration = Duration::from_secs(3);
/// Where the agent listens if the configuration does not say.
const SOCKET: &str = "/run/aero/agent.sock";
/// Where a DEL is written down while the agent is away.
const JOURNAL: &str = "/var/lib/aero/cni-del";

type Outcome = Result<Option<Value>, (CniError, String)>;

/// Runs one verb. `env` gives environment variables, empty for those that are not set.
pub fn run(command: &str, input: &[u8], env: impl Fn(&str) -> String) -> Outcome {
    let newest = |e| (e, NEWEST.to_string());
    let config: Value = serde_json::from_slice(input).map_err(|e| {
        newest(CniError::new(code::DECODING_FAILURE, format!("the configuration is no JSON: {e}")))
    })?;
    if !config.is_object() {
        let text = "the configuration is no JSON object";
        return Err(newest(CniError::new(code::DECODING_FAILURE, text)));
    }
    let field = |name: &str| config.get(name).and_then(Value::as_str).unwrap_or_default();
    if command == "VERSION" {
        let version = if field("cniVersion").is_empty() { NEWEST } else { field("cniVersion") };
        return Ok(Some(json!({"cniVersion": version, "supportedVersions": VERSIONS})));
    }
    // The specification's default for a configuration without a version is older than all here.
    let version = if field("cniVersion").is_empty() { "0.2.0" } else { field("cniVersion") };
    if !VERSIONS.contains(&version) {
        let text = format!("version {version} is not understood, but {}", VERSIONS.join(", "));
        return Err(newest(CniError::new(code::INCOMPATIBLE_VERSION, text)));
    }
    let call = Call { command, config: &config, version, env: &env };
    call.run().map_err(|e| (e, version.to_string()))
}

struct Call<'a, E> {
    command: &'a str,
    config: &'a Value,
    version: &'a str,
    env: &'a E,
}

impl<E: Fn(&str) -> String> Call<'_, E> {
    fn run(&self) -> Result<Option<Value>, CniError> {
        if self.config.get("name").and_then(Value::as_str).is_none_or(str::is_empty) {
            return Err(CniError::new(code::INVALID_CONFIG, "the configuration has no name"));
        }
        match self.command {
            "ADD" => self.add().map(Some),
            "DEL" => self.del().map(|()| None),
            "CHECK" => {
                self.since("0.4.0")?;
                self.container(true)?;
                self.ask(CHECK_TIME).and_then(done).map(|_| None)
            }
            "GC" => {
                self.since("1.1.0")?;
                self.ask(CHECK_TIME).and_then(done).map(|_| None)
            }
            "STATUS" => {
                self.since("1.1.0")?;
                match self.ask(STATUS_TIME) {
                    Ok(answer) => done(answer).map(|_| None),
                    Err(e) => Err(CniError { code: code::NOT_AVAILABLE, ..e }),
                }
            }
            other => {
                let text = format!("CNI_COMMAND {other:?} is not a verb of CNI");
                Err(CniError::new(code::INVALID_ENVIRONMENT, text))
            }
        }
    }

    /// A verb that older versions do not have.
    fn since(&self, version: &str) -> Result<(), CniError> {
        if self.version >= version {
            return Ok(());
        }
        let text =
            format!("{} is not a verb of CNI {}, but since {version}", self.command, self.version);
        Err(CniError::new(code::INCOMPATIBLE_VERSION, text))
    }

    /// The environment that verbs about a container need.
    fn container(&self, netns: bool) -> Result<(), CniError> {
        let wanted = ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"];
        for name in wanted.iter().filter(|n| netns || **n != "CNI_NETNS") {
            if (self.env)(name).is_empty() {
                return Err(CniError::new(code::INVALID_ENVIRONMENT, format!("{name} is not set")));
            }
        }
        let id = (self.env)("CNI_CONTAINERID");
        let mut bytes = id.bytes();
        let first = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric());
        if !first || !bytes.all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b)) {
            let text = format!("CNI_CONTAINERID {id:?} is not a container id");
            return Err(CniError::new(code::INVALID_ENVIRONMENT, text));
        }
        let ifname = (self.env)("CNI_IFNAME");
        let odd = |c: char| c == '/' || c == ':' || c.is_whitespace();
        if ifname.len() > 15 || ifname == "." || ifname == ".." || ifname.contains(odd) {
            let text = format!("CNI_IFNAME {ifname:?} is not an interface name");
            return Err(CniError::new(code::INVALID_ENVIRONMENT, text));
        }
        Ok(())
    }

    fn add(&self) -> Result<Value, CniError> {
        self.container(true)?;
        let netns = (self.env)("CNI_NETNS");
        if !Path::new(&netns).exists() {
            let text = format!("the network namespace {netns} does not exist");
            return Err(CniError::new(code::UNKNOWN_CONTAINER, text));
        }
        let answer = done(self.ask(ADD_TIME)?)?;
        let added = answer.get("attachment").filter(|a| !a.is_null());
        let before = self.config.get("prevResult").filter(|p| !p.is_null());
        Ok(result(before, added, &(self.env)("CNI_IFNAME"), self.version))
    }

    /// Never holds up the end of a pod: what the agent cannot be told is written down for it.
    fn del(&self) -> Result<(), CniError> {
        self.container(false)?;
        match self.ask(DEL_TIME) {
            Ok(answer) => done(answer).map(drop),
            Err(_) => self.write_down(),
        }
    }

    fn write_down(&self) -> Result<(), CniError> {
        let (id, ifname) = ((self.env)("CNI_CONTAINERID"), (self.env)("CNI_IFNAME"));
        let dir = self.path("journal", JOURNAL);
        let entry = json!({"containerId": id, "ifname": ifname});
        let target = dir.join(format!("{id}-{ifname}.json"));
        let beside = dir.join(format!(".{id}-{ifname}.new"));
        let written = std::fs::create_dir_all(&dir)
            .and_then(|()| std::fs::write(&beside, entry.to_string()))
            .and_then(|()| std::fs::rename(&beside, &target));
        written.map_err(|e| {
            let text = format!(
                "the agent is away, and the DEL cannot be written to {}: {e}",
                dir.display()
            );
            CniError::new(code::IO_FAILURE, text)
        })
    }

    fn path(&self, key: &str, default: &str) -> PathBuf {
        self.config.get(key).and_then(Value::as_str).unwrap_or(default).into()
    }

    fn ask(&self, within: Duration) -> Result<Value, CniError> {
        let args: BTreeMap<String, String> = (self.env)("CNI_ARGS")
            .split(';')
            .filter_map(|pair| pair.split_once('='))
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .collect();
        let request = json!({
            "version": 1, "verb": self.command,
            "containerId": (self.env)("CNI_CONTAINERID"), "netns": (self.env)("CNI_NETNS"),
            "ifname": (self.env)("CNI_IFNAME"), "args": args, "config": self.config,
        });
        let socket = self.path("socket", SOCKET);
        agent::ask(&socket, &request, within).map_err(|e| {
            let text = format!("the AERO agent does not answer on {}: {e}", socket.display());
            CniError::new(code::TRY_AGAIN_LATER, text)
                .details("is its pod running on this node? kubectl -n aero-system get pods -o wide")
        })
    }
}

/// The agent's answer: what was done, or its error.
fn done(answer: Value) -> Result<Value, CniError> {
    if let Some(ok) = answer.get("ok") {
        return Ok(ok.clone());
    }
    let error = answer.get("error").cloned().unwrap_or_default();
    let text = |key: &str| error.get(key).and_then(Value::as_str).unwrap_or_default().to_string();
    let number = error.get("code").and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
    match number {
        Some(code) => Err(CniError { code, msg: text("msg"), details: text("details") }),
        None => Err(CniError::new(code::IO_FAILURE, "the agent's answer makes no sense")),
    }
}
