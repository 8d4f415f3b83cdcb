#!/bin/sh
# Interior BGP measured: what dies and how long it is felt, and BGP at size with FRR beside it.
# Writes target/results/relays.json, with what the lab's tests have measured on Kubernetes if they
# have run (`lab`, else null). PEERS, ROUTES (of each peer) and CHURN (seconds) say how much.
set -eu
cd "$(dirname "$0")/.."
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
export AERO_BGP_OUT="$out"
# As they are shipped; the target is named so that what the images were built from is used again.
built="--locked --release --target $(rustc -vV | sed -n 's/^host: //p')"
cargo build -q $built -p aero-node-agent
interop() { cargo test -q $built -p aero-e2e --test interop -- "$@" --nocapture; }
interop bgp::failures bgp::cuts bgp::moves --test-threads 1
AERO_BGP_PEERS=${PEERS:-100} AERO_BGP_ROUTES=${ROUTES:-10000} AERO_BGP_CHURN=${CHURN:-60} \
    interop bgp::size
mkdir -p target/results
{
    printf '{"macro_moves": %s, "recovery_ms": {' "$(cat "$out/macro_moves" 2>/dev/null || echo null)"
    # The longest of the three.
    printf '"bird": %s' "$(for f in "$out"/bird_of_*; do cat "$f"; echo; done | sort -n | tail -n 1)"
    for name in server server_with_bfd server_that_ends relay relay_from_outside \
        bird_of_s1 bird_of_r1 bird_of_r2 \
        cut_Client_and_Server cut_Server_and_Relay cut_Server_and_Server cut_Relay_and_Relay \
        cut_fabric_and_first_Relay cut_fabric_and_second_Relay both_servers_after_restart; do
        printf ', "%s": %s' "$(echo "$name" | tr 'A-Z' 'a-z')" "$(cat "$out/$name")"
    done
    printf '}, "bgp": %s, "lab": %s}\n' "$(cat "$out/bgp")" \
        "$(cat target/results/relays-lab.json 2>/dev/null || echo null)"
} >target/results/relays.json
cat target/results/relays.json
