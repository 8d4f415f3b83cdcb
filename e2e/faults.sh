#!/bin/bash
# Runs the tests that show fault cases and writes what they have shown: target/results/faults.json
# and docs/faults.md. LAB=no leaves out those on the lab's Kubernetes; what these have shown at this
# commit before (make test) still counts.
set -uo pipefail
cd "$(dirname "$0")/.."
mkdir -p target/results
log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
run() {
    "$@" >>"$log" 2>&1 || status=1
}
run cargo test --workspace --locked --exclude aero-e2e --no-fail-fast
if [ "$(id -u)" = 0 ]; then
    sh e2e/setup.sh || exit 1
    run cargo build --locked -p aero-node-agent
    run cargo test --locked -p aero-e2e --test interop -- --test-threads 6
fi
if [ "${LAB:-yes}" != no ]; then
    sh e2e/setup.sh || exit 1
    run cargo build --locked -p aero-e2e
    run ./target/debug/e2e programs
    run ./target/debug/e2e images
    run cargo test --locked -p aero-e2e --test kubernetes
fi
[ "$status" = 0 ] || grep -E '^(test .* FAILED|error|test result: F)' "$log"
cargo run -q --locked -p aero-elements -- accept --log "$log" || status=1
cargo run -q --locked -p aero-elements -- faults || status=1
exit "$status"
