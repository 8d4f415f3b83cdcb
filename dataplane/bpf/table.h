/*
 * The forwarding table in maps: what `protocol::forwarding::Table` is in user space. Each look-up
 * here has its namesake there, and a test compares the two packet by packet.
 *
 * Times are CLOCK_MONOTONIC in nanoseconds, 0 for "for good"; the programs read it to the tick,
 * which spares each packet the clock's hardware. An entry that has run out does not
 * count, whether or not anybody has removed it: a table outlives its process.
 */
#ifndef AERO_TABLE_H
#define AERO_TABLE_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define inline_always static __always_inline
/* What few packets need has a place of its own, so that the rest is close together. */
#define apart static __attribute__((noinline))
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

/* A neighbour's address on the underlay. IPv4 is held as ::ffff:a.b.c.d. */
struct l2 {
	__u32 ip[4];
	__be16 port;
	__u16 slot; /* in values: index into the arrays about neighbours. 0 in keys, and for the rest */
};

/* Neighbours with a slot of their own; all others share the first one. */
#define SLOTS (1 << 13)

struct traffic {
	__u64 tunneled_packets;
	__u64 tunneled_bytes;
	__u64 received_packets;
	__u64 received_bytes;
};

/* A prefix as a key: family in front of the address, so that one map holds both. */
struct prefix {
	__u32 bits; /* of what follows */
	__u32 family;
	__u32 address[4];
};

#define FAMILY_BITS 32

/* Of UNREACHABLE the source is to be told, which is left to the process. */
enum kind { LOCAL = 1, NEIGHBOR = 2, UNREACHABLE = 3 };

struct route {
	struct l2 to;
	__u32 bits; /* of the key */
	__u64 until;
	__u32 ifindex; /* LOCAL: the interface behind which the prefix is; 0: ask the stack */
	__u8 kind;
	__u8 transit;
	__u8 mac[6]; /* LOCAL with an interface: of the pod, of the node's side */
	__u8 node_mac[6];
	__u8 pad[6];
};

/* Who may send a prefix: a neighbour with several links has several addresses. */
struct sender {
	struct l2 from;
	__u32 pad;
	__u64 until;
};

#define SENDERS 4

struct source {
	struct sender sender[SENDERS];
	__u32 bits;
	__u32 count; /* if there are more than fit, the process knows them */
};

/*
 * What a peer is, in the lower half of the values of `peers`: it may send everything; is a Relay;
 * an agent. The upper half is its slot.
 */
#define PEER 1
#define RELAY 2
#define AGENT 4

/* Hand-overs are looked up by who sends and then by longest prefix. */
struct handover_key {
	__u32 bits;
	struct l2 from;
	__u32 family;
	__u32 address[4];
};

#define HANDOVER_BITS (FAMILY_BITS + 8 * (__u32)sizeof(struct l2))

struct handover {
	__u64 until;
	__u32 bits;
	__u32 pad;
};

/*
 * Paths straight to a correspondent, for a pair of prefixes: what one Client of this node may send
 * there another may not. Looked up by own prefix and then by longest prefix.
 */
struct direct_key {
	__u32 bits;
	__u32 own_family;
	__u32 own_bits; /* as in `prefix` */
	__u32 own[4];
	__u32 family;
	__u32 address[4];
};

#define DIRECT_BITS (8 * 24 + FAMILY_BITS)

struct direct {
	struct l2 to;
	__u32 bits;
	__u64 until;
	__u32 used; /* set by every packet; unreachability is only of interest to who sends */
	__u32 pad;
};

/* A packet that went by a Server for want of a direct path: its addresses, and its beginning. */
struct pair {
	__u32 family;
	__u32 source[4];
	__u32 destination[4];
};

#define QUOTED 128

struct wanting {
	struct pair pair;
	__u32 length; /* of what is quoted */
	__u8 quoted[QUOTED];
};

struct config {
	__u32 v4[4]; /* this node's addresses, as in l2; zero if there is none */
	__u32 v6[4];
	__be16 port;
	__u16 mtu; /* of an inner packet */
	__u32 device; /* the AERO interface; 0 for a Server, which has none */
	__u32 out4, out6; /* devices that have the addresses */
	__u32 tells; /* somebody reads `wanted` */
	__u32 ttl_step; /* taken off the outer hop limit of what is passed on */
	__u32 ip_in_ip; /* tunnels without UDP lead to this forwarder */
	__u32 table; /* another number after each change of what is looked up */
	__u64 until; /* with no process to look after it the table is not to be used for ever */
};

/* A flow that left through the node's own network layer, as its answers will look. */
struct flow {
	__u32 source[4];
	__u32 destination[4];
	__be16 source_port;
	__be16 destination_port;
	__u32 protocol;
};

/* What a pod may send from. */
struct pod {
	__u32 address[4];
	__u32 mask[4];
};

/* Reasons to drop, as in protocol::forwarding::Drop, then what else is counted. */
enum counter {
	MALFORMED,
	FOREIGN_SOURCE,
	ORIGIN_REFUSED,
	NO_ROUTE,
	WOULD_RETURN,
	NOT_FOR_US,
	DELIVERED_PACKETS,
	DELIVERED_BYTES,
	TUNNELED_PACKETS,
	TUNNELED_BYTES,
	PASSED, /* left to the forwarder in user space */
	SEND_ERRORS,
	COUNTERS,
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct config);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} config SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 20);
	__type(key, struct prefix);
	__type(value, struct route);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} routes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 20);
	__type(key, struct prefix);
	__type(value, struct source);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} sources SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 14);
	__type(key, struct l2);
	__type(value, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} peers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 18);
	__type(key, struct handover_key);
	__type(value, struct handover);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} handovers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 20);
	__type(key, struct direct_key);
	__type(value, struct direct);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} direct SEC(".maps");

/* When the process was last told of a pair; and what it is told. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1 << 13);
	__type(key, struct pair);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} told SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 16);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} wanted SEC(".maps");

/*
 * Until when a neighbour is known to get what is sent to it in plain IP-in-IP. The proof is renewed
 * every quarter of a second; with no process to do so the tunnels are UDP again after a second.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SLOTS);
	__type(key, __u32);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} proven SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SLOTS);
	__type(key, __u32);
	__type(value, struct traffic);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} neighbors SEC(".maps");

/* Interfaces of pods, by index. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 12);
	__type(key, __u32);
	__type(value, struct pod);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} pods SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1 << 15);
	__type(key, struct flow);
	__type(value, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} flows SEC(".maps");

/*
 * Whether a pod has ever had such a flow, by a hash of its address. Most have none, and most
 * packets are spared the look-up of theirs.
 */
#define FLOW_BUCKETS 4096

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FLOW_BUCKETS);
	__type(key, __u32);
	__type(value, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} has_flows SEC(".maps");

inline_always __u32 *flow_bucket(const __u32 *pod)
{
	__u32 bucket = (pod[0] ^ pod[1] ^ pod[2] ^ pod[3]) * 0x9e3779b1U >> 20;
	return bpf_map_lookup_elem(&has_flows, &bucket);
}

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} counters SEC(".maps");

/*
 * UDP ports of this node whose packets a forwarder like this one takes off the loopback: agent and
 * Server on one node. Shared by all forwarders of the node.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} ports SEC(".maps");

inline_always void count(__u32 which, __u64 n)
{
	__u64 *counter = bpf_map_lookup_elem(&counters, &which);
	if (counter)
		*counter += n;
}

inline_always __u64 packets_of(struct __sk_buff *skb, __u32 length)
{
	__u32 size = skb->gso_size;
	return size ? (length + size - 1) / size : 1;
}

/* Counts a packet and its inner length; one that stands for many counts as many. */
inline_always void count_delivered(struct __sk_buff *skb, __u32 length)
{
	count(DELIVERED_PACKETS, packets_of(skb, length));
	count(DELIVERED_BYTES, length);
}

inline_always void count_tunneled(struct __sk_buff *skb, const struct l2 *to, __u32 length)
{
	__u64 packets = packets_of(skb, length);
	__u32 slot = to->slot;
	struct traffic *traffic = bpf_map_lookup_elem(&neighbors, &slot);
	if (traffic) {
		traffic->tunneled_packets += packets;
		traffic->tunneled_bytes += length;
	}
	count(TUNNELED_PACKETS, packets);
	count(TUNNELED_BYTES, length);
}

/* What came from a neighbour and passed the check of its origin. */
inline_always void count_received(struct __sk_buff *skb, __u32 slot, __u32 length)
{
	struct traffic *traffic = bpf_map_lookup_elem(&neighbors, &slot);
	if (traffic) {
		traffic->received_packets += packets_of(skb, length);
		traffic->received_bytes += length;
	}
}

inline_always struct config *configuration(__u64 now)
{
	__u32 zero = 0;
	struct config *c = bpf_map_lookup_elem(&config, &zero);
	if (!c || (c->until && c->until <= now))
		return 0;
	return c;
}

inline_always int is_v4(const __u32 *ip)
{
	return !ip[0] && !ip[1] && ip[2] == bpf_htonl(0xffff);
}

inline_always int same_ip(const __u32 *a, const __u32 *b)
{
	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3];
}

inline_always int same_l2(const struct l2 *a, const struct l2 *b)
{
	return same_ip(a->ip, b->ip) && a->port == b->port;
}

inline_always void map_v4(__u32 *ip, __u32 v4)
{
	ip[0] = 0;
	ip[1] = 0;
	ip[2] = bpf_htonl(0xffff);
	ip[3] = v4;
}

/* An inner address as it comes out of a packet: IPv4 in the first word. */
struct inner_address {
	__u32 family; /* 4 or 6 */
	__u32 word[4];
};

inline_always void prefix_of(struct prefix *key, const struct inner_address *a)
{
	key->bits = FAMILY_BITS + (a->family == 4 ? 32 : 128);
	key->family = a->family;
	__builtin_memcpy(key->address, a->word, sizeof key->address);
}

/* How many entries that have run out may hide one that has not. They are swept every second. */
#define HIDDEN 8

inline_always struct route *live_route(const struct inner_address *a, __u64 now)
{
	struct prefix key;
	prefix_of(&key, a);
	for (int i = 0; i < HIDDEN; i++) {
		struct route *r = bpf_map_lookup_elem(&routes, &key);
		if (!r || !r->until || r->until > now)
			return r;
		if (r->bits <= FAMILY_BITS)
			return 0;
		key.bits = r->bits - 1;
	}
	return 0;
}

/* Of two ends the sooner one; 0: no end. */
inline_always void not_after(__u64 *until, __u64 end)
{
	if (end && end < *until)
		*until = end;
}

enum allowed { NO, YES, ASK };

/*
 * Whether an outer source is one of those that may send an inner one, its slot, and until when. The
 * longest prefix counts for which any is alive.
 */
inline_always int sends(const struct l2 *from, const struct inner_address *a, __u64 now,
			__u32 *slot, __u64 *until)
{
	struct prefix key;
	prefix_of(&key, a);
	for (int i = 0; i < HIDDEN; i++) {
		struct source *s = bpf_map_lookup_elem(&sources, &key);
		int alive = 0;
		if (!s)
			return NO;
#pragma unroll
		for (__u32 n = 0; n < SENDERS; n++) {
			struct sender *who = &s->sender[n];
			if (n >= s->count || (who->until && who->until <= now))
				continue;
			if (same_l2(&who->from, from)) {
				*slot = who->from.slot;
				not_after(until, who->until);
				return YES;
			}
			alive = 1;
		}
		if (s->count > SENDERS)
			return ASK;
		if (alive || s->bits <= FAMILY_BITS)
			return NO;
		key.bits = s->bits - 1;
	}
	return NO;
}

inline_always int handed_over(const struct l2 *from, const struct inner_address *to, __u64 now,
			      __u64 *until)
{
	struct handover_key key = {};
	key.bits = HANDOVER_BITS + (to->family == 4 ? 32 : 128);
	key.from = *from;
	key.family = to->family;
	__builtin_memcpy(key.address, to->word, sizeof key.address);
	for (int i = 0; i < HIDDEN; i++) {
		struct handover *h = bpf_map_lookup_elem(&handovers, &key);
		if (!h)
			return 0;
		if (h->until > now) {
			not_after(until, h->until);
			return 1;
		}
		if (h->bits <= HANDOVER_BITS)
			return 0;
		key.bits = h->bits - 1;
	}
	return 0;
}

/* The first `bits` of an address. */
inline_always void truncate(__u32 *to, const __u32 *from, __u32 bits)
{
#pragma unroll
	for (int i = 0; i < 4; i++) {
		__u32 here = bits > 32 ? 32 : bits;
		bits -= here;
		to[i] = here ? from[i] & bpf_htonl(~0U << (32 - here)) : 0;
	}
}

/* A direct path from the own prefix that `own` is the route of. */
inline_always struct direct *live_direct(const struct inner_address *source,
					 const struct route *own,
					 const struct inner_address *to, __u64 now)
{
	struct direct_key key = {};
	key.bits = DIRECT_BITS + (to->family == 4 ? 32 : 128);
	key.own_family = source->family;
	key.own_bits = own->bits;
	truncate(key.own, source->word, own->bits - FAMILY_BITS);
	key.family = to->family;
	__builtin_memcpy(key.address, to->word, sizeof key.address);
	for (int i = 0; i < HIDDEN; i++) {
		struct direct *d = bpf_map_lookup_elem(&direct, &key);
		if (!d || d->until > now)
			return d;
		if (d->bits <= DIRECT_BITS)
			return 0;
		key.bits = d->bits - 1;
	}
	return 0;
}

/* How long the process is not told of the same pair again. */
#define TELL_EVERY 1000000000ULL

/* Tells the process that the packet whose inner header is at `at` goes by a Server. */
apart void tell(struct __sk_buff *skb, __u32 at, const struct inner_address *source,
		const struct inner_address *destination, __u64 now)
{
	struct pair pair = {.family = source->family};
	__builtin_memcpy(pair.source, source->word, sizeof pair.source);
	__builtin_memcpy(pair.destination, destination->word, sizeof pair.destination);
	__u64 *last = bpf_map_lookup_elem(&told, &pair);
	if (last && *last + TELL_EVERY > now)
		return;
	bpf_map_update_elem(&told, &pair, &now, BPF_ANY);
	/* With the buffer full the next packet after a second tells. */
	struct wanting *w = bpf_ringbuf_reserve(&wanted, sizeof *w, 0);
	if (!w)
		return;
	w->pair = pair;
	__u32 rest = skb->len - at;
	w->length = QUOTED;
	if (rest >= QUOTED) {
		if (bpf_skb_load_bytes(skb, at, w->quoted, QUOTED))
			w->length = 0;
	} else {
		/* So that the verifier sees the bound, and the compiler does not. */
		asm volatile("" : "+r"(rest));
		rest &= QUOTED - 1;
		w->length = rest && !bpf_skb_load_bytes(skb, at, w->quoted, rest) ? rest : 0;
	}
	bpf_ringbuf_submit(w, 0);
}

/* Where an own packet goes. */
struct hop {
	struct l2 to;
	__u32 straight; /* by a direct path */
};

/*
 * Looks for it: NEIGHBOR and `hop`, or another kind of route, or 0 if there is none. `until` is
 * brought forward to the end of what was found.
 */
inline_always int next_hop(struct __sk_buff *skb, __u32 at, const struct config *c,
			   const struct inner_address *source, const struct route *own,
			   const struct inner_address *destination, struct hop *hop, __u64 *until,
			   __u64 now)
{
	struct direct *d = live_direct(source, own, destination, now);
	hop->straight = d != 0;
	if (d) {
		if (!d->used)
			d->used = 1;
		hop->to = d->to;
		not_after(until, d->until);
		return NEIGHBOR;
	}
	struct route *r = live_route(destination, now);
	if (!r || r->kind != NEIGHBOR)
		return r ? r->kind : 0;
	hop->to = r->to;
	not_after(until, r->until);
	if (c->tells)
		tell(skb, at, source, destination, now);
	return NEIGHBOR;
}

/*
 * Section 3.8 of the draft: may this outer source send that inner packet? Finds its slot too, and
 * brings `until` forward to the end of what allows it.
 */
inline_always int accepts(const struct l2 *from, const struct inner_address *source,
			  const struct inner_address *destination, __u64 now, __u32 *slot,
			  __u64 *until)
{
	__u32 *peer = bpf_map_lookup_elem(&peers, from);
	*slot = 0;
	if (peer) {
		*slot = *peer >> 16;
		return YES;
	}
	int allowed = sends(from, source, now, slot, until);
	if (allowed != YES && handed_over(from, destination, now, until))
		return YES;
	return allowed;
}

/* Between peers a packet never goes to a Relay. */
inline_always int bounces(const struct l2 *from, const struct l2 *to)
{
	struct l2 key = *to;
	key.slot = 0;
	__u32 *other = bpf_map_lookup_elem(&peers, &key);
	if (!other || !(*other & RELAY))
		return 0;
	__u32 *self = bpf_map_lookup_elem(&peers, from);
	return self && (*self & PEER);
}

#endif
