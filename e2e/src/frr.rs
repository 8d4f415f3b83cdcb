//! FRR's daemons, where tests run them beside ours.

use std::path::{Path, PathBuf};

/// The program of a daemon (`zebra`, `bgpd`), as Debian has it, and its arguments: what it reads and
/// makes is in a directory, which all daemons of one router share.
pub fn daemon(dir: &Path, name: &str) -> (PathBuf, Vec<String>) {
    let at = |file: &str| dir.join(file).display().to_string();
    let files = [
        ("-f", at(&format!("{name}.conf"))),
        ("-i", at(&format!("{name}.pid"))),
        ("-z", at("zserv")),
        ("--vty_socket", at("")),
    ];
    let rest = ["-u", "frr", "-g", "frr", "-P", "0", "--log", "stdout"];
    let files = files.into_iter().flat_map(|(option, path)| [option.to_string(), path]);
    let arguments = files.chain(rest.map(String::from)).collect();
    (Path::new("/usr/lib/frr").join(name), arguments)
}
