//! Installs the plugin on the node, chained behind the primary network.
//!
//! A file that sorts before the primary's is made of its plugins and ours, and made anew when
//! the original changes. It stays over restarts and upgrades of the agent; [`uninstall`] takes
//! it away.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// Our file. Sorts before all that primaries are known to use.
pub const FILE: &str = "00-aero.conflist";
/// Type of our plugin, and name of its executable.
pub const PLUGIN: &str = "aero-cni";
/// Newest version that our plugin speaks.
const NEWEST: &str = "1.1.0";

/// Where things are on the node, as the agent sees them.
#[derive(Debug, Clone)]
pub struct Paths {
    /// Directory of network configurations.
    pub conf_dir: PathBuf,
    /// Directory of CNI plugins.
    pub bin_dir: PathBuf,
    /// The plugin's executable, to be copied.
    pub plugin: PathBuf,
    /// The agent's socket, as the plugin sees it.
    pub socket: String,
}

/// Why there is no chained configuration.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// No primary network yet.
    #[error("there is no network configuration in {0} yet; a primary CNI has to come first")]
    NoPrimary(String),
    /// The primary's file cannot be used.
    #[error("{file}: {why}")]
    BadPrimary {
        /// The file.
        file: String,
        /// Why.
        why: String,
    },
    /// The file system refuses.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Makes the chained list of a primary's configuration, a list or a single plugin. All that is
/// in it is kept.
///
/// # Errors
/// Says why it cannot be chained.
pub fn chain(primary: &Value, socket: &str) -> Result<Value, String> {
    let mut list = primary.clone();
    let object = list.as_object_mut().ok_or("is not a JSON object")?;
    let name = object.get("name").and_then(Value::as_str).ok_or("has no name")?.to_string();
    let version = object.get("cniVersion").and_then(Value::as_str).unwrap_or("0.3.1").to_string();
    let ours = json!({"type": PLUGIN, "socket": socket});
    if let Some(plugins) = object.get_mut("plugins") {
        let plugins = plugins.as_array_mut().ok_or("has plugins that are not a list")?;
        if plugins.is_empty() {
            return Err("has no plugins".into());
        }
        plugins.retain(|p| p.get("type").and_then(Value::as_str) != Some(PLUGIN));
        plugins.push(ours);
        return Ok(list);
    }
    if object.get("type").and_then(Value::as_str).is_none() {
        return Err("is neither a list of plugins nor a plugin".into());
    }
    // A single plugin: its own keys stay with it, the list's are name and version.
    object.remove("name");
    object.remove("cniVersion");
    Ok(json!({"cniVersion": version.as_str().min(NEWEST), "name": name, "plugins": [list, ours]}))
}

/// The primary's file: the first by name that is not ours.
fn primary(conf_dir: &Path) -> io::Result<Option<PathBuf>> {
    let mut names: Vec<PathBuf> = std::fs::read_dir(conf_dir)?
        .filter_map(|e| e.ok().map(|e| e.path()))
        .filter(|p| {
            let extension = p.extension().and_then(|e| e.to_str());
            matches!(extension, Some("conf" | "conflist" | "json"))
                && p.file_name().is_some_and(|n| n != FILE)
        })
        .collect();
    names.sort();
    Ok(names.into_iter().next())
}

/// Puts plugin and configuration in place; tells whether the configuration changed. Plugin
/// first: a configuration that names a missing plugin would stop every pod.
///
/// # Errors
/// If there is no primary to chain to, or a file cannot be written.
pub fn install(paths: &Paths) -> Result<bool, InstallError> {
    install_plugin(paths)?;
    let Some(file) = primary(&paths.conf_dir)? else {
        // Without a primary a list of ours alone would leave pods without any network.
        remove(&paths.conf_dir.join(FILE))?;
        return Err(InstallError::NoPrimary(paths.conf_dir.display().to_string()));
    };
    let bad = |why: String| InstallError::BadPrimary { file: file.display().to_string(), why };
    let text = std::fs::read_to_string(&file)?;
    let original: Value = serde_json::from_str(&text).map_err(|e| bad(e.to_string()))?;
    let list = chain(&original, &paths.socket).map_err(bad)?;
    let bytes = serde_json::to_vec_pretty(&list).map_err(io::Error::other)?;
    let target = paths.conf_dir.join(FILE);
    if std::fs::read(&target).is_ok_and(|old| old == bytes) {
        return Ok(false);
    }
    replace(&target, &bytes, 0o644)?;
    Ok(true)
}

fn install_plugin(paths: &Paths) -> io::Result<()> {
    let bytes = std::fs::read(&paths.plugin)?;
    let target = paths.bin_dir.join(PLUGIN);
    if std::fs::read(&target).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    std::fs::create_dir_all(&paths.bin_dir)?;
    replace(&target, &bytes, 0o755)
}

/// Takes plugin and configuration away, the configuration first.
///
/// # Errors
/// If a file cannot be removed.
pub fn uninstall(paths: &Paths) -> io::Result<()> {
    remove(&paths.conf_dir.join(FILE))?;
    remove(&paths.bin_dir.join(PLUGIN))
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Writes beside and renames, so that nobody ever reads half a file.
pub(crate) fn replace(target: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let name = target.file_name().and_then(|n| n.to_str()).unwrap_or("file");
    let beside = target.with_file_name(format!(".{name}.new"));
    let mut file = std::fs::File::create(&beside)?;
    io::Write::write_all(&mut file, bytes)?;
    file.set_permissions(std::fs::Permissions::from_mode(mode))?;
    file.sync_all()?;
    drop(file);
    std::fs::rename(&beside, target)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOCKET: &str = "/run/aero/agent.sock";

    fn paths(dir: &Path) -> Paths {
        let paths = Paths {
            conf_dir: dir.join("net.d"),
            bin_dir: dir.join("bin"),
            plugin: dir.join("aero-cni"),
            socket: SOCKET.into(),
        };
        std::fs::create_dir_all(&paths.conf_dir).unwrap();
        std::fs::write(&paths.plugin, "plugin 1").unwrap();
        paths
    }

    #[test]
    fn our_plugin_comes_last_and_all_else_is_kept() {
        let original = json!({
            "cniVersion": "1.0.0", "name": "ptp", "disableCheck": true, "unknown": {"a": 1},
            "plugins": [{"type": "ptp", "ipam": {"type": "host-local"}}],
        });
        let list = chain(&original, SOCKET).unwrap();
        assert_eq!(list["plugins"][0], original["plugins"][0]);
        assert_eq!(list["plugins"][1], json!({"type": "aero-cni", "socket": SOCKET}));
        for key in ["cniVersion", "name", "disableCheck", "unknown"] {
            assert_eq!(list[key], original[key]);
        }
        assert_eq!(chain(&list, SOCKET).unwrap(), list, "chaining twice changes nothing");
    }

    #[test]
    fn a_single_plugin_becomes_a_list_of_two() {
        let list =
            chain(&json!({"cniVersion": "0.4.0", "name": "b", "type": "bridge", "mtu": 9}), SOCKET);
        let list = list.unwrap();
        assert_eq!(list["cniVersion"], "0.4.0");
        assert_eq!(list["plugins"][0], json!({"type": "bridge", "mtu": 9}));
        assert_eq!(list["plugins"][1]["type"], "aero-cni");
    }

    #[test]
    fn what_is_no_configuration_is_refused() {
        for bad in [
            json!([]),
            json!({"plugins": [{}]}),
            json!({"name": "x"}),
            json!({"name": "x", "plugins": []}),
        ] {
            assert!(chain(&bad, SOCKET).is_err(), "{bad}");
        }
    }

    #[test]
    fn installing_follows_the_primary_and_uninstalling_leaves_it_alone() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(dir.path());
        assert!(matches!(install(&paths), Err(InstallError::NoPrimary(_))));
        let original = paths.conf_dir.join("10-ptp.conflist");
        let write = |mtu: u32| {
            let text = json!({"name": "p", "plugins": [{"type": "ptp", "mtu": mtu}]}).to_string();
            std::fs::write(&original, text).unwrap();
        };
        write(1500);
        assert!(install(&paths).unwrap());
        assert!(!install(&paths).unwrap(), "nothing has changed");
        let ours = || -> Value {
            serde_json::from_slice(&std::fs::read(paths.conf_dir.join(FILE)).unwrap()).unwrap()
        };
        assert_eq!(ours()["plugins"][0]["mtu"], 1500);
        write(1400);
        assert!(install(&paths).unwrap());
        assert_eq!(ours()["plugins"][0]["mtu"], 1400);
        assert_eq!(std::fs::read(paths.bin_dir.join(PLUGIN)).unwrap(), b"plugin 1");
        std::fs::write(&paths.plugin, "plugin 2").unwrap();
        install(&paths).unwrap();
        assert_eq!(std::fs::read(paths.bin_dir.join(PLUGIN)).unwrap(), b"plugin 2");
        let mode = std::fs::metadata(paths.bin_dir.join(PLUGIN)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
        uninstall(&paths).unwrap();
        uninstall(&paths).unwrap();
        let left: Vec<_> =
            std::fs::read_dir(&paths.conf_dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["10-ptp.conflist"]);
        assert!(!paths.bin_dir.join(PLUGIN).exists());
    }
}
