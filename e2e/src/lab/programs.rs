//! Kubernetes and what belongs to it, built from Go modules at pinned versions and cached.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};

use super::Progress;
use super::process::text_of;

/// A module of `e2e/kubernetes`, with the programs that it builds.
struct Module {
    name: &'static str,
    version: &'static str,
    programs: &'static [&'static str],
    flags: &'static str,
}

const STRIP: &str = "-s -w";

/// Without its version an API server says v0.0.0, and clients balk.
const KUBERNETES: &str = "-s -w -X k8s.io/component-base/version.gitVersion=v1.36.3 \
     -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=36";

const MODULES: [Module; 5] = [
    Module { name: "etcd", version: "3.6.5", programs: &["server"], flags: STRIP },
    Module {
        name: "cni",
        version: "1.9.1",
        programs: &["bridge", "cnitool", "host-local", "loopback", "ptp"],
        flags: STRIP,
    },
    Module {
        name: "containerd",
        version: "2.4.2",
        programs: &["containerd", "containerd-shim-runc-v2", "ctr"],
        flags: STRIP,
    },
    Module {
        name: "kubernetes",
        version: "1.36.3",
        programs: &[
            "kube-apiserver",
            "kube-controller-manager",
            "kube-proxy",
            "kube-scheduler",
            "kubectl",
            "kubelet",
        ],
        flags: KUBERNETES,
    },
    Module { name: "helm", version: "4.2.4", programs: &["helm"], flags: STRIP },
];

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kubernetes")
}

/// Where built programs are kept, outside of the source tree.
fn cache() -> anyhow::Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let base = set("AERO_CACHE")
        .or_else(|| set("XDG_CACHE_HOME"))
        .or_else(|| set("HOME").map(|h| h.join(".cache")));
    Ok(base.context("neither HOME nor AERO_CACHE is set")?.join("aero-lab"))
}

/// What a module's programs depend on.
fn key(module: &Module) -> anyhow::Result<String> {
    let dir = source().join(module.name);
    let mut hash = Sha256::new();
    for file in ["go.mod", "go.sum"] {
        hash.update(std::fs::read(dir.join(file))?);
    }
    hash.update(module.flags);
    Ok(hash.finalize().iter().take(8).map(|b| format!("{b:02x}")).collect())
}

/// The directory that holds all programs, as links.
fn bin() -> anyhow::Result<PathBuf> {
    let keys: anyhow::Result<String> = MODULES.iter().map(key).collect();
    let hash = Sha256::digest(keys?.as_bytes());
    let name: String = hash.iter().take(8).map(|b| format!("{b:02x}")).collect();
    Ok(cache()?.join(format!("bin-{name}")))
}

/// The directory of built programs.
///
/// # Errors
/// If they are not built.
pub fn cached() -> anyhow::Result<PathBuf> {
    let bin = bin()?;
    if !bin.join("helm").exists() {
        bail!(
            "the lab's programs are not built; `e2e programs` builds them (about ten minutes once)"
        );
    }
    Ok(bin)
}

/// Builds what is not cached; the directory of all programs.
///
/// # Errors
/// If a build fails, with what the compiler said.
pub fn ensure(progress: &Progress) -> anyhow::Result<PathBuf> {
    let bin = bin()?;
    std::fs::create_dir_all(&bin)?;
    // Two runs at a time share the cache, and only one may build into it.
    let lock = std::fs::File::create(cache()?.join("lock"))?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive)
        .map_err(|(_, e)| e)
        .context("the cache of programs cannot be locked")?;
    let mut cached = Vec::new();
    for module in &MODULES {
        let out = cache()?.join(format!("{}-{}", module.name, key(module)?));
        let label = format!("{} {}", module.name, module.version);
        if module.programs.iter().all(|p| out.join(p).exists()) {
            cached.push(label);
        } else {
            progress.step("programs", &format!("building {label}"), || build(module, &out))?;
        }
        for program in module.programs {
            let link = bin.join(if *program == "server" { "etcd" } else { program });
            if !link.exists() {
                std::os::unix::fs::symlink(out.join(program), &link)
                    .or_else(|e| if link.exists() { Ok(()) } else { Err(e) })?;
            }
        }
    }
    if !cached.is_empty() {
        progress.step("programs", &format!("{}: cached", cached.join(", ")), || Ok(()))?;
    }
    Ok(bin)
}

fn build(module: &Module, out: &Path) -> anyhow::Result<()> {
    let beside = out.with_extension("new");
    std::fs::create_dir_all(&beside)?;
    let output = Command::new("go")
        .current_dir(source().join(module.name))
        .env("CGO_ENABLED", "0")
        .args(["build", "-trimpath", "-ldflags", module.flags, "-o"])
        .arg(format!("{}/", beside.display()))
        .arg("tool")
        .output()
        .context("`go` cannot be run; install the Go toolchain (1.26 or newer)")?;
    text_of(&format!("building {}", module.name), &output)?;
    if out.exists() {
        std::fs::remove_dir_all(out)?;
    }
    std::fs::rename(&beside, out)?;
    Ok(())
}
