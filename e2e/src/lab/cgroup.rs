//! Cgroups: where the lab's processes are found again, and the kubelets' roots.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const ROOT: &str = "/sys/fs/cgroup";
/// Controllers that a kubelet wants below its root.
const V2_CONTROLLERS: &str = "+cpu +cpuset +memory +pids +io";

fn v2() -> bool {
    Path::new(ROOT).join("cgroup.controllers").exists()
}

/// Every hierarchy: one directory in version 2, one per controller in version 1.
fn hierarchies() -> io::Result<Vec<PathBuf>> {
    if v2() {
        return Ok(vec![ROOT.into()]);
    }
    let mut all = Vec::new();
    for entry in std::fs::read_dir(ROOT)? {
        let entry = entry?;
        // Links are other names of joined controllers; `unified` has no controllers here.
        if entry.file_type()?.is_dir() && entry.file_name() != "unified" {
            all.push(entry.path());
        }
    }
    Ok(all)
}

/// The hierarchy by which processes are counted: every process of the lab is in it.
fn counting() -> io::Result<PathBuf> {
    let all = hierarchies()?;
    let pids = all.iter().find(|h| h.ends_with("pids")).or(all.first()).cloned();
    pids.ok_or_else(|| io::Error::other("there are no cgroups on this machine"))
}

/// Makes a group in every hierarchy.
///
/// # Errors
/// If the kernel refuses.
pub fn make(name: &str) -> anyhow::Result<()> {
    for hierarchy in hierarchies()? {
        let group = hierarchy.join(name);
        std::fs::create_dir_all(&group)
            .with_context(|| format!("the cgroup {} cannot be made", group.display()))?;
        // Version 1: a new cpuset is empty, and nothing can run in it.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let mut dir = hierarchy.clone();
            for part in Path::new(name) {
                let above = std::fs::read_to_string(dir.join(file)).unwrap_or_default();
                dir.push(part);
                let own = std::fs::read_to_string(dir.join(file)).unwrap_or_default();
                if !v2() && !above.trim().is_empty() && own.trim().is_empty() {
                    std::fs::write(dir.join(file), above)?;
                }
            }
        }
    }
    if v2() {
        let _ = std::fs::write(Path::new(ROOT).join("cgroup.subtree_control"), V2_CONTROLLERS);
        if let Some(parent) = Path::new(ROOT).join(name).parent().filter(|p| *p != Path::new(ROOT))
        {
            let _ = std::fs::write(parent.join("cgroup.subtree_control"), V2_CONTROLLERS);
        }
    }
    Ok(())
}

/// Puts this process into a group, which is made if it is not there.
///
/// # Errors
/// If the kernel refuses.
pub fn enter(name: &str) -> anyhow::Result<()> {
    make(name)?;
    for hierarchy in hierarchies()? {
        let file = hierarchy.join(name).join("cgroup.procs");
        std::fs::write(&file, std::process::id().to_string())
            .with_context(|| format!("{} does not take this process", file.display()))?;
    }
    Ok(())
}

/// Groups at the top whose names start with `prefix`.
fn tops(prefix: &str) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for hierarchy in hierarchies()? {
        for entry in std::fs::read_dir(hierarchy)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(prefix) {
                found.push(entry.path());
            }
        }
    }
    Ok(found)
}

fn walk(dir: &Path, visit: &mut impl FnMut(&Path)) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            walk(&entry.path(), visit);
        }
    }
    visit(dir);
}

fn members(group: &Path) -> Vec<i32> {
    let mut pids = Vec::new();
    walk(group, &mut |dir| {
        let text = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        pids.extend(text.lines().filter_map(|l| l.parse::<i32>().ok()));
    });
    pids
}

/// Processes of the groups below one whose own names contain `part`.
///
/// # Errors
/// If there are no cgroups.
pub fn members_below(name: &str, part: &str) -> anyhow::Result<Vec<i32>> {
    let mut found = Vec::new();
    walk(&counting()?.join(name), &mut |dir| {
        if dir.file_name().is_some_and(|n| n.to_string_lossy().contains(part)) {
            found.extend(members(dir));
        }
    });
    Ok(found)
}

/// Kills every process in groups whose names start with `prefix`, until none is left.
///
/// # Errors
/// If some survive.
pub fn kill_all(prefix: &str) -> anyhow::Result<usize> {
    let counting = counting()?;
    let groups = tops(prefix)?.into_iter().filter(|g| g.starts_with(&counting)).collect();
    kill_in(groups, prefix)
}

/// Kills the processes of one group, by its whole name; how many there were.
///
/// # Errors
/// If some survive.
pub fn kill_members(name: &str) -> anyhow::Result<usize> {
    kill_in(vec![counting()?.join(name)], name)
}

fn kill_in(groups: Vec<PathBuf>, name: &str) -> anyhow::Result<usize> {
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut killed = std::collections::BTreeSet::new();
    loop {
        let pids: Vec<i32> = groups.iter().flat_map(|g| members(g)).collect();
        if pids.is_empty() {
            return Ok(killed.len());
        }
        if Instant::now() > deadline {
            bail!("processes {pids:?} of {name} do not end");
        }
        for pid in pids {
            killed.insert(pid);
            // Gone already is as good.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Removes groups whose names start with `prefix`; they must be empty.
///
/// # Errors
/// If one cannot be removed.
pub fn remove_all(prefix: &str) -> anyhow::Result<usize> {
    let mut removed = 0;
    for top in tops(prefix)? {
        let mut failed = None;
        walk(&top, &mut |dir| {
            if let Err(e) = remove(dir) {
                failed = Some((dir.to_path_buf(), e));
            }
        });
        if let Some((dir, e)) = failed {
            bail!("the cgroup {} cannot be removed: {e}", dir.display());
        }
        removed += 1;
    }
    Ok(removed)
}

/// The kernel frees a dead process a moment after it is gone from the list.
fn remove(dir: &Path) -> io::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match std::fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) if Instant::now() > deadline => return Err(e),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}
