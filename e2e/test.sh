#!/bin/bash
# Every test. The last line sums up what the test runners have said.
set -uo pipefail
cd "$(dirname "$0")/.."
log=$(mktemp)
status=0
trap 'cargo run -q -p aero-e2e --bin e2e -- lab --name test down >/dev/null 2>&1; rm -f "$log"' EXIT
step() {
    echo "== $*"
    "$@" 2>&1 | tee -a "$log"
    local code=${PIPESTATUS[0]}
    if [ "$code" != 0 ]; then
        status=$code
        echo "== failed: $*"
    fi
}
sh e2e/setup.sh || exit 1
step cargo fmt --all --check
step cargo clippy --workspace --all-targets --locked -- -D warnings
step cargo test --workspace --locked --exclude aero-e2e
step make simulate NODES=200 SERVERS=4 CLIENTS=4000 SEEDS=1 \
    OPTIONS='--out target/results/simulation-scale.json --plot target/results/simulation-scale.svg'
step make simulate SEEDS=3000 OPTIONS='--budget 150'
step make fuzz SECONDS=20
step cargo build --locked -p aero-e2e -p aero-node-agent -p aero-cli
step cargo test --locked -p aero-e2e --lib --bins
# Most of these wait for timers of the protocol.
step cargo test --locked -p aero-e2e --test interop -- --test-threads 6
step ./target/debug/e2e programs
step cargo test --locked -p aero-e2e --test chart
step ./target/debug/e2e images
step cargo test --locked -p aero-e2e --test kubernetes
step cargo run -q --locked -p aero-elements -- accept --log "$log"
step cargo run -q --locked -p aero-elements -- table
step cargo run -q --locked -p aero-elements -- faults
passed=$(grep -oE '^test result: .* ([0-9]+) passed' "$log" | grep -oE '[0-9]+ passed' | awk '{n += $1} END {print n + 0}')
failed=$(grep -oE '; ([0-9]+) failed' "$log" | awk '{n += $2} END {print n + 0}')
[ "$passed" -gt 0 ] || status=1
[ "$failed" = 0 ] || status=1
echo "$passed passed, $failed failed"
exit "$status"
