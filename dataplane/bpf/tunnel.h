/*
 * Into and out of tunnels. Outer headers follow section 3.10 of the draft: UDP with one port per
 * node and a checksum of zero (RFC 6935), hop limit and traffic class from the inner header at the
 * entry and from the outer one where a packet is passed on. To a neighbour that is known to get
 * them so, IPv6 packets go without UDP (RFC 4213, RFC 2473): what comes off a wire like that is
 * merged by every kernel.
 *
 * Super-packets stay whole: the kernel is told that they are encapsulated and cuts them where a
 * device asks for it.
 */
#ifndef AERO_TUNNEL_H
#define AERO_TUNNEL_H

#include "packet.h"

#define AF_INET 2
#define AF_INET6 10
#define LOOPBACK 1 /* index of the loopback in every namespace */

#ifndef BPF_F_ADJ_ROOM_DECAP_L3_IPV4 /* newer than Debian 12's headers */
#define BPF_F_ADJ_ROOM_DECAP_L3_IPV4 (1ULL << 7)
#define BPF_F_ADJ_ROOM_DECAP_L3_IPV6 (1ULL << 8)
#endif

struct outer4 {
	struct iphdr ip;
	struct udphdr udp;
};

struct outer6 {
	struct ipv6hdr ip;
	struct udphdr udp;
};

/* An inner packet that fits into any outer one. */
#define LONGEST (0xffff - (__u32)sizeof(struct outer6))

/* The fields of an outer header that are not the same for all packets to a neighbour. */
struct outer {
	__u8 traffic_class;
	__u8 hop_limit;
	__u32 flow_label;
	__u32 inner_length;
	__u8 ip_in_ip; /* no UDP behind it */
};

/* Where a packet for a neighbour leaves this node. */
struct way {
	__u32 ifindex;
	__u32 mtu; /* of outer packets, as far as it is known; 0: the kernel was asked for this one */
	__u64 until; /* how long this is believed; 0: for the one packet */
	__u8 local;
	__u8 v4;
	__u8 resolved; /* all is known down to the link layer */
	__u8 known; /* `next` is the next hop */
	__u8 mac[ETH_ALEN];
	__u8 own_mac[ETH_ALEN];
	struct bpf_redir_neigh next;
};

/*
 * What the kernel's routes and neighbour cache have said about the way to a neighbour, for packets
 * that came in by the same interface. Believed for WAY_AGE: then a packet asks again, and goes by
 * the kernel's neighbour cache, which so sees that the entry is in use.
 */
struct known_way {
	__u32 ip[4];
	__u32 from; /* the interface */
	struct way way;
};

#define WAY_AGE 10000000ULL
#define WAYS 1024

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, WAYS);
	__type(key, __u32);
	__type(value, struct known_way);
} ways SEC(".maps");

/* Length of the longest packet that one of an inner length is cut into; options are not counted. */
inline_always __u32 longest_piece(struct __sk_buff *skb, __u32 length)
{
	__u32 size = skb->gso_size;
	return size ? size + sizeof(struct ipv6hdr) + 20 : length;
}

inline_always __u32 longest_outer(int v4)
{
	return v4 ? sizeof(struct outer4) : sizeof(struct outer6);
}

/* Whether an inner packet of a length is short enough for what is known of a way. */
inline_always int fits(const struct way *way, __u32 length)
{
	return !way->mtu || length + longest_outer(way->v4) <= way->mtu;
}

/*
 * Finds the way to a neighbour. By the kernel's own routes, so that there is nothing to keep up to
 * date. Fails if this node has no address of the family, if the packet is for a process of this
 * node, or if an inner packet of the given length is too long for what the kernel knows of the path.
 */
inline_always int find_way(struct __sk_buff *skb, const struct config *c, const struct l2 *to,
			   __u32 length, struct way *way, __u64 now)
{
	__builtin_memset(way, 0, sizeof *way);
	way->v4 = is_v4(to->ip);
	const __u32 *own = way->v4 ? c->v4 : c->v6;
	if (!(own[2] | own[3] | own[0]))
		return -1;
	if (same_ip(own, to->ip)) {
		__u32 port = to->port;
		way->local = 1;
		way->ifindex = LOOPBACK;
		return bpf_map_lookup_elem(&ports, &port) ? 0 : -1;
	}
	__u32 from = skb->ifindex;
	__u32 index = to->ip[0] ^ to->ip[1] ^ to->ip[2] ^ to->ip[3];
	index = ((index ^ from) * 0x9e3779b1U) >> 22;
	struct known_way *entry = bpf_map_lookup_elem(&ways, &index);
	if (entry && entry->way.until > now && entry->from == from && same_ip(entry->ip, to->ip)) {
		*way = entry->way;
		return fits(way, length) ? 0 : -1;
	}
	struct bpf_fib_lookup fib = {
		.tot_len = length + longest_outer(way->v4),
		.l4_protocol = IPPROTO_UDP,
		.sport = c->port,
		.dport = to->port,
		.ifindex = from,
	};
	if (way->v4) {
		fib.family = AF_INET;
		fib.ipv4_src = own[3];
		fib.ipv4_dst = to->ip[3];
	} else {
		fib.family = AF_INET6;
		__builtin_memcpy(fib.ipv6_src, own, 16);
		__builtin_memcpy(fib.ipv6_dst, to->ip, 16);
	}
	long found = bpf_fib_lookup(skb, &fib, sizeof fib, 0);
	if (found == BPF_FIB_LKUP_RET_SUCCESS || found == BPF_FIB_LKUP_RET_NO_NEIGH) {
		way->ifindex = fib.ifindex;
		way->known = 1;
		way->next.nh_family = fib.family;
		/* A union: the larger member is the whole of it. */
		__builtin_memcpy(way->next.ipv6_nh, fib.ipv6_dst, 16);
		if (entry && found == BPF_FIB_LKUP_RET_SUCCESS) {
			__builtin_memcpy(entry->ip, to->ip, sizeof entry->ip);
			entry->from = from;
			entry->way = (struct way){
				.ifindex = fib.ifindex,
				.mtu = fib.mtu_result,
				.until = now + WAY_AGE,
				.v4 = way->v4,
				.resolved = 1,
			};
			__builtin_memcpy(entry->way.mac, fib.dmac, ETH_ALEN);
			__builtin_memcpy(entry->way.own_mac, fib.smac, ETH_ALEN);
		}
		return 0;
	}
	if (found == BPF_FIB_LKUP_RET_FWD_DISABLED) {
		/* A node that does not forward this family can still send. */
		way->ifindex = way->v4 ? c->out4 : c->out6;
		return way->ifindex ? 0 : -1;
	}
	return -1;
}

/* Until when a neighbour gets what is sent to it without UDP. */
inline_always __u64 ip_in_ip_until(const struct l2 *to)
{
	__u32 slot = to->slot;
	__u64 *until = slot ? bpf_map_lookup_elem(&proven, &slot) : 0;
	return until ? *until : 0;
}

inline_always __u32 size_of_outer(int v4, int ip_in_ip)
{
	if (v4)
		return ip_in_ip ? sizeof(struct iphdr) : sizeof(struct outer4);
	return ip_in_ip ? sizeof(struct ipv6hdr) : sizeof(struct outer6);
}

/* Sends a packet whose outer header is complete. */
inline_always int leave(struct __sk_buff *skb, const struct way *way)
{
	if (way->local || way->resolved) {
		void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
		struct ethhdr *eth = data;
		if ((void *)(eth + 1) > end)
			return DROP;
		eth->h_proto = way->v4 ? bpf_htons(ETH_P_IP) : bpf_htons(ETH_P_IPV6);
		if (way->local) {
			__builtin_memset(eth->h_dest, 0, ETH_ALEN);
			__builtin_memset(eth->h_source, 0, ETH_ALEN);
			return (int)bpf_redirect(LOOPBACK, BPF_F_INGRESS);
		}
		__builtin_memcpy(eth->h_dest, way->mac, ETH_ALEN);
		__builtin_memcpy(eth->h_source, way->own_mac, ETH_ALEN);
		return (int)bpf_redirect(way->ifindex, 0);
	}
	if (way->known)
		return (int)bpf_redirect_neigh(way->ifindex, (void *)&way->next, sizeof way->next, 0);
	return (int)bpf_redirect_neigh(way->ifindex, 0, 0, 0);
}

/*
 * Writes the outer headers behind the Ethernet header. The bounds are those of the longer form:
 * behind the shorter one there is an IPv6 header.
 */
inline_always int write_outer(struct __sk_buff *skb, const struct config *c, const struct l2 *to,
			      const struct outer *o, int v4)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	struct udphdr udp = {
		.source = c->port,
		.dest = to->port,
		.len = bpf_htons((__u16)(o->inner_length + sizeof(struct udphdr))),
	};
	if (v4) {
		struct outer4 *h = data + sizeof *eth;
		if ((void *)(h + 1) > end)
			return -1;
		eth->h_proto = bpf_htons(ETH_P_IP);
		struct iphdr ip = {
			.version = 4,
			.ihl = 5,
			.tos = o->traffic_class,
			.tot_len = bpf_htons((__u16)(o->inner_length +
						     size_of_outer(1, o->ip_in_ip))),
			.frag_off = bpf_htons(0x4000),
			.ttl = o->hop_limit,
			.protocol = o->ip_in_ip ? IPPROTO_IPV6 : IPPROTO_UDP,
			.saddr = c->v4[3],
			.daddr = to->ip[3],
		};
		__u32 sum = 0;
		__u16 *word = (__u16 *)&ip;
#pragma unroll
		for (unsigned i = 0; i < sizeof ip / 2; i++)
			sum += word[i];
		sum = (sum & 0xffff) + (sum >> 16);
		sum = (sum & 0xffff) + (sum >> 16);
		ip.check = (__u16)~sum;
		__builtin_memcpy(&h->ip, &ip, sizeof ip);
		if (!o->ip_in_ip)
			__builtin_memcpy(&h->udp, &udp, sizeof udp);
		return 0;
	}
	struct outer6 *h = data + sizeof *eth;
	if ((void *)(h + 1) > end)
		return -1;
	eth->h_proto = bpf_htons(ETH_P_IPV6);
	*(__be32 *)&h->ip = bpf_htonl(0x60000000 | (__u32)o->traffic_class << 20 | o->flow_label);
	h->ip.payload_len = o->ip_in_ip ? bpf_htons((__u16)o->inner_length) : udp.len;
	h->ip.nexthdr = o->ip_in_ip ? IPPROTO_IPV6 : IPPROTO_UDP;
	h->ip.hop_limit = o->hop_limit;
	__builtin_memcpy(&h->ip.saddr, c->v6, 16);
	__builtin_memcpy(&h->ip.daddr, to->ip, 16);
	if (!o->ip_in_ip)
		__builtin_memcpy(&h->udp, &udp, sizeof udp);
	return 0;
}

/*
 * Puts an inner packet behind an Ethernet header into a tunnel, along a way that was found before.
 * It is not longer than LONGEST, and as it was if this returns NEXT.
 */
inline_always int encapsulate(struct __sk_buff *skb, const struct config *c, const struct l2 *to,
			      const struct inner *in, __u32 length, const struct way *way,
			      int ip_in_ip)
{
	struct outer o = {
		.traffic_class = in->traffic_class,
		.hop_limit = in->hop_limit,
		.inner_length = length,
		.ip_in_ip = (__u8)ip_in_ip,
	};
	__u32 size = size_of_outer(way->v4, ip_in_ip);
	__u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO;
	if (!ip_in_ip)
		flags |= BPF_F_ADJ_ROOM_ENCAP_L4_UDP;
	if (!way->v4) /* RFC 6438 */
		o.flow_label = bpf_get_hash_recalc(skb) & 0xfffff;
	flags |= way->v4 ? BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 : BPF_F_ADJ_ROOM_ENCAP_L3_IPV6;
	if (bpf_skb_adjust_room(skb, (__s32)size, BPF_ADJ_ROOM_MAC, flags))
		return NEXT;
	if (write_outer(skb, c, to, &o, way->v4))
		return DROP;
	return leave(skb, way);
}

#endif
