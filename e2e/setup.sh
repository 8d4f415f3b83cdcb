#!/bin/sh
# Installs what the lab needs from Debian's packages, if it is not there. Needs root; quick when
# there is nothing to do.
set -eu
missing=""
need() { command -v "$1" >/dev/null 2>&1 || missing="$missing $2"; }
need ip iproute2
need nsenter util-linux
need sysctl procps
need runc runc
need nft nftables
need iptables iptables
need conntrack conntrack
need busybox busybox-static
need curl curl
need cc gcc
[ -e /usr/lib/x86_64-linux-gnu/libc.a ] || [ -e /usr/lib/aarch64-linux-gnu/libc.a ] || missing="$missing libc6-dev"
for tool in cargo go; do
    command -v "$tool" >/dev/null 2>&1 || { echo "setup: $tool is missing; install the Rust (1.95) and Go (1.26) toolchains" >&2; exit 1; }
done
[ "$(id -u)" = 0 ] || { echo "setup: the lab makes network namespaces and cgroups; run as root" >&2; exit 1; }
if [ -n "$missing" ]; then
    echo "setup: installing$missing"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # shellcheck disable=SC2086
    apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi
