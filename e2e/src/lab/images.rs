//! Container images from static binaries, as OCI archives, without an engine or a registry.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::process::text_of;
use super::{Lab, Progress, workspace};

/// Version of the images: the chart's appVersion.
const VERSION: &str = env!("CARGO_PKG_VERSION");
const TARGET: &str = if cfg!(target_arch = "aarch64") {
    "aarch64-unknown-linux-gnu"
} else {
    "x86_64-unknown-linux-gnu"
};

/// What is in an image.
struct Image {
    name: String,
    entrypoint: Vec<&'static str>,
    /// File here, path there.
    files: Vec<(PathBuf, String)>,
    /// Link, what it points to.
    links: Vec<(String, String)>,
    /// Programs of this machine that are not static, each at its own path, with what they need.
    dynamic: Vec<PathBuf>,
}

/// Builds the project's programs, static and for release; the directory that they are in.
///
/// # Errors
/// With what cargo printed.
pub fn build_binaries() -> anyhow::Result<PathBuf> {
    let packages = ["aero-operator", "aero-node-agent", "aero-cni", "aero-cli", "aero-e2e"];
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // An explicit target keeps the flags away from build scripts and procedural macros.
    command.current_dir(workspace()).env("RUSTFLAGS", "-C target-feature=+crt-static");
    command.args(["build", "--release", "--locked", "--quiet", "--target", TARGET]);
    // What `cargo test` tells a test of its package would count as a change to build scripts that
    // watch those names, and everything above them would be built anew.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    for package in packages {
        command.args(["-p", package]);
    }
    let output = command.output().context("cargo cannot be run")?;
    text_of("building static binaries", &output)?;
    Ok(target_dir().join(TARGET).join("release"))
}

/// A program of the project, as [`build_binaries`] has built it.
pub fn built(name: &str) -> PathBuf {
    target_dir().join(TARGET).join("release").join(name)
}

fn target_dir() -> PathBuf {
    let set = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    set.unwrap_or_else(|| workspace().join("target"))
}

/// Packs the images of the product and of the tests into `target/images`.
///
/// # Errors
/// If a binary is missing or not static.
pub fn product() -> anyhow::Result<Vec<PathBuf>> {
    let bin = build_binaries()?;
    let file = |name: &str| (bin.join(name), format!("bin/{name}"));
    let image = |name: &str, programs: &[&str], entrypoint| Image {
        name: format!("aerolink.dev/{name}:{VERSION}"),
        entrypoint: vec![entrypoint],
        files: programs.iter().map(|p| file(p)).collect(),
        links: Vec::new(),
        dynamic: Vec::new(),
    };
    let bird = Image {
        dynamic: ["/usr/sbin/bird", "/usr/sbin/birdc"].map(PathBuf::from).into(),
        ..image("aero-bird", &["aero-node-agent"], "/bin/aero-node-agent")
    };
    let all = [
        image("aero-operator", &["aero-operator", "kubectl-aero"], "/bin/aero-operator"),
        image("aero-node-agent", &["aero-node-agent", "aero-cni"], "/bin/aero-node-agent"),
        image("aero-talk", &["aero-talk"], "/bin/aero-talk"),
        bird,
    ];
    let dir = target_dir().join("images");
    std::fs::create_dir_all(&dir)?;
    all.iter().map(|i| pack(i, &dir)).collect()
}

/// As [`product`], with progress.
///
/// # Errors
/// As there.
pub fn product_with(progress: &Progress) -> anyhow::Result<Vec<PathBuf>> {
    progress.step("build", "operator, node-agent, cni-plugin; images", product)
}

/// Images that the lab itself needs: the sandbox's and a shell.
///
/// # Errors
/// If busybox is not installed.
pub fn base(lab: &Lab) -> anyhow::Result<Vec<PathBuf>> {
    let dir = lab.dir().join("images");
    std::fs::create_dir_all(&dir)?;
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from);
    let busybox = busybox
        .into_iter()
        .find(|p| p.exists())
        .context("busybox is missing; install the package busybox-static")?;
    let applets = Command::new(&busybox).arg("--list").output()?;
    let applets = text_of("busybox --list", &applets)?;
    let links = applets
        .lines()
        .filter(|a| *a != "busybox")
        .map(|a| (format!("bin/{a}"), "busybox".to_string()))
        .collect();
    let shell = Image {
        name: "box.test/busybox:1".into(),
        entrypoint: vec!["/bin/sh"],
        files: vec![(busybox.clone(), "bin/busybox".into())],
        links,
        dynamic: Vec::new(),
    };
    // What holds a pod's namespaces has nothing to do but to wait.
    let pause = Image {
        name: "box.test/pause:1".into(),
        entrypoint: vec!["/bin/sleep", "2147483647"],
        files: vec![(busybox, "bin/busybox".into())],
        links: vec![("bin/sleep".into(), "busybox".into())],
        dynamic: Vec::new(),
    };
    [shell, pause].iter().map(|i| pack(i, &dir)).collect()
}

fn require_static(path: &Path) -> anyhow::Result<()> {
    let bytes = std::fs::read(path).with_context(|| format!("{} is missing", path.display()))?;
    // PT_INTERP of a dynamic program names the loader.
    let dynamic = b"/ld-linux".as_slice();
    let head = bytes.get(..4096.min(bytes.len())).unwrap_or_default();
    if head.windows(dynamic.len()).any(|w| w == dynamic) {
        bail!("{} is not static and would not run in an empty image", path.display());
    }
    Ok(())
}

/// A program of this machine, its shared libraries and its loader, as `ldd` finds them.
fn with_libraries(program: &Path) -> anyhow::Result<BTreeSet<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("ldd cannot be run")?;
    let missing = || format!("{} is missing; install the package bird2", program.display());
    let listed = text_of("ldd", &output).with_context(missing)?;
    // `NAME => PATH (ADDRESS)`; the loader has no arrow, the kernel's own no path.
    let paths = listed.lines().filter_map(|l| l.split_whitespace().find(|w| w.starts_with('/')));
    Ok(paths.map(PathBuf::from).chain([program.to_path_buf()]).collect())
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

fn pack(image: &Image, dir: &Path) -> anyhow::Result<PathBuf> {
    let layer = layer(image)?;
    let layer_digest = digest(&layer);
    let architecture = if TARGET.starts_with("aarch64") { "arm64" } else { "amd64" };
    let config = serde_json::to_vec(&json!({
        "architecture": architecture, "os": "linux",
        "config": {"Entrypoint": image.entrypoint, "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer_digest}")]},
    }))?;
    let media = |kind: &str| format!("application/vnd.oci.image.{kind}");
    let descriptor = |kind: &str, bytes: &[u8]| json!({"mediaType": media(kind), "digest": format!("sha256:{}", digest(bytes)), "size": bytes.len()});
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2, "mediaType": media("manifest.v1+json"),
        "config": descriptor("config.v1+json", &config),
        "layers": [descriptor("layer.v1.tar", &layer)],
    }))?;
    let entry = json!({
        "mediaType": media("manifest.v1+json"),
        "digest": format!("sha256:{}", digest(&manifest)), "size": manifest.len(),
        "annotations": {
            "io.containerd.image.name": image.name, "org.opencontainers.image.ref.name": image.name,
        },
    });
    let index = serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": [entry]}))?;
    let short = image.name.rsplit('/').next().unwrap_or(&image.name).replace(':', "-");
    let path = dir.join(format!("{short}.tar"));
    let mut archive = tar::Builder::new(Vec::new());
    add(&mut archive, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644)?;
    add(&mut archive, "index.json", &index, 0o644)?;
    for blob in [&layer, &config, &manifest] {
        add(&mut archive, &format!("blobs/sha256/{}", digest(blob)), blob, 0o644)?;
    }
    std::fs::File::create(&path)?.write_all(&archive.into_inner()?)?;
    Ok(path)
}

fn layer(image: &Image) -> anyhow::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for (from, to) in &image.files {
        require_static(from)?;
        let mode = std::fs::metadata(from)?.permissions().mode();
        add(&mut archive, to, &std::fs::read(from)?, mode & 0o777)?;
    }
    let mut dynamic = BTreeSet::new();
    for program in &image.dynamic {
        dynamic.extend(with_libraries(program)?);
    }
    for path in dynamic {
        // As what it is a link to: libraries are found by the name that asks for them.
        let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
        add(&mut archive, path.display().to_string().trim_start_matches('/'), &bytes, 0o755)?;
    }
    for (link, target) in &image.links {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        archive.append_link(&mut header, link, target)?;
    }
    Ok(archive.into_inner()?)
}

fn add(
    archive: &mut tar::Builder<Vec<u8>>,
    path: &str,
    bytes: &[u8],
    mode: u32,
) -> anyhow::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(u64::try_from(bytes.len())?);
    header.set_mode(mode);
    archive.append_data(&mut header, path, bytes)?;
    Ok(())
}
