//! `aero-cni`: the CNI plugin of AERO. CNI JSON in, one request to the node agent, CNI JSON out.
//!
//! Implements the CNI specification 1.1 (configurations of versions 0.3.1 to 1.1.0). All
//! decisions are the agent's; here is only what must work without it: versions, the form of
//! results and errors, bounds in time, and a DEL that is written down while the agent is away.

#![forbid(unsafe_code)]

mod agent;
mod types;
mod verbs;

use std::io::{IsTerminal, Read, Write};
use std::process::ExitCode;

use types::{CniError, code};

fn main() -> ExitCode {
    let Ok(command) = std::env::var("CNI_COMMAND") else {
        if std::io::stdin().is_terminal() {
            println!(
                "aero-cni {}: the CNI plugin of AERO for Kubernetes (CNI 0.3.1 to 1.1.0).\n\
                 A container runtime calls it, chained behind the primary network; the node agent\n\
                 installs it and does its work.",
                env!("CARGO_PKG_VERSION")
            );
            return ExitCode::SUCCESS;
        }
        return fail(
            &CniError::new(code::INVALID_ENVIRONMENT, "CNI_COMMAND is not set"),
            types::NEWEST,
        );
    };
    let mut input = Vec::new();
    if let Err(e) = std::io::stdin().read_to_end(&mut input) {
        return fail(
            &CniError::new(code::IO_FAILURE, format!("standard input cannot be read: {e}")),
            types::NEWEST,
        );
    }
    match verbs::run(&command, &input, |name| std::env::var(name).unwrap_or_default()) {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(result)) => {
            let written = writeln!(std::io::stdout(), "{result}");
            if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err((error, version)) => fail(&error, &version),
    }
}

fn fail(error: &CniError, version: &str) -> ExitCode {
    let _ = writeln!(std::io::stdout(), "{}", error.to_json(version));
    ExitCode::FAILURE
}
