//! Starts programs in namespaces and cgroups of the lab.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, bail};

use super::cgroup;

/// Runs a command; its output is wanted only if it fails.
///
/// # Errors
/// With what it printed.
pub fn run(program: &str, args: &[&str]) -> anyhow::Result<String> {
    let what = format!("{program} {}", args.join(" "));
    let output = Command::new(program)
        .args(args)
        .output()
        .with_context(|| format!("{what} cannot be run"))?;
    text_of(&what, &output)
}

/// What a command printed, if it went well.
///
/// # Errors
/// With what it printed, if it did not.
pub fn text_of(what: &str, output: &Output) -> anyhow::Result<String> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let error = String::from_utf8_lossy(&output.stderr);
    bail!("{what}: {}\n{}{}", output.status, error.trim_end(), text.trim_end())
}

/// Starts a program that goes on: in a network namespace (none: this one) and a cgroup, its
/// output in a log. It survives this process.
///
/// # Errors
/// If it cannot be started.
pub fn spawn(
    netns: Option<&str>,
    group: &str,
    log: &Path,
    program: &Path,
    args: &[String],
) -> anyhow::Result<u32> {
    let out = File::options().create(true).append(true).open(log)?;
    let mut command = Command::new(helper()?);
    command.arg("start").args(["--cgroup", group]);
    if let Some(netns) = netns {
        command.args(["--netns", netns]);
    }
    command.arg("--").arg(program).args(args);
    let child = command
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out)
        .process_group(0)
        .spawn()
        .with_context(|| format!("{} cannot be started", program.display()))?;
    Ok(child.id())
}

/// The program `e2e`, which starts others: this one, or where this is a test, its neighbour.
///
/// # Errors
/// If it is not built.
pub fn helper() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    if own.file_name().is_some_and(|n| n == "e2e") {
        return Ok(own);
    }
    let beside = own.parent().and_then(Path::parent).map(|dir| dir.join("e2e"));
    beside
        .filter(|p| p.exists())
        .context("the program `e2e` is not built (cargo build -p aero-e2e)")
}

/// The other half of [`spawn`], in the new process: enters, then becomes the program.
///
/// # Errors
/// If a namespace cannot be entered or the program is not there; it does not return otherwise.
pub fn start(netns: Option<&str>, group: &str, command: &[String]) -> anyhow::Result<()> {
    cgroup::enter(group)?;
    if let Some(netns) = netns {
        enter_netns(netns)?;
    }
    let (program, args) = command.split_first().context("there is no program to start")?;
    let error = Command::new(program).args(args).exec();
    Err(error).with_context(|| format!("{program} cannot be started"))
}

/// Enters a named network namespace. Only for processes with one thread.
///
/// # Errors
/// If there is none of the name.
pub fn enter_netns(name: &str) -> anyhow::Result<()> {
    let file = File::open(Path::new("/run/netns").join(name))
        .with_context(|| format!("there is no network namespace {name}"))?;
    nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET)?;
    Ok(())
}
