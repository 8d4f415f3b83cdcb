/*
 * What this node's network layer sends into the AERO interface. The interface has no link layer,
 * so packets start with their IP header.
 */
#include "tunnel.h"

/* Answers to this flow are for the network layer too: it may have translated addresses. */
inline_always void remember(struct __sk_buff *skb, const struct inner *in)
{
	struct flow key = {};
	__u32 one = 1, both = ports_of(skb, 0, in);
	__builtin_memcpy(key.source, in->destination.word, 16);
	__builtin_memcpy(key.destination, in->source.word, 16);
	key.source_port = (__be16)(both >> 16);
	key.destination_port = (__be16)both;
	key.protocol = in->protocol;
	__u32 *any = flow_bucket(in->source.word);
	if (any && !*any)
		*any = 1;
	if (!bpf_map_lookup_elem(&flows, &key))
		bpf_map_update_elem(&flows, &key, &one, BPF_ANY);
}

SEC("classifier")
int aero_egress(struct __sk_buff *skb)
{
	__u64 now = bpf_ktime_get_coarse_ns();
	struct config *c = configuration(now);
	struct inner in;
	struct way way;
	if (!c)
		return NEXT;
	pull(skb, sizeof(struct ipv6hdr));
	if (parse(skb, 0, &in) == BAD) {
		count(MALFORMED, 1);
		return DROP;
	}
	if (of_the_link(&in.source) || of_the_link(&in.destination))
		goto pass;
	struct route *own = live_route(&in.source, now);
	if (!own || own->kind != LOCAL) {
		count(FOREIGN_SOURCE, 1);
		return DROP;
	}
	int pod = own->ifindex != 0;
	struct hop hop;
	__u64 until = 0;
	int kind = next_hop(skb, 0, c, &in.source, own, &in.destination, &hop, &until, now);
	if (kind == UNREACHABLE)
		goto pass;
	if (kind != NEIGHBOR) {
		count(NO_ROUTE, 1);
		return DROP;
	}
	__u32 length = skb->len;
	/* Also if the process sends it: a firewall of the node has seen one half of the flow. */
	if (pod)
		remember(skb, &in);
	if (length > LONGEST || find_way(skb, c, &hop.to, longest_piece(skb, length), &way, now))
		goto pass;
	if (bpf_skb_change_head(skb, ETH_HLEN, 0))
		goto pass;
	int ip_in_ip = hop.straight && !way.local && in.source.family == 6 &&
		       ip_in_ip_until(&hop.to) > now;
	int verdict = encapsulate(skb, c, &hop.to, &in, length, &way, ip_in_ip);
	if (verdict == NEXT || verdict == DROP) {
		/* With a link layer the packet is of no use to the interface any more. */
		count(SEND_ERRORS, 1);
		return DROP;
	}
	count_tunneled(skb, &hop.to, length);
	return verdict;
pass:
	count(PASSED, 1);
	return NEXT;
}
