#!/bin/sh
# Installs what the lab needs from Debian's packages, if it is not there. Needs root; quick when
# there is nothing to do.
set -eu
missing=""
# `setup.sh bench` installs what `make bench` needs, too.
need() { command -v "$1" >/dev/null 2>&1 || missing="$missing $2"; }
need ip iproute2
need nsenter util-linux
need sysctl procps
need runc runc
need nft nftables
need ethtool ethtool
need iptables iptables
need conntrack conntrack
need busybox busybox-static
need curl curl
need cc gcc
# They compile the eBPF programs.
need clang clang
[ -e /usr/include/bpf/bpf_helpers.h ] || missing="$missing libbpf-dev"
# Programs that the protocol is tried against (e2e/tests/interop).
need tshark tshark
need dumpcap wireshark-common
need dhcpcd dhcpcd-base
need dhcp6c wide-dhcpv6-client
need perfdhcp kea-admin
need kea-dhcp6 kea-dhcp6-server
# Interior BGP, and routers of others that must learn service prefixes from it and nothing else.
need bird bird2
need gobgpd gobgpd
[ -x /usr/lib/frr/bgpd ] || missing="$missing frr"
[ -e /usr/lib/x86_64-linux-gnu/libc.a ] || [ -e /usr/lib/aarch64-linux-gnu/libc.a ] || missing="$missing libc6-dev"
if [ "${1:-}" = bench ]; then
    need iperf3 iperf3
    need wireguard-go wireguard-go
    need wg wireguard-tools
fi
for tool in cargo go; do
    command -v "$tool" >/dev/null 2>&1 || { echo "setup: $tool is missing; install the Rust (1.95) and Go (1.26) toolchains" >&2; exit 1; }
done
[ "$(id -u)" = 0 ] || { echo "setup: the lab makes network namespaces and cgroups; run as root" >&2; exit 1; }
if [ -n "$missing" ]; then
    echo "setup: installing$missing"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # The tests start these programs themselves, in namespaces; no service is to run here.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod 755 $policy
        trap 'rm -f $policy' EXIT
    fi
    # shellcheck disable=SC2086
    apt-get install -y -qq --no-install-recommends $missing >/dev/null
    if [ -d /run/systemd/system ]; then
        for service in kea-dhcp6-server wide-dhcpv6-client bird2:bird gobgpd frr; do
            case "$missing" in *${service%:*}*) systemctl disable -q "${service#*:}" ;; esac
        done
    fi
fi
