/*
 * What a pod sends, as it comes out of the node's end of its pair of interfaces: the filter of its
 * sources, and the short way into a tunnel. Whatever is not for a neighbour, or not plain, goes on
 * to the node's network layer.
 */
#include "tunnel.h"

inline_always int foreign(const struct pod *pod, const struct inner_address *a)
{
	for (int i = 0; i < 4; i++)
		if ((a->word[i] & pod->mask[i]) != pod->address[i])
			return 1;
	return 0;
}

SEC("classifier")
int pod_ingress(struct __sk_buff *skb)
{
	__u64 now = bpf_ktime_get_coarse_ns();
	__u32 ifindex = skb->ifindex;
	struct config *c = configuration(now);
	struct inner in;
	struct way way;
	if (!c || skb->protocol != bpf_htons(ETH_P_IPV6))
		return NEXT;
	pull(skb, ETH_HLEN + sizeof(struct ipv6hdr));
	if (parse(skb, ETH_HLEN, &in) != DATA || in.source.family != 6 ||
	    link_local(in.source.word))
		return NEXT;
	struct route *own = live_route(&in.source, now);
	if (!own || own->kind != LOCAL || own->ifindex != ifindex) {
		struct pod *pod = bpf_map_lookup_elem(&pods, &ifindex);
		if (!pod || !foreign(pod, &in.source))
			return NEXT;
		count(FOREIGN_SOURCE, 1);
		return DROP;
	}
	__u32 length = skb->len - ETH_HLEN;
	__u32 longest = longest_piece(skb, length);
	if (in.hop_limit <= 1 || longest > c->mtu || length > LONGEST)
		return NEXT;
	struct l2 to;
	int straight;
	if (next_hop(skb, ETH_HLEN, c, &in.source, own, &in.destination, &to, &straight, now) !=
	    NEIGHBOR)
		return NEXT;
	if (find_way(skb, c, &to, longest, &way, now))
		return NEXT;
	if (lower_hop_limit(skb, ETH_HLEN, 6))
		return NEXT;
	in.hop_limit--;
	int ip_in_ip = straight && !way.local && gets_ip_in_ip(&to, now);
	int verdict = encapsulate(skb, c, &to, &in, length, &way, ip_in_ip);
	if (verdict == NEXT)
		return NEXT;
	if (verdict == DROP)
		count(SEND_ERRORS, 1);
	else
		count_tunneled(skb, &to, length);
	return verdict;
}
