#!/bin/bash
# Runs the tests that need no lab and writes which elements of the protocol they have shown:
# target/results/protocol.json and docs/protocol-table.md. What the lab's tests have shown at
# this commit before (make test) still counts.
set -uo pipefail
cd "$(dirname "$0")/.."
mkdir -p target/results
log=$(mktemp)
trap 'rm -f "$log"' EXIT
cargo test --workspace --locked --exclude aero-e2e --no-fail-fast >"$log" 2>&1
status=$?
[ "$status" = 0 ] || grep -E '^(test .* FAILED|error|test result: F)' "$log"
cargo run -q --locked -p aero-elements -- accept --log "$log" || status=1
cargo run -q --locked -p aero-elements -- table || status=1
exit "$status"
