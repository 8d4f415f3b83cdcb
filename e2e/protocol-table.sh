#!/bin/bash
# Runs the tests that need no lab (those in network namespaces only as root) and writes which elements of the protocol they have shown:
# target/results/protocol.json and docs/protocol-table.md. What the lab's tests have shown at
# this commit before (make test) still counts.
set -uo pipefail
cd "$(dirname "$0")/.."
mkdir -p target/results
log=$(mktemp)
trap 'rm -f "$log"' EXIT
cargo test --workspace --locked --exclude aero-e2e --no-fail-fast >"$log" 2>&1
status=$?
if [ "$(id -u)" = 0 ]; then
    sh e2e/setup.sh || status=1
    cargo build -q --locked -p aero-node-agent >>"$log" 2>&1 || status=1
    cargo test --locked -p aero-e2e --test interop -- --test-threads 6 >>"$log" 2>&1 || status=1
fi
[ "$status" = 0 ] || grep -E '^(test .* FAILED|error|test result: F)' "$log"
cargo run -q --locked -p aero-elements -- accept --log "$log" || status=1
cargo run -q --locked -p aero-elements -- table || status=1
exit "$status"
