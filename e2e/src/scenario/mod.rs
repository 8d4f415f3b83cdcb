//! What the demo and the end-to-end tests share: installing AERO, talking to it all the time,
//! moving pods, and measuring what their correspondents see.

pub mod demo;
pub mod moves;
pub mod observer;
pub mod talk;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};

use crate::lab::process::text_of;
use crate::lab::{Lab, workspace};

/// Namespace of the release.
pub const NAMESPACE: &str = "aero-system";
/// Pool of the demo's link.
pub const POOL: &str = "2001:db8:a::/48";
/// UDP port of `aero-talk serve`.
pub const PORT: u16 = 7007;

/// Microseconds of the clock.
pub fn micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// A cluster to work on: a lab's, or any other by its kubeconfig.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// Its kubeconfig.
    pub kubeconfig: PathBuf,
    kubectl: PathBuf,
    helm: PathBuf,
}

impl Cluster {
    /// A lab's.
    pub fn of(lab: &Lab) -> Self {
        Self {
            kubeconfig: lab.kubeconfig(),
            kubectl: lab.program("kubectl"),
            helm: lab.program("helm"),
        }
    }

    /// Any other, with the programs of this machine.
    pub fn other(kubeconfig: PathBuf) -> Self {
        Self { kubeconfig, kubectl: "kubectl".into(), helm: "helm".into() }
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env("KUBECONFIG", &self.kubeconfig);
        command
    }

    /// Runs kubectl.
    ///
    /// # Errors
    /// With what it printed.
    pub fn kubectl(&self, args: &[&str]) -> anyhow::Result<String> {
        let output = self.command(&self.kubectl).args(args).output()?;
        text_of(&format!("kubectl {}", args.join(" ")), &output)
    }

    /// Applies a manifest given as text.
    ///
    /// # Errors
    /// With what the API server says.
    pub fn apply(&self, manifest: &str) -> anyhow::Result<String> {
        use std::io::Write;
        let mut child = self
            .command(&self.kubectl)
            .args(["apply", "-f", "-"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(manifest.as_bytes())?;
        }
        text_of("kubectl apply", &child.wait_with_output()?)
    }

    /// Applies a file of the project.
    ///
    /// # Errors
    /// With what the API server says.
    pub fn apply_file(&self, path: &str) -> anyhow::Result<String> {
        let path = workspace().join(path);
        self.kubectl(&["apply", "-f", &path.display().to_string()])
    }

    /// Runs helm.
    ///
    /// # Errors
    /// With what it printed.
    pub fn helm(&self, args: &[&str]) -> anyhow::Result<String> {
        let output = self.command(&self.helm).args(args).output()?;
        text_of(&format!("helm {}", args.join(" ")), &output)
    }

    /// `helm install aero charts/aero`, with the documentation pool and whatever is in `extra`.
    ///
    /// # Errors
    /// With what helm printed.
    pub fn install(&self, extra: &[&str]) -> anyhow::Result<()> {
        let chart = workspace().join("charts/aero").display().to_string();
        let pool = format!("link.pools[0].prefix={POOL}");
        let mut args = vec![
            "install",
            "aero",
            &chart,
            "-n",
            NAMESPACE,
            "--create-namespace",
            "--set",
            &pool,
            "--set",
            "link.pools[0].clientPrefixLength=64",
        ];
        args.extend(extra);
        self.helm(&args).map(drop)
    }

    /// Waits until all parts of AERO are ready.
    ///
    /// # Errors
    /// Says what is not, and what its logs say.
    pub fn wait_for_aero(&self, within: Duration) -> anyhow::Result<()> {
        let give_up = Instant::now() + within;
        let left =
            || format!("{}s", give_up.saturating_duration_since(Instant::now()).as_secs().max(1));
        let outcome = (|| {
            let n = ["-n", NAMESPACE];
            self.kubectl(
                &[&n[..], &["rollout", "status", "deployment/aero-operator", "--timeout", &left()]]
                    .concat(),
            )?;
            let timeout = format!("--timeout={}", left());
            self.kubectl(
                &[&n[..], &["wait", "--for=condition=Ready", "aeroserver/default", &timeout]]
                    .concat(),
            )?;
            self.kubectl(
                &[&n[..], &["rollout", "status", "daemonset/aero-agent", "--timeout", &left()]]
                    .concat(),
            )?;
            self.kubectl(&["wait", "--for=condition=Ready", "aerolink/default", &timeout])
        })();
        outcome.map(drop).with_context(|| {
            let pods = self.kubectl(&["-n", NAMESPACE, "get", "pods", "-o", "wide"]);
            let logs = self.kubectl(&[
                "-n",
                NAMESPACE,
                "logs",
                "-l",
                "app.kubernetes.io/part-of=aero",
                "--tail=5",
                "--prefix",
            ]);
            format!(
                "AERO did not become ready\n{}\n{}",
                pods.unwrap_or_default(),
                logs.unwrap_or_default()
            )
        })
    }

    /// One field of an object, by a JSON path.
    ///
    /// # Errors
    /// With what kubectl printed.
    pub fn get(&self, object: &str, path: &str) -> anyhow::Result<String> {
        let path = format!("jsonpath={path}");
        Ok(self.kubectl(&["get", object, "-o", &path])?.trim().to_string())
    }

    /// Waits for a condition that nothing announces, asking again and again.
    ///
    /// # Errors
    /// If it does not hold in time; `what` says what was waited for.
    pub fn wait_until(
        &self,
        what: &str,
        within: Duration,
        mut holds: impl FnMut() -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let give_up = Instant::now() + within;
        let mut last = String::new();
        loop {
            match holds() {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(e) => last = format!("; last: {e:#}"),
            }
            if Instant::now() > give_up {
                bail!("not within {within:?}: {what}{last}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
