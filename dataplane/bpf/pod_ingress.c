/*
 * What a pod sends, as it comes out of the node's end of its pair of interfaces: the filter of its
 * sources, and the short way into a tunnel. Whatever is not for a neighbour, or not plain, goes on
 * to the node's network layer.
 */
#include "decisions.h"

inline_always int foreign(const struct pod *pod, const struct inner_address *a)
{
	for (int i = 0; i < 4; i++)
		if ((a->word[i] & pod->mask[i]) != pod->address[i])
			return 1;
	return 0;
}

/* Whether a packet of this length is more than the short way can do. */
inline_always int needs_router(struct __sk_buff *skb, const struct config *c,
			       const struct inner *in, __u32 length)
{
	return in->hop_limit <= 1 || longest_piece(skb, length) > c->mtu || length > LONGEST;
}

/* Looks up where a pod's packet goes: a verdict, or DECIDED and the decision. */
apart int depart(struct __sk_buff *skb, const struct config *c, const struct inner *in,
		 struct departure *decision, __u64 now)
{
	__u64 until = now + DECISION_AGE;
	__u32 table = c->table, ifindex = skb->ifindex;
	struct route *own = live_route(&in->source, now);
	if (!own || own->kind != LOCAL || own->ifindex != ifindex) {
		struct pod *pod = bpf_map_lookup_elem(&pods, &ifindex);
		if (!pod || !foreign(pod, &in->source))
			return NEXT;
		count(FOREIGN_SOURCE, 1);
		return DROP;
	}
	__u32 length = skb->len - ETH_HLEN;
	if (needs_router(skb, c, in, length))
		return NEXT;
	struct hop hop;
	not_after(&until, own->until);
	if (next_hop(skb, ETH_HLEN, c, &in->source, own, &in->destination, &hop, &until, now) !=
	    NEIGHBOR)
		return NEXT;
	decision->until = 0;
	if (find_way(skb, c, &hop.to, longest_piece(skb, length), &decision->way, now))
		return NEXT;
	__u64 proof = ip_in_ip_until(&hop.to);
	decision->ip_in_ip = hop.straight && !decision->way.local && proof > now;
	if (decision->ip_in_ip)
		not_after(&until, proof);
	/* A way that is for this one packet makes this a decision for one packet. */
	if (until > decision->way.until)
		until = decision->way.until;
	decision->until = until;
	decision->table = table;
	decision->ifindex = ifindex;
	__builtin_memcpy(decision->source, in->source.word, sizeof decision->source);
	__builtin_memcpy(decision->destination, in->destination.word,
			 sizeof decision->destination);
	decision->to = hop.to;
	return DECIDED;
}

SEC("classifier")
int pod_ingress(struct __sk_buff *skb)
{
	__u64 now = bpf_ktime_get_coarse_ns();
	struct config *c = configuration(now);
	struct inner in;
	if (!c || skb->protocol != bpf_htons(ETH_P_IPV6))
		return NEXT;
	pull(skb, ETH_HLEN + sizeof(struct ipv6hdr));
	if (parse(skb, ETH_HLEN, &in) != DATA || in.source.family != 6 ||
	    link_local(in.source.word))
		return NEXT;
	struct departure *decision = departure_of(&in);
	if (!decision)
		return NEXT;
	if (unlikely(!departs(decision, c, &in, skb->ifindex, now))) {
		int verdict = depart(skb, c, &in, decision, now);
		if (verdict != DECIDED)
			return verdict;
	}
	const struct way *way = &decision->way;
	__u32 length = skb->len - ETH_HLEN;
	if (needs_router(skb, c, &in, length) || !fits(way, longest_piece(skb, length)))
		return NEXT;
	if (lower_hop_limit(skb, ETH_HLEN, 6))
		return NEXT;
	in.hop_limit--;
	int verdict = encapsulate(skb, c, &decision->to, &in, length, way, decision->ip_in_ip);
	if (verdict == NEXT)
		return NEXT;
	if (verdict == DROP)
		count(SEND_ERRORS, 1);
	else
		count_tunneled(skb, &decision->to, length);
	return verdict;
}
