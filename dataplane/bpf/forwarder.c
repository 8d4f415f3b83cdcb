/* The programs of the eBPF forwarder, in one object so that they share their maps. */
#include "aero_egress.c"
#include "pod_ingress.c"
#include "underlay_ingress.c"

char _license[] SEC("license") = "GPL";
