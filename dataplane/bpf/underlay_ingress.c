/*
 * What comes to this node's port on the underlay: out of the tunnel and to a pod or to the network
 * layer, or on to another neighbour. Everything for the engine, and everything unusual, goes on to
 * the process's socket: fragments, options, shims, datagrams with a checksum.
 *
 * IP-in-IP has no port. It is this forwarder's if it comes from a neighbour; whatever else comes
 * that way is somebody else's tunnel.
 */
#include "decisions.h"

/* A packet that came out of a tunnel from a neighbour. */
struct arrived {
	struct l2 from;
	struct inner in;
	struct outer outer;
	__u32 at; /* offset of the inner packet */
	__u8 v4;
};

enum read { OTHER, FOR_US, UNUSUAL };

inline_always int read_outer(struct __sk_buff *skb, const struct config *c, struct arrived *a)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct udphdr *udp;
	__u32 length;
	__u8 protocol;
	__builtin_memset(a, 0, sizeof *a);
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct outer4 *h = data + ETH_HLEN;
		if ((void *)(h + 1) > end || h->ip.daddr != c->v4[3] || h->ip.ihl != 5 ||
		    (h->ip.frag_off & bpf_htons(0x3fff)))
			return OTHER;
		udp = &h->udp;
		protocol = h->ip.protocol;
		length = bpf_ntohs(h->ip.tot_len) - sizeof h->ip;
		a->v4 = 1;
		map_v4(a->from.ip, h->ip.saddr);
		a->outer.traffic_class = h->ip.tos;
		a->outer.hop_limit = h->ip.ttl;
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		struct outer6 *h = data + ETH_HLEN;
		if ((void *)(h + 1) > end)
			return OTHER;
		__u32 destination[4];
		__builtin_memcpy(destination, &h->ip.daddr, 16);
		if (!same_ip(destination, c->v6))
			return OTHER;
		udp = &h->udp;
		protocol = h->ip.nexthdr;
		length = bpf_ntohs(h->ip.payload_len);
		__builtin_memcpy(a->from.ip, &h->ip.saddr, 16);
		__u32 word = bpf_ntohl(*(__be32 *)&h->ip);
		a->outer.traffic_class = (__u8)(word >> 20);
		a->outer.flow_label = word & 0xfffff;
		a->outer.hop_limit = h->ip.hop_limit;
	} else {
		return OTHER;
	}
	a->outer.ip_in_ip = protocol == IPPROTO_IPV6;
	a->at = ETH_HLEN + size_of_outer(a->v4, a->outer.ip_in_ip);
	if (a->outer.ip_in_ip) {
		/* All nodes that are reached so have the link's one port. */
		a->from.port = c->port;
		a->outer.inner_length = length;
		return c->ip_in_ip && a->at + length <= skb->len ? FOR_US : OTHER;
	}
	if (protocol != IPPROTO_UDP || udp->dest != c->port)
		return OTHER;
	length = bpf_ntohs(udp->len);
	if (length < sizeof *udp || a->at - sizeof *udp + length > skb->len)
		return OTHER;
	a->from.port = udp->source;
	a->outer.inner_length = length - sizeof *udp;
	return udp->check ? UNUSUAL : FOR_US;
}

/* Makes room for an outer header of the other family. */
inline_always int change_family(struct __sk_buff *skb, const struct arrived *a)
{
	if (!a->v4)
		return (int)bpf_skb_adjust_room(skb, (__s32)sizeof(struct iphdr) -
						(__s32)sizeof(struct ipv6hdr), BPF_ADJ_ROOM_MAC,
						BPF_F_ADJ_ROOM_FIXED_GSO |
						BPF_F_ADJ_ROOM_DECAP_L3_IPV4);
	/* The helper takes the innermost transport for that of the header it changes. */
	if (skb->gso_size && a->in.source.family == 4)
		return -1;
	return (int)bpf_skb_change_proto(skb, bpf_htons(ETH_P_IPV6), 0);
}

inline_always void read_header(struct __sk_buff *skb, void *header, int v4)
{
	if (v4)
		bpf_skb_load_bytes(skb, ETH_HLEN, header, sizeof(struct outer4));
	else
		bpf_skb_load_bytes(skb, ETH_HLEN, header, sizeof(struct outer6));
}

inline_always int take_out(struct __sk_buff *skb, const struct arrived *a)
{
	int v4 = a->in.source.family == 4;
	__u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO;
	if (v4 != a->v4)
		flags |= v4 ? BPF_F_ADJ_ROOM_DECAP_L3_IPV4 : BPF_F_ADJ_ROOM_DECAP_L3_IPV6;
	__s32 size = (__s32)size_of_outer(a->v4, a->outer.ip_in_ip);
	return (int)bpf_skb_adjust_room(skb, -size, BPF_ADJ_ROOM_MAC, flags);
}

/* Sends an arrived packet on to another neighbour: outer to outer, the inner one untouched. */
apart int send_on(struct __sk_buff *skb, const struct config *c, struct arrived *a,
		  const struct l2 *to, __u64 now)
{
	struct way way;
	__u32 header[12] = {}, sum = 0;
	__u32 length = a->outer.inner_length;
	if (a->outer.hop_limit <= c->ttl_step || length > LONGEST ||
	    find_way(skb, c, to, longest_piece(skb, length), &way, now))
		goto pass;
	/* The kernel cuts a super-packet by the form that it has. */
	int keeps_form = a->outer.ip_in_ip && skb->gso_size;
	if (keeps_form && (way.local || way.v4 != a->v4))
		goto pass;
	if (way.v4 != a->v4 && change_family(skb, a))
		goto pass;
	if (a->outer.ip_in_ip && !keeps_form) {
		/* Nothing is known of this node's path to the other in any other form. */
		if (bpf_skb_adjust_room(skb, sizeof(struct udphdr), BPF_ADJ_ROOM_MAC,
					BPF_F_ADJ_ROOM_FIXED_GSO))
			goto pass;
		a->outer.ip_in_ip = 0;
	}
	a->outer.hop_limit -= c->ttl_step;
	/* A sum over the whole packet, taken by the device, has to follow the change. */
	int summed = way.local && way.v4 == a->v4;
	if (summed) {
		read_header(skb, header, way.v4);
		sum = (__u32)bpf_csum_diff(header, sizeof header, 0, 0, 0);
	}
	if (write_outer(skb, c, to, &a->outer, way.v4)) {
		count(SEND_ERRORS, 1);
		return DROP;
	}
	if (summed) {
		read_header(skb, header, way.v4);
		bpf_csum_update(skb, (__u32)bpf_csum_diff(0, 0, header, sizeof header, sum));
	}
	count_tunneled(skb, to, a->outer.inner_length);
	return leave(skb, &way);
pass:
	count(PASSED, 1);
	return NEXT;
}

inline_always int came_by_stack(struct __sk_buff *skb, const struct arrived *a)
{
	__u32 *any = flow_bucket(a->in.destination.word);
	if (any && !*any)
		return 0;
	struct flow key = {};
	__u32 both = ports_of(skb, a->at, &a->in);
	__builtin_memcpy(key.source, a->in.source.word, 16);
	__builtin_memcpy(key.destination, a->in.destination.word, 16);
	key.source_port = (__be16)both;
	key.destination_port = (__be16)(both >> 16);
	key.protocol = a->in.protocol;
	return bpf_map_lookup_elem(&flows, &key) != 0;
}

/* Takes the packet out of its tunnel and hands it to the pod, or to the network layer. */
inline_always int deliver(struct __sk_buff *skb, const struct config *c, const struct arrived *a,
			  const struct route *r)
{
	int v4 = a->in.source.family == 4;
	__u32 length = a->outer.inner_length;
	/* What needs a router's full attention goes to one. */
	int direct = r->ifindex && a->in.hop_limit > 1 && !a->in.fragment && !came_by_stack(skb, a);
	__u32 ifindex = r->ifindex;
	struct ethhdr link = {.h_proto = v4 ? bpf_htons(ETH_P_IP) : bpf_htons(ETH_P_IPV6)};
	__builtin_memcpy(link.h_dest, r->mac, ETH_ALEN);
	__builtin_memcpy(link.h_source, r->node_mac, ETH_ALEN);
	int congested = (a->outer.traffic_class & 3) == 3;
	if ((congested && !(a->in.traffic_class & 3)) || take_out(skb, a)) {
		count(PASSED, 1);
		return NEXT;
	}
	pull(skb, ETH_HLEN + (v4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr)));
	if ((congested && mark_congestion(skb, ETH_HLEN, &a->in)) ||
	    (direct && lower_hop_limit(skb, ETH_HLEN, a->in.source.family)))
		goto lost;
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	if (data + sizeof link > end)
		goto lost;
	__builtin_memcpy(data, &link, sizeof link);
	count_delivered(skb, length);
	if (direct)
		return (int)bpf_redirect_peer(ifindex, 0);
	return (int)bpf_redirect(c->device, BPF_F_INGRESS);
lost:
	count(SEND_ERRORS, 1);
	return DROP;
}

/*
 * Looks up whether a packet may come and what is done with it: the verdict, or DECIDED and the
 * decision.
 */
apart int decide(struct __sk_buff *skb, const struct config *c, const struct arrived *a,
		 struct arrival *decision, __u64 now)
{
	__u64 until = now + DECISION_AGE;
	__u32 table = c->table, slot, why;
	int allowed = accepts(&a->from, &a->in.source, &a->in.destination, now, &slot, &until);
	struct route *r = live_route(&a->in.destination, now);
	if (allowed == NO) {
		if (a->outer.ip_in_ip && !(r && r->kind == LOCAL))
			return NEXT;
		count(ORIGIN_REFUSED, 1);
		return DROP;
	}
	if (!r)
		why = NO_ROUTE;
	else if (allowed == ASK || r->kind == UNREACHABLE)
		why = PASSED;
	else if (r->kind == LOCAL ? !c->device : !r->transit)
		why = NOT_FOR_US;
	else if (r->kind == NEIGHBOR && (same_l2(&r->to, &a->from) || bounces(&a->from, &r->to)))
		why = WOULD_RETURN;
	else
		goto decided;
	count_received(skb, slot, a->outer.inner_length);
	count(why, 1);
	return why == PASSED ? NEXT : DROP;
decided:
	/* A Server's Client may have a shorter way: by a Forwarding Agent. */
	if (r->kind == NEIGHBOR && c->tells && !c->device)
		tell(skb, a->at, &a->in.source, &a->in.destination, now);
	not_after(&until, r->until);
	decision->table = table;
	decision->until = until;
	decision->source = a->in.source;
	decision->destination = a->in.destination;
	decision->from = a->from;
	decision->slot = slot;
	decision->route = *r;
	return DECIDED;
}

SEC("classifier")
int underlay_ingress(struct __sk_buff *skb)
{
	__u64 now = bpf_ktime_get_coarse_ns();
	struct config *c = configuration(now);
	struct arrived a;
	if (!c)
		return NEXT;
	pull(skb, ETH_HLEN + sizeof(struct outer6) + sizeof(struct ipv6hdr));
	int what = read_outer(skb, c, &a);
	if (what == OTHER)
		return NEXT;
	/* Offsets that the verifier knows. */
	int class;
	if (a.outer.ip_in_ip)
		class = a.v4 ? parse(skb, ETH_HLEN + sizeof(struct iphdr), &a.in)
			     : parse(skb, ETH_HLEN + sizeof(struct ipv6hdr), &a.in);
	else
		class = a.v4 ? parse(skb, ETH_HLEN + sizeof(struct outer4), &a.in)
			     : parse(skb, ETH_HLEN + sizeof(struct outer6), &a.in);
	/* Protocol 41 carries IPv6 only. */
	if (a.outer.ip_in_ip && (class == BAD || a.in.source.family != 6))
		return NEXT;
	__u32 least = a.in.source.family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
	if (class == CONTROL && a.outer.inner_length >= least)
		return NEXT;
	if (what == UNUSUAL || of_the_link(&a.in.source) || of_the_link(&a.in.destination) ||
	    class == BAD || a.outer.inner_length < least) {
		/* No plain inner packet: a shim, an address of the link's own, or nothing. */
		count(PASSED, 1);
		return NEXT;
	}
	struct arrival *decision = arrival_of(&a.in);
	if (!decision)
		return NEXT;
	if (unlikely(!arrives(decision, c, &a.in, &a.from, now))) {
		int verdict = decide(skb, c, &a, decision, now);
		if (verdict != DECIDED)
			return verdict;
	}
	count_received(skb, decision->slot, a.outer.inner_length);
	if (likely(decision->route.kind == LOCAL))
		return deliver(skb, c, &a, &decision->route);
	return send_on(skb, c, &a, &decision->route.to, now);
}
