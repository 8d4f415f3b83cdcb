//! Kernel settings that forwarding needs.

use std::io;
use std::path::Path;

/// Turns IPv6 forwarding on. Interfaces that learn their routes from router advertisements are
/// told to go on doing so (`accept_ra` 2), since forwarding would stop them.
///
/// `proc_sys_net` is where `/proc/sys/net` can be written: in a container without privileges
/// `/proc/sys` is read-only, so the chart mounts it elsewhere.
///
/// # Errors
/// If forwarding is off and cannot be turned on, with what to do in the text.
pub fn enable_forwarding(proc_sys_net: &Path) -> io::Result<()> {
    let conf = proc_sys_net.join("ipv6/conf");
    let forwarding = conf.join("all/forwarding");
    if read(&forwarding)? == "1" {
        return Ok(());
    }
    for entry in std::fs::read_dir(&conf)? {
        let accept = entry?.path().join("accept_ra");
        if read(&accept).is_ok_and(|v| v == "1") {
            write(&accept, "2")?;
        }
    }
    write(&forwarding, "1")
}

fn read(path: &Path) -> io::Result<String> {
    Ok(std::fs::read_to_string(path)?.trim().to_string())
}

fn write(path: &Path, value: &str) -> io::Result<()> {
    std::fs::write(path, value).map_err(|e| {
        let text = format!(
            "{} cannot be set to {value} ({e}); set net.ipv6.conf.all.forwarding=1 on the node, \
             or let the agent write /proc/sys/net (--proc-sys-net)",
            path.display()
        );
        io::Error::new(e.kind(), text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwarding_is_turned_on_and_router_advertisements_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        for (interface, accept) in [("all", "1"), ("eth0", "1"), ("lo", "0")] {
            let at = dir.path().join("ipv6/conf").join(interface);
            std::fs::create_dir_all(&at).unwrap();
            std::fs::write(at.join("accept_ra"), format!("{accept}\n")).unwrap();
            std::fs::write(at.join("forwarding"), "0\n").unwrap();
        }
        enable_forwarding(dir.path()).unwrap();
        let get = |p: &str| read(&dir.path().join("ipv6/conf").join(p)).unwrap();
        assert_eq!(get("all/forwarding"), "1");
        assert_eq!(get("eth0/accept_ra"), "2");
        assert_eq!(get("lo/accept_ra"), "0");
        enable_forwarding(dir.path()).unwrap();
    }

    #[test]
    fn a_missing_proc_says_what_to_do() {
        let error = enable_forwarding(Path::new("/nonexistent")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
