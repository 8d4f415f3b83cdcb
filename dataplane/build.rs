//! Compiles the eBPF programs.

use std::path::Path;
use std::process::Command;

fn main() {
    for entry in std::fs::read_dir("bpf").into_iter().flatten().flatten() {
        println!("cargo:rerun-if-changed={}", entry.path().display());
    }
    println!("cargo:rerun-if-changed=bpf");
    println!("cargo:rerun-if-env-changed=CLANG");
    if let Err(why) = compile() {
        // The only way to tell cargo.
        eprintln!("error: {why}");
        std::process::exit(1);
    }
}

fn compile() -> Result<(), String> {
    let out = std::env::var("OUT_DIR").map_err(|e| format!("OUT_DIR: {e}"))?;
    let object = Path::new(&out).join("forwarder.o");
    let clang = std::env::var("CLANG").unwrap_or_else(|_| "clang".into());
    let mut command = Command::new(&clang);
    // -g: descriptions of the maps' types (BTF). The release build has no other debug data.
    command.args(["-target", "bpf", "-O2", "-g", "-Wall", "-Wextra", "-Wno-unused-function"]);
    // <asm/types.h> is where the distribution keeps what depends on the architecture.
    let arch = std::env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    let own = format!("/usr/include/{arch}-linux-gnu");
    if Path::new(&own).exists() {
        command.arg(format!("-I{own}"));
    }
    command.args(["-c", "bpf/forwarder.c", "-o"]).arg(&object);
    let output = command.output().map_err(|e| {
        format!(
            "{clang} cannot be run ({e}): it compiles the eBPF programs; \
             install the Debian packages clang and libbpf-dev (e2e/setup.sh does), or set CLANG"
        )
    })?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let hint = if text.contains("file not found") {
        "\nHeaders come from the Debian packages libbpf-dev and linux-libc-dev (e2e/setup.sh)."
    } else {
        ""
    };
    Err(format!("{clang} could not compile bpf/forwarder.c:\n{text}{hint}"))
}
